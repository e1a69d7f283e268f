//! What administration asks of the session side.

use std::{future::Future, pin::Pin, time::Duration};

use gofs_tree::{FsError, Ino, LeaseMode, NamespaceId, SessionId};

/// A session as its leader sees it; the rest is in the state's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSummary {
    /// Which.
    pub id: SessionId,
    /// Leases that it holds.
    pub leases: u64,
    /// When it was last heard of; `None`: not in this leader's term.
    pub heard_ago: Option<Duration>,
    /// Recalls that it has not acknowledged.
    pub recalls_pending: u64,
}

/// One session's hold on an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseSummary {
    /// Whose.
    pub session: SessionId,
    /// Its lease; `None`: only an open is registered.
    pub mode: Option<LeaseMode>,
    /// It was asked to give it back.
    pub recalling: bool,
    /// It has the inode open, as far as that is registered.
    pub open: bool,
}

/// Answered by the session service of a MetaServer that leads.
pub trait SessionInfo: Send + Sync + 'static {
    /// All sessions that it knows.
    fn sessions(&self) -> Vec<SessionSummary>;
    /// Who holds what on an inode.
    fn leases(&self, namespace: NamespaceId, ino: Ino) -> Vec<LeaseSummary>;
    /// Whether sessions may still reclaim leases after a change of leader.
    fn in_grace(&self) -> bool;
    /// Ends all sessions of a namespace, as if fenced.
    fn end_sessions(
        &self,
        namespace: NamespaceId,
    ) -> Pin<Box<dyn Future<Output = Result<(), FsError>> + Send + '_>>;
}

//! What administration asks of the session side, and the list of sessions.

use std::{collections::HashMap, future::Future, pin::Pin, time::Duration};

use gofs_proto::cluster;
use gofs_tree::{FsError, Ino, LeaseMode, NamespaceId, SessionId};
use tonic::Status;

use super::{Admin, millis, namespaces::no_namespace, unreadable};

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
    /// Changes that it has made and not sent, as it said last.
    pub unsent_edits: u64,
    /// Bytes that it has not sent.
    pub unsent_bytes: u64,
    /// Changes that it lost since the mount: refused, or gone with a session.
    pub lost_edits: u64,
    /// Files of which it lost bytes with a lease or a session.
    pub lost_files: u64,
    /// Bytes that it could not write.
    pub lost_bytes: u64,
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

/// While it is kept, no session makes anything that a quota could limit without asking.
pub type Metering = Box<dyn Send>;

/// Answered by the session service of a MetaServer that leads.
pub trait SessionInfo: Send + Sync + 'static {
    /// All sessions that it knows.
    fn sessions(&self) -> Vec<SessionSummary>;
    /// Who holds what on an inode.
    fn leases(&self, namespace: NamespaceId, ino: Ino) -> Vec<LeaseSummary>;
    /// Whether sessions may still reclaim leases after a change of leader.
    fn in_grace(&self) -> bool;
    /// Before a quota is made smaller: has every session of the namespace commit what it has made, and counts on none until what
    /// is returned is dropped.
    fn meter(
        &self,
        namespace: NamespaceId,
    ) -> Pin<Box<dyn Future<Output = Result<Metering, FsError>> + Send + '_>>;
    /// Ends all sessions of a namespace, as if fenced.
    fn end_sessions(
        &self,
        namespace: NamespaceId,
    ) -> Pin<Box<dyn Future<Output = Result<(), FsError>> + Send + '_>>;
}

/// `ListSessions`: the state's sessions with what their leader knows of them.
pub(super) fn list(
    admin: &Admin,
    request: &cluster::ListSessionsRequest,
) -> Result<cluster::ListSessionsReply, Status> {
    let namespaces = admin.group.state().namespaces().map_err(unreadable)?;
    if !request.namespace.is_empty() && !namespaces.iter().any(|ns| ns.name == request.namespace) {
        return Err(no_namespace(&request.namespace));
    }
    let names: HashMap<NamespaceId, String> = namespaces.into_iter().map(|ns| (ns.id, ns.name)).collect();
    let live: HashMap<SessionId, SessionSummary> =
        admin.sessions.sessions().into_iter().map(|session| (session.id, session)).collect();
    let mut sessions = Vec::new();
    for record in admin.group.state().sessions().map_err(unreadable)? {
        let namespace = names.get(&record.namespace).cloned().unwrap_or_default();
        if !request.namespace.is_empty() && namespace != request.namespace {
            continue;
        }
        let live = live.get(&record.id);
        sessions.push(cluster::Session {
            id: record.id.0,
            namespace,
            host: record.host,
            mount_point: record.mount_point,
            pid: record.pid,
            leases: live.map_or(0, |live| live.leases),
            heard_ms: millis(live.and_then(|live| live.heard_ago)),
            recalls_pending: live.map_or(0, |live| live.recalls_pending),
            unsent_edits: live.map_or(0, |live| live.unsent_edits),
            unsent_bytes: live.map_or(0, |live| live.unsent_bytes),
            lost_edits: live.map_or(0, |live| live.lost_edits),
            lost_files: live.map_or(0, |live| live.lost_files),
            lost_bytes: live.map_or(0, |live| live.lost_bytes),
        });
    }
    Ok(cluster::ListSessionsReply { sessions })
}

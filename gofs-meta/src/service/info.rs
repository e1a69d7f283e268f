//! What administration may ask about sessions and leases, and ask of them.

use gofs_tree::{Ino, NamespaceId, SessionId};

use super::Service;
use crate::lease::LeaseInfo;
use crate::session::SessionState;

/// A session and its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLoad {
    /// Which, and when it was last heard of.
    pub state: SessionState,
    /// Leases that it holds.
    pub leases: usize,
    /// Recalls that it has not answered.
    pub recalls: usize,
}

impl Service {
    /// Sessions that live, as far as this server leads.
    pub fn sessions(&self) -> Vec<SessionLoad> {
        let Ok(term) = self.term() else { return Vec::new() };
        let sessions = term.sessions.lock().list(term.shared.now());
        let load = |state: SessionState| {
            let space = term.known_space(state.namespace);
            let (leases, recalls) = space.map_or((0, 0), |space| space.lock().leases.load_of(state.session));
            SessionLoad { state, leases, recalls }
        };
        sessions.into_iter().map(load).collect()
    }

    /// Who holds what on an inode.
    pub fn leases_on(&self, namespace: NamespaceId, ino: Ino) -> Vec<LeaseInfo> {
        let space = self.term().ok().and_then(|term| term.known_space(namespace));
        space.map(|space| space.lock().leases.leases_on(ino)).unwrap_or_default()
    }

    /// Whether this server waits for sessions to reclaim their leases.
    pub fn in_grace(&self) -> bool {
        self.term().is_ok_and(|term| term.in_grace())
    }

    /// Fences every session of a namespace and waits for that.
    pub async fn end_sessions(&self, namespace: NamespaceId) {
        let Ok(term) = self.term() else { return };
        let sessions: Vec<SessionId> = term.sessions.lock().of_namespace(namespace);
        for session in sessions {
            if let Err(error) = term.end_session(session, namespace, true).await {
                tracing::error!(%session, ns = %namespace, %error, "the session could not be ended");
            }
        }
    }
}

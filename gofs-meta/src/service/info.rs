//! What administration may ask about sessions and leases, and ask of them.

use std::pin::Pin;

use gofs_tree::{FsError, Ino, NamespaceId};

use super::{Service, slices};
use crate::admin::{LeaseSummary, Metering, SessionInfo, SessionSummary};

impl SessionInfo for Service {
    fn sessions(&self) -> Vec<SessionSummary> {
        let Ok(term) = self.term() else { return Vec::new() };
        let sessions = term.sessions.lock().list(term.shared.now());
        let mut summaries = Vec::with_capacity(sessions.len());
        for state in sessions {
            let space = term.known_space(state.namespace);
            let (leases, recalls, report) = space.map_or_else(Default::default, |space| {
                let inner = space.lock();
                let (leases, recalls) = inner.leases.load_of(state.session);
                (leases, recalls, inner.reports.get(&state.session).copied().unwrap_or_default())
            });
            summaries.push(SessionSummary {
                id: state.session,
                leases: leases as u64,
                heard_ago: state.silent,
                recalls_pending: recalls as u64,
                unsent_edits: report.unsent_edits,
                unsent_bytes: report.unsent_bytes,
                lost_edits: report.lost_edits,
                lost_files: report.lost_files,
                lost_bytes: report.lost_bytes,
            });
        }
        summaries
    }

    fn leases(&self, namespace: NamespaceId, ino: Ino) -> Vec<LeaseSummary> {
        let space = self.term().ok().and_then(|term| term.known_space(namespace));
        let leases = space.map(|space| space.lock().leases.leases_on(ino)).unwrap_or_default();
        let summary = |lease: crate::lease::LeaseInfo| LeaseSummary {
            session: lease.session,
            mode: lease.mode,
            recalling: lease.recalling,
            open: lease.open,
        };
        leases.into_iter().map(summary).collect()
    }

    fn in_grace(&self) -> bool {
        self.term().is_ok_and(|term| term.in_grace())
    }

    fn meter(
        &self,
        namespace: NamespaceId,
    ) -> Pin<Box<dyn Future<Output = Result<Metering, FsError>> + Send + '_>> {
        Box::pin(async move {
            let term = self.term().map_err(|_| FsError::Busy)?;
            let space = term.space(namespace).map_err(|_| FsError::Busy)?;
            let metering = slices::meter(&term, space).await.map_err(|_| FsError::Busy)?;
            Ok(Box::new(metering) as Metering)
        })
    }

    fn end_sessions(
        &self,
        namespace: NamespaceId,
    ) -> Pin<Box<dyn Future<Output = Result<(), FsError>> + Send + '_>> {
        Box::pin(async move {
            let term = self.term().map_err(|_| FsError::Busy)?;
            let sessions = term.sessions.lock().of_namespace(namespace);
            for session in sessions {
                if let Err(error) = term.end_session(session, namespace, true).await {
                    tracing::error!(%session, ns = %namespace, %error, "the session could not be ended");
                    return Err(FsError::Io);
                }
            }
            Ok(())
        })
    }
}

//! Who leads, how a leader knows that it still does, and what it does because it leads.
//!
//! A server leads here once it has applied everything that was committed before its term, and the cluster has its
//! identity. That it still leads is known without messages while a majority's promise to wait holds; a promise ends
//! when the lead is given away.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gofs_tree::MetaServerId;
use openraft::Instant as _;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{Fatal, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::raft::ReadPolicy;
use tokio::sync::watch;

use super::{LEASE_RETRY, MetaGroup, ProposeError};
use crate::command::Command;
use crate::raft::SerdeInstant;

/// How long a leader that shuts down waits for another to take over.
const TRANSFER_TIMEOUT: Duration = Duration::from_millis(1500);
/// Entries that a member may be behind to be handed the lead.
const MOST_BEHIND: u64 = 1000;

/// Whether this server leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It leads, and has applied everything that was committed before its term.
    Leader,
    /// It does not.
    Follower,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// This server's part.
    pub role: Role,
    /// Moves at each election.
    pub term: u64,
    /// The leader and its address, if known.
    pub leader: Option<(MetaServerId, String)>,
}

impl MetaGroup {
    /// Who leads, now and from now on.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    pub(super) async fn watch_leadership(self: Arc<Self>) {
        let mut changes = self.raft.metrics();
        loop {
            let now = {
                let metrics = changes.borrow_watched();
                let term = metrics.current_term;
                let applied_term = metrics.last_applied.as_ref().map(|applied| applied.leader_id.term);
                // Its own first entry being applied, so is everything committed before its term.
                let leads = metrics.state == ServerState::Leader
                    && applied_term == Some(term)
                    && metrics.running_state.is_ok();
                if let Err(fatal) = &metrics.running_state
                    && !matches!(fatal, Fatal::Stopped)
                {
                    tracing::error!(error = %fatal, "the group has failed; this MetaServer serves no more");
                }
                (if leads { Role::Leader } else { Role::Follower }, term, metrics.current_leader)
            };
            let (role, term, leader) = now;
            if role == Role::Leader && !self.named_cluster().await {
                // Lost again, or not able to: look at what comes next.
            } else {
                let leader = leader.and_then(|id| Some((MetaServerId(id), self.address_of(id)?)));
                let now = Leadership { role, term, leader };
                let changed = self.leadership.send_if_modified(|known| {
                    let changed = *known != now;
                    known.clone_from(&now);
                    changed
                });
                if changed {
                    tracing::info!(role = ?now.role, term = now.term, leader = ?now.leader, "leadership");
                    self.sweep.notify_one();
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// The first leader of a new cluster gives it its identity.
    async fn named_cluster(&self) -> bool {
        match self.state.cluster() {
            Ok(Some(_)) => true,
            Ok(None) => {
                let cluster = rand::random();
                match self.propose(Command::InitCluster { cluster }).await {
                    Ok(_) => true,
                    Err(error) => {
                        tracing::warn!(%error, "the new cluster has no identity yet");
                        false
                    }
                }
            }
            Err(_) => false,
        }
    }

    /// While this server leads, removes what deleted namespaces left.
    pub(super) async fn sweep(self: Arc<Self>) {
        loop {
            self.sweep.notified().await;
            while self.leadership.borrow().role == Role::Leader {
                let Ok(deleted) = self.state.deleted_namespaces() else { break };
                let Some(&id) = deleted.first() else { break };
                if let Err(error) = self.propose(Command::SweepNamespace { id }).await {
                    tracing::warn!(%error, ns = id.0, "records of a deleted namespace stay for now");
                    break;
                }
            }
        }
    }

    /// Returns once it is sure that this server leads and that the state holds everything committed before the call.
    pub async fn confirm_leader(&self) -> Result<(), ProposeError> {
        if self.lease_holds() {
            return Ok(());
        }
        let until = Instant::now() + LEASE_RETRY;
        loop {
            let read = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
            let error = match tokio::time::timeout(LEASE_RETRY, read).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => return Err(ProposeError::NotLeader { leader: None }),
            };
            let forward = match error {
                RaftError::Fatal(fatal) => return Err(self.fatal(&fatal)),
                RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => forward,
                RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => ForwardToLeader::empty(),
            };
            self.lease_retry(&forward, until).await?;
        }
    }

    /// Whether no other can lead now, because a majority heard from this leader a moment ago and has promised to
    /// wait. Then everything acknowledged was applied here first, and a read needs no messages.
    fn lease_holds(&self) -> bool {
        let leads = self.leadership.borrow().role == Role::Leader;
        if !leads || self.handing_over.load(Ordering::Acquire) {
            return false;
        }
        let metrics = self.metrics.borrow_watched();
        let alone = metrics.membership_config.membership().voter_ids().count() == 1;
        // Counted from when the majority's answers were asked for.
        let recent = |at: &SerdeInstant| at.elapsed() < self.config.read_lease();
        metrics.state == ServerState::Leader
            && (alone || metrics.last_quorum_acked.as_ref().is_some_and(recent))
    }

    /// Gives the lead to another member, if this one has it and another is not far behind; waits for that, with a bound.
    pub async fn hand_over(&self) {
        let to = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            if metrics.state != ServerState::Leader {
                return;
            }
            let own = metrics.last_log_index;
            let replication = metrics.replication.iter().flatten();
            // The one that is least behind.
            let best = replication
                .filter(|(id, _)| **id != self.config.id.0)
                .max_by_key(|(_, matched)| matched.as_ref().map(|matched| matched.index));
            match best {
                Some((&id, Some(matched))) if Some(matched.index + MOST_BEHIND) >= own => id,
                _ => return,
            }
        };
        self.handing_over.store(true, Ordering::Release);
        if self.raft.trigger().transfer_leader(to).await.is_err() {
            return;
        }
        let mut leadership = self.leadership.subscribe();
        let gone = leadership.wait_for(|leadership| leadership.role == Role::Follower);
        // One that does not come to lead in time is elected, or not, without us.
        let _ = tokio::time::timeout(TRANSFER_TIMEOUT, gone).await;
    }
}

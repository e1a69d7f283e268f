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

/// How long a member that is given the lead may take to have it, before another one is.
const TRANSFER_TIMEOUT: Duration = Duration::from_millis(1500);
/// Entries that a member may be behind to be handed the lead, or a vote.
pub(super) const MOST_BEHIND: u64 = 1000;

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
                    self.failed.send_if_modified(|failed| failed.replace(fatal.to_string()).is_none());
                }
                (if leads { Role::Leader } else { Role::Follower }, term, metrics.current_leader)
            };
            let (role, term, leader) = now;
            if role == Role::Leader {
                self.door.is_whole();
            }
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
        let metrics = self.metrics.borrow_watched();
        if !leads || self.handed_over.load(Ordering::Acquire) == metrics.current_term {
            return false;
        }
        let alone = metrics.membership_config.membership().voter_ids().count() == 1;
        // Counted from when the majority's answers were asked for.
        let recent = |at: &SerdeInstant| at.elapsed() < self.config.read_lease();
        metrics.state == ServerState::Leader
            && (alone || metrics.last_quorum_acked.as_ref().is_some_and(recent))
    }

    /// Gives the lead to another member, if this one has it and another is not far behind; waits for that, with a bound.
    pub async fn hand_over(&self) {
        let Some(to) = self.successors(None).first().copied() else { return };
        let _ = tokio::time::timeout(TRANSFER_TIMEOUT, self.give_lead(to)).await;
    }

    /// Members that could lead at once, the one that is least behind first; none where this server does not lead.
    pub(super) fn successors(&self, wanted: Option<MetaServerId>) -> Vec<MetaServerId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader {
            return Vec::new();
        }
        let own = metrics.last_log_index;
        let mut near: Vec<_> = self.members_of(&metrics);
        near.retain(|member| {
            let close = member.matched.is_some_and(|matched| Some(matched.0 + MOST_BEHIND) >= own);
            member.voter && member.id != self.config.id && member.reachable && close
        });
        near.sort_by_key(|member| (Some(member.id) != wanted, std::cmp::Reverse(member.matched)));
        near.into_iter().map(|member| member.id).collect()
    }

    /// Gives the lead to that member and waits until this one has it no more. One that was told to lead takes no commands
    /// in this term, so where the member does not come to lead, others are asked to, until the term is over.
    async fn give_lead(&self, to: MetaServerId) {
        let term = self.raft.metrics().borrow_watched().current_term;
        self.handed_over.store(term, Ordering::Release);
        let mut next = vec![to];
        loop {
            let to = next.pop().unwrap_or(to);
            tracing::info!(to = to.0, term, "giving the lead away");
            if self.raft.trigger().transfer_leader(to.0).await.is_err() {
                return;
            }
            if tokio::time::timeout(TRANSFER_TIMEOUT, self.term_ends(term)).await.is_ok() {
                return;
            }
            tracing::warn!(to = to.0, "it did not take the lead");
            if next.is_empty() {
                next = self.successors(Some(to));
            }
        }
    }

    /// As [`MetaGroup::give_lead`], also where its author gives up, with a bound on the wait.
    pub(super) async fn start_giving_lead(self: &Arc<Self>, to: MetaServerId) {
        let term = self.raft.metrics().borrow_watched().current_term;
        let group = self.clone();
        self.spawn(async move { group.give_lead(to).await });
        let _ = tokio::time::timeout(2 * TRANSFER_TIMEOUT, self.term_ends(term)).await;
    }

    /// Waits until this server does not lead in that term any more.
    async fn term_ends(&self, term: u64) {
        let mut metrics = self.raft.metrics();
        loop {
            {
                let metrics = metrics.borrow_watched();
                if metrics.state != ServerState::Leader || metrics.current_term != term {
                    return;
                }
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }
}

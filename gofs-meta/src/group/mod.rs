//! One metadata group: EditLog and state, replicated over the MetaServers.
//!
//! Owns the raft instance, the log and the state that the log makes, and the tasks that run while the group does. What
//! [`MetaGroup::propose`] has answered is on stable storage at a majority and applied here. Knows no session and no
//! lease; whoever serves something while this server leads follows [`MetaGroup::leadership`].

mod config;
mod leading;
mod members;
mod start;
#[cfg(test)]
mod tests;
mod watch_members;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gofs_proto::cluster::raft_server::RaftServer;
use gofs_tree::{EditIndex, Encode, MetaServerId, NamespaceId};
use gofs_wakeful::Wakeful;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, ForwardToLeader, RaftError};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::command::{Command, CommandOutcome};
use crate::editlog::EditLog;
use crate::raft::network::Network;
use crate::raft::wire::MESSAGE_BYTES_MAX;
use crate::raft::{CommandBytes, LogId, Raft, RaftMetricsReceiver, Types};
use crate::state::StateStore;

pub use crate::raft::door::RaftDoor;
pub use config::GroupConfig;
pub use leading::{Leadership, Role};
pub use members::{GroupView, Member, MemberError, Progress};
pub use start::StartError;

/// Why a command was not carried out, or may not have been.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// Ask the leader.
    #[error("not the leader{}", leader.as_ref().map(|leader| format!("; {leader} is")).unwrap_or_default())]
    NotLeader {
        /// Where it is, if that is known.
        leader: Option<String>,
    },
    /// The server is going down.
    #[error("shutting down")]
    Shutdown,
    /// Log or state failed; this server stops serving.
    #[error("{0}")]
    Storage(String),
}

/// How the group is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupMetrics {
    /// Last entry known to be committed.
    pub committed: EditIndex,
    /// Last entry applied here.
    pub applied: EditIndex,
    /// Last entry in the newest Snapshot here.
    pub snapshot: EditIndex,
    /// All members.
    pub members: Vec<Member>,
}

/// One group: the EditLog and the state that it makes.
pub struct MetaGroup {
    config: GroupConfig,
    state: StateStore,
    log: EditLog,
    /// Keeps processors awake while requests flow. Heartbeats, elections and KeepAlives do not count.
    wakeful: Arc<Wakeful>,
    raft: Raft,
    door: RaftDoor,
    metrics: RaftMetricsReceiver,
    network: Network,
    /// The term in which the lead was given away, or was to be: what the members promised does not hold any more. 0: none.
    handed_over: AtomicU64,
    leadership: watch::Sender<Leadership>,
    /// Where the voters are.
    addresses: watch::Sender<Vec<String>>,
    /// Why it takes part in nothing any more.
    failed: watch::Sender<Option<String>>,
    /// One change of the members at a time.
    changing: tokio::sync::Mutex<()>,
    /// Something was deleted whose records are to be swept.
    sweep: Notify,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// How long a command may wait for a majority. Then its author asks elsewhere, or again.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a leader that lost touch with the majority, or was starved of processor, may take to find it again
/// before its callers are told.
const LEASE_RETRY: Duration = Duration::from_secs(3);
const LEASE_RETRY_PAUSE: Duration = Duration::from_millis(25);
/// Pause between two attempts to settle what became of a command.
const SETTLE_RETRY: Duration = Duration::from_millis(500);

impl MetaGroup {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut stop = self.stop.subscribe();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = task => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        });
        self.tasks.lock().push(task);
    }

    /// Commits a command and answers what applying it did. After an error other than a refusal before it was
    /// logged it may have been carried out or not: edits are told apart by their sequence numbers.
    pub async fn propose(&self, command: Command) -> Result<CommandOutcome, ProposeError> {
        let deletes = matches!(command, Command::DeleteNamespace { .. });
        let bytes: Bytes = command.to_bytes().into();
        let until = Instant::now() + LEASE_RETRY;
        loop {
            let write = self.raft.client_write(CommandBytes(bytes.clone()));
            let error = match tokio::time::timeout(PROPOSE_TIMEOUT, write).await {
                Ok(Ok(written)) => {
                    if deletes {
                        self.sweep.notify_one();
                    }
                    return Ok(written.data.0);
                }
                Ok(Err(error)) => error,
                Err(_) => return Err(ProposeError::NotLeader { leader: None }),
            };
            let forward = match error {
                RaftError::Fatal(fatal) => return Err(self.fatal(&fatal)),
                // Not logged. A leader that was starved says so although it still leads.
                RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => forward,
                RaftError::APIError(ClientWriteError::LogEntryDiscarded(forward)) => {
                    return Err(self.not_leader(forward.leader_id));
                }
                RaftError::APIError(error) => return Err(ProposeError::Storage(error.to_string())),
            };
            self.lease_retry(&forward, until).await?;
        }
    }

    /// Waits until it is known what became of all that was proposed in that term and not answered: a later entry of the same
    /// leader's log settles it, and so does the end of the term. `namespace`: which such an entry is about, without any change.
    pub async fn settle(&self, term: u64, namespace: NamespaceId) {
        let leads = || {
            let now = self.leadership.borrow();
            now.role == Role::Leader && now.term == term && !self.is_stopping()
        };
        let barrier = || Command::ServerEdits { namespace, edits: Vec::new() };
        while leads() && self.propose(barrier()).await.is_err() {
            tokio::time::sleep(SETTLE_RETRY).await;
        }
    }

    /// Waits a little where this server may find that it still leads; else says who does.
    async fn lease_retry(
        &self,
        forward: &ForwardToLeader<Types>,
        until: Instant,
    ) -> Result<(), ProposeError> {
        let elsewhere = forward.leader_id.is_some_and(|leader| leader != self.config.id.0);
        let hopeful = forward.reason == ForwardReason::LeaseExpired
            || self.raft.metrics().borrow_watched().state == ServerState::Leader;
        if elsewhere || !hopeful || Instant::now() >= until {
            return Err(self.not_leader(forward.leader_id));
        }
        tokio::time::sleep(LEASE_RETRY_PAUSE).await;
        Ok(())
    }

    fn address_of(&self, id: u64) -> Option<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let logged = metrics.membership_config.membership().get_node(&id).map(|node| node.addr.as_str());
        self.network.book.candidates(MetaServerId(id), logged).into_iter().next()
    }

    fn not_leader(&self, leader: Option<u64>) -> ProposeError {
        let other = leader.filter(|leader| *leader != self.config.id.0);
        ProposeError::NotLeader { leader: other.and_then(|leader| self.address_of(leader)) }
    }

    fn fatal(&self, fatal: &Fatal<Types>) -> ProposeError {
        match fatal {
            Fatal::Stopped => ProposeError::Shutdown,
            _ => ProposeError::Storage(fatal.to_string()),
        }
    }

    /// The state. On a follower it lags.
    pub fn state(&self) -> &StateStore {
        &self.state
    }

    /// The door for the other MetaServers, to be served on this server's port.
    pub fn raft_service(&self) -> RaftServer<RaftDoor> {
        RaftServer::new(self.door.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// This MetaServer.
    pub fn id(&self) -> MetaServerId {
        self.config.id
    }

    /// Where the others reach it, as far as it knows.
    pub fn address(&self) -> &str {
        &self.config.address
    }

    /// What keeps this server's processors awake.
    pub fn wakeful(&self) -> &Wakeful {
        &self.wakeful
    }

    /// How the group is.
    pub fn metrics(&self) -> GroupMetrics {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: Option<&LogId>| EditIndex(id.map_or(0, |id| id.index));
        GroupMetrics {
            committed: index(metrics.local_committed.as_ref()),
            applied: self.state.applied(),
            snapshot: index(metrics.snapshot.as_ref()),
            members: self.members_of(&metrics),
        }
    }

    /// Whether it was told to stop: its state may be closed.
    pub fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Stops, with everything applied made durable. A leader is to hand over first ([`MetaGroup::hand_over`]): else the others
    /// have to notice its absence.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // A task that panicked has said so.
            let _ = task.await;
        }
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "raft did not stop cleanly");
        }
        let (log, state) = (self.log.clone(), self.state.clone());
        let closed = tokio::task::spawn_blocking(move || {
            if let Err(error) = state.close() {
                tracing::error!(%error, "the state was not made durable; the EditLog is replayed at the next start");
            }
            log.close()
        });
        match closed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the EditLog was not closed cleanly"),
            Err(error) => tracing::error!(%error, "the EditLog was not closed"),
        }
    }
}

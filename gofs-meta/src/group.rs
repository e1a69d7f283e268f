//! One metadata group: EditLog and state, replicated over the MetaServers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gofs_proto::cluster;
use gofs_proto::cluster::raft_server::RaftServer;
use gofs_tree::{EditIndex, Encode, MetaServerId};
use tokio::sync::watch;

use crate::command::{Command, CommandOutcome};
use crate::state::{LogEntry, LogPosition, StateConfig, StateError, StateStore};

/// What a group needs to start.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// This MetaServer.
    pub id: MetaServerId,
    /// Its data directory; the group keeps `log/`, `state/` and `snapshot/` in it.
    pub data: PathBuf,
    /// host:port at which the others reach this MetaServer.
    pub address: String,
    /// All members with their addresses, this one may be among them. Empty: the only one.
    pub peers: BTreeMap<MetaServerId, String>,
    /// Memory of the state store.
    pub state: StateConfig,
    /// Bytes of one EditLog segment file.
    pub segment_bytes: u64,
    /// A Snapshot is made, and the log before it trimmed, after so many entries.
    pub snapshot_entries: u64,
    /// Pace of heartbeats between MetaServers; elections wait four to eight times as long.
    pub heartbeat_ms: u64,
}

impl GroupConfig {
    /// The defaults.
    pub fn new(
        id: MetaServerId,
        data: PathBuf,
        address: String,
        peers: BTreeMap<MetaServerId, String>,
    ) -> Self {
        GroupConfig {
            id,
            data,
            address,
            peers,
            state: StateConfig::default(),
            segment_bytes: 64 << 20,
            snapshot_entries: 100_000,
            heartbeat_ms: 150,
        }
    }
}

/// Why a group cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be.
    #[error("{0}")]
    Config(String),
    /// The data directory cannot be used.
    #[error("{0}")]
    Storage(String),
    /// The data directory is another server's or another cluster's.
    #[error("{0}")]
    Identity(String),
}

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

/// How the group is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupMetrics {
    /// Last entry known to be committed.
    pub committed: EditIndex,
    /// Last entry applied here.
    pub applied: EditIndex,
    /// Last entry in the newest Snapshot here.
    pub snapshot: EditIndex,
    /// All members: id, address, and whether this server heard from it lately (known to the leader only; itself: yes).
    pub members: Vec<(MetaServerId, String, bool)>,
}

/// One group: the EditLog and the state that it makes.
pub struct MetaGroup {
    config: GroupConfig,
    state: StateStore,
    next: AtomicU64,
    propose: tokio::sync::Mutex<()>,
    leadership: watch::Sender<Leadership>,
}

impl MetaGroup {
    /// Opens or makes the data directory and joins the group. A fresh group of the configured members is made without anyone asking.
    pub async fn start(config: GroupConfig) -> Result<Arc<MetaGroup>, StartError> {
        let state = StateStore::open(&config.data.join("state"), config.state)
            .map_err(|error| StartError::Storage(error.to_string()))?;
        let leader = Some((config.id, config.address.clone()));
        let (leadership, _) = watch::channel(Leadership { role: Role::Leader, term: 1, leader });
        let next = AtomicU64::new(state.applied().0);
        Ok(Arc::new(MetaGroup { config, state, next, propose: tokio::sync::Mutex::new(()), leadership }))
    }

    /// Commits a command and answers what applying it did. After `NotLeader` or `Shutdown` it may have been carried out or not.
    pub async fn propose(&self, command: Command) -> Result<CommandOutcome, ProposeError> {
        let _turn = self.propose.lock().await;
        let index = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let position = LogPosition { term: 1, node: self.config.id.0, index };
        let entry = LogEntry::Command(command.to_bytes().into());
        let outcomes = self.state.apply(&[(position, entry)]);
        let failed = |error: StateError| ProposeError::Storage(error.to_string());
        outcomes.map_err(failed)?.pop().ok_or(ProposeError::Shutdown)
    }

    /// The state. On a follower it lags.
    pub fn state(&self) -> &StateStore {
        &self.state
    }

    /// Returns once it is sure that this server leads and that the state holds everything committed before the call.
    pub async fn confirm_leader(&self) -> Result<(), ProposeError> {
        Ok(())
    }

    /// Who leads, now and from now on.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// The door for the other MetaServers, to be served on this server's port.
    pub fn raft_service(&self) -> RaftServer<RaftDoor> {
        RaftServer::new(RaftDoor)
    }

    /// How the group is.
    pub fn metrics(&self) -> GroupMetrics {
        let applied = self.state.applied();
        let members = vec![(self.config.id, self.config.address.clone(), true)];
        GroupMetrics { committed: applied, applied, snapshot: EditIndex(0), members }
    }

    /// Stops, with everything applied made durable.
    pub async fn shutdown(&self) {
        if let Err(error) = self.state.persist() {
            tracing::error!(%error, "the state could not be made durable; the EditLog is replayed at the next start");
        }
    }
}

/// Serves the other MetaServers.
pub struct RaftDoor;

#[tonic::async_trait]
impl cluster::raft_server::Raft for RaftDoor {
    async fn append(
        &self,
        _: tonic::Request<cluster::RaftMessage>,
    ) -> Result<tonic::Response<cluster::RaftMessage>, tonic::Status> {
        Err(tonic::Status::unavailable("one MetaServer only"))
    }
    async fn vote(
        &self,
        _: tonic::Request<cluster::RaftMessage>,
    ) -> Result<tonic::Response<cluster::RaftMessage>, tonic::Status> {
        Err(tonic::Status::unavailable("one MetaServer only"))
    }
    async fn snapshot(
        &self,
        _: tonic::Request<tonic::Streaming<cluster::SnapshotPart>>,
    ) -> Result<tonic::Response<cluster::RaftMessage>, tonic::Status> {
        Err(tonic::Status::unavailable("one MetaServer only"))
    }
    async fn transfer_leader(
        &self,
        _: tonic::Request<cluster::RaftMessage>,
    ) -> Result<tonic::Response<cluster::RaftMessage>, tonic::Status> {
        Err(tonic::Status::unavailable("one MetaServer only"))
    }
}

//! One metadata group: EditLog and state, replicated over the MetaServers.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gofs_proto::cluster::raft_server::RaftServer;
use gofs_tree::{EditIndex, Encode, MetaServerId};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{
    ClientWriteError, Fatal, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError,
};
use openraft::raft::ReadPolicy;
use openraft::{BasicNode, Instant as _, ServerState};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::command::{Command, CommandOutcome};
use crate::editlog::{EditLog, EditLogConfig};
use crate::identity;
use crate::raft::network::Network;
use crate::raft::wire::MESSAGE_BYTES_MAX;
use crate::raft::{
    CommandBytes, LogId, LogStore, Raft, RaftMetricsReceiver, SerdeInstant, StateMachine, Types,
};
use crate::state::{StateConfig, StateStore};

pub use crate::raft::door::RaftDoor;

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

impl GroupConfig {
    /// How long a leader may count on a majority's last sign: no member deposes it sooner.
    fn read_lease(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms * ELECTION_MIN_HEARTBEATS)
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
    log: EditLog,
    raft: Raft,
    door: RaftDoor,
    metrics: RaftMetricsReceiver,
    /// The lead is being given away: what the members promised does not hold any more.
    handing_over: AtomicBool,
    leadership: watch::Sender<Leadership>,
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
/// Between two looks at whether the other members of a new group are up.
const FORM_PAUSE: Duration = Duration::from_millis(150);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a leader that shuts down waits for another to take over.
const TRANSFER_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long the only member may take to lead.
const ALONE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of the latest entries kept in memory.
const LOG_CACHE_BYTES: usize = 64 << 20;

impl MetaGroup {
    /// Opens or makes the data directory and joins the group. A fresh group is made without anyone asking, once
    /// all configured members are up. The only member of a group leads when this returns.
    pub async fn start(config: GroupConfig) -> Result<Arc<MetaGroup>, StartError> {
        let mut members = config.peers.clone();
        members.insert(config.id, config.address.clone());
        Self::check(&config)?;
        let storage = |error: &dyn std::fmt::Display| StartError::Storage(error.to_string());
        identity::check(&config.data, config.id)?;
        let opened = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || open(&config)).await.map_err(|error| storage(&error))??
        };
        let Opened { state, log } = opened;
        let fresh = log.last().is_none() && log.vote().is_none() && state.applied() == EditIndex(0);
        let machine = StateMachine::new(state.clone(), config.data.join("snapshot"))
            .map_err(|error| storage(&error))?;
        let peers: BTreeMap<u64, String> =
            members.iter().map(|(id, address)| (id.0, address.clone())).collect();
        let network = Network { peers: Arc::new(peers), state: state.clone() };
        let options = raft_config(&config).map_err(StartError::Config)?;
        let store = LogStore::new(log.clone());
        let raft = Raft::new(config.id.0, Arc::new(options), network.clone(), store, machine)
            .await
            .map_err(|error| storage(&error))?;
        same_members(&raft, &members, &config.data).await?;
        let fresh_member = fresh && members.len() > 1;
        let lease = config.read_lease();
        let door =
            RaftDoor::new(raft.clone(), state.clone(), config.data.join("snapshot"), fresh_member, lease);
        let metrics = raft.metrics();
        let (leadership, _) = watch::channel(Leadership { role: Role::Follower, term: 0, leader: None });
        let group = Arc::new(MetaGroup {
            config,
            state,
            log,
            raft,
            door,
            metrics,
            handing_over: AtomicBool::new(false),
            leadership,
            sweep: Notify::new(),
            stop: watch::Sender::new(false),
            tasks: Mutex::new(Vec::new()),
        });
        group.spawn(group.clone().watch_leadership());
        group.spawn(group.clone().sweep());
        if members.len() == 1 {
            group.lead_alone(fresh).await?;
        } else if fresh {
            group.spawn(group.clone().form(members, network));
        }
        Ok(group)
    }

    fn check(config: &GroupConfig) -> Result<(), StartError> {
        let problem = if config.id.0 == 0 {
            "the id of a MetaServer is at least 1".to_owned()
        } else if !config.peers.is_empty() && !config.peers.contains_key(&config.id) {
            format!("the peers do not name this MetaServer, {}", config.id.0)
        } else if config.segment_bytes < 4096 || config.heartbeat_ms == 0 || config.snapshot_entries == 0 {
            "segment_bytes must be at least 4096, heartbeat_ms and snapshot_entries at least 1".to_owned()
        } else {
            return Ok(());
        };
        Err(StartError::Config(problem))
    }

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

    async fn lead_alone(&self, fresh: bool) -> Result<(), StartError> {
        let failed = |error: &dyn std::fmt::Display| StartError::Storage(error.to_string());
        if fresh {
            let members = BTreeMap::from([(self.config.id.0, BasicNode::new(&self.config.address))]);
            self.raft.initialize(members).await.map_err(|error| failed(&error))?;
        } else {
            self.raft.trigger().elect(false).await.map_err(|error| failed(&error))?;
        }
        let mut leadership = self.leadership.subscribe();
        let leads = leadership.wait_for(|leadership| leadership.role == Role::Leader);
        match tokio::time::timeout(ALONE_TIMEOUT, leads).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(StartError::Storage(format!(
                "the only MetaServer did not become leader within {} s: see the log",
                ALONE_TIMEOUT.as_secs()
            ))),
        }
    }

    /// Makes a new group once all members are up and none has ever been part of one. The one with the lowest id does it.
    async fn form(self: Arc<Self>, members: BTreeMap<MetaServerId, String>, network: Network) {
        if members.keys().next() != Some(&self.config.id) {
            return;
        }
        let others: Vec<_> = members.keys().filter(|id| **id != self.config.id).collect();
        let peers: Vec<_> = others.iter().map(|id| network.peer(id.0, None)).collect();
        loop {
            if self.raft.is_initialized().await.unwrap_or(true) {
                return;
            }
            let mut all_fresh = true;
            for peer in &peers {
                match peer.is_fresh(PROBE_TIMEOUT).await {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::info!("the others form a cluster already; waiting for its leader");
                        return;
                    }
                    Err(_) => all_fresh = false,
                }
            }
            if all_fresh {
                let nodes: BTreeMap<u64, BasicNode> =
                    members.iter().map(|(id, address)| (id.0, BasicNode::new(address))).collect();
                if let Err(error) = self.raft.initialize(nodes).await {
                    tracing::warn!(%error, "the group was made by another");
                }
                return;
            }
            tokio::time::sleep(FORM_PAUSE).await;
        }
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
        if id == self.config.id.0 {
            return Some(self.config.address.clone());
        }
        let configured = self.config.peers.get(&MetaServerId(id)).cloned();
        configured.or_else(|| {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().get_node(&id).map(|node| node.addr.clone())
        })
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

    /// Who leads, now and from now on.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    async fn watch_leadership(self: Arc<Self>) {
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
    async fn sweep(self: Arc<Self>) {
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

    /// The door for the other MetaServers, to be served on this server's port.
    pub fn raft_service(&self) -> RaftServer<RaftDoor> {
        RaftServer::new(self.door.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// How the group is.
    pub fn metrics(&self) -> GroupMetrics {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: Option<&LogId>| EditIndex(id.map_or(0, |id| id.index));
        let silence = Duration::from_millis(self.config.heartbeat_ms * ELECTION_MAX_HEARTBEATS);
        let heard = |id: u64| {
            let heard = metrics.heartbeat.as_ref().and_then(|heartbeat| heartbeat.get(&id));
            heard.is_some_and(|heard| heard.as_ref().is_some_and(|at| at.elapsed() < silence))
        };
        let nodes = metrics.membership_config.membership().nodes();
        let members = nodes.map(|(&id, node)| {
            let own = id == self.config.id.0;
            let configured = self.config.peers.get(&MetaServerId(id));
            let address = if own { &self.config.address } else { configured.unwrap_or(&node.addr) };
            (MetaServerId(id), address.clone(), own || heard(id))
        });
        GroupMetrics {
            committed: index(metrics.local_committed.as_ref()),
            applied: self.state.applied(),
            snapshot: index(metrics.snapshot.as_ref()),
            members: members.collect(),
        }
    }

    /// Stops, with everything applied made durable. A leader hands over first, so that the others need not notice its absence.
    pub async fn shutdown(&self) {
        self.hand_over().await;
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

/// Entries that a member may be behind to be handed the lead.
const MOST_BEHIND: u64 = 1000;
/// Elections wait this many heartbeats at least, and less than that at most.
const ELECTION_MIN_HEARTBEATS: u64 = 4;
const ELECTION_MAX_HEARTBEATS: u64 = 8;
/// Entries kept behind a Snapshot, for members that are a little late.
const KEPT_ENTRIES: u64 = 10_000;
/// How long a Snapshot may take to reach a member.
const SNAPSHOT_TIMEOUT_MS: u64 = 600_000;

fn raft_config(config: &GroupConfig) -> Result<openraft::Config, String> {
    let raft = openraft::Config {
        cluster_name: "gofs".into(),
        heartbeat_interval: config.heartbeat_ms,
        election_timeout_min: config.heartbeat_ms * ELECTION_MIN_HEARTBEATS,
        election_timeout_max: config.heartbeat_ms * ELECTION_MAX_HEARTBEATS,
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        max_payload_entries: 1024,
        replication_lag_threshold: config.snapshot_entries.max(KEPT_ENTRIES),
        snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(config.snapshot_entries),
        max_in_snapshot_log_to_keep: KEPT_ENTRIES.min(config.snapshot_entries / 2),
        purge_batch_size: 64,
        enable_pre_vote: Some(true),
        // A member may lose its disk and come back empty; it does not vote then before it has caught up.
        allow_log_reversion: Some(true),
        // A restarted leader is elected like any other, in a new term, before it serves.
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    };
    raft.validate().map_err(|error| error.to_string())
}

struct Opened {
    state: StateStore,
    log: EditLog,
}

fn open(config: &GroupConfig) -> Result<Opened, StartError> {
    let log = EditLog::open(&EditLogConfig {
        dir: config.data.join("log"),
        segment_bytes: config.segment_bytes,
        cache_bytes: LOG_CACHE_BYTES,
        salt: rand::random(),
    });
    let log = log.map_err(|error| StartError::Storage(error.to_string()))?;
    let state = StateStore::open(&config.data.join("state"), config.state)
        .map_err(|error| StartError::Storage(error.to_string()))?;
    let (applied, purged) = (state.applied(), log.purged().map_or(0, |purged| purged.index));
    if applied.0 < purged {
        return Err(StartError::Storage(format!(
            "{}: the state ends at entry {} and the EditLog starts after entry {purged}: entries between them are lost. \
             Delete the data directory if other MetaServers run, else restore it from a backup",
            config.data.display(),
            applied.0
        )));
    }
    Ok(Opened { state, log })
}

/// The data must be of the group that is configured.
async fn same_members(
    raft: &Raft,
    members: &BTreeMap<MetaServerId, String>,
    data: &std::path::Path,
) -> Result<(), StartError> {
    // Metrics are not filled in yet; the core is asked.
    let known = raft.with_raft_state(|state| {
        let membership = state.membership_state.effective();
        membership.membership().nodes().map(|(id, _)| *id).collect::<Vec<u64>>()
    });
    let known = known.await.map_err(|error| StartError::Storage(error.to_string()))?;
    let wanted: Vec<u64> = members.keys().map(|id| id.0).collect();
    if known.is_empty() || known == wanted {
        return Ok(());
    }
    Err(StartError::Identity(format!(
        "{} holds the data of a cluster of the MetaServers {known:?}, but the configuration names {wanted:?}: \
         give --peers as the cluster was made, or another data directory",
        data.display()
    )))
}

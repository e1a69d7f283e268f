//! How a group begins: the data directory opened and checked, a new group made once all its members are up.
//!
//! A group is made once, by the member with the lowest id, when no member has ever been part of one. From then on its log
//! says who the members are. Data that is of another group than the one configured is refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use gofs_tree::{EditIndex, MetaServerId};
use gofs_wakeful::Wakeful;
use openraft::BasicNode;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{GroupConfig, Leadership, MetaGroup, RaftDoor, Role};
use crate::editlog::{EditLog, EditLogConfig};
use crate::identity;
use crate::raft::book::AddressBook;
use crate::raft::door::DoorConfig;
use crate::raft::network::{Network, Sending};
use crate::raft::{LogStore, Raft, StateMachine, newest_snapshot};
use crate::state::{SnapshotFile, StateError, StateStore};

/// Between two looks at whether the other members of a new group are up.
const FORM_PAUSE: Duration = Duration::from_millis(150);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the only member may take to lead.
const ALONE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of the latest entries kept in memory.
const LOG_CACHE_BYTES: usize = 64 << 20;

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

impl MetaGroup {
    /// Opens or makes the data directory and joins the group. A fresh group is made without anyone asking, once
    /// all configured members are up. The only member of a group leads when this returns.
    pub async fn start(config: GroupConfig) -> Result<Arc<MetaGroup>, StartError> {
        config.check()?;
        let storage = |error: &dyn std::fmt::Display| StartError::Storage(error.to_string());
        let incomplete = identity::check(&config.data, config.id)?;
        let opened = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || open(&config)).await.map_err(|error| storage(&error))??
        };
        let Opened { state, log } = opened;
        let fresh = log.last().is_none() && log.vote().is_none() && state.applied() == EditIndex(0);
        let snapshots = config.data.join("snapshot");
        let machine = StateMachine::new(state.clone(), snapshots.clone()).map_err(|error| storage(&error))?;
        let book = AddressBook::new(config.id, config.announced(), config.peers.clone());
        let network = Network { book: Arc::new(book), state: state.clone(), sending: Sending::default() };
        let options = config.raft()?;
        let wakeful = Arc::new(Wakeful::start(config.cpu_latency));
        let store = LogStore::new(log.clone(), wakeful.clone());
        let raft = Raft::new(config.id.0, Arc::new(options), network.clone(), store, machine)
            .await
            .map_err(|error| storage(&error))?;
        let members = members(&raft, &config, &state).await?;
        let alone = config.join.is_empty() && members.keys().eq([&config.id]);
        let door_config = DoorConfig {
            data: config.data.clone(),
            snapshots,
            incomplete: incomplete || fresh && !alone,
            lease: config.read_lease(),
        };
        let door = RaftDoor::new(raft.clone(), state.clone(), network.book.clone(), door_config);
        let metrics = raft.metrics();
        let (leadership, _) = watch::channel(Leadership { role: Role::Follower, term: 0, leader: None });
        let group = Arc::new(MetaGroup {
            config,
            state,
            log,
            wakeful,
            raft,
            door,
            metrics,
            network,
            handed_over: AtomicU64::new(0),
            leadership,
            addresses: watch::Sender::new(Vec::new()),
            failed: watch::Sender::new(None),
            changing: tokio::sync::Mutex::new(()),
            sweep: Notify::new(),
            stop: watch::Sender::new(false),
            tasks: Mutex::new(Vec::new()),
        });
        group.spawn(group.clone().watch_leadership());
        group.spawn(group.clone().sweep());
        group.spawn(group.clone().keep_members());
        if alone {
            group.lead_alone(fresh).await?;
        } else if fresh && group.config.join.is_empty() {
            group.spawn(group.clone().form(members));
        } else if fresh {
            group.spawn(group.clone().wait_to_be_added());
        }
        Ok(group)
    }

    async fn lead_alone(&self, fresh: bool) -> Result<(), StartError> {
        let failed = |error: &dyn std::fmt::Display| StartError::Storage(error.to_string());
        if fresh {
            let members = BTreeMap::from([(self.config.id.0, BasicNode::new(&self.config.address))]);
            self.door.is_whole();
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
    async fn form(self: Arc<Self>, members: BTreeMap<MetaServerId, String>) {
        if members.keys().next() != Some(&self.config.id) {
            return;
        }
        let others: Vec<_> = members.keys().filter(|id| **id != self.config.id).collect();
        let peers: Vec<_> = others.iter().map(|id| self.network.peer(id.0, None)).collect();
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
                // Nothing was ever acknowledged. Before there is a log: one that was found marked beside it would never be
                // elected, and the others, which have none yet, neither.
                self.door.is_whole();
                if let Err(error) = self.raft.initialize(nodes).await {
                    tracing::warn!(%error, "the group was made by another");
                }
                return;
            }
            tokio::time::sleep(FORM_PAUSE).await;
        }
    }
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
    let purged = log.purged().map_or(0, |purged| purged.index);
    let state = match StateStore::open(&config.data.join("state"), config.state) {
        Err(error @ StateError::Torn { .. }) => make_anew(config, purged, &error),
        opened => opened.map_err(|error| StartError::Storage(error.to_string())),
    }?;
    let applied = state.applied();
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

/// The state again, of the newest Snapshot; the EditLog, which begins after entry `purged`, has what followed.
fn make_anew(config: &GroupConfig, purged: u64, torn: &StateError) -> Result<StateStore, StartError> {
    let failed = |error: &dyn std::fmt::Display| {
        StartError::Storage(format!("{torn}; and it cannot be made anew: {error}"))
    };
    let snapshot = newest_snapshot(&config.data.join("snapshot")).map_err(|error| failed(&error))?;
    let head = snapshot.as_ref().map(SnapshotFile::head).transpose().map_err(|error| failed(&error))?;
    let entry = head.and_then(|head| head.position).map_or(0, |at| at.index);
    if entry < purged {
        return Err(failed(&format!(
            "the newest Snapshot ends at entry {entry} and the EditLog starts after entry {purged}. Delete the data \
             directory if other MetaServers run, else restore it from a backup"
        )));
    }
    tracing::warn!(error = %torn, entry, "the state is made anew of the newest Snapshot and the EditLog");
    let state = StateStore::make_anew(&config.data.join("state"), config.state, snapshot.as_ref());
    state.map_err(|error| failed(&error))
}

/// Who the members are: as the log has them, or, where there is none yet, as the configuration does. The configuration
/// may be older than the log, or ahead of it; one that has nothing to do with the log is refused.
async fn members(
    raft: &Raft,
    config: &GroupConfig,
    state: &StateStore,
) -> Result<BTreeMap<MetaServerId, String>, StartError> {
    // Metrics are not filled in yet; the core is asked.
    let logged = raft.with_raft_state(|state| {
        let membership = state.membership_state.effective();
        let nodes = membership.membership().nodes();
        nodes.map(|(id, node)| (MetaServerId(*id), node.addr.clone())).collect::<BTreeMap<_, _>>()
    });
    let logged = logged.await.map_err(|error| StartError::Storage(error.to_string()))?;
    let mut configured = config.peers.clone();
    configured.insert(config.id, config.address.clone());
    if logged.is_empty() {
        return Ok(configured);
    }
    let (mut known, mut strangers) = (0, Vec::new());
    for id in configured.keys().filter(|id| **id != config.id && !logged.contains_key(id)) {
        let retired = state.is_retired(*id).map_err(|error| StartError::Storage(error.to_string()))?;
        if retired {
            known += 1;
            tracing::warn!(id = id.0, "the configuration names a MetaServer that was removed: take it out");
        } else {
            strangers.push(id.0);
        }
    }
    known += configured.keys().filter(|id| **id != config.id && logged.contains_key(id)).count();
    if !strangers.is_empty() && known == 0 {
        let members: Vec<u64> = logged.keys().map(|id| id.0).collect();
        let wanted: Vec<u64> = configured.keys().map(|id| id.0).collect();
        return Err(StartError::Identity(format!(
            "{} holds the data of a cluster of the MetaServers {members:?}, but the configuration names {wanted:?}: \
             give --peers as the cluster is, or another data directory. To make this cluster larger, start it as it is and use: \
             gofsctl meta add",
            config.data.display()
        )));
    }
    if !strangers.is_empty() {
        tracing::warn!(ids = ?strangers, "the configuration names MetaServers that are no members: gofsctl meta add adds them");
    }
    Ok(logged)
}

//! How a group begins: the data directory opened and checked, a new group made once all its members are up.
//!
//! A group is made once, by the member with the lowest id, when no member has ever been part of one. Data that is of
//! another group than the one configured is refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use gofs_tree::{EditIndex, MetaServerId};
use gofs_wakeful::Wakeful;
use openraft::BasicNode;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{GroupConfig, Leadership, MetaGroup, RaftDoor, Role};
use crate::editlog::{EditLog, EditLogConfig};
use crate::identity;
use crate::raft::network::Network;
use crate::raft::{LogStore, Raft, StateMachine};
use crate::state::StateStore;

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
        let mut members = config.peers.clone();
        members.insert(config.id, config.address.clone());
        config.check()?;
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
        let options = config.raft()?;
        let wakeful = Arc::new(Wakeful::start(config.cpu_latency));
        let store = LogStore::new(log.clone(), wakeful.clone());
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
            wakeful,
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
    data: &Path,
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

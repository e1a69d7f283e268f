//! What a group is told at its start, and the times and bounds that follow from it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use gofs_tree::MetaServerId;
use gofs_wakeful::CpuLatency;

use super::StartError;
use crate::state::StateConfig;

/// An election is due when nothing was heard for the second of these, the promise that every member gives its leader, and
/// then for a time between both: 1 to 1.2 s by default.
const ELECTION_MIN_HEARTBEATS: u64 = 4;
const ELECTION_MAX_HEARTBEATS: u64 = 6;
/// Entries kept behind a Snapshot, for members that are a little late.
const KEPT_ENTRIES: u64 = 10_000;
/// How long a Snapshot may take to reach a member.
const SNAPSHOT_TIMEOUT_MS: u64 = 600_000;

/// What a group needs to start.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// This MetaServer.
    pub id: MetaServerId,
    /// Its data directory; the group keeps `log/`, `state/` and `snapshot/` in it.
    pub data: PathBuf,
    /// host:port at which the others reach this MetaServer.
    pub address: String,
    /// All members with their addresses, this one may be among them. Empty: the only one. Once there is a log it says who
    /// is a member; addresses given here are tried beside those in it.
    pub peers: BTreeMap<MetaServerId, String>,
    /// Where members of a cluster are that this MetaServer is to be added to: with no log yet, it waits for that.
    pub join: Vec<String>,
    /// Memory of the state store.
    pub state: StateConfig,
    /// Bytes of one EditLog segment file.
    pub segment_bytes: u64,
    /// A Snapshot is made, and the log before it trimmed, after so many entries.
    pub snapshot_entries: u64,
    /// Pace of heartbeats between MetaServers; a leader is taken for dead after ten to twelve of them.
    pub heartbeat_ms: u64,
    /// Whether processors are kept awake while requests flow.
    pub cpu_latency: CpuLatency,
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
            join: Vec::new(),
            state: StateConfig::default(),
            segment_bytes: 64 << 20,
            snapshot_entries: 100_000,
            heartbeat_ms: 100,
            cpu_latency: CpuLatency::default(),
        }
    }

    /// How long a leader may count on a majority's last sign: no member deposes it sooner.
    pub(super) fn read_lease(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms * ELECTION_MIN_HEARTBEATS)
    }

    /// What others are told of where this server is. An address that means every interface says nothing.
    pub(super) fn announced(&self) -> String {
        let unspecified =
            self.address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_unspecified());
        if unspecified { String::new() } else { self.address.clone() }
    }

    /// Silence after which a member is taken for away: an election was due.
    pub(super) fn silence(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms * 2 * ELECTION_MAX_HEARTBEATS)
    }

    /// Whether a group can be like this.
    pub(super) fn check(&self) -> Result<(), StartError> {
        let problem = if self.id.0 == 0 {
            "the id of a MetaServer is at least 1".to_owned()
        } else if !self.peers.is_empty() && !self.peers.contains_key(&self.id) {
            format!("the peers do not name this MetaServer, {}", self.id.0)
        } else if !self.peers.is_empty() && !self.join.is_empty() {
            "peers make a new cluster and join waits for one that is there: give one of the two".to_owned()
        } else if self.segment_bytes < 4096 || self.heartbeat_ms == 0 || self.snapshot_entries == 0 {
            "segment_bytes must be at least 4096, heartbeat_ms and snapshot_entries at least 1".to_owned()
        } else {
            return Ok(());
        };
        Err(StartError::Config(problem))
    }

    /// The same for raft. An error says what cannot be.
    pub(super) fn raft(&self) -> Result<openraft::Config, StartError> {
        let raft = openraft::Config {
            cluster_name: "gofs".into(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.heartbeat_ms * ELECTION_MIN_HEARTBEATS,
            election_timeout_max: self.heartbeat_ms * ELECTION_MAX_HEARTBEATS,
            install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
            max_payload_entries: 1024,
            replication_lag_threshold: self.snapshot_entries.max(KEPT_ENTRIES),
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: KEPT_ENTRIES.min(self.snapshot_entries / 2),
            purge_batch_size: 64,
            enable_pre_vote: Some(true),
            // A member may lose its disk and come back empty; it does not vote then before it has caught up.
            allow_log_reversion: Some(true),
            // A restarted leader is elected like any other, in a new term, before it serves.
            enable_leader_restore: Some(false),
            // The door turns it on, once it knows that this server has all that it ever acknowledged.
            enable_elect: false,
            ..openraft::Config::default()
        };
        raft.validate().map_err(|error| StartError::Config(error.to_string()))
    }
}

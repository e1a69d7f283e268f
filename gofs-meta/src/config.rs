//! Configuration of a MetaServer: a TOML file, flags over it, checked once.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use gofs_tree::MetaServerId;
use gofs_wakeful::CpuLatency;
use serde::Deserialize;

use crate::chunks::ChunkConfig;
use crate::session::SessionTimes;
use crate::state::StateConfig;

/// Where a MetaServer listens when nobody says.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7460";
/// Shortest validity of a session: a client renews four times within it.
const VALIDITY_MIN: Duration = Duration::from_millis(200);
/// Slowest repair, bytes a second.
const REPAIR_BYTES_S_MIN: u64 = 8 << 20;

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// This MetaServer, from 1.
    pub id: MetaServerId,
    /// Where it listens. Port 0: any free one.
    pub listen: SocketAddr,
    /// host:port that others are told to reach it at; `None`: its own line in `peers`, else where it listens.
    pub advertise: Option<String>,
    /// Data directory.
    pub data: PathBuf,
    /// All MetaServers of the cluster with their addresses. Empty: it is the only one.
    pub peers: BTreeMap<MetaServerId, String>,
    /// Members of the cluster that it is to be added to, while it has no data. Empty: none.
    pub join: Vec<String>,
    /// Validity and margin of sessions.
    pub sessions: SessionTimes,
    /// How ChunkServers are watched and chunks kept.
    pub chunks: ChunkConfig,
    /// Memory of the state store.
    pub state: StateConfig,
    /// Bytes of one segment of the EditLog.
    pub segment_bytes: u64,
    /// Entries between two Snapshots.
    pub snapshot_entries: u64,
    /// Pace of heartbeats between MetaServers, milliseconds.
    pub heartbeat_ms: u64,
    /// Whether processors are kept awake while requests flow.
    pub cpu_latency: CpuLatency,
}

impl Config {
    /// The defaults: a single MetaServer with this data directory.
    pub fn new(id: MetaServerId, listen: SocketAddr, data: PathBuf) -> Config {
        Config {
            id,
            listen,
            advertise: None,
            data,
            peers: BTreeMap::new(),
            join: Vec::new(),
            sessions: SessionTimes::default(),
            chunks: ChunkConfig::default(),
            state: StateConfig::default(),
            segment_bytes: 64 << 20,
            snapshot_entries: 100_000,
            heartbeat_ms: 100,
            cpu_latency: CpuLatency::default(),
        }
    }
}

/// The file as it is written. Every key may be left out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// Number of this MetaServer in the cluster.
    pub id: Option<u64>,
    /// host:port to listen on.
    pub listen: Option<String>,
    /// host:port that others reach it at.
    pub advertise: Option<String>,
    /// Data directory.
    pub data: Option<PathBuf>,
    /// `{ "1" = "host:port", ... }`, this server included.
    #[serde(default)]
    pub peers: BTreeMap<String, String>,
    /// host:port of members of the cluster that this server is to be added to.
    #[serde(default)]
    pub join: Vec<String>,
    /// Time from its last KeepAlive for which a mount may answer from its caches, milliseconds.
    pub session_validity_ms: Option<u64>,
    /// Time beyond it before the session is fenced, milliseconds.
    pub session_margin_ms: Option<u64>,
    /// Time a ChunkServer must be dead before its chunks are copied elsewhere, seconds.
    pub repair_after_s: Option<u64>,
    /// Bytes a second that repair, drain and rebalancing take from one ChunkServer.
    pub repair_bytes_s: Option<u64>,
    /// Silence after which a ChunkServer is taken for dead, seconds.
    pub dead_after_s: Option<u64>,
    /// Memory for decoded records, bytes.
    pub record_cache_bytes: Option<usize>,
    /// Memory for blocks of the state store, bytes.
    pub block_cache_bytes: Option<u64>,
    /// Size of the EditLog's segment files, bytes.
    pub segment_bytes: Option<u64>,
    /// Entries of the EditLog between two Snapshots.
    pub snapshot_entries: Option<u64>,
    /// Pace of heartbeats between MetaServers, milliseconds.
    pub heartbeat_ms: Option<u64>,
    /// `auto`, `hold` or `off`: whether processors are kept awake while requests flow.
    pub cpu_latency: Option<CpuLatency>,
}

impl FileConfig {
    /// Reads the file. An unknown key or a value of the wrong kind is refused with its line.
    pub fn read(path: &Path) -> anyhow::Result<FileConfig> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the configuration file {} cannot be read", path.display()))?;
        toml::from_str(&text).with_context(|| format!("the configuration file {} is refused", path.display()))
    }

    /// Checks everything and fills in the defaults.
    pub fn check(self) -> anyhow::Result<Config> {
        let Some(data) = self.data else {
            bail!("a data directory is needed: --data DIR, or data = \"DIR\" in the configuration file")
        };
        let id = MetaServerId(self.id.unwrap_or(1));
        ensure!(id.0 > 0, "a MetaServer's id is 1 or more, not 0");
        let listen = self.listen.as_deref().unwrap_or(DEFAULT_LISTEN);
        let mut config = Config::new(id, resolve(listen)?, data);
        config.peers = members(&self.peers)?;
        ensure!(
            config.peers.is_empty() || config.peers.contains_key(&id),
            "peers names {} MetaServers, but not this one, which is {}: give all of them to each",
            config.peers.len(),
            id.0
        );
        for address in &self.join {
            ensure!(is_host_port(address), "join: {address:?} is not host:port");
        }
        ensure!(
            self.join.is_empty() || self.peers.is_empty(),
            "peers makes a new cluster and join waits to be added to one that is there: give one of the two"
        );
        config.join = self.join;
        if let Some(advertise) = &self.advertise {
            ensure!(is_host_port(advertise), "advertise: {advertise:?} is not host:port");
        }
        config.advertise = self.advertise;
        let millis = |given: Option<u64>, default: Duration| given.map_or(default, Duration::from_millis);
        let seconds = |given: Option<u64>, default: Duration| given.map_or(default, Duration::from_secs);
        config.sessions.validity = millis(self.session_validity_ms, config.sessions.validity);
        config.sessions.margin = millis(self.session_margin_ms, config.sessions.margin);
        ensure!(
            config.sessions.validity >= VALIDITY_MIN && config.sessions.validity <= Duration::from_secs(3600),
            "session_validity_ms must be {} to 3600000",
            VALIDITY_MIN.as_millis()
        );
        ensure!(
            config.sessions.margin <= Duration::from_secs(3600),
            "session_margin_ms must be at most 3600000"
        );
        config.chunks.repair_after = seconds(self.repair_after_s, config.chunks.repair_after);
        config.chunks.dead_after = seconds(self.dead_after_s, config.chunks.dead_after);
        config.chunks.repair_bytes_s = self.repair_bytes_s.unwrap_or(config.chunks.repair_bytes_s);
        ensure!(
            config.chunks.repair_bytes_s >= REPAIR_BYTES_S_MIN,
            "repair_bytes_s must be {REPAIR_BYTES_S_MIN} (8 MiB/s) or more: writers of a chunk wait while it is copied"
        );
        config.state.record_cache_bytes = self.record_cache_bytes.unwrap_or(config.state.record_cache_bytes);
        config.state.block_cache_bytes = self.block_cache_bytes.unwrap_or(config.state.block_cache_bytes);
        config.segment_bytes = self.segment_bytes.unwrap_or(config.segment_bytes);
        ensure!(
            (1 << 20..=1 << 40).contains(&config.segment_bytes),
            "segment_bytes must be {} (1 MiB) to {} (1 TiB)",
            1 << 20,
            1_u64 << 40
        );
        config.snapshot_entries = self.snapshot_entries.unwrap_or(config.snapshot_entries);
        ensure!(config.snapshot_entries >= 100, "snapshot_entries must be 100 or more");
        config.heartbeat_ms = self.heartbeat_ms.unwrap_or(config.heartbeat_ms);
        ensure!((10..=60_000).contains(&config.heartbeat_ms), "heartbeat_ms must be 10 to 60000");
        config.cpu_latency = self.cpu_latency.unwrap_or(config.cpu_latency);
        Ok(config)
    }
}

/// The address to listen on.
fn resolve(listen: &str) -> anyhow::Result<SocketAddr> {
    let mut found = listen
        .to_socket_addrs()
        .with_context(|| format!("listen: {listen:?} is not an address of this machine as host:port"))?;
    found.next().with_context(|| format!("listen: {listen:?} has no address"))
}

fn is_host_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// `1=HOST:PORT,2=HOST:PORT`, as `--peers` has it.
pub fn parse_peers(text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let mut peers = BTreeMap::new();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        let (id, address) =
            part.trim().split_once('=').with_context(|| format!("--peers: {part:?} is not ID=HOST:PORT"))?;
        let twice = peers.insert(id.to_owned(), address.to_owned()).is_some();
        ensure!(!twice, "--peers names MetaServer {id} twice");
    }
    Ok(peers)
}

/// The same, checked.
pub fn members(peers: &BTreeMap<String, String>) -> anyhow::Result<BTreeMap<MetaServerId, String>> {
    let mut members = BTreeMap::new();
    for (key, address) in peers {
        let peer: u64 = key.parse().with_context(|| format!("peers: {key:?} is not a MetaServer's id"))?;
        ensure!(peer > 0, "peers: a MetaServer's id is 1 or more, not 0");
        ensure!(is_host_port(address), "peers: {address:?} of MetaServer {key} is not host:port");
        members.insert(MetaServerId(peer), address.clone());
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> anyhow::Result<Config> {
        toml::from_str::<FileConfig>(text)?.check()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = format!("{:#}", checked("data = \"/d\"\nlisten_on = \"x\"\n").unwrap_err());
        assert!(error.contains("listen_on") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in [
            "",
            "data = \"/d\"\nid = 0",
            "data = \"/d\"\nlisten = \"nowhere\"",
            "data = \"/d\"\nsession_validity_ms = 1",
            "data = \"/d\"\ncpu_latency = \"never\"",
            "data = \"/d\"\nrepair_bytes_s = 1000",
            "data = \"/d\"\nid = 3\npeers = { 1 = \"a:1\", 2 = \"b:2\" }",
            "data = \"/d\"\njoin = [\"nowhere\"]",
            "data = \"/d\"\nid = 1\njoin = [\"b:1\"]\npeers = { 1 = \"a:1\" }",
            "data = \"/d\"\npeers = { one = \"a:1\" }",
            "data = \"/d\"\npeers = { 1 = \"a\" }",
        ] {
            assert!(checked(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_file_is_the_flags_in_long() {
        let config =
            checked("data = \"/d\"\nid = 2\npeers = { 1 = \"a:1\", 2 = \"b:2\" }\nheartbeat_ms = 50")
                .unwrap();
        assert_eq!((config.id, config.peers.len(), config.heartbeat_ms), (MetaServerId(2), 2, 50));
        let peers = parse_peers("1=a:1,2=b:2").unwrap();
        assert_eq!(peers["2"], "b:2");
        assert!(parse_peers("1=a:1,1=b:1").is_err() && parse_peers("a:1").is_err());
    }
}

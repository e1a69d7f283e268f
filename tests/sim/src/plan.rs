//! What a seed means: the cluster, its load and its troubles.

use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::world::{HostId, MICRO_NS, Sabotage, Weather};

/// What is broken on purpose, to show that it is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Break {
    /// Nothing.
    #[default]
    Nothing,
    /// Disks acknowledge syncs that they do not do.
    Syncs,
    /// Mounts measure the validity of their leases on clocks that are slow.
    Clocks,
    /// The net is never mended.
    Net,
    /// A client tells of another value than it wrote.
    Told,
    /// Inode numbers are told wrong.
    Inodes,
    /// A client that is refused a lock takes it for given.
    Locks,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub broken: Break,
    pub metas: usize,
    pub chunks: usize,
    pub clients: usize,
    /// How long faults are made for, milliseconds.
    pub troubled_ms: u64,
    /// Pause between two faults, milliseconds, at most.
    pub fault_every_ms: u64,
    pub weather: Weather,
    pub quota_bytes: u64,
    pub quota_inodes: u64,
    pub inline_max: u32,
    /// Chunks with more have a file of their own.
    pub small_chunk_bytes: u32,
    pub heartbeat_ms: u64,
    pub validity: Duration,
    pub margin: Duration,
    pub dirty_age: Duration,
    /// Longest pause of a client's task.
    pub idle: Duration,
    /// Whether names are moved from one directory to another.
    pub moves: bool,
    /// The ChunkServer whose disk flips bits; where there is one ChunkServers have no other troubles, so that the other replica of
    /// what is flipped is there.
    pub flips: Option<usize>,
    /// Entries between two Snapshots.
    pub snapshot_entries: u64,
    /// After so long without it a ChunkServer is written off.
    pub repair_after: Duration,
    /// Whether all ChunkServers lose their power at once now and then, and each of them at any time: what was not synced may be
    /// gone everywhere then, and the next sync has to say so.
    pub blackouts: bool,
    /// Whether clients also write long runs, and bring them to the ChunkServers before they are asked to.
    pub streams: bool,
}

/// No fault lasts longer, seconds.
pub const LONGEST_TROUBLE_S: u64 = 6;
/// The namespace.
pub const NAMESPACE: &str = "demo";

impl Plan {
    /// Of a seed; `blackouts`: with these wherever they may be.
    pub fn new(seed: u64, broken: Break, blackouts: bool) -> Plan {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x706c_616e);
        let rng = &mut rng;
        let lossy = rng.random_range(0..3) == 0;
        let has_quota = rng.random_range(0..4) == 0;
        let is_hasty = rng.random_range(0..4) == 0;
        let chunks = 3;
        let mut plan = Plan {
            seed,
            broken,
            metas: if rng.random_range(0..4) == 0 { 1 } else { 3 },
            chunks,
            clients: rng.random_range(2..4),
            troubled_ms: rng.random_range(4_000..10_000),
            fault_every_ms: rng.random_range(300..2_500),
            weather: Weather {
                latency_ns: rng.random_range(50..2_000) * MICRO_NS,
                lost_one_in: if lossy { rng.random_range(20..400) } else { 0 },
            },
            quota_bytes: if has_quota { rng.random_range(300_000..900_000) } else { 0 },
            quota_inodes: if has_quota && rng.random() { rng.random_range(60..400) } else { 0 },
            inline_max: if rng.random_range(0..3) == 0 { 1024 } else { 4096 },
            heartbeat_ms: rng.random_range(50..150),
            validity: Duration::from_millis(rng.random_range(1_000..3_000)),
            margin: Duration::from_millis(rng.random_range(200..600)),
            dirty_age: Duration::from_millis(rng.random_range(100..2_000)),
            idle: Duration::from_millis(rng.random_range(20..400)),
            moves: rng.random_range(0..4) == 0,
            small_chunk_bytes: if rng.random() { 16 << 10 } else { 4 << 10 },
            flips: (rng.random_range(0..6) == 0).then(|| rng.random_range(0..chunks)),
            snapshot_entries: if rng.random() { rng.random_range(20..200) } else { 100_000 },
            repair_after: Duration::from_secs(if is_hasty { 2 } else { LONGEST_TROUBLE_S + 2 }),
            blackouts: rng.random_range(0..5) == 0 || blackouts,
            streams: rng.random_range(0..3) == 0,
        };
        if plan.flips.is_some() {
            // The whole replicas of a server that is late are not given up for copies of those with the flipped bits.
            plan.repair_after = Duration::from_secs(LONGEST_TROUBLE_S + 2);
        }
        plan.blackouts &= plan.flips.is_none() && plan.may_cut_chunks();
        plan
    }

    /// Whether the power of ChunkServers may be cut: what a server lost then, others have until they are written off.
    pub fn may_cut_chunks(&self) -> bool {
        self.repair_after > Duration::from_secs(LONGEST_TROUBLE_S)
    }

    /// Whether it has no troubles but flipped bits.
    pub fn is_spared(&self, host: HostId) -> bool {
        let chunks = self.chunk_host(0).0..self.chunk_host(self.chunks).0;
        self.flips.is_some() && chunks.contains(&host.0)
    }

    /// What the world is told.
    pub fn sabotage(&self) -> Sabotage {
        Sabotage { syncs_lie: self.broken == Break::Syncs, clocks_drag: self.broken == Break::Clocks }
    }

    /// A MetaServer's host, from 0; the one behind those that the cluster begins with takes the place of one of them.
    pub fn meta_host(&self, at: usize) -> HostId {
        HostId(if at < self.metas { 1 + at } else { self.hosts() })
    }

    /// A ChunkServer's.
    pub fn chunk_host(&self, at: usize) -> HostId {
        HostId(1 + self.metas + at)
    }

    /// A client's; the one behind the last looks at the end.
    pub fn client_host(&self, at: usize) -> HostId {
        HostId(1 + self.metas + self.chunks + at)
    }

    /// All hosts.
    pub fn hosts(&self) -> usize {
        self.metas + self.chunks + self.clients + 2
    }

    /// Where a MetaServer is.
    pub fn meta_address(&self, at: usize) -> SocketAddr {
        SocketAddrV4::new(self.meta_host(at).ip(), 7460).into()
    }

    /// Where a ChunkServer is.
    pub fn chunk_address(&self, at: usize) -> SocketAddr {
        SocketAddrV4::new(self.chunk_host(at).ip(), 7470).into()
    }

    /// Where the MetaServers are that the cluster begins with.
    pub fn meta_addresses(&self) -> Vec<String> {
        (0..self.metas).map(|at| self.meta_address(at).to_string()).collect()
    }

    /// A host's directory, below the run's.
    pub fn directory(&self, host: HostId) -> PathBuf {
        format!("host-{}", host.0).into()
    }
}

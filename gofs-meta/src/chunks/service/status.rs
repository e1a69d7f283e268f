//! How servers and chunks are, for people and for `statfs`: looks, and changes nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use gofs_tree::{ChunkId, ChunkServerId, ChunkVersion, FsError};

use super::ChunkService;
use crate::{
    chunks::{Amount, Disk, Health, Reason, judge},
    state::ChunkRecord,
};

/// Chunks read from the state at once where all are walked.
const WALK_BATCH: usize = 4096;

/// Room on the live servers, bytes of their disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// In all.
    pub total_bytes: u64,
    /// Free for chunks: without what disks keep in reserve.
    pub free_bytes: u64,
}

/// How servers and chunks are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ChunkStatus {
    /// Servers that can be reached.
    pub servers_alive: u32,
    /// Registered servers that cannot.
    pub servers_dead: u32,
    /// Room.
    pub capacity: Capacity,
    /// Chunks of files.
    pub chunks: u64,
    /// Fewer current replicas than wanted, but at least one.
    pub under_replicated: u64,
    /// No current replica on any live server although bytes were written.
    pub lost: u64,
    /// Chunks whose deletion is not complete.
    pub to_delete: u64,
    /// Copies that run.
    pub repairs_running: u64,
    /// Replicas that their servers found corrupt and that are not replaced yet.
    pub corrupt_replicas: u64,
    /// Replicas that may lack acknowledged writes after their host went down, and that are not made anew yet.
    pub doubtful_replicas: u64,
    /// Servers that are being emptied, or are empty.
    pub servers_draining: u32,
    /// Disks that their servers do not use any more.
    pub disks_failed: u32,
    /// Chunks to copy because they have too few replicas.
    pub to_repair: ToDo,
    /// Chunks to copy for other reasons: failure domains, drains, evenness.
    pub to_move: ToDo,
    /// Whether servers have reported or had their time to; before that the numbers are too dark.
    pub settled: bool,
}

/// What there is to copy, and how long it may take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ToDo {
    /// Not yet done.
    pub amount: Amount,
    /// Done over the last minute, chunks a second.
    pub chunks_s: f64,
    /// Done over the last minute, bytes a second.
    pub bytes_s: f64,
    /// Seconds to the end at this speed; `None`: there is no telling, or nothing to do.
    pub end_s: Option<u64>,
}

impl ToDo {
    fn new(amount: Amount, (chunks_s, bytes_s): (f64, f64)) -> ToDo {
        // Small chunks are bounded by their number, large ones by their bytes: the longer of the two counts.
        let time = |left: u64, speed: f64| if left == 0 { 0.0 } else { left as f64 / speed };
        let end = time(amount.chunks, chunks_s).max(time(amount.bytes, bytes_s));
        let end_s = (amount.chunks > 0 && end.is_finite()).then_some(end.ceil() as u64);
        ToDo { amount, chunks_s, bytes_s, end_s }
    }
}

/// A server for people.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerStatus {
    /// Its id.
    pub id: ChunkServerId,
    /// Address of its data door.
    pub address: String,
    /// Whether it can be reached.
    pub alive: bool,
    /// Whether it is being emptied.
    pub draining: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Chunks on it.
    pub chunks: u64,
    /// Corrupt blocks found in its life.
    pub corrupt_blocks_total: u64,
    /// What it does about processor latency, in words.
    pub cpu_latency: String,
    /// When it was last heard of; `None`: not in this leader's term.
    pub heard_ago: Option<Duration>,
}

/// One replica for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The server.
    pub server: ChunkServerId,
    /// Address of its data door.
    pub address: String,
    /// Its version there.
    pub version: ChunkVersion,
    /// current, promised, suspect, doubtful, corrupt, stale, newer; with "server dead" where it is.
    pub state: String,
}

impl ChunkService {
    /// Room on the live servers.
    pub fn capacity(&self) -> Capacity {
        let leader = self.leader.lock();
        let mut capacity = Capacity::default();
        for server in leader.servers.alive() {
            let disks = server.disks.iter().filter(|disk| disk.error.is_empty());
            capacity.total_bytes += disks.map(|disk| disk.capacity_bytes).sum::<u64>();
            capacity.free_bytes += server.room_bytes(self.config.reserve_bytes);
        }
        capacity
    }

    /// How everything is. Walks all chunks of the state: call it off the runtime's own threads.
    pub fn status(&self) -> Result<ChunkStatus, FsError> {
        let mut status = ChunkStatus { capacity: self.capacity(), ..ChunkStatus::default() };
        {
            let leader = self.leader.lock();
            status.servers_alive = leader.servers.alive().count() as u32;
            status.servers_dead = leader.servers.iter().count() as u32 - status.servers_alive;
            status.repairs_running = leader.repairs.running() as u64;
            status.corrupt_replicas = leader.directory.corrupt_replicas();
            status.settled = leader.settled;
            status.doubtful_replicas = leader.directory.doubtful_replicas();
            status.servers_draining = leader.servers.iter().filter(|server| server.draining).count() as u32;
            let disks = leader.servers.alive().flat_map(|server| &server.disks);
            status.disks_failed = disks.filter(|disk| !disk.error.is_empty()).count() as u32;
            let speed = leader.speed.per_second(Instant::now());
            let few = |reason| matches!(reason, Reason::TooFew { .. });
            status.to_repair = ToDo::new(leader.repairs.to_do(few), speed);
            status.to_move = ToDo::new(leader.repairs.to_do(|reason| !few(reason)), speed);
        }
        self.each_chunk(|_, record, health| match health {
            Health::Deleting => status.to_delete += 1,
            _ => {
                status.chunks += 1;
                match health {
                    Health::Under => status.under_replicated += 1,
                    Health::Lost if !self.is_unwritten(record) => status.lost += 1,
                    _ => {}
                }
            }
        })?;
        Ok(status)
    }

    /// Calls `see` with every chunk of the state. Walks: call it off the runtime's own threads.
    pub fn each_chunk(&self, mut see: impl FnMut(ChunkId, &ChunkRecord, Health)) -> Result<(), FsError> {
        let mut after = None;
        loop {
            let batch = self.group.state().chunks_from(after, WALK_BATCH)?;
            for (chunk, record) in &batch {
                see(*chunk, record, self.health(*chunk, record));
            }
            match batch.last() {
                Some((last, _)) if batch.len() == WALK_BATCH => after = Some(*last),
                _ => return Ok(()),
            }
        }
    }

    /// How one chunk is now.
    pub fn health(&self, chunk: ChunkId, record: &ChunkRecord) -> Health {
        let leader = self.leader.lock();
        // The planner's notes are not touched: a copy of the entry is judged.
        let mut entry = leader.directory.entry(chunk).cloned();
        let (record, now) = (record.into(), Instant::now());
        judge(&self.config, &leader.servers, Some(&record), true, entry.as_mut(), now).health
    }

    /// All known servers.
    pub fn servers(&self) -> Vec<ServerStatus> {
        let now = Instant::now();
        let leader = self.leader.lock();
        let servers = leader.servers.iter().map(|server| ServerStatus {
            id: server.id,
            address: server.address.clone(),
            alive: server.is_alive(),
            draining: server.draining,
            labels: server.labels.clone(),
            disks: server.disks.clone(),
            chunks: server.chunks,
            corrupt_blocks_total: server.corrupt_blocks_total,
            cpu_latency: server.cpu_latency.clone(),
            heard_ago: server.heard.map(|heard| now.saturating_duration_since(heard)),
        });
        servers.collect()
    }

    /// How far the emptying of a server is: what is left of it, and how fast it goes.
    pub fn drain_progress(&self, server: ChunkServerId, held: Amount) -> ToDo {
        let leader = self.leader.lock();
        let speed = leader.drained.get(&server).map(|speed| speed.per_second(Instant::now()));
        ToDo::new(held, speed.unwrap_or_default())
    }

    /// The replicas of a chunk as they are known, good or not.
    pub fn why_chunk(&self, chunk: ChunkId) -> Vec<ReplicaStatus> {
        let committed = self.record(chunk).map(|record| record.version);
        let leader = self.leader.lock();
        let Some(entry) = leader.directory.entry(chunk) else { return Vec::new() };
        let replicas = entry.replicas.iter().map(|replica| {
            let state = match committed {
                _ if replica.corrupt => "corrupt",
                None => "unknown to the state",
                Some(version) if replica.version < version => "stale",
                Some(version) if replica.version > version => "newer than committed",
                Some(_) if replica.doubtful => "doubtful since its host went down",
                Some(_) if replica.suspect.is_some() => "suspect, being verified",
                Some(_) if !replica.confirmed => "promised, not yet written",
                Some(_) => "current",
            };
            let server = leader.servers.get(replica.server);
            let dead = if server.is_some_and(|server| server.is_alive()) { "" } else { " (server dead)" };
            ReplicaStatus {
                server: replica.server,
                address: server.map(|server| server.address.clone()).unwrap_or_default(),
                version: replica.version,
                state: format!("{state}{dead}"),
            }
        });
        replicas.collect()
    }

    /// Whether servers have reported in this term, or had their time to.
    pub fn is_settled(&self) -> bool {
        self.leader.lock().settled
    }
}

//! Times and bounds of the chunk side of a MetaServer.

use std::time::Duration;

/// How ChunkServers are watched and chunks kept. The defaults are what a cluster runs with.
#[derive(Clone, Debug)]
pub struct ChunkConfig {
    /// How often a ChunkServer reports.
    pub heartbeat: Duration,
    /// Silence after which a ChunkServer is taken for dead although its connection stands.
    pub dead_after: Duration,
    /// How long a server must be dead before what it held is copied elsewhere: a restart is cheaper than a repair.
    pub repair_after: Duration,
    /// After a start or a change of leader nothing is repaired or deleted before every known
    /// server has reported, or this long after `dead_after`.
    pub settle: Duration,
    /// How long a chunk that the state does not know is kept on the servers that report it.
    pub orphan_grace: Duration,
    /// How long a chunk must have had more replicas than its goal before the extra ones go.
    pub extra_grace: Duration,
    /// How long a promised replica of a new chunk may stay unseen before it counts as missing.
    pub promise: Duration,
    /// How long a replica newer than the committed version is left to whoever raises it.
    pub resolve_after: Duration,
    /// How long a dead server keeps a deleted chunk from being forgotten.
    pub forget_after: Duration,
    /// Free bytes a disk keeps: `capacity / 100`, within these bounds.
    pub reserve_bytes: (u64, u64),
    /// Bytes a second that copies take from one server, as source or target together. Copies of chunks that have one
    /// replica left may take four times as much while the server has nothing to do for clients. A chunk's writers wait for
    /// its copy, so not too slow.
    pub repair_bytes_s: u64,
    /// How long a new leader, or one that just met its first servers, waits for more of them to describe themselves
    /// before it places a chunk on fewer than it should be on.
    pub place_patience: Duration,
    /// Copies at once that one server takes part in, as source or target: many, because a small chunk takes round trips
    /// and no bandwidth. Large ones are bounded by their bytes.
    pub copies_per_server: usize,
    /// Copies at once in the cluster.
    pub copies_total: usize,
    /// Longest time for one copy; writers of the chunk wait as long.
    pub copy_timeout: Duration,
    /// Pause before a chunk whose copy failed is tried again.
    pub copy_retry: Duration,
    /// Longest wait for a server's answer to a quick instruction (version, fence).
    pub answer_timeout: Duration,
    /// How long a new leader lets servers come back before a writer goes on without those that are missing.
    pub write_patience: Duration,
    /// Deletions at once on one server.
    pub deletes_per_server: usize,
    /// Chunks looked at in one round of the planner, of each kind: changed, watched, walked.
    pub scan_batch: usize,
    /// How often the planner walks the next part of the state.
    pub walk_every: Duration,
}

impl Default for ChunkConfig {
    fn default() -> Self {
        ChunkConfig {
            heartbeat: Duration::from_secs(1),
            dead_after: Duration::from_secs(10),
            repair_after: Duration::from_secs(15),
            settle: Duration::from_secs(5),
            orphan_grace: Duration::from_secs(60),
            extra_grace: Duration::from_secs(30),
            promise: Duration::from_secs(30),
            resolve_after: Duration::from_secs(5),
            forget_after: Duration::from_secs(600),
            reserve_bytes: (64 << 20, 4 << 30),
            repair_bytes_s: 64 << 20,
            place_patience: Duration::from_secs(3),
            copies_per_server: 32,
            copies_total: 256,
            copy_timeout: Duration::from_secs(60),
            copy_retry: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(3),
            write_patience: Duration::from_secs(3),
            deletes_per_server: 512,
            scan_batch: 4096,
            walk_every: Duration::from_secs(2),
        }
    }
}

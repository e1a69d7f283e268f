//! Bounds of the data cache and who it writes as.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gofs_tree::{ChunkSize, NamespaceId, SessionId};

use crate::latencies::Latencies;
use crate::slices::Slices;

/// How the contents of files are cached and written back.
#[derive(Clone)]
pub struct DataConfig {
    /// Namespace of the mount; ChunkServers check it with the session.
    pub namespace: NamespaceId,
    /// The session to write as, asked for at each request because a fence changes it.
    pub session: Arc<dyn Fn() -> SessionId + Send + Sync>,
    /// Cluster id of the Welcome; ChunkServers of another cluster refuse it.
    pub cluster: Bytes,
    /// Bytes in a chunk.
    pub chunk_size: ChunkSize,
    /// Largest file kept in its inode, bytes.
    pub inline_max: u32,
    /// Most bytes that wait to be written, over all files; a writer waits when it is reached.
    pub dirty_bytes: u64,
    /// Age at which dirty bytes are flushed.
    pub dirty_age: Duration,
    /// Most clean bytes kept for reads, over all files.
    pub cache_bytes: u64,
    /// Largest readahead of one file, bytes; 0 turns it off.
    pub readahead_bytes: u64,
    /// The session's slice of the quota: files grow within it.
    pub slices: Arc<Slices>,
    /// How long a ChunkServer that does not answer is waited for: `None` = for ever (`hard`).
    pub soft_timeout: Option<Duration>,
    /// Where requests that ChunkServers answered are counted, by kind.
    pub round_trips: Arc<Latencies>,
}

impl DataConfig {
    /// The defaults: 256 MiB dirty for at most 5 s, 256 MiB of cache, 16 MiB of readahead, hard.
    pub fn new(
        namespace: NamespaceId,
        session: Arc<dyn Fn() -> SessionId + Send + Sync>,
        cluster: Bytes,
        chunk_size: ChunkSize,
        inline_max: u32,
    ) -> Self {
        DataConfig {
            namespace,
            session,
            cluster,
            chunk_size,
            inline_max,
            dirty_bytes: 256 << 20,
            dirty_age: Duration::from_secs(5),
            cache_bytes: 256 << 20,
            readahead_bytes: 16 << 20,
            slices: Arc::default(),
            soft_timeout: None,
            round_trips: Arc::new(Latencies::of_requests()),
        }
    }
}

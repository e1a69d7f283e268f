//! What the frame door needs of the chunk directory.

use std::pin::Pin;

use gofs_tree::{ChunkId, ChunkServerId, ChunkVersion, FsError, SessionId};

/// A future whose type has no name.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where a chunk's current bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The committed version.
    pub version: ChunkVersion,
    /// Servers with that version, and the addresses of their data doors.
    pub replicas: Vec<(ChunkServerId, String)>,
}

/// Places chunks and knows where they are. Implemented by the chunk service.
pub trait Chunks: Send + Sync + 'static {
    /// Where the chunk is; `None` where the state does not know it.
    fn locate(&self, chunk: ChunkId) -> Option<Location>;
    /// Servers for a new chunk, at least one.
    fn place(&self, goal: u32) -> Result<Vec<(ChunkServerId, String)>, FsError>;
    /// A new chunk was committed; these servers will have it.
    fn assigned(&self, chunk: ChunkId, version: ChunkVersion, servers: &[ChunkServerId]);
    /// These servers did not take a write: commits a version without them.
    fn replica_failed<'a>(
        &'a self,
        chunk: ChunkId,
        version: ChunkVersion,
        failed: &'a [ChunkServerId],
    ) -> BoxFuture<'a, Result<Location, FsError>>;
    /// A read found no chunk, or bad bytes.
    fn bad_replica(&self, chunk: ChunkId, server: ChunkServerId, corrupt: bool);
    /// Bytes of all living servers: total, free.
    fn capacity(&self) -> (u64, u64);
    /// Tells the ChunkServers to refuse the session's writes; waits for those that live, with a bound.
    fn fence(&self, session: SessionId) -> BoxFuture<'_, ()>;
}

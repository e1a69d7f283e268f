//! What the frame door needs of the chunk directory.

use std::pin::Pin;

use gofs_tree::{ChunkId, ChunkServerId, ChunkVersion, FsError, SessionId};

use crate::chunks::{Capacity, ChunkService, Location, Servers};

/// A future whose type has no name.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Places chunks and knows where they are. [`FsError::Busy`] means: ask again after a pause.
pub trait Chunks: Send + Sync + 'static {
    /// Replicas to read from.
    fn for_reading(&self, chunk: ChunkId) -> Location;
    /// Replicas to write to. `blank`: nothing in it was ever acknowledged to whoever asks and may write it.
    fn for_writing(&self, chunk: ChunkId, blank: bool) -> BoxFuture<'_, Location>;
    /// Servers for a new chunk, at least one.
    fn place(&self, goal: u32) -> Result<Servers, FsError>;
    /// A new chunk was committed; these servers will have it.
    fn assigned(&self, chunk: ChunkId, version: ChunkVersion, servers: &[ChunkServerId]);
    /// These servers did not take a write: commits a version without them. `blank`: as for [`Chunks::for_writing`].
    fn replica_failed<'a>(
        &'a self,
        chunk: ChunkId,
        version: ChunkVersion,
        failed: &'a [ChunkServerId],
        blank: bool,
    ) -> BoxFuture<'a, Result<(ChunkVersion, Servers), FsError>>;
    /// A read found no chunk, or bad bytes.
    fn bad_replica(&self, chunk: ChunkId, server: ChunkServerId, corrupt: bool);
    /// Room on the live servers.
    fn capacity(&self) -> Capacity;
    /// Tells the ChunkServers to refuse the session's writes; waits for those that live, with a bound.
    fn fence(&self, session: SessionId) -> BoxFuture<'_, ()>;
}

impl Chunks for ChunkService {
    fn for_reading(&self, chunk: ChunkId) -> Location {
        ChunkService::for_reading(self, chunk)
    }

    fn for_writing(&self, chunk: ChunkId, blank: bool) -> BoxFuture<'_, Location> {
        Box::pin(ChunkService::for_writing(self, chunk, blank))
    }

    fn place(&self, goal: u32) -> Result<Servers, FsError> {
        ChunkService::place(self, goal)
    }

    fn assigned(&self, chunk: ChunkId, version: ChunkVersion, servers: &[ChunkServerId]) {
        ChunkService::assigned(self, chunk, version, servers);
    }

    fn replica_failed<'a>(
        &'a self,
        chunk: ChunkId,
        version: ChunkVersion,
        failed: &'a [ChunkServerId],
        blank: bool,
    ) -> BoxFuture<'a, Result<(ChunkVersion, Servers), FsError>> {
        Box::pin(ChunkService::replica_failed(self, chunk, version, failed, blank))
    }

    fn bad_replica(&self, chunk: ChunkId, server: ChunkServerId, corrupt: bool) {
        ChunkService::bad_replica(self, chunk, server, corrupt);
    }

    fn capacity(&self) -> Capacity {
        ChunkService::capacity(self)
    }

    fn fence(&self, session: SessionId) -> BoxFuture<'_, ()> {
        Box::pin(ChunkService::fence(self, session))
    }
}

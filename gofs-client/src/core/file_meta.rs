//! What the contents of files ask of the MetaServer.

use std::sync::{Arc, Weak};

use gofs_proto::session;
use gofs_tree::{Attr, ChunkId, ChunkIndex, ChunkServerId, ChunkVersion, Edit, FsError, Ino, SessionId};

use super::Core;
use crate::data::{BoxFuture, ChunkLocation, FileMeta, Replica};
use crate::slices::Room;

/// Asks through the mount's session, as long as there is a mount.
pub struct Meta(pub Weak<Core>);

impl Meta {
    fn core(&self) -> Result<Arc<Core>, FsError> {
        self.0.upgrade().ok_or(FsError::Io)
    }
}

/// Where a chunk is, as a reply says it.
pub fn location(wire: session::ChunkLocation) -> ChunkLocation {
    let replicas = wire.replicas.into_iter();
    ChunkLocation {
        index: ChunkIndex(wire.index),
        chunk: ChunkId(wire.chunk),
        version: ChunkVersion(wire.version),
        blocks_4k: wire.blocks_4k,
        replicas: replicas
            .map(|replica| Replica { server: ChunkServerId(replica.server), address: replica.address })
            .collect(),
        lost: wire.lost,
    }
}

fn moved(reply: session::ReplicaFailedReply) -> Result<ChunkLocation, FsError> {
    reply.chunk.map(location).ok_or(FsError::Io)
}

impl FileMeta for Meta {
    fn chunk_map(
        &self,
        ino: Ino,
        first: ChunkIndex,
        count: u32,
    ) -> BoxFuture<'_, Result<Vec<ChunkLocation>, FsError>> {
        Box::pin(async move {
            let core = self.core()?;
            core.settled(ino).await?;
            let request = session::ChunkMap { ino: ino.0, first: first.0, count };
            let map = |reply: session::ChunkMapReply| Ok(reply.chunks.into_iter().map(location).collect());
            core.session.call(request, map).await
        })
    }

    fn allocate(
        &self,
        ino: Ino,
        session: SessionId,
        indexes: Vec<ChunkIndex>,
        blank: Vec<ChunkId>,
    ) -> BoxFuture<'_, Result<Vec<ChunkLocation>, FsError>> {
        Box::pin(async move {
            let core = self.core()?;
            core.settled(ino).await?;
            let generation = core.may_commit(&core.table.lock(), ino, session)?;
            let indexes = indexes.into_iter().map(|index| index.0).collect();
            let blank = blank.into_iter().map(|chunk| chunk.0).collect();
            let request = session::Allocate { ino: ino.0, indexes, blank };
            let map = |reply: session::AllocateReply| Ok(reply.chunks.into_iter().map(location).collect());
            core.session.call_in(generation, request, map).await
        })
    }

    fn place(&self, ino: Ino, session: SessionId, indexes: &[ChunkIndex]) -> Option<Vec<ChunkLocation>> {
        self.core().ok()?.place(ino, session, indexes)
    }

    fn replica_failed(
        &self,
        ino: Ino,
        session: SessionId,
        seen: &ChunkLocation,
        servers: Vec<ChunkServerId>,
        blank: bool,
    ) -> BoxFuture<'_, Result<ChunkLocation, FsError>> {
        let (index, chunk, version) = (seen.index.0, seen.chunk.0, seen.version.0);
        Box::pin(async move {
            let core = self.core()?;
            core.chunks.lock().distrust(&servers);
            core.settled(ino).await?;
            let generation = core.may_commit(&core.table.lock(), ino, session)?;
            let request = session::ReplicaFailed {
                ino: ino.0,
                index,
                chunk,
                version,
                servers: servers.into_iter().map(|server| server.0).collect(),
                blank,
            };
            core.session.call_in(generation, request, moved).await
        })
    }

    fn leave_behind(&self, ino: Ino, seen: &ChunkLocation) -> BoxFuture<'_, Result<ChunkLocation, FsError>> {
        let request = session::ReplicaFailed {
            ino: ino.0,
            index: seen.index.0,
            chunk: seen.chunk.0,
            version: seen.version.0,
            servers: Vec::new(),
            blank: false,
        };
        Box::pin(async move {
            let core = self.core()?;
            core.settled(ino).await?;
            core.session.call(request, moved).await
        })
    }

    fn bad_replica(&self, chunk: ChunkId, server: ChunkServerId, corrupt: bool) {
        let Ok(core) = self.core() else { return };
        let request = session::BadReplica { chunk: chunk.0, server: server.0, corrupt };
        let runtime = core.runtime.clone();
        runtime.spawn(async move {
            if let Err(error) = core.session.call(request, |_| Ok(())).await {
                tracing::warn!(%chunk, %server, %error, "a bad replica could not be reported");
            }
        });
    }

    fn make_room(&self, bytes: u64) -> BoxFuture<'_, Result<Room, FsError>> {
        Box::pin(async move { self.core()?.make_room(bytes).await })
    }

    fn commit(&self, ino: Ino, session: SessionId, edit: Edit) -> BoxFuture<'_, Result<Attr, FsError>> {
        Box::pin(async move { self.core()?.log_content(ino, session, &edit).await })
    }
}

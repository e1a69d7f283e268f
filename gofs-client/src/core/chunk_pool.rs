//! Chunks that were reserved for this session, with their places: a file that needs one gets it here, its bytes flow at
//! once, and the MetaServer hears of it with the edit that shows them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gofs_proto::session::{ReserveChunks, ReserveChunksReply};
use gofs_tree::{ChunkIndex, ChunkServerId, Edit, EditOp, FsError, Ino, SessionId, Timestamp};

use super::Core;
use super::file_meta::location;
use crate::data::ChunkLocation;

/// Chunks reserved at once.
const RESERVE: u32 = 64;
/// More are reserved when this many are left.
const RESERVE_AT: usize = 16;
/// How long a place that the MetaServer chose is good: servers fill, fail and come.
const FRESH: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug, Default)]
pub struct ChunkPool {
    /// Used in the order in which they came, each with the time at which it was asked for.
    free: VecDeque<(ChunkLocation, Instant)>,
    asking: bool,
}

impl ChunkPool {
    /// So many chunks, or none.
    fn take(&mut self, count: usize, now: Instant) -> Option<Vec<ChunkLocation>> {
        let is_old = |&(_, placed): &(_, Instant)| now.saturating_duration_since(placed) >= FRESH;
        let old = self.free.iter().take_while(|chunk| is_old(chunk)).count();
        self.free.drain(..old);
        (count <= self.free.len()).then(|| self.free.drain(..count).map(|(chunk, _)| chunk).collect())
    }

    /// Whether more are to be asked for, which the caller does then.
    fn wants_more(&mut self) -> bool {
        let wants = self.free.len() < RESERVE_AT && !self.asking;
        self.asking |= wants;
        wants
    }

    /// The answer to a reservation that was sent at that time.
    fn add(&mut self, chunks: Vec<ChunkLocation>, sent: Instant) {
        self.asking = false;
        self.free.extend(chunks.into_iter().map(|chunk| (chunk, sent)));
    }

    /// These servers did not take a write.
    pub fn distrust(&mut self, servers: &[ChunkServerId]) {
        self.free
            .retain(|(chunk, _)| chunk.replicas.iter().all(|replica| !servers.contains(&replica.server)));
    }

    /// The chunks belong to a session that is over.
    pub fn clear(&mut self) {
        *self = ChunkPool::default();
    }
}

impl Core {
    /// Chunks for these indexes of the file, which it does not have yet. `None`: the servers must be asked.
    pub fn place(
        self: &Arc<Self>,
        ino: Ino,
        session: SessionId,
        indexes: &[ChunkIndex],
    ) -> Option<Vec<ChunkLocation>> {
        let mut chunks = {
            let mut table = self.table.lock();
            self.may_commit(&table, ino, session).ok()?;
            let mut pool = self.chunks.lock();
            let taken = pool.take(indexes.len(), Instant::now());
            if pool.wants_more() {
                let core = self.clone();
                self.runtime.spawn(async move { core.reserve_chunks().await });
            }
            drop(pool);
            let chunks = taken?;
            for (&index, location) in indexes.iter().zip(&chunks) {
                // It changes nothing that has a time.
                let op = EditOp::AddChunk { ino, index, chunk: location.chunk };
                self.log_chunk(&mut table, &Edit { time: Timestamp::default(), op }, location);
            }
            chunks
        };
        for (chunk, &index) in chunks.iter_mut().zip(indexes) {
            chunk.index = index;
        }
        Some(chunks)
    }

    async fn reserve_chunks(self: Arc<Self>) {
        let generation = self.identity.lock().generation;
        let sent = Instant::now();
        let core = self.clone();
        let take_in = move |reply: ReserveChunksReply| {
            let identity = core.identity.lock();
            if identity.generation == generation {
                core.chunks.lock().add(reply.chunks.into_iter().map(location).collect(), sent);
            }
            Ok::<_, FsError>(())
        };
        if let Err(error) = self.session.call_long(ReserveChunks { count: RESERVE }, take_in).await {
            tracing::debug!(%error, "no chunks could be reserved: each is asked for when it is needed");
            self.chunks.lock().asking = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use gofs_tree::{ChunkId, ChunkVersion};

    use super::*;
    use crate::data::Replica;

    fn chunk(id: u64, servers: [u64; 2]) -> ChunkLocation {
        let replica = |server| Replica { server: ChunkServerId(server), address: String::new() };
        ChunkLocation {
            index: ChunkIndex(0),
            chunk: ChunkId(id),
            version: ChunkVersion(1),
            blocks_4k: 0,
            replicas: servers.map(replica).to_vec(),
            lost: false,
        }
    }

    fn ids(taken: Option<Vec<ChunkLocation>>) -> Option<Vec<u64>> {
        taken.map(|chunks| chunks.iter().map(|chunk| chunk.chunk.0).collect())
    }

    #[test]
    fn chunks_are_taken_once_all_or_none_and_while_their_places_are_fresh() {
        let now = Instant::now();
        let mut pool = ChunkPool::default();
        assert_eq!(ids(pool.take(1, now)), None);
        assert!(pool.wants_more() && !pool.wants_more(), "asked for once");
        pool.add((1..=20).map(|id| chunk(id, [1, 2])).collect(), now);
        assert!(!pool.wants_more());
        assert_eq!(ids(pool.take(2, now)), Some(vec![1, 2]));
        assert_eq!(ids(pool.take(19, now)), None);
        assert_eq!(ids(pool.take(3, now + FRESH / 2)), Some(vec![3, 4, 5]));
        assert!(pool.wants_more());
        pool.add((31..=40).map(|id| chunk(id, [1, 2])).collect(), now + FRESH / 2);
        assert_eq!(ids(pool.take(1, now + FRESH / 2)), Some(vec![6]), "none is skipped");
        assert_eq!(ids(pool.take(1, now + FRESH)), Some(vec![31]), "what was chosen long ago is");
        assert_eq!(ids(pool.take(1, now + FRESH * 2)), None);
    }

    #[test]
    fn servers_that_failed_get_no_more() {
        let now = Instant::now();
        let mut pool = ChunkPool::default();
        pool.add(vec![chunk(1, [1, 2]), chunk(2, [2, 3]), chunk(3, [3, 1])], now);
        pool.distrust(&[ChunkServerId(2), ChunkServerId(7)]);
        assert_eq!(ids(pool.take(1, now)), Some(vec![3]));
        assert_eq!(ids(pool.take(1, now)), None);
    }
}

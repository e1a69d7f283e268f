//! What ChunkServers have beyond what the state asks for, counted.

use gofs_tree::{ChunkId, FsError};

use super::ChunkService;

/// Replicas and chunks that are more than they should be, or less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Replicas older than their chunk.
    pub stale: u64,
    /// Replicas whose bytes fail their checksums.
    pub corrupt: u64,
    /// Current replicas beyond their chunk's goal.
    pub extra: u64,
    /// Chunks that the state does not know and that are kept all the same.
    pub unknown_kept: u64,
    /// Chunks that the state does not know and that will be deleted.
    pub unknown_going: u64,
}

impl ChunkService {
    /// Counts. Reads the state: call it off the runtime's own threads.
    pub fn census(&self) -> Result<Census, FsError> {
        let state = self.group.state();
        let (restored, reserved, next_chunk) =
            (state.restored()?, state.reserved()?, state.counters()?.next_chunk);
        let chunks: Vec<ChunkId> = self.leader.lock().directory.chunks().collect();
        let mut census = Census::default();
        for chunk in chunks {
            let record = state.chunk(chunk)?;
            let leader = self.leader.lock();
            let Some(entry) = leader.directory.entry(chunk) else { continue };
            let there = entry.replicas.iter().filter(|replica| replica.confirmed);
            let there: Vec<_> = there.filter(|replica| leader.servers.is_alive(replica.server)).collect();
            match record {
                Some(record) if record.deleted => {}
                Some(record) => {
                    census.corrupt += there.iter().filter(|replica| replica.corrupt).count() as u64;
                    census.stale +=
                        there.iter().filter(|replica| replica.version < record.version).count() as u64;
                    let current = there.iter().filter(|replica| replica.version == record.version);
                    census.extra += (current.count() as u64).saturating_sub(record.goal.into());
                }
                None if there.is_empty() => {}
                None => {
                    let kept = restored.is_some_and(|restored| restored.keeps(chunk));
                    let in_use = reserved.iter().any(|held| held.chunks.contains(chunk.0));
                    if kept || chunk >= next_chunk {
                        census.unknown_kept += 1;
                    } else if !in_use {
                        census.unknown_going += 1;
                    }
                }
            }
        }
        Ok(census)
    }

    /// Whether nothing of the chunk is left anywhere: all servers that there ever were are alive and have listed what they
    /// have, and none has any version of it.
    pub fn is_gone(&self, chunk: ChunkId) -> bool {
        let leader = self.leader.lock();
        leader.settled
            && leader.servers.iter().next().is_some()
            && leader.servers.iter().all(|server| server.is_alive() && server.listed)
            && leader.directory.entry(chunk).is_none_or(|entry| entry.replicas.is_empty())
    }
}

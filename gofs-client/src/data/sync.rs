//! Durability: everything ever written to a file's chunks onto stable storage, on every replica.

use std::collections::BTreeMap;

use futures_util::stream::{FuturesUnordered, StreamExt};
use gofs_proto::chunk::{Sync, SyncItem};
use gofs_proto::session::failure::Code;
use gofs_tree::{ChunkId, ChunkIndex, ChunkVersion, FsError};

use super::chunks::{Chunk, FirstWrite, Unsynced};
use super::file::File;
use super::gather::Way;
use super::links::{ChunkCallError, Trouble};
use super::locate::READ_ONLY;
use super::retry::Retry;
use super::state::FileState;
use super::{FileData, Replica};

/// Chunks in one Sync request: a server works through them one after the other.
const SYNC_ITEMS_MAX: usize = 1024;
/// Of a file with no more chunks than this the Sync is sent together with those of others.
const SHARED_ITEMS_MAX: usize = 16;
/// A replica whose connection breaks is tried so often before it is left out.
const REPLICA_TRIES: u32 = 3;

/// What one sync has tried.
struct Tried {
    retry: Retry,
    /// How often the connection to a replica broke.
    broken: BTreeMap<Replica, u32>,
}

/// A chunk, and at which version the first write that is to be synced was acknowledged; 0 where that is not known.
struct ToSync {
    chunk: Chunk,
    written: ChunkVersion,
}

impl ToSync {
    /// Whether anything was ever acknowledged of it, so far as is known.
    fn has_bytes(&self) -> bool {
        self.chunk.made || self.written != ChunkVersion(0)
    }
}

impl FileData {
    /// Syncs the chunks that may have unsynced bytes. The caller holds the file's flight lock.
    pub(super) async fn sync_chunks(&self, file: &File, epoch: u64) -> Result<(), FsError> {
        let chunk_bytes = u64::from(self.config.chunk_size.bytes());
        if file.look(|state| state.chunks.all_unsynced && state.in_chunks()) {
            let end = file.look(|state| state.size()).div_ceil(chunk_bytes);
            self.learn(file, 0, end).await?;
            self.totals.change(file, |state| {
                let all: Vec<ChunkIndex> = state.chunks.present(0, end).map(|c| c.location.index).collect();
                for index in all {
                    state.chunks.unsynced.entry(index).or_default();
                }
                state.chunks.all_unsynced = false;
            });
        }
        let mut tried = Tried { retry: Retry::new(self.config.soft_timeout), broken: BTreeMap::new() };
        loop {
            if file.look(|state| state.epoch()) != epoch {
                return Err(FsError::Io);
            }
            let unsynced: Vec<(ChunkIndex, FirstWrite)> =
                file.look(|state| state.chunks.unsynced.iter().map(|(i, v)| (*i, *v)).collect());
            if unsynced.is_empty() {
                return Ok(());
            }
            let mut chunks = Vec::with_capacity(unsynced.len());
            let mut incomplete = None;
            for (index, first) in unsynced {
                match self.chunk(file, index).await? {
                    Some(chunk) => {
                        let written = first.version(chunk.location.chunk).unwrap_or_default();
                        let unsynced = ToSync { chunk, written };
                        let has_bytes = unsynced.has_bytes();
                        let chunk = &unsynced.chunk;
                        let is_partial =
                            chunk.location.version == READ_ONLY && !chunk.location.replicas.is_empty();
                        if has_bytes && is_partial {
                            // A replica that is not synced now must not be chosen after a power cut of all.
                            incomplete = Some(unsynced.chunk.location);
                            break;
                        }
                        let is_lost = chunk.location.version.losses() > written.losses();
                        if is_lost && written != ChunkVersion(0) && chunk.location.version != READ_ONLY {
                            return Err(self.writes_are_lost(
                                file,
                                chunk.location.chunk,
                                "it was placed anew",
                            ));
                        }
                        chunks.push(unsynced);
                    }
                    // Truncated or punched since.
                    None => self.totals.change(file, |state| {
                        state.chunks.unsynced.remove(&index);
                    }),
                }
            }
            match incomplete {
                Some(location) => self.leave_behind(file, &location, &mut tried.retry).await?,
                None => self.sync_round(file, epoch, chunks, &mut tried).await?,
            }
        }
    }

    /// One Sync to every replica of the chunks; those that all replicas answered are done.
    async fn sync_round(
        &self,
        file: &File,
        epoch: u64,
        chunks: Vec<ToSync>,
        tried: &mut Tried,
    ) -> Result<(), FsError> {
        let mut by_server: BTreeMap<Replica, Vec<&ToSync>> = BTreeMap::new();
        for unsynced in &chunks {
            for replica in &unsynced.chunk.location.replicas {
                by_server.entry(replica.clone()).or_default().push(unsynced);
            }
        }
        let mut calls = FuturesUnordered::new();
        for (replica, chunks) in &by_server {
            for batch in chunks.chunks(SYNC_ITEMS_MAX) {
                calls.push(async move { (replica, batch, self.sync_batch(replica, batch).await) });
            }
        }
        let mut synced: BTreeMap<ChunkIndex, usize> = BTreeMap::new();
        let mut problem = None;
        while let Some((replica, batch, result)) = calls.next().await {
            match result {
                Ok(()) => {
                    for unsynced in batch {
                        *synced.entry(unsynced.chunk.location.index).or_default() += 1;
                    }
                }
                Err((concerned, error)) => problem = Some((replica.clone(), concerned, error)),
            }
        }
        drop(calls);
        let chunks_of_all: Vec<&Chunk> = chunks.iter().map(|unsynced| &unsynced.chunk).collect();
        let done: Vec<ChunkIndex> = chunks_of_all
            .iter()
            .filter(|chunk| {
                let replicas = chunk.location.replicas.len();
                // Allocated by somebody who wrote nothing: there is nothing to sync anywhere.
                let is_blank = replicas == 0 && !chunk.made;
                is_blank || replicas > 0 && synced.get(&chunk.location.index) == Some(&replicas)
            })
            .map(|chunk| chunk.location.index)
            .collect();
        let (synced, is_retired) = self.totals.change(file, |state| {
            let take = |index| Some((index, state.chunks.unsynced.remove(&index)?));
            let synced: Unsynced = done.iter().copied().filter_map(take).collect();
            (synced, state.is_retired())
        });
        if is_retired {
            self.no_longer_unsynced(file, &synced);
        }
        if let Some((replica, batch, error)) = problem {
            return self.sync_failed(file, epoch, &replica, &batch, error, tried).await;
        }
        if done.len() < chunks.len() {
            // Chunks without any known replica.
            let nowhere = chunks_of_all.iter().filter(|chunk| chunk.location.replicas.is_empty());
            match nowhere.clone().find(|chunk| chunk.location.lost) {
                Some(chunk) => {
                    tried.retry.lost(&chunk.location).await?;
                }
                None => {
                    let what = format!("no replica of a chunk of {} is known", file.ino);
                    tried.retry.unreachable(&what).await?;
                }
            }
            for chunk in nowhere {
                if file.look(FileState::moves_durable_bytes) {
                    // No edit that waits for this sync tells the MetaServer that there is something in it to be lost.
                    self.relocate_to_write(file, epoch, &chunk.location).await?;
                } else {
                    self.relocate(file, &chunk.location).await?;
                }
            }
        }
        Ok(())
    }

    /// On error the chunks that it concerns; where one of many was refused, all are tried alone to find it.
    async fn sync_batch<'a>(
        &self,
        replica: &Replica,
        batch: &[&'a ToSync],
    ) -> Result<(), (Vec<&'a ToSync>, ChunkCallError)> {
        let item = |unsynced: &&ToSync| SyncItem {
            chunk: unsynced.chunk.location.chunk.0,
            version: unsynced.chunk.location.version.0,
            written: unsynced.written.0,
        };
        let items: Vec<SyncItem> = batch.iter().map(item).collect();
        if items.len() <= SHARED_ITEMS_MAX {
            let way = Way { session: (self.config.session)(), servers: vec![replica.clone()] };
            if self.syncs.send(way, items.clone(), Vec::new()).await.is_some() {
                return Ok(());
            }
        }
        match self.links.call(replica, &Sync { items }, Vec::new()).await {
            Ok(_) => Ok(()),
            Err(ChunkCallError::Refused { .. }) if batch.len() > 1 => {
                for unsynced in batch {
                    Box::pin(self.sync_batch(replica, &[*unsynced])).await?;
                }
                Ok(())
            }
            // Allocated and never written: no byte is missing.
            Err(ChunkCallError::Refused { failure, .. })
                if failure.code() == Code::NoChunk && batch.iter().all(|unsynced| !unsynced.has_bytes()) =>
            {
                Ok(())
            }
            Err(error) => Err((batch.to_vec(), error)),
        }
    }

    /// What a sync was to keep is not there. It is told now, whichever chunks it was of.
    fn writes_are_lost(&self, file: &File, chunk: ChunkId, why: &str) -> FsError {
        tracing::error!(ino = %file.ino, %chunk, error = why, "what a sync was to keep is lost");
        let (told, is_retired) = self
            .totals
            .change(file, |state| (std::mem::take(&mut state.chunks.unsynced), state.is_retired()));
        if is_retired {
            self.no_longer_unsynced(file, &told);
        }
        FsError::Io
    }

    async fn sync_failed(
        &self,
        file: &File,
        epoch: u64,
        replica: &Replica,
        batch: &[&ToSync],
        error: ChunkCallError,
        tried: &mut Tried,
    ) -> Result<(), FsError> {
        let Tried { retry, broken } = tried;
        let lost = match &error {
            ChunkCallError::Unreachable { trouble, .. } => {
                retry.unreachable(&error.to_string()).await?;
                let tries = broken.entry(replica.clone()).or_default();
                *tries += 1;
                *trouble == Trouble::Silent || tries.is_multiple_of(REPLICA_TRIES)
            }
            ChunkCallError::Refused { failure, .. } if failure.code() == Code::LostWrites => {
                let chunk = batch.first().map(|it| it.chunk.location.chunk).unwrap_or_default();
                return Err(self.writes_are_lost(file, chunk, &error.to_string()));
            }
            ChunkCallError::Refused { failure, .. } => {
                retry.contradicted(&error.to_string()).await?;
                matches!(failure.code(), Code::NoChunk | Code::Fs)
            }
        };
        for ToSync { chunk, .. } in batch {
            if lost && chunk.location.replicas.len() > 1 {
                match self.replica_failed(file, epoch, &chunk.location, vec![replica.server]).await {
                    Ok(()) => continue,
                    // No other replica is there, or this is no holder of the Write lease: the servers
                    // notice a dead replica by themselves.
                    Err(failure) => {
                        let why = format!("{error}; it cannot be left out: {failure}");
                        match failure {
                            FsError::Io | FsError::Busy => retry.unreachable(&why).await?,
                            _ => retry.contradicted(&why).await?,
                        }
                    }
                }
            }
            if lost || matches!(error, ChunkCallError::Refused { .. }) {
                self.relocate(file, &chunk.location).await?;
            }
        }
        Ok(())
    }
}

//! Where chunks are: asked once, remembered while the lease lasts, asked again when a server contradicts.

use gofs_tree::{ChunkIndex, ChunkServerId, ChunkVersion, FsError, SessionId};

use super::chunks::{Chunk, INDEX_END};
use super::file::File;
use super::retry::Retry;
use super::{ChunkLocation, FileData};

/// Chunks asked for when one is needed: neighbours are needed soon.
const WINDOW: u64 = 256;
/// Chunks asked for at once at most. The server answers for 8192: what it leaves out must not pass for absent.
const PAGE: u64 = 4096;
/// Version of a location that is good for reading only: some replica that may be current is away.
pub(super) const READ_ONLY: ChunkVersion = ChunkVersion(0);

/// A chunk is called blank. Ends when it is dropped, also where nobody waits for the answer any more.
struct Claim<'a> {
    data: &'a FileData,
    file: &'a File,
    index: ChunkIndex,
    answer: Option<ChunkLocation>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.data.totals.change(self.file, |state| state.chunks.unclaim(self.index, self.answer.as_ref()));
    }
}

impl FileData {
    /// Asks the server for whatever is not known of the chunks in `[first, end)`.
    pub(super) async fn learn(&self, file: &File, first: u64, end: u64) -> Result<(), FsError> {
        while file.look(|state| state.chunks.first_unknown(first, end)).is_some() {
            let _asking = file.chunked().map.lock().await;
            self.learn_page(file, first, end).await?;
        }
        Ok(())
    }

    async fn learn_page(&self, file: &File, first: u64, end: u64) -> Result<(), FsError> {
        let end = end.min(INDEX_END);
        let Some((at, until)) = file.look(|state| state.chunks.first_unknown(first, end)) else {
            return Ok(());
        };
        let count = (until - at).min(PAGE);
        let found = self.meta.chunk_map(file.ino, ChunkIndex(at as u32), count as u32).await?;
        self.totals.change(file, |state| state.chunks.learn(at, at + count, found, self.config.chunk_size));
        Ok(())
    }

    /// The chunk at `index`, `None` where the file has none.
    pub(super) async fn chunk(&self, file: &File, index: ChunkIndex) -> Result<Option<Chunk>, FsError> {
        loop {
            if let Some(known) = file.look(|state| state.chunks.get(index).map(|chunk| chunk.cloned())) {
                return Ok(known);
            }
            let at = u64::from(index.0);
            let _asking = file.chunked().map.lock().await;
            if file.look(|state| state.chunks.get(index).is_none()) {
                self.learn_page(file, at, (at + WINDOW).min(INDEX_END)).await?;
            }
        }
    }

    /// Asks again where a chunk is, unless that was done since `seen` was looked up.
    pub(super) async fn relocate(&self, file: &File, seen: &ChunkLocation) -> Result<(), FsError> {
        let _asking = file.chunked().map.lock().await;
        if self.has_moved(file, seen) {
            return Ok(());
        }
        let found = self.meta.chunk_map(file.ino, seen.index, 1).await?;
        match found.into_iter().find(|location| location.index == seen.index && location.chunk == seen.chunk)
        {
            Some(location) => self.totals.change(file, |state| state.chunks.moved(location)),
            None => {
                let at = u64::from(seen.index.0);
                self.totals.change(file, |state| state.chunks.forget(at, at + 1));
            }
        }
        Ok(())
    }

    /// Asks for a location that can be written to: one that was told for reading has version 0, or was
    /// overtaken. Unless that was done since `seen` was looked up. Needs the Write lease, and the file as of `epoch`.
    pub(super) async fn relocate_to_write(
        &self,
        file: &File,
        epoch: u64,
        seen: &ChunkLocation,
    ) -> Result<(), FsError> {
        let _asking = file.chunked().map.lock().await;
        if self.has_moved(file, seen) {
            return Ok(());
        }
        let session = self.session_of(file, epoch)?;
        // A leader that has not led for long does not know where the chunk was to be, and waits for servers that may have it.
        let (mut claim, blank) = self.claim(file, seen);
        let answer = self.location_to_write(file, session, seen, blank).await;
        claim.answer = answer.as_ref().ok().cloned();
        drop(claim);
        let location = match answer {
            Ok(location) => location,
            // None of its replicas is there: what is known stays, and is tried again.
            Err(FsError::Io | FsError::Busy) => return Ok(()),
            Err(error) => return Err(error),
        };
        if location.chunk != seen.chunk {
            let at = u64::from(seen.index.0);
            self.totals.change(file, |state| state.chunks.forget(at, at + 1));
            return Ok(());
        }
        self.totals.change(file, |state| state.chunks.moved(location));
        Ok(())
    }

    /// Waits until no chunk of the file is being placed.
    pub(super) async fn placed_anew(&self, file: &File) {
        drop(file.chunked().map.lock().await);
    }

    /// Whether nothing in the chunk was ever acknowledged, which stays so until the claim is dropped.
    fn claim<'a>(&'a self, file: &'a File, seen: &ChunkLocation) -> (Claim<'a>, bool) {
        let blank = self.totals.change(file, |state| state.chunks.claim(seen));
        (Claim { data: self, file, index: seen.index, answer: None }, blank)
    }

    async fn location_to_write(
        &self,
        file: &File,
        session: SessionId,
        seen: &ChunkLocation,
        is_blank: bool,
    ) -> Result<ChunkLocation, FsError> {
        let blank = if is_blank { vec![seen.chunk] } else { Vec::new() };
        let found = self.meta.allocate(file.ino, session, vec![seen.index], blank).await?;
        let location = found.into_iter().find(|location| location.index == seen.index).ok_or(FsError::Io)?;
        if location.version != READ_ONLY || location.chunk != seen.chunk || location.lost {
            return Ok(location);
        }
        // Nobody failed here: asks for the version to be raised over replicas that are away.
        self.meta.replica_failed(file.ino, session, &location, Vec::new(), is_blank).await
    }

    /// Has the servers taken off the chunk that did not take a write, unless that was done since. Needs the file as of `epoch`.
    pub(super) async fn replica_failed(
        &self,
        file: &File,
        epoch: u64,
        seen: &ChunkLocation,
        servers: Vec<ChunkServerId>,
    ) -> Result<(), FsError> {
        let _asking = file.chunked().map.lock().await;
        if self.has_moved(file, seen) {
            return Ok(());
        }
        let session = self.session_of(file, epoch)?;
        let (mut claim, blank) = self.claim(file, seen);
        let answer = self.meta.replica_failed(file.ino, session, seen, servers, blank).await;
        claim.answer = answer.as_ref().ok().cloned();
        drop(claim);
        let location = answer?;
        self.totals.change(file, |state| state.chunks.moved(location));
        Ok(())
    }

    /// Has replicas that are away, or in doubt, left behind by the others, unless that was done since.
    pub(super) async fn leave_behind(
        &self,
        file: &File,
        seen: &ChunkLocation,
        retry: &mut Retry,
    ) -> Result<(), FsError> {
        let asking = file.chunked().map.lock().await;
        if self.has_moved(file, seen) {
            return Ok(());
        }
        match self.meta.leave_behind(file.ino, seen).await {
            Ok(location) => {
                self.totals.change(file, |state| state.chunks.moved(location));
                Ok(())
            }
            Err(error) => {
                drop(asking);
                retry.unreachable(&format!("not all replicas of {} are there: {error}", seen.chunk)).await?;
                self.relocate(file, seen).await
            }
        }
    }

    fn has_moved(&self, file: &File, seen: &ChunkLocation) -> bool {
        file.look(|state| match state.chunks.get(seen.index).flatten() {
            Some(chunk) => chunk.location.version != seen.version || chunk.location.replicas != seen.replicas,
            None => true,
        })
    }

    /// Gives the file, as of `epoch`, chunks at these indexes where it has none.
    pub(super) async fn make_chunks(
        &self,
        file: &File,
        indexes: &[ChunkIndex],
        epoch: u64,
    ) -> Result<(), FsError> {
        for index in indexes {
            self.chunk(file, *index).await?;
        }
        let _asking = file.chunked().map.lock().await;
        let missing: Vec<ChunkIndex> = file.look(|state| {
            indexes.iter().copied().filter(|index| state.chunks.get(*index).flatten().is_none()).collect()
        });
        if missing.is_empty() {
            return Ok(());
        }
        let session = self.session_of(file, epoch)?;
        let may_place = !file.look(|state| state.chunks.may_get_more);
        let made = match may_place.then(|| self.meta.place(file.ino, session, &missing)).flatten() {
            Some(made) => made,
            None => self.ask_for_chunks(file, session, &missing).await?,
        };
        self.totals.change(file, |state| {
            for location in made {
                state.chunks.allocated(location, self.config.chunk_size);
            }
        });
        Ok(())
    }

    async fn ask_for_chunks(
        &self,
        file: &File,
        session: SessionId,
        missing: &[ChunkIndex],
    ) -> Result<Vec<ChunkLocation>, FsError> {
        let made = match self.meta.allocate(file.ino, session, missing.to_vec(), Vec::new()).await {
            Ok(made) => made,
            Err(error) => {
                // The server may have made them all the same: it is asked before they are made again.
                self.totals.change(file, |state| {
                    state.chunks.may_get_more = true;
                    for index in missing {
                        state.chunks.forget(index.0.into(), u64::from(index.0) + 1);
                    }
                });
                return Err(error);
            }
        };
        if let Some(index) =
            missing.iter().find(|index| made.iter().all(|location| location.index != **index))
        {
            tracing::error!(ino = %file.ino, index = index.0, "the MetaServer allocated no chunk where one was asked for");
            return Err(FsError::Io);
        }
        Ok(made)
    }
}

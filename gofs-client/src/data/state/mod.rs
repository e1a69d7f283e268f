//! One file as this client sees it: what is dirty, what a flush consists of, what a read is
//! put together from. Sync; gets the time as argument.
//!
//! Layers, newest first: `dirty`, `flushing` (what a flush took), then the base, which is the
//! inline bytes or the chunks. Of the chunks only bytes below `valid_end` count; from there to
//! `size` the file is zeros wherever nothing is dirty.

mod flushing;
mod reading;
mod shape;

use std::time::Instant;

use bytes::Bytes;
use gofs_tree::{BLOCK_BYTES, ByteRange, ChunkSize, Edit, FILE_SIZE_MAX, FsError, Ino, Timestamp};

use super::chunks::{Chunks, INDEX_END};
use super::extents::{ExtentMap, Run};
use super::{Content, LocalAttr};

/// What does not change while a mount lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub chunk_size: ChunkSize,
    pub inline_max: u32,
    /// A contiguous run this long is written before the file's age asks for it.
    pub early_run_bytes: u64,
}

/// Where the bytes below the dirty ones are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Base {
    Inline(Bytes),
    Chunks,
}

/// Names a read from a ChunkServer that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FetchId(u64);

/// What a read is put together from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReadPiece {
    Bytes(Bytes),
    Zeros(u64),
    /// In the chunks.
    Fetch(ByteRange),
    /// A part of what a read under way will bring.
    Join(FetchId, ByteRange),
}

/// How much a flush takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Long runs only, without a commit.
    Early,
    /// Everything below this offset.
    Below(u64),
}

/// What a flush has to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// No bytes.
    Nothing,
    /// The file is small: commit this.
    Inline(Edit),
    /// To the chunks.
    Out(OutPlan),
}

/// Bytes for the chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OutPlan {
    /// What is past the valid end and becomes visible without being overwritten: zero it
    /// first, wherever a chunk exists.
    pub zero: Vec<ByteRange>,
    /// What to write.
    pub runs: Vec<Run>,
    /// Where the chunks are valid up to afterwards.
    pub valid_end: u64,
}

/// What a file weighs in the totals of the mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    pub dirty_bytes: u64,
    pub cached_bytes: u64,
    pub growth_bytes: u64,
    /// Whether something is newer than at the server.
    pub news: bool,
    /// Since when something waits that no flush has taken yet.
    pub dirty_since: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct FileState {
    ino: Ino,
    geometry: Geometry,
    size: u64,
    mtime: Timestamp,
    ctime: Timestamp,
    server_size: u64,
    server_blocks: u64,
    base: Base,
    /// Inline bytes that are on their way to the chunks; the server has them until `clear_inline`.
    moving: Option<Bytes>,
    valid_end: u64,
    dirty: ExtentMap,
    flushing: Option<ExtentMap>,
    times_dirty: bool,
    committing: bool,
    dirty_since: Option<Instant>,
    cached: ExtentMap,
    fetches: Vec<(FetchId, ByteRange)>,
    next_fetch: u64,
    /// Moves when everything is discarded, so that a flush under way notices.
    epoch: u64,
    /// No longer the file's state: nothing more may be cached.
    retired: bool,
    pub chunks: Chunks,
}

impl FileState {
    /// The file as the server has it.
    pub fn new(ino: Ino, geometry: Geometry, content: Content) -> Self {
        let mut state = FileState {
            ino,
            geometry,
            size: 0,
            mtime: content.mtime,
            ctime: content.ctime,
            server_size: 0,
            server_blocks: 0,
            base: Base::Chunks,
            moving: None,
            valid_end: 0,
            dirty: ExtentMap::default(),
            flushing: None,
            times_dirty: false,
            committing: false,
            dirty_since: None,
            cached: ExtentMap::default(),
            fetches: Vec::new(),
            next_fetch: 0,
            epoch: 0,
            retired: false,
            chunks: Chunks::default(),
        };
        state.reset(content);
        state
    }

    fn reset(&mut self, content: Content) {
        self.size = content.size;
        self.mtime = content.mtime;
        self.ctime = content.ctime;
        self.server_size = content.size;
        self.server_blocks = content.blocks;
        self.chunks.forget_all(content.has_chunks);
        self.forget_clean(0, u64::MAX);
        self.moving = None;
        if !content.has_chunks && content.inline.as_ref().is_some_and(Bytes::is_empty) {
            // Beside inline bytes there may be chunks of an author who died, untold.
            self.chunks.learn(0, INDEX_END, Vec::new(), self.geometry.chunk_size);
        }
        match content.inline {
            Some(bytes) => {
                self.base = Base::Inline(bytes.slice(..bytes.len().min(content.size as usize)));
                self.valid_end = 0;
            }
            None => {
                self.base = Base::Chunks;
                self.valid_end = content.size;
            }
        }
    }

    /// What the server says, after a grant. Ignored while something here is newer.
    pub fn load(&mut self, content: Content) {
        if self.has_news() {
            return;
        }
        let same_base = match (&self.base, &content.inline) {
            (Base::Inline(mine), Some(theirs)) => mine == theirs,
            (Base::Chunks, None) => true,
            _ => false,
        };
        if same_base && self.size == content.size && self.mtime == content.mtime {
            self.ctime = content.ctime;
            self.server_blocks = content.blocks;
        } else {
            self.reset(content);
        }
    }

    /// Whether something written is not known to be on stable storage; `all`: by others, too.
    pub fn is_unsynced(&self, all: bool) -> bool {
        !self.chunks.unsynced.is_empty() || (all && self.chunks.all_unsynced && self.base == Base::Chunks)
    }

    /// Whether anything here is newer than at the server, or on its way there.
    pub fn has_news(&self) -> bool {
        self.committing
            || self.times_dirty
            || self.moving.is_some()
            || !self.dirty.is_empty()
            || self.flushing.is_some()
            || (self.base == Base::Chunks && self.valid_end > self.server_size)
            || !self.chunks.new_blocks.is_empty()
    }

    /// Its share of the mount's totals; nothing once it was discarded.
    pub fn weight(&self) -> Weight {
        if self.epoch > 0 {
            return Weight::default();
        }
        Weight {
            dirty_bytes: self.dirty.len() + self.flushing.as_ref().map_or(0, ExtentMap::len),
            cached_bytes: self.cached.len(),
            growth_bytes: self.size.saturating_sub(self.server_size),
            news: self.has_news(),
            dirty_since: self.dirty_since,
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that the server knows of.
    pub fn server_size(&self) -> u64 {
        self.server_size
    }

    /// See [`FileState::discard`].
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether the bytes are in chunks, or on their way there.
    pub fn in_chunks(&self) -> bool {
        self.base == Base::Chunks
    }

    /// Length of the inline bytes.
    pub fn inline_len(&self) -> u64 {
        match &self.base {
            Base::Inline(bytes) => bytes.len() as u64,
            Base::Chunks => 0,
        }
    }

    /// Attributes that are newer than the server's.
    pub fn overlay(&self) -> Option<LocalAttr> {
        self.has_news().then(|| {
            let waiting = self.weight().dirty_bytes + self.valid_end.saturating_sub(self.server_size);
            let blocks = self.server_blocks + waiting.div_ceil(BLOCK_BYTES) * (BLOCK_BYTES / 512);
            LocalAttr { size: self.size, mtime: self.mtime, ctime: self.ctime, blocks }
        })
    }

    /// Takes a write; `offset` `None` appends. Returns where it went.
    pub fn write(
        &mut self,
        offset: Option<u64>,
        data: Bytes,
        now: Timestamp,
        at: Instant,
    ) -> Result<u64, FsError> {
        if self.retired {
            return Err(FsError::NotCached);
        }
        let offset = offset.unwrap_or(self.size);
        let end = offset.checked_add(data.len() as u64).ok_or(FsError::FileTooLarge)?;
        if end > self.max_size() {
            return Err(FsError::FileTooLarge);
        }
        if data.is_empty() {
            return Ok(offset);
        }
        self.forget_clean(offset, end);
        self.dirty.insert(offset, data);
        self.size = self.size.max(end);
        self.mtime = now;
        self.ctime = now;
        self.times_dirty = true;
        self.dirty_since.get_or_insert(at);
        Ok(offset)
    }

    /// The largest size that offsets and chunk indexes allow.
    pub fn max_size(&self) -> u64 {
        FILE_SIZE_MAX.min(INDEX_END.saturating_mul(u64::from(self.geometry.chunk_size.bytes())))
    }

    /// Whether the run that a write at `offset` belongs to is long enough to be written out now.
    pub fn is_early(&self, offset: u64) -> bool {
        let long = self.geometry.early_run_bytes;
        self.flushing.is_none() && self.dirty.len() >= long && self.dirty.run_is_long(offset, long)
    }

    /// Whether what was begun at that epoch is not to go on: it was discarded meanwhile, or has no cache to go out from.
    pub fn is_over(&self, epoch: u64) -> bool {
        self.retired || self.epoch != epoch
    }

    /// Whether the file is not loaded any more, so far as this state goes.
    pub fn is_retired(&self) -> bool {
        self.retired
    }

    /// Nothing more is cached here: another state takes over, or none.
    pub fn retire(&mut self) {
        self.retired = true;
        self.forget_clean(0, u64::MAX);
    }

    /// The session is gone: forgets all that was not committed, and says whether anything was. A flush
    /// under way sees that the epoch has moved.
    pub fn discard(&mut self) -> u64 {
        let lost = self.dirty.len()
            + self.flushing.as_ref().map_or(0, ExtentMap::len)
            + if self.base == Base::Chunks { self.valid_end.saturating_sub(self.server_size) } else { 0 };
        let had_news = self.has_news();
        self.epoch += 1;
        self.dirty = ExtentMap::default();
        self.flushing = None;
        self.moving = None;
        self.times_dirty = false;
        self.committing = false;
        self.dirty_since = None;
        self.chunks.forget_all(false);
        self.size = self.server_size;
        self.valid_end = self.valid_end.min(self.server_size);
        self.retire();
        if had_news { lost.max(1) } else { 0 }
    }
}

#[cfg(test)]
mod tests;

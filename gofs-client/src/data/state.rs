//! One file as this client sees it: what is dirty, what a flush consists of, what a read is
//! put together from. Sync; gets the time as argument.
//!
//! Layers, newest first: `dirty`, `flushing` (what a flush took), then the base, which is the
//! inline bytes or the chunks. Of the chunks only bytes below `valid_end` count; from there to
//! `size` the file is zeros wherever nothing is dirty.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use gofs_tree::{
    Attr, BLOCK_BYTES, ByteRange, ChunkIndex, ChunkSize, Edit, EditOp, FILE_SIZE_MAX, FsError, Ino, Timestamp,
};

use super::chunks::{Chunks, INDEX_END};
use super::extents::{ExtentMap, Run};
use super::{Content, LocalAttr};

/// How many long runs' bytes one early write-out takes at most, so that its memory is free again soon.
const EARLY_RUNS_MAX: u64 = 8;

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
        self.chunks = Chunks::unknown(content.has_chunks);
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

    /// What a read of `len` bytes from `offset` is put together from; ends with the file.
    pub fn plan_read(&self, offset: u64, len: u64) -> Vec<ReadPiece> {
        let range = ByteRange { start: offset, end: offset.saturating_add(len).min(self.size) };
        let mut out = Vec::new();
        if range.start >= range.end {
            return out;
        }
        for part in self.dirty.look(range) {
            match part {
                Ok((_, bytes)) => out.push(ReadPiece::Bytes(bytes)),
                Err(gap) => match &self.flushing {
                    None => self.plan_base(gap, &mut out),
                    Some(flushing) => {
                        for part in flushing.look(gap) {
                            match part {
                                Ok((_, bytes)) => out.push(ReadPiece::Bytes(bytes)),
                                Err(gap) => self.plan_base(gap, &mut out),
                            }
                        }
                    }
                },
            }
        }
        out
    }

    fn plan_base(&self, range: ByteRange, out: &mut Vec<ReadPiece>) {
        let valid_end = match &self.base {
            Base::Inline(bytes) => bytes.len() as u64,
            Base::Chunks => self.valid_end,
        };
        let end = range.end.min(valid_end);
        if range.start < end {
            match &self.base {
                Base::Inline(bytes) => {
                    out.push(ReadPiece::Bytes(bytes.slice(range.start as usize..end as usize)));
                }
                Base::Chunks => self.plan_chunks(ByteRange { start: range.start, end }, out),
            }
        }
        if range.end > end.max(range.start) {
            out.push(ReadPiece::Zeros(range.end - end.max(range.start)));
        }
    }

    fn plan_chunks(&self, range: ByteRange, out: &mut Vec<ReadPiece>) {
        for part in self.cached.look(range) {
            let gap = match part {
                Ok((_, bytes)) => {
                    out.push(ReadPiece::Bytes(bytes));
                    continue;
                }
                Err(gap) => gap,
            };
            let mut at = gap.start;
            while at < gap.end {
                let joined = self.fetches.iter().find(|(_, range)| range.start <= at && at < range.end);
                if let Some(&(id, fetch)) = joined {
                    let end = fetch.end.min(gap.end);
                    out.push(ReadPiece::Join(id, ByteRange { start: at, end }));
                    at = end;
                } else {
                    let next =
                        self.fetches.iter().map(|(_, range)| range.start).filter(|&start| start > at).min();
                    let end = next.map_or(gap.end, |start| start.min(gap.end));
                    out.push(ReadPiece::Fetch(ByteRange { start: at, end }));
                    at = end;
                }
            }
        }
    }

    /// A read from the chunks begins: others may wait for it.
    pub fn begin_fetch(&mut self, range: ByteRange) -> FetchId {
        let id = FetchId(self.next_fetch);
        self.next_fetch += 1;
        self.fetches.push((id, range));
        id
    }

    /// It ended, with these bytes if it did well. Kept for later reads unless a change came between;
    /// returns whether they were.
    pub fn end_fetch(&mut self, id: FetchId, bytes: Option<Bytes>) -> bool {
        let Some(at) = self.fetches.iter().position(|(fetch, _)| *fetch == id) else { return false };
        let (_, range) = self.fetches.swap_remove(at);
        match bytes {
            Some(bytes) if !self.retired && self.base == Base::Chunks => {
                debug_assert_eq!(bytes.len() as u64, range.len());
                self.cached.insert(range.start, bytes);
                true
            }
            _ => false,
        }
    }

    /// Drops clean bytes, and what reads under way will bring of them.
    pub fn forget_clean(&mut self, start: u64, end: u64) {
        self.cached.remove(start, end);
        self.fetches.retain(|(_, range)| range.end <= start || range.start >= end);
    }

    /// Drops clean bytes only, to make room.
    pub fn evict(&mut self, start: u64, end: u64) {
        self.cached.remove(start, end);
    }

    /// Nothing more is cached here: another state takes over, or none.
    pub fn retire(&mut self) {
        self.retired = true;
        self.forget_clean(0, u64::MAX);
    }

    /// Takes what a flush has to write. The caller is the only flush of this file; what an earlier one
    /// took and did not finish is taken again.
    pub fn begin_flush(&mut self, scope: Scope) -> Plan {
        self.take_back();
        let limit = match scope {
            Scope::Early => u64::MAX,
            Scope::Below(limit) => {
                self.dirty_since = None;
                limit
            }
        };
        let size = self.size.min(limit).max(self.server_size);
        if let Some(bytes) = self.inline_base() {
            let mut end = self.dirty.end();
            if end > limit {
                let below = self.dirty.look(ByteRange { start: 0, end: limit });
                end = below.iter().flatten().last().map_or(0, |(at, bytes)| at + bytes.len() as u64);
            }
            let data_end = end.max(bytes.len() as u64);
            if data_end <= u64::from(self.geometry.inline_max) {
                return self.plan_inline(scope, size, limit, &bytes);
            }
            let mut under = ExtentMap::default();
            under.insert(0, bytes.clone());
            self.dirty.fill_from(under);
            self.moving = Some(bytes);
            self.base = Base::Chunks;
            self.valid_end = 0;
        }
        let taken = match scope {
            Scope::Early => self.take_early(),
            Scope::Below(limit) => self.dirty.take(ByteRange { start: 0, end: limit }),
        };
        let mut valid_end = self.valid_end.max(taken.end());
        if scope != Scope::Early {
            // The server must not show bytes below its size that nobody made valid.
            valid_end = valid_end.max(size);
        }
        let mut zero = Vec::new();
        if self.valid_end < valid_end {
            let exposed = ByteRange { start: self.valid_end, end: valid_end };
            let mut at = exposed.start;
            for run in taken.run_ranges() {
                if run.end <= at {
                    continue;
                }
                if run.start > at {
                    zero.push(ByteRange { start: at, end: run.start });
                }
                at = run.end;
            }
            if at < exposed.end {
                zero.push(ByteRange { start: at, end: exposed.end });
            }
        }
        if taken.is_empty() && zero.is_empty() {
            return Plan::Nothing;
        }
        let runs = taken.runs();
        self.flushing = Some(taken);
        Plan::Out(OutPlan { zero, runs, valid_end })
    }

    /// The inline bytes of a file that is inline, or may become so again: an empty one with chunks of an author
    /// who died, which go when it does.
    fn inline_base(&self) -> Option<Bytes> {
        match &self.base {
            Base::Inline(bytes) => Some(bytes.clone()),
            Base::Chunks if self.server_size == 0 && self.valid_end == 0 && self.moving.is_none() => {
                Some(Bytes::new())
            }
            Base::Chunks => None,
        }
    }

    fn plan_inline(&mut self, scope: Scope, size: u64, limit: u64, base: &Bytes) -> Plan {
        if scope == Scope::Early || (self.dirty.is_empty() && !self.times_dirty) {
            return Plan::Nothing;
        }
        let taken = self.dirty.take(ByteRange { start: 0, end: limit });
        let end = taken.end().max(base.len() as u64).min(size);
        let mut data = BytesMut::zeroed(end as usize);
        let kept = base.len().min(data.len());
        data[..kept].copy_from_slice(&base[..kept]);
        for (at, bytes) in taken.look(ByteRange { start: 0, end }).into_iter().flatten() {
            data[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        }
        self.flushing = Some(taken);
        self.times_dirty = false;
        self.committing = true;
        let op = EditOp::WriteInline { ino: self.ino, data: data.freeze(), size, mtime: self.mtime };
        Plan::Inline(Edit { time: self.ctime, op })
    }

    fn take_early(&mut self) -> ExtentMap {
        let mut taken = ExtentMap::default();
        let long = self.geometry.early_run_bytes;
        let most = long * EARLY_RUNS_MAX;
        for run in self.dirty.run_ranges() {
            if run.len() < long || taken.len() >= most {
                continue;
            }
            // Servers keep a checksum for each block: an unfinished one waits for its other half.
            let end = run.end.min(run.start + most - taken.len());
            let end = end - end % BLOCK_BYTES;
            if end <= run.start {
                continue;
            }
            let part = self.dirty.take(ByteRange { start: run.start, end });
            taken.fill_from(part);
        }
        taken
    }

    /// Every byte of the plan was acknowledged.
    pub fn written_out(&mut self, plan: &OutPlan) {
        self.flushing = None;
        self.valid_end = self.valid_end.max(plan.valid_end);
        // A read that began since the write may have brought, or bring, what was there before.
        for run in &plan.runs {
            self.forget_clean(run.offset, run.offset + run.len());
        }
    }

    /// What has to be zeroed before the file may grow to `end`.
    pub fn exposed_by(&self, end: u64) -> Option<ByteRange> {
        let exposed = ByteRange { start: self.valid_end, end };
        (self.base == Base::Chunks && exposed.start < exposed.end).then_some(exposed)
    }

    /// The edit that makes what was written visible, `None` where the server has it all. Follows
    /// [`FileState::written_out`].
    pub fn begin_commit(&mut self) -> Option<Edit> {
        if self.base != Base::Chunks {
            return None;
        }
        let size = self.server_size.max(self.valid_end.min(self.size));
        let clear_inline = self.moving.is_some();
        let blocks_4k: Vec<(ChunkIndex, u32)> =
            std::mem::take(&mut self.chunks.new_blocks).into_iter().collect();
        if size == self.server_size && !clear_inline && blocks_4k.is_empty() && !self.times_dirty {
            return None;
        }
        self.times_dirty = false;
        self.committing = true;
        let op = EditOp::Extend { ino: self.ino, size, mtime: self.mtime, blocks_4k, clear_inline };
        Some(Edit { time: self.ctime, op })
    }

    /// The edit was committed; `attr` is what the server has now.
    pub fn committed(&mut self, edit: &Edit, attr: &Attr, at: Instant) {
        self.committing = false;
        self.server_size = attr.size;
        self.server_blocks = attr.blocks;
        match &edit.op {
            EditOp::WriteInline { data, .. } => {
                self.flushing = None;
                self.base = Base::Inline(data.clone());
            }
            EditOp::Extend { clear_inline: true, .. } => self.moving = None,
            _ => {}
        }
        self.flush_ended(at);
    }

    /// A flush ended: what came meanwhile waits for the next one.
    pub fn flush_ended(&mut self, at: Instant) {
        self.dirty_since = if self.has_news() { self.dirty_since.or(Some(at)) } else { None };
    }

    /// The flush under way was refused for good: what it took is lost, and the size shows it. Returns
    /// how many bytes.
    pub fn refused(&mut self, at: Instant) -> u64 {
        let mut lost = self.flushing.take().map_or(0, |taken| taken.len());
        if self.base == Base::Chunks {
            lost += self.valid_end.saturating_sub(self.server_size);
            self.valid_end = self.valid_end.min(self.server_size);
        }
        match self.moving.take() {
            // Nothing inline and chunks made: at the server the file is in chunks already.
            Some(bytes) if bytes.is_empty() => self.valid_end = self.server_size,
            // Chunks beside inline bytes are nobody's; the next flush overwrites or drops them.
            Some(bytes) => {
                self.base = Base::Inline(bytes);
                self.valid_end = 0;
            }
            None => {}
        }
        // What became of the chunks is not known: ask again, and sync all.
        self.chunks = Chunks::unknown(true);
        self.size = self.server_size.max(self.dirty.end());
        self.committing = false;
        self.times_dirty = !self.dirty.is_empty();
        self.forget_clean(0, u64::MAX);
        self.flush_ended(at);
        lost
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
        self.chunks = Chunks::default();
        self.size = self.server_size;
        self.valid_end = self.valid_end.min(self.server_size);
        self.retire();
        if had_news { lost.max(1) } else { 0 }
    }

    /// A `SetAttr` was committed. `size`: the one that was set.
    pub fn attr_set(&mut self, size: Option<u64>, attr: &Attr, at: Instant) {
        let before = self.server_size;
        self.server_size = attr.size;
        self.server_blocks = attr.blocks;
        self.mtime = attr.mtime;
        self.ctime = attr.ctime;
        if let Some(new) = size {
            self.resized(new, before);
        }
        self.flush_ended(at);
    }

    /// What a flush took that ended without an end is dirty again.
    fn take_back(&mut self) {
        if let Some(unfinished) = self.flushing.take() {
            self.dirty.fill_from(unfinished);
        }
    }

    fn resized(&mut self, new: u64, before: u64) {
        self.take_back();
        self.dirty.truncate(new);
        self.forget_clean(new, u64::MAX);
        self.size = new;
        let chunk_bytes = u64::from(self.geometry.chunk_size.bytes());
        // Chunks past the end are gone if the file became shorter; else somebody who died may have left some.
        let first = new.div_ceil(chunk_bytes).min(INDEX_END);
        self.chunks.forget(first, INDEX_END);
        if (new < before || new == 0) && first < INDEX_END {
            self.chunks.learn(first, INDEX_END, Vec::new(), self.geometry.chunk_size);
        }
        if new == 0 {
            self.base = Base::Inline(Bytes::new());
            self.valid_end = 0;
            self.moving = None;
            self.times_dirty = false;
            self.chunks.unsynced.clear();
            self.chunks.all_unsynced = false;
        }
        if let Base::Inline(bytes) = &mut self.base {
            bytes.truncate(usize::try_from(new).unwrap_or(usize::MAX));
        } else {
            // A shorter file is valid up to its end; a longer one was zeroed up to it before the commit.
            self.valid_end = new;
        }
    }

    /// An `Allocate` was committed; everything up to the new size was zeroed or written before.
    pub fn grown(&mut self, attr: &Attr) {
        self.server_size = attr.size;
        self.server_blocks = attr.blocks;
        self.mtime = self.mtime.max(attr.mtime);
        self.ctime = self.ctime.max(attr.ctime);
        self.size = self.size.max(attr.size);
        if self.base == Base::Chunks {
            self.valid_end = self.valid_end.max(attr.size);
        }
    }

    /// A `Punch` of the range was committed; nothing was dirty.
    pub fn punched(&mut self, range: ByteRange, attr: &Attr) {
        self.grown(attr);
        self.forget_clean(range.start, range.end);
        match &mut self.base {
            Base::Inline(bytes) => {
                let (start, end) = (range.start.min(bytes.len() as u64), range.end.min(bytes.len() as u64));
                let mut zeroed = BytesMut::from(&bytes[..]);
                zeroed[start as usize..end as usize].fill(0);
                *bytes = zeroed.freeze();
            }
            Base::Chunks => {
                let chunk_bytes = u64::from(self.geometry.chunk_size.bytes());
                self.chunks.forget(range.start / chunk_bytes, range.end.div_ceil(chunk_bytes));
            }
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

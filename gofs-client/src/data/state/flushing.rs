//! What a flush consists of: taken, written, committed, or refused.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use gofs_tree::{Attr, BLOCK_BYTES, ByteRange, ChunkIndex, Edit, EditOp};

use super::{Base, FileState, OutPlan, Plan, Scope};
use crate::data::extents::ExtentMap;

/// How many long runs' bytes one early write-out takes at most, so that its memory is free again soon.
const EARLY_RUNS_MAX: u64 = 8;

impl FileState {
    /// Takes what a flush has to write. The caller is the only flush of this file; what an earlier one
    /// took and did not finish is taken again.
    pub fn begin_flush(&mut self, scope: Scope) -> Plan {
        // Whoever waited for the flush under whose hands it was discarded: what it would write is somebody else's by now.
        if self.retired {
            return Plan::Nothing;
        }
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

    /// Whether the edit that shows what was written out removes bytes that are in the inode.
    pub fn moves_durable_bytes(&self) -> bool {
        self.moving.as_ref().is_some_and(|bytes| !bytes.is_empty())
    }

    /// The edit that makes what was written visible, `None` where the server has it all. Follows
    /// [`FileState::written_out`].
    pub fn begin_commit(&mut self) -> Option<Edit> {
        if self.retired || self.base != Base::Chunks {
            return None;
        }
        let size = self.server_size.max(self.valid_end.min(self.size));
        let clear_inline = self.moving.is_some();
        let blocks_4k: Vec<(ChunkIndex, u32)> =
            self.chunks.new_blocks.iter().map(|(index, (_, blocks_4k))| (*index, *blocks_4k)).collect();
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
            EditOp::Extend { clear_inline, .. } => {
                // None was written meanwhile: flushes come one after the other.
                self.chunks.new_blocks.clear();
                if *clear_inline {
                    self.moving = None;
                }
            }
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
        // Told with the next flush, unless they were refused alone, and would be again: the file is gone.
        let counted = if self.committing && lost == 0 { 0 } else { self.server_size };
        let chunk_bytes = u64::from(self.geometry.chunk_size.bytes());
        self.chunks.new_blocks.retain(|index, _| u64::from(index.0) * chunk_bytes < counted);
        match self.moving.take() {
            // Nothing inline and chunks made: at the server the file is in chunks already.
            Some(bytes) if bytes.is_empty() => self.valid_end = self.server_size,
            // Chunks beside inline bytes are nobody's; the next flush overwrites or drops them.
            Some(bytes) => {
                self.base = Base::Inline(bytes);
                self.valid_end = 0;
                self.chunks.unsynced.clear();
                self.chunks.new_blocks.clear();
            }
            None => {}
        }
        // What became of the chunks is not known: ask again, and sync all.
        self.chunks.forget_locations();
        self.size = self.server_size.max(self.dirty.end());
        self.committing = false;
        self.times_dirty = !self.dirty.is_empty();
        self.forget_clean(0, u64::MAX);
        self.flush_ended(at);
        lost
    }
}

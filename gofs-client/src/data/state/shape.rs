//! Changes of size and holes, after they were committed.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use gofs_tree::{Attr, ByteRange, Timestamp};

use super::{Base, FileState};
use crate::data::chunks::INDEX_END;

impl FileState {
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

    /// Times were set, by an edit of its own, on a file that may have unwritten bytes: these go with the new times. False
    /// where some are on their way with the old ones.
    pub fn adopt_times(&mut self, mtime: Option<Timestamp>, ctime: Timestamp) -> bool {
        if self.committing || self.flushing.is_some() {
            return false;
        }
        self.mtime = mtime.unwrap_or(self.mtime);
        self.ctime = self.ctime.max(ctime);
        true
    }

    /// What a flush took that ended without an end is dirty again.
    pub(super) fn take_back(&mut self) {
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

//! Changes of the size and of the shape of a file, in the right order with flushes: truncation, growth,
//! holes.

use std::sync::Arc;
use std::time::Instant;

use gofs_tree::{Attr, AttrChange, ByteRange, Edit, EditOp, FsError, Ino, Timestamp};

use super::FileData;
use super::chunks::spans;
use super::file::File;
use super::state::FileState;

impl FileData {
    /// Commits `SetAttr` in the right order with flushes: a truncation drops dirty bytes past the new end,
    /// a growing size zeroes stale bytes first, new times win over those of earlier writes.
    /// For every SetAttr with a size, and for every other one on a file with an `overlay`. Needs Write.
    pub async fn set_attr(
        self: &Arc<Self>,
        ino: Ino,
        change: AttrChange,
        now: Timestamp,
    ) -> Result<Attr, FsError> {
        let file = self.file(ino).ok_or(FsError::NotCached)?;
        let grows = change.size.map_or(0, |size| size.saturating_sub(file.look(FileState::size)));
        let room = self.room_for(grows).await?;
        self.on_own_task(move |data| async move {
            let done = data.set_attr_of(&file, change, now).await;
            drop(room);
            done
        })
        .await
    }

    /// Other attributes than the size change by an edit of their own, at `ctime`, maybe `mtime` with them: bytes that are
    /// not written yet follow with these times. False where bytes are on their way with others; then
    /// use [`FileData::set_attr`].
    pub fn adopt_times(&self, ino: Ino, mtime: Option<Timestamp>, ctime: Timestamp) -> bool {
        self.file(ino).is_none_or(|file| self.totals.change(&file, |state| state.adopt_times(mtime, ctime)))
    }

    async fn set_attr_of(&self, file: &File, change: AttrChange, now: Timestamp) -> Result<Attr, FsError> {
        let _flight = file.flight.lock().await;
        let epoch = file.look(FileState::epoch);
        let size = change.size;
        if let Some(new) = size {
            if new > file.look(FileState::max_size) {
                return Err(FsError::FileTooLarge);
            }
            // Nothing of an emptied file has to reach the servers.
            if new > 0 {
                self.flush_locked(file, new, false).await.map_err(|refusal| refusal.report(self, file))?;
            }
            self.expose(file, new, epoch).await?;
        }
        // Nobody may learn of chunks that are about to go.
        let _asking = file.chunked().map.lock().await;
        let before = file.look(FileState::server_size);
        let edit = Edit { time: now, op: EditOp::SetAttr { ino: file.ino, change } };
        let attr = self.meta.commit(file.ino, self.session_of(file, epoch)?, edit).await?;
        self.spend(attr.size.saturating_sub(before));
        self.change_live(file, epoch, |state| state.attr_set(size, &attr, Instant::now()))
            .map(|()| attr)
            .ok_or(FsError::Io)
    }

    /// Makes zero what would show if the file ended at `end`.
    async fn expose(&self, file: &File, end: u64, epoch: u64) -> Result<(), FsError> {
        match file.look(|state| state.exposed_by(end)) {
            Some(range) => self.zero(file, range, epoch).await,
            None => Ok(()),
        }
    }

    /// fallocate without KEEP_SIZE: the file is at least `end` bytes long afterwards. Needs Write.
    pub async fn allocate(self: &Arc<Self>, ino: Ino, end: u64, now: Timestamp) -> Result<Attr, FsError> {
        let file = self.file(ino).ok_or(FsError::NotCached)?;
        let room = self.room_for(end.saturating_sub(file.look(FileState::size))).await?;
        self.on_own_task(move |data| async move {
            let done = data.allocate_of(&file, end, now).await;
            drop(room);
            done
        })
        .await
    }

    async fn allocate_of(&self, file: &File, end: u64, now: Timestamp) -> Result<Attr, FsError> {
        let _flight = file.flight.lock().await;
        let epoch = file.look(FileState::epoch);
        if end > file.look(FileState::max_size) {
            return Err(FsError::FileTooLarge);
        }
        self.flush_locked(file, u64::MAX, false).await.map_err(|refusal| refusal.report(self, file))?;
        self.expose(file, end, epoch).await?;
        let before = file.look(FileState::server_size);
        let edit = Edit { time: now, op: EditOp::Allocate { ino: file.ino, end } };
        let attr = self.meta.commit(file.ino, self.session_of(file, epoch)?, edit).await?;
        self.spend(attr.size.saturating_sub(before));
        self.change_live(file, epoch, |state| state.grown(&attr)).map(|()| attr).ok_or(FsError::Io)
    }

    /// Makes `[start, end)` read as zeros, up to the end of the file, and frees what it can. Needs Write.
    pub async fn punch(
        self: &Arc<Self>,
        ino: Ino,
        start: u64,
        end: u64,
        now: Timestamp,
    ) -> Result<Attr, FsError> {
        if start >= end {
            return Err(FsError::Invalid);
        }
        let file = self.file(ino).ok_or(FsError::NotCached)?;
        let range = ByteRange { start, end };
        self.on_own_task(move |data| async move { data.punch_of(&file, range, now).await }).await
    }

    async fn punch_of(&self, file: &File, range: ByteRange, now: Timestamp) -> Result<Attr, FsError> {
        let _flight = file.flight.lock().await;
        let epoch = file.look(FileState::epoch);
        self.flush_locked(file, u64::MAX, false).await.map_err(|refusal| refusal.report(self, file))?;
        let size = file.look(FileState::size);
        let inside = ByteRange { start: range.start.min(size), end: range.end.min(size) };
        if file.look(FileState::in_chunks) && !inside.is_empty() {
            self.zero_edges(file, inside, epoch).await?;
            if let Some(edit) = self.totals.change(file, FileState::begin_commit)
                && let Err(error) = self.commit_flush(file, edit, epoch).await
            {
                return Err(self.refuse(file, epoch, error).report(self, file));
            }
        }
        let _asking = file.chunked().map.lock().await;
        let op = EditOp::Punch { ino: file.ino, start: range.start, end: range.end };
        let edit = Edit { time: now, op };
        let attr = self.meta.commit(file.ino, self.session_of(file, epoch)?, edit).await?;
        self.change_live(file, epoch, |state| state.punched(inside, &attr)).map(|()| attr).ok_or(FsError::Io)
    }

    /// Zeroes the parts of a hole that do not cover a chunk; the edit drops the others.
    async fn zero_edges(&self, file: &File, hole: ByteRange, epoch: u64) -> Result<(), FsError> {
        let chunk_bytes = u64::from(self.config.chunk_size.bytes());
        // A hole up to the end of the file takes the whole last chunk.
        let to_end = hole.end == file.look(FileState::size);
        let hole_end = if to_end { hole.end.next_multiple_of(chunk_bytes) } else { hole.end };
        let hole = ByteRange { start: hole.start, end: hole_end };
        let first_end = (hole.start - hole.start % chunk_bytes + chunk_bytes).min(hole.end);
        let last_start = (hole.end - hole.end % chunk_bytes).max(first_end);
        for edge in
            [ByteRange { start: hole.start, end: first_end }, ByteRange { start: last_start, end: hole.end }]
        {
            for span in spans(edge, self.config.chunk_size) {
                if u64::from(span.len) < chunk_bytes {
                    self.zero(file, edge, epoch).await?;
                    // A read under way may have seen half of it.
                    self.totals.change(file, |state| state.forget_clean(edge.start, edge.end));
                }
            }
        }
        Ok(())
    }
}

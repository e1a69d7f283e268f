//! Writes: into memory, as long as there is room in it and on the servers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use gofs_tree::{FsError, Ino, Timestamp};

use super::FileData;
use super::file::File;
use crate::slices::Room;

/// With less space left than this, and twice what is on its way, a file only grows as far as the servers
/// have taken it, bytes.
const TIGHT_BYTES: u64 = 64 << 20;

impl FileData {
    /// Takes the bytes at `offset`, or at the end of the file (`None`: append), and returns where they went.
    /// Waits while too much is dirty. Needs Write for the whole call.
    pub async fn write(
        self: &Arc<Self>,
        ino: Ino,
        offset: Option<u64>,
        data: Bytes,
        now: Timestamp,
    ) -> Result<u64, FsError> {
        let file = self.file(ino).ok_or(FsError::NotCached)?;
        let len = data.len() as u64;
        self.wait_for_room(len).await;
        let grows = file.look(|state| match offset {
            Some(offset) => offset.saturating_add(len).saturating_sub(state.size()),
            None => len,
        });
        let room = self.room_for(grows).await?;
        if room.as_ref().is_some_and(|room| room.is_through() || self.is_tight(len)) {
            let file = file.clone();
            let written = move |this: Arc<Self>| async move {
                let written = this.write_through(&file, offset, data, now).await;
                drop(room);
                written
            };
            return self.on_own_task(written).await;
        }
        let (at, early) = self.totals.change(&file, |state| {
            let at = state.write(offset, data, now, Instant::now())?;
            Ok::<_, FsError>((at, state.is_early(at)))
        })?;
        // Counted as growth by now.
        drop(room);
        if early {
            self.start_early(&file);
        }
        Ok(at)
    }

    /// Leave for a file to grow by so much, at once where the slice of the quota has it.
    pub(super) async fn room_for(&self, bytes: u64) -> Result<Option<Room>, FsError> {
        if bytes == 0 {
            return Ok(None);
        }
        match self.reserve(bytes) {
            Some(room) => Ok(Some(room)),
            None => self.meta.make_room(bytes).await.map(Some),
        }
    }

    /// The same, where the slice has it.
    pub fn reserve(&self, bytes: u64) -> Option<Room> {
        self.config.slices.reserve(bytes, || self.growth())
    }

    /// What files have grown by that the servers do not know of, bytes.
    pub fn growth(&self) -> u64 {
        self.totals.growth_bytes.load(Ordering::Acquire)
    }

    async fn wait_for_room(&self, len: u64) {
        loop {
            let room = self.totals.room.notified();
            let dirty = self.totals.dirty_bytes.load(Ordering::Acquire);
            if dirty == 0 || dirty + len <= self.config.dirty_bytes {
                return;
            }
            self.kick.notify_one();
            room.await;
        }
    }

    fn is_tight(&self, len: u64) -> bool {
        let left = self.space_left.load(Ordering::Acquire);
        let growth = self.totals.growth_bytes.load(Ordering::Acquire).saturating_add(len);
        left < growth.saturating_mul(2).saturating_add(TIGHT_BYTES)
    }

    /// What the namespace can still take (quota, free space), bytes: when little is left a write that makes a file
    /// longer goes to the servers before it returns, so that it can be refused.
    pub fn set_space_left(&self, bytes: u64) {
        self.space_left.store(bytes, Ordering::Release);
    }

    /// A file has grown at the server by so much since the space was last told.
    pub(super) fn spend(&self, bytes: u64) {
        self.config.slices.spend(bytes);
        let left = |left: u64| (left != u64::MAX).then(|| left.saturating_sub(bytes));
        // Err: nothing to subtract from.
        let _ = self.space_left.fetch_update(Ordering::AcqRel, Ordering::Acquire, left);
    }

    /// A write that is refused by the servers, if they refuse it, and not later.
    async fn write_through(
        &self,
        file: &File,
        offset: Option<u64>,
        data: Bytes,
        now: Timestamp,
    ) -> Result<u64, FsError> {
        let (own, _flight) = (data.len() as u64, file.flight.lock().await);
        // Earlier bytes first: if they are refused that is told at fsync, too; they were accepted once.
        self.flush_locked(file, u64::MAX, false).await.map_err(|refusal| refusal.report(self, file))?;
        let at = self.totals.change(file, |state| state.write(offset, data, now, Instant::now()))?;
        let flushed = self.flush_locked(file, u64::MAX, false).await;
        flushed.map_err(|refusal| refusal.report_others(own, self, file))?;
        Ok(at)
    }
}

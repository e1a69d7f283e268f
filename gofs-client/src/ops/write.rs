//! Writing files.

use std::sync::Arc;

use bytes::Bytes;
use gofs_tree::{FsError, Ino, LeaseMode};

use crate::client::Client;
use crate::clock::wall_time;
use crate::core::{Core, Hold};
use crate::handle::FileHandle;
use crate::lease::{LeaseTable, LockedPages};
use crate::session::Generation;

impl Client {
    /// Takes all of `data` at `offset`, or at the end of the file if `append`, whichever way the file was opened:
    /// fcntl(2) may have changed that; then `offset` is where the kernel takes the end to be. The bytes go to servers
    /// later, unless the mount or the file is synchronous.
    pub async fn write(
        &self,
        file: &FileHandle,
        offset: u64,
        append: bool,
        data: Bytes,
    ) -> Result<u32, FsError> {
        let ino = file.ino();
        let len = u32::try_from(data.len()).map_err(|_| FsError::Invalid)?;
        let through_cache = !file.flags().direct && !file.flags().append;
        let _hold = match self.core.hold_at_once(ino, LeaseMode::Write) {
            Some(hold) => hold,
            None => {
                let last = offset.saturating_add(u64::from(len)).saturating_sub(1);
                // The kernel locks at most the last page of a request, and none of one that goes around its cache.
                let _page = through_cache.then(|| self.core.wait_with(ino, LockedPages::of(last, 1)));
                self.core.hold(ino, LeaseMode::Write).await?
            }
        };
        let at = self.core.put(ino, (!append).then_some(offset), data).await?;
        // Where the kernel has put the bytes, and where it may have pages without them.
        let misplaced = (through_cache && at != offset).then_some(offset);
        let outdated = (!through_cache || at != offset) && self.core.table.lock().may_have_pages(ino);
        for start in misplaced.into_iter().chain(outdated.then_some(at)) {
            Box::pin(self.core.forget_written(ino, start, u64::from(len))).await;
        }
        if self.core.config.sync || file.flags().sync {
            let flushed = self.core.data.flush(ino, true).await;
            // Another flush may have taken these bytes, and lost them.
            flushed.and(self.core.data.take_error(ino, &file.0.errors))?;
        }
        Ok(len)
    }

    /// A page of a memory map that the kernel writes back: at its offset, also where the file was opened for append.
    /// It never waits for a recall that waits for it. What a program changed in a session that has ended is lost, as
    /// everything else that was not written then: others may have written there since.
    pub async fn write_page(&self, file: &FileHandle, offset: u64, data: Bytes) -> Result<u32, FsError> {
        let ino = file.ino();
        let len = u32::try_from(data.len()).map_err(|_| FsError::Invalid)?;
        let core = &self.core;
        let generation = core.generation();
        if core.table.lock().is_void(ino) {
            return Err(core.page_lost(ino));
        }
        let hold = tokio::select! {
            biased;
            hold = core.hold(ino, LeaseMode::Write) => Some(hold?),
            () = core.must_park(ino) => None,
        };
        match hold {
            Some(_hold) => core.put_page(ino, offset, data, generation).await?,
            None => core.park(ino, offset, data)?,
        }
        Ok(len)
    }
}

impl Core {
    /// Takes bytes in, under Write.
    async fn put(self: &Arc<Self>, ino: Ino, offset: Option<u64>, data: Bytes) -> Result<u64, FsError> {
        self.be_loaded(ino).await?;
        self.data.write(ino, offset, data, wall_time()).await
    }

    /// As `put`, of a page that was changed in the session of that generation, as far as the file goes: a memory map makes
    /// none longer, and another mount may have cut it.
    async fn put_page(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        mut data: Bytes,
        generation: Generation,
    ) -> Result<(), FsError> {
        self.be_loaded(ino).await?;
        // Marked before the generation moves on.
        if self.table.lock().is_void(ino) || self.generation() != generation {
            return Err(self.page_lost(ino));
        }
        let left = self.data.size(ino).map_or(0, |size| size.saturating_sub(offset));
        data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        match self.data.write(ino, Some(offset), data, wall_time()).await {
            Ok(_) => Ok(()),
            // Lost with its lease in this moment.
            Err(FsError::NotCached) => Err(self.page_lost(ino)),
            Err(error) => Err(error),
        }
    }

    /// A page that was changed under a lease that is gone is not written: every open handle is told.
    fn page_lost(&self, ino: Ino) -> FsError {
        tracing::error!(%ino, "a page of a memory map was not written back before the lease on its file was lost");
        self.data.fail(ino, FsError::Io);
        FsError::Io
    }

    async fn be_loaded(self: &Arc<Self>, ino: Ino) -> Result<(), FsError> {
        if !self.data.is_loaded(ino) {
            drop(self.fetch(ino, LeaseMode::Write).await?);
        }
        Ok(())
    }

    /// Keeps Write on a file whose contents are known.
    pub async fn hold_loaded(self: &Arc<Self>, ino: Ino) -> Result<Hold, FsError> {
        let hold = self.hold(ino, LeaseMode::Write).await?;
        self.be_loaded(ino).await?;
        Ok(hold)
    }

    async fn must_park(&self, ino: Ino) {
        self.wait_hard(|| self.table.lock().must_park(ino).then_some(())).await;
    }

    fn park(self: &Arc<Self>, ino: Ino, offset: u64, data: Bytes) -> Result<(), FsError> {
        let mut table = self.table.lock();
        if table.is_void(ino) {
            drop(table);
            return Err(self.page_lost(ino));
        }
        if table.park(ino, offset, data) {
            let core = self.clone();
            self.runtime.spawn(async move { core.write_parked(ino).await });
        }
        Ok(())
    }

    /// Writes parked pages, in order, when the recall is over.
    async fn write_parked(self: Arc<Self>, ino: Ino) {
        loop {
            let written = async {
                let _hold = self.hold_by(ino, LeaseMode::Write, LeaseTable::hold_before_parked).await?;
                // Only now: a lost session takes them away.
                let (next, generation) = {
                    let table = self.table.lock();
                    (table.next_parked(ino), self.generation())
                };
                match next {
                    Some((offset, data)) => self.put_page(ino, offset, data, generation).await.map(|()| true),
                    None => Ok(false),
                }
            };
            let more = match written.await {
                Ok(written) => written && self.table.lock().unpark(ino),
                Err(error) => {
                    tracing::error!(%ino, %error, "pages of a memory map could not be written and are lost");
                    self.table.lock().drop_parked(ino);
                    self.data.fail(ino, error);
                    false
                }
            };
            self.changed.notify_waiters();
            if !more {
                return;
            }
        }
    }

    /// Waits until the inode has no parked pages.
    pub async fn unparked(&self, ino: Ino) -> Result<(), FsError> {
        self.wait_for(|table| (!table.is_parked(ino)).then_some(())).await
    }
}

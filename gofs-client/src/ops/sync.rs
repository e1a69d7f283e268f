//! What must not be lost: flush, fsync.

use std::collections::BTreeSet;

use futures_util::stream::{self, StreamExt};
use gofs_tree::{FsError, Ino, LeaseMode};

use crate::client::Client;
use crate::core::Hold;
use crate::handle::FileHandle;

/// Files that other mounts used meanwhile and that are synced at once.
const SYNCS_MAX: usize = 256;

impl Client {
    /// close(2): tells once what could not be written back, and whoever may write also of changes that are lost. Does not wait for servers, but for pages of memory maps that
    /// a recall held up: others see them from now on.
    pub async fn flush(&self, file: &FileHandle) -> Result<(), FsError> {
        self.core.unparked(file.ino()).await?;
        let told = self.core.data.take_error(file.ino(), &file.0.errors);
        // A reader has changed nothing, and its error would tell nobody.
        if file.flags().write { told.and(self.core.told_of_lost_edits(&file.0.lost_edits)) } else { told }
    }

    /// The file's bytes are on stable storage on every replica, and its attributes committed; so are its name and the
    /// directories above, because the log of edits is one and is committed up to here. A change that was lost since the
    /// handle last asked is an error, whichever inode it was of.
    pub async fn fsync(&self, file: &FileHandle, datasync: bool) -> Result<(), FsError> {
        // The size and times that fdatasync may leave out travel with what it must not.
        let _ = datasync;
        self.core.unparked(file.ino()).await?;
        let flushed = self.sync_bytes(file.ino()).await;
        let committed = self.core.commit_all().await;
        let told = self.core.data.take_error(file.ino(), &file.0.errors);
        flushed.and(committed).and(told).and(self.core.told_of_lost_edits(&file.0.lost_edits))
    }

    async fn sync_bytes(&self, ino: Ino) -> Result<(), FsError> {
        let mut known = None;
        loop {
            let syncing = self.core.data.sync(ino);
            // What the sync needs it has now, and servers that do not answer must not keep other mounts from the file.
            drop(known.take());
            if let Some(syncing) = syncing {
                return syncing.await;
            }
            known = match self.be_known(ino).await {
                Ok(hold) => Some(hold),
                // Of what is gone nothing can be missed.
                Err(FsError::NotFound | FsError::Stale) => {
                    self.core.data.forget_unsynced(ino);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
        }
    }

    /// What this mount wrote under a lease that is gone by now is with the ChunkServers, but maybe not on stable storage: of a file
    /// of which nothing is known any more, all chunks are to be synced, so they have to be known.
    async fn be_known(&self, ino: Ino) -> Result<Hold, FsError> {
        let hold = self.core.hold(ino, LeaseMode::Read).await?;
        if !self.core.data.is_loaded(ino) {
            drop(self.core.fetch(ino, LeaseMode::Read).await?);
        }
        Ok(hold)
    }

    /// Every change of the tree that was made before is committed. One that was lost is an error, once.
    pub async fn fsync_dir(&self, _ino: Ino) -> Result<(), FsError> {
        self.core.commit_all().await?;
        self.core.told_of_lost_edits(&self.core.lost_edits_told)
    }

    /// Everything unwritten of all files, and what was written and not synced, onto stable storage.
    pub async fn sync_all(&self) -> Result<(), FsError> {
        self.core.wait_for(|table| table.parked().is_empty().then_some(())).await?;
        // Before, too: one that is loaded meanwhile would be among neither.
        let mut others = BTreeSet::from_iter(self.core.data.unsynced_and_not_loaded());
        let mut synced = self.core.data.flush_all(true).await;
        others.extend(self.core.data.unsynced_and_not_loaded());
        let mut syncs = stream::iter(others).map(|ino| self.sync_bytes(ino)).buffer_unordered(SYNCS_MAX);
        while let Some(result) = syncs.next().await {
            synced = synced.and(result);
        }
        synced.and(self.core.commit_all().await)
    }
}

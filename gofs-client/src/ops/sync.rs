//! What must not be lost: flush, fsync.

use gofs_tree::{FsError, Ino};

use crate::client::Client;
use crate::handle::FileHandle;

impl Client {
    /// close(2): tells once what could not be written back. Does not wait for servers, but for pages of memory maps that
    /// a recall held up: others see them from now on.
    pub async fn flush(&self, file: &FileHandle) -> Result<(), FsError> {
        self.core.unparked(file.ino()).await?;
        self.core.data.take_error(file.ino(), &file.0.errors)
    }

    /// The file's bytes are on stable storage on every replica, and its attributes committed. Its name and the
    /// directories above are already: every edit is, before it is answered.
    pub async fn fsync(&self, file: &FileHandle, datasync: bool) -> Result<(), FsError> {
        // The size and times that fdatasync may leave out travel with what it must not.
        let _ = datasync;
        self.core.unparked(file.ino()).await?;
        let flushed = self.core.data.flush(file.ino(), true).await;
        self.core.session.edits_answered().await;
        let told = self.core.data.take_error(file.ino(), &file.0.errors);
        flushed.and(told)
    }

    /// Every change of the tree that was begun before is committed.
    pub async fn fsync_dir(&self, _ino: Ino) -> Result<(), FsError> {
        self.core.session.edits_answered().await;
        Ok(())
    }

    /// Everything unwritten of all files, onto stable storage.
    pub async fn sync_all(&self) -> Result<(), FsError> {
        self.core.wait_for(|table| table.parked().is_empty().then_some(())).await?;
        let flushed = self.core.data.flush_all(true).await;
        self.core.session.edits_answered().await;
        flushed
    }
}

//! Space inside of files: fallocate, SEEK_DATA, SEEK_HOLE.

use gofs_tree::{FILE_SIZE_MAX, FsError, LeaseMode};

use crate::client::Client;
use crate::clock::wall_time;
use crate::handle::{Fallocate, FileHandle, Whence};

impl Client {
    /// fallocate(2). Space past the end that the size shall not show is not reserved, because space is counted by
    /// sizes; NoSpace where there is not even room for it now.
    pub async fn fallocate(
        &self,
        file: &FileHandle,
        what: Fallocate,
        offset: u64,
        len: u64,
    ) -> Result<(), FsError> {
        let ino = file.ino();
        if len == 0 {
            return Err(FsError::Invalid);
        }
        let end = offset.checked_add(len).filter(|end| *end <= FILE_SIZE_MAX).ok_or(FsError::FileTooLarge)?;
        if what == (Fallocate::Allocate { keep_size: true }) {
            let size = self.getattr(ino).await?.value.size;
            let more = end.saturating_sub(size);
            let fits = more == 0 || more <= self.core.statfs().await?.free_bytes;
            return if fits { Ok(()) } else { Err(FsError::NoSpace) };
        }
        let _hold = self.core.hold_loaded(ino).await?;
        let data = &self.core.data;
        if matches!(what, Fallocate::Punch | Fallocate::Zero { .. }) {
            data.punch(ino, offset, end, wall_time()).await?;
        }
        if matches!(what, Fallocate::Allocate { .. } | Fallocate::Zero { keep_size: false }) {
            data.allocate(ino, end, wall_time()).await?;
        }
        Ok(())
    }

    /// lseek(2) with SEEK_DATA and SEEK_HOLE. NoData at or past the end of the file, and where no data follows.
    pub async fn seek(&self, file: &FileHandle, offset: u64, whence: Whence) -> Result<u64, FsError> {
        let ino = file.ino();
        let _hold = self.core.hold(ino, LeaseMode::Read).await?;
        if !self.core.data.is_loaded(ino) {
            drop(self.core.fetch(ino, LeaseMode::Read).await?);
        }
        self.core.data.seek(ino, offset, whence == Whence::Hole).await
    }
}

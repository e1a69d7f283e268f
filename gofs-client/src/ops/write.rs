//! Writing files.

use std::sync::Arc;

use bytes::Bytes;
use gofs_tree::{FsError, Ino, LeaseMode};

use crate::client::Client;
use crate::clock::wall_time;
use crate::core::{Core, Hold};
use crate::handle::FileHandle;

impl Client {
    /// Takes all of `data` at `offset`, or at the end of the file where it was opened for append. The bytes go to
    /// servers later, unless the mount or the file is synchronous.
    pub async fn write(&self, file: &FileHandle, offset: u64, data: Bytes) -> Result<u32, FsError> {
        let offset = (!file.flags().append).then_some(offset);
        self.put(file, offset, data).await
    }

    /// A page that the kernel writes back (a memory map's): at its offset, also where the file was opened for append.
    pub async fn write_page(&self, file: &FileHandle, offset: u64, data: Bytes) -> Result<u32, FsError> {
        self.put(file, Some(offset), data).await
    }

    async fn put(&self, file: &FileHandle, offset: Option<u64>, data: Bytes) -> Result<u32, FsError> {
        let ino = file.ino();
        let len = u32::try_from(data.len()).map_err(|_| FsError::Invalid)?;
        let _hold = self.core.hold_loaded(ino).await?;
        self.core.data.write(ino, offset, data, wall_time()).await?;
        if self.core.config.sync || file.flags().sync {
            self.core.data.flush(ino, true).await?;
        }
        Ok(len)
    }
}

impl Core {
    /// Keeps Write on a file whose contents are known.
    pub async fn hold_loaded(self: &Arc<Self>, ino: Ino) -> Result<Hold, FsError> {
        let hold = self.hold(ino, LeaseMode::Write).await?;
        if !self.data.is_loaded(ino) {
            drop(self.fetch(ino, LeaseMode::Write).await?);
        }
        Ok(hold)
    }
}

//! Opening and closing files.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use gofs_tree::{AttrChange, FsError, Ino, LeaseMode};

use crate::client::Client;
use crate::clock::BootTime;
use crate::core::Core;
use crate::core::lease::Again;
use crate::data::ErrorCursor;
use crate::handle::{FileHandle, OpenFlags};
use crate::lease::Opening;

/// An open file: counted until dropped.
pub(crate) struct OpenFile {
    pub ino: Ino,
    pub flags: OpenFlags,
    /// Which failed write-backs this open has been told of.
    pub errors: ErrorCursor,
    /// Edits that were lost, as far as it knows.
    pub lost_edits: AtomicU64,
    core: Weak<Core>,
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenFile({}, {:?})", self.ino, self.flags)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            core.close(self.ino);
        }
    }
}

impl Client {
    /// Opens a file that exists. Permissions were checked where the caller's identity is known.
    /// NotFound or Stale where it is gone.
    pub async fn open(&self, ino: Ino, flags: OpenFlags) -> Result<FileHandle, FsError> {
        self.count_open(ino).await?;
        let handle = self.handle(ino, flags);
        if flags.truncate {
            Box::pin(self.setattr(ino, AttrChange { size: Some(0), ..AttrChange::default() })).await?;
        }
        Ok(handle)
    }

    /// Closes. Nothing is waited for; see [`Client::flush`] for what failed. Dropping the last clone does the same.
    pub async fn release(&self, file: FileHandle) {
        drop(file);
    }

    /// Counts an open, under a lease, so that the server need not know.
    pub(super) async fn count_open(&self, ino: Ino) -> Result<(), FsError> {
        let mut again = Again::default();
        loop {
            let opening = self
                .core
                .wait_for(|table| match table.open(ino, BootTime::now()) {
                    Opening::Wait => None,
                    opening => Some(opening),
                })
                .await?;
            if opening == Opening::Opened {
                return Ok(());
            }
            again.turn(&self.core).await;
            drop(self.core.fetch(ino, LeaseMode::Read).await?);
        }
    }

    /// A handle for an open that is counted.
    pub(super) fn handle(&self, ino: Ino, flags: OpenFlags) -> FileHandle {
        if !flags.direct {
            self.core.table.lock().opened_through_pages(ino);
        }
        let errors = self.core.data.error_cursor(ino);
        let lost_edits = AtomicU64::new(self.core.lost_edits.load(Ordering::Acquire));
        FileHandle(Arc::new(OpenFile { ino, flags, errors, lost_edits, core: Arc::downgrade(&self.core) }))
    }
}

//! A mark in a data directory: what was written and not synced may be lost, though the host did not go down.
//!
//! Left where a directory fails. The kernel tells of a write that did not reach the disk once, so a process that is
//! started later would take what is in the page cache for what is on the disk. The mark is an empty file, and goes
//! when the index says what is in doubt.

use std::io;
use std::path::Path;

use super::file::{StoreFile, Watch, sync_dir};

const FILE: &str = "unsynced-writes-may-be-lost";

/// Whether the mark is there.
pub fn is_marked(dir: &Path) -> io::Result<bool> {
    dir.join(FILE).try_exists()
}

/// Leaves the mark, if the disk can still do that.
pub fn mark(dir: &Path, watch: &Watch) {
    let marked = match StoreFile::create(&dir.join(FILE), watch) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_dir(dir, watch),
    };
    if let Err(error) = marked {
        tracing::warn!(disk = %dir.display(), %error, "that unsynced writes may be lost cannot be noted");
    }
}

/// Takes the mark away. Should it be there again after a crash, there is more doubt than need be.
pub fn unmark(dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

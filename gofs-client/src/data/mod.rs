//! The contents of files that this client caches or has changed.
//!
//! Owns dirty bytes, clean bytes, chunk locations and the connections to ChunkServers; knows
//! nothing of leases: whoever calls holds them. A read sees every write before it. Bytes are
//! acknowledged by every current replica before the size that shows them is committed. What
//! cannot be written is reported once to every open handle and counted, never lost silently.
//! A crash of this process loses what was not flushed, and nothing else.

mod config;
mod meta;

use std::sync::Arc;

use bytes::Bytes;
use gofs_tree::{Attr, AttrChange, FsError, Ino, Timestamp};

pub use config::DataConfig;
pub use meta::{BoxFuture, ChunkLocation, Content, FileMeta, LocalAttr, Replica};

/// What waits to be written, and what was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtyStats {
    /// Files with bytes, size or times that the servers do not have yet.
    pub files: u64,
    /// Bytes not yet acknowledged by ChunkServers or committed inline.
    pub bytes: u64,
    /// Bytes that could not be written, since the start.
    pub lost_bytes: u64,
}

/// How far an open handle has seen the errors of its file. One for each open.
#[derive(Debug, Default)]
pub struct ErrorCursor(#[allow(dead_code)] std::sync::atomic::AtomicU64);

/// The contents of the files of one mount.
pub struct FileData {
    config: DataConfig,
    meta: Arc<dyn FileMeta>,
}

#[allow(unused_variables, reason = "bodies follow")]
impl FileData {
    /// Starts the background flusher on the current tokio runtime; it ends with the last handle.
    pub fn new(config: DataConfig, meta: Arc<dyn FileMeta>) -> Arc<Self> {
        Arc::new(FileData { config, meta })
    }

    /// After a grant: what the server says of the file. Local state that is newer stays.
    /// Must precede every other call on the inode, and follow `drop_clean` where the lease was lost between.
    pub fn load(&self, ino: Ino, content: Content) {}

    /// Whether `load` was called since the lease was last lost.
    pub fn is_loaded(&self, ino: Ino) -> bool {
        false
    }

    /// `len` bytes from `offset`, fewer only at the end of the file. `NotCached` where nothing is loaded.
    pub async fn read(self: &Arc<Self>, ino: Ino, offset: u64, len: u32) -> Result<Vec<Bytes>, FsError> {
        Err(FsError::NotSupported)
    }

    /// As `read`, of a file on which no lease is held: nothing is cached.
    pub async fn read_once(
        self: &Arc<Self>,
        ino: Ino,
        content: Content,
        offset: u64,
        len: u32,
    ) -> Result<Vec<Bytes>, FsError> {
        Err(FsError::NotSupported)
    }

    /// Takes the bytes at `offset`, or at the end of the file (`None`: append), and returns where they went.
    /// Waits while too much is dirty. Needs Write for the whole call.
    pub async fn write(
        self: &Arc<Self>,
        ino: Ino,
        offset: Option<u64>,
        data: Bytes,
        now: Timestamp,
    ) -> Result<u64, FsError> {
        Err(FsError::NotSupported)
    }

    /// Attributes that are newer here than at the server.
    pub fn overlay(&self, ino: Ino) -> Option<LocalAttr> {
        None
    }

    /// Writes all dirty bytes and commits size and times; `durable`: on stable storage on every replica,
    /// bytes flushed earlier included. Nothing to do for a file that is not loaded. An error is also sticky.
    pub async fn flush(self: &Arc<Self>, ino: Ino, durable: bool) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }

    /// `flush` of every file; the first error after all were tried.
    pub async fn flush_all(self: &Arc<Self>, durable: bool) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }

    /// The lease is lost: forgets clean bytes and locations. Dirty ones were flushed before (else they are
    /// kept, and the file stays loaded).
    pub fn drop_clean(&self, ino: Ino) {}

    /// The session was fenced: forgets everything; true if unflushed changes were lost, which is then
    /// a sticky error.
    pub fn discard(&self, ino: Ino) -> bool {
        false
    }

    /// `discard` of every file; the number of files that lost something.
    pub fn discard_all(&self) -> u64 {
        0
    }

    /// For a handle that is being opened.
    pub fn error_cursor(&self, ino: Ino) -> ErrorCursor {
        ErrorCursor::default()
    }

    /// The error that this handle has not yet been told (fsync, close), told once.
    pub fn take_error(&self, ino: Ino, cursor: &ErrorCursor) -> Result<(), FsError> {
        Ok(())
    }

    /// Commits `SetAttr` in the right order with flushes: a truncation drops dirty bytes past the new end,
    /// a growing size zeroes stale bytes first, new times win over those of earlier writes.
    /// For every SetAttr with a size, and for every other one on a file with an `overlay`. Needs Write.
    pub async fn set_attr(
        self: &Arc<Self>,
        ino: Ino,
        change: AttrChange,
        now: Timestamp,
    ) -> Result<Attr, FsError> {
        Err(FsError::NotSupported)
    }

    /// Makes `[start, end)` read as zeros, up to the end of the file, and frees what it can. Needs Write.
    pub async fn punch(
        self: &Arc<Self>,
        ino: Ino,
        start: u64,
        end: u64,
        now: Timestamp,
    ) -> Result<Attr, FsError> {
        Err(FsError::NotSupported)
    }

    /// fallocate without KEEP_SIZE: the file is at least `end` bytes long afterwards. Needs Write.
    pub async fn allocate(self: &Arc<Self>, ino: Ino, end: u64, now: Timestamp) -> Result<Attr, FsError> {
        Err(FsError::NotSupported)
    }

    /// lseek: the next byte of data (`hole` false) or of a hole (`hole` true) at or after `offset`.
    /// `NoData` at or past the end of the file, or where no data follows. Flushes first.
    pub async fn seek(self: &Arc<Self>, ino: Ino, offset: u64, hole: bool) -> Result<u64, FsError> {
        Err(FsError::NotSupported)
    }

    /// Copies up to `len` bytes and returns how many (fewer at the end of `from`). Needs Read on `from`, Write on `to`.
    pub async fn copy_range(
        self: &Arc<Self>,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
        now: Timestamp,
    ) -> Result<u64, FsError> {
        Err(FsError::NotSupported)
    }

    /// What the namespace can still take (quota, free space), bytes: when little is left a write that makes a file
    /// longer goes to the servers before it returns, so that it can be refused.
    pub fn set_space_left(&self, bytes: u64) {}

    /// For status.
    pub fn dirty(&self) -> DirtyStats {
        let _ = (&self.config, &self.meta);
        DirtyStats::default()
    }
}

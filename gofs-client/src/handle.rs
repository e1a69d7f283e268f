//! What is open, and the small types of operations' arguments and results.

use std::sync::Arc;

use gofs_tree::{Attr, FileType, Ino};

use crate::Cached;
use crate::lease::KernelListing;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Every write goes to the end of the file (O_APPEND).
    pub append: bool,
    /// Emptied when opened (O_TRUNC).
    pub truncate: bool,
    /// Around the kernel's page cache (O_DIRECT, and where the mount thinks it best).
    pub direct: bool,
    /// Every write is durable before it returns (O_SYNC, O_DSYNC).
    pub sync: bool,
}

/// One open of a file. Clones are the same open; [`crate::Client::release`] or the last drop closes it.
#[derive(Clone, Debug)]
pub struct FileHandle(pub(crate) Arc<crate::ops::OpenFile>);

/// One open of a directory: a listing that is filled page by page and made anew at index 0.
#[derive(Clone, Debug)]
pub struct DirHandle(pub(crate) Arc<crate::ops::OpenDir>);

impl FileHandle {
    /// The file.
    pub fn ino(&self) -> Ino {
        self.0.ino
    }

    /// How it was opened.
    pub fn flags(&self) -> OpenFlags {
        self.0.flags
    }
}

impl DirHandle {
    /// The directory.
    pub fn ino(&self) -> Ino {
        self.0.ino
    }

    /// What the kernel may do with its copy of the directory's listing for this handle.
    pub fn kernel_listing(&self) -> KernelListing {
        self.0.kernel_listing
    }
}

/// An entry of a listing; `.` and `..` come first.
#[derive(Debug)]
pub struct DirItem {
    /// Index of the entry after this one: what to pass to go on behind it.
    pub next: u64,
    /// Bytes of the name.
    pub name: Vec<u8>,
    /// The inode.
    pub ino: Ino,
    /// Its type.
    pub file_type: FileType,
    /// Its attributes where they were asked for and may be told; never for `.` and `..`.
    pub attr: Option<Cached<Attr>>,
}

/// What [`crate::Client::seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The next byte that was written.
    Data,
    /// The next byte that was not, or the end of the file.
    Hole,
}

/// What [`crate::Client::fallocate`] does with the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// The file is at least as long as the range's end, unless `keep_size`.
    Allocate {
        /// The size stays (FALLOC_FL_KEEP_SIZE).
        keep_size: bool,
    },
    /// The range reads as zeros and takes no space; the size stays (FALLOC_FL_PUNCH_HOLE).
    Punch,
    /// The range reads as zeros (FALLOC_FL_ZERO_RANGE).
    Zero {
        /// The size stays.
        keep_size: bool,
    },
}

/// A lock on bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLock {
    /// Who holds it: the kernel's lock owner.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; `u64::MAX` = to the end, however long the file gets.
    pub end: u64,
    /// Shared otherwise.
    pub exclusive: bool,
    /// The process that asked, for F_GETLK.
    pub pid: u32,
}

/// What `statfs` shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes that the namespace may hold.
    pub total_bytes: u64,
    /// Bytes of these that are free.
    pub free_bytes: u64,
    /// Inodes that the namespace may hold.
    pub total_inodes: u64,
    /// Of these free.
    pub free_inodes: u64,
}

//! What `stat` shows.

use crate::{Ino, Timestamp};

/// The type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names are POSIX's")]
pub enum FileType {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// Permission bits with suid, sgid and sticky: the low 12 bits of `st_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mode(u16);

impl Mode {
    /// Set-user-ID.
    pub const SUID: u16 = 0o4000;
    /// Set-group-ID.
    pub const SGID: u16 = 0o2000;

    /// Keeps the low 12 bits of `bits`.
    pub fn new(bits: u32) -> Self {
        Mode((bits & 0o7777) as u16)
    }

    /// The 12 bits.
    pub fn bits(self) -> u32 {
        u32::from(self.0)
    }

    /// Whether every bit of `bits` is set.
    pub fn has(self, bits: u16) -> bool {
        self.0 & bits == bits
    }

    /// With `bits` cleared.
    #[must_use]
    pub fn without(self, bits: u16) -> Self {
        Mode(self.0 & !bits)
    }

    /// With `bits` set.
    #[must_use]
    pub fn with(self, bits: u16) -> Self {
        Mode((self.0 | bits) & 0o7777)
    }
}

/// Attributes of an inode as `stat` and the kernel want them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Type.
    pub file_type: FileType,
    /// Permission bits.
    pub mode: Mode,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links; for a directory 2 + its subdirectories.
    pub nlink: u32,
    /// Bytes; for a symlink those of its target, for a directory those of its entries' names.
    pub size: u64,
    /// Blocks of 512 bytes that are allocated.
    pub blocks: u64,
    /// Device number in the kernel's 32-bit encoding, 0 but for devices.
    pub rdev: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the data or entries.
    pub mtime: Timestamp,
    /// Last change of the attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

//! The records of the tree: inode, directory entry, chunk reference, orphan.

use bytes::Bytes;

use crate::{Attr, BLOCK_BYTES, ChunkId, FileType, Ino, Mode, ROOT_INO, SessionId, Timestamp};

/// An inode's record (`i/<ns>/<ino>`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
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
    /// Bytes. For a directory the sum of its entries' name lengths.
    pub size: u64,
    /// Allocated blocks of 4 KiB in chunks.
    pub blocks_4k: u64,
    /// How many `b/` records there are, so that a file without chunks needs no look-up.
    pub chunks: u32,
    /// Device number, 0 but for devices.
    pub rdev: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of data or entries.
    pub mtime: Timestamp,
    /// Last change of attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// The directory above; of a directory only, else [`Ino`] 0. The root is its own parent.
    pub parent: Ino,
    /// Whether any `x/` record exists, so that most inodes need no look-up.
    pub has_xattrs: bool,
    /// What the inode holds by itself: a symlink's target, or a small file's bytes
    /// (at most `size` of them; bytes between its end and `size` read as zeros).
    /// While a regular file has inline bytes they are its content, and chunks beside them are
    /// still to be filled.
    pub inline: Bytes,
}

impl Inode {
    /// What `stat` shows of it.
    pub fn attr(&self, ino: Ino) -> Attr {
        let inline_blocks_4k = if self.file_type == FileType::File && !self.inline.is_empty() {
            (self.inline.len() as u64).div_ceil(BLOCK_BYTES)
        } else {
            0
        };
        Attr {
            ino,
            file_type: self.file_type,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            size: self.size,
            blocks: (self.blocks_4k + inline_blocks_4k) * (BLOCK_BYTES / 512),
            rdev: self.rdev,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
        }
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type == FileType::Directory
    }
}

/// The record of a new namespace's root directory, which is [`ROOT_INO`]. The new
/// namespace uses one inode and no bytes.
pub fn make_root(mode: Mode, uid: u32, gid: u32, time: Timestamp) -> Inode {
    Inode {
        file_type: FileType::Directory,
        mode,
        uid,
        gid,
        nlink: 2,
        size: 0,
        blocks_4k: 0,
        chunks: 0,
        rdev: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        parent: ROOT_INO,
        has_xattrs: false,
        inline: Bytes::new(),
    }
}

/// A directory entry's record (`d/<ns>/<parent>/<name>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The inode it names.
    pub ino: Ino,
    /// Its type, so that `readdir` needs no inode.
    pub file_type: FileType,
}

/// A file's reference to one of its chunks (`b/<ns>/<ino>/<chunk index>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    /// The chunk.
    pub chunk: ChunkId,
    /// Blocks of 4 KiB that hold written bytes, as the last flush reported.
    pub blocks_4k: u32,
}

/// An inode without a name that sessions still have open (`o/<ns>/<ino>`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orphan {
    /// Sessions that have it open, sorted, never empty.
    pub holders: Vec<SessionId>,
}

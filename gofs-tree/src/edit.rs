//! Edits: every change to the tree, with everything chosen in it, so that
//! [`apply`](crate::apply) is deterministic.

use bytes::Bytes;

use crate::{ChunkId, ChunkIndex, FileType, Ino, Mode, Name, SessionId, Timestamp, XattrName};

/// One change, and when its author made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The time that the change stamps on inodes.
    pub time: Timestamp,
    /// What changes.
    pub op: EditOp,
}

/// What to make.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are POSIX's")]
pub enum NewNode {
    File,
    Directory,
    Symlink {
        /// Any bytes but NUL, 1 to 4095.
        target: Bytes,
    },
    Fifo,
    Socket,
    CharDevice {
        rdev: u32,
    },
    BlockDevice {
        rdev: u32,
    },
}

impl NewNode {
    /// The type of the inode that it becomes.
    pub fn file_type(&self) -> FileType {
        match self {
            NewNode::File => FileType::File,
            NewNode::Directory => FileType::Directory,
            NewNode::Symlink { .. } => FileType::Symlink,
            NewNode::Fifo => FileType::Fifo,
            NewNode::Socket => FileType::Socket,
            NewNode::CharDevice { .. } => FileType::CharDevice,
            NewNode::BlockDevice { .. } => FileType::BlockDevice,
        }
    }
}

/// Flags of `renameat2`; both at once are invalid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// RENAME_NOREPLACE: EEXIST where the new name exists.
    pub no_replace: bool,
    /// RENAME_EXCHANGE: swap the two entries; both must exist.
    pub exchange: bool,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeChange {
    /// The edit's own time.
    Now,
    /// This one.
    To(Timestamp),
}

/// Attributes to change; `None` keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttrChange {
    /// New permission bits.
    pub mode: Option<Mode>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size of a regular file, bytes: truncates or extends with zeros.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<TimeChange>,
    /// New modification time.
    pub mtime: Option<TimeChange>,
    /// Clear suid, and sgid where the group may execute, as a write by an unprivileged user does.
    pub kill_suid_sgid: bool,
}

/// What must hold before an xattr is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrSetMode {
    /// Create or replace.
    Either,
    /// XATTR_CREATE: EEXIST where it exists.
    Create,
    /// XATTR_REPLACE: ENODATA where it does not.
    Replace,
}

/// The changes. Permissions were checked where the caller's identity is known
/// (the kernel); `apply` checks what the tree itself requires.
///
/// `holders` name the sessions that have the inode open at that moment: if the
/// edit takes its last name away it becomes an orphan of theirs instead of being freed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EditOp {
    /// creat, mkdir, mknod, symlink.
    Create {
        parent: Ino,
        name: Name,
        /// Chosen from a range that was never used before.
        ino: Ino,
        node: NewNode,
        mode: Mode,
        /// Applied to `mode` unless the parent has a default ACL.
        umask: Mode,
        uid: u32,
        /// Overridden by the parent's group where the parent is setgid.
        gid: u32,
    },
    /// A further name for an inode that is not a directory.
    Link { ino: Ino, parent: Ino, name: Name },
    /// Removes a name that is not a directory's.
    Unlink { parent: Ino, name: Name, holders: Vec<SessionId> },
    /// Removes an empty directory.
    Rmdir { parent: Ino, name: Name, holders: Vec<SessionId> },
    /// rename, renameat2. `holders` are those of the inode that is replaced.
    Rename {
        parent: Ino,
        name: Name,
        new_parent: Ino,
        new_name: Name,
        flags: RenameFlags,
        holders: Vec<SessionId>,
    },
    /// chmod, chown, truncate, utimens.
    SetAttr { ino: Ino, change: AttrChange },
    /// setxattr. POSIX ACLs are attributes; setting the access ACL also sets the mode.
    SetXattr { ino: Ino, name: XattrName, value: Bytes, mode: XattrSetMode },
    /// removexattr.
    RemoveXattr { ino: Ino, name: XattrName },
    /// Replaces the whole content of a file whose content is not in chunks: `data` is at most
    /// `inline_max` bytes, `size` at least as long (the rest are zeros). Chunks that never came to hold the
    /// content, because their writer died before its `Extend`, are dropped.
    WriteInline { ino: Ino, data: Bytes, size: u64, mtime: Timestamp },
    /// Gives a file a chunk where it has none. Inline bytes, where there are any, stay the content
    /// until `Extend` with `clear_inline`.
    AddChunk { ino: Ino, index: ChunkIndex, chunk: ChunkId },
    /// After bytes were acknowledged by ChunkServers: new size (never smaller than
    /// what is there: truncation is `SetAttr`), mtime, allocated blocks per chunk, and whether
    /// the inline bytes are now in chunk 0 (`clear_inline`).
    Extend {
        ino: Ino,
        size: u64,
        mtime: Timestamp,
        /// Absolute number of allocated 4 KiB blocks of each chunk written.
        blocks_4k: Vec<(ChunkIndex, u32)>,
        clear_inline: bool,
    },
    /// fallocate without PUNCH: size grows to `end` unless it is larger.
    Allocate { ino: Ino, end: u64 },
    /// Punches a hole (or zeroes, which reads the same) in `[start, end)`, at most to the file's size:
    /// whole chunks inside are dropped; the parts of chunks at the edges were zeroed
    /// on the ChunkServers before.
    Punch { ino: Ino, start: u64, end: u64 },
    /// A session closed its last handle on an orphan; with the last holder the inode goes, and the
    /// outcome says so in `removed`.
    ReleaseOrphan { ino: Ino, session: SessionId },
}

impl EditOp {
    /// Sessions that have the inode open that the edit may take the last name from.
    pub fn holders(&self) -> &[SessionId] {
        match self {
            EditOp::Unlink { holders, .. }
            | EditOp::Rmdir { holders, .. }
            | EditOp::Rename { holders, .. } => holders,
            EditOp::Create { .. }
            | EditOp::Link { .. }
            | EditOp::SetAttr { .. }
            | EditOp::SetXattr { .. }
            | EditOp::RemoveXattr { .. }
            | EditOp::WriteInline { .. }
            | EditOp::AddChunk { .. }
            | EditOp::Extend { .. }
            | EditOp::Allocate { .. }
            | EditOp::Punch { .. }
            | EditOp::ReleaseOrphan { .. } => &[],
        }
    }

    /// The same, to be filled in; `None` where the edit takes no name away.
    pub fn holders_mut(&mut self) -> Option<&mut Vec<SessionId>> {
        match self {
            EditOp::Unlink { holders, .. }
            | EditOp::Rmdir { holders, .. }
            | EditOp::Rename { holders, .. } => Some(holders),
            EditOp::Create { .. }
            | EditOp::Link { .. }
            | EditOp::SetAttr { .. }
            | EditOp::SetXattr { .. }
            | EditOp::RemoveXattr { .. }
            | EditOp::WriteInline { .. }
            | EditOp::AddChunk { .. }
            | EditOp::Extend { .. }
            | EditOp::Allocate { .. }
            | EditOp::Punch { .. }
            | EditOp::ReleaseOrphan { .. } => None,
        }
    }
}

/// What an edit did, as far as its author cannot know it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The inode that was made, linked, removed, renamed or changed.
    pub ino: Ino,
    /// The inode that lost its last name and is now an orphan or gone (unlink, rmdir, rename over), or
    /// that is gone with its last holder (release of an orphan).
    pub removed: Option<Ino>,
}

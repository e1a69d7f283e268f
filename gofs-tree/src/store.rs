//! What [`apply`](crate::apply) needs of the place where the records are.

use crate::{
    ChunkId, ChunkIndex, ChunkRef, ChunkSize, DirEntry, FsError, Ino, Inode, Name, Orphan, XattrName,
};
use bytes::Bytes;

/// What a namespace uses. `bytes` is the sum of the sizes of its regular files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sum of the sizes of regular files, bytes (sparse ranges count).
    pub bytes: u64,
    /// Inodes, the root and open unlinked ones included.
    pub inodes: u64,
}

/// What a namespace may use and how it stores files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceLimits {
    /// Most bytes, 0 = no limit.
    pub quota_bytes: u64,
    /// Most inodes, 0 = no limit.
    pub quota_inodes: u64,
    /// Largest file kept in its inode, bytes.
    pub inline_max: u32,
    /// Bytes in a chunk.
    pub chunk_size: ChunkSize,
}

/// The records of one namespace. Reads are `&self`; a failed read is
/// [`FsError::NotCached`] (a cache that does not know) or [`FsError::Io`].
/// Writes cannot fail: they are gathered, and made durable by the caller.
pub trait Store {
    /// The namespace's limits.
    fn limits(&self) -> NamespaceLimits;
    /// What the namespace uses now.
    fn usage(&self) -> Result<Usage, FsError>;
    /// Replaces the usage.
    fn set_usage(&mut self, usage: Usage);

    /// The inode's record.
    fn inode(&self, ino: Ino) -> Result<Option<Inode>, FsError>;
    /// Creates or replaces it.
    fn set_inode(&mut self, ino: Ino, inode: Inode);
    /// Removes it (its xattrs, chunks and orphan record were removed before).
    fn remove_inode(&mut self, ino: Ino);

    /// The entry of that name.
    fn entry(&self, parent: Ino, name: &Name) -> Result<Option<DirEntry>, FsError>;
    /// Creates or replaces it.
    fn set_entry(&mut self, parent: Ino, name: &Name, entry: DirEntry);
    /// Removes it.
    fn remove_entry(&mut self, parent: Ino, name: &Name);
    /// Whether the directory has no entry.
    fn is_empty_dir(&self, ino: Ino) -> Result<bool, FsError>;

    /// The attribute's value.
    fn xattr(&self, ino: Ino, name: &XattrName) -> Result<Option<Bytes>, FsError>;
    /// All attribute names with their values, in order.
    fn xattrs(&self, ino: Ino) -> Result<Vec<(XattrName, Bytes)>, FsError>;
    /// Creates or replaces it.
    fn set_xattr(&mut self, ino: Ino, name: &XattrName, value: Bytes);
    /// Removes it.
    fn remove_xattr(&mut self, ino: Ino, name: &XattrName);

    /// The file's chunk at that index.
    fn chunk(&self, ino: Ino, index: ChunkIndex) -> Result<Option<ChunkRef>, FsError>;
    /// The file's chunks from `first` on, in order.
    fn chunks_from(&self, ino: Ino, first: ChunkIndex) -> Result<Vec<(ChunkIndex, ChunkRef)>, FsError>;
    /// Creates or replaces the reference. A chunk id seen for the first time is
    /// thereby owned by this file.
    fn set_chunk(&mut self, ino: Ino, index: ChunkIndex, chunk: ChunkRef);
    /// Removes the reference; the store marks the chunk for deletion.
    fn remove_chunk(&mut self, ino: Ino, index: ChunkIndex, chunk: ChunkId);

    /// The orphan record.
    fn orphan(&self, ino: Ino) -> Result<Option<Orphan>, FsError>;
    /// Creates or replaces it.
    fn set_orphan(&mut self, ino: Ino, orphan: Orphan);
    /// Removes it.
    fn remove_orphan(&mut self, ino: Ino);
}

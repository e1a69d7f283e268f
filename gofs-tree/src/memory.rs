//! A store in memory: the reference that other stores are tested against, and the
//! place where tests of everything above look at what an edit did.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    ChunkId, ChunkIndex, ChunkRef, DirEntry, FsError, Ino, Inode, Mode, Name, NamespaceLimits, Orphan,
    ROOT_INO, Store, Timestamp, Usage, XattrName, make_root,
};

/// The records of one namespace in ordered maps. Two are equal where every record is
/// and the same chunks were removed in the same order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryStore {
    limits: NamespaceLimits,
    usage: Usage,
    inodes: BTreeMap<Ino, Inode>,
    // The inner maps are never empty, so that equal contents are equal maps.
    entries: BTreeMap<Ino, BTreeMap<Name, DirEntry>>,
    xattrs: BTreeMap<Ino, BTreeMap<XattrName, Bytes>>,
    chunks: BTreeMap<Ino, BTreeMap<ChunkIndex, ChunkRef>>,
    orphans: BTreeMap<Ino, Orphan>,
    removed_chunks: Vec<ChunkId>,
}

impl MemoryStore {
    /// A store without any record, not even a root.
    pub fn new(limits: NamespaceLimits) -> Self {
        MemoryStore {
            limits,
            usage: Usage::default(),
            inodes: BTreeMap::new(),
            entries: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            chunks: BTreeMap::new(),
            orphans: BTreeMap::new(),
            removed_chunks: Vec::new(),
        }
    }

    /// A new namespace: an empty root directory.
    pub fn with_root(limits: NamespaceLimits, mode: Mode, uid: u32, gid: u32, time: Timestamp) -> Self {
        let mut store = MemoryStore::new(limits);
        store.set_inode(ROOT_INO, make_root(mode, uid, gid, time));
        store.set_usage(Usage { bytes: 0, inodes: 1 });
        store
    }

    /// All inodes, in order.
    pub fn inodes(&self) -> impl Iterator<Item = (Ino, &Inode)> {
        self.inodes.iter().map(|(ino, inode)| (*ino, inode))
    }

    /// The entries of a directory, in the order of their names' bytes.
    pub fn entries(&self, parent: Ino) -> impl Iterator<Item = (&Name, DirEntry)> {
        self.entries.get(&parent).into_iter().flatten().map(|(name, entry)| (name, *entry))
    }

    /// Every directory that has an entry, with its entries.
    pub fn all_entries(&self) -> impl Iterator<Item = (Ino, &Name, DirEntry)> {
        self.entries
            .iter()
            .flat_map(|(parent, names)| names.iter().map(|(name, entry)| (*parent, name, *entry)))
    }

    /// Every extended attribute.
    pub fn all_xattrs(&self) -> impl Iterator<Item = (Ino, &XattrName, &Bytes)> {
        self.xattrs.iter().flat_map(|(ino, values)| values.iter().map(|(name, value)| (*ino, name, value)))
    }

    /// Every chunk reference.
    pub fn all_chunks(&self) -> impl Iterator<Item = (Ino, ChunkIndex, ChunkRef)> {
        self.chunks
            .iter()
            .flat_map(|(ino, chunks)| chunks.iter().map(|(index, chunk)| (*ino, *index, *chunk)))
    }

    /// Every orphan.
    pub fn orphans(&self) -> impl Iterator<Item = (Ino, &Orphan)> {
        self.orphans.iter().map(|(ino, orphan)| (*ino, orphan))
    }

    /// Chunks whose reference was removed, in that order.
    pub fn removed_chunks(&self) -> &[ChunkId] {
        &self.removed_chunks
    }

    /// Changes the limits, as `gofsctl ns set` does.
    pub fn set_limits(&mut self, limits: NamespaceLimits) {
        self.limits = limits;
    }
}

/// Removes `key` from the map of `ino`, and that map with its last key.
fn remove<K: Ord, V>(maps: &mut BTreeMap<Ino, BTreeMap<K, V>>, ino: Ino, key: &K) {
    if let Some(map) = maps.get_mut(&ino) {
        map.remove(key);
        if map.is_empty() {
            maps.remove(&ino);
        }
    }
}

impl Store for MemoryStore {
    fn limits(&self) -> NamespaceLimits {
        self.limits
    }

    fn usage(&self) -> Result<Usage, FsError> {
        Ok(self.usage)
    }

    fn set_usage(&mut self, usage: Usage) {
        self.usage = usage;
    }

    fn inode(&self, ino: Ino) -> Result<Option<Inode>, FsError> {
        Ok(self.inodes.get(&ino).cloned())
    }

    fn set_inode(&mut self, ino: Ino, inode: Inode) {
        self.inodes.insert(ino, inode);
    }

    fn remove_inode(&mut self, ino: Ino) {
        self.inodes.remove(&ino);
    }

    fn entry(&self, parent: Ino, name: &Name) -> Result<Option<DirEntry>, FsError> {
        Ok(self.entries.get(&parent).and_then(|names| names.get(name)).copied())
    }

    fn set_entry(&mut self, parent: Ino, name: &Name, entry: DirEntry) {
        self.entries.entry(parent).or_default().insert(name.clone(), entry);
    }

    fn remove_entry(&mut self, parent: Ino, name: &Name) {
        remove(&mut self.entries, parent, name);
    }

    fn is_empty_dir(&self, ino: Ino) -> Result<bool, FsError> {
        Ok(!self.entries.contains_key(&ino))
    }

    fn xattr(&self, ino: Ino, name: &XattrName) -> Result<Option<Bytes>, FsError> {
        Ok(self.xattrs.get(&ino).and_then(|values| values.get(name)).cloned())
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<(XattrName, Bytes)>, FsError> {
        let values = self.xattrs.get(&ino).into_iter().flatten();
        Ok(values.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    fn set_xattr(&mut self, ino: Ino, name: &XattrName, value: Bytes) {
        self.xattrs.entry(ino).or_default().insert(name.clone(), value);
    }

    fn remove_xattr(&mut self, ino: Ino, name: &XattrName) {
        remove(&mut self.xattrs, ino, name);
    }

    fn chunk(&self, ino: Ino, index: ChunkIndex) -> Result<Option<ChunkRef>, FsError> {
        Ok(self.chunks.get(&ino).and_then(|chunks| chunks.get(&index)).copied())
    }

    fn chunks_from(&self, ino: Ino, first: ChunkIndex) -> Result<Vec<(ChunkIndex, ChunkRef)>, FsError> {
        let chunks = self.chunks.get(&ino).map(|chunks| chunks.range(first..));
        Ok(chunks.into_iter().flatten().map(|(index, chunk)| (*index, *chunk)).collect())
    }

    fn set_chunk(&mut self, ino: Ino, index: ChunkIndex, chunk: ChunkRef) {
        self.chunks.entry(ino).or_default().insert(index, chunk);
    }

    fn remove_chunk(&mut self, ino: Ino, index: ChunkIndex, chunk: ChunkId) {
        debug_assert_eq!(
            self.chunk(ino, index).ok().flatten().map(|c| c.chunk),
            Some(chunk),
            "{ino} {index:?}"
        );
        remove(&mut self.chunks, ino, &index);
        self.removed_chunks.push(chunk);
    }

    fn orphan(&self, ino: Ino) -> Result<Option<Orphan>, FsError> {
        Ok(self.orphans.get(&ino).cloned())
    }

    fn set_orphan(&mut self, ino: Ino, orphan: Orphan) {
        self.orphans.insert(ino, orphan);
    }

    fn remove_orphan(&mut self, ino: Ino) {
        self.orphans.remove(&ino);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChunkSize, FileType};

    const LIMITS: NamespaceLimits =
        NamespaceLimits { quota_bytes: 0, quota_inodes: 0, inline_max: 4096, chunk_size: ChunkSize::DEFAULT };

    #[test]
    fn a_new_namespace_is_an_empty_root() {
        let store = MemoryStore::with_root(LIMITS, Mode::new(0o755), 1, 2, Timestamp::new(3, 4));
        let root = store.inode(ROOT_INO).unwrap().unwrap();
        assert_eq!(
            (root.nlink, root.size, root.parent, root.file_type),
            (2, 0, ROOT_INO, FileType::Directory)
        );
        assert_eq!((root.uid, root.gid, root.ctime), (1, 2, Timestamp::new(3, 4)));
        assert!(store.is_empty_dir(ROOT_INO).unwrap());
        assert_eq!(store.usage(), Ok(Usage { bytes: 0, inodes: 1 }));
    }

    #[test]
    fn what_was_set_and_removed_leaves_an_equal_store() {
        let before = MemoryStore::with_root(LIMITS, Mode::new(0o755), 1, 2, Timestamp::default());
        let mut store = before.clone();
        let (name, xattr) = (Name::new(b"n").unwrap(), XattrName::new(b"user.x").unwrap());
        store.set_entry(ROOT_INO, &name, DirEntry { ino: Ino(2), file_type: FileType::File });
        store.set_xattr(ROOT_INO, &xattr, Bytes::from_static(b"v"));
        store.set_orphan(Ino(2), Orphan::default());
        assert_ne!(store, before);
        assert_eq!(store.xattrs(ROOT_INO).unwrap(), [(xattr.clone(), Bytes::from_static(b"v"))]);
        store.remove_entry(ROOT_INO, &name);
        store.remove_xattr(ROOT_INO, &xattr);
        store.remove_orphan(Ino(2));
        assert_eq!(store, before);
    }

    #[test]
    fn removed_chunks_are_remembered() {
        let mut store = MemoryStore::new(LIMITS);
        for index in [0, 2, 5] {
            store.set_chunk(
                Ino(2),
                ChunkIndex(index),
                ChunkRef { chunk: ChunkId(10 + u64::from(index)), blocks_4k: 1 },
            );
        }
        assert_eq!(store.chunks_from(Ino(2), ChunkIndex(1)).unwrap().len(), 2);
        store.remove_chunk(Ino(2), ChunkIndex(2), ChunkId(12));
        assert_eq!(store.removed_chunks(), [ChunkId(12)]);
        assert_eq!(store.chunk(Ino(2), ChunkIndex(2)), Ok(None));
    }
}

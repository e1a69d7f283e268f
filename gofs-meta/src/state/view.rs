//! One namespace's tree: gofs-tree's `Store` over the state and an overlay of changes.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use gofs_tree::{
    ChunkId, ChunkIndex, ChunkRef, ChunkVersion, DirEntry, FsError, Ino, Inode, Name, NamespaceId,
    NamespaceLimits, Orphan, Store, Usage, XattrName,
};

use super::key::{self, Key, kind};
use super::record::{ChunkRecord, Record};
use super::{Shared, StateError, refuse};

/// Changed records, `None` where one was removed.
pub(crate) type Changes = BTreeMap<Key, Option<Record>>;

/// A view of one namespace. Reads see the newest state with the view's own writes over it; writes
/// stay in the view unless it belongs to the EditLog.
pub struct TreeView {
    shared: Arc<Shared>,
    ns: NamespaceId,
    limits: NamespaceLimits,
    /// Slices of the quota that the next edit must leave alone: they count as used.
    held: Usage,
    changes: Changes,
    /// The first failure of the store. A write decided on it must not be committed.
    failed: OnceLock<StateError>,
}

impl TreeView {
    pub(super) fn new(
        shared: Arc<Shared>,
        ns: NamespaceId,
        limits: NamespaceLimits,
        changes: Changes,
    ) -> Self {
        TreeView { shared, ns, limits, held: Usage::default(), changes, failed: OnceLock::new() }
    }

    pub(super) fn finish(self) -> Result<Changes, StateError> {
        match self.failed.into_inner() {
            Some(error) => Err(error),
            None => Ok(self.changes),
        }
    }

    /// So much of the quota is not for the edits that follow.
    pub(super) fn hold(&mut self, held: Usage) {
        self.held = held;
    }

    fn fail(&self, error: StateError) -> FsError {
        let refused = refuse(&error);
        let _ = self.failed.set(error);
        refused
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Record>, FsError> {
        if let Some(record) = self.changes.get(key) {
            return Ok(record.clone());
        }
        self.shared.get(key).map_err(|error| self.fail(error))
    }

    pub(super) fn set(&mut self, key: Key, record: Record) {
        self.changes.insert(key, Some(record));
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.changes.insert(key, None);
    }

    fn misplaced<T>(&self, key: &[u8]) -> Result<T, FsError> {
        Err(self.fail(self.shared.misplaced(key)))
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Key, Record)>, FsError> {
        self.shared.scan_over(&self.changes, start, end, limit).map_err(|error| self.fail(error))
    }

    /// Entries of a directory in the order of their names' bytes, those after `after`, at most `limit`.
    /// Fewer than `limit` mean that there are no more.
    pub fn entries(
        &self,
        parent: Ino,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<(Name, DirEntry)>, FsError> {
        let prefix = key::in_inode(kind::ENTRY, self.ns, parent);
        let start = match after {
            Some(name) => key::just_after(key::entry(self.ns, parent, name)),
            None => prefix.clone(),
        };
        let mut entries = Vec::new();
        for (key, record) in self.scan(&start, &key::end_of_prefix(&prefix), limit)? {
            let (Record::Entry(entry), Some(Ok(name))) = (record, key::name_of(&key).map(Name::new)) else {
                return self.misplaced(&key);
            };
            entries.push((name, entry));
        }
        Ok(entries)
    }

    pub(super) fn chunk_record(&self, chunk: ChunkId) -> Result<Option<ChunkRecord>, FsError> {
        let key = key::chunk(chunk);
        match self.get(&key)? {
            Some(Record::Chunk(record)) => Ok(Some(record)),
            Some(_) => self.misplaced(&key),
            None => Ok(None),
        }
    }

    /// Whether the chunk id is, or was a moment ago, in use.
    pub(super) fn knows_chunk(&self, chunk: ChunkId) -> Result<bool, FsError> {
        Ok(self.chunk_record(chunk)?.is_some())
    }

    /// Marks a chunk to be deleted.
    pub(super) fn drop_chunk(&mut self, chunk: ChunkId) {
        // A failure is kept in `failed` and the whole batch is given up.
        if let Ok(Some(record)) = self.chunk_record(chunk) {
            self.set(key::chunk(chunk), Record::Chunk(ChunkRecord { deleted: true, ..record }));
        }
    }

    /// Replicas that the namespace asks for now; 0 where it is gone. A failure is kept in `failed`.
    fn replicas(&self) -> u32 {
        match self.get(&key::namespace(self.ns)) {
            Ok(Some(Record::Namespace { config, .. })) => config.replicas,
            _ => 0,
        }
    }

    pub(super) fn usage_record(&self) -> Result<(Usage, Ino), FsError> {
        let key = key::usage(self.ns);
        match self.get(&key)? {
            Some(Record::Usage { usage, next_ino }) => Ok((usage, next_ino)),
            Some(_) => self.misplaced(&key),
            None => Err(FsError::Stale),
        }
    }

    pub(super) fn set_next_ino(&mut self, next_ino: Ino) -> Result<(), FsError> {
        let (usage, _) = self.usage_record()?;
        self.set(key::usage(self.ns), Record::Usage { usage, next_ino });
        Ok(())
    }
}

impl Store for TreeView {
    fn limits(&self) -> NamespaceLimits {
        self.limits
    }

    fn usage(&self) -> Result<Usage, FsError> {
        let (usage, _) = self.usage_record()?;
        let Usage { bytes, inodes } = self.held;
        Ok(Usage { bytes: usage.bytes.saturating_add(bytes), inodes: usage.inodes.saturating_add(inodes) })
    }

    fn set_usage(&mut self, usage: Usage) {
        // A failure is kept in `failed` and the whole batch is given up.
        if let Ok((_, next_ino)) = self.usage_record() {
            let usage = Usage {
                bytes: usage.bytes.saturating_sub(self.held.bytes),
                inodes: usage.inodes.saturating_sub(self.held.inodes),
            };
            self.set(key::usage(self.ns), Record::Usage { usage, next_ino });
        }
    }

    fn inode(&self, ino: Ino) -> Result<Option<Inode>, FsError> {
        let key = key::inode(self.ns, ino);
        match self.get(&key)? {
            Some(Record::Inode(inode)) => Ok(Some(Inode::clone(&inode))),
            Some(_) => self.misplaced(&key),
            None => Ok(None),
        }
    }

    fn set_inode(&mut self, ino: Ino, inode: Inode) {
        self.set(key::inode(self.ns, ino), Record::Inode(Arc::new(inode)));
    }

    fn remove_inode(&mut self, ino: Ino) {
        self.remove(key::inode(self.ns, ino));
    }

    fn entry(&self, parent: Ino, name: &Name) -> Result<Option<DirEntry>, FsError> {
        let key = key::entry(self.ns, parent, name);
        match self.get(&key)? {
            Some(Record::Entry(entry)) => Ok(Some(entry)),
            Some(_) => self.misplaced(&key),
            None => Ok(None),
        }
    }

    fn set_entry(&mut self, parent: Ino, name: &Name, entry: DirEntry) {
        self.set(key::entry(self.ns, parent, name), Record::Entry(entry));
    }

    fn remove_entry(&mut self, parent: Ino, name: &Name) {
        self.remove(key::entry(self.ns, parent, name));
    }

    fn is_empty_dir(&self, ino: Ino) -> Result<bool, FsError> {
        let prefix = key::in_inode(kind::ENTRY, self.ns, ino);
        Ok(self.scan(&prefix, &key::end_of_prefix(&prefix), 1)?.is_empty())
    }

    fn xattr(&self, ino: Ino, name: &XattrName) -> Result<Option<Bytes>, FsError> {
        let key = key::xattr(self.ns, ino, name);
        match self.get(&key)? {
            Some(Record::Xattr(value)) => Ok(Some(value)),
            Some(_) => self.misplaced(&key),
            None => Ok(None),
        }
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<(XattrName, Bytes)>, FsError> {
        let prefix = key::in_inode(kind::XATTR, self.ns, ino);
        let mut xattrs = Vec::new();
        for (key, record) in self.scan(&prefix, &key::end_of_prefix(&prefix), usize::MAX)? {
            let (Record::Xattr(value), Some(Ok(name))) = (record, key::name_of(&key).map(XattrName::new))
            else {
                return self.misplaced(&key);
            };
            xattrs.push((name, value));
        }
        Ok(xattrs)
    }

    fn set_xattr(&mut self, ino: Ino, name: &XattrName, value: Bytes) {
        self.set(key::xattr(self.ns, ino, name), Record::Xattr(value));
    }

    fn remove_xattr(&mut self, ino: Ino, name: &XattrName) {
        self.remove(key::xattr(self.ns, ino, name));
    }

    fn chunk(&self, ino: Ino, index: ChunkIndex) -> Result<Option<ChunkRef>, FsError> {
        let key = key::chunk_ref(self.ns, ino, index);
        match self.get(&key)? {
            Some(Record::ChunkRef(chunk)) => Ok(Some(chunk)),
            Some(_) => self.misplaced(&key),
            None => Ok(None),
        }
    }

    fn chunks_from(&self, ino: Ino, first: ChunkIndex) -> Result<Vec<(ChunkIndex, ChunkRef)>, FsError> {
        let end = key::end_of_prefix(&key::in_inode(kind::CHUNK_REF, self.ns, ino));
        let mut chunks = Vec::new();
        for (key, record) in self.scan(&key::chunk_ref(self.ns, ino, first), &end, usize::MAX)? {
            let (Record::ChunkRef(chunk), Some(index)) = (record, key::index_of(&key)) else {
                return self.misplaced(&key);
            };
            chunks.push((index, chunk));
        }
        Ok(chunks)
    }

    fn set_chunk(&mut self, ino: Ino, index: ChunkIndex, chunk: ChunkRef) {
        self.set(key::chunk_ref(self.ns, ino, index), Record::ChunkRef(chunk));
        // A failure is kept in `failed` and the whole batch is given up.
        if let Ok(None) = self.chunk_record(chunk.chunk) {
            let record = ChunkRecord {
                namespace: self.ns,
                ino,
                index,
                version: ChunkVersion(1),
                copies: self.replicas(),
                goal: 0,
                deleted: false,
            };
            self.set(key::chunk(chunk.chunk), Record::Chunk(record));
        }
    }

    fn remove_chunk(&mut self, ino: Ino, index: ChunkIndex, chunk: ChunkId) {
        self.remove(key::chunk_ref(self.ns, ino, index));
        self.drop_chunk(chunk);
    }

    fn orphan(&self, ino: Ino) -> Result<Option<Orphan>, FsError> {
        let key = key::orphan(self.ns, ino);
        match self.get(&key)? {
            Some(Record::Orphan(orphan)) => Ok(Some(orphan)),
            Some(_) => self.misplaced(&key),
            None => Ok(None),
        }
    }

    fn set_orphan(&mut self, ino: Ino, orphan: Orphan) {
        self.set(key::orphan(self.ns, ino), Record::Orphan(orphan));
    }

    fn remove_orphan(&mut self, ino: Ino) {
        self.remove(key::orphan(self.ns, ino));
    }
}

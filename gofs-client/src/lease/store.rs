//! What is held under Write leases, as the records that `gofs_tree::apply` works on.
//!
//! Only what nobody else can see counts: an inode under a Write lease that is not being recalled, names of a
//! directory that are known. Everything else is NotCached, and the edit goes to the servers.

use std::collections::BTreeMap;

use bytes::Bytes;
use gofs_tree::{
    BLOCK_BYTES, ChunkId, ChunkIndex, ChunkRef, DirEntry, FsError, Ino, Inode, LeaseMode, Name,
    NamespaceLimits, Orphan, Store, Usage, XattrName,
};

use super::entry::Entry;
use super::names::{Directory, Known};
use super::table::LeaseTable;

/// What an edit changes.
#[derive(Debug, Default)]
pub struct Changed {
    /// Inodes as they are after it; `None`: gone, or an orphan.
    pub inodes: BTreeMap<Ino, Option<Inode>>,
    /// Extended attributes; `None`: removed.
    pub xattrs: BTreeMap<(Ino, XattrName), Option<Bytes>>,
}

/// See the module. Names that change are not kept: the operation that makes the edit knows them.
pub(super) struct LocalStore<'a> {
    table: &'a LeaseTable,
    limits: NamespaceLimits,
    /// The number of the inode that the edit makes.
    made: Option<Ino>,
    changed: Changed,
}

impl<'a> LocalStore<'a> {
    pub fn new(table: &'a LeaseTable, limits: NamespaceLimits, made: Option<Ino>) -> Self {
        LocalStore { table, limits, made, changed: Changed::default() }
    }

    pub fn into_changed(self) -> Changed {
        self.changed
    }

    fn own(&self, ino: Ino) -> Result<&Entry, FsError> {
        let entry = self.table.inodes.get(&ino).ok_or(FsError::NotCached)?;
        let writable = entry.lease.is_some_and(|lease| lease.mode == LeaseMode::Write);
        if writable && entry.recall.is_none() && !entry.removed { Ok(entry) } else { Err(FsError::NotCached) }
    }

    fn directory(&self, ino: Ino) -> Result<&Directory, FsError> {
        self.own(ino)?.cached.directory.as_deref().ok_or(FsError::NotCached)
    }
}

impl Store for LocalStore<'_> {
    fn limits(&self) -> NamespaceLimits {
        self.limits
    }

    /// Only the servers know. It does not matter here: what counts against a quota is taken from a slice of it.
    fn usage(&self) -> Result<Usage, FsError> {
        Ok(Usage::default())
    }

    fn set_usage(&mut self, _usage: Usage) {}

    fn inode(&self, ino: Ino) -> Result<Option<Inode>, FsError> {
        if let Some(changed) = self.changed.inodes.get(&ino) {
            return Ok(changed.clone());
        }
        if self.made == Some(ino) {
            return Ok(None);
        }
        let entry = self.own(ino)?;
        let attr = entry.cached.attr.as_ref().ok_or(FsError::NotCached)?;
        Ok(Some(Inode {
            file_type: attr.file_type,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink,
            size: attr.size,
            blocks_4k: attr.blocks / (BLOCK_BYTES / 512),
            // Only the servers know; see `chunks_from`.
            chunks: 0,
            rdev: attr.rdev,
            atime: attr.atime,
            mtime: attr.mtime,
            ctime: attr.ctime,
            btime: attr.btime,
            parent: entry.cached.directory.as_ref().and_then(|directory| directory.parent).unwrap_or(Ino(0)),
            has_xattrs: entry.cached.has_xattrs,
            inline: entry.cached.target.clone().unwrap_or_default(),
        }))
    }

    fn set_inode(&mut self, ino: Ino, inode: Inode) {
        self.changed.inodes.insert(ino, Some(inode));
    }

    fn remove_inode(&mut self, ino: Ino) {
        self.changed.inodes.insert(ino, None);
    }

    fn entry(&self, parent: Ino, name: &Name) -> Result<Option<DirEntry>, FsError> {
        match self.directory(parent)?.get(name) {
            Known::Entry(entry) => Ok(Some(entry)),
            Known::Absent => Ok(None),
            Known::Unknown => Err(FsError::NotCached),
        }
    }

    fn set_entry(&mut self, _parent: Ino, _name: &Name, _entry: DirEntry) {}

    fn remove_entry(&mut self, _parent: Ino, _name: &Name) {}

    fn is_empty_dir(&self, ino: Ino) -> Result<bool, FsError> {
        Ok(self.directory(ino)?.all().ok_or(FsError::NotCached)?.next().is_none())
    }

    fn xattr(&self, ino: Ino, name: &XattrName) -> Result<Option<Bytes>, FsError> {
        if let Some(changed) = self.changed.xattrs.get(&(ino, name.clone())) {
            return Ok(changed.clone());
        }
        let entry = self.own(ino)?;
        if !entry.cached.has_xattrs {
            return Ok(None);
        }
        Ok(entry.cached.xattrs.as_ref().ok_or(FsError::NotCached)?.get(name).cloned())
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<(XattrName, Bytes)>, FsError> {
        let entry = self.own(ino)?;
        if !entry.cached.has_xattrs {
            return Ok(Vec::new());
        }
        let xattrs = entry.cached.xattrs.as_ref().ok_or(FsError::NotCached)?;
        Ok(xattrs.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    fn set_xattr(&mut self, ino: Ino, name: &XattrName, value: Bytes) {
        self.changed.xattrs.insert((ino, name.clone()), Some(value));
    }

    fn remove_xattr(&mut self, ino: Ino, name: &XattrName) {
        self.changed.xattrs.insert((ino, name.clone()), None);
    }

    fn chunk(&self, _ino: Ino, _index: ChunkIndex) -> Result<Option<ChunkRef>, FsError> {
        Err(FsError::NotCached)
    }

    /// Asked for where a file goes: the servers free its chunks.
    fn chunks_from(&self, _ino: Ino, _first: ChunkIndex) -> Result<Vec<(ChunkIndex, ChunkRef)>, FsError> {
        Ok(Vec::new())
    }

    fn set_chunk(&mut self, _ino: Ino, _index: ChunkIndex, _chunk: ChunkRef) {}

    fn remove_chunk(&mut self, _ino: Ino, _index: ChunkIndex, _chunk: ChunkId) {}

    fn orphan(&self, _ino: Ino) -> Result<Option<Orphan>, FsError> {
        Err(FsError::NotCached)
    }

    fn set_orphan(&mut self, ino: Ino, _orphan: Orphan) {
        // Without a name; open here, and answered as what was removed.
        self.changed.inodes.insert(ino, None);
    }

    fn remove_orphan(&mut self, _ino: Ino) {}
}

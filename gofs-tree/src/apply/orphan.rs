//! What becomes of an inode without a name: an orphan while sessions have it open, then nothing.

use super::inode;
use crate::XattrName;
use crate::{
    ChunkIndex, ChunkRef, FileType, FsError, Ino, Inode, Orphan, Outcome, SessionId, Store, Timestamp, Usage,
};

/// Everything that freeing an inode removes, read before anything is written.
pub(super) struct Freeing {
    ino: Ino,
    usage: Usage,
    xattrs: Vec<XattrName>,
    chunks: Vec<(ChunkIndex, ChunkRef)>,
    is_orphan: bool,
}

impl Freeing {
    /// An inode has an orphan record exactly while it has no name.
    fn plan(store: &impl Store, ino: Ino, inode: &Inode, is_orphan: bool) -> Result<Freeing, FsError> {
        let mut usage = store.usage()?;
        let is_file = inode.file_type == FileType::File;
        usage.inodes = usage.inodes.saturating_sub(1);
        usage.bytes = usage.bytes.saturating_sub(if is_file { inode.size } else { 0 });
        let xattrs = if inode.has_xattrs { store.xattrs(ino)? } else { Vec::new() };
        let chunks = if is_file { inode.chunks_from(store, ino, ChunkIndex(0))? } else { Vec::new() };
        let xattrs = xattrs.into_iter().map(|(name, _)| name).collect();
        Ok(Freeing { ino, usage, xattrs, chunks, is_orphan })
    }

    fn perform(self, store: &mut impl Store) {
        for name in &self.xattrs {
            store.remove_xattr(self.ino, name);
        }
        for (index, chunk) in self.chunks {
            store.remove_chunk(self.ino, index, chunk.chunk);
        }
        if self.is_orphan {
            store.remove_orphan(self.ino);
        }
        store.set_usage(self.usage);
        store.remove_inode(self.ino);
    }
}

/// An inode that loses one name.
pub(super) struct Unnaming {
    ino: Ino,
    left: Inode,
    last: Last,
}

enum Last {
    /// Other names are left.
    No,
    Orphan(Orphan),
    Free(Freeing),
}

impl Unnaming {
    /// `inode` is as it is now; a directory was checked to be empty.
    pub fn plan(
        store: &impl Store,
        time: Timestamp,
        ino: Ino,
        mut inode: Inode,
        holders: &[SessionId],
    ) -> Result<Unnaming, FsError> {
        // A directory's other link is its own, so both go at once.
        inode.nlink = if inode.is_dir() { 0 } else { inode.nlink.checked_sub(1).ok_or(FsError::Io)? };
        inode.ctime = time;
        let last = if inode.nlink > 0 {
            Last::No
        } else if holders.is_empty() {
            Last::Free(Freeing::plan(store, ino, &inode, false)?)
        } else {
            let mut holders = holders.to_vec();
            holders.sort_unstable();
            holders.dedup();
            Last::Orphan(Orphan { holders })
        };
        Ok(Unnaming { ino, left: inode, last })
    }

    /// Returns the inode if that was its last name.
    pub fn perform(self, store: &mut impl Store) -> Option<Ino> {
        match self.last {
            Last::No => {
                store.set_inode(self.ino, self.left);
                return None;
            }
            Last::Orphan(orphan) => {
                store.set_inode(self.ino, self.left);
                store.set_orphan(self.ino, orphan);
            }
            Last::Free(freeing) => freeing.perform(store),
        }
        Some(self.ino)
    }
}

/// `NotFound` where that session does not hold such an orphan.
pub(super) fn release(store: &mut impl Store, ino: Ino, session: SessionId) -> Result<Outcome, FsError> {
    let mut orphan = store.orphan(ino)?.ok_or(FsError::NotFound)?;
    let at = orphan.holders.iter().position(|holder| *holder == session).ok_or(FsError::NotFound)?;
    orphan.holders.remove(at);
    if !orphan.holders.is_empty() {
        store.set_orphan(ino, orphan);
        return Ok(Outcome { ino, removed: None });
    }
    let freeing = Freeing::plan(store, ino, &inode(store, ino)?, true)?;
    freeing.perform(store);
    Ok(Outcome { ino, removed: Some(ino) })
}

#[cfg(test)]
#[path = "orphan_tests.rs"]
mod tests;

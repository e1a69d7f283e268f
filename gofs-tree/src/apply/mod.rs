//! What each edit means: one operation, one file.
//!
//! Every operation reads all it needs and makes all its checks first; once it has
//! written, nothing can fail. So an error, also one of the store (`NotCached`), leaves
//! everything as it was. The order of checks is Linux's, because programs see it.

mod add_chunk;
mod allocate;
mod create;
mod extend;
mod link;
mod orphan;
mod punch;
mod rename;
mod rmdir;
mod set_attr;
mod size;
mod unlink;
mod write_inline;
mod xattr;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod model_tests;

use crate::{DirEntry, Edit, EditOp, FileType, FsError, Ino, Inode, Name, Outcome, Store, Timestamp};

/// Applies one edit. On error nothing has changed.
///
/// Errors are those of the system call that the edit stands for; beyond those, `Stale` means that
/// an inode is gone, `Invalid` that the edit itself makes no sense, and errors of the store
/// (`NotCached`, `Io`) pass through. `Io` also tells of records that contradict each other.
pub fn apply(store: &mut impl Store, edit: &Edit) -> Result<Outcome, FsError> {
    let time = edit.time;
    match &edit.op {
        EditOp::Create { parent, name, ino, node, mode, umask, uid, gid } => {
            let new = create::New { ino: *ino, node, mode: *mode, umask: *umask, uid: *uid, gid: *gid };
            create::create(store, time, *parent, name, new)
        }
        EditOp::Link { ino, parent, name } => link::link(store, time, *ino, *parent, name),
        EditOp::Unlink { parent, name, holders } => unlink::unlink(store, time, *parent, name, holders),
        EditOp::Rmdir { parent, name, holders } => rmdir::rmdir(store, time, *parent, name, holders),
        EditOp::Rename { parent, name, new_parent, new_name, flags, holders } => {
            let paths = rename::Paths { parent: *parent, name, new_parent: *new_parent, new_name };
            rename::rename(store, time, paths, *flags, holders)
        }
        EditOp::SetAttr { ino, change } => set_attr::set_attr(store, time, *ino, change),
        EditOp::SetXattr { ino, name, value, mode } => xattr::set(store, time, *ino, name, value, *mode),
        EditOp::RemoveXattr { ino, name } => xattr::remove(store, time, *ino, name),
        EditOp::WriteInline { ino, data, size, mtime } => {
            write_inline::write_inline(store, time, *ino, data, *size, *mtime)
        }
        EditOp::AddChunk { ino, index, chunk } => add_chunk::add_chunk(store, *ino, *index, *chunk),
        EditOp::Extend { ino, size, mtime, blocks_4k, clear_inline } => {
            extend::extend(store, time, *ino, *size, *mtime, blocks_4k, *clear_inline)
        }
        EditOp::Allocate { ino, end } => allocate::allocate(store, time, *ino, *end),
        EditOp::Punch { ino, start, end } => punch::punch(store, time, *ino, *start, *end),
        EditOp::ReleaseOrphan { ino, session } => orphan::release(store, *ino, *session),
    }
}

/// The inode, which must exist.
fn inode(store: &impl Store, ino: Ino) -> Result<Inode, FsError> {
    store.inode(ino)?.ok_or(FsError::Stale)
}

/// The inode that an entry names: an entry without one is a broken state.
fn inode_of(store: &impl Store, entry: DirEntry) -> Result<Inode, FsError> {
    store.inode(entry.ino)?.ok_or(FsError::Io)
}

/// A directory in which names can be looked up and made.
fn directory(store: &impl Store, ino: Ino) -> Result<Inode, FsError> {
    let inode = inode(store, ino)?;
    if !inode.is_dir() {
        return Err(FsError::NotDirectory);
    }
    // Removed, but open somewhere.
    if inode.nlink == 0 {
        return Err(FsError::NotFound);
    }
    Ok(inode)
}

/// A regular file.
fn file(store: &impl Store, ino: Ino) -> Result<Inode, FsError> {
    let inode = inode(store, ino)?;
    match inode.file_type {
        FileType::File => Ok(inode),
        FileType::Directory => Err(FsError::IsDirectory),
        _ => Err(FsError::Invalid),
    }
}

impl Inode {
    /// Data or entries changed.
    fn modified(&mut self, time: Timestamp) {
        self.mtime = time;
        self.ctime = time;
    }

    /// An entry came into this directory.
    fn gain(&mut self, name: &Name, is_dir: bool) {
        self.size += name.as_bytes().len() as u64;
        self.nlink += u32::from(is_dir);
    }

    /// An entry left this directory.
    fn lose(&mut self, name: &Name, is_dir: bool) {
        self.size = self.size.saturating_sub(name.as_bytes().len() as u64);
        self.nlink = self.nlink.saturating_sub(u32::from(is_dir));
    }
}

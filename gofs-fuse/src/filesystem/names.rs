//! Requests about names: look-up, the kinds of create, link, unlink, rename.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use fuser::{Errno, INodeNo, ReplyEmpty, ReplyEntry, Request};
use gofs_client::Cached;
use gofs_tree::{Attr, FsError, Mode, NewNode, RenameFlags};

use super::{GENERATION, Gofs, Shared, name};
use crate::backend::Backend;
use crate::convert::no_attr;
use crate::stats::Operation;

impl<B: Backend> Gofs<B> {
    pub(super) fn do_lookup(&self, request: &Request, parent: INodeNo, entry: &OsStr, answer: ReplyEntry) {
        let shared = self.shared.clone();
        let (parent, entry) = (shared.map.ino(parent), name(entry));
        let work = async move { shared.backend.lookup(parent, &entry?).await };
        self.serve(Operation::Lookup, request, answer, work, |shared, answer, found| match found.value {
            Some(_) => shared.entry(answer, found.map(|attr| attr.expect("it was just seen to be there"))),
            None if found.entry_ttl.is_zero() => answer.error(Errno::ENOENT),
            // Node 0: the name is known not to exist, for as long as its time to live.
            None => answer.entry_with_ttls(&Duration::ZERO, &found.entry_ttl, &no_attr(), GENERATION),
        });
    }

    /// mkdir, mknod and symlink.
    #[allow(clippy::too_many_arguments, reason = "they are the request's")]
    pub(super) fn do_create(
        &self,
        request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        node: Result<NewNode, FsError>,
        mode: u32,
        umask: u32,
        answer: ReplyEntry,
    ) {
        let shared = self.shared.clone();
        let (parent, entry) = (shared.map.ino(parent), name(entry));
        let (uid, gid) = (request.uid(), request.gid());
        let work = async move {
            let (mode, umask) = (Mode::new(mode), Mode::new(umask));
            shared.backend.create(parent, &entry?, node?, mode, umask, uid, gid).await
        };
        let unheard = move |shared: &Shared<B>, _| shared.changed_unheard([parent]);
        self.serve_or_else(Operation::MakeNode, request, answer, work, Shared::entry, unheard);
    }

    pub(super) fn do_link(
        &self,
        request: &Request,
        ino: INodeNo,
        parent: INodeNo,
        entry: &OsStr,
        answer: ReplyEntry,
    ) {
        let shared = self.shared.clone();
        let (ino, parent, entry) = (shared.map.ino(ino), shared.map.ino(parent), name(entry));
        let work = async move { shared.backend.link(ino, parent, &entry?).await };
        self.serve_or_else(
            Operation::Link,
            request,
            answer,
            work,
            |shared, answer, linked: Cached<Attr>| {
                // The kernel applies these attributes without regard to what invalidated them meanwhile.
                shared.entry(answer, Cached { ttl: Duration::ZERO, ..linked });
            },
            move |shared, _| shared.changed_unheard([parent, ino]),
        );
    }

    pub(super) fn do_remove(
        &self,
        request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        directory: bool,
        answer: ReplyEmpty,
    ) {
        let shared = self.shared.clone();
        let (parent, entry) = (shared.map.ino(parent), name(entry));
        let work = async move {
            let entry = entry?;
            if directory {
                shared.backend.rmdir(parent, &entry).await
            } else {
                shared.backend.unlink(parent, &entry).await
            }
        };
        let operation = if directory { Operation::RemoveDir } else { Operation::Unlink };
        let unheard = move |shared: &Shared<B>, ()| shared.changed_unheard([parent]);
        self.serve_or_else(operation, request, answer, work, |_, answer, ()| answer.ok(), unheard);
    }

    #[allow(clippy::too_many_arguments, reason = "they are the request's")]
    pub(super) fn do_rename(
        &self,
        request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        new_parent: INodeNo,
        new_entry: &OsStr,
        flags: fuser::RenameFlags,
        answer: ReplyEmpty,
    ) {
        let shared = self.shared.clone();
        let (parent, entry) = (shared.map.ino(parent), name(entry));
        let (new_parent, new_entry) = (shared.map.ino(new_parent), name(new_entry));
        let work = async move {
            let flags = rename_flags(flags)?;
            shared.backend.rename(parent, &entry?, new_parent, &new_entry?, flags).await
        };
        let unheard = move |shared: &Shared<B>, ()| shared.changed_unheard([parent, new_parent]);
        self.serve_or_else(Operation::Rename, request, answer, work, |_, answer, ()| answer.ok(), unheard);
    }
}

fn rename_flags(flags: fuser::RenameFlags) -> Result<RenameFlags, FsError> {
    let known = fuser::RenameFlags::RENAME_NOREPLACE | fuser::RenameFlags::RENAME_EXCHANGE;
    let no_replace = flags.contains(fuser::RenameFlags::RENAME_NOREPLACE);
    let exchange = flags.contains(fuser::RenameFlags::RENAME_EXCHANGE);
    // RENAME_WHITEOUT is overlayfs' own; EINVAL is what file systems without it answer.
    if !(flags - known).is_empty() || (no_replace && exchange) {
        return Err(FsError::Invalid);
    }
    Ok(RenameFlags { no_replace, exchange })
}

/// What mknod makes.
pub(super) fn special_node(mode: u32, rdev: u32) -> Result<NewNode, FsError> {
    match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Ok(NewNode::File),
        libc::S_IFIFO => Ok(NewNode::Fifo),
        libc::S_IFSOCK => Ok(NewNode::Socket),
        libc::S_IFCHR => Ok(NewNode::CharDevice { rdev }),
        libc::S_IFBLK => Ok(NewNode::BlockDevice { rdev }),
        _ => Err(FsError::Invalid),
    }
}

/// What symlink makes.
pub(super) fn symlink_node(target: &Path) -> NewNode {
    NewNode::Symlink { target: Bytes::copy_from_slice(target.as_os_str().as_bytes()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rename_flags_that_exclude_each_other_or_are_unknown_are_invalid() {
        use fuser::RenameFlags as Flags;
        assert_eq!(rename_flags(Flags::empty()), Ok(RenameFlags::default()));
        assert_eq!(
            rename_flags(Flags::RENAME_NOREPLACE),
            Ok(RenameFlags { no_replace: true, exchange: false })
        );
        assert_eq!(rename_flags(Flags::RENAME_NOREPLACE | Flags::RENAME_EXCHANGE), Err(FsError::Invalid));
        assert_eq!(rename_flags(Flags::RENAME_WHITEOUT), Err(FsError::Invalid));
        assert_eq!(rename_flags(Flags::from_bits_retain(1 << 9)), Err(FsError::Invalid));
    }

    #[test]
    fn mknod_makes_every_type_but_directories_and_links() {
        assert_eq!(special_node(libc::S_IFREG | 0o644, 0), Ok(NewNode::File));
        assert_eq!(special_node(libc::S_IFCHR | 0o644, 259), Ok(NewNode::CharDevice { rdev: 259 }));
        assert_eq!(special_node(libc::S_IFDIR | 0o755, 0), Err(FsError::Invalid));
    }
}

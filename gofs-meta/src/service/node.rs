//! Inodes as replies show them.

use gofs_proto::convert::Node;
use gofs_proto::session as wire;
use gofs_tree::{FileType, FsError, Ino, Inode, Store};

use crate::state::TreeView;

/// The inode's record; [`FsError::Stale`] where there is none.
pub(super) fn inode(tree: &TreeView, ino: Ino) -> Result<Inode, FsError> {
    tree.inode(ino)?.ok_or(FsError::Stale)
}

/// The inode as a session may use it once; a grant is put in when the reply is sent.
pub(super) fn node(ino: Ino, inode: &Inode) -> wire::Node {
    (&Node::of(ino, inode, has_chunks(inode), None)).into()
}

/// Whether a file's bytes are in chunks, or will be: an allocated chunk may have no bytes yet.
fn has_chunks(inode: &Inode) -> bool {
    inode.file_type == FileType::File && inode.inline.is_empty() && inode.chunks > 0
}

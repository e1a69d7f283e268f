//! The operations of a file system, one a file.

mod attr;
mod copy;
mod create;
mod dir;
mod link;
mod locking;
mod lookup;
mod open;
mod read;
mod remove;
mod rename;
mod space;
mod statfs;
mod symlink;
mod sync;
mod write;
mod xattr;

pub(crate) use dir::OpenDir;
pub(crate) use open::OpenFile;

use gofs_proto::convert::Node;
use gofs_tree::Ino;

/// Whether a reply's nodes let the inode be cached.
fn is_granted(nodes: &[Node], ino: Ino) -> bool {
    nodes.iter().any(|node| node.attr.ino == ino && node.grant.is_some())
}

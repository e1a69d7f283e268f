//! Inodes as replies show them.

use gofs_proto::convert::Node;
use gofs_proto::session as wire;
use gofs_tree::{ChunkIndex, FileType, FsError, Ino, Inode, Store};

use super::connection::Member;
use crate::state::TreeView;

/// The inode's record; [`FsError::Stale`] where there is none.
pub(super) fn inode(tree: &TreeView, ino: Ino) -> Result<Inode, FsError> {
    tree.inode(ino)?.ok_or(FsError::Stale)
}

/// The inode as a session may use it once; a grant is put in when the reply is sent.
pub(super) fn node(member: &Member, ino: Ino, inode: &Inode) -> Result<wire::Node, FsError> {
    Ok((&Node::of(ino, inode, has_chunks(member, ino, inode)?, None)).into())
}

/// Whether a file's bytes are in chunks, or will be: an allocated chunk may have no bytes yet.
fn has_chunks(member: &Member, ino: Ino, inode: &Inode) -> Result<bool, FsError> {
    if inode.file_type != FileType::File || !inode.inline.is_empty() {
        return Ok(false);
    }
    if inode.blocks_4k > 0 {
        return Ok(true);
    }
    let state = member.term.shared.group.state();
    let just_before = Some((Ino(ino.0.saturating_sub(1)), ChunkIndex(u32::MAX)));
    let first = state.chunk_refs_from(member.namespace(), just_before, 1)?;
    Ok(first.first().is_some_and(|(owner, ..)| *owner == ino))
}

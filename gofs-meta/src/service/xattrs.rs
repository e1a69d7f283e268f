//! Xattrs: all extended attributes of an inode.

use std::sync::Arc;

use bytes::Bytes;
use gofs_proto::{convert, session as wire};
use gofs_tree::{FsError, LeaseMode, Store};
use prost::Message;

use super::Refusal;
use super::answer::Answer;
use super::connection::Member;
use super::node::inode;
use crate::lease::Need;

/// Most bytes of one reply, well within a frame's header.
const REPLY_MAX_BYTES: usize = 7 << 20;

pub(super) async fn serve(
    member: Arc<Member>,
    request: wire::Xattrs,
    answer: Answer<wire::Xattrs>,
) -> Result<(), Refusal> {
    let ino = convert::ino(request.ino)?;
    let operation = member.look(vec![Need::read(ino)]).await?;
    let tree = member.tree();
    let xattrs = if inode(&tree, ino)?.has_xattrs { tree.xattrs(ino)? } else { Vec::new() };
    let xattr = |(name, value): (gofs_tree::XattrName, Bytes)| wire::Xattr {
        name: Bytes::copy_from_slice(name.as_bytes()),
        value,
    };
    let mut reply = wire::XattrsReply { xattrs: xattrs.into_iter().map(xattr).collect(), grant: None };
    if reply.encoded_len() > REPLY_MAX_BYTES {
        return Err(FsError::TooBig.into());
    }
    operation.finish(|grants| {
        reply.grant = grants.grant(ino, LeaseMode::Read);
        answer.send(&reply);
    });
    Ok(())
}

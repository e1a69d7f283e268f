//! Fetch: an inode with a lease on it.

use std::sync::Arc;

use gofs_proto::{convert, session as wire};
use gofs_tree::{FileType, FsError, LeaseMode};

use super::Refusal;
use super::answer::Answer;
use super::connection::Member;
use super::node::{inode, node};
use crate::lease::Need;

pub(super) async fn serve(
    member: Arc<Member>,
    request: wire::Fetch,
    answer: Answer<wire::Fetch>,
) -> Result<(), Refusal> {
    let ino = convert::ino(request.ino)?;
    let want = convert::lease_mode(request.want)?;
    let need = match want {
        Some(LeaseMode::Write) => {
            // Types never change, so this look is as good as any.
            if inode(&member.tree(), ino)?.file_type != FileType::File {
                return Err(FsError::Invalid.into());
            }
            Need::change(ino)
        }
        _ => Need::read(ino),
    };
    let operation = member.look(vec![need]).await?;
    let node = node(&member, ino, &inode(&member.tree(), ino)?)?;
    operation.finish(|grants| {
        let grant = want.and_then(|mode| grants.grant(ino, mode));
        answer.send(&wire::FetchReply { node: Some(wire::Node { grant, ..node }) });
    });
    Ok(())
}

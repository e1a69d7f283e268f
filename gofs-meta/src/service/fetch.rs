//! Fetch: an inode with a lease on it.

use std::sync::Arc;

use gofs_proto::{convert, session as wire};
use gofs_tree::{FileType, FsError, LeaseMode, Store};

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
    let tree = member.tree();
    let record = inode(&tree, ino)?;
    if record.nlink == 0 && !tree.orphan(ino)?.is_some_and(|orphan| orphan.holders.contains(&member.session))
    {
        // Nobody opens anew what has no name any more: its holders' last close frees it.
        return Err(FsError::Stale.into());
    }
    let node = node(ino, &record);
    operation.finish(|grants| {
        let grant = want.and_then(|mode| grants.best(ino, Some(mode)));
        answer.send(&wire::FetchReply { node: Some(wire::Node { grant, ..node }) });
    });
    Ok(())
}

//! Lookup: a name in a directory, or that there is none.

use std::sync::Arc;

use gofs_proto::{convert, session as wire};
use gofs_tree::{FsError, LeaseMode, Store};

use super::answer::Answer;
use super::connection::Member;
use super::node::{inode, node};
use super::{AGAIN_MAX, Refusal};
use crate::lease::Need;

pub(super) async fn serve(
    member: Arc<Member>,
    request: wire::Lookup,
    answer: Answer<wire::Lookup>,
) -> Result<(), Refusal> {
    let parent = convert::ino(request.parent)?;
    let name = convert::name(&request.name)?;
    for _ in 0..AGAIN_MAX {
        // What the name means is known only when the operation runs; then it may mean something else.
        let expected = member.tree().entry(parent, &name)?.map(|entry| entry.ino);
        let needs = [Some(Need::read(parent)), expected.map(Need::read)];
        let operation = member.look(needs.into_iter().flatten().collect()).await?;
        let tree = member.tree();
        if !inode(&tree, parent)?.is_dir() {
            return Err(FsError::NotDirectory.into());
        }
        let found = tree.entry(parent, &name)?.map(|entry| entry.ino);
        if found != expected {
            continue;
        }
        let found = match found {
            Some(ino) => Some((ino, node(ino, &inode(&tree, ino)?))),
            None => None,
        };
        operation.finish(|grants| {
            let mut grant = |ino| grants.best(ino, Some(LeaseMode::Read));
            let dir = grant(parent);
            let node = found.map(|(ino, node)| wire::Node { grant: grant(ino), ..node });
            answer.send(&wire::LookupReply { node, dir });
        });
        return Ok(());
    }
    Err(Refusal::Retry("the name keeps changing".into()))
}

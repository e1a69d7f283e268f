//! Closed and Release: what a session has no more use for.

use std::sync::Arc;

use gofs_proto::{convert, session as wire};
use gofs_tree::{EditOp, Ino, Store};

use super::Refusal;
use super::answer::Answer;
use super::connection::Member;
use super::edits::commit_server_edits;
use crate::lease::Need;

/// The last handle on an inode that was registered as open is closed; if it is an orphan it is released.
pub(super) async fn closed(
    member: Arc<Member>,
    request: wire::Closed,
    answer: Answer<wire::Closed>,
) -> Result<(), Refusal> {
    let ino = convert::ino(request.ino)?;
    // Alone on the inode: an unlink that has counted this session as a holder commits first.
    let operation = member.operate(vec![Need::settle(ino)]).await?;
    let orphan = member.tree().orphan(ino)?;
    let holds = orphan.is_some_and(|orphan| orphan.holders.contains(&member.session));
    if holds {
        let release = EditOp::ReleaseOrphan { ino, session: member.session };
        for result in commit_server_edits(&member, vec![release]).await? {
            result?;
        }
    }
    let gone = holds && member.tree().inode(ino)?.is_none();
    operation.finish(|grants| {
        grants.leases.close(member.session, ino);
        if gone {
            grants.leases.forget_inode(ino);
        }
        answer.send(&wire::ClosedReply {});
    });
    Ok(())
}

/// Leases given back unasked.
pub(super) fn release(
    member: &Arc<Member>,
    request: &wire::Release,
    answer: &Answer<wire::Release>,
) -> Result<(), Refusal> {
    let inos = request.inos.iter().map(|&ino| convert::ino(ino)).collect::<Result<Vec<Ino>, _>>()?;
    let mut inner = member.space.lock();
    let effects = inner.leases.release(member.term.shared.now(), member.session, &inos);
    answer.send(&wire::ReleaseReply {});
    member.space.perform(&mut inner, effects);
    Ok(())
}

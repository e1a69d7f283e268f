//! Reserve: inode numbers for a session's own Creates.

use std::sync::Arc;

use gofs_proto::session as wire;

use super::Refusal;
use super::answer::Answer;
use super::connection::Member;
use crate::command::{Command, CommandOutcome};

/// Most numbers of one request: minutes of creates at full speed, and nothing of the 2^64 that there are.
const COUNT_MAX: u32 = 65_536;

/// Commits the reservation before it answers. Numbers of a reservation whose outcome is not known are lost: the counter
/// of this term has passed them, and the next term begins after all that was committed.
pub(super) async fn serve(
    member: Arc<Member>,
    request: wire::Reserve,
    answer: Answer<wire::Reserve>,
) -> Result<(), Refusal> {
    let count = request.count.clamp(1, COUNT_MAX);
    let first = member.space.new_inos(count);
    let command = Command::ReserveInos { session: member.session, first, count };
    match member.term.shared.group.propose(command).await? {
        CommandOutcome::Done => {
            answer.send(&wire::ReserveReply { first: first.0, count });
            Ok(())
        }
        CommandOutcome::Refused(refusal) => Err(refusal.into()),
        other => Err(Refusal::Retry(format!("the state answered {other:?} to a reservation"))),
    }
}

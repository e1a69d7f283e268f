//! KeepAlive and Goodbye.

use std::sync::Arc;

use gofs_proto::session as wire;

use super::Refusal;
use super::answer::Answer;
use super::connection::Member;

/// Renews the session. Only a server that is sure to lead may do that: another leader would count from its own start.
pub(super) async fn keep_alive(
    member: Arc<Member>,
    request: wire::KeepAlive,
    answer: Answer<wire::KeepAlive>,
) -> Result<(), Refusal> {
    member.term.shared.group.confirm_leader().await?;
    if !member.term.sessions.lock().heard(member.term.shared.now(), member.session) {
        return Err(Refusal::NoSession);
    }
    member.space.lock().reports.insert(member.session, request);
    let metas = member.term.shared.group.voter_addresses().borrow().clone();
    answer.send(&wire::KeepAliveReply { metas });
    Ok(())
}

/// Ends the session: everything was flushed and nothing is held.
pub(super) async fn goodbye(
    member: Arc<Member>,
    _: wire::Goodbye,
    answer: Answer<wire::Goodbye>,
) -> Result<(), Refusal> {
    tracing::info!(session = %member.session, ns = %member.namespace(), "a mount has left");
    member.term.end_session(member.session, member.namespace(), false).await?;
    answer.send(&wire::GoodbyeReply {});
    Ok(())
}

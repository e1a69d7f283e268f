//! Slices of a quota: given to sessions that ask, asked back when others need them or when the quota changes.
//!
//! A session that was told that something is not metered makes as much of it as it likes. Before that changes each is
//! told, and has answered when all that it made is committed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gofs_proto::session as wire;
use gofs_tree::{SessionId, Usage};
use tokio::task::JoinSet;

use super::Refusal;
use super::answer::Answer;
use super::connection::Member;
use super::space::{Inner, Space};
use super::term::Term;
use crate::command::{Command, CommandOutcome, NamespaceConfig};

/// No slice is given for so long after they were asked back: who needed the quota comes first.
const TIGHT: Duration = Duration::from_secs(2);
/// How long one round of asking waits for answers before it looks who is left.
const ROUND: Duration = Duration::from_secs(1);
/// Pause before those are asked again that had no connection.
const PAUSE: Duration = Duration::from_millis(50);

/// What a namespace meters.
fn metered(config: &NamespaceConfig, inner: &Inner) -> wire::Metered {
    let all = inner.metering > 0;
    wire::Metered { bytes: all || config.quota_bytes != 0, inodes: all || config.quota_inodes != 0 }
}

pub(super) async fn serve(
    member: Arc<Member>,
    request: wire::Delegate,
    answer: Answer<wire::Delegate>,
) -> Result<(), Refusal> {
    let amount = |wire: Option<wire::Amount>| {
        let wire::Amount { bytes, inodes } = wire.unwrap_or_default();
        Usage { bytes, inodes }
    };
    let group = &member.term.shared.group;
    let is_tight = {
        // Under the lock, here and below: what is not metered now is asked back over the same connection later.
        let inner = member.space.lock();
        let record = group.state().namespace(member.namespace())?.ok_or(Refusal::NoSession)?;
        let metered = metered(&record.config, &inner);
        if !(metered.bytes || metered.inodes || request.give_back) {
            answer.send(&wire::DelegateReply { given: request.known, metered: Some(metered) });
            return Ok(());
        }
        inner.metering > 0 || inner.tight_until.is_some_and(|until| member.space.shared.now() < until)
    };
    let want = if is_tight { Usage::default() } else { amount(request.want) };
    let (session, known, give_back) = (member.session, amount(request.known), request.give_back);
    let given = match group.propose(Command::Delegate { session, want, known, give_back }).await? {
        CommandOutcome::Delegated(given) => given,
        CommandOutcome::Refused(refusal) => return Err(refusal.into()),
        other => return Err(Refusal::Retry(format!("the state answered {other:?} to a wish for quota"))),
    };
    let inner = member.space.lock();
    let record = group.state().namespace(member.namespace())?.ok_or(Refusal::NoSession)?;
    answer.send(&wire::DelegateReply {
        given: Some(wire::Amount { bytes: given.bytes, inodes: given.inodes }),
        metered: Some(metered(&record.config, &inner)),
    });
    Ok(())
}

/// Waits until nothing is left of the slices of all sessions but this one.
pub(super) async fn recall(
    term: &Term,
    space: &Arc<Space>,
    except: Option<SessionId>,
) -> Result<(), Refusal> {
    space.lock().tight_until = Some(space.shared.now() + TIGHT);
    loop {
        let slices = term.shared.group.state().slices(space.id)?;
        let left: Vec<SessionId> = slices
            .into_iter()
            .map(|(session, _)| session)
            .filter(|session| Some(*session) != except)
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        ask(term, space, left).await?;
    }
}

/// Asks these sessions at once; those that have answered.
async fn ask(
    term: &Term,
    space: &Arc<Space>,
    sessions: impl IntoIterator<Item = SessionId>,
) -> Result<Vec<SessionId>, Refusal> {
    let mut asked = JoinSet::new();
    {
        let inner = space.lock();
        for session in sessions {
            let Some(link) = inner.link(session) else { continue };
            asked.spawn(async move {
                let answer = link.call(&wire::RecallSlice {}, Vec::new());
                matches!(tokio::time::timeout(ROUND, answer).await, Ok(Ok(_))).then_some(session)
            });
        }
    }
    let answered: Vec<SessionId> = asked.join_all().await.into_iter().flatten().collect();
    if term.is_over() {
        return Err(Refusal::NotLeader(None));
    }
    if answered.is_empty() {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(answered)
}

/// From now on everything in the namespace is metered and no slice is given, until it is dropped.
pub(super) struct Metering(Arc<Space>);

impl Drop for Metering {
    fn drop(&mut self) {
        self.0.lock().metering -= 1;
    }
}

/// Has every session of the namespace know that, with all that it made before committed.
pub(super) async fn meter(term: &Arc<Term>, space: Arc<Space>) -> Result<Metering, Refusal> {
    space.lock().metering += 1;
    let metering = Metering(space.clone());
    // Who is not back yet has made something, maybe.
    term.pass_grace().await?;
    let mut answered = BTreeSet::new();
    loop {
        let sessions = term.sessions.lock().of_namespace(space.id);
        let left: Vec<SessionId> =
            sessions.into_iter().filter(|session| !answered.contains(session)).collect();
        if left.is_empty() {
            break;
        }
        answered.extend(ask(term, &space, left).await?);
    }
    recall(term, &space, None).await?;
    Ok(metering)
}

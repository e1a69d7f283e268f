//! Edits: changes of the tree, each under the leases that it needs, committed through the EditLog.

use std::collections::BTreeSet;
use std::slice;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use gofs_proto::{convert, session as wire};
use gofs_tree::{Edit, EditOp, EditSeq, FileType, FsError, Ino, LeaseMode, Outcome, Store, Timestamp};

use super::answer::Answer;
use super::connection::Member;
use super::node::node;
use super::operation::{Grants, Operation};
use super::plan::{Numbers, Plan};
use super::{AGAIN_MAX, Refusal, slices};
use crate::command::{Command, CommandOutcome};
use crate::lease::Need;

/// Most edits of one request: so that a reply with the largest inline files still fits into a frame.
const EDITS_MAX: usize = 24;

/// What a session says about its own handles.
#[derive(Clone, Copy)]
struct Opens {
    here: bool,
    keep: bool,
}

/// Why a reply shows an inode, and so how a grant on it comes about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Showing {
    /// A directory whose entries changed: a lease that is held stays.
    Directory,
    /// What the edit was about.
    Subject,
    /// What the edit made.
    New,
}

/// What is known of an edit besides its outcome.
struct Asked {
    /// Of the inode that it makes.
    new: Option<FileType>,
    opens: Opens,
    /// The outcome is the recorded one of an earlier time.
    repeated: bool,
}

/// An edit that was committed, and what its reply shows.
struct Done {
    operation: Operation,
    outcome: Outcome,
    /// The outcome is the recorded one.
    repeated: bool,
    nodes: Vec<(Ino, Showing, wire::Node)>,
    /// The inode that was removed for good.
    gone: Option<Ino>,
    /// The inode without a name that the session has open.
    orphan: Option<Ino>,
    /// A new file that the session has open.
    kept: Option<Ino>,
}

pub(super) async fn serve(
    member: Arc<Member>,
    request: wire::Edits,
    answer: Answer<wire::Edits>,
) -> Result<(), Refusal> {
    let edits = received(&request.edits, request.first_seq, EDITS_MAX)?;
    let opens = Opens { here: request.open_here, keep: request.keep_open };
    let answered = EditSeq(request.answered_seq);
    let last = edits.len() - 1;
    let mut results = Vec::with_capacity(edits.len());
    for (at, edit) in edits.into_iter().enumerate() {
        let seq = EditSeq(request.first_seq.saturating_add(at as u64));
        match run(&member, seq, answered, edit, opens).await? {
            // A grant must leave before the next recall does, so only the last edit has some.
            Ok(done) if at < last => done.finish(&member, false, |result| results.push(result)),
            Ok(done) => {
                done.finish(&member, true, |result| {
                    results.push(result);
                    answer.send(&wire::EditsReply { results });
                });
                return Ok(());
            }
            Err(error) => results.push(wire::EditResult::new(Err(error), Vec::new())),
        }
    }
    answer.send(&wire::EditsReply { results });
    Ok(())
}

/// The edits of a request that may have so many.
pub(super) fn received(edits: &[Bytes], first_seq: u64, most: usize) -> Result<Vec<Edit>, Refusal> {
    if edits.is_empty() || edits.len() > most || first_seq == 0 {
        return Err(Refusal::BadRequest(format!("1 to {most} edits, numbered from 1")));
    }
    Ok(edits.iter().map(|bytes| convert::edit(bytes)).collect::<Result<Vec<Edit>, _>>()?)
}

/// Waits for the edit's turn and commits it.
async fn run(
    member: &Arc<Member>,
    seq: EditSeq,
    answered: EditSeq,
    edit: Edit,
    opens: Opens,
) -> Result<Result<Done, FsError>, Refusal> {
    for _ in 0..AGAIN_MAX {
        // What the names mean is known only when the operation runs; then they may mean something else.
        let plan = || plan(member, slice::from_ref(&edit), Numbers::ChosenHere);
        let expected = plan()?;
        let operation = turn(member, seq, expected.needs.clone()).await?;
        let plan = plan()?;
        if !plan.is_within(&expected) {
            continue;
        }
        let edit = fill_in(member, &operation, &edit, &plan, opens)?;
        let new = if let EditOp::Create { node, .. } = &edit.op { Some(node.file_type()) } else { None };
        let session = member.session;
        let command = Command::Edits { session, first_seq: seq, answered, edits: vec![edit] };
        let (outcome, repeated) = match member.term.shared.group.propose(command).await {
            Ok(CommandOutcome::Edits { results, repeated }) => match results.into_iter().next() {
                Some(result) => (result, repeated),
                None => {
                    // It needs quota that is in slices. Whoever has them may need these inodes first.
                    drop(operation);
                    slices::recall(&member.term, &member.space, None).await?;
                    continue;
                }
            },
            Ok(CommandOutcome::Refused(refusal)) => return Err(refusal.into()),
            Ok(other) => return Err(Refusal::Retry(format!("the state answered {other:?} to edits"))),
            Err(error) => {
                hold_until_known(member.clone(), operation);
                return Err(error.into());
            }
        };
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => return Ok(Err(error)),
        };
        let operation = if repeated { again(member, operation, &plan, &outcome).await? } else { operation };
        let asked = Asked { new, opens, repeated };
        return Ok(Ok(show(member, operation, plan, outcome, asked)?));
    }
    Err(Refusal::Retry("the names or the quota keep changing".into()))
}

/// Waits for the turn of an edit, which may be done already and come again because its answer was lost.
async fn turn(member: &Arc<Member>, seq: EditSeq, needs: Vec<Need>) -> Result<Operation, Refusal> {
    if member.term.shared.group.state().is_recorded(member.session, seq)? {
        return turn_of_done(member, needs).await;
    }
    member.operate(needs).await
}

/// The same of one that is done: it must not fail, or its author would make it once more under another number.
async fn turn_of_done(member: &Arc<Member>, needs: Vec<Need>) -> Result<Operation, Refusal> {
    member.operate_firmly(needs).await.map_err(|refusal| match refusal {
        // Refused to end a circle of such.
        Refusal::Fs(FsError::Stale) => Refusal::Retry("another session goes first".into()),
        other => other,
    })
}

/// An edit whose outcome is not known may still be committed later. Until that is settled nobody may look at what it
/// changes, or they would cache what is about to be wrong.
pub(super) fn hold_until_known(member: Arc<Member>, operation: Operation) {
    tokio::spawn(async move {
        member.term.shared.group.settle(member.term.number(), member.namespace()).await;
        drop(operation);
    });
}

/// The plan of edits for the tree as it is now.
pub(super) fn plan(member: &Member, edits: &[Edit], numbers: Numbers) -> Result<Plan, Refusal> {
    let plan = Plan::of(&member.tree(), edits, numbers)?;
    plan.ok_or_else(|| Refusal::BadRequest("an edit that only servers make".into()))
}

/// Chooses what the server chooses: a new inode's number, and who has an inode open that may lose its last name.
fn fill_in(
    member: &Member,
    operation: &Operation,
    edit: &Edit,
    plan: &Plan,
    opens: Opens,
) -> Result<Edit, Refusal> {
    let mut edit = edit.clone();
    if let EditOp::Create { ino, .. } = &mut edit.op {
        if ino.0 != 0 {
            return Err(Refusal::BadRequest("a new inode's number is the server's to choose".into()));
        }
        *ino = member.space.new_ino();
    }
    if let Some(holders) = edit.op.holders_mut() {
        let removed = plan.removes.first().and_then(|removed| removed.likely);
        *holders = removed.map(|ino| operation.holders(ino)).unwrap_or_default();
        holders.extend((removed.is_some() && opens.here).then_some(member.session));
        holders.sort_unstable();
        holders.dedup();
    }
    Ok(edit)
}

/// The inodes that a reply shows beside directories: those that the edit was about.
fn subjects(plan: &Plan, outcome: &Outcome) -> BTreeSet<Ino> {
    let told = [Some(outcome.ino), outcome.removed];
    let all = plan.inodes.iter().copied().chain(told.into_iter().flatten());
    all.filter(|ino| !plan.directories.contains(ino)).collect()
}

/// An edit that was answered from its record may be about other inodes than it would be about now: these are waited for.
async fn again(
    member: &Arc<Member>,
    operation: Operation,
    plan: &Plan,
    outcome: &Outcome,
) -> Result<Operation, Refusal> {
    drop(operation);
    let shown = subjects(plan, outcome).into_iter().chain(plan.directories.iter().copied());
    turn_of_done(member, shown.map(Need::read).collect()).await
}

/// Reads what the reply shows.
fn show(
    member: &Member,
    operation: Operation,
    plan: Plan,
    outcome: Outcome,
    asked: Asked,
) -> Result<Done, Refusal> {
    let Asked { new, opens, repeated } = asked;
    let tree = member.tree();
    let mut nodes = Vec::new();
    let subject = if new.is_some() { Showing::New } else { Showing::Subject };
    let directories = plan.directories.iter().map(|&ino| (ino, Showing::Directory));
    let subjects = subjects(&plan, &outcome).into_iter().map(|ino| (ino, subject));
    for (ino, showing) in directories.chain(subjects) {
        if let Some(inode) = tree.inode(ino)? {
            nodes.push((ino, showing, node(ino, &inode)));
        }
    }
    let stays = match outcome.removed {
        Some(ino) => tree.inode(ino)?.is_some(),
        None => false,
    };
    Ok(Done {
        operation,
        gone: outcome.removed.filter(|_| !stays),
        orphan: outcome.removed.filter(|_| stays && opens.here),
        kept: new.filter(|file_type| opens.keep && *file_type == FileType::File).map(|_| outcome.ino),
        outcome,
        repeated,
        nodes,
    })
}

impl Done {
    /// Makes the result, with grants if they can be given, and lets others go on.
    fn finish(self, member: &Member, with_grants: bool, reply: impl FnOnce(wire::EditResult)) {
        let Done { operation, outcome, repeated, nodes, gone, orphan, kept } = self;
        // What the names are now the session cannot tell from what became of its edit then.
        let with_grants = with_grants && !repeated;
        operation.finish(|grants| {
            let mut shown = Vec::with_capacity(nodes.len());
            for (ino, showing, node) in nodes {
                let grant = if with_grants { grant(grants, ino, showing) } else { None };
                if kept == Some(ino) && grant.is_none() {
                    grants.leases.register_open(member.session, ino);
                }
                shown.push(wire::Node { grant, ..node });
            }
            if let Some(ino) = gone {
                grants.leases.forget_inode(ino);
            }
            if let Some(ino) = orphan {
                grants.leases.register_open(member.session, ino);
            }
            reply(wire::EditResult::new(Ok(outcome), shown));
        });
    }
}

fn grant(grants: &mut Grants<'_>, ino: Ino, showing: Showing) -> Option<wire::Grant> {
    match showing {
        Showing::Directory => grants.best(ino, None),
        Showing::Subject => grants.best(ino, Some(LeaseMode::Read)),
        Showing::New => grants.made(ino),
    }
}

/// Commits edits that the server makes by itself.
pub(super) async fn commit_server_edits(
    member: &Member,
    ops: Vec<EditOp>,
) -> Result<Vec<Result<Outcome, FsError>>, Refusal> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let secs = i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX);
    let time = Timestamp::new(secs, since_epoch.subsec_nanos());
    let edits = ops.into_iter().map(|op| Edit { time, op }).collect();
    let command = Command::ServerEdits { namespace: member.namespace(), edits };
    match member.term.shared.group.propose(command).await? {
        CommandOutcome::Edits { results, .. } => Ok(results),
        CommandOutcome::Refused(refusal) => Err(refusal.into()),
        other => Err(Refusal::Retry(format!("the state answered {other:?} to edits"))),
    }
}

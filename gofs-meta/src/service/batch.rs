//! Batch: edits that their author has applied already, committed together as one entry of the EditLog.
//!
//! All of them are one operation of the lease table. A batch that comes again, because its answer was lost, is
//! answered from the session's record; what the answer shows besides is made anew.
//!
//! What a batch makes its author holds under Write from before it was sent. So the lease is in the table before the edit is
//! committed, and whoever wants what was made waits for its author, wherever the answer is.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use gofs_proto::session as wire;
use gofs_tree::{ChunkId, Edit, EditOp, EditSeq, FsError, Ino, Outcome, Store};

use super::answer::Answer;
use super::connection::Member;
use super::edits::{self, hold_until_known, received};
use super::operation::Operation;
use super::plan::{Meaning, Numbers, Plan};
use super::{AGAIN_MAX, Refusal, chunk_map, slices};
use crate::command::{Command, CommandOutcome};
use crate::state::TreeView;

/// Most edits of one batch: enough to make its commit's cost small for each, few enough that others do not wait long
/// for its turn to end, and that its answer (a few hundred bytes for each edit) is far below a frame's bound.
const EDITS_MAX: usize = 512;

type Results = Vec<Result<Outcome, FsError>>;

pub(super) async fn serve(
    member: Arc<Member>,
    request: wire::Batch,
    answer: Answer<wire::Batch>,
) -> Result<(), Refusal> {
    let edits = received(&request.edits, request.first_seq, EDITS_MAX)?;
    if edits.iter().any(|edit| edit.op.holders().iter().any(|&holder| holder != member.session)) {
        return Err(Refusal::BadRequest("who else has an inode open is the server's to say".into()));
    }
    let sequence = Sequence { first: EditSeq(request.first_seq), answered: EditSeq(request.answered_seq) };
    let (operation, results) = commit(&member, sequence, &edits).await?;
    let shown = Shown::read(&member, &edits, &results)?;
    chunk_map::placed(&member, &request.placed, &shown.chunks).await?;
    operation.finish(|grants| {
        for &ino in &shown.gone {
            grants.leases.forget_inode(ino);
        }
        for &ino in &shown.orphans {
            grants.leases.register_open(member.session, ino);
        }
        for &ino in &shown.unmade {
            grants.not_made(ino);
        }
        let granted = shown.made.iter().filter_map(|&ino| grants.confirm_made(ino)).collect();
        answer.send(&wire::BatchReply { results: shown.results(&edits, &results), grants: granted });
    });
    Ok(())
}

fn plan(member: &Member, edits: &[Edit]) -> Result<Plan, Refusal> {
    edits::plan(member, edits, Numbers::ChosenByAuthor)
}

/// What the edits make that is not there (yet).
fn unmade(tree: &TreeView, edits: &[Edit]) -> Result<Vec<Ino>, FsError> {
    let mut unmade = Vec::new();
    for edit in edits {
        if let EditOp::Create { ino, .. } = edit.op
            && tree.inode(ino)?.is_none()
        {
            unmade.push(ino);
        }
    }
    Ok(unmade)
}

/// Waits for the turn of all edits, and plans them for the tree as it is then.
async fn begin(member: &Arc<Member>, edits: &[Edit]) -> Result<(Operation, Plan), Refusal> {
    let state = member.term.shared.group.state();
    for _ in 0..AGAIN_MAX {
        // What the names mean is known only when the operation runs; then they may mean something else.
        let applied = state.applied();
        let expected = plan(member, edits)?;
        let operation =
            member.operate_firmly(expected.needs.clone()).await.map_err(|refusal| match refusal {
                // Refused to end a circle. Nobody has seen an error of these edits, so they are sent again.
                Refusal::Fs(FsError::Stale) => Refusal::Retry("another session's edits go first".into()),
                other => other,
            })?;
        if state.applied() == applied {
            return Ok((operation, expected));
        }
        let now = plan(member, edits)?;
        if now.is_within(&expected) {
            return Ok((operation, now));
        }
    }
    Err(Refusal::Retry("the names keep changing".into()))
}

#[derive(Clone, Copy)]
struct Sequence {
    first: EditSeq,
    answered: EditSeq,
}

/// Commits the edits: as one entry, unless it depends on the success of some who holds what others remove, or one needs
/// quota that other sessions have slices of.
async fn commit(
    member: &Arc<Member>,
    sequence: Sequence,
    edits: &[Edit],
) -> Result<(Operation, Results), Refusal> {
    let (mut operation, mut plan) = begin(member, edits).await?;
    operation.makes(unmade(&member.tree(), edits)?);
    let mut results = Results::with_capacity(edits.len());
    while results.len() < edits.len() {
        let part = fill_in(&operation, &edits[results.len()..], &plan.removes);
        let (session, count) = (member.session, part.len());
        let first_seq = EditSeq(sequence.first.0.saturating_add(results.len() as u64));
        let command = Command::Batch { session, first_seq, answered: sequence.answered, edits: part };
        match member.term.shared.group.propose(command).await {
            Ok(CommandOutcome::Edits { results: part, .. }) if part.len() == count => {
                results.extend(part);
                if results.len() < edits.len() {
                    plan = self::plan(member, &edits[results.len()..])?;
                }
            }
            Ok(CommandOutcome::Edits { results: part, .. }) if part.len() < count => {
                results.extend(part);
                // Whoever has the slices may need these inodes first.
                drop(operation);
                slices::recall(&member.term, &member.space, Some(session)).await?;
                (operation, plan) = begin(member, &edits[results.len()..]).await?;
            }
            Ok(CommandOutcome::Refused(refusal)) => return Err(refusal.into()),
            Ok(other) => return Err(Refusal::Retry(format!("the state answered {other:?} to edits"))),
            Err(error) => {
                hold_until_known(member.clone(), operation);
                return Err(error.into());
            }
        }
    }
    Ok((operation, results))
}

/// The first of these edits, at least one, with the sessions that have open what they remove. Where other sessions
/// have an inode open that an edit removes only if some before it fail, those come first.
fn fill_in(operation: &Operation, edits: &[Edit], removes: &[Meaning]) -> Vec<Edit> {
    let open = operation.holders_among(removes.iter().flat_map(|removed| removed.possible.iter().copied()));
    let unclear = |at: &usize| {
        let removed = &removes[*at];
        removed.possible.iter().any(|&ino| removed.likely != Some(ino) && open.contains_key(&ino))
    };
    let upto = (1..edits.len()).find(unclear).unwrap_or(edits.len());
    let part = edits[..upto].iter().zip(removes).map(|(edit, removed)| {
        let mut edit = edit.clone();
        if let Some(holders) = edit.op.holders_mut() {
            holders.extend(removed.likely.and_then(|ino| open.get(&ino)).into_iter().flatten());
            holders.sort_unstable();
            holders.dedup();
        }
        edit
    });
    part.collect()
}

/// What the answer shows, as it is after all edits.
#[derive(Default)]
struct Shown {
    /// Made by the batch and still there.
    made: Vec<Ino>,
    /// Not made, or removed since.
    unmade: Vec<Ino>,
    /// Removed for good.
    gone: Vec<Ino>,
    /// Removed, but the author has them open.
    orphans: Vec<Ino>,
    /// Inodes whose content or attributes were edited.
    attrs: HashMap<Ino, wire::Attr>,
    /// Chunks that files got and still have.
    chunks: Vec<ChunkId>,
}

impl Shown {
    fn read(member: &Member, edits: &[Edit], results: &Results) -> Result<Shown, Refusal> {
        let tree = member.tree();
        let mut shown = Shown { unmade: unmade(&tree, edits)?, ..Shown::default() };
        let mut removed: BTreeSet<Ino> = BTreeSet::new();
        for (edit, result) in edits.iter().zip(results) {
            if let Some(ino) = content_of(&edit.op)
                && !shown.attrs.contains_key(&ino)
                && let Some(inode) = tree.inode(ino)?
            {
                shown.attrs.insert(ino, (&inode.attr(ino)).into());
            }
            let Ok(outcome) = result else { continue };
            if matches!(edit.op, EditOp::Create { .. }) && tree.inode(outcome.ino)?.is_some() {
                shown.made.push(outcome.ino);
            }
            if let EditOp::AddChunk { ino, index, chunk } = edit.op
                && tree.chunk(ino, index)?.is_some_and(|reference| reference.chunk == chunk)
            {
                shown.chunks.push(chunk);
            }
            removed.extend(outcome.removed);
        }
        for ino in removed {
            if tree.inode(ino)?.is_none() {
                shown.gone.push(ino);
            } else if tree.orphan(ino)?.is_some_and(|orphan| orphan.holders.contains(&member.session)) {
                shown.orphans.push(ino);
            }
        }
        Ok(shown)
    }

    fn results(&self, edits: &[Edit], results: &Results) -> Vec<wire::BatchResult> {
        let result = |(edit, result): (&Edit, &Result<Outcome, FsError>)| wire::BatchResult {
            fs_error: result.err().map_or(0, |error| error.code()),
            removed: result.ok().and_then(|outcome| outcome.removed).map_or(0, |ino| ino.0),
            attr: content_of(&edit.op).and_then(|ino| self.attrs.get(&ino).cloned()),
        };
        edits.iter().zip(results).map(result).collect()
    }
}

/// The inode that the edit is about, where its author needs to know what became of it.
fn content_of(op: &EditOp) -> Option<Ino> {
    match op {
        EditOp::WriteInline { ino, .. }
        | EditOp::Extend { ino, .. }
        | EditOp::Allocate { ino, .. }
        | EditOp::Punch { ino, .. }
        | EditOp::SetAttr { ino, .. } => Some(*ino),
        EditOp::Create { .. }
        | EditOp::Link { .. }
        | EditOp::Unlink { .. }
        | EditOp::Rmdir { .. }
        | EditOp::Rename { .. }
        | EditOp::SetXattr { .. }
        | EditOp::RemoveXattr { .. }
        | EditOp::AddChunk { .. }
        | EditOp::ReleaseOrphan { .. } => None,
    }
}

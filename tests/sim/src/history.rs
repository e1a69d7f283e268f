//! What clients did, in one order: that in which calls began and returned.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Calls and returns, numbered across all clients.
pub type Tick = u64;

/// What an operation is about: operations on different objects say nothing of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// A directory with all its names.
    Directory(usize),
    /// A block of a file.
    Block(usize, usize),
    /// A file's permission bits.
    Mode(usize),
    /// A lock of a byte of a file.
    Lock(u64),
    /// The log that records are appended to.
    Log,
    /// The numbered files of a client.
    Numbered(usize),
}

/// A name: in which directory, and which.
pub type Place = (usize, u8);

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A file that must not exist yet.
    Create(Place),
    /// Removes a name.
    Unlink(Place),
    /// Renames; what has the new name goes.
    Rename(Place, Place),
    /// Looks one name up.
    Lookup(Place),
    /// Reads a whole directory.
    List(usize),
    /// Writes the block, or the permission bits.
    Write(u64),
    /// Reads them.
    Read,
    /// Takes the lock.
    Lock,
    /// Gives it back.
    Unlock,
    /// Appends a record.
    Append(u64),
    /// Makes the next numbered file.
    Number(u64),
    /// `fsync` of the object: what was done before is durable.
    Sync,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done. A create tells the inode.
    Done(Option<u64>),
    /// There is no such name.
    Absent,
    /// There is one already, or another holds the lock.
    Exists,
    /// A name's inode.
    Found(u64),
    /// All names and inodes.
    Names(BTreeMap<Place, u64>),
    /// What a block holds.
    Value(u64),
    /// Refused, nothing was changed.
    Refused,
    /// An error after which it may have been done or not.
    Unknown,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Op {
    /// Which client, counted over restarts.
    pub client: usize,
    /// Its session when the operation began; 0: none.
    pub session: u64,
    /// Whether it was the same when it returned.
    pub same_session: bool,
    /// About what.
    pub object: Object,
    /// What was asked.
    pub action: Action,
    /// When.
    pub call: Tick,
    /// When it returned, and what; `None`: never.
    pub answer: Option<(Tick, Answer)>,
    /// What the client had counted as lost when it began, and when it returned.
    pub lost: (u64, u64),
}

#[derive(Default)]
struct Inner {
    tick: Tick,
    ops: Vec<Op>,
    /// Sessions that ended, or stand at the end, with everything sent.
    clean: Vec<u64>,
}

/// Shared by all clients.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Inner>>);

impl History {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operation begins.
    pub fn call(&self, client: usize, session: u64, lost: u64, object: Object, action: Action) -> usize {
        let mut inner = self.lock();
        inner.tick += 1;
        let call = inner.tick;
        tracing::debug!(call, client, session, ?object, ?action);
        let lost = (lost, lost);
        inner.ops.push(Op { client, session, same_session: true, object, action, call, answer: None, lost });
        inner.ops.len() - 1
    }

    /// It returns.
    pub fn returned(&self, op: usize, session: u64, lost: u64, answer: Answer) {
        let mut inner = self.lock();
        inner.tick += 1;
        let tick = inner.tick;
        let op = &mut inner.ops[op];
        tracing::debug!(returned = tick, call = op.call, client = op.client, ?answer);
        op.same_session = op.session == session;
        op.lost.1 = lost;
        op.answer = Some((tick, answer));
    }

    /// Nothing of that session is unsent.
    pub fn is_clean(&self, session: u64) {
        self.lock().clean.push(session);
    }

    /// All operations, and the clean sessions.
    pub fn take(&self) -> (Vec<Op>, Vec<u64>) {
        let inner = self.lock();
        (inner.ops.clone(), inner.clean.clone())
    }

    /// How many operations returned.
    pub fn returned_count(&self) -> usize {
        self.lock().ops.iter().filter(|op| op.answer.is_some()).count()
    }
}

impl Action {
    /// Whether it changes anything.
    pub fn changes(&self) -> bool {
        !matches!(self, Action::Lookup(_) | Action::List(_) | Action::Read | Action::Sync)
    }

    /// The directories that it is about, in order.
    pub fn directories(&self) -> BTreeSet<usize> {
        match self {
            Action::Create(name) | Action::Unlink(name) | Action::Lookup(name) => BTreeSet::from([name.0]),
            Action::Rename(from, to) => BTreeSet::from([from.0, to.0]),
            Action::List(directory) => BTreeSet::from([*directory]),
            _ => BTreeSet::new(),
        }
    }
}

/// Whether an operation must have happened, may have, or says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It happened, between call and return.
    Certain,
    /// It happened between call and return (or later, if it did not return), or not at all.
    Possible,
    /// Left out.
    Void,
}

/// Judges every operation by what is promised: what was not made durable goes with the session of its client; with
/// `blackouts` also while that lives, but a sync tells.
pub fn standings(ops: &[Op], clean: &[u64], blackouts: bool) -> Vec<Standing> {
    let syncs: Vec<&Op> = ops.iter().filter(|op| op.action == Action::Sync).collect();
    let mut standings: Vec<Standing> = ops.iter().map(|op| standing(op, ops, &syncs, clean)).collect();
    if blackouts {
        let unsure: Vec<usize> =
            (0..ops.len()).filter(|&at| is_unsure(at, ops, &syncs, &standings)).collect();
        unsure.into_iter().for_each(|at| standings[at] = Standing::Possible);
    }
    standings
}

/// Whether a blackout may have taken a certain change of a block back for a while, or for good, and no sync tells: what was cut off
/// before it was synced may have been lost before that, and what had been cut off may be there again where the file grew over it and
/// that was lost.
fn is_unsure(at: usize, ops: &[Op], syncs: &[&Op], standings: &[Standing]) -> bool {
    let op = &ops[at];
    let Object::Block(file, _) = op.object else { return false };
    let is_change = op.action.changes() && standings[at] == Standing::Certain;
    let later = || ops.iter().zip(standings).filter(|(later, _)| later.call > op.call);
    let synced_before = |cut: &Op| syncs.iter().any(|sync| has_synced(sync, op, cut.call));
    let cut_later = || {
        later().any(|(it, _)| it.object == op.object && it.action == Action::Write(0) && !synced_before(it))
    };
    let grown_and_lost = || {
        let is_lost = |(it, standing): (&Op, &Standing)| {
            matches!(it.object, Object::Block(other, _) if other == file)
                && it.action.changes()
                && *standing == Standing::Possible
        };
        op.action == Action::Write(0) && later().any(is_lost)
    };
    is_change && (cut_later() || grown_and_lost())
}

fn standing(op: &Op, ops: &[Op], syncs: &[&Op], clean: &[u64]) -> Standing {
    let Some((returned, answer)) = &op.answer else {
        return if op.action.changes() { Standing::Possible } else { Standing::Void };
    };
    match answer {
        Answer::Refused => return Standing::Void,
        Answer::Unknown => return if op.action.changes() { Standing::Possible } else { Standing::Void },
        _ => {}
    }
    if op.action == Action::Sync {
        return Standing::Void;
    }
    let did = op.action.changes() && !matches!(answer, Answer::Absent | Answer::Exists);
    if did {
        return if !op.same_session || is_lossy(op, *returned, syncs, clean) {
            Standing::Possible
        } else {
            Standing::Certain
        };
    }
    // What a client found that nobody else was to see says nothing.
    let own = ops.iter().any(|other| {
        // In its next session a mount knows what the servers do.
        let is_seen = other.session == op.session || !other.same_session || !op.same_session;
        is_seen
            && other.client == op.client
            && other.object == op.object
            && other.action.changes()
            && other.call < *returned
            && other.answer.as_ref().is_none_or(|(at, answer)| {
                *answer == Answer::Unknown || !other.same_session || is_lossy(other, *at, syncs, clean)
            })
    });
    if own { Standing::Void } else { Standing::Certain }
}

/// Whether a sync is one of what the change was of.
fn covers(sync: &Op, op: &Op) -> bool {
    match (sync.object, op.object) {
        (Object::Block(synced, _), Object::Block(file, _)) => synced == file,
        (Object::Log, Object::Log) => true,
        // The log of edits is one: any sync covers names and attributes.
        (_, Object::Directory(_) | Object::Numbered(_) | Object::Mode(_)) => true,
        _ => false,
    }
}

/// Whether a change was made durable by that sync, before `by`.
fn has_synced(sync: &Op, op: &Op, by: Tick) -> bool {
    let began_after = op.answer.as_ref().is_some_and(|(returned, _)| *returned <= sync.call);
    let has_ended = matches!(&sync.answer, Some((at, Answer::Done(_))) if *at < by);
    let is_whole = sync.same_session && sync.session == op.session && sync.lost.1 <= op.lost.0;
    covers(sync, op) && began_after && has_ended && is_whole
}

/// Whether a change may be gone: its session ended, or an error was told or something counted as lost, before it was made
/// durable.
fn is_lossy(op: &Op, returned: Tick, syncs: &[&Op], clean: &[u64]) -> bool {
    for sync in syncs {
        if sync.session != op.session || !covers(sync, op) {
            continue;
        }
        if sync.call < returned {
            // It tells also of what was written while it was under way.
            let tells = |(at, answer): &(Tick, Answer)| *at > op.call && !matches!(answer, Answer::Done(_));
            match sync.answer.as_ref().is_some_and(tells) {
                true => return true,
                false => continue,
            }
        }
        match &sync.answer {
            // A handle that was opened after a loss is not told of it.
            Some((_, Answer::Done(_))) if sync.same_session => return sync.lost.1 > op.lost.0,
            Some(_) => return true,
            None => {}
        }
    }
    !clean.contains(&op.session)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An operation of session 1.
    pub fn op(
        client: usize,
        object: Object,
        action: Action,
        call: Tick,
        returned: Tick,
        answer: Answer,
    ) -> Op {
        let answer = Some((returned, answer));
        Op { client, session: 1, same_session: true, object, action, call, answer, lost: (0, 0) }
    }

    fn judged(ops: &[Op], clean: &[u64]) -> Vec<Standing> {
        standings(ops, clean, false)
    }

    #[test]
    fn what_was_synced_is_certain_and_what_came_later_went_with_its_session() {
        let b = Object::Block(1, 0);
        let ops = [
            op(1, b, Action::Write(1), 1, 2, Answer::Done(None)),
            op(1, Object::Block(1, 2), Action::Sync, 3, 4, Answer::Done(None)),
            op(1, b, Action::Write(2), 5, 6, Answer::Done(None)),
            op(1, b, Action::Read, 7, 8, Answer::Value(2)),
            op(2, b, Action::Read, 7, 8, Answer::Value(1)),
        ];
        let (certain, possible, void) = (Standing::Certain, Standing::Possible, Standing::Void);
        assert_eq!(judged(&ops, &[]), [certain, void, possible, void, certain]);
        assert_eq!(judged(&ops, &[1]), [certain, void, certain, certain, certain]);
    }

    #[test]
    fn a_sync_that_failed_makes_what_was_before_possible_also_where_the_session_lives() {
        let ops = [
            op(1, Object::Log, Action::Append(1), 1, 2, Answer::Done(None)),
            op(1, Object::Log, Action::Sync, 3, 4, Answer::Unknown),
        ];
        assert_eq!(judged(&ops, &[1])[0], Standing::Possible);
    }

    #[test]
    fn a_sync_that_failed_tells_of_what_was_written_while_it_was_under_way_and_of_nothing_later() {
        let ops = [
            op(1, Object::Log, Action::Append(1), 2, 5, Answer::Done(None)),
            op(1, Object::Log, Action::Sync, 1, 4, Answer::Unknown),
            op(1, Object::Log, Action::Append(2), 6, 7, Answer::Done(None)),
            op(1, Object::Log, Action::Sync, 8, 9, Answer::Done(None)),
        ];
        let standings = judged(&ops, &[]);
        assert_eq!((standings[0], standings[2]), (Standing::Possible, Standing::Certain));
    }

    #[test]
    fn no_sync_tells_of_what_a_blackout_took_before_the_file_was_cut() {
        let b = Object::Block(1, 0);
        let ops = [
            op(1, b, Action::Write(1), 1, 2, Answer::Done(None)),
            op(2, b, Action::Read, 3, 4, Answer::Value(0)),
            op(2, b, Action::Write(0), 5, 6, Answer::Done(None)),
            op(1, b, Action::Write(2), 7, 8, Answer::Done(None)),
            op(1, b, Action::Sync, 9, 10, Answer::Done(None)),
        ];
        let standings = |blackouts| standings(&ops, &[1], blackouts);
        assert_eq!((standings(false)[0], standings(false)[3]), (Standing::Certain, Standing::Certain));
        assert_eq!((standings(true)[0], standings(true)[3]), (Standing::Possible, Standing::Certain));
    }

    #[test]
    fn what_was_cut_off_may_be_there_again_where_the_file_grew_over_it_and_a_blackout_took_that() {
        let b = Object::Block(1, 0);
        let cut = [
            op(1, b, Action::Write(0), 1, 2, Answer::Done(None)),
            op(1, b, Action::Sync, 3, 4, Answer::Done(None)),
        ];
        let grown = op(1, Object::Block(1, 1), Action::Write(2), 5, 6, Answer::Done(None));
        assert_eq!(standings(&cut, &[], true)[0], Standing::Certain);
        assert_eq!(standings(&[&cut[..], &[grown]].concat(), &[], true)[0], Standing::Possible);
    }

    #[test]
    fn what_was_synced_was_there_before_it_was_cut_off_and_what_was_not_may_have_been_lost() {
        let b = Object::Block(1, 0);
        let written = op(1, b, Action::Write(2), 1, 2, Answer::Done(None));
        let synced = |call| op(1, b, Action::Sync, call, call + 1, Answer::Done(None));
        let cut = op(1, b, Action::Write(0), 5, 6, Answer::Done(None));
        let judged = |ops: &[Op]| standings(ops, &[1], true)[0];
        assert_eq!(judged(&[written.clone(), synced(3), cut.clone()]), Standing::Certain);
        assert_eq!(judged(&[written, cut, synced(7)]), Standing::Possible);
    }

    #[test]
    fn what_went_with_a_session_nobody_finds_in_the_next() {
        let b = Object::Block(1, 0);
        let written = op(1, b, Action::Write(2), 1, 2, Answer::Done(None));
        let read = |session| Op { session, ..op(1, b, Action::Read, 7, 8, Answer::Value(2)) };
        assert_eq!(judged(&[written.clone(), read(1)], &[])[1], Standing::Void);
        assert_eq!(judged(&[written.clone(), read(2)], &[])[1], Standing::Certain);
        let over_the_end = Op { same_session: false, ..read(1) };
        assert_eq!(judged(&[written, over_the_end], &[])[1], Standing::Void);
    }

    #[test]
    fn a_sync_after_a_loss_makes_only_what_came_after_it_certain() {
        let loss = |op: Op, lost| Op { lost, ..op };
        let ops = [
            loss(op(1, Object::Log, Action::Append(1), 1, 2, Answer::Done(None)), (0, 0)),
            loss(op(1, Object::Log, Action::Append(2), 3, 4, Answer::Done(None)), (64, 64)),
            loss(op(1, Object::Log, Action::Sync, 5, 6, Answer::Done(None)), (64, 64)),
        ];
        assert_eq!(judged(&ops, &[])[..2], [Standing::Possible, Standing::Certain]);
    }

    #[test]
    fn a_sync_of_another_file_says_nothing_of_bytes_but_all_of_names() {
        let sync = op(1, Object::Block(2, 0), Action::Sync, 3, 4, Answer::Done(None));
        let bytes = op(1, Object::Block(1, 0), Action::Write(1), 1, 2, Answer::Done(None));
        let made = op(1, Object::Numbered(0), Action::Number(1), 1, 2, Answer::Done(Some(5)));
        assert_eq!(judged(&[bytes, sync.clone()], &[])[0], Standing::Possible);
        assert_eq!(judged(&[made, sync], &[])[0], Standing::Certain);
    }
}

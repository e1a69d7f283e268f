//! The log of edits that were applied here: what waits to be sent, what is on its way.
//!
//! One batch is on its way at a time, so the servers apply everything in the order of the log.

use std::collections::VecDeque;

use bytes::Bytes;
use gofs_proto::session::Placed;
use gofs_tree::{Attr, FsError, Ino};
use tokio::sync::oneshot;

use crate::lease::Position;
use crate::slices::TakenInode;

/// Most edits of a batch: the servers take no more.
pub const BATCH_EDITS_MAX: usize = 512;
/// Bytes after which a batch ends.
const BATCH_BYTES: usize = 1 << 20;
/// Most edits that wait before those who make more are slowed down to the servers' pace.
const EDITS_MAX: usize = 8192;
/// Bytes of these.
const BYTES_MAX: usize = 16 << 20;

/// An edit in the log.
#[derive(Debug)]
pub struct Logged {
    /// As it travels.
    pub edit: Bytes,
    /// The inodes that it changes.
    pub touched: Vec<Ino>,
    /// The one that it makes.
    pub made: Option<Ino>,
    /// Where the chunk is that it gives to a file.
    pub placed: Option<Placed>,
    /// The inode that it makes is out of the session's slice of the quota.
    pub taken: Option<TakenInode>,
    /// It stands for edits that were taken back: all it does is to set the times of the directory in which they were.
    pub stands_in: Option<StandsIn>,
    /// Whoever waits for the outcome: the attributes after a change of a file's contents.
    pub waiter: Option<oneshot::Sender<Result<Attr, FsError>>>,
}

/// What an edit stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandsIn {
    /// The directory of the edits that it replaces.
    pub directory: Ino,
    /// How many places of the log they had.
    places: u64,
}

impl Logged {
    /// Places of the log that it has, its own included.
    fn places(&self) -> u64 {
        1 + self.stands_in.map_or(0, |stands_in| stands_in.places)
    }
}

/// What a batch carries.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// In order.
    pub edits: Vec<Bytes>,
    /// The places of their chunks.
    pub placed: Vec<Placed>,
}

/// Whether there is something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Nothing.
    Idle,
    /// Something, and nobody waits for it: more may be gathered.
    Gather,
    /// At once.
    Now,
}

/// See the module.
#[derive(Debug, Default)]
pub struct EditLog {
    waiting: VecDeque<Logged>,
    on_its_way: Vec<Logged>,
    bytes: usize,
    last: Position,
    done: Position,
    /// Somebody waits for everything up to here.
    wanted: Position,
}

impl EditLog {
    /// Appends an edit.
    pub fn push(&mut self, edit: Logged) -> Position {
        self.last = Position(self.last.0 + 1);
        if edit.waiter.is_some() {
            self.wanted = self.last;
        }
        self.bytes += edit.edit.len();
        self.waiting.push_back(edit);
        self.last
    }

    /// Takes back the end of the log where all it does is to make this inode in `directory` and to change it, so that
    /// nothing of it is sent; `None` where anything else came between, or somebody waits for one of them. What is appended next
    /// must have the second as its `stands_in`: who waits for one of these places waits for that.
    pub fn take_back(&mut self, made: Ino, directory: Ino) -> Option<(Vec<Logged>, StandsIn)> {
        let is_about = |edit: &Logged| {
            let of_directory = edit.stands_in.is_some_and(|stands_in| stands_in.directory == directory);
            edit.waiter.is_none() && edit.placed.is_none() && (of_directory || edit.touched == [made])
        };
        let at = self.waiting.iter().rposition(|edit| edit.made == Some(made) || !is_about(edit))?;
        if self.waiting[at].made != Some(made) {
            return None;
        }
        // What stands for edits of an earlier inode of this directory, and goes before this one, is replaced as well.
        let first = self.waiting.range(..at).rposition(|edit| !is_about(edit)).map_or(0, |before| before + 1);
        let taken_back: Vec<Logged> = self.waiting.drain(first..).collect();
        self.bytes -= taken_back.iter().map(|edit| edit.edit.len()).sum::<usize>();
        let places = taken_back.iter().map(Logged::places).sum();
        Some((taken_back, StandsIn { directory, places }))
    }

    /// Whether edits that nobody waits for may be added.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < EDITS_MAX && self.bytes < BYTES_MAX
    }

    /// The place of the newest edit.
    pub fn last(&self) -> Position {
        self.last
    }

    /// The servers have answered everything up to here, or never will.
    pub fn is_done(&self, upto: Position) -> bool {
        self.done >= upto
    }

    /// How many edits the servers do not have.
    pub fn len(&self) -> usize {
        self.waiting.len() + self.on_its_way.len()
    }

    /// Somebody waits for everything up to here.
    pub fn want(&mut self, upto: Position) {
        self.wanted = self.wanted.max(upto);
    }

    /// How soon the next batch should go.
    pub fn pace(&self) -> Pace {
        if self.waiting.is_empty() {
            Pace::Idle
        } else if self.wanted > self.done
            || self.waiting.len() >= BATCH_EDITS_MAX
            || self.bytes >= BATCH_BYTES
        {
            Pace::Now
        } else {
            Pace::Gather
        }
    }

    /// The next batch, empty where nothing waits. The one before must have been answered.
    pub fn begin_batch(&mut self) -> Outgoing {
        debug_assert!(self.on_its_way.is_empty(), "one batch at a time");
        let mut batch = Outgoing::default();
        let mut bytes = 0;
        while batch.edits.len() < BATCH_EDITS_MAX
            && bytes < BATCH_BYTES
            && let Some(next) = self.waiting.pop_front()
        {
            bytes += next.edit.len();
            batch.edits.push(next.edit.clone());
            batch.placed.extend(next.placed.clone());
            self.on_its_way.push(next);
        }
        self.bytes -= bytes;
        batch
    }

    /// What the batch on its way makes.
    pub fn making(&self) -> impl Iterator<Item = Ino> {
        self.on_its_way.iter().filter_map(|edit| edit.made)
    }

    /// The batch was answered: its edits.
    pub fn end_batch(&mut self) -> Vec<Logged> {
        let batch = std::mem::take(&mut self.on_its_way);
        self.done = Position(self.done.0 + batch.iter().map(Logged::places).sum::<u64>());
        batch
    }

    /// The session is lost: everything that the servers may not have.
    pub fn lose_all(&mut self) -> Vec<Logged> {
        let mut lost = std::mem::take(&mut self.on_its_way);
        lost.extend(self.waiting.drain(..));
        self.bytes = 0;
        self.done = self.last;
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(bytes: usize, waiter: bool) -> Logged {
        let waiter = waiter.then(|| oneshot::channel().0);
        Logged {
            edit: vec![0; bytes].into(),
            touched: vec![Ino(7)],
            made: None,
            placed: None,
            taken: None,
            stands_in: None,
            waiter,
        }
    }

    const DIRECTORY: Ino = Ino(1);

    fn make(ino: u64) -> Logged {
        Logged { made: Some(Ino(ino)), touched: vec![DIRECTORY, Ino(ino)], ..edit(10, false) }
    }

    fn change(ino: u64) -> Logged {
        Logged { touched: vec![Ino(ino)], ..edit(10, false) }
    }

    /// What `ino` was is taken back, and its removal stands for it. How many edits that spares.
    fn elide(log: &mut EditLog, ino: u64) -> Option<usize> {
        let (taken_back, stands_in) = log.take_back(Ino(ino), DIRECTORY)?;
        log.push(Logged { stands_in: Some(stands_in), touched: vec![DIRECTORY], ..edit(10, false) });
        Some(taken_back.len())
    }

    #[test]
    fn what_was_made_and_changed_and_removed_is_not_sent() {
        let mut log = EditLog::default();
        log.push(make(8));
        let created = log.push(make(9));
        log.push(change(9));
        let changed = log.push(change(9));
        assert_eq!(elide(&mut log, 9), Some(3));
        let removed = log.last();
        assert!(removed > changed);
        // Temporary files one after the other leave one edit.
        log.push(make(10));
        assert_eq!(elide(&mut log, 10), Some(2));
        log.push(make(11));
        assert_eq!(elide(&mut log, 11), Some(2));
        assert_eq!((log.len(), log.bytes), (2, 20));
        let last = log.last();
        let batch = log.begin_batch();
        assert_eq!(batch.edits.len(), 2);
        assert!(!log.is_done(created));
        log.end_batch();
        assert!(log.is_done(created) && log.is_done(removed) && log.is_done(last));
        let next = log.push(make(12));
        assert!(!log.is_done(next));
    }

    #[test]
    fn nothing_is_taken_back_across_another_edit_or_from_under_one_who_waits() {
        let mut log = EditLog::default();
        log.push(make(9));
        log.push(change(5));
        assert_eq!(
            elide(&mut log, 9),
            None,
            "the order of what the servers see is the order of what was done"
        );
        log.push(make(10));
        log.push(Logged { touched: vec![Ino(10)], ..edit(10, true) });
        assert_eq!(elide(&mut log, 10), None, "somebody waits for the contents");
        log.push(make(11));
        log.begin_batch();
        log.push(change(11));
        assert_eq!(elide(&mut log, 11), None, "it is on its way");
        assert_eq!(elide(&mut log, 12), None);
        assert_eq!(log.len(), 6);
    }

    #[test]
    fn batches_keep_the_order_and_their_bounds() {
        let mut log = EditLog::default();
        for bytes in 1..=600 {
            log.push(edit(bytes, false));
        }
        let first = log.begin_batch().edits;
        assert_eq!(first.len(), BATCH_EDITS_MAX);
        assert!(first.iter().zip(1..).all(|(edit, bytes)| edit.len() == bytes));
        assert!(!log.is_done(Position(1)), "it is only on its way");
        assert_eq!(log.end_batch().len(), BATCH_EDITS_MAX);
        assert!(log.is_done(Position(512)) && !log.is_done(Position(513)));
        assert_eq!(log.begin_batch().edits.len(), 88);
        assert_eq!(log.end_batch().len(), 88);
        assert!(log.is_done(log.last()));
        assert_eq!(log.pace(), Pace::Idle);
        for _ in 0..3 {
            log.push(edit(BATCH_BYTES - 1, false));
        }
        assert_eq!(log.begin_batch().edits.len(), 2, "the second goes over the bound and ends it");
    }

    #[test]
    fn a_batch_goes_at_once_when_somebody_waits() {
        let mut log = EditLog::default();
        let first = log.push(edit(1, false));
        assert_eq!(log.pace(), Pace::Gather);
        log.want(first);
        assert_eq!(log.pace(), Pace::Now);
        log.begin_batch();
        log.end_batch();
        log.push(edit(1, false));
        assert_eq!(log.pace(), Pace::Gather, "nobody waits for this one");
        log.push(edit(1, true));
        assert_eq!(log.pace(), Pace::Now);
    }

    #[test]
    fn what_is_lost_is_waited_for_no_more() {
        let mut log = EditLog::default();
        log.push(edit(1, false));
        log.begin_batch();
        let last = log.push(edit(1, false));
        assert_eq!(log.lose_all().len(), 2);
        assert!(log.is_done(last) && log.len() == 0 && log.pace() == Pace::Idle);
    }

    #[test]
    fn a_full_log_says_so() {
        let mut log = EditLog::default();
        while log.has_room() {
            log.push(edit(1, false));
        }
        assert_eq!(log.len(), EDITS_MAX);
        log.begin_batch();
        assert!(log.has_room());
    }
}

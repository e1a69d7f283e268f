//! The log of edits that were applied here: what waits to be sent, what is on its way.
//!
//! One batch is on its way at a time, so the servers apply everything in the order of the log.

use std::collections::VecDeque;

use bytes::Bytes;
use gofs_proto::session::Placed;
use gofs_tree::{Attr, FsError, Ino};
use tokio::sync::oneshot;

use crate::lease::Position;

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
    /// Whoever waits for the outcome: the attributes after a change of a file's contents.
    pub waiter: Option<oneshot::Sender<Result<Attr, FsError>>>,
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

    /// The batch was answered: its edits.
    pub fn end_batch(&mut self) -> Vec<Logged> {
        let batch = std::mem::take(&mut self.on_its_way);
        self.done = Position(self.done.0 + batch.len() as u64);
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
        Logged { edit: vec![0; bytes].into(), touched: vec![Ino(7)], made: None, placed: None, waiter }
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

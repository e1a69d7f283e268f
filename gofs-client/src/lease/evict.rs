//! The cache's budget: leases that were not used for long are given back unasked.

use std::sync::Arc;

use gofs_tree::{FileType, Ino, ROOT_INO};

use super::recall::Phase;
use super::table::LeaseTable;
use super::uses::Uses;

/// Most leases of one mount: all of them must fit into one Hello.
pub const LEASES_MAX: usize = 200_000;
/// What is given back at once when the cache is full: one part in this many.
const EVICT_PART: u64 = 8;

/// Leases given back at once, at most: one message, and what waits for them does not wait for long.
const VICTIMS_MAX: usize = 4096;
/// Leases looked at for these.
const LOOKED_AT_MAX: usize = 8 * VICTIMS_MAX;

/// A lease about to be given back.
#[derive(Debug)]
pub struct Victim {
    /// The inode.
    pub ino: Ino,
    /// Replies to wait for before the kernel is asked to forget.
    pub uses: Vec<Arc<Uses>>,
    /// The kernel must forget names too.
    pub is_directory: bool,
}

/// What one look for victims came to.
#[derive(Debug, Default)]
pub struct Eviction {
    /// To be given back.
    pub victims: Vec<Victim>,
    /// There is not enough room yet, and another look will find more.
    pub again: bool,
}

impl LeaseTable {
    /// Whether more is cached than may be.
    pub fn is_over(&self, budget_bytes: u64) -> bool {
        self.bytes > budget_bytes || self.leases > LEASES_MAX
    }

    /// Picks leases that were not used since they came or were last passed over, oldest first, to make room, and begins to
    /// give them back. Neither what is in use is picked nor what `is_dirty`. A bounded number of them, and of looks: there
    /// is another time.
    pub fn evict(&mut self, budget_bytes: u64, is_dirty: impl Fn(Ino) -> bool) -> Eviction {
        let mut eviction = Eviction::default();
        if !self.is_over(budget_bytes) {
            return eviction;
        }
        let bytes_goal = (budget_bytes - budget_bytes / EVICT_PART).min(self.bytes);
        let leases_goal = LEASES_MAX - LEASES_MAX / EVICT_PART as usize;
        let (mut bytes, mut leases) = (self.bytes, self.leases);
        for _ in 0..self.clock.len().min(LOOKED_AT_MAX) {
            if bytes <= bytes_goal && leases <= leases_goal || eviction.victims.len() >= VICTIMS_MAX {
                return Eviction { again: false, ..eviction };
            }
            let Some((ino, clocked)) = self.clock.pop_front() else { break };
            let Some(entry) = self.inodes.get_mut(&ino).filter(|entry| entry.is_clocked(clocked)) else {
                continue;
            };
            let in_use = entry.recall.is_some()
                || entry.opens > 0
                || entry.holds > 0
                || entry.removing > 0
                || entry.pending > 0
                || ino == ROOT_INO;
            let passed_over = entry.last_used > clocked;
            if in_use || passed_over || is_dirty(ino) {
                eviction.again |= passed_over;
                self.clock_again(ino);
                continue;
            }
            bytes -= entry.counted_bytes;
            leases -= 1;
            let is_file =
                entry.cached.attr.as_ref().is_some_and(|attr| attr.file_type != FileType::Directory);
            let uses = entry.begin_recall();
            eviction.victims.push(Victim { ino, uses, is_directory: !is_file });
        }
        eviction
    }

    /// The kernel has forgotten the victim. True: the lease is gone, and must be released by a message
    /// whose answer [`LeaseTable::released`] reports. False: it was used meanwhile and stays.
    pub fn end_eviction(&mut self, ino: Ino, is_dirty: impl Fn(Ino) -> bool) -> bool {
        let Some(entry) = self.inodes.get_mut(&ino) else { return false };
        let slipped = matches!(entry.recall, Some(Phase::Invalidate { slipped: true, .. }));
        entry.recall = None;
        let in_use = entry.opens > 0 || entry.holds > 0 || entry.removing > 0 || entry.pending > 0;
        if slipped || in_use || entry.lease.is_none() || is_dirty(ino) {
            self.clock_again(ino);
            self.settle(ino);
            return false;
        }
        *self.releasing.entry(ino).or_default() += 1;
        self.lose(ino);
        true
    }

    /// The lease takes the last place.
    fn clock_again(&mut self, ino: Ino) {
        self.tick += 1;
        if let Some(entry) = self.inodes.get_mut(&ino).filter(|entry| entry.lease.is_some()) {
            entry.clocked = self.tick;
            self.clock.push_back((ino, self.tick));
        }
    }

    /// Keeps the places of leases that are gone from being more than the others.
    pub(super) fn tidy_clock(&mut self) {
        if self.clock.len() > 2 * self.leases + VICTIMS_MAX {
            let inodes = &self.inodes;
            self.clock.retain(|(ino, at)| inodes.get(ino).is_some_and(|entry| entry.is_clocked(*at)));
        }
    }

    /// The server has the message that gave these back: later grants are meant.
    pub fn released(&mut self, inos: &[Ino]) {
        for ino in inos {
            if let Some(messages) = self.releasing.get_mut(ino) {
                *messages -= 1;
                if *messages == 0 {
                    self.releasing.remove(ino);
                }
            }
        }
    }
}

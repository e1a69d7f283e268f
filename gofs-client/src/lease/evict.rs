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

impl LeaseTable {
    /// Whether more is cached than may be.
    pub fn is_over(&self, budget_bytes: u64) -> bool {
        self.bytes > budget_bytes || self.leases > LEASES_MAX
    }

    /// Picks the leases used longest ago, enough to make room, and begins to give them back. Neither what is
    /// in use is picked nor what `is_dirty`.
    pub fn evict(&mut self, budget_bytes: u64, is_dirty: impl Fn(Ino) -> bool) -> Vec<Victim> {
        if !self.is_over(budget_bytes) {
            return Vec::new();
        }
        let mut idle: Vec<(u64, Ino)> = self
            .inodes
            .iter()
            .filter(|(ino, entry)| {
                entry.lease.is_some()
                    && entry.recall.is_none()
                    && entry.opens == 0
                    && entry.holds == 0
                    && entry.removing == 0
                    && entry.pending == 0
                    && **ino != ROOT_INO
            })
            .map(|(ino, entry)| (entry.last_used, *ino))
            .collect();
        idle.sort_unstable();
        let bytes_goal = (budget_bytes - budget_bytes / EVICT_PART).min(self.bytes);
        let leases_goal = LEASES_MAX - LEASES_MAX / EVICT_PART as usize;
        let (mut bytes, mut leases) = (self.bytes, self.leases);
        let mut victims = Vec::new();
        for (_, ino) in idle {
            if bytes <= bytes_goal && leases <= leases_goal {
                break;
            }
            if is_dirty(ino) {
                continue;
            }
            let Some(entry) = self.inodes.get_mut(&ino) else { continue };
            entry.recall = Some(Phase::Drain);
            bytes -= entry.counted_bytes;
            leases -= 1;
            let is_file =
                entry.cached.attr.as_ref().is_some_and(|attr| attr.file_type != FileType::Directory);
            let uses = entry.split_uses();
            victims.push(Victim { ino, uses, is_directory: !is_file });
        }
        victims
    }

    /// The kernel has forgotten the victim. True: the lease is gone, and must be released by a message
    /// whose answer [`LeaseTable::released`] reports. False: it was used meanwhile and stays.
    pub fn end_eviction(&mut self, ino: Ino, is_dirty: impl Fn(Ino) -> bool) -> bool {
        let Some(entry) = self.inodes.get_mut(&ino) else { return false };
        let slipped = matches!(entry.recall, Some(Phase::Invalidate { slipped: true, .. }));
        entry.recall = None;
        let in_use = entry.opens > 0 || entry.holds > 0 || entry.removing > 0 || entry.pending > 0;
        if slipped || in_use || entry.lease.is_none() || is_dirty(ino) {
            self.settle(ino);
            return false;
        }
        *self.releasing.entry(ino).or_default() += 1;
        self.lose(ino);
        true
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

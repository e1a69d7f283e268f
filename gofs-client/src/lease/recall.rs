//! Giving a lease back: the steps of a recall, and reads meanwhile.
//!
//! A recall of a whole lease goes through the phases in order; nothing about the inode is answered from
//! the cache meanwhile. The kernel holds a page's lock while it reads it, and forgetting waits for that
//! lock: so a read must pass while the kernel forgets, and if one did, the kernel forgets again.

use std::sync::Arc;

use gofs_tree::{Ino, LeaseEpoch, LeaseMode, Name};

use super::names::Known;
use super::table::{LeaseTable, Permit};
use super::uses::Uses;
use crate::clock::BootTime;

/// How far a recall is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Replies in flight that used the cache are waited for.
    Drain,
    /// The kernel forgets. Reads wait until `reads_pass`; `slipped`: one was answered.
    Invalidate {
        /// The kernel took so long that a read may be in its way.
        reads_pass: bool,
        /// A read was answered since the pass began.
        slipped: bool,
    },
    /// What is unwritten is flushed; nothing new begins.
    Flush,
}

/// What a recall asks for.
#[derive(Debug)]
pub enum Recalled {
    /// Acknowledge: there is nothing to give back. `open`: say that it is open here.
    Acknowledge {
        /// It is open here.
        open: bool,
    },
    /// These names were dropped; the kernel must drop them too once these replies are out.
    Names(Vec<Arc<Uses>>),
    /// The lease goes: it has begun.
    Begun(Taken),
    /// Another recall of this inode is on its way: wait for a change, then ask again.
    Busy,
}

/// A recall that has begun.
#[derive(Debug)]
pub struct Taken {
    /// What was held.
    pub mode: LeaseMode,
    /// Replies to wait for.
    pub uses: Vec<Arc<Uses>>,
}

/// Whether a read may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadStart {
    /// Under the lease of this epoch.
    Go(LeaseEpoch),
    /// Wait for a change.
    Wait,
    /// Fetch a lease first.
    NeedLease,
}

/// What happens to bytes that were read.
#[derive(Debug)]
pub enum ReadEnd {
    /// Answer with them.
    Answer(Permit),
    /// Wait for a change, then ask again.
    Wait,
    /// They may be old: read again.
    Again,
}

impl LeaseTable {
    /// The server asks for a lease, or for some names of a directory.
    pub fn recall(
        &mut self,
        ino: Ino,
        epoch: LeaseEpoch,
        keep: Option<LeaseMode>,
        names: &[Name],
    ) -> Recalled {
        let Some(entry) = self.inodes.get_mut(&ino) else { return Recalled::Acknowledge { open: false } };
        let open = entry.opens > 0;
        let Some(lease) = entry.lease else {
            entry.registered |= open;
            return Recalled::Acknowledge { open };
        };
        if entry.recall.is_some() {
            return Recalled::Busy;
        }
        if epoch < lease.epoch || (names.is_empty() && keep >= Some(lease.mode)) {
            entry.registered |= open;
            return Recalled::Acknowledge { open };
        }
        if names.is_empty() {
            return Recalled::Begun(Taken { mode: lease.mode, uses: entry.begin_recall() });
        }
        for name in names {
            entry.directory().set(name, Known::Unknown);
        }
        entry.cached.attr = None;
        let uses = entry.split_uses();
        self.settle(ino);
        Recalled::Names(uses)
    }

    /// The kernel is about to be asked to forget (again).
    pub fn begin_invalidation(&mut self, ino: Ino, reads_pass: bool) {
        self.set_phase(ino, Phase::Invalidate { reads_pass, slipped: false });
    }

    /// The kernel takes long: a read may hold what it waits for.
    pub fn let_reads_pass(&mut self, ino: Ino) {
        if let Some(Some(Phase::Invalidate { reads_pass, .. })) =
            self.inodes.get_mut(&ino).map(|entry| &mut entry.recall)
        {
            *reads_pass = true;
        }
    }

    /// The kernel is done, and nothing new begins on the inode until the recall is over. Otherwise, where a read was
    /// answered meanwhile, replies to wait for before it is asked again.
    pub fn end_invalidation(&mut self, ino: Ino) -> Option<Vec<Arc<Uses>>> {
        let entry = self.inodes.get_mut(&ino)?;
        match entry.recall {
            Some(Phase::Invalidate { slipped: true, .. }) => {
                entry.recall = Some(Phase::Drain);
                Some(entry.split_uses())
            }
            Some(_) => {
                entry.recall = Some(Phase::Flush);
                None
            }
            None => None,
        }
    }

    fn set_phase(&mut self, ino: Ino, phase: Phase) {
        if let Some(entry) = self.inodes.get_mut(&ino).filter(|entry| entry.recall.is_some()) {
            entry.recall = Some(phase);
        }
    }

    /// The recall is over: all is flushed and forgotten. Returns whether the inode is open, for the
    /// acknowledgement, which registers it where the lease is gone.
    pub fn end_recall(&mut self, ino: Ino, keep: Option<LeaseMode>) -> bool {
        let Some(entry) = self.inodes.get_mut(&ino) else { return false };
        entry.recall = None;
        let open = entry.opens > 0;
        match (keep, &mut entry.lease) {
            (Some(mode), Some(lease)) => lease.mode = lease.mode.min(mode),
            (None, lease @ Some(_)) => {
                *lease = None;
                self.leases -= 1;
            }
            (_, None) => {}
        }
        if entry.lease.is_none() {
            entry.registered |= open;
            entry.forget();
        }
        self.settle(ino);
        open
    }

    /// Whether a read of the file may begin.
    pub fn begin_read(&self, ino: Ino, now: BootTime) -> ReadStart {
        let Some(entry) = self.inodes.get(&ino) else { return ReadStart::NeedLease };
        match (entry.lease, entry.recall) {
            (_, None) if !entry.parked.is_empty() => ReadStart::Wait,
            (Some(lease), None | Some(Phase::Invalidate { reads_pass: true, .. })) => {
                if self.is_valid(now) {
                    ReadStart::Go(lease.epoch)
                } else {
                    ReadStart::Wait
                }
            }
            (_, Some(_)) => ReadStart::Wait,
            (None, None) => ReadStart::NeedLease,
        }
    }

    /// Whether bytes read under the lease of `epoch` may go to the kernel, which keeps them.
    pub fn end_read(&mut self, ino: Ino, epoch: LeaseEpoch, now: BootTime) -> ReadEnd {
        let ttl = self.validity(now);
        let valid = self.is_valid(now);
        let Some(entry) = self.inodes.get_mut(&ino) else { return ReadEnd::Again };
        if entry.lease.is_none_or(|lease| lease.epoch != epoch) {
            return ReadEnd::Again;
        }
        if !valid {
            return ReadEnd::Wait;
        }
        match &mut entry.recall {
            None => ReadEnd::Answer(Permit { ttl, guard: entry.uses.enter() }),
            Some(Phase::Invalidate { reads_pass: true, slipped }) => {
                *slipped = true;
                ReadEnd::Answer(Permit { ttl: std::time::Duration::ZERO, guard: entry.uses.enter() })
            }
            Some(_) => ReadEnd::Wait,
        }
    }
}

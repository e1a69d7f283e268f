//! Granting: what a reply may say that the session may cache from now on.

use gofs_tree::{Ino, LeaseEpoch, LeaseMode};

use super::table::{Lease, LeaseTable};
use super::{Access, OpId};

/// What a session may cache, as its reply says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Which inode.
    pub ino: Ino,
    /// How.
    pub mode: LeaseMode,
    /// Named by a recall.
    pub epoch: LeaseEpoch,
}

impl LeaseTable {
    /// Grants, or confirms, a lease to the session of an operation that runs, on an inode it needed.
    /// Call it just before the reply is sent and before [`LeaseTable::end`]. `None`: the reply is to be used once.
    pub fn grant(&mut self, id: OpId, ino: Ino, mode: LeaseMode) -> Option<Grant> {
        let op = self.ops.get(&id).filter(|op| op.running)?;
        let access = op.needs.iter().find(|need| need.ino == ino)?.access;
        let enough = match mode {
            LeaseMode::Read => access != Access::Settle,
            LeaseMode::Write => access == Access::Change,
        };
        (enough && !op.passed.contains(&ino)).then(|| self.put(id, ino, mode))?
    }

    /// Grants a lease on an inode that the operation has just made.
    pub fn grant_new(&mut self, id: OpId, ino: Ino, mode: LeaseMode) -> Option<Grant> {
        self.ops.get(&id).filter(|op| op.running)?;
        let free =
            self.inodes.get(&ino).is_none_or(|entry| entry.running.is_empty() && entry.leases.is_empty());
        free.then(|| self.put(id, ino, mode))?
    }

    /// Confirms the lease that the session holds anyway, if it may still cache under it.
    pub fn confirm(&mut self, id: OpId, ino: Ino) -> Option<Grant> {
        let op = self.ops.get(&id)?;
        let mode = self.inodes.get(&ino)?.leases.get(&op.session)?.mode;
        // What was not needed is not protected, so what the reply says of it may be old.
        self.grant(id, ino, mode.min(LeaseMode::Read))
    }

    fn put(&mut self, id: OpId, ino: Ino, mode: LeaseMode) -> Option<Grant> {
        let session = self.ops.get(&id)?.session;
        let holdings = self.sessions.get_mut(&session)?;
        let entry = self.inodes.entry(ino).or_default();
        let blocked =
            entry.leases.iter().any(|(&holder, lease)| holder != session && !lease.mode.compatible(mode));
        // An operation that waits counts on the session having forgotten the names that it will change.
        let cleared = entry.waiting.keys().any(|other| {
            self.ops
                .get(other)
                .is_some_and(|op| op.cleared.iter().any(|(at, who, _)| (*at, *who) == (ino, session)))
        });
        if blocked || cleared || entry.recalls_from(session) {
            self.tidy(ino);
            return None;
        }
        let next = self.next_epoch;
        let lease = entry.leases.entry(session).or_insert(Lease { mode, epoch: next });
        if lease.mode < mode {
            (lease.mode, lease.epoch) = (mode, next);
        }
        let grant = Grant { ino, mode: lease.mode, epoch: lease.epoch };
        if grant.epoch == next {
            self.next_epoch = next.next();
        }
        holdings.leases.insert(ino);
        Some(grant)
    }
}

//! Granting: what a reply may say that the session may cache from now on.

use gofs_tree::{Ino, LeaseEpoch, LeaseMode};

use super::table::{Lease, LeaseTable};
use super::{Access, Now, OpId};

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
        let access = self.access(id, ino)?;
        let enough = match mode {
            LeaseMode::Read => access != Access::Settle,
            LeaseMode::Write => access == Access::Change,
        };
        (enough && !self.ops[&id].passed.contains(&ino)).then(|| self.put(id, ino, mode))?
    }

    /// As [`LeaseTable::grant`], with Write wherever that takes nothing from anybody: the session changed the inode,
    /// or is the only one there is; no other holds a lease on it, waits for it, or has had to ask for it of
    /// late. Else `least`, or what is held anyway where that is `None`.
    pub fn grant_best(&mut self, now: Now, id: OpId, ino: Ino, least: Option<LeaseMode>) -> Option<Grant> {
        let best = self.is_unwanted(now, id, ino).then(|| self.put(id, ino, LeaseMode::Write)).flatten();
        best.or_else(|| match least {
            Some(mode) => self.grant(id, ino, mode),
            None => self.confirm(id, ino),
        })
    }

    /// Whether nobody but the operation's session has an interest in the inode.
    fn is_unwanted(&self, now: Now, id: OpId, ino: Ino) -> bool {
        // Looking at an inode keeps others from changing it, not from looking; that matters where there are others.
        let alone = match self.access(id, ino) {
            Some(Access::Change) => true,
            Some(Access::Read) => self.sessions.len() == 1,
            Some(Access::Settle) | None => false,
        };
        let (Some(op), Some(entry)) = (self.ops.get(&id), self.inodes.get(&ino)) else { return false };
        let wanted = entry.waiting.keys().any(|other| self.ops[other].session != op.session);
        alone && !wanted && !op.passed.contains(&ino) && !self.contention.holds(now, ino)
    }

    /// How an operation that runs has the inode.
    fn access(&self, id: OpId, ino: Ino) -> Option<Access> {
        self.inodes.get(&ino)?.running.get(&id).copied()
    }

    /// Grants Write on an inode that the operation is making: nobody else knows it yet.
    pub fn grant_new(&mut self, id: OpId, ino: Ino) -> Option<Grant> {
        self.ops.get(&id).filter(|op| op.running)?;
        self.put(id, ino, LeaseMode::Write)
    }

    /// Tells the session of a Write lease that it was granted by [`LeaseTable::grant_new`] before it could know of it, and
    /// holds still: also where that is wanted back, since what it has made it gives back only when it knows.
    pub fn confirm_new(&self, id: OpId, ino: Ino) -> Option<Grant> {
        let session = self.ops.get(&id)?.session;
        let lease = self.inodes.get(&ino)?.leases.get(&session)?;
        (lease.mode == LeaseMode::Write).then_some(Grant { ino, mode: lease.mode, epoch: lease.epoch })
    }

    /// The operation did not make it after all.
    pub fn take_back_new(&mut self, id: OpId, ino: Ino) {
        if let Some(session) = self.ops.get(&id).map(|op| op.session) {
            self.drop_lease(session, ino);
        }
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

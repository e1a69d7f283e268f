//! A session that is back: after a lost connection, or with a new leader that knows nothing of it.

use std::collections::{BTreeMap, BTreeSet};

use gofs_tree::{Ino, LeaseEpoch, LeaseMode, SessionId};

use super::table::{Lease, LeaseTable};
use super::{Effect, Now};

/// A lease as its holder remembers it. Epoch 0: on an inode of its own making, of which it was not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLease {
    /// Which inode.
    pub ino: Ino,
    /// How.
    pub mode: LeaseMode,
    /// Of its grant.
    pub epoch: LeaseEpoch,
}

impl LeaseTable {
    /// Brings the table and a session that has just connected together: what the session does not list it
    /// does not hold; what it lists and the table does not know is taken in if `reclaim` (a new leader in
    /// grace) and nothing conflicts, else refused. Returns the refused inodes; recalls not acknowledged
    /// so far are among the effects again, to be sent after the answer to Hello.
    pub fn resume(
        &mut self,
        now: Now,
        session: SessionId,
        held: &[HeldLease],
        opens: &BTreeSet<Ino>,
        reclaim: bool,
    ) -> (Vec<Ino>, Vec<Effect>) {
        self.open_session(session);
        let listed: BTreeMap<Ino, HeldLease> = held.iter().map(|lease| (lease.ino, *lease)).collect();
        let mut dirty = self.drop_unlisted(session, &listed);
        let mut refused = Vec::new();
        for lease in listed.values() {
            if !self.take_in(session, lease, reclaim) {
                refused.push(lease.ino);
            }
        }
        let old: Vec<Ino> = self.sessions[&session].opens.iter().copied().collect();
        for ino in old {
            if !opens.contains(&ino) {
                self.close(session, ino);
            }
        }
        for &ino in opens {
            self.register_open(session, ino);
        }
        // What waits may have waited for a lease that is not there any more.
        dirty.extend(self.waiting_on(self.sessions[&session].leases.iter().copied().collect::<Vec<_>>()));
        let mut effects = Vec::new();
        let again: Vec<_> = self.sessions[&session].recalls.iter().copied().collect();
        for id in again {
            if let Some(outstanding) = self.recalls.get_mut(&id) {
                outstanding.sent = now;
                effects.push(Effect::Recall(outstanding.recall.clone()));
            }
        }
        self.decide(now, dirty, &mut effects);
        (refused, effects)
    }

    fn drop_unlisted(
        &mut self,
        session: SessionId,
        listed: &BTreeMap<Ino, HeldLease>,
    ) -> BTreeSet<super::OpId> {
        let holdings = &self.sessions[&session];
        let gone: Vec<Ino> =
            holdings.leases.iter().copied().filter(|ino| !listed.contains_key(ino)).collect();
        let asked: Vec<_> = holdings.recalls.iter().copied().collect();
        let mut dirty = BTreeSet::new();
        for id in asked {
            let recalled = self.recalls.get(&id).map(|outstanding| outstanding.recall.ino);
            if recalled.is_some_and(|ino| !listed.contains_key(&ino)) {
                dirty.extend(self.forget_recall(id, true));
            }
        }
        for ino in gone {
            dirty.extend(self.waiting_on([ino]));
            self.drop_lease(session, ino);
        }
        dirty
    }

    /// Whether the session has the lease from now on.
    fn take_in(&mut self, session: SessionId, held: &HeldLease, reclaim: bool) -> bool {
        let entry = self.inodes.entry(held.ino).or_default();
        if let Some(lease) = entry.leases.get_mut(&session) {
            // The reply with a better grant may have been lost; one that was reduced is not to come back.
            lease.mode = lease.mode.min(held.mode);
            return lease.mode == held.mode;
        }
        let conflict = entry.leases.values().any(|lease| !lease.mode.compatible(held.mode));
        let in_use = entry.running.values().any(|access| super::conflict::in_the_way(*access, held.mode));
        if !reclaim || conflict || in_use {
            self.tidy(held.ino);
            return false;
        }
        let epoch = if held.epoch == LeaseEpoch(0) { self.next_epoch } else { held.epoch };
        entry.leases.insert(session, Lease { mode: held.mode, epoch });
        if let Some(holdings) = self.sessions.get_mut(&session) {
            holdings.leases.insert(held.ino);
        }
        if self.next_epoch <= epoch && epoch.0 < u64::MAX / 2 {
            self.next_epoch = epoch.next();
        }
        true
    }
}

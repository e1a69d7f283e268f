//! Whose turn it is at an inode, which leases stand in the way, and asking for them.

use std::collections::{BTreeSet, HashSet};

use gofs_tree::{LeaseMode, SessionId};

use super::table::{Entry, LeaseTable, Outstanding, Turn};
use super::{Access, Effect, Need, Now, OpId, Recall, RecallId};

impl LeaseTable {
    /// Whether the operation's turn at this inode has come, as far as other operations go.
    pub(super) fn turn(&self, id: OpId, need: &Need) -> Turn {
        let Some(entry) = self.inodes.get(&need.ino) else { return Turn::Own };
        if entry.running.iter().any(|(&other, access)| other != id && access.excludes(need.access)) {
            return Turn::Wait;
        }
        let mut ahead = before(entry, id, need.access).peekable();
        if ahead.peek().is_none() {
            return Turn::Own;
        }
        let session = self.ops[&id].session;
        let may_pass = self.sessions.get(&session).is_some_and(|holdings| !holdings.recalls.is_empty());
        if may_pass && ahead.all(|other| self.waits_for(other, session, &mut HashSet::new())) {
            Turn::Pass
        } else {
            Turn::Wait
        }
    }

    /// Whether an operation that waits does so for the session's acknowledgement: directly, behind others,
    /// or through another session whose acknowledgement may need an operation that waits.
    fn waits_for(&self, id: OpId, session: SessionId, seen: &mut HashSet<OpId>) -> bool {
        let mut next = vec![id];
        while let Some(id) = next.pop() {
            if !seen.insert(id) {
                continue;
            }
            let op = &self.ops[&id];
            if op.asked.iter().any(|recall| self.recalls[recall].recall.session == session) {
                return true;
            }
            next.extend(self.held_up_by(id));
            for need in op.needs.iter() {
                let entry = self.inodes.get(&need.ino);
                next.extend(entry.into_iter().flat_map(|entry| before(entry, id, need.access)));
            }
        }
        false
    }

    /// Sessions whose leases the operation may not run against.
    pub(super) fn conflicts(&self, id: OpId, need: &Need) -> Vec<SessionId> {
        let Some(entry) = self.inodes.get(&need.ino) else { return Vec::new() };
        let op = &self.ops[&id];
        let stands = |(&holder, lease): (&SessionId, &super::table::Lease)| {
            let conflict = holder != op.session && in_the_way(need.access, lease.mode);
            (conflict && !op.cleared.contains(&(need.ino, holder, lease.epoch))).then_some(holder)
        };
        entry.leases.iter().filter_map(stands).collect()
    }

    /// Sees to it that the holder is asked for what the operation needs. Whether it newly waits for that session.
    pub(super) fn ask(
        &mut self,
        now: Now,
        id: OpId,
        need: &Need,
        holder: SessionId,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(entry) = self.inodes.get(&need.ino) else { return false };
        let Some(lease) = entry.leases.get(&holder) else { return false };
        let (mode, epoch) = (lease.mode, lease.epoch);
        if mode == LeaseMode::Write {
            self.contention.note(now, need.ino);
        }
        // Only a directory's Read lease can be kept while its names go.
        let by_name = need.access == Access::Change && mode == LeaseMode::Read && !need.names.is_empty();
        let keep = (need.access == Access::Read || by_name).then_some(LeaseMode::Read);
        let names = if by_name { need.names.clone() } else { Vec::new() };
        let suffices = |(recall, &asked): (&RecallId, &SessionId)| {
            let other = &self.recalls[recall].recall;
            let enough = asked == holder && other.epoch == epoch;
            (enough && other.names == names && (other.keep.is_none() || other.keep == keep))
                .then_some(*recall)
        };
        let same = entry.recalls.iter().find_map(suffices);
        let recall_id = same.unwrap_or_else(|| {
            let id = self.new_recall();
            let recall = Recall { id, session: holder, ino: need.ino, epoch, keep, names };
            self.inodes.entry(need.ino).or_default().recalls.insert(id, holder);
            self.sessions.entry(holder).or_default().recalls.insert(id);
            let outstanding = Outstanding { recall: recall.clone(), sent: now, askers: BTreeSet::new() };
            self.recalls.insert(id, outstanding);
            effects.push(Effect::Recall(recall));
            id
        });
        if let Some(outstanding) = self.recalls.get_mut(&recall_id) {
            outstanding.askers.insert(id);
        }
        self.ops.get_mut(&id).is_some_and(|op| op.asked.insert(recall_id))
    }

    /// Whether a need could be met at once.
    pub(super) fn available(&self, session: SessionId, need: &Need) -> bool {
        let Some(entry) = self.inodes.get(&need.ino) else { return true };
        let in_use =
            entry.running.values().chain(entry.waiting.values()).any(|access| access.excludes(need.access));
        let leased = entry
            .leases
            .iter()
            .any(|(&holder, lease)| holder != session && in_the_way(need.access, lease.mode));
        !in_use && !leased && !entry.recalls_from(session)
    }
}

/// Whether another session's lease must go before such an access.
pub(super) fn in_the_way(access: Access, held: LeaseMode) -> bool {
    match access {
        Access::Read => held == LeaseMode::Write,
        Access::Settle => false,
        Access::Change => true,
    }
}

/// Operations that wait for the inode, came before `id` and exclude it.
fn before(entry: &Entry, id: OpId, access: Access) -> impl Iterator<Item = OpId> + '_ {
    let alone = access != Access::Read;
    let all = alone.then(|| entry.waiting.range(..id).map(|(&other, _)| other));
    let exclusive = (!alone).then(|| entry.waiting_alone.range(..id).copied());
    all.into_iter().flatten().chain(exclusive.into_iter().flatten())
}

//! What takes too long: recalls that are not answered, and operations that wait for each other's session.

use std::collections::{BTreeSet, HashSet};

use gofs_tree::SessionId;

use super::table::LeaseTable;
use super::{CROSSING_PATIENCE, Effect, Now, OpId, RECALL_PATIENCE};

/// What a look at the clock found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Overdue {
    /// Sessions that did not acknowledge a recall within [`RECALL_PATIENCE`]: to be fenced.
    pub sessions: BTreeSet<SessionId>,
    /// To be carried out.
    pub effects: Vec<Effect>,
}

impl LeaseTable {
    /// Finds what took too long.
    ///
    /// A holder's kernel may keep its acknowledgement back until a request of its own on the same inode is
    /// answered. That request passes; but where it needs in turn what the first one's session holds, each
    /// waits for the other. The youngest of such a circle that is not firm is refused: the kernel then asks again.
    pub fn tick(&mut self, now: Now) -> Overdue {
        self.contention.prune(now);
        let late = self.recalls.values().filter(|r| now.saturating_sub(r.sent) > RECALL_PATIENCE);
        let sessions = late.map(|r| r.recall.session).collect();
        let mut effects = Vec::new();
        let mut dirty = BTreeSet::new();
        while let Some(refused) = self.circle(now) {
            self.forget_op(refused, &mut dirty);
            effects.push(Effect::Refuse(refused));
        }
        self.decide(now, dirty, &mut effects);
        Overdue { sessions, effects }
    }

    /// Nobody could be heard for a while: those that are to answer a recall, and those that wait for each other, have their whole
    /// time from now on.
    pub fn wait_anew(&mut self, now: Now) {
        for outstanding in self.recalls.values_mut() {
            outstanding.sent = now;
        }
        for op in self.ops.values_mut() {
            op.begun = now;
        }
    }

    /// The operation to be refused of some circle in which all have waited long enough.
    fn circle(&self, now: Now) -> Option<OpId> {
        let patient = |id: &OpId| now.saturating_sub(self.ops[id].begun) > CROSSING_PATIENCE;
        let asking: Vec<OpId> = self
            .ops
            .iter()
            .filter(|(_, op)| !op.running && !op.asked.is_empty())
            .map(|(&id, _)| id)
            .collect();
        let mut done = HashSet::new();
        for &start in asking.iter().filter(|id| patient(id)) {
            let mut path = Vec::new();
            if let Some(circle) = self.walk(start, &mut path, &mut done)
                && circle.iter().all(patient)
            {
                return circle.iter().max_by_key(|&&id| (!self.ops[&id].firm, id)).copied();
            }
        }
        None
    }

    /// Depth first; a circle is found when an operation of the path is met again.
    fn walk(&self, id: OpId, path: &mut Vec<OpId>, done: &mut HashSet<OpId>) -> Option<Vec<OpId>> {
        if let Some(at) = path.iter().position(|&other| other == id) {
            return Some(path[at..].to_vec());
        }
        if done.contains(&id) {
            return None;
        }
        path.push(id);
        for next in self.held_up_by(id) {
            if let Some(circle) = self.walk(next, path, done) {
                return Some(circle);
            }
        }
        path.pop();
        done.insert(id);
        None
    }

    /// Operations that wait, of sessions whose acknowledgement `id` waits for, that need the inode in question.
    pub(super) fn held_up_by(&self, id: OpId) -> BTreeSet<OpId> {
        let mut found = BTreeSet::new();
        for recall in &self.ops[&id].asked {
            let recall = &self.recalls[recall].recall;
            let (Some(holdings), Some(entry)) =
                (self.sessions.get(&recall.session), self.inodes.get(&recall.ino))
            else {
                continue;
            };
            found.extend(holdings.waiting.iter().filter(|other| entry.waiting.contains_key(other)));
        }
        found
    }
}

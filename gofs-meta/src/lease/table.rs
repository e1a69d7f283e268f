//! The table itself: begin, acknowledge, end, and the deciding of who runs next.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use gofs_tree::{Ino, LeaseEpoch, LeaseMode, SessionId};

use super::contention::Contention;
use super::{Access, Effect, Need, Now, OpId, Recall, RecallId};

/// A lease that a session holds.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub mode: LeaseMode,
    pub epoch: LeaseEpoch,
}

/// What is known of an inode; absent when there is nothing.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub leases: BTreeMap<SessionId, Lease>,
    /// Not acknowledged yet, maybe of a lease that is gone already.
    pub recalls: BTreeMap<RecallId, SessionId>,
    /// Sessions that have it open without a lease that would say so.
    pub opens: BTreeSet<SessionId>,
    pub waiting: BTreeMap<OpId, Access>,
    /// Those of `waiting` that need it alone.
    pub waiting_alone: BTreeSet<OpId>,
    pub running: BTreeMap<OpId, Access>,
}

impl Entry {
    /// Whether something is wanted back from the session.
    pub fn recalls_from(&self, session: SessionId) -> bool {
        self.recalls.values().any(|&asked| asked == session)
    }

    fn is_empty(&self) -> bool {
        self.leases.is_empty()
            && self.recalls.is_empty()
            && self.opens.is_empty()
            && self.waiting.is_empty()
            && self.running.is_empty()
    }
}

#[derive(Debug)]
pub(super) struct Op {
    pub session: SessionId,
    pub needs: Arc<[Need]>,
    pub running: bool,
    pub begun: Now,
    /// To be refused only where all others that wait in a circle are like it.
    pub firm: bool,
    /// Recalls that it waits for.
    pub asked: BTreeSet<RecallId>,
    /// Directory leases that stay, whose holders have forgotten the names that this operation changes.
    pub cleared: HashSet<(Ino, SessionId, LeaseEpoch)>,
    /// Inodes at which it passed an operation that waits: no grant on these.
    pub passed: HashSet<Ino>,
}

#[derive(Debug)]
pub(super) struct Outstanding {
    pub recall: Recall,
    pub sent: Now,
    pub askers: BTreeSet<OpId>,
}

/// What belongs to one session.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    pub leases: BTreeSet<Ino>,
    pub opens: BTreeSet<Ino>,
    pub recalls: BTreeSet<RecallId>,
    pub waiting: BTreeSet<OpId>,
}

/// A lease as administration shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// The holder.
    pub session: SessionId,
    /// None: only registered as open.
    pub mode: Option<LeaseMode>,
    /// Wanted back.
    pub recalling: bool,
    /// Registered as open.
    pub open: bool,
}

/// The leases of one namespace. See the module.
#[derive(Debug)]
pub struct LeaseTable {
    pub(super) inodes: HashMap<Ino, Entry>,
    pub(super) ops: BTreeMap<OpId, Op>,
    pub(super) recalls: BTreeMap<RecallId, Outstanding>,
    pub(super) sessions: HashMap<SessionId, Holdings>,
    pub(super) contention: Contention,
    next_op: u64,
    next_recall: u64,
    pub(super) next_epoch: LeaseEpoch,
}

impl LeaseTable {
    /// An empty table whose grants have epochs from `first_epoch` on: more than those of any table before it.
    pub fn new(first_epoch: LeaseEpoch) -> LeaseTable {
        LeaseTable {
            inodes: HashMap::new(),
            ops: BTreeMap::new(),
            recalls: BTreeMap::new(),
            sessions: HashMap::new(),
            contention: Contention::default(),
            next_op: 1,
            next_recall: 1,
            next_epoch: first_epoch,
        }
    }

    /// Makes a session known; only known sessions get grants.
    pub fn open_session(&mut self, session: SessionId) {
        self.sessions.entry(session).or_default();
    }

    /// Takes an operation in. It runs when [`Effect::Run`] says so, maybe in this very answer.
    /// `None` where the session is not known (any more).
    pub fn begin(&mut self, now: Now, session: SessionId, needs: Vec<Need>) -> Option<(OpId, Vec<Effect>)> {
        self.sessions.get(&session)?;
        let id = OpId(self.next_op);
        self.next_op += 1;
        let needs = self.merged(session, needs);
        for need in &needs {
            let entry = self.inodes.entry(need.ino).or_default();
            entry.waiting.insert(id, need.access);
            if need.access != Access::Read {
                entry.waiting_alone.insert(id);
            }
        }
        self.sessions.entry(session).or_default().waiting.insert(id);
        let op = Op {
            session,
            needs: needs.into(),
            running: false,
            begun: now,
            firm: false,
            asked: BTreeSet::new(),
            cleared: HashSet::new(),
            passed: HashSet::new(),
        };
        self.ops.insert(id, op);
        let mut effects = Vec::new();
        self.decide(now, BTreeSet::from([id]), &mut effects);
        if self.ops.get(&id).is_some_and(|op| !op.running) && !self.sessions[&session].recalls.is_empty() {
            // Those that wait for this session wait for this operation too, so others may pass them now.
            let passers = self.passers();
            self.decide(now, passers, &mut effects);
        }
        Some((id, effects))
    }

    /// Makes an operation firm: its session's acknowledgement needs it, and it cannot be answered with an error, so
    /// refusing it would end no circle.
    pub fn make_firm(&mut self, id: OpId) {
        if let Some(op) = self.ops.get_mut(&id) {
            op.firm = true;
        }
    }

    /// Operations that wait, of sessions that something is wanted back from.
    fn passers(&self) -> BTreeSet<OpId> {
        let recalled = self.sessions.values().filter(|holdings| !holdings.recalls.is_empty());
        recalled.flat_map(|holdings| holdings.waiting.iter().copied()).collect()
    }

    /// One need for each inode, the strongest; optional ones only where they can be had now.
    fn merged(&self, session: SessionId, needs: Vec<Need>) -> Vec<Need> {
        let mut merged: Vec<Need> = Vec::with_capacity(needs.len());
        let mut position: HashMap<Ino, usize> = HashMap::with_capacity(needs.len());
        let (optional, firm): (Vec<Need>, Vec<Need>) = needs.into_iter().partition(|need| need.optional);
        for need in firm {
            if let Some(&at) = position.get(&need.ino) {
                let other = &mut merged[at];
                if other.access == Access::Change && need.access == Access::Change {
                    // Where either changes all, all changes.
                    if other.names.is_empty() || need.names.is_empty() {
                        other.names.clear();
                    } else {
                        other.names.extend(need.names);
                        other.names.sort();
                        other.names.dedup();
                    }
                } else if need.access > other.access {
                    *other = need;
                }
            } else {
                position.insert(need.ino, merged.len());
                merged.push(need);
            }
        }
        for need in optional {
            if !position.contains_key(&need.ino) && self.available(session, &need) {
                position.insert(need.ino, merged.len());
                merged.push(need);
            }
        }
        merged
    }

    /// Decides about these operations, and about those that are affected by what is decided.
    pub(super) fn decide(&mut self, now: Now, mut dirty: BTreeSet<OpId>, effects: &mut Vec<Effect>) {
        while let Some(id) = dirty.pop_first() {
            if self.ops.get(&id).is_some_and(|op| !op.running) {
                self.decide_one(now, id, &mut dirty, effects);
            }
        }
    }

    fn decide_one(&mut self, now: Now, id: OpId, dirty: &mut BTreeSet<OpId>, effects: &mut Vec<Effect>) {
        let needs = self.ops[&id].needs.clone();
        let mut free = true;
        let mut passed = HashSet::new();
        for need in needs.iter() {
            match self.turn(id, need) {
                Turn::Wait => {
                    free = false;
                    continue;
                }
                Turn::Pass => {
                    passed.insert(need.ino);
                }
                Turn::Own => {}
            }
            for holder in self.conflicts(id, need) {
                free = false;
                if self.ask(now, id, need, holder, effects) {
                    // Requests of the holder, and of those it waits for, may pass now.
                    dirty.extend(self.passers().into_iter().filter(|&other| other != id));
                }
            }
        }
        if !free {
            return;
        }
        for need in needs.iter() {
            let entry = self.inodes.entry(need.ino).or_default();
            entry.waiting.remove(&id);
            entry.waiting_alone.remove(&id);
            entry.running.insert(id, need.access);
        }
        let op = self.ops.get_mut(&id).expect("it was looked up above");
        op.running = true;
        op.passed = passed;
        if let Some(holdings) = self.sessions.get_mut(&op.session) {
            holdings.waiting.remove(&id);
        }
        effects.push(Effect::Run(id));
    }

    /// The inodes that an operation takes: all it needed and the optional ones that could be had.
    pub fn inodes_of(&self, id: OpId) -> HashSet<Ino> {
        self.ops.get(&id).map(|op| op.needs.iter().map(|need| need.ino).collect()).unwrap_or_default()
    }

    /// Operations that wait for any of these inodes.
    pub(super) fn waiting_on(&self, inos: impl IntoIterator<Item = Ino>) -> BTreeSet<OpId> {
        let entries = inos.into_iter().filter_map(|ino| self.inodes.get(&ino));
        entries.flat_map(|entry| entry.waiting.keys().copied()).collect()
    }

    /// The operation is done: its reply is on its way. Not an error where it is not known any more.
    pub fn end(&mut self, now: Now, id: OpId) -> Vec<Effect> {
        self.remove_op(now, id)
    }

    /// The operation that waits is not wanted any more.
    pub fn cancel(&mut self, now: Now, id: OpId) -> Vec<Effect> {
        self.remove_op(now, id)
    }

    fn remove_op(&mut self, now: Now, id: OpId) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut dirty = BTreeSet::new();
        self.forget_op(id, &mut dirty);
        self.decide(now, dirty, &mut effects);
        effects
    }

    /// Removes it and adds those that it may have held up.
    pub(super) fn forget_op(&mut self, id: OpId, dirty: &mut BTreeSet<OpId>) {
        let Some(op) = self.ops.remove(&id) else { return };
        for need in op.needs.iter() {
            let Some(entry) = self.inodes.get_mut(&need.ino) else { continue };
            entry.waiting.remove(&id);
            entry.waiting_alone.remove(&id);
            entry.running.remove(&id);
            dirty.extend(entry.waiting.keys().copied());
            self.tidy(need.ino);
        }
        for recall in op.asked {
            if let Some(outstanding) = self.recalls.get_mut(&recall) {
                outstanding.askers.remove(&id);
            }
        }
        if let Some(holdings) = self.sessions.get_mut(&op.session) {
            holdings.waiting.remove(&id);
        }
        dirty.remove(&id);
    }

    pub(super) fn tidy(&mut self, ino: Ino) {
        if self.inodes.get(&ino).is_some_and(Entry::is_empty) {
            self.inodes.remove(&ino);
        }
    }

    /// The session has done what a recall asked; `open`: it has the inode open.
    pub fn acknowledge(&mut self, now: Now, id: RecallId, open: bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(outstanding) = self.recalls.get(&id) else { return effects };
        let recall = outstanding.recall.clone();
        let mut dirty = self.forget_recall(id, recall.names.is_empty());
        if recall.names.is_empty() {
            self.reduce(recall.session, recall.ino, recall.epoch, recall.keep);
        }
        let covered =
            self.inodes.get(&recall.ino).is_some_and(|entry| entry.leases.contains_key(&recall.session));
        if open && !covered {
            self.register_open(recall.session, recall.ino);
        }
        dirty.extend(self.waiting_on([recall.ino]));
        self.decide(now, dirty, &mut effects);
        effects
    }

    /// Removes a recall; for one of names the askers remember that these are forgotten.
    /// Returns operations to be decided about.
    pub(super) fn forget_recall(&mut self, id: RecallId, whole: bool) -> BTreeSet<OpId> {
        let Some(outstanding) = self.recalls.remove(&id) else { return BTreeSet::new() };
        let Recall { session, ino, epoch, .. } = outstanding.recall;
        for asker in &outstanding.askers {
            if let Some(op) = self.ops.get_mut(asker) {
                op.asked.remove(&id);
                if !whole {
                    op.cleared.insert((ino, session, epoch));
                }
            }
        }
        if let Some(holdings) = self.sessions.get_mut(&session) {
            holdings.recalls.remove(&id);
        }
        if let Some(entry) = self.inodes.get_mut(&ino) {
            entry.recalls.remove(&id);
        }
        self.tidy(ino);
        outstanding.askers
    }

    /// Leaves the session `keep` of the lease, if it is still the one of that epoch.
    fn reduce(&mut self, session: SessionId, ino: Ino, epoch: LeaseEpoch, keep: Option<LeaseMode>) {
        let Some(lease) = self.inodes.get_mut(&ino).and_then(|entry| entry.leases.get_mut(&session)) else {
            return;
        };
        if lease.epoch != epoch {
            return;
        }
        match keep {
            Some(mode) => lease.mode = lease.mode.min(mode),
            None => self.drop_lease(session, ino),
        }
    }

    pub(super) fn drop_lease(&mut self, session: SessionId, ino: Ino) {
        if let Some(entry) = self.inodes.get_mut(&ino) {
            entry.leases.remove(&session);
        }
        if let Some(holdings) = self.sessions.get_mut(&session) {
            holdings.leases.remove(&ino);
        }
        self.tidy(ino);
    }

    /// The session gives leases back by itself. Those that are being recalled stay until the answer to that.
    pub fn release(&mut self, now: Now, session: SessionId, inos: &[Ino]) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut dirty = BTreeSet::new();
        for &ino in inos {
            let known = self.inodes.get(&ino);
            if known.is_some_and(|entry| entry.leases.contains_key(&session) && !entry.recalls_from(session))
            {
                self.drop_lease(session, ino);
                dirty.extend(self.waiting_on([ino]));
            }
        }
        self.decide(now, dirty, &mut effects);
        effects
    }

    /// The inode is gone for good: so are its leases. Nobody is told, nobody can ask for it any more.
    pub fn forget_inode(&mut self, ino: Ino) {
        let Some(entry) = self.inodes.get(&ino) else { return };
        let holders: Vec<SessionId> =
            entry.leases.keys().copied().filter(|&session| !entry.recalls_from(session)).collect();
        for session in holders {
            self.drop_lease(session, ino);
        }
    }

    /// Notes that the session has the inode open.
    pub fn register_open(&mut self, session: SessionId, ino: Ino) {
        if let Some(holdings) = self.sessions.get_mut(&session) {
            holdings.opens.insert(ino);
            self.inodes.entry(ino).or_default().opens.insert(session);
        }
    }

    /// Notes that it has not any more.
    pub fn close(&mut self, session: SessionId, ino: Ino) {
        if let Some(holdings) = self.sessions.get_mut(&session) {
            holdings.opens.remove(&ino);
        }
        if let Some(entry) = self.inodes.get_mut(&ino) {
            entry.opens.remove(&session);
        }
        self.tidy(ino);
    }

    /// Sessions registered as having the inode open, in order.
    pub fn holders(&self, ino: Ino) -> Vec<SessionId> {
        self.inodes.get(&ino).map(|entry| entry.opens.iter().copied().collect()).unwrap_or_default()
    }

    /// The session is no more: what it held is free, its operations that wait are forgotten
    /// (those that run end as usual, without grants).
    pub fn end_session(&mut self, now: Now, session: SessionId) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(holdings) = self.sessions.remove(&session) else { return effects };
        let mut dirty = BTreeSet::new();
        for id in holdings.waiting {
            self.forget_op(id, &mut dirty);
        }
        for id in holdings.recalls {
            dirty.extend(self.forget_recall(id, true));
        }
        for &ino in holdings.leases.iter().chain(&holdings.opens) {
            if let Some(entry) = self.inodes.get_mut(&ino) {
                entry.leases.remove(&session);
                entry.opens.remove(&session);
            }
            dirty.extend(self.waiting_on([ino]));
            self.tidy(ino);
        }
        self.decide(now, dirty, &mut effects);
        effects
    }

    /// Who holds what on an inode, for administration.
    pub fn leases_on(&self, ino: Ino) -> Vec<LeaseInfo> {
        let Some(entry) = self.inodes.get(&ino) else { return Vec::new() };
        let sessions: BTreeSet<SessionId> = entry.leases.keys().chain(&entry.opens).copied().collect();
        let info = |session| {
            let lease = entry.leases.get(&session);
            LeaseInfo {
                session,
                mode: lease.map(|lease| lease.mode),
                recalling: entry.recalls_from(session),
                open: entry.opens.contains(&session),
            }
        };
        sessions.into_iter().map(info).collect()
    }

    /// Leases and unanswered recalls of a session.
    pub fn load_of(&self, session: SessionId) -> (usize, usize) {
        self.sessions.get(&session).map_or((0, 0), |held| (held.leases.len(), held.recalls.len()))
    }

    /// A recall's new name.
    pub(super) fn new_recall(&mut self) -> RecallId {
        let id = RecallId(self.next_recall);
        self.next_recall += 1;
        id
    }
}

/// Whether an operation may have an inode as far as other operations go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Another one first.
    Wait,
    /// Its own turn.
    Own,
    /// Before its turn, because others wait for its session.
    Pass,
}

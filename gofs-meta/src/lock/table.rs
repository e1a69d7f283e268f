//! The table: set, unlock, test, wait, and finding deadlocks.

use std::collections::{BTreeMap, HashMap, HashSet};

use gofs_tree::{FsError, Ino, SessionId};

use super::{Lock, LockOwner, LockRange, WaitId};

/// Most locks and waiting requests of one session: a bound on what one mount can make the server keep.
const LOCKS_PER_SESSION_MAX: usize = 100_000;

/// What became of a request for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetOutcome {
    /// It is held.
    Granted,
    /// It waits; [`LockTable`]'s calls will name it among those granted, or it is cancelled.
    Waiting(WaitId),
}

#[derive(Debug, Default)]
struct File {
    /// Sorted by owner and start. Those of one owner and kind neither overlap nor touch.
    held: Vec<Lock>,
    waiting: BTreeMap<WaitId, Lock>,
}

/// The locks of one namespace. See the module.
#[derive(Debug, Default)]
pub struct LockTable {
    files: HashMap<Ino, File>,
    waits: HashMap<WaitId, Ino>,
    per_session: HashMap<SessionId, usize>,
    next_wait: u64,
}

impl LockTable {
    /// Takes a lock, replacing what its owner has there. With `wait` a conflict makes it wait.
    ///
    /// [`FsError::WouldBlock`] on a conflict without `wait`, [`FsError::Deadlock`] where the wait would
    /// never end, [`FsError::NoLocks`] over the session's bound. Besides the outcome: requests that were waiting and
    /// are granted because a write lock became a read lock.
    pub fn set(&mut self, ino: Ino, lock: Lock, wait: bool) -> Result<(SetOutcome, Vec<WaitId>), FsError> {
        if self.per_session.get(&lock.owner.session).is_some_and(|&count| count >= LOCKS_PER_SESSION_MAX) {
            return Err(FsError::NoLocks);
        }
        let blocked =
            self.files.get(&ino).is_some_and(|file| file.held.iter().any(|held| held.conflicts(&lock)));
        if !blocked {
            self.put(ino, lock);
            let woken = self.wake(ino);
            return Ok((SetOutcome::Granted, woken));
        }
        if !wait {
            return Err(FsError::WouldBlock);
        }
        if self.would_deadlock(ino, &lock) {
            return Err(FsError::Deadlock);
        }
        self.next_wait += 1;
        let id = WaitId(self.next_wait);
        self.files.entry(ino).or_default().waiting.insert(id, lock);
        self.waits.insert(id, ino);
        *self.per_session.entry(lock.owner.session).or_default() += 1;
        Ok((SetOutcome::Waiting(id), Vec::new()))
    }

    /// A lock that stands in the way of this one.
    pub fn test(&self, ino: Ino, lock: &Lock) -> Option<Lock> {
        let held = &self.files.get(&ino)?.held;
        held.iter().filter(|held| held.conflicts(lock)).min_by_key(|held| held.range.start()).copied()
    }

    /// Frees what the owner has in the range. Returns waiting requests that are granted now.
    pub fn unlock(&mut self, ino: Ino, owner: LockOwner, range: LockRange) -> Vec<WaitId> {
        self.clear(ino, owner, range);
        self.wake(ino)
    }

    /// Ends a request that waits. False where it does not any more.
    pub fn cancel(&mut self, wait: WaitId) -> bool {
        let Some(ino) = self.waits.remove(&wait) else { return false };
        if let Some(lock) = self.files.get_mut(&ino).and_then(|file| file.waiting.remove(&wait)) {
            self.count(lock.owner.session, -1);
        }
        self.tidy(ino);
        true
    }

    /// Frees all that the session holds and waits for. Returns waiting requests of others that are granted now.
    pub fn end_session(&mut self, session: SessionId) -> Vec<WaitId> {
        let touched = self.remove_all(session);
        self.wake_all(touched)
    }

    /// A session is back and says what it holds: what it does not list is freed, what it lists and the
    /// table lacks is taken in where nothing conflicts (a new leader knows of no lock). Requests that wait are of
    /// the old connection and end. Returns waiting requests of others that are granted now.
    pub fn resume(&mut self, session: SessionId, locks: &[(Ino, Lock)]) -> Vec<WaitId> {
        let touched = self.remove_all(session);
        // Before anybody who waits is given what was held without a break.
        for (ino, lock) in locks {
            let conflict =
                self.files.get(ino).is_some_and(|file| file.held.iter().any(|held| held.conflicts(lock)));
            let room = self.per_session.get(&session).is_none_or(|&count| count < LOCKS_PER_SESSION_MAX);
            if lock.owner.session == session && !conflict && room {
                self.put(*ino, *lock);
            }
        }
        self.wake_all(touched)
    }

    /// Removes what the session holds and waits for, and wakes nobody yet: the inodes of which there was any.
    fn remove_all(&mut self, session: SessionId) -> Vec<Ino> {
        if !self.per_session.contains_key(&session) {
            return Vec::new();
        }
        let mut touched = Vec::new();
        for (&ino, file) in &mut self.files {
            let before = file.held.len() + file.waiting.len();
            file.held.retain(|held| held.owner.session != session);
            let gone: Vec<WaitId> = file
                .waiting
                .iter()
                .filter(|(_, lock)| lock.owner.session == session)
                .map(|(&id, _)| id)
                .collect();
            for id in gone {
                file.waiting.remove(&id);
                self.waits.remove(&id);
            }
            if file.held.len() + file.waiting.len() < before {
                touched.push(ino);
            }
        }
        self.per_session.remove(&session);
        touched
    }

    fn wake_all(&mut self, inos: Vec<Ino>) -> Vec<WaitId> {
        inos.into_iter().flat_map(|ino| self.wake(ino)).collect()
    }

    /// Grants what waits and can be had, in order of arrival.
    fn wake(&mut self, ino: Ino) -> Vec<WaitId> {
        let mut woken = Vec::new();
        // A grant can free nothing that is in the way of an earlier one except by turning a write lock into a
        // read lock, so one more round is looked at after each.
        while let Some(file) = self.files.get(&ino) {
            let free = |lock: &Lock| !file.held.iter().any(|held| held.conflicts(lock));
            let Some((id, lock)) =
                file.waiting.iter().find(|(_, lock)| free(lock)).map(|(&id, &lock)| (id, lock))
            else {
                break;
            };
            self.cancel(id);
            self.put(ino, lock);
            woken.push(id);
        }
        self.tidy(ino);
        woken
    }

    /// Makes the lock held: cuts what its owner has there and joins neighbours of its kind.
    fn put(&mut self, ino: Ino, mut lock: Lock) {
        self.clear(ino, lock.owner, lock.range);
        let file = self.files.entry(ino).or_default();
        let before = file.held.len();
        file.held.retain(|held| {
            let joins = held.owner == lock.owner
                && held.exclusive == lock.exclusive
                && held.range.touches(lock.range);
            if joins {
                lock.range = lock.range.join(held.range);
            }
            !joins
        });
        let joined = before - file.held.len();
        file.held.push(lock);
        self.count(lock.owner.session, 1 - joined as isize);
    }

    fn clear(&mut self, ino: Ino, owner: LockOwner, range: LockRange) {
        let Some(file) = self.files.get_mut(&ino) else { return };
        let before = file.held.len();
        let (cut, kept): (Vec<Lock>, Vec<Lock>) =
            file.held.drain(..).partition(|held| held.owner == owner && held.range.overlaps(range));
        file.held = kept;
        for lock in cut {
            file.held.extend(lock.range.without(range).map(|rest| Lock { range: rest, ..lock }));
        }
        let change = file.held.len() as isize - before as isize;
        self.count(owner.session, change);
        self.tidy(ino);
    }

    /// Whether, if this request waited, its owner would wait for itself through others.
    fn would_deadlock(&self, ino: Ino, lock: &Lock) -> bool {
        let mut seen = HashSet::new();
        let mut next = self.in_the_way(ino, lock);
        while let Some(owner) = next.pop() {
            if owner == lock.owner {
                return true;
            }
            if seen.insert(owner) {
                for (wait, ino) in &self.waits {
                    let waiting = self.files.get(ino).and_then(|file| file.waiting.get(wait));
                    if let Some(waiting) = waiting.filter(|waiting| waiting.owner == owner) {
                        next.extend(self.in_the_way(*ino, waiting));
                    }
                }
            }
        }
        false
    }

    fn in_the_way(&self, ino: Ino, lock: &Lock) -> Vec<LockOwner> {
        let Some(file) = self.files.get(&ino) else { return Vec::new() };
        file.held.iter().filter(|held| held.conflicts(lock)).map(|held| held.owner).collect()
    }

    fn count(&mut self, session: SessionId, change: isize) {
        let count = self.per_session.entry(session).or_default();
        *count = count.saturating_add_signed(change);
        if *count == 0 {
            self.per_session.remove(&session);
        }
    }

    fn tidy(&mut self, ino: Ino) {
        if self.files.get(&ino).is_some_and(|file| file.held.is_empty() && file.waiting.is_empty()) {
            self.files.remove(&ino);
        }
    }
}

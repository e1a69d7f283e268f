//! Byte-range locks that processes of this host hold, to be claimed back after a reconnection.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use gofs_tree::Ino;

use crate::handle::FileLock;

/// Per inode and owner, sorted and disjoint.
#[derive(Debug, Default)]
pub struct HeldLocks {
    locks: BTreeMap<(Ino, u64), Vec<FileLock>>,
    /// Who asked for locks and does not want them any more, until the servers know.
    leaving: BTreeMap<(Ino, u64), usize>,
}

impl HeldLocks {
    /// Every lock.
    pub fn all(&self) -> impl Iterator<Item = (Ino, FileLock)> {
        self.locks.iter().flat_map(|((ino, _), locks)| locks.iter().map(|lock| (*ino, *lock)))
    }

    /// Whether the owner holds any on the inode.
    pub fn holds_any(&self, ino: Ino, owner: u64) -> bool {
        self.locks.contains_key(&(ino, owner))
    }

    /// The owner has this lock now; it replaces what it had on these bytes, which is returned.
    pub fn set(&mut self, ino: Ino, lock: FileLock) -> Vec<FileLock> {
        let before = self.within(ino, &lock);
        self.remove(ino, lock.owner, lock.start, lock.end);
        let locks = self.locks.entry((ino, lock.owner)).or_default();
        locks.push(lock);
        locks.sort_unstable_by_key(|lock| lock.start);
        merge(locks);
        before
    }

    /// A shared lock is asked for. Where its owner has all of these bytes it cannot be refused, and others may have what was
    /// exclusive as soon as the servers know: it counts from now on. What it replaces, where it does.
    pub fn weaken(&mut self, ino: Ino, lock: FileLock) -> Vec<FileLock> {
        let covers = |end: Option<u64>| end.is_none_or(|end| end > lock.end);
        let mut next = Some(lock.start);
        for held in self.within(ino, &lock) {
            if next == Some(held.start) {
                next = held.end.checked_add(1);
            }
        }
        if !lock.exclusive && covers(next) { self.set(ino, lock) } else { Vec::new() }
    }

    /// What the owner of a lock has on its bytes.
    fn within(&self, ino: Ino, lock: &FileLock) -> Vec<FileLock> {
        let held = self.locks.get(&(ino, lock.owner)).into_iter().flatten();
        held.filter(|held| held.start <= lock.end && held.end >= lock.start)
            .map(|held| FileLock { start: held.start.max(lock.start), end: held.end.min(lock.end), ..*held })
            .collect()
    }

    /// The owner does not want a lock any more that it has asked for.
    pub fn begin_leaving(&mut self, ino: Ino, owner: u64) {
        *self.leaving.entry((ino, owner)).or_default() += 1;
    }

    /// The servers know of one.
    pub fn end_leaving(&mut self, ino: Ino, owner: u64) {
        if let Entry::Occupied(mut leaving) = self.leaving.entry((ino, owner)) {
            *leaving.get_mut() -= 1;
            if *leaving.get() == 0 {
                leaving.remove();
            }
        }
    }

    /// Whether there are any that they do not know of.
    pub fn is_leaving(&self, ino: Ino, owner: u64) -> bool {
        self.leaving.contains_key(&(ino, owner))
    }

    /// The owner has nothing on `start..=end` any more.
    pub fn remove(&mut self, ino: Ino, owner: u64, start: u64, end: u64) {
        let Some(locks) = self.locks.get_mut(&(ino, owner)) else { return };
        let mut left = Vec::with_capacity(locks.len() + 1);
        for lock in locks.drain(..) {
            if lock.end < start || lock.start > end {
                left.push(lock);
                continue;
            }
            if lock.start < start {
                left.push(FileLock { end: start - 1, ..lock });
            }
            if lock.end > end {
                left.push(FileLock { start: end + 1, ..lock });
            }
        }
        if left.is_empty() {
            self.locks.remove(&(ino, owner));
        } else {
            *locks = left;
        }
    }

    /// All are lost; how many there were.
    pub fn clear(&mut self) -> usize {
        let count = self.all().count();
        self.locks.clear();
        count
    }
}

/// Joins neighbours of one kind.
fn merge(locks: &mut Vec<FileLock>) {
    locks.dedup_by(|next, lock| {
        let joins = lock.exclusive == next.exclusive && lock.end.checked_add(1) == Some(next.start);
        if joins {
            lock.end = next.end;
        }
        joins
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(start: u64, end: u64, exclusive: bool) -> FileLock {
        FileLock { owner: 1, start, end, exclusive, pid: 7 }
    }

    fn ranges(held: &HeldLocks) -> Vec<(u64, u64, bool)> {
        held.all().map(|(_, lock)| (lock.start, lock.end, lock.exclusive)).collect()
    }

    #[test]
    fn a_new_lock_replaces_the_owners_old_one_on_the_same_bytes() {
        let mut held = HeldLocks::default();
        assert_eq!(held.set(Ino(1), lock(0, 99, true)), []);
        assert_eq!(held.set(Ino(1), lock(10, 19, false)), [lock(10, 19, true)]);
        assert_eq!(ranges(&held), [(0, 9, true), (10, 19, false), (20, 99, true)]);
        held.set(Ino(1), lock(10, 19, true));
        assert_eq!(ranges(&held), [(0, 99, true)]);
    }

    #[test]
    fn what_its_owner_has_all_of_becomes_shared_when_that_is_asked_for() {
        let mut held = HeldLocks::default();
        held.set(Ino(1), lock(0, 9, true));
        held.set(Ino(1), lock(10, 19, false));
        held.set(Ino(1), lock(30, u64::MAX, true));
        let before = ranges(&held);
        assert_eq!(held.weaken(Ino(1), lock(5, 20, false)), [], "another may have 20");
        assert_eq!(held.weaken(Ino(1), lock(5, 19, true)), []);
        assert_eq!(held.weaken(Ino(2), lock(5, 5, false)), []);
        assert_eq!(ranges(&held), before);
        assert_eq!(held.weaken(Ino(1), lock(5, 15, false)), [lock(5, 9, true), lock(10, 15, false)]);
        held.weaken(Ino(1), lock(40, u64::MAX, false));
        let left = [(0, 4, true), (5, 19, false), (30, 39, true), (40, u64::MAX, false)];
        assert_eq!(ranges(&held), left);
    }

    #[test]
    fn an_owner_is_leaving_until_the_last_of_its_waits_is_known_to_be_over() {
        let mut held = HeldLocks::default();
        held.begin_leaving(Ino(1), 1);
        held.begin_leaving(Ino(1), 1);
        held.end_leaving(Ino(1), 1);
        assert!(held.is_leaving(Ino(1), 1) && !held.is_leaving(Ino(1), 2) && !held.is_leaving(Ino(2), 1));
        held.end_leaving(Ino(1), 1);
        assert!(!held.is_leaving(Ino(1), 1));
    }

    #[test]
    fn unlocking_splits_and_the_last_byte_of_the_file_is_reached() {
        let mut held = HeldLocks::default();
        held.set(Ino(1), lock(0, u64::MAX, true));
        held.remove(Ino(1), 1, 5, 6);
        assert_eq!(ranges(&held), [(0, 4, true), (7, u64::MAX, true)]);
        held.remove(Ino(1), 1, 0, u64::MAX);
        assert!(!held.holds_any(Ino(1), 1));
        assert_eq!(held.clear(), 0);
    }
}

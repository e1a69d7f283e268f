//! POSIX's rules, and a random comparison with a table of single bytes.

use std::collections::BTreeMap;

use gofs_tree::{FsError, Ino, SessionId};

use super::*;

const FILE: Ino = Ino(5);

fn owner(session: u64, owner: u64) -> LockOwner {
    LockOwner { session: SessionId(session), owner }
}

fn lock(who: LockOwner, start: u64, end: u64, exclusive: bool) -> Lock {
    Lock { owner: who, range: LockRange::new(start, end).unwrap(), exclusive, pid: 1 }
}

fn range(start: u64, end: u64) -> LockRange {
    LockRange::new(start, end).unwrap()
}

const A: u64 = 1;
const B: u64 = 2;

#[test]
fn readers_share_and_a_writer_is_alone() {
    let mut table = LockTable::default();
    let (a, b) = (owner(A, 1), owner(B, 1));
    assert_eq!(table.set(FILE, lock(a, 0, 9, false), false).unwrap().0, SetOutcome::Granted);
    assert_eq!(table.set(FILE, lock(b, 5, 20, false), false).unwrap().0, SetOutcome::Granted);
    assert_eq!(table.set(FILE, lock(b, 9, 9, true), false), Err(FsError::WouldBlock));
    assert_eq!(table.test(FILE, &lock(b, 0, 100, true)), Some(lock(a, 0, 9, false)));
    assert_eq!(table.set(FILE, lock(b, 10, 20, true), false).unwrap().0, SetOutcome::Granted);
}

#[test]
fn unlocking_the_middle_leaves_both_ends() {
    let mut table = LockTable::default();
    let (a, b) = (owner(A, 1), owner(B, 1));
    table.set(FILE, lock(a, 0, u64::MAX, true), false).unwrap();
    table.unlock(FILE, a, range(10, 19));
    assert_eq!(table.set(FILE, lock(b, 10, 19, true), false).unwrap().0, SetOutcome::Granted);
    assert_eq!(table.set(FILE, lock(b, 9, 9, true), false), Err(FsError::WouldBlock));
    assert_eq!(table.set(FILE, lock(b, 20, 20, false), false), Err(FsError::WouldBlock));
}

#[test]
fn those_that_wait_are_granted_in_order() {
    let mut table = LockTable::default();
    table.set(FILE, lock(owner(A, 1), 0, 9, true), false).unwrap();
    let waits: Vec<SetOutcome> =
        (1..=3).map(|n| table.set(FILE, lock(owner(B, n), 0, 9, n != 3), true).unwrap().0).collect();
    let [SetOutcome::Waiting(first), SetOutcome::Waiting(second), SetOutcome::Waiting(third)] = waits[..]
    else {
        panic!("{waits:?}")
    };
    assert_eq!(table.unlock(FILE, owner(A, 1), range(0, 9)), [first]);
    assert!(table.cancel(second));
    assert!(!table.cancel(second));
    assert_eq!(table.unlock(FILE, owner(B, 1), range(0, 9)), [third]);
}

#[test]
fn a_write_lock_that_becomes_a_read_lock_lets_readers_in() {
    let mut table = LockTable::default();
    table.set(FILE, lock(owner(A, 1), 0, 9, true), false).unwrap();
    let SetOutcome::Waiting(wait) = table.set(FILE, lock(owner(B, 1), 3, 3, false), true).unwrap().0 else {
        panic!()
    };
    assert_eq!(
        table.set(FILE, lock(owner(A, 1), 0, 9, false), true).unwrap(),
        (SetOutcome::Granted, vec![wait])
    );
}

#[test]
fn owners_that_would_wait_for_each_other_are_told() {
    let mut table = LockTable::default();
    let owners: Vec<LockOwner> = (1..=3).map(|n| owner(n, 7)).collect();
    for (at, &who) in owners.iter().enumerate() {
        table.set(Ino(10 + at as u64), lock(who, 0, 0, true), false).unwrap();
    }
    assert!(matches!(table.set(Ino(11), lock(owners[0], 0, 0, true), true), Ok((SetOutcome::Waiting(_), _))));
    assert!(matches!(
        table.set(Ino(12), lock(owners[1], 0, 0, false), true),
        Ok((SetOutcome::Waiting(_), _))
    ));
    assert_eq!(table.set(Ino(10), lock(owners[2], 0, 0, true), true), Err(FsError::Deadlock));
    assert_eq!(table.set(FILE, lock(owners[2], 0, 0, true), true).unwrap().0, SetOutcome::Granted);
}

#[test]
fn the_end_of_a_session_frees_its_locks_and_ends_its_waits() {
    let mut table = LockTable::default();
    table.set(FILE, lock(owner(A, 1), 0, 9, true), false).unwrap();
    let SetOutcome::Waiting(wait) = table.set(FILE, lock(owner(B, 1), 0, 9, true), true).unwrap().0 else {
        panic!()
    };
    table.set(FILE, lock(owner(A, 2), 0, 9, true), true).unwrap();
    assert_eq!(table.end_session(SessionId(A)), [wait]);
    assert_eq!(table.end_session(SessionId(B)), []);
    assert!(table.test(FILE, &lock(owner(A, 1), 0, 99, true)).is_none());
}

#[test]
fn a_session_that_is_back_has_what_it_lists() {
    let mut table = LockTable::default();
    table.set(FILE, lock(owner(A, 1), 0, 9, true), false).unwrap();
    table.set(Ino(6), lock(owner(A, 1), 0, 9, true), false).unwrap();
    table.resume(
        SessionId(A),
        &[(FILE, lock(owner(A, 1), 0, 9, true)), (Ino(7), lock(owner(A, 1), 1, 2, false))],
    );
    let other = lock(owner(B, 1), 0, 99, true);
    assert!(table.test(FILE, &other).is_some());
    assert!(table.test(Ino(6), &other).is_none());
    assert!(table.test(Ino(7), &other).is_some());
    // Another's lock is not taken from it.
    table.resume(SessionId(B), &[(FILE, lock(owner(B, 1), 5, 5, true))]);
    assert!(table.test(FILE, &lock(owner(A, 1), 0, 9, true)).is_none());
}

#[test]
fn what_a_session_that_is_back_still_lists_goes_to_nobody_who_waits_for_it() {
    let (a, b) = (owner(A, 1), owner(B, 1));
    let resumed = |listed: &[Lock]| {
        let mut table = LockTable::default();
        table.set(FILE, lock(a, 0, 19, true), false).unwrap();
        table.set(FILE, lock(b, 5, 5, true), true).unwrap();
        let listed: Vec<(Ino, Lock)> = listed.iter().map(|lock| (FILE, *lock)).collect();
        let woken = table.resume(SessionId(A), &listed).len();
        (woken, table.test(FILE, &lock(b, 5, 5, true)))
    };
    // Unlocked in part while the connection was down.
    assert_eq!(resumed(&[lock(a, 0, 9, true)]), (0, Some(lock(a, 0, 9, true))));
    let weaker = [lock(a, 0, 9, false), lock(a, 10, 19, true)];
    assert_eq!(resumed(&weaker), (0, Some(weaker[0])));
    assert_eq!(resumed(&[lock(a, 6, 19, true)]), (1, None), "what it gave up is free");
}

#[test]
fn random_locks_agree_with_a_table_of_bytes() {
    const BYTES: u64 = 12;
    for seed in 1..300u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |bound: u64| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
        };
        let mut table = LockTable::default();
        // byte -> owner -> exclusive
        let mut bytes: Vec<BTreeMap<LockOwner, bool>> = vec![BTreeMap::new(); BYTES as usize];
        for _ in 0..200 {
            let who = owner(below(3), below(2));
            let (x, y) = (below(BYTES), below(BYTES));
            let (start, end) = (x.min(y), x.max(y));
            if below(3) == 0 {
                table.unlock(FILE, who, range(start, end));
                bytes[start as usize..=end as usize].iter_mut().for_each(|byte| {
                    byte.remove(&who);
                });
                continue;
            }
            let wanted = lock(who, start, end, below(2) == 0);
            let free = bytes[start as usize..=end as usize].iter().all(|byte| {
                byte.iter().all(|(&other, &exclusive)| other == who || !(exclusive || wanted.exclusive))
            });
            assert_eq!(table.test(FILE, &wanted).is_none(), free, "seed {seed}");
            assert_eq!(table.set(FILE, wanted, false).is_ok(), free, "seed {seed}");
            if free {
                bytes[start as usize..=end as usize].iter_mut().for_each(|byte| {
                    byte.insert(who, wanted.exclusive);
                });
            }
        }
        for session in 0..3 {
            assert_eq!(table.end_session(SessionId(session)), []);
        }
        assert_eq!(
            format!("{table:?}"),
            format!("{:?}", LockTable::default()),
            "seed {seed}: nothing is left"
        );
    }
}

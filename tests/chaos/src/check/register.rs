//! A register: something on a file that holds a number, written and read on all mounts.
//!
//! Every value is written once, so a read tells which write it has seen. A write that was acknowledged on a mount whose session ended later,
//! and not fsynced, may be lost; then only its own mount may have seen it, and only until others could see that it is lost.

use std::collections::{BTreeMap, BTreeSet};

use super::linear::{self, Action, Event};
use crate::watch::{Fence, Stamp, show};

/// What was not fsynced for so long has reached the servers: 5 s, and what servers may take that just come back.
const REACHED_NS: Stamp = 30_000_000_000;

/// A read or a write.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// On which mount.
    pub mount: usize,
    /// When it was called.
    pub begun: Stamp,
    /// When it returned.
    pub ended: Stamp,
    /// What it did.
    pub what: What,
}

/// See [`Entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// This was there; 0 before the first write.
    Read(u64),
    /// This was written.
    Write {
        /// Unlike any other.
        value: u64,
        /// An fsync after it returned without an error.
        synced: bool,
        /// The write itself returned an error: it may have been done.
        failed: bool,
    },
}

/// Checks all that was done with a register. `fences` are those of each mount. Every violation found.
pub fn check(history: &[Entry], fences: &[Vec<Fence>]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut reads: BTreeMap<u64, Vec<&Entry>> = BTreeMap::new();
    for entry in history {
        if let What::Read(value) = entry.what {
            reads.entry(value).or_default().push(entry);
        }
    }
    let mut lost = BTreeSet::new();
    let mut optional = BTreeMap::new();
    for entry in history {
        let What::Write { value, synced, failed } = entry.what else { continue };
        let own_fences = &fences[entry.mount];
        let Some(fence) = fence_after(entry, own_fences).filter(|_| !synced) else {
            if failed {
                // The fence that explains the error, else it is told where it happened.
                optional.insert(value, Stamp::MAX);
            }
            continue;
        };
        let seen = reads.get(&value).map_or(&[][..], Vec::as_slice);
        let kept = seen.iter().any(|read| read.mount != entry.mount || read.begun > fence.ended);
        if kept {
            if failed {
                optional.insert(value, fence.ended);
            }
            continue;
        }
        lost.insert(value);
        wrong.extend(seen_after_loss(history, entry, seen));
    }
    let used: Vec<&Entry> = history
        .iter()
        .filter(|entry| match entry.what {
            What::Read(value) | What::Write { value, .. } => !lost.contains(&value),
        })
        .collect();
    let events: Vec<Event> = used.iter().map(|entry| event(entry, &optional)).collect();
    if let Err(impossible) = linear::check(&BTreeSet::from([Some(0)]), &events) {
        wrong.push(explain(&used, &impossible));
    }
    wrong
}

fn event(entry: &Entry, optional: &BTreeMap<u64, Stamp>) -> Event {
    let action = match entry.what {
        What::Read(value) => Action::Read(Some(value)),
        What::Write { value, .. } => Action::Write(value),
    };
    let until = match entry.what {
        What::Write { value, .. } => optional.get(&value),
        What::Read(_) => None,
    };
    let ended = until.map_or(entry.ended, |until| entry.ended.max(*until));
    Event { begun: entry.begun, ended, action, optional: until.is_some() }
}

/// The fence that may have taken a write which was not fsynced.
fn fence_after<'a>(entry: &Entry, fences: &'a [Fence]) -> Option<&'a Fence> {
    fences.iter().find(|fence| entry.begun <= fence.ended && entry.ended + REACHED_NS >= fence.begun)
}

/// Once an operation of another mount that began after the write has returned, that mount has (or had) what this one held, so
/// whoever still reads the lost value reads from a cache that is not valid any more.
fn seen_after_loss(history: &[Entry], write: &Entry, seen: &[&Entry]) -> Option<String> {
    let others = history.iter().filter(|other| other.mount != write.mount && other.begun >= write.ended);
    let told = others.min_by_key(|other| other.ended)?;
    let late = seen.iter().find(|read| read.begun > told.ended)?;
    Some(format!("stale read: {late:?} of a write that was lost, {write:?}, after {told:?} on another mount"))
}

/// The operation, and those around it.
fn explain(used: &[&Entry], impossible: &linear::Impossible) -> String {
    const AROUND: usize = 12;
    let entry = used[impossible.event];
    let mut near: Vec<&&Entry> = used.iter().filter(|other| other.begun <= entry.ended).collect();
    near.sort_by_key(|other| other.begun);
    let near = &near[near.len().saturating_sub(AROUND)..];
    let lines: Vec<String> = near
        .iter()
        .map(|e| format!("\n    mount {} {} to {} {:?}", e.mount, show(e.begun), show(e.ended), e.what))
        .collect();
    format!(
        "not linearizable: mount {} {} to {} {:?} where {:?} was held; before it:{}",
        entry.mount,
        show(entry.begun),
        show(entry.ended),
        entry.what,
        impossible.held,
        lines.concat()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Stamp = 1_000_000_000;

    fn read(mount: usize, at: Stamp, value: u64) -> Entry {
        Entry { mount, begun: at * S, ended: at * S + S / 2, what: What::Read(value) }
    }

    fn write(mount: usize, at: Stamp, value: u64, synced: bool) -> Entry {
        let what = What::Write { value, synced, failed: false };
        Entry { mount, begun: at * S, ended: at * S + S / 2, what }
    }

    fn fenced(begun: Stamp, ended: Stamp) -> Vec<Vec<Fence>> {
        vec![vec![Fence { begun: begun * S, ended: ended * S }], vec![]]
    }

    const CALM: [Vec<Fence>; 2] = [vec![], vec![]];

    #[test]
    fn a_stale_read_and_a_lost_write_are_found() {
        let stale = [write(0, 1, 1, false), write(1, 2, 2, false), read(0, 3, 1)];
        assert_eq!(check(&stale, &CALM).len(), 1);
        let lost = [write(0, 1, 1, false), read(0, 2, 1), read(1, 3, 0)];
        assert_eq!(check(&lost, &CALM).len(), 1);
        let good = [write(0, 1, 1, false), write(1, 2, 2, false), read(0, 3, 2), read(1, 3, 2)];
        assert_eq!(check(&good, &CALM), Vec::<String>::new());
    }

    #[test]
    fn a_fenced_mount_may_lose_what_was_not_fsynced_and_nothing_else() {
        let history = |synced| [write(0, 10, 1, synced), read(0, 11, 1), read(1, 40, 0), read(0, 41, 0)];
        assert_eq!(check(&history(false), &fenced(12, 39)), Vec::<String>::new());
        assert_eq!(check(&history(true), &fenced(12, 39)).len(), 1, "it was fsynced");
        assert_eq!(check(&history(false), &fenced(60, 90)).len(), 1, "the fence came later");
        assert_eq!(
            check(&history(false), &[vec![], fenced(12, 39).remove(0)]).len(),
            1,
            "of the other mount"
        );
    }

    #[test]
    fn what_was_written_long_before_a_fence_is_not_lost() {
        let history = [write(0, 10, 1, false), read(1, 100, 0)];
        assert_eq!(check(&history, &fenced(60, 90)).len(), 1);
        assert_eq!(check(&history, &fenced(30, 60)), Vec::<String>::new());
    }

    #[test]
    fn a_lost_value_is_not_read_after_another_mount_had_its_answer() {
        let write = write(0, 10, 1, false);
        let stale = [write, read(1, 30, 0), read(0, 31, 1)];
        let wrong = check(&stale, &fenced(12, 40));
        assert!(wrong.len() == 1 && wrong[0].contains("stale"), "{wrong:?}");
        let early = [write, read(0, 29, 1), read(1, 30, 0)];
        assert_eq!(check(&early, &fenced(12, 40)), Vec::<String>::new());
    }

    #[test]
    fn a_value_that_another_mount_has_seen_is_not_lost() {
        let history = [write(0, 10, 1, false), read(1, 11, 1), read(1, 50, 0)];
        assert_eq!(check(&history, &fenced(12, 40)).len(), 1);
    }

    #[test]
    fn a_failed_write_may_have_been_done_until_the_fence_is_over() {
        let failed = What::Write { value: 1, synced: false, failed: true };
        let failed = Entry { mount: 0, begun: 20 * S, ended: 25 * S, what: failed };
        assert_eq!(check(&[failed, read(1, 50, 0)], &fenced(12, 40)), Vec::<String>::new());
        assert_eq!(check(&[failed, read(1, 50, 1)], &fenced(12, 40)), Vec::<String>::new());
        assert_eq!(check(&[failed, read(1, 50, 0), read(1, 52, 1)], &fenced(12, 40)).len(), 1);
    }
}

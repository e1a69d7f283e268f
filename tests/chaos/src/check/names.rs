//! A name that all mounts fight over: made exclusively, removed, looked up, listed.
//!
//! A mount whose session ends loses, of what it did there and was acknowledged, at most the end: some number of its first
//! changes stay, and what it saw after the first lost one was a world that never was. So every such number is tried. What was under way
//! when the session ended may be done in the next one.

use std::collections::BTreeSet;

use super::linear::{self, Action, Event, State};
use crate::watch::{Fence, Stamp, show};

/// What was changed so long before a fence has reached the servers: 5 s, and as long again for servers that just come back.
const REACHED_NS: Stamp = 10_000_000_000;
/// An inode number that is not known, because the call that made the inode failed.
pub const UNKNOWN: u64 = u64::MAX;

/// An operation on the name.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// On which mount.
    pub mount: usize,
    /// When it was called.
    pub begun: Stamp,
    /// When it returned.
    pub ended: Stamp,
    /// What it did; the numbers are of inodes.
    pub action: Action,
    /// It returned an error that tells nothing: it may have been done.
    pub failed: bool,
}

impl Entry {
    fn is_change(&self) -> bool {
        matches!(self.action, Action::Take(_) | Action::Free)
    }
}

/// A fence with its mount.
type Cut = (usize, Fence);

/// Checks all that was done with a name. Every violation found: none, or the one of the best explanation.
pub fn check(history: &[Entry], fences: &[Vec<Fence>]) -> Option<String> {
    let mut history = history.to_vec();
    history.sort_by_key(|entry| entry.begun);
    let mut cuts: Vec<Cut> = Vec::new();
    for (mount, fences) in fences.iter().enumerate() {
        cuts.extend(fences.iter().map(|fence| (mount, *fence)));
    }
    cuts.sort_by_key(|(_, fence)| fence.begun);
    explain(&history, &cuts, 0, &Taken::default()).err().map(|wrong| wrong.text)
}

/// What fences took, by number in the history.
#[derive(Clone, Debug, Default)]
struct Taken {
    /// It had no effect.
    lost: BTreeSet<usize>,
    /// It may have had none, or one under the next session.
    unsure: BTreeSet<usize>,
}

/// What cannot be explained.
#[derive(Clone, Debug)]
struct Wrong {
    /// When that was: the best explanation gets furthest.
    at: Stamp,
    text: String,
}

/// Chooses for the fences from number `next` on what they took, besides what is `taken`.
fn explain(history: &[Entry], cuts: &[Cut], next: usize, taken: &Taken) -> Result<(), Wrong> {
    let Some((mount, fence)) = cuts.get(next) else {
        return ordered(history, cuts, taken, Stamp::MAX);
    };
    let until = cuts.get(next + 1).map_or(Stamp::MAX, |(_, later)| later.begun.saturating_sub(REACHED_NS));
    let within: Vec<usize> = (0..history.len())
        .filter(|&i| {
            let entry = &history[i];
            entry.mount == *mount && entry.begun <= fence.ended && entry.ended + REACHED_NS >= fence.begun
        })
        .collect();
    let changes: Vec<usize> =
        within.iter().copied().filter(|&i| history[i].is_change() && !history[i].failed).collect();
    let mut furthest: Option<Wrong> = None;
    for kept in (0..=changes.len()).rev() {
        let mut taken = taken.clone();
        if let Some(&first_lost) = changes.get(kept) {
            for &i in within.iter().filter(|&&i| i >= first_lost) {
                let goes_on = changes.contains(&i) && history[i].ended >= fence.begun;
                if goes_on {
                    taken.unsure.insert(i)
                } else {
                    taken.lost.insert(i)
                };
            }
        }
        let result =
            ordered(history, cuts, &taken, until).and_then(|()| explain(history, cuts, next + 1, &taken));
        match result {
            Ok(()) => return Ok(()),
            Err(wrong) if furthest.as_ref().is_none_or(|other| other.at < wrong.at) => furthest = Some(wrong),
            Err(_) => {}
        }
    }
    Err(furthest.expect("one number of changes at least was tried"))
}

/// Whether there is an order of what was not lost and began before `until`. What returned later may be explained by what began
/// later, and is not judged yet.
fn ordered(history: &[Entry], cuts: &[Cut], taken: &Taken, until: Stamp) -> Result<(), Wrong> {
    let (numbers, used): (Vec<usize>, Vec<&Entry>) = history
        .iter()
        .enumerate()
        .filter(|(i, entry)| !taken.lost.contains(i) && entry.begun < until)
        .unzip();
    let made: BTreeSet<u64> = used
        .iter()
        .filter_map(|entry| match entry.action {
            Action::Take(inode) if inode != UNKNOWN => Some(inode),
            _ => None,
        })
        .collect();
    let strangers: BTreeSet<u64> = used
        .iter()
        .filter_map(|entry| match entry.action {
            Action::Read(Some(inode)) if !made.contains(&inode) => Some(inode),
            _ => None,
        })
        .collect();
    let (mut events, mut entries) = (Vec::new(), Vec::new());
    for (number, entry) in numbers.iter().zip(&used) {
        let actions = match entry.action {
            Action::Take(UNKNOWN) => strangers.iter().map(|&inode| Action::Take(inode)).collect(),
            action => vec![action],
        };
        let ended = if entry.failed { effect_until(entry, cuts) } else { entry.ended };
        for action in actions {
            let optional = entry.failed || entry.ended >= until || taken.unsure.contains(number);
            events.push(Event { begun: entry.begun, ended, action, optional });
            entries.push(*entry);
        }
    }
    let initial: BTreeSet<State> = BTreeSet::from([None]);
    linear::check(&initial, &events).map(drop).map_err(|impossible| {
        let entry = entries[impossible.event];
        let near = entries
            .iter()
            .filter(|other| other.begun <= entry.ended && other.ended + REACHED_NS >= entry.begun);
        let near: Vec<String> = near
            .map(|e| {
                format!(
                    "\n    mount {} {} to {} {:?} failed {}",
                    e.mount,
                    show(e.begun),
                    show(e.ended),
                    e.action,
                    e.failed
                )
            })
            .collect();
        let text = format!(
            "no order explains mount {} {} to {} {:?}, where {:?} was held; until then:{}",
            entry.mount,
            show(entry.begun),
            show(entry.ended),
            entry.action,
            impossible.held,
            near[near.len().saturating_sub(24)..].concat()
        );
        Wrong { at: entry.ended, text }
    })
}

/// Until when a failed operation may still be done.
fn effect_until(entry: &Entry, cuts: &[Cut]) -> Stamp {
    let own = cuts.iter().filter(|(mount, fence)| *mount == entry.mount && fence.ended >= entry.begun);
    own.map(|(_, fence)| fence.ended.max(entry.ended)).next().unwrap_or(Stamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Stamp = 1_000_000_000;

    fn entry(mount: usize, at: Stamp, action: Action) -> Entry {
        Entry { mount, begun: at * S, ended: at * S + S / 2, action, failed: false }
    }

    fn fenced(begun: Stamp, ended: Stamp) -> Vec<Vec<Fence>> {
        vec![vec![Fence { begun: begun * S, ended: ended * S }], vec![]]
    }

    const CALM: [Vec<Fence>; 2] = [vec![], vec![]];

    #[test]
    fn two_winners_are_found() {
        let both = [entry(0, 1, Action::Take(1)), entry(1, 2, Action::Take(2))];
        assert!(check(&both, &CALM).is_some());
        assert!(check(&[both[0], entry(1, 2, Action::TakeRefused)], &CALM).is_none());
    }

    #[test]
    fn a_name_that_another_mount_does_not_see_is_found() {
        assert!(check(&[entry(0, 1, Action::Take(1)), entry(1, 2, Action::Read(None))], &CALM).is_some());
        let gone =
            [entry(0, 1, Action::Take(1)), entry(0, 2, Action::Free), entry(1, 3, Action::Read(Some(1)))];
        assert!(check(&gone, &CALM).is_some());
    }

    #[test]
    fn a_fence_takes_the_end_of_what_its_mount_did() {
        let own = [entry(0, 10, Action::Take(1)), entry(0, 11, Action::Free), entry(0, 12, Action::Take(2))];
        let saw = entry(0, 13, Action::Read(Some(2)));
        let ends = |last| [own[0], own[1], own[2], saw, entry(1, 50, last)];
        for end in [Action::Read(None), Action::Read(Some(1)), Action::Read(Some(2)), Action::Take(7)] {
            assert!(check(&ends(end), &fenced(14, 45)).is_none(), "{end:?}");
        }
        assert!(check(&ends(Action::Read(None)), &CALM).is_some());
        assert!(check(&ends(Action::Read(None)), &fenced(100, 130)).is_some(), "long before the fence");
        assert!(check(&ends(Action::Read(Some(3))), &fenced(14, 45)).is_some(), "nobody made it");
    }

    #[test]
    fn what_others_saw_was_not_lost() {
        let history = [
            entry(0, 10, Action::Take(1)),
            entry(1, 11, Action::Read(Some(1))),
            entry(1, 50, Action::Read(None)),
        ];
        assert!(check(&history, &fenced(12, 45)).is_some());
    }

    #[test]
    fn after_a_loss_the_mount_sees_what_others_see() {
        let history = [
            entry(0, 10, Action::Take(1)),
            entry(1, 50, Action::Read(None)),
            entry(0, 52, Action::Read(Some(1))),
        ];
        assert!(check(&history, &fenced(12, 45)).is_some());
    }

    #[test]
    fn two_fences_are_explained_one_by_one() {
        let fences = vec![
            vec![Fence { begun: 12 * S, ended: 45 * S }],
            vec![Fence { begun: 102 * S, ended: 140 * S }],
        ];
        let history = |last| {
            [
                entry(0, 11, Action::Take(1)),
                entry(1, 50, Action::Take(2)),
                entry(1, 100, Action::Free),
                entry(0, 150, last),
            ]
        };
        assert!(check(&history(Action::Read(Some(2))), &fences).is_none());
        assert!(check(&history(Action::Read(None)), &fences).is_none());
        assert!(check(&history(Action::Read(Some(1))), &fences).is_some());
    }

    #[test]
    fn what_was_under_way_before_a_later_fence_may_have_seen_what_began_after_that() {
        let fences =
            vec![vec![Fence { begun: 12 * S, ended: 20 * S }], vec![Fence { begun: 60 * S, ended: 90 * S }]];
        let long = |action| Entry { begun: 49 * S, ended: 56 * S, ..entry(0, 49, action) };
        let history = |seen| [entry(1, 11, Action::Read(None)), long(seen), entry(1, 55, Action::Take(4))];
        assert!(check(&history(Action::Read(Some(4))), &fences).is_none());
        assert!(check(&history(Action::Read(Some(5))), &fences).is_some(), "nobody made it");
    }

    #[test]
    fn what_was_under_way_at_a_fence_may_be_done_after_it() {
        let long = |action| Entry { begun: 12 * S, ended: 46 * S, ..entry(0, 12, action) };
        let history = |action, last| {
            [entry(0, 11, Action::Take(1)), long(action), entry(1, 30, Action::Take(7)), entry(1, 50, last)]
        };
        for end in [Action::Read(None), Action::Read(Some(7))] {
            assert!(check(&history(Action::Free, end), &fenced(12, 45)).is_none(), "{end:?}");
        }
        assert!(check(&history(Action::Free, Action::Read(Some(1))), &fenced(12, 45)).is_some());
        let again = [entry(1, 47, Action::Free), entry(1, 51, Action::Free)];
        let twice = [&history(Action::Take(2), Action::Read(Some(2)))[..], &again].concat();
        assert!(check(&twice[..3], &fenced(12, 45)).is_none());
        assert!(check(&twice, &fenced(12, 45)).is_some(), "it was done, but not when nothing was there");
    }

    #[test]
    fn a_failed_one_may_have_been_done() {
        let failed = Entry { failed: true, ..entry(0, 20, Action::Take(UNKNOWN)) };
        for end in [Action::Read(None), Action::Read(Some(9))] {
            assert!(check(&[failed, entry(1, 50, end)], &fenced(12, 45)).is_none(), "{end:?}");
        }
        let late = [failed, entry(1, 50, Action::Read(None)), entry(1, 51, Action::Read(Some(9)))];
        assert!(check(&late, &fenced(12, 45)).is_some(), "not after the fence");
    }
}

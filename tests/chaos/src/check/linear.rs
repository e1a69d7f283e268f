//! Linearizability of one object that holds a number or nothing: is there an order of the operations, each at a moment
//! between its call and its return, in which every answer is right?
//!
//! The history is gone through in the order of calls and returns. Kept are all *configurations* that explain it so far: what the object holds, and
//! which of the operations under way have had their effect. A return keeps those in which its operation had its effect,
//! or could have it now, after any of the others under way; where none is left, there is no such order.
//! (Just-in-time linearization; Lowe, "Testing for linearizability", 2017.)

use std::collections::{BTreeMap, BTreeSet};

use crate::watch::Stamp;

/// What the object holds.
pub type State = Option<u64>;

/// An operation with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It holds this from now on.
    Write(u64),
    /// It held this.
    Read(State),
    /// It held nothing, and holds this.
    Take(u64),
    /// It was not to be had, because it held something.
    TakeRefused,
    /// It held something, and holds nothing.
    Free,
    /// There was nothing to be freed.
    FreeRefused,
}

impl Action {
    /// The state after it; `None` where this answer is impossible.
    fn apply(self, state: State) -> Option<State> {
        match (self, state) {
            (Action::Write(value), _) => Some(Some(value)),
            (Action::Read(read), state) => (read == state).then_some(state),
            (Action::Take(value), None) => Some(Some(value)),
            (Action::TakeRefused, Some(_)) => Some(state),
            (Action::Free, Some(_)) => Some(None),
            (Action::FreeRefused, None) => Some(None),
            (Action::Take(_), Some(_)) | (Action::TakeRefused | Action::FreeRefused | Action::Free, _) => {
                None
            }
        }
    }
}

/// An operation in a history.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// When it was called.
    pub begun: Stamp,
    /// When it returned; of an optional one, until when it may have its effect.
    pub ended: Stamp,
    /// What it did, as it was answered.
    pub action: Action,
    /// Nobody was told that it was done: it may never have its effect.
    pub optional: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Configuration {
    state: State,
    /// Those under way that had their effect.
    done: BTreeSet<usize>,
}

/// The operation that no order explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impossible {
    /// Which.
    pub event: usize,
    /// What the object may have held before.
    pub held: BTreeSet<State>,
}

/// Looks for an order of all events, from one of these states. The possible states after them.
pub fn check(initial: &BTreeSet<State>, events: &[Event]) -> Result<BTreeSet<State>, Impossible> {
    // Calls before returns of the same moment: that allows more orders, never fewer.
    let mut moments = BTreeSet::new();
    for (number, event) in events.iter().enumerate() {
        moments.insert((event.begun, false, number));
        moments.insert((event.ended.max(event.begun), true, number));
    }
    let mut pending: BTreeMap<usize, Action> = BTreeMap::new();
    let mut configurations: BTreeSet<Configuration> =
        initial.iter().map(|&state| Configuration { state, done: BTreeSet::new() }).collect();
    for (_, is_return, number) in moments {
        if !is_return {
            pending.insert(number, events[number].action);
            continue;
        }
        let held: BTreeSet<State> = configurations.iter().map(|configuration| configuration.state).collect();
        let mut explained = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for configuration in configurations {
            if events[number].optional {
                let mut without = configuration.clone();
                without.done.remove(&number);
                explained.insert(without);
            }
            extend(configuration, number, &pending, &mut seen, &mut explained);
        }
        if explained.is_empty() {
            return Err(Impossible { event: number, held });
        }
        pending.remove(&number);
        configurations = explained;
    }
    Ok(configurations.into_iter().map(|configuration| configuration.state).collect())
}

/// All configurations that can follow in which `wanted` had its effect.
fn extend(
    from: Configuration,
    wanted: usize,
    pending: &BTreeMap<usize, Action>,
    seen: &mut BTreeSet<Configuration>,
    explained: &mut BTreeSet<Configuration>,
) {
    if from.done.contains(&wanted) {
        let mut from = from;
        from.done.remove(&wanted);
        explained.insert(from);
        return;
    }
    if !seen.insert(from.clone()) {
        return;
    }
    for (&number, action) in pending.iter().filter(|(number, _)| !from.done.contains(number)) {
        if let Some(state) = action.apply(from.state) {
            let mut next = Configuration { state, done: from.done.clone() };
            next.done.insert(number);
            extend(next, wanted, pending, seen, explained);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(begun: Stamp, ended: Stamp, action: Action) -> Event {
        Event { begun, ended, action, optional: false }
    }

    fn holds(events: &[Event]) -> Result<BTreeSet<State>, Impossible> {
        check(&BTreeSet::from([None]), events)
    }

    #[test]
    fn a_value_is_read_once_it_was_written() {
        let events = [event(0, 1, Action::Write(1)), event(2, 3, Action::Read(Some(1)))];
        assert_eq!(holds(&events), Ok(BTreeSet::from([Some(1)])));
    }

    #[test]
    fn a_stale_read_is_found() {
        let events = [
            event(0, 1, Action::Write(1)),
            event(2, 3, Action::Write(2)),
            event(4, 5, Action::Read(Some(1))),
        ];
        assert_eq!(holds(&events), Err(Impossible { event: 2, held: BTreeSet::from([Some(2)]) }));
    }

    #[test]
    fn a_value_that_comes_back_is_found() {
        // During a write both values may be read, but not the old one after the new one.
        let write = event(2, 9, Action::Write(2));
        let old = |begun| event(begun, begun + 1, Action::Read(Some(1)));
        let new = |begun| event(begun, begun + 1, Action::Read(Some(2)));
        let first = event(0, 1, Action::Write(1));
        assert!(holds(&[first, write, old(3), new(5)]).is_ok());
        assert!(holds(&[first, write, new(3), old(5)]).is_err());
    }

    #[test]
    fn a_value_nobody_wrote_is_found() {
        assert!(holds(&[event(0, 1, Action::Write(1)), event(0, 2, Action::Read(Some(3)))]).is_err());
        assert!(holds(&[event(0, 1, Action::Write(1)), event(2, 3, Action::Read(None))]).is_err());
    }

    #[test]
    fn of_two_who_take_it_at_once_one_gets_it() {
        let both = [event(0, 5, Action::Take(1)), event(1, 4, Action::Take(2))];
        assert!(holds(&both).is_err());
        assert!(holds(&[both[0], event(1, 4, Action::TakeRefused)]).is_ok());
        assert!(holds(&[event(0, 1, Action::TakeRefused)]).is_err(), "nobody had it");
        let freed_between = [both[0], both[1], event(2, 3, Action::Free)];
        assert_eq!(holds(&freed_between), Ok(BTreeSet::from([Some(1), Some(2)])));
    }

    #[test]
    fn what_is_freed_twice_is_found() {
        let events = [event(0, 1, Action::Take(1)), event(2, 5, Action::Free), event(3, 6, Action::Free)];
        assert!(holds(&events).is_err());
        let refused = [events[0], events[1], event(3, 6, Action::FreeRefused)];
        assert!(holds(&refused).is_ok());
        assert!(holds(&[events[0], event(2, 3, Action::FreeRefused)]).is_err());
    }

    #[test]
    fn an_optional_one_may_be_left_out_and_may_be_late_but_not_too_late() {
        let optional = Event { begun: 2, ended: 6, action: Action::Write(2), optional: true };
        let first = event(0, 1, Action::Write(1));
        let read = |begun, value| event(begun, begun + 1, Action::Read(Some(value)));
        assert!(holds(&[first, optional, read(3, 1), read(8, 1)]).is_ok());
        assert!(holds(&[first, optional, read(3, 1), read(8, 2)]).is_ok());
        assert!(holds(&[first, optional, read(8, 1), read(10, 2)]).is_err());
        assert!(holds(&[first, optional, read(3, 2), read(8, 1)]).is_err(), "it was there already");
    }

    /// Every order of a few operations.
    fn by_force(state: State, left: &[Event]) -> bool {
        if left.is_empty() {
            return true;
        }
        (0..left.len()).any(|first| {
            let event = left[first];
            let mut rest = left.to_vec();
            rest.remove(first);
            let in_order = rest.iter().all(|other| other.ended >= event.begun);
            let Some(state) = event.action.apply(state) else { return false };
            in_order && by_force(state, &rest)
        })
    }

    #[test]
    fn it_agrees_with_trying_every_order() {
        use rand::rngs::StdRng;
        use rand::{RngExt, SeedableRng};
        let (mut good, mut bad) = (0, 0);
        for seed in 0..20_000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let events: Vec<Event> = (0..rng.random_range(1..6))
                .map(|_| {
                    let begun = rng.random_range(0..12);
                    let value = rng.random_range(1..3);
                    let action = match rng.random_range(0..6) {
                        0 => Action::Write(value),
                        1 => Action::Read(Some(value)),
                        2 => Action::Take(value),
                        3 => Action::TakeRefused,
                        4 => Action::Free,
                        _ => Action::FreeRefused,
                    };
                    event(begun, begun + rng.random_range(0..8), action)
                })
                .collect();
            let expected = by_force(None, &events);
            *(if expected { &mut good } else { &mut bad }) += 1;
            assert_eq!(holds(&events).is_ok(), expected, "seed {seed}: {events:?}");
        }
        assert!(good > 1000 && bad > 1000, "{good} good, {bad} bad");
    }
}

//! Whether a history of one object can be put in an order in which each operation did what it answered.
//!
//! The search of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993), with Lowe's memory of the sets
//! that led nowhere ("Testing for linearizability", 2017).

use std::collections::BTreeSet;

use crate::history::{Action, Answer, Op, Standing, Tick};

/// What an object does.
pub trait Model {
    /// What it holds.
    type State: Clone + Ord;

    /// At the beginning.
    fn initial(&self) -> Self::State;

    /// After the operation; `None`: it cannot have answered that. Without an answer: whatever it may have done.
    fn step(
        &self,
        state: &Self::State,
        action: &Action,
        answer: Option<&Answer>,
        certain: bool,
    ) -> Option<Self::State>;
}

/// One operation of the history under test.
struct Item<'a> {
    op: &'a Op,
    answer: Option<&'a Answer>,
    call: Tick,
    returned: Tick,
    certain: bool,
}

/// Configurations looked at before the search is given up (and the history passes).
const CONFIGURATIONS_MAX: usize = 2_000_000;

/// How a search ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none; the operations that the longest order stops at.
    Impossible(Vec<String>),
    /// Too large to be known.
    Unknown,
}

/// Looks for an order of the operations of one object.
pub fn check<M: Model>(model: &M, history: &[(&Op, Standing)]) -> Verdict {
    let mut items: Vec<Item<'_>> = history
        .iter()
        .filter(|(_, standing)| *standing != Standing::Void)
        .map(|(op, standing)| {
            let known = op.answer.as_ref().filter(|(_, answer)| *answer != Answer::Unknown);
            Item {
                op,
                answer: known.map(|(_, answer)| answer),
                call: op.call,
                returned: known.map_or(Tick::MAX, |(at, _)| *at),
                certain: *standing == Standing::Certain,
            }
        })
        .collect();
    items.sort_by_key(|item| item.call);
    let mut search =
        Search { model, items: &items, seen: BTreeSet::new(), deepest: 0, stopped_at: Vec::new() };
    match search.go() {
        Some(true) => Verdict::Linearizable,
        Some(false) => {
            Verdict::Impossible(search.stopped_at.iter().map(|&at| format!("{:?}", items[at].op)).collect())
        }
        None => Verdict::Unknown,
    }
}

/// A history for people, one line an operation.
pub fn tell(history: &[(&Op, Standing)]) -> String {
    let line = |(op, standing): &(&Op, Standing)| {
        let Op { client, session, call, action, answer, same_session, .. } = op;
        format!(
            "{call} client {client} session {session} {same_session} {action:?} {answer:?} {standing:?}\n"
        )
    };
    history.iter().map(line).collect()
}

struct Search<'a, M: Model> {
    model: &'a M,
    items: &'a [Item<'a>],
    seen: BTreeSet<(Vec<u64>, M::State)>,
    deepest: usize,
    stopped_at: Vec<usize>,
}

/// A place in the search.
struct Choices<S> {
    state: S,
    /// Operations behind it that must have happened.
    depth: usize,
    /// The first operation that is not behind it.
    first: usize,
    /// When the last one was called that is behind it.
    latest: Tick,
    /// Those that may come next and were not tried yet.
    left: std::vec::IntoIter<usize>,
    /// The one that is being tried.
    taken: Option<usize>,
}

impl<M: Model> Search<'_, M> {
    /// Depth first, with a stack of its own: a history may be longer than a thread's stack is deep.
    fn go(&mut self) -> Option<bool> {
        let mut done = vec![0_u64; self.items.len().div_ceil(64)];
        let Some(first) = self.choices(&done, self.model.initial(), 0, 0, 0) else { return Some(true) };
        let mut stack = vec![first];
        while let Some(top) = stack.last_mut() {
            let Some(at) = top.left.next() else {
                stack.pop();
                if let Some(at) = stack.last().and_then(|below| below.taken) {
                    done[at / 64] &= !(1 << (at % 64));
                }
                continue;
            };
            let item = &self.items[at];
            let Some(next) = self.model.step(&top.state, &item.op.action, item.answer, item.certain) else {
                continue;
            };
            let depth = top.depth + usize::from(item.certain);
            done[at / 64] |= 1 << (at % 64);
            if !self.seen.insert((done.clone(), next.clone())) {
                done[at / 64] &= !(1 << (at % 64));
                continue;
            }
            if self.seen.len() > CONFIGURATIONS_MAX {
                return None;
            }
            top.taken = Some(at);
            let (first, latest) = (top.first, top.latest.max(item.call));
            match self.choices(&done, next, depth, first, latest) {
                Some(choices) => stack.push(choices),
                None => return Some(true),
            }
        }
        Some(false)
    }

    /// What may come next; `None`: nothing is left that must. Operations before `first` are done, and `latest` is the last call
    /// of all that are.
    fn choices(
        &mut self,
        done: &[u64],
        state: M::State,
        depth: usize,
        first: usize,
        latest: Tick,
    ) -> Option<Choices<M::State>> {
        let is_done = |at: usize| done[at / 64] >> (at % 64) & 1 == 1;
        let first = (first..self.items.len()).find(|&at| !is_done(at))?;
        let mut open = Vec::new();
        // Whatever begins after this return comes after that operation.
        let mut limit = Tick::MAX;
        let mut must = false;
        for (at, item) in self.items.iter().enumerate().skip(first) {
            if item.call >= limit {
                break;
            }
            if !is_done(at) {
                open.push(at);
                if item.certain {
                    limit = limit.min(item.returned);
                    must = true;
                }
            }
        }
        open.retain(|&at| self.items[at].call < limit && self.items[at].returned > latest);
        if depth >= self.deepest {
            self.deepest = depth;
            self.stopped_at.clone_from(&open);
        }
        must.then(|| Choices { state, depth, first, latest, left: open.into_iter(), taken: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Object;
    use crate::history::tests::op;

    /// Counts writes: each says how many there are with it.
    struct Counter;

    impl Model for Counter {
        type State = u64;

        fn initial(&self) -> u64 {
            0
        }

        fn step(&self, count: &u64, action: &Action, _: Option<&Answer>, _: bool) -> Option<u64> {
            matches!(action, Action::Write(value) if *value == count + 1).then(|| count + 1)
        }
    }

    fn writes(values: impl Iterator<Item = u64>) -> Vec<Op> {
        let object = Object::Block(0, 0);
        let write = |(at, value): (usize, u64)| {
            let call = 10 * at as Tick;
            op(1, object, Action::Write(value), call, call + 15, Answer::Done(None))
        };
        values.enumerate().map(write).collect()
    }

    fn verdict(ops: &[Op]) -> Verdict {
        check(&Counter, &ops.iter().map(|op| (op, Standing::Certain)).collect::<Vec<_>>())
    }

    #[test]
    fn a_long_history_is_put_in_order_and_one_that_cannot_be_stops_where_it_is_wrong() {
        const MANY: u64 = 10_000;
        // Each two of them change places.
        let swapped = (0..MANY).map(|at| (at ^ 1) + 1);
        assert_eq!(verdict(&writes(swapped.clone())), Verdict::Linearizable);
        let mut ops = writes(swapped);
        ops[500].action = Action::Write(0);
        let Verdict::Impossible(stopped) = verdict(&ops) else { panic!("it is wrong") };
        assert!(!stopped.is_empty() && stopped.len() <= 3, "{stopped:?}");
    }
}

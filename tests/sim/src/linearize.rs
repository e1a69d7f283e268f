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
    let mut done = vec![0_u64; items.len().div_ceil(64)];
    match search.go(&mut done, &model.initial(), 0) {
        Some(true) => Verdict::Linearizable,
        Some(false) => Verdict::Impossible(search.stopped_at),
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
    stopped_at: Vec<String>,
}

impl<M: Model> Search<'_, M> {
    fn go(&mut self, done: &mut Vec<u64>, state: &M::State, depth: usize) -> Option<bool> {
        let is_done = |done: &[u64], at: usize| done[at / 64] >> (at % 64) & 1 == 1;
        let open = || (0..self.items.len()).filter(|&at| !is_done(done, at));
        // Whatever begins after this return comes after that operation.
        let limit = open().filter(|&at| self.items[at].certain).map(|at| self.items[at].returned).min();
        let Some(limit) = limit else { return Some(true) };
        let latest =
            (0..self.items.len()).filter(|&at| is_done(done, at)).map(|at| self.items[at].call).max();
        let candidates: Vec<usize> = open()
            .filter(|&at| {
                self.items[at].call < limit && latest.is_none_or(|call| self.items[at].returned > call)
            })
            .collect();
        if depth >= self.deepest {
            self.deepest = depth;
            self.stopped_at = candidates.iter().map(|&at| format!("{:?}", self.items[at].op)).collect();
        }
        for at in candidates {
            let item = &self.items[at];
            let Some(next) = self.model.step(state, &item.op.action, item.answer, item.certain) else {
                continue;
            };
            done[at / 64] |= 1 << (at % 64);
            if self.seen.insert((done.clone(), next.clone())) {
                if self.seen.len() > CONFIGURATIONS_MAX {
                    return None;
                }
                if self.go(done, &next, depth + usize::from(item.certain))? {
                    return Some(true);
                }
            }
            done[at / 64] &= !(1 << (at % 64));
        }
        Some(false)
    }
}

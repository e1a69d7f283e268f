//! Numbers of edits: given in order, answered in any.

use std::collections::BTreeSet;

use gofs_tree::EditSeq;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Generation;

/// Most edits from the oldest without an answer to the newest. The servers keep an outcome for each.
const SPAN_MAX: u64 = 2048;

/// See the module.
#[derive(Debug, Default)]
pub struct EditNumbers {
    inner: Mutex<Inner>,
    answered: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    generation: Option<Generation>,
    last: EditSeq,
    unanswered: BTreeSet<EditSeq>,
}

/// An edit's number, and up to which all are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// Its own.
    pub seq: EditSeq,
    /// Every outcome up to here has reached the client.
    pub answered: EditSeq,
}

impl EditNumbers {
    /// The first of `count` numbers in a row. Numbers start again with each session; `None` where a later one has
    /// begun: this one's edits are lost, and must not take the later one's numbers back to the start.
    pub fn begin(&self, generation: Generation, count: u64) -> Option<Number> {
        let mut inner = self.inner.lock();
        if inner.generation > Some(generation) {
            return None;
        }
        if inner.generation != Some(generation) {
            *inner = Inner { generation: Some(generation), ..Inner::default() };
        }
        let answered = inner.unanswered.first().map_or(inner.last, |oldest| EditSeq(oldest.0 - 1));
        let seq = inner.last.next();
        let last = EditSeq(inner.last.0 + count);
        inner.last = last;
        inner.unanswered.extend((seq.0..=last.0).map(EditSeq));
        Some(Number { seq, answered })
    }

    /// The outcomes of `count` edits from `seq` on are known, or lost with their session.
    pub fn end(&self, generation: Generation, seq: EditSeq, count: u64) {
        let mut inner = self.inner.lock();
        if inner.generation == Some(generation) {
            for at in seq.0..seq.0 + count {
                inner.unanswered.remove(&EditSeq(at));
            }
        }
        drop(inner);
        self.answered.notify_waiters();
    }

    async fn until(&self, done: impl Fn(&Inner) -> bool) {
        loop {
            let mut answered = std::pin::pin!(self.answered.notified());
            answered.as_mut().enable();
            if done(&self.inner.lock()) {
                return;
            }
            answered.await;
        }
    }

    /// Waits while the oldest unanswered edit is too far behind.
    pub async fn room(&self) {
        self.until(|inner| inner.unanswered.first().is_none_or(|oldest| inner.last.0 - oldest.0 < SPAN_MAX))
            .await;
    }

    /// Waits until what was begun before is answered.
    pub async fn all_answered(&self) {
        let (generation, last) = {
            let inner = self.inner.lock();
            (inner.generation, inner.last)
        };
        self.until(|inner| {
            inner.generation != generation || inner.unanswered.first().is_none_or(|oldest| *oldest > last)
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answered_stops_before_the_oldest_open_edit() {
        let numbers = EditNumbers::default();
        let first = Generation(1);
        let a = numbers.begin(first, 1).unwrap();
        let b = numbers.begin(first, 1).unwrap();
        assert_eq!((a.seq, a.answered, b.seq, b.answered), (EditSeq(1), EditSeq(0), EditSeq(2), EditSeq(0)));
        numbers.end(first, b.seq, 1);
        assert_eq!(numbers.begin(first, 1).unwrap().answered, EditSeq(0));
        numbers.end(first, a.seq, 1);
        assert_eq!(numbers.begin(first, 1).unwrap().answered, EditSeq(2));
    }

    #[test]
    fn a_new_session_numbers_from_one_and_forgets_old_edits() {
        let numbers = EditNumbers::default();
        let old = numbers.begin(Generation(1), 1).unwrap();
        let new = numbers.begin(Generation(2), 1).unwrap();
        assert_eq!((new.seq, new.answered), (EditSeq(1), EditSeq(0)));
        numbers.end(Generation(1), old.seq, 1);
        assert_eq!(numbers.begin(Generation(2), 1).unwrap().answered, EditSeq(0));
    }

    #[test]
    fn a_straggler_of_an_old_session_gets_no_number_and_the_new_one_keeps_its_own() {
        let numbers = EditNumbers::default();
        numbers.begin(Generation(1), 1).unwrap();
        let new = numbers.begin(Generation(2), 1).unwrap();
        assert_eq!(numbers.begin(Generation(1), 1), None);
        assert_eq!(numbers.begin(Generation(2), 1).unwrap().seq, new.seq.next());
    }
}

//! Each block of a file, and its permission bits, behave as one register: no stale read, and nothing that is durable, or of a
//! client that lives, is lost.

use std::collections::BTreeSet;

use crate::history::{Action, Answer, Object, Op, Standing};
use crate::linearize::{Model, Verdict, check, tell};

/// Values that a read may find. More than one only after a client died in the middle of a write: then replicas may differ
/// until the next write (docs/SEMANTICS.md, exceptions).
struct Block;

impl Model for Block {
    type State = BTreeSet<u64>;

    fn initial(&self) -> BTreeSet<u64> {
        BTreeSet::from([0])
    }

    fn step(
        &self,
        values: &BTreeSet<u64>,
        action: &Action,
        answer: Option<&Answer>,
        certain: bool,
    ) -> Option<BTreeSet<u64>> {
        match (action, answer) {
            (Action::Write(value), _) if certain => Some(BTreeSet::from([*value])),
            (Action::Write(value), _) => Some(values.iter().copied().chain([*value]).collect()),
            (Action::Read, Some(Answer::Value(value))) => values.contains(value).then(|| values.clone()),
            _ => None,
        }
    }
}

/// Looks at all of them.
pub fn look(ops: &[Op], standings: &[Standing]) -> Result<(), String> {
    let is_register = |object: &Object| matches!(object, Object::Block(..) | Object::Mode(_));
    let blocks: BTreeSet<Object> = ops.iter().map(|op| op.object).filter(is_register).collect();
    for block in blocks {
        let history: Vec<(&Op, Standing)> = ops
            .iter()
            .zip(standings.iter().copied())
            .filter(|(op, _)| op.object == block && op.action != Action::Sync)
            .collect();
        let history: Vec<(&Op, Standing)> =
            history.iter().copied().filter(|(op, _)| !is_of_a_refused_write(op, &history)).collect();
        if let Verdict::Impossible(stopped) = check(&Block, &history) {
            return Err(format!("{block:?}: no order explains {stopped:#?}\n{}", tell(&history)));
        }
    }
    Ok(())
}

/// Where space is short a write waits for the servers. Its own client's readers see it meanwhile, and not any more if it is
/// refused (docs/SEMANTICS.md, exceptions).
fn is_of_a_refused_write(read: &Op, history: &[(&Op, Standing)]) -> bool {
    let (Action::Read, Some((_, Answer::Value(value)))) = (&read.action, &read.answer) else { return false };
    history.iter().any(|(write, _)| {
        let Some((returned, Answer::Refused)) = &write.answer else { return false };
        write.action == Action::Write(*value) && write.client == read.client && read.call < *returned
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::op;

    const B: Object = Object::Block(0, 0);

    #[test]
    fn a_read_after_a_write_finds_it() {
        let written = op(1, B, Action::Write(7), 1, 2, Answer::Done(None));
        let stale = op(2, B, Action::Read, 3, 4, Answer::Value(0));
        let at_once = op(2, B, Action::Read, 1, 4, Answer::Value(0));
        look(&[written.clone(), at_once], &[Standing::Certain; 2]).unwrap();
        look(&[written.clone(), stale.clone()], &[Standing::Certain; 2]).unwrap_err();
        look(&[written, stale], &[Standing::Possible, Standing::Certain]).unwrap();
    }

    #[test]
    fn a_write_that_is_refused_was_seen_by_its_own_client_while_it_waited_and_by_nobody_else() {
        let refused = op(1, B, Action::Write(7), 1, 4, Answer::Refused);
        let standings = [Standing::Void, Standing::Certain];
        let read = |client, at| op(client, B, Action::Read, at, at + 1, Answer::Value(7));
        look(&[refused.clone(), read(1, 2)], &standings).unwrap();
        look(&[refused.clone(), read(1, 5)], &standings).unwrap_err();
        look(&[refused, read(2, 2)], &standings).unwrap_err();
    }

    #[test]
    fn a_value_does_not_come_back() {
        let first = op(1, B, Action::Write(7), 1, 2, Answer::Done(None));
        let second = op(2, B, Action::Write(8), 3, 4, Answer::Done(None));
        let reads = |at, value| op(3, B, Action::Read, at, at + 1, Answer::Value(value));
        look(&[first.clone(), second.clone(), reads(5, 8)], &[Standing::Certain; 3]).unwrap();
        look(&[first, second, reads(5, 8), reads(7, 7)], &[Standing::Certain; 4]).unwrap_err();
    }
}

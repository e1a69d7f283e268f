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
        if let Verdict::Impossible(stopped) = check(&Block, &history) {
            return Err(format!("{block:?}: no order explains {stopped:#?}\n{}", tell(&history)));
        }
    }
    Ok(())
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
    fn a_value_does_not_come_back() {
        let first = op(1, B, Action::Write(7), 1, 2, Answer::Done(None));
        let second = op(2, B, Action::Write(8), 3, 4, Answer::Done(None));
        let reads = |at, value| op(3, B, Action::Read, at, at + 1, Answer::Value(value));
        look(&[first.clone(), second.clone(), reads(5, 8)], &[Standing::Certain; 3]).unwrap();
        look(&[first, second, reads(5, 8), reads(7, 7)], &[Standing::Certain; 4]).unwrap_err();
    }
}

//! No inode number is given twice, to whomever and whatever became of the first.

use std::collections::BTreeMap;

use crate::history::{Action, Answer, Op};

/// Looks at all creates that were told a number.
pub fn look(ops: &[Op]) -> Result<(), String> {
    let mut given: BTreeMap<u64, &Op> = BTreeMap::new();
    for op in ops {
        let (Action::Create(_) | Action::Number(_), Some((_, Answer::Done(Some(ino))))) =
            (&op.action, &op.answer)
        else {
            continue;
        };
        if let Some(first) = given.insert(*ino, op) {
            return Err(format!("inode {ino} was given to {first:?} and to {op:?}"));
        }
    }
    Ok(())
}

//! Records appended by several clients at once are each in the log once and whole, unless their client died or was told.

use std::collections::BTreeMap;

use crate::history::{Action, Answer, Object, Op, Standing};
use crate::workload::RECORD_BYTES;

/// Looks at the log as it was read at the end.
pub fn look(ops: &[Op], standings: &[Standing], log: &[u8]) -> Result<(), String> {
    let mut found: BTreeMap<u64, usize> = BTreeMap::new();
    if !log.len().is_multiple_of(RECORD_BYTES) {
        return Err(format!("the log has {} bytes: a record is torn", log.len()));
    }
    for record in log.chunks_exact(RECORD_BYTES) {
        match crate::workload::value_of(record) {
            Some(value) => *found.entry(value).or_default() += 1,
            None => return Err(format!("a record is torn: {record:?}")),
        }
    }
    // What a client lost may be a hole that another one's append follows.
    let mut lost = false;
    for (op, standing) in ops.iter().zip(standings) {
        let Action::Append(value) = op.action else { continue };
        debug_assert_eq!(op.object, Object::Log, "appends go to the log");
        lost |= *standing == Standing::Possible;
        let times = found.remove(&value).unwrap_or(0);
        let refused = matches!(op.answer, Some((_, Answer::Refused)));
        if *standing == Standing::Certain && times != 1 || times > 1 || refused && times > 0 {
            let there: Vec<Option<u64>> = log.chunks(RECORD_BYTES).map(crate::workload::value_of).collect();
            return Err(format!(
                "record {value} is there {times} times: {op:?} ({standing:?}); there are {there:?}"
            ));
        }
    }
    if found.keys().any(|value| *value != 0) || !lost && found.contains_key(&0) {
        return Err(format!("nobody appended {found:?}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::op;
    use crate::workload::pattern;

    #[test]
    fn each_record_is_there_once_and_whole() {
        let records =
            |values: &[u64]| values.iter().flat_map(|value| pattern(*value, RECORD_BYTES)).collect();
        let ops: Vec<Op> = [(1, 2), (3, 4)]
            .iter()
            .map(|&(call, value)| {
                op(1, Object::Log, Action::Append(value), call, call + 1, Answer::Done(None))
            })
            .collect();
        let certain = [Standing::Certain; 2];
        let log: Vec<u8> = records(&[2, 4]);
        look(&ops, &certain, &log).unwrap();
        look(&ops, &certain, &records(&[2])).unwrap_err();
        look(&ops, &certain, &records(&[2, 4, 4])).unwrap_err();
        look(&ops, &certain, &records(&[2, 4, 5])).unwrap_err();
        look(&ops, &certain, &log[..100]).unwrap_err();
        let torn: Vec<u8> = log[..32].iter().chain(&log[64..96]).chain(&log[64..]).copied().collect();
        look(&ops, &certain, &torn).unwrap_err();
        look(&ops, &[Standing::Possible, Standing::Certain], &records(&[4])).unwrap();
    }
}

//! A lock that one client was given no other is given before it is given back, as long as the first one's session lives.

use std::collections::BTreeMap;

use crate::history::{Action, Answer, Object, Op, Standing, Tick};
use crate::linearize::tell;

/// Looks at all locks.
pub fn look(ops: &[Op]) -> Result<(), String> {
    // From when a client was given it until it began to give it back. Who lost its session meanwhile lost the lock with it.
    let mut given: BTreeMap<(Object, usize), (&Op, Tick)> = BTreeMap::new();
    let mut held: BTreeMap<Object, Vec<(Tick, Tick, &Op)>> = BTreeMap::new();
    for op in ops {
        let key = (op.object, op.client);
        match (&op.action, &op.answer) {
            (Action::Lock, Some((at, Answer::Done(_)))) if op.same_session => {
                given.insert(key, (op, *at));
            }
            (Action::Unlock, answer) => {
                let Some((lock, from)) = given.remove(&key) else { continue };
                let is_whole = op.same_session && op.session == lock.session;
                if is_whole && matches!(answer, Some((_, Answer::Done(_)))) {
                    held.entry(op.object).or_default().push((from, op.call, lock));
                }
            }
            _ => {}
        }
    }
    for spans in held.values_mut() {
        spans.sort_by_key(|(from, ..)| *from);
        if let Some(pair) = spans.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            let (first, second) = (pair[0].2, pair[1].2);
            let here = ops.iter().filter(|op| op.object == first.object).map(|op| (op, Standing::Certain));
            return Err(format!(
                "{second:?} was given while {first:?} had it\n{}",
                tell(&here.collect::<Vec<_>>())
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::op;

    const L: Object = Object::Lock(0);

    fn held(client: usize, from: Tick, to: Tick) -> [Op; 2] {
        [
            op(client, L, Action::Lock, from - 1, from, Answer::Done(None)),
            op(client, L, Action::Unlock, to, to + 1, Answer::Done(None)),
        ]
    }

    #[test]
    fn one_at_a_time() {
        look(&[held(1, 2, 3), held(2, 4, 6)].concat()).unwrap();
        look(&[held(1, 2, 5), held(2, 4, 7)].concat()).unwrap_err();
        look(&[held(1, 2, 9), held(2, 4, 5)].concat()).unwrap_err();
    }

    #[test]
    fn who_lost_its_session_lost_its_lock() {
        let mut ops = [held(1, 2, 5), held(2, 4, 7)].concat();
        ops[1].session = 2;
        look(&ops).unwrap();
    }
}

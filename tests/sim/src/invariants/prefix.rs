//! What is left of a client's changes is a prefix of them: a later one never survives an earlier one, and all that was made
//! durable is there.

use std::collections::BTreeSet;

use crate::history::{Action, Answer, Object, Op, Standing};

/// Looks at the numbered files of one client place, as they were listed at the end.
pub fn look(ops: &[Op], standings: &[Standing], place: usize, left: &BTreeSet<u64>) -> Result<(), String> {
    // Each mount of a place has numbers of its own.
    let mut clients: Vec<usize> = Vec::new();
    let mut known = BTreeSet::new();
    for op in ops.iter().filter(|op| op.object == Object::Numbered(place)) {
        if !clients.contains(&op.client) {
            clients.push(op.client);
        }
    }
    for client in clients {
        let made: Vec<(u64, Standing, bool)> = ops
            .iter()
            .zip(standings)
            .filter(|(op, _)| op.client == client && op.object == Object::Numbered(place))
            .filter_map(|(op, standing)| match op.action {
                Action::Number(number) => {
                    let is_sure = matches!(op.answer, Some((_, Answer::Done(_)))) && op.same_session;
                    Some((number, *standing, is_sure))
                }
                _ => None,
            })
            .collect();
        known.extend(made.iter().map(|(number, _, _)| *number));
        for (at, (number, standing, _)) in made.iter().enumerate() {
            let is_left = left.contains(number);
            if *standing == Standing::Certain && !is_left {
                return Err(format!("file {number} of client {client} was durable and is gone"));
            }
            // One that was not acknowledged, or belongs to another session, has no place in the order.
            if let Some((later, ..)) = made[at + 1..].iter().find(|(later, _, _)| left.contains(later))
                && !is_left
                && made[at].2
                && same_session(ops, *number, *later)
            {
                return Err(format!(
                    "file {later} of client {client} outlived file {number}, which was made before"
                ));
            }
        }
    }
    if let Some(stranger) = left.difference(&known).next() {
        return Err(format!("file {stranger} of place {place} was made by nobody"));
    }
    Ok(())
}

/// Whether both were made in one session: one that returned in another than it was called in, or never, may be of a later one.
fn same_session(ops: &[Op], a: u64, b: u64) -> bool {
    let session = |number: u64| {
        let op = ops.iter().find(|op| op.action == Action::Number(number))?;
        (op.same_session && op.answer.is_some()).then_some((op.client, op.session))
    };
    session(a).is_some() && session(a) == session(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::op;

    #[test]
    fn what_is_left_is_a_prefix_with_all_that_was_durable() {
        let ops: Vec<Op> = (0..4)
            .map(|at| {
                op(1, Object::Numbered(0), Action::Number(at), at * 2, at * 2 + 1, Answer::Done(Some(at)))
            })
            .collect();
        let (certain, possible) = (Standing::Certain, Standing::Possible);
        let standings = [certain, certain, possible, possible];
        let verdict = |left: &[u64]| look(&ops, &standings, 0, &left.iter().copied().collect());
        verdict(&[0, 1]).unwrap();
        verdict(&[0, 1, 2]).unwrap();
        verdict(&[0, 1, 2, 3]).unwrap();
        verdict(&[0, 1, 3]).unwrap_err();
        verdict(&[0]).unwrap_err();
        verdict(&[0, 1, 9]).unwrap_err();
    }

    #[test]
    fn what_was_made_after_the_session_had_ended_says_nothing_of_what_was_lost_with_it() {
        let made = |at: u64| {
            op(1, Object::Numbered(0), Action::Number(at), at * 2, at * 2 + 1, Answer::Done(Some(at)))
        };
        let ops = [made(0), Op { same_session: false, ..made(1) }];
        look(&ops, &[Standing::Possible; 2], 0, &BTreeSet::from([1])).unwrap();
    }
}

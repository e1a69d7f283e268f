//! Each directory behaves as one map of names, and all together as one where names are moved between them: what a client did
//! before it returned is what the next one finds, and what was made durable, or is of a client that lives, is there.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Action, Answer, Op, Place, Standing};
use crate::linearize::{Model, Verdict, check, tell};

/// Names with their inodes; 0: an inode that nobody was told of.
struct Directories;

type Names = BTreeMap<Place, u64>;

/// Inodes agree, where both are known.
fn agree(a: u64, b: u64) -> bool {
    a == b || a == 0 || b == 0
}

impl Model for Directories {
    type State = Names;

    fn initial(&self) -> Names {
        Names::new()
    }

    fn step(&self, names: &Names, action: &Action, answer: Option<&Answer>, _: bool) -> Option<Names> {
        let mut after = names.clone();
        match (action, answer) {
            (Action::Create(name), Some(Answer::Exists)) => {
                return names.contains_key(name).then_some(after);
            }
            (Action::Create(name), answer) => {
                let ino = if let Some(Answer::Done(Some(ino))) = answer { *ino } else { 0 };
                if after.insert(*name, ino).is_some() {
                    return None;
                }
            }
            (Action::Unlink(name) | Action::Rename(name, _), Some(Answer::Absent)) => {
                return (!names.contains_key(name)).then_some(after);
            }
            (Action::Unlink(name), _) => {
                after.remove(name)?;
            }
            (Action::Rename(from, to), _) => {
                let ino = after.remove(from)?;
                after.insert(*to, ino);
            }
            (Action::Lookup(name), Some(Answer::Absent)) => {
                return (!names.contains_key(name)).then_some(after);
            }
            (Action::Lookup(name), Some(Answer::Found(ino))) => {
                let known = after.get_mut(name)?;
                if !agree(*known, *ino) {
                    return None;
                }
                *known = *ino;
            }
            (Action::List(directory), Some(Answer::Names(listed))) => {
                let there = || names.iter().filter(|((at, _), _)| at == directory);
                let same = there().count() == listed.len()
                    && there().zip(listed).all(|(a, b)| a.0 == b.0 && agree(*a.1, *b.1));
                after.extend(listed);
                return same.then_some(after);
            }
            _ => return None,
        }
        Some(after)
    }
}

/// Looks at all directories: one by one, unless a name was moved from one to another.
pub fn look(ops: &[Op], standings: &[Standing]) -> Result<(), String> {
    let all: BTreeSet<usize> = ops.iter().flat_map(|op| op.action.directories()).collect();
    let moves = ops.iter().any(|op| op.action.directories().len() > 1);
    let groups = if moves { vec![all] } else { all.into_iter().map(|at| BTreeSet::from([at])).collect() };
    for group in groups {
        let is_here = |op: &Op| op.action.directories().iter().any(|at| group.contains(at));
        let history: Vec<(&Op, Standing)> =
            ops.iter().zip(standings.iter().copied()).filter(|(op, _)| is_here(op)).collect();
        if let Verdict::Impossible(stopped) = check(&Directories, &history) {
            return Err(format!("directories {group:?}: no order explains {stopped:#?}\n{}", tell(&history)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Object;
    use crate::history::tests::op;

    fn verdict(ops: &[Op]) -> Result<(), String> {
        look(ops, &vec![Standing::Certain; ops.len()])
    }

    const D: Object = Object::Directory(0);

    #[test]
    fn a_name_that_was_removed_is_not_found_afterwards() {
        let made = op(1, D, Action::Create((0, 0)), 1, 2, Answer::Done(Some(9)));
        let gone = op(1, D, Action::Unlink((0, 0)), 3, 4, Answer::Done(None));
        let early = op(2, D, Action::Lookup((0, 0)), 3, 6, Answer::Found(9));
        let late = op(2, D, Action::Lookup((0, 0)), 5, 6, Answer::Found(9));
        verdict(&[made.clone(), gone.clone(), early]).unwrap();
        verdict(&[made, gone, late]).unwrap_err();
    }

    #[test]
    fn one_of_two_creates_wins() {
        let first = op(1, D, Action::Create((0, 0)), 1, 4, Answer::Done(Some(9)));
        let loser = op(2, D, Action::Create((0, 0)), 2, 3, Answer::Exists);
        let second = op(2, D, Action::Create((0, 0)), 2, 3, Answer::Done(Some(10)));
        verdict(&[first.clone(), loser]).unwrap();
        verdict(&[first, second]).unwrap_err();
    }

    #[test]
    fn a_listing_is_of_one_moment() {
        let a = op(1, D, Action::Create((0, 0)), 1, 2, Answer::Done(Some(8)));
        let b = op(1, D, Action::Create((0, 1)), 3, 4, Answer::Done(Some(9)));
        let listed = |names: &[(Place, u64)]| {
            op(2, D, Action::List(0), 1, 6, Answer::Names(names.iter().copied().collect()))
        };
        verdict(&[a.clone(), b.clone(), listed(&[((0, 0), 8)])]).unwrap();
        verdict(&[a, b, listed(&[((0, 1), 9)])]).unwrap_err();
    }

    #[test]
    fn what_may_be_lost_may_be_there_but_not_come_and_go() {
        let made = op(1, D, Action::Create((0, 0)), 1, 2, Answer::Done(Some(9)));
        let found = op(2, D, Action::Lookup((0, 0)), 3, 4, Answer::Found(9));
        let absent = op(2, D, Action::Lookup((0, 0)), 5, 6, Answer::Absent);
        let possible = [Standing::Possible, Standing::Certain, Standing::Certain];
        look(&[made.clone(), absent.clone()], &possible).unwrap();
        look(&[made.clone(), found.clone()], &possible).unwrap();
        look(&[made, found, absent], &possible).unwrap_err();
    }

    #[test]
    fn a_name_that_was_moved_is_in_one_directory() {
        let made = op(1, D, Action::Create((0, 0)), 1, 2, Answer::Done(Some(9)));
        let moved = op(1, D, Action::Rename((0, 0), (1, 2)), 3, 6, Answer::Done(None));
        let found = |name, at, ino| op(2, D, Action::Lookup(name), at, at + 1, Answer::Found(ino));
        let listed = |at: usize, names: &[(Place, u64)]| {
            op(2, D, Action::List(at), 8, 9, Answer::Names(names.iter().copied().collect()))
        };
        let there = listed(1, &[((1, 2), 9)]);
        verdict(&[made.clone(), moved.clone(), found((0, 0), 4, 9), there.clone(), listed(0, &[])]).unwrap();
        verdict(&[made.clone(), moved.clone(), found((0, 0), 7, 9), there.clone()]).unwrap_err();
        verdict(&[made.clone(), moved.clone(), found((1, 2), 4, 9), found((0, 0), 6, 9)]).unwrap_err();
        verdict(&[made, moved, there, listed(0, &[((0, 0), 9)])]).unwrap_err();
    }
}

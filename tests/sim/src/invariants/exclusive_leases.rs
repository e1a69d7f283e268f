//! What one client may change by itself no other may even remember: looked at between all steps, by each host's own clock.

use std::collections::BTreeMap;

use gofs_tree::{Ino, LeaseMode};

/// `held`: leases of each client that are valid at this moment.
pub fn look(held: &[(usize, Vec<(Ino, LeaseMode)>)]) -> Result<(), String> {
    let mut first: BTreeMap<Ino, (usize, LeaseMode)> = BTreeMap::new();
    for (client, leases) in held {
        for &(ino, mode) in leases {
            match first.get(&ino) {
                Some(&(other, other_mode)) if mode == LeaseMode::Write || other_mode == LeaseMode::Write => {
                    return Err(format!(
                        "inode {ino} is held under {mode:?} by client {client} and under {other_mode:?} by client {other}"
                    ));
                }
                Some(_) => {}
                None => {
                    first.insert(ino, (*client, mode));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writes_or_all_read() {
        let (read, write) = (LeaseMode::Read, LeaseMode::Write);
        let held = |a, b| look(&[(0, vec![(Ino(2), a), (Ino(3), write)]), (1, vec![(Ino(2), b)])]);
        held(read, read).unwrap();
        held(read, write).unwrap_err();
        held(write, read).unwrap_err();
        held(write, write).unwrap_err();
    }
}

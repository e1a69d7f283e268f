//! Which inodes several sessions have wanted at once of late: these are not handed out under Write unasked.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use gofs_tree::Ino;

use super::Now;

/// How long an inode counts as contended after a Write lease on it was asked back. Two mounts at work in one directory
/// meet again within it, and are served here in turn instead of sending the lease to and fro at the price of a
/// flush each time; a directory that was handed over is its new user's alone soon after.
pub const CONTENDED_FOR: Duration = Duration::from_secs(2);
/// Most inodes remembered; beyond that the oldest are forgotten, which costs a recall and nothing else.
const INODES_MAX: usize = 65_536;

/// The inodes, each until when.
#[derive(Debug, Default)]
pub(super) struct Contention {
    until: HashMap<Ino, Now>,
    /// In order of time. An inode that was wanted again is in here again.
    order: VecDeque<(Now, Ino)>,
}

impl Contention {
    /// A Write lease on the inode is asked back because of another session.
    pub fn note(&mut self, now: Now, ino: Ino) {
        let until = now + CONTENDED_FOR;
        if self.until.insert(ino, until) != Some(until) {
            self.order.push_back((until, ino));
        }
        self.prune(now);
    }

    /// Whether it was within [`CONTENDED_FOR`].
    pub fn holds(&self, now: Now, ino: Ino) -> bool {
        self.until.get(&ino).is_some_and(|&until| now < until)
    }

    /// Forgets what is past.
    pub fn prune(&mut self, now: Now) {
        while let Some(&(until, ino)) = self.order.front()
            && (until <= now || self.order.len() > INODES_MAX)
        {
            self.order.pop_front();
            if self.until.get(&ino) == Some(&until) {
                self.until.remove(&ino);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contention_passes_and_takes_bounded_memory() {
        let mut contention = Contention::default();
        let at = |ms| Duration::from_millis(ms);
        contention.note(at(0), Ino(1));
        contention.note(at(500), Ino(1));
        assert!(contention.holds(at(2400), Ino(1)) && !contention.holds(at(2500), Ino(1)));
        for ino in 0..100_000 {
            contention.note(at(1000), Ino(ino));
        }
        assert_eq!((contention.until.len(), contention.order.len()), (INODES_MAX, INODES_MAX));
        assert!(contention.holds(at(1000), Ino(99_999)));
        contention.prune(at(3000));
        assert_eq!((contention.until.len(), contention.order.len()), (0, 0));
    }
}

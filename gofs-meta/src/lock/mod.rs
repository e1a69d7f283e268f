//! Advisory byte-range locks of one namespace, with the meaning that POSIX gives fcntl locks.
//!
//! Owns the locks held and the requests that wait; knows no connection and no clock. flock arrives as a lock
//! of the whole file. An owner is a session and the kernel's owner within it: its locks never conflict with each
//! other, a new one replaces what it covers. A request that conflicts with nothing held is granted at once,
//! past those that wait (as the kernel does: waiting behind one that waits for oneself would be a deadlock of
//! our own making); those that wait are looked at in order of arrival whenever something becomes free.

mod range;
mod table;
#[cfg(test)]
mod tests;

use gofs_tree::SessionId;

pub use range::LockRange;
pub use table::{LockTable, SetOutcome};

/// Who locks: the kernel's owner of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockOwner {
    /// The mount.
    pub session: SessionId,
    /// What the kernel of that host calls the owner.
    pub owner: u64,
}

/// A lock, held or asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Whose.
    pub owner: LockOwner,
    /// Which bytes.
    pub range: LockRange,
    /// Write lock: no other owner may have any.
    pub exclusive: bool,
    /// For `F_GETLK`: the process, as known on its own host.
    pub pid: u32,
}

impl Lock {
    /// Whether the two cannot be held at once.
    pub fn conflicts(&self, other: &Lock) -> bool {
        self.owner != other.owner && (self.exclusive || other.exclusive) && self.range.overlaps(other.range)
    }
}

/// Names a request that waits; chosen by the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitId(pub u64);

//! Who may cache what: the leases of one namespace, and the operations that must wait for them.
//!
//! Owns leases, registered opens, recalls and the order of operations; knows no connection, no
//! clock and no record. Every call returns the [`Effect`]s that the caller must carry out *before it
//! lets go of the table*, in order, so that a grant and a recall never change places on their way.
//!
//! Invariants: no two sessions hold conflicting leases on an inode; an operation runs only while no
//! other session may hold a copy that it makes stale; operations that need one inode run in order of
//! arrival, except that those of a session whose acknowledgement is awaited pass the ones that wait for it.
//! Nothing here outlives the process: holders reclaim their leases from a new leader.

mod conflict;
mod contention;
mod crossing;
mod grant;
mod resume;
#[cfg(test)]
mod simulation;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use gofs_tree::{Ino, LeaseEpoch, LeaseMode, Name, SessionId};

pub use contention::CONTENDED_FOR;
pub use grant::Grant;
pub use resume::HeldLease;
pub use table::{LeaseInfo, LeaseTable};

/// Time since some fixed moment of this process, never going back.
pub type Now = Duration;

/// How long two operations may each wait for the other's session before the later one is refused with ESTALE.
/// Long enough for an acknowledgement that depends on nothing, short enough not to be felt as a hang.
pub const CROSSING_PATIENCE: Duration = Duration::from_secs(1);
/// How long a living session may take to acknowledge a recall: it may have to flush all that it has buffered.
pub const RECALL_PATIENCE: Duration = Duration::from_secs(30);

/// An operation under way; numbers rise in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// A recall that was sent and not yet acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecallId(pub u64);

impl fmt::Display for RecallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// What an operation does with an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Looks at it: together with others that look.
    Read,
    /// Touches what the server keeps about it, and nothing that a session caches: alone, but no lease conflicts.
    Settle,
    /// Changes it: alone, and no other session may hold it.
    Change,
}

impl Access {
    fn excludes(self, other: Access) -> bool {
        self != Access::Read || other != Access::Read
    }
}

/// One inode that an operation needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Which.
    pub ino: Ino,
    /// What for.
    pub access: Access,
    /// Of a directory that changes: the only entries that do. Empty: anything about it may change.
    pub names: Vec<Name>,
    /// Left out where it cannot be had at once, instead of being waited for.
    pub optional: bool,
}

impl Need {
    /// Looks at the inode.
    pub fn read(ino: Ino) -> Need {
        Need { ino, access: Access::Read, names: Vec::new(), optional: false }
    }

    /// Looks at the inode if that is possible at once.
    pub fn maybe_read(ino: Ino) -> Need {
        Need { optional: true, ..Need::read(ino) }
    }

    /// Changes anything about the inode.
    pub fn change(ino: Ino) -> Need {
        Need { access: Access::Change, ..Need::read(ino) }
    }

    /// Changes these entries of a directory, and so its size and times.
    pub fn entries(ino: Ino, names: Vec<Name>) -> Need {
        Need { names, ..Need::change(ino) }
    }

    /// See [`Access::Settle`].
    pub fn settle(ino: Ino) -> Need {
        Need { access: Access::Settle, ..Need::read(ino) }
    }
}

/// What the caller must do, in this order, before it lets go of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The operation may run now; it must be ended.
    Run(OpId),
    /// The operation will not run and is forgotten: it and another wait for each other's session. ESTALE.
    Refuse(OpId),
    /// Ask the session for a lease; its answer goes to [`LeaseTable::acknowledge`]. Where the session has
    /// no connection, nothing: it is asked again when it is back ([`LeaseTable::resume`]).
    Recall(Recall),
}

/// A request to give something back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recall {
    /// Names the answer.
    pub id: RecallId,
    /// Who is asked.
    pub session: SessionId,
    /// For which inode.
    pub ino: Ino,
    /// The grant that is wanted back.
    pub epoch: LeaseEpoch,
    /// What the session may keep.
    pub keep: Option<LeaseMode>,
    /// Not empty: the lease stays, these names and the directory's attributes are to be forgotten.
    pub names: Vec<Name>,
}

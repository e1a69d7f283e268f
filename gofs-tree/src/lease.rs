//! What a lease allows.

/// The mode of a lease on one inode. `Write` excludes every other session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseMode {
    /// Attributes, data and, for a directory, entries and their absence may be cached.
    Read,
    /// May also be changed locally (a file's bytes, size and times).
    Write,
}

impl LeaseMode {
    /// Whether two sessions may hold these modes on one inode at once.
    pub fn compatible(self, other: LeaseMode) -> bool {
        self == LeaseMode::Read && other == LeaseMode::Read
    }
}

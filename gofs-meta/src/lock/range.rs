//! Ranges of bytes, both ends included, as fcntl's locks have them.

/// From `start` to `end`, both included; `end` = `u64::MAX` is the end of all files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockRange {
    start: u64,
    end: u64,
}

impl LockRange {
    /// `None` where `end` is before `start`.
    pub fn new(start: u64, end: u64) -> Option<LockRange> {
        (start <= end).then_some(LockRange { start, end })
    }

    /// First byte.
    pub fn start(self) -> u64 {
        self.start
    }

    /// Last byte.
    pub fn end(self) -> u64 {
        self.end
    }

    /// Whether they have a byte in common.
    pub fn overlaps(self, other: LockRange) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// Whether they overlap or one begins where the other ends.
    pub fn touches(self, other: LockRange) -> bool {
        self.start <= other.end.saturating_add(1) && other.start <= self.end.saturating_add(1)
    }

    /// The smallest range with both.
    pub fn join(self, other: LockRange) -> LockRange {
        LockRange { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// What is left of it without `hole`: before and after.
    pub fn without(self, hole: LockRange) -> impl Iterator<Item = LockRange> {
        let before = hole.start.checked_sub(1).and_then(|end| LockRange::new(self.start, end.min(self.end)));
        let after = hole.end.checked_add(1).and_then(|start| LockRange::new(start.max(self.start), self.end));
        before.into_iter().chain(after)
    }
}

//! Points in time as inodes keep them. Nothing here reads a clock.

/// Nanoseconds since 1970-01-01 UTC, split as the kernel does; `nanos` < 1,000,000,000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds, negative before 1970.
    pub secs: i64,
    /// Nanoseconds within the second, 0..1,000,000,000.
    pub nanos: u32,
}

impl Timestamp {
    /// A timestamp; `nanos` past one second is carried into `secs`.
    pub fn new(secs: i64, nanos: u32) -> Self {
        Timestamp {
            secs: secs.saturating_add(i64::from(nanos / 1_000_000_000)),
            nanos: nanos % 1_000_000_000,
        }
    }
}

//! Which versions of the wire two programs have in common.
//!
//! Each side says the newest and the oldest that it speaks; they use the newest that both do. A build speaks the version
//! before its own too, so that servers and mounts can be upgraded one after the other.

/// A range of versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The newest.
    pub newest: u32,
    /// The oldest.
    pub oldest: u32,
}

impl Versions {
    /// The newest of both, or `None` where the ranges do not meet.
    pub fn common(self, other: Versions) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest && newest >= other.oldest && newest > 0).then_some(newest)
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.oldest, self.newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(oldest: u32, newest: u32) -> Versions {
        Versions { newest, oldest }
    }

    #[test]
    fn adjacent_versions_meet_at_the_older_one_whoever_asks() {
        for (one, other, common) in [
            (versions(1, 1), versions(1, 1), Some(1)),
            (versions(1, 1), versions(1, 2), Some(1)),
            (versions(1, 2), versions(2, 3), Some(2)),
            (versions(1, 3), versions(1, 2), Some(2)),
            (versions(1, 1), versions(2, 3), None),
            (versions(2, 2), versions(3, 3), None),
            // Nonsense is no agreement.
            (versions(0, 0), versions(0, 0), None),
            (versions(3, 2), versions(1, 9), None),
        ] {
            assert_eq!(one.common(other), common, "{one:?} and {other:?}");
            assert_eq!(other.common(one), common, "{other:?} and {one:?}");
        }
    }
}

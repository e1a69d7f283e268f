//! Chunk versions that no two leaders ever mean differently.

use gofs_tree::ChunkVersion;

/// Low bits of a version: how many times one leader may raise one chunk.
const COUNTER_BITS: u32 = 24;

/// The first version of a term: all of earlier terms are below it.
pub(crate) fn first_version_of(term: u64) -> ChunkVersion {
    ChunkVersion(term << COUNTER_BITS)
}

/// A version above `floor` that no leader of another term ever chose: its upper
/// bits are the term. So a server that took a version which was then never committed (its
/// leader died, its answer was lost) can never be mistaken for a current one later.
pub fn next_version(term: u64, floor: ChunkVersion) -> ChunkVersion {
    ChunkVersion((floor.0.saturating_add(1)).max(first_version_of(term).0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_two_terms_never_meet() {
        let first = next_version(3, ChunkVersion(1));
        let again = next_version(3, first);
        let other = next_version(4, ChunkVersion(1));
        assert!(ChunkVersion(1) < first && first < again && again < other);
    }
}

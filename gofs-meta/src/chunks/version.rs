//! Chunk versions that no two leaders ever mean differently.

use gofs_tree::ChunkVersion;

/// Bits below the term.
const TERM_SHIFT: u32 = ChunkVersion::LOSSES_BITS + ChunkVersion::COUNT_BITS;

/// The first version of a term: all of earlier terms are below it.
pub(crate) fn first_version_of(term: u64) -> ChunkVersion {
    ChunkVersion(term << TERM_SHIFT)
}

/// A version above `floor`, of as many losses, that no leader of another term ever chose: its upper
/// bits are the term. So a server that took a version which was then never committed (its
/// leader died, its answer was lost) can never be mistaken for a current one later.
pub fn next_version(term: u64, floor: ChunkVersion) -> ChunkVersion {
    of_losses(term, floor, floor.losses())
}

/// The same for a replica that may lack acknowledged writes: one loss more.
pub fn next_version_with_loss(term: u64, floor: ChunkVersion) -> ChunkVersion {
    of_losses(term, floor, (floor.losses() + 1).min((1 << ChunkVersion::LOSSES_BITS) - 1))
}

fn of_losses(term: u64, floor: ChunkVersion, losses: u64) -> ChunkVersion {
    let first = first_version_of(term).0 | losses << ChunkVersion::COUNT_BITS;
    ChunkVersion(floor.0.saturating_add(1).max(first))
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

    #[test]
    fn losses_are_counted_over_terms_and_versions_grow() {
        let first = next_version(3, ChunkVersion(1));
        let lost = next_version_with_loss(3, first);
        let next = next_version(3, lost);
        let other = next_version(4, next);
        let again = next_version_with_loss(5, other);
        let versions = [first, lost, next, other, again];
        assert_eq!(versions.map(ChunkVersion::losses), [0, 1, 1, 1, 2]);
        assert!(versions.is_sorted());
        let many = (0..1000).fold(first, |version, _| next_version_with_loss(3, version));
        assert_eq!((many.losses(), many.0 >> TERM_SHIFT), (255, 3), "no other term is touched");
    }
}

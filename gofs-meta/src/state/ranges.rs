//! Inode numbers that are reserved for a session and that it has not used.
//!
//! A number leaves for good when an inode is made with it, so none is used twice, also where the first inode is gone.

use gofs_tree::{CodecError, Ino};

use crate::codec::{Reader, Writer};

/// Most ranges of one session. It uses its numbers in order, so what is left between used ones was skipped:
/// the lowest ranges are given up first.
const RANGES_MAX: usize = 1024;

/// Half-open ranges in order, none empty, none touching the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct InoRanges(Vec<(Ino, Ino)>);

impl InoRanges {
    /// How many ranges.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the number may be used.
    pub fn contains(&self, ino: Ino) -> bool {
        self.at(ino).is_some()
    }

    fn at(&self, ino: Ino) -> Option<usize> {
        let at = self.0.partition_point(|&(_, end)| end <= ino);
        self.0.get(at).is_some_and(|&(first, _)| first <= ino).then_some(at)
    }

    /// Adds `first..end`.
    pub fn add(&mut self, first: Ino, end: Ino) {
        let at = self.0.partition_point(|&(_, other)| other < first);
        let upto = at + self.0[at..].partition_point(|&(other, _)| other <= end);
        let first = self.0[at..upto].first().map_or(first, |range| range.0.min(first));
        let end = self.0[at..upto].last().map_or(end, |range| range.1.max(end));
        self.0.splice(at..upto, [(first, end)]);
        self.bound();
    }

    /// The number was used.
    pub fn take(&mut self, ino: Ino) {
        let Some(at) = self.at(ino) else { return };
        let (first, end) = self.0[at];
        let left = [(first, ino), (ino.next(), end)].into_iter().filter(|(first, end)| first < end);
        self.0.splice(at..=at, left);
        self.bound();
    }

    fn bound(&mut self) {
        self.0.drain(..self.0.len().saturating_sub(RANGES_MAX));
    }

    pub fn write(&self, out: &mut Writer<'_>) {
        out.u32(u32::try_from(self.0.len()).expect("bounded by RANGES_MAX"));
        for (first, end) in &self.0 {
            out.u64(first.0);
            out.u64(end.0);
        }
    }

    pub fn read(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        let count = from.count(16)?;
        let mut ranges: Vec<(Ino, Ino)> = Vec::with_capacity(count);
        for _ in 0..count {
            let (first, end) = (Ino(from.u64()?), Ino(from.u64()?));
            if first >= end || ranges.last().is_some_and(|&(_, before)| before >= first) {
                return Err(from.malformed());
            }
            ranges.push((first, end));
        }
        Ok(InoRanges(ranges))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ranges(list: &[(u64, u64)]) -> InoRanges {
        InoRanges(list.iter().map(|&(first, end)| (Ino(first), Ino(end))).collect())
    }

    #[test]
    fn a_taken_number_does_not_come_back_by_what_touches_it() {
        let mut held = InoRanges::default();
        held.add(Ino(10), Ino(20));
        held.take(Ino(10));
        held.take(Ino(15));
        held.take(Ino(15));
        held.add(Ino(20), Ino(30));
        assert_eq!(held, ranges(&[(11, 15), (16, 30)]));
        assert!(!held.contains(Ino(10)) && !held.contains(Ino(15)) && !held.contains(Ino(30)));
        assert!(held.contains(Ino(11)) && held.contains(Ino(29)));
    }

    #[test]
    fn what_was_skipped_long_ago_is_given_up_first() {
        let mut held = InoRanges::default();
        held.add(Ino(2), Ino(100_002));
        for ino in (3..10_000).step_by(2) {
            held.take(Ino(ino));
        }
        assert_eq!(held.len(), RANGES_MAX);
        assert!(!held.contains(Ino(2)) && held.contains(Ino(100_001)));
    }

    #[test]
    fn golden_bytes_of_ranges() {
        let mut bytes = Vec::new();
        ranges(&[(2, 0x0103)]).write(&mut Writer(&mut bytes));
        assert_eq!(bytes, [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(InoRanges::read(&mut Reader::new("ranges", &bytes)), Ok(ranges(&[(2, 0x0103)])));
        bytes[4] = 0xff;
        bytes[5] = 0xff;
        assert!(InoRanges::read(&mut Reader::new("ranges", &bytes)).is_err(), "ends before it begins");
    }

    proptest! {
        #[test]
        fn ranges_are_a_set_of_numbers(steps in proptest::collection::vec((any::<bool>(), 2..60u64, 1..9u64), 1..60)) {
            let (mut held, mut model) = (InoRanges::default(), BTreeSet::new());
            for (add, at, count) in steps {
                if add {
                    held.add(Ino(at), Ino(at + count));
                    model.extend(at..at + count);
                } else {
                    held.take(Ino(at));
                    model.remove(&at);
                }
                prop_assert!((0..80).all(|ino| held.contains(Ino(ino)) == model.contains(&ino)));
                prop_assert!(held.0.windows(2).all(|pair| pair[0].1 < pair[1].0));
            }
        }
    }
}

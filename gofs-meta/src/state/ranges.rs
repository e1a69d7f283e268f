//! Numbers that are reserved for a session and that it has not used: of inodes, and of chunks.
//!
//! A number leaves for good when something is made with it, so none is used twice, also where the first is gone.

use gofs_tree::CodecError;

use crate::codec::{Reader, Writer};

/// Most ranges of one session: its record is written anew with each batch. It uses its numbers in order, so what is left
/// between used ones was skipped: the lowest ranges are given up first.
const RANGES_MAX: usize = 64;

/// Half-open ranges in order, none empty, none touching the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// How many ranges.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The lowest number.
    pub fn first(&self) -> Option<u64> {
        self.0.first().map(|&(first, _)| first)
    }

    /// Whether the number may be used.
    pub fn contains(&self, number: u64) -> bool {
        self.at(number).is_some()
    }

    fn at(&self, number: u64) -> Option<usize> {
        let at = self.0.partition_point(|&(_, end)| end <= number);
        self.0.get(at).is_some_and(|&(first, _)| first <= number).then_some(at)
    }

    /// Adds `first..end`.
    pub fn add(&mut self, first: u64, end: u64) {
        let at = self.0.partition_point(|&(_, other)| other < first);
        let upto = at + self.0[at..].partition_point(|&(other, _)| other <= end);
        let first = self.0[at..upto].first().map_or(first, |range| range.0.min(first));
        let end = self.0[at..upto].last().map_or(end, |range| range.1.max(end));
        self.0.splice(at..upto, [(first, end)]);
        self.bound();
    }

    /// The number was used.
    pub fn take(&mut self, number: u64) {
        let Some(at) = self.at(number) else { return };
        let (first, end) = self.0[at];
        let left = [(first, number), (number + 1, end)].into_iter().filter(|(first, end)| first < end);
        self.0.splice(at..=at, left);
        self.bound();
    }

    fn bound(&mut self) {
        self.0.drain(..self.0.len().saturating_sub(RANGES_MAX));
    }

    pub fn write(&self, out: &mut Writer<'_>) {
        out.u32(u32::try_from(self.0.len()).expect("bounded by RANGES_MAX"));
        for (first, end) in &self.0 {
            out.u64(*first);
            out.u64(*end);
        }
    }

    pub fn read(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        let count = from.count(16)?;
        let mut ranges: Vec<(u64, u64)> = Vec::with_capacity(count);
        for _ in 0..count {
            let (first, end) = (from.u64()?, from.u64()?);
            if first >= end || ranges.last().is_some_and(|&(_, before)| before >= first) {
                return Err(from.malformed());
            }
            ranges.push((first, end));
        }
        Ok(Ranges(ranges))
    }
}

/// What a session may still use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub inos: Ranges,
    pub chunks: Ranges,
}

impl Reserved {
    /// Bytes of memory that it takes.
    pub fn weight(&self) -> usize {
        size_of::<Reserved>() + (self.inos.len() + self.chunks.len()) * size_of::<(u64, u64)>()
    }

    pub fn write(&self, out: &mut Writer<'_>) {
        self.inos.write(out);
        self.chunks.write(out);
    }

    pub fn read(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Reserved { inos: Ranges::read(from)?, chunks: Ranges::read(from)? })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ranges(list: &[(u64, u64)]) -> Ranges {
        Ranges(list.to_vec())
    }

    #[test]
    fn a_taken_number_does_not_come_back_by_what_touches_it() {
        let mut held = Ranges::default();
        held.add(10, 20);
        held.take(10);
        held.take(15);
        held.take(15);
        held.add(20, 30);
        assert_eq!(held, ranges(&[(11, 15), (16, 30)]));
        assert!(!held.contains(10) && !held.contains(15) && !held.contains(30));
        assert!(held.contains(11) && held.contains(29));
    }

    #[test]
    fn what_was_skipped_long_ago_is_given_up_first() {
        let mut held = Ranges::default();
        held.add(2, 100_002);
        for ino in (3..10_000).step_by(2) {
            held.take(ino);
        }
        assert_eq!(held.len(), RANGES_MAX);
        assert!(!held.contains(2) && held.contains(100_001));
    }

    #[test]
    fn golden_bytes_of_ranges() {
        let mut bytes = Vec::new();
        ranges(&[(2, 0x0103)]).write(&mut Writer(&mut bytes));
        assert_eq!(bytes, [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Ranges::read(&mut Reader::new("ranges", &bytes)), Ok(ranges(&[(2, 0x0103)])));
        bytes[4] = 0xff;
        bytes[5] = 0xff;
        assert!(Ranges::read(&mut Reader::new("ranges", &bytes)).is_err(), "ends before it begins");
    }

    proptest! {
        #[test]
        fn ranges_are_a_set_of_numbers(steps in proptest::collection::vec((any::<bool>(), 2..60u64, 1..9u64), 1..60)) {
            let (mut held, mut model) = (Ranges::default(), BTreeSet::new());
            for (add, at, count) in steps {
                if add {
                    held.add(at, at + count);
                    model.extend(at..at + count);
                } else {
                    held.take(at);
                    model.remove(&at);
                }
                prop_assert!((0..80).all(|ino| held.contains(ino) == model.contains(&ino)));
                prop_assert!(held.0.windows(2).all(|pair| pair[0].1 < pair[1].0));
            }
        }
    }
}

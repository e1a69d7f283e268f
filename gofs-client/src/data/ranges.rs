//! A set of numbers as half-open ranges. A few of them: a sorted list, which takes next to nothing.

/// Disjoint and not adjacent, in order, none empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// The index of the first range that ends behind `at`.
    fn behind(&self, at: u64) -> usize {
        self.0.partition_point(|&(_, end)| end <= at)
    }

    /// The end of the range that has the number.
    pub fn end_at(&self, at: u64) -> Option<u64> {
        self.0.get(self.behind(at)).filter(|&&(start, _)| start <= at).map(|&(_, end)| end)
    }

    /// Where the next range begins at or behind a number that none has.
    pub fn next(&self, at: u64) -> Option<u64> {
        self.0.get(self.behind(at)).map(|&(start, _)| start)
    }

    /// Adds `[start, end)`.
    pub fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let from = self.0.partition_point(|&(_, other)| other < start);
        let upto = from + self.0[from..].partition_point(|&(other, _)| other <= end);
        let start = self.0[from..upto].first().map_or(start, |range| range.0.min(start));
        let end = self.0[from..upto].last().map_or(end, |range| range.1.max(end));
        self.0.splice(from..upto, [(start, end)]);
    }

    /// Removes `[start, end)`.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let from = self.behind(start);
        let upto = from + self.0[from..].partition_point(|&(other, _)| other < end);
        let left = self.0[from..upto].first().map(|range| (range.0, start));
        let right = self.0[from..upto].last().map(|range| (end, range.1));
        let kept: Vec<_> = left.into_iter().chain(right).filter(|(start, end)| start < end).collect();
        self.0.splice(from..upto, kept);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_a_set_of_numbers(steps in proptest::collection::vec((any::<bool>(), 0..60u64, 0..12u64), 1..60)) {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            for (add, at, count) in steps {
                if add {
                    ranges.add(at, at + count);
                    model.extend(at..at + count);
                } else {
                    ranges.remove(at, at + count);
                    model.retain(|number| !(at..at + count).contains(number));
                }
                prop_assert!(ranges.0.iter().all(|(start, end)| start < end));
                prop_assert!(ranges.0.windows(2).all(|pair| pair[0].1 < pair[1].0));
                for at in 0..80 {
                    let end = (at..).find(|number| !model.contains(number)).filter(|end| *end > at);
                    prop_assert_eq!(ranges.end_at(at), end);
                    if end.is_none() {
                        prop_assert_eq!(ranges.next(at), model.range(at..).next().copied());
                    }
                }
            }
        }
    }
}

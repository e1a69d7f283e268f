//! Bytes at offsets of a file: disjoint, sorted, the newest write wins.
//!
//! Large writes are kept as they came, without a copy; small ones are gathered in buffers that
//! grow in place, so that a file written line by line is a few segments and not thousands.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use gofs_tree::ByteRange;

/// A write at least this long is kept as it is, bytes.
const WHOLE_MIN_BYTES: usize = 32 << 10;
/// A gathering buffer takes no more than this, bytes.
const GROWING_MAX_BYTES: usize = 64 << 10;

#[derive(Clone, Debug)]
enum Segment {
    Whole(Bytes),
    Growing(BytesMut),
}

impl Segment {
    fn len(&self) -> u64 {
        match self {
            Segment::Whole(bytes) => bytes.len() as u64,
            Segment::Growing(bytes) => bytes.len() as u64,
        }
    }

    /// Keeps the first `at` bytes and returns the others.
    fn split_off(&mut self, at: u64) -> Segment {
        match self {
            Segment::Whole(bytes) => Segment::Whole(bytes.split_off(at as usize)),
            Segment::Growing(bytes) => Segment::Growing(bytes.split_off(at as usize)),
        }
    }

    fn slice(&self, from: u64, to: u64) -> Bytes {
        match self {
            Segment::Whole(bytes) => bytes.slice(from as usize..to as usize),
            Segment::Growing(bytes) => Bytes::copy_from_slice(&bytes[from as usize..to as usize]),
        }
    }
}

/// A contiguous piece of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Where it starts.
    pub offset: u64,
    /// Its bytes, one after the other; none is empty.
    pub pieces: Vec<Bytes>,
}

impl Run {
    /// Bytes covered.
    pub fn len(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct ExtentMap {
    segments: BTreeMap<u64, Segment>,
    len: u64,
}

impl ExtentMap {
    /// Bytes held.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// One past the last byte held; 0 where none is.
    pub fn end(&self) -> u64 {
        self.segments.last_key_value().map_or(0, |(at, segment)| at + segment.len())
    }

    /// Puts bytes over whatever is there.
    pub fn insert(&mut self, offset: u64, data: Bytes) {
        if data.is_empty() || self.grow(offset, &data) {
            return;
        }
        let end = offset + data.len() as u64;
        self.remove(offset, end);
        self.len += data.len() as u64;
        let segment = if data.len() < WHOLE_MIN_BYTES {
            Segment::Growing(BytesMut::from(&data[..]))
        } else {
            Segment::Whole(data)
        };
        self.segments.insert(offset, segment);
    }

    /// Puts a small write into the buffer that it touches, if there is one with room.
    fn grow(&mut self, offset: u64, data: &[u8]) -> bool {
        let end = offset + data.len() as u64;
        let Some((&start, Segment::Growing(buffer))) = self.segments.range(..=offset).next_back() else {
            return false;
        };
        let buffer_end = start + buffer.len() as u64;
        let wanted = (end - start) as usize;
        if offset > buffer_end || data.len() >= WHOLE_MIN_BYTES || wanted > GROWING_MAX_BYTES {
            return false;
        }
        self.remove(buffer_end, end);
        let Some(Segment::Growing(buffer)) = self.segments.get_mut(&start) else { return false };
        let at = (offset - start) as usize;
        if buffer.len() < wanted {
            self.len += (wanted - buffer.len()) as u64;
            buffer.resize(wanted, 0);
        }
        buffer[at..wanted].copy_from_slice(data);
        true
    }

    /// Forgets `[start, end)`.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let mut kept = None;
        if let Some((&at, segment)) = self.segments.range_mut(..start).next_back()
            && at + segment.len() > start
        {
            let mut tail = segment.split_off(start - at);
            self.len -= tail.len();
            if start + tail.len() > end {
                kept = Some(tail.split_off(end - start));
            }
        }
        while let Some((&at, _)) = self.segments.range(start..end).next() {
            let Some(mut segment) = self.segments.remove(&at) else { break };
            self.len -= segment.len();
            if at + segment.len() > end {
                kept = Some(segment.split_off(end - at));
            }
        }
        if let Some(segment) = kept {
            self.len += segment.len();
            self.segments.insert(end, segment);
        }
    }

    /// Forgets everything from `start` on.
    pub fn truncate(&mut self, start: u64) {
        self.remove(start, u64::MAX);
    }

    /// What of `range` is held (`Ok`) and what is not (`Err`), in order, without gaps.
    pub fn look(&self, range: ByteRange) -> Vec<Result<(u64, Bytes), ByteRange>> {
        let mut out = Vec::new();
        let mut at = range.start;
        let first = self.segments.range(..range.start).next_back();
        for (&start, segment) in first.into_iter().chain(self.segments.range(range.start..range.end)) {
            let from = start.max(at);
            let to = (start + segment.len()).min(range.end);
            if from >= to {
                continue;
            }
            if from > at {
                out.push(Err(ByteRange { start: at, end: from }));
            }
            out.push(Ok((from, segment.slice(from - start, to - start))));
            at = to;
        }
        if at < range.end {
            out.push(Err(ByteRange { start: at, end: range.end }));
        }
        out
    }

    /// The contiguous runs, in order.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut run_end = None;
        for (&at, segment) in &self.segments {
            let bytes = segment.slice(0, segment.len());
            match runs.last_mut() {
                Some(run) if run_end == Some(at) => run.pieces.push(bytes),
                _ => runs.push(Run { offset: at, pieces: vec![bytes] }),
            }
            run_end = Some(at + segment.len());
        }
        runs
    }

    /// The ranges of the contiguous runs, in order.
    pub fn run_ranges(&self) -> Vec<ByteRange> {
        let mut runs: Vec<ByteRange> = Vec::new();
        for (&at, segment) in &self.segments {
            let end = at + segment.len();
            match runs.last_mut() {
                Some(run) if run.end == at => run.end = end,
                _ => runs.push(ByteRange { start: at, end }),
            }
        }
        runs
    }

    /// Whether the run around `offset` has at least `len` bytes up to its end.
    pub fn run_is_long(&self, offset: u64, len: u64) -> bool {
        let mut end = None;
        for (&at, segment) in self.segments.range(..=offset).rev() {
            let run_end = *end.get_or_insert(at + segment.len());
            if run_end - at >= len {
                return true;
            }
            match self.segments.range(..at).next_back() {
                Some((&before, segment)) if before + segment.len() == at => {}
                _ => return false,
            }
        }
        false
    }

    /// Takes `[start, end)` out.
    pub fn take(&mut self, range: ByteRange) -> ExtentMap {
        let mut taken = ExtentMap::default();
        for (at, segment) in self.split(range) {
            taken.len += segment.len();
            taken.segments.insert(at, segment);
        }
        taken
    }

    fn split(&mut self, range: ByteRange) -> Vec<(u64, Segment)> {
        for at in [range.start, range.end] {
            if let Some((&start, segment)) = self.segments.range_mut(..at).next_back()
                && start + segment.len() > at
            {
                let tail = segment.split_off(at - start);
                self.segments.insert(at, tail);
            }
        }
        let keys: Vec<u64> = self.segments.range(range.start..range.end).map(|(&at, _)| at).collect();
        let taken: Vec<(u64, Segment)> = keys
            .into_iter()
            .filter_map(|at| self.segments.remove(&at).map(|segment| (at, segment)))
            .collect();
        self.len -= taken.iter().map(|(_, segment)| segment.len()).sum::<u64>();
        taken
    }

    /// Adds `older` where nothing is held.
    pub fn fill_from(&mut self, older: ExtentMap) {
        if self.is_empty() {
            *self = older;
            return;
        }
        for run in older.runs() {
            let mut at = run.offset;
            for piece in run.pieces {
                let range = ByteRange { start: at, end: at + piece.len() as u64 };
                for gap in self.look(range).into_iter().filter_map(Result::err) {
                    let bytes = piece.slice((gap.start - at) as usize..(gap.end - at) as usize);
                    self.len += bytes.len() as u64;
                    self.segments.insert(gap.start, Segment::Whole(bytes));
                }
                at = range.end;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPACE: u64 = 300 << 10;

    fn check(map: &ExtentMap, model: &[Option<u8>]) {
        let held = model.iter().filter(|byte| byte.is_some()).count() as u64;
        assert_eq!(map.len(), held);
        let mut at = 0;
        for part in map.look(ByteRange { start: 0, end: model.len() as u64 }) {
            match part {
                Ok((offset, bytes)) => {
                    assert_eq!(offset, at);
                    for (i, byte) in bytes.iter().enumerate() {
                        assert_eq!(model[at as usize + i], Some(*byte));
                    }
                    at += bytes.len() as u64;
                }
                Err(gap) => {
                    assert_eq!(gap.start, at);
                    assert!(model[gap.start as usize..gap.end as usize].iter().all(Option::is_none));
                    at = gap.end;
                }
            }
        }
        assert_eq!(at, model.len() as u64);
        let from_runs: u64 = map.runs().iter().map(Run::len).sum();
        assert_eq!(from_runs, held);
        assert_eq!(map.run_ranges().iter().map(|range| range.len()).sum::<u64>(), held);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn extents_agree_with_a_byte_model(
            ops in prop::collection::vec((0u8..6, 0..SPACE, 1u64..90_000, any::<u8>()), 1..40)
        ) {
            let mut map = ExtentMap::default();
            let mut model = vec![None; SPACE as usize];
            for (kind, offset, len, byte) in ops {
                let len = if kind < 2 { len % 5000 + 1 } else { len };
                let end = (offset + len).min(SPACE);
                let span = offset as usize..end as usize;
                match kind {
                    0..=2 => {
                        map.insert(offset, Bytes::from(vec![byte; span.len()]));
                        model[span].fill(Some(byte));
                    }
                    3 => {
                        map.remove(offset, end);
                        model[span].fill(None);
                    }
                    4 => {
                        let taken = map.take(ByteRange { start: offset, end });
                        let mut taken_model = vec![None; SPACE as usize];
                        taken_model[span.clone()].copy_from_slice(&model[span.clone()]);
                        model[span].fill(None);
                        check(&taken, &taken_model);
                    }
                    _ => {
                        let mut older = ExtentMap::default();
                        older.insert(offset, Bytes::from(vec![byte; span.len()]));
                        map.fill_from(older);
                        for slot in &mut model[span] {
                            slot.get_or_insert(byte);
                        }
                    }
                }
                check(&map, &model);
            }
        }
    }

    #[test]
    fn lines_gather_in_few_segments() {
        let mut map = ExtentMap::default();
        for line in 0..10_000u64 {
            map.insert(line * 80, Bytes::from(vec![1; 80]));
        }
        assert!(map.segments.len() <= 14, "{}", map.segments.len());
        assert!(map.run_is_long(700_000, 500_000) && !map.run_is_long(700_000, 900_000));
    }
}

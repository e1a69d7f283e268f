//! When to read ahead, and how far. Sync.

use gofs_tree::ByteRange;

/// The first readahead, bytes.
const FIRST_BYTES: u64 = 1 << 20;
/// Requests of a sequential reader may overtake each other by so much, bytes.
const DISORDER_BYTES: u64 = 2 << 20;

/// The reads of one file: sequential ones make the window grow, others close it.
#[derive(Debug, Default)]
pub(super) struct Readahead {
    /// Where the next read is expected.
    expected: u64,
    window: u64,
    /// Everything below was asked for already.
    asked: u64,
}

impl Readahead {
    fn is_near(&self, start: u64) -> bool {
        start <= self.expected && self.expected - start <= DISORDER_BYTES
            || start > self.expected && start - self.expected <= DISORDER_BYTES && self.window > 0
    }

    /// Whether a read from here goes on with none before it, nor begins at the start of the file.
    pub fn is_random(&self, start: u64) -> bool {
        !self.is_near(start)
    }

    /// A read came; returns what to fetch beyond it. `max`: the largest window, bytes.
    pub fn on_read(&mut self, range: ByteRange, file_size: u64, max: u64) -> Option<ByteRange> {
        let near = self.is_near(range.start);
        // One read at the start of a file may be all: the second shows the direction.
        let sequential = near && (self.expected > 0 || self.window > 0);
        if !sequential {
            *self = Readahead { expected: range.end, window: 0, asked: range.end };
            return None;
        }
        self.expected = self.expected.max(range.end);
        let start = self.asked.max(self.expected);
        if self.window > 0 && start - self.expected > self.window / 2 {
            return None;
        }
        self.window = (self.window * 2).clamp(FIRST_BYTES, max.max(FIRST_BYTES)).min(max);
        let end = (self.expected + self.window).min(file_size);
        if start >= end {
            return None;
        }
        self.asked = end;
        Some(ByteRange { start, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(ahead: &mut Readahead, start: u64, len: u64) -> Option<ByteRange> {
        ahead.on_read(ByteRange { start, end: start + len }, 1 << 30, 8 << 20)
    }

    #[test]
    fn a_sequential_reader_stays_behind_a_growing_window() {
        let mut ahead = Readahead::default();
        assert!(!ahead.is_random(0));
        assert_eq!(read(&mut ahead, 0, 128 << 10), None);
        assert!(!ahead.is_random(128 << 10));
        let mut asked = 0;
        for at in 1..800u64 {
            if let Some(range) = read(&mut ahead, at * (128 << 10), 128 << 10) {
                assert!(asked == 0 || range.start == asked, "asked twice or left a hole");
                asked = range.end;
            }
            assert!(asked >= (at + 1) * (128 << 10), "the reader caught up");
        }
        assert_eq!(ahead.window, 8 << 20);
    }

    #[test]
    fn a_random_reader_reads_nothing_ahead() {
        let mut ahead = Readahead::default();
        for at in [900 << 20, 5 << 20, 500 << 20, 40 << 20, 700 << 20] {
            assert!(ahead.is_random(at));
            assert_eq!(read(&mut ahead, at, 4096), None);
        }
    }

    #[test]
    fn nothing_is_asked_past_the_end() {
        let mut ahead = Readahead::default();
        let file = 300 << 10;
        assert_eq!(ahead.on_read(ByteRange { start: 0, end: 128 << 10 }, file, 8 << 20), None);
        let second = ahead.on_read(ByteRange { start: 128 << 10, end: 256 << 10 }, file, 8 << 20);
        assert_eq!(second, Some(ByteRange { start: 256 << 10, end: file }));
        assert_eq!(ahead.on_read(ByteRange { start: 256 << 10, end: file }, file, 8 << 20), None);
    }
}

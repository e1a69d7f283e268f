//! Errors of write-back, told once to every open handle.

use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use gofs_tree::{FsError, Ino};

/// Files with an error that are remembered; the ones that were told go first.
const RECORDS_MAX: usize = 10_000;

/// How far an open handle has seen the errors of its file. One for each open.
#[derive(Debug, Default)]
pub struct ErrorCursor(AtomicU64);

#[derive(Clone, Copy)]
struct Record {
    seq: u64,
    error: FsError,
    told: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct StickyErrors {
    records: DashMap<Ino, Record>,
    last: AtomicU64,
}

impl StickyErrors {
    /// A write-back of the file was refused for good.
    pub fn set(&self, ino: Ino, error: FsError) {
        let seq = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        if self.records.len() >= RECORDS_MAX {
            self.records.retain(|_, record| !record.told);
        }
        self.records.insert(ino, Record { seq, error, told: false });
    }

    /// For a handle that is being opened: an error that nobody was told yet is its as well.
    pub fn cursor(&self, ino: Ino) -> ErrorCursor {
        let seen = self.records.get(&ino).map_or(0, |record| record.seq - u64::from(!record.told));
        ErrorCursor(AtomicU64::new(seen))
    }

    /// Whether some error was told to no handle.
    pub fn are_untold(&self) -> bool {
        self.records.iter().any(|record| !record.told)
    }

    /// The error that the handle does not know yet.
    pub fn take(&self, ino: Ino, cursor: &ErrorCursor) -> Result<(), FsError> {
        let Some(mut record) = self.records.get_mut(&ino) else { return Ok(()) };
        if cursor.0.fetch_max(record.seq, Ordering::Relaxed) >= record.seq {
            return Ok(());
        }
        record.told = true;
        Err(record.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_open_handle_is_told_once() {
        let errors = StickyErrors::default();
        let (a, b) = (errors.cursor(Ino(2)), errors.cursor(Ino(2)));
        errors.set(Ino(2), FsError::NoSpace);
        let late = errors.cursor(Ino(2));
        for cursor in [&a, &b, &late] {
            assert_eq!(errors.take(Ino(2), cursor), Err(FsError::NoSpace));
            assert_eq!(errors.take(Ino(2), cursor), Ok(()));
        }
        assert!(!errors.are_untold());
        let after = errors.cursor(Ino(2));
        assert_eq!(errors.take(Ino(2), &after), Ok(()));
        assert_eq!(errors.take(Ino(3), &after), Ok(()));
        errors.set(Ino(2), FsError::Io);
        assert!(errors.are_untold());
        assert_eq!(errors.take(Ino(2), &after), Err(FsError::Io));
    }
}

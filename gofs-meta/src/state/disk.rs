//! The ordered key-value store on disk: one fjall database in one directory.
//!
//! All records are in one keyspace with one sequence of batches, so whatever of it a crash leaves
//! is the state after some entry of the EditLog, never a mixture. The journal is not synced:
//! the EditLog is the truth. [`Disk::persist`] makes everything durable, and must have
//! succeeded before the EditLog is trimmed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use super::StateError;

const KEYSPACE: &str = "records";
/// Threads that flush and compact.
const WORKERS: usize = 2;
/// How long a process that is just ending may keep the files.
const LOCKED_PATIENCE: Duration = Duration::from_secs(5);
const LOCKED_PAUSE: Duration = Duration::from_millis(20);

/// Whether the bytes are wrong, and not the access to them. The journal is not synced: after a power cut it may have lost any of
/// its pages, and only a cut at its very end is what the database expects.
fn is_torn(error: &fjall::Error) -> bool {
    use fjall::Error;
    matches!(
        error,
        Error::JournalRecovery(_) | Error::InvalidTag(_) | Error::InvalidTrailer | Error::Unrecoverable
    )
}

pub(crate) struct Disk {
    database: Database,
    records: Keyspace,
    path: PathBuf,
}

impl Disk {
    pub fn open(path: &Path, cache_bytes: u64) -> Result<Self, StateError> {
        let failed = |error: &dyn std::fmt::Display| StateError::storage(path, error);
        let database = || {
            Database::builder(path)
                .cache_size(cache_bytes)
                .manual_journal_persist(true)
                .worker_threads(WORKERS)
                .open()
        };
        let until = Instant::now() + LOCKED_PATIENCE;
        let database = loop {
            match database() {
                Err(fjall::Error::Locked) if Instant::now() < until => std::thread::sleep(LOCKED_PAUSE),
                Err(fjall::Error::Locked) => return Err(failed(&"another process uses it")),
                Err(error) if is_torn(&error) => {
                    return Err(StateError::Torn { path: path.to_owned(), reason: error.to_string() });
                }
                opened => break opened.map_err(|error| failed(&error))?,
            }
        };
        let options = || KeyspaceCreateOptions::default().manual_journal_persist(true);
        let records = database.keyspace(KEYSPACE, options).map_err(|error| failed(&error))?;
        Ok(Disk { database, records, path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, error: fjall::Error) -> StateError {
        StateError::storage(&self.path, error)
    }

    /// A view that later writes do not change.
    pub fn view(&self) -> Snapshot {
        self.database.snapshot()
    }

    /// The stored value, as of `view` or newest.
    pub fn get(&self, view: Option<&Snapshot>, key: &[u8]) -> Result<Option<fjall::Slice>, StateError> {
        match view {
            Some(view) => view.get(&self.records, key),
            None => self.records.get(key),
        }
        .map_err(|error| self.failed(error))
    }

    /// All pairs with `start <= key < end` (no bound where `end` is empty), in order.
    pub fn range(
        &self,
        view: Option<&Snapshot>,
        start: &[u8],
        end: &[u8],
    ) -> impl Iterator<Item = Result<(fjall::Slice, fjall::Slice), StateError>> + use<> {
        use std::ops::Bound;
        let upper = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Included(start), upper);
        let iter = match view {
            Some(view) => view.range::<&[u8], _>(&self.records, bounds),
            None => self.records.range::<&[u8], _>(bounds),
        };
        let path = self.path.clone();
        iter.map(move |guard| guard.into_inner().map_err(|error| StateError::storage(&path, error)))
    }

    /// Writes all or nothing.
    pub fn write(&self, changes: impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>) -> Result<(), StateError> {
        let mut batch = self.database.batch();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&self.records, key, value),
                None => batch.remove(&self.records, key),
            }
        }
        batch.commit().map_err(|error| self.failed(error))
    }

    /// How many records there are, roughly and never too few by much.
    pub fn approximate_records(&self) -> u64 {
        self.records.approximate_len() as u64
    }

    /// Makes everything written so far durable.
    pub fn persist(&self) -> Result<(), StateError> {
        self.database.persist(PersistMode::SyncAll).map_err(|error| self.failed(error))
    }

    /// Fills an empty store with records that `records` gives in key order.
    pub fn fill<T>(
        &self,
        records: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> std::io::Result<()>) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let mut ingestion = self.records.start_ingestion().map_err(|error| self.failed(error))?;
        let given = records(&mut |key, value| ingestion.write(key, value).map_err(std::io::Error::other))?;
        ingestion.finish().map_err(|error| self.failed(error))?;
        Ok(given)
    }
}

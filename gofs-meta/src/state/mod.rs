//! The state: every record that the EditLog's entries made, ordered, on disk, with a cache.
//!
//! Owns the records; [`StateStore::apply`] is the only writer and has one caller, the EditLog. The
//! position of the last applied entry is in the same atomic batch as what it changed, so after a
//! crash the log is replayed from exactly there. Reads see the newest state and never fail
//! silently: a damaged record is an error, named in the log.

mod apply;
mod backup;
mod cache;
mod disk;
mod image;
mod key;
mod ranges;
mod read;
mod record;
mod repair;
mod restored;
mod slices;
mod snapshot;
mod verify;
mod view;

#[cfg(test)]
mod repair_tests;
#[cfg(test)]
mod restored_tests;
#[cfg(test)]
mod tests;

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use gofs_tree::{EditIndex, FsError};
use parking_lot::{Mutex, RwLock};

use cache::Cache;
use disk::Disk;
use key::Key;
use record::Record;
use view::Changes;

pub(crate) use apply::LogEntry;
pub(crate) use snapshot::{SnapshotFile, SnapshotHead};

pub use backup::{Backup, BackupHead, BackupNamespace, verify_backup};
pub use record::{ChunkRecord, LogPosition, NamespaceRecord, ServerRecord};
pub use view::TreeView;

/// Why the state cannot be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StateError {
    /// A record's bytes are not what was written.
    #[error(
        "state store {}: record {key} is damaged: {reason}. Stop this MetaServer, delete its data directory and \
         start it again: it fetches everything from the others. Where it is the only one, restore a backup",
        path.display()
    )]
    Damaged {
        /// The store's directory.
        path: PathBuf,
        /// The record's key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// What a power cut left of it cannot be read. The EditLog, and the Snapshot before it, have everything.
    #[error("state store {}: torn: {reason}", path.display())]
    Torn {
        /// The store's directory.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// The store failed.
    #[error("state store {}: {reason}", path.display())]
    Storage {
        /// The store's directory.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
}

impl StateError {
    fn storage(path: &Path, error: impl std::fmt::Display) -> Self {
        StateError::Storage { path: path.to_owned(), reason: error.to_string() }
    }
}

/// How much memory the store may take.
#[derive(Clone, Copy, Debug)]
pub struct StateConfig {
    /// Decoded records.
    pub record_cache_bytes: usize,
    /// Blocks of the store's files.
    pub block_cache_bytes: u64,
}

impl Default for StateConfig {
    fn default() -> Self {
        StateConfig { record_cache_bytes: 256 << 20, block_cache_bytes: 128 << 20 }
    }
}

/// The state store. Clones share it.
#[derive(Clone)]
pub struct StateStore {
    shared: Arc<Shared>,
}

struct Shared {
    /// Holds one directory `state-N` for each generation; `CURRENT` names the valid one.
    dir: PathBuf,
    config: StateConfig,
    /// Replaced as a whole when a Snapshot is installed. `None` once closed.
    disk: RwLock<Option<Arc<Disk>>>,
    cache: Cache,
    /// Taken by whoever changes the records.
    writer: Mutex<()>,
    applied: AtomicU64,
}

impl StateStore {
    /// Opens the store in `dir`, empty if it is new.
    pub fn open(dir: &Path, config: StateConfig) -> Result<Self, StateError> {
        let disk = snapshot::open_current(dir, config)?;
        let shared = Shared {
            dir: dir.to_owned(),
            config,
            disk: RwLock::new(Some(Arc::new(disk))),
            cache: Cache::new(config.record_cache_bytes),
            writer: Mutex::new(()),
            applied: AtomicU64::new(0),
        };
        let store = StateStore { shared: Arc::new(shared) };
        let position = store.position()?;
        store.shared.applied.store(position.map_or(0, |at| at.index), Ordering::Release);
        Ok(store)
    }

    /// Puts a new generation in the place of one that cannot be opened, with what a Snapshot has, or empty. What the EditLog has
    /// beyond that is to be applied anew. On error nothing has changed.
    pub(crate) fn make_anew(
        dir: &Path,
        config: StateConfig,
        snapshot: Option<&SnapshotFile>,
    ) -> Result<Self, StateError> {
        snapshot::make_anew(dir, config, snapshot)?;
        StateStore::open(dir, config)
    }

    /// The last EditLog entry that is in the state; 0 when none is.
    pub fn applied(&self) -> EditIndex {
        EditIndex(self.shared.applied.load(Ordering::Acquire))
    }

    /// Bytes that the record cache holds.
    pub fn cache_bytes(&self) -> usize {
        self.shared.cache.bytes()
    }

    /// Position of the last applied entry; `None` when nothing was ever applied.
    pub(crate) fn position(&self) -> Result<Option<LogPosition>, StateError> {
        match self.shared.get(key::APPLIED)? {
            Some(Record::Applied(at)) => Ok(Some(at)),
            Some(_) => Err(self.shared.misplaced(key::APPLIED)),
            None => Ok(None),
        }
    }

    /// Who the MetaServers are, as raft wrote it.
    pub(crate) fn membership(&self) -> Result<Option<Bytes>, StateError> {
        match self.shared.get(key::MEMBERSHIP)? {
            Some(Record::Membership(bytes)) => Ok(Some(bytes)),
            Some(_) => Err(self.shared.misplaced(key::MEMBERSHIP)),
            None => Ok(None),
        }
    }

    /// Makes everything durable and lets go of the files. Reads fail from then on.
    pub(crate) fn close(&self) -> Result<(), StateError> {
        let _writer = self.shared.writer.lock();
        let Some(disk) = self.shared.disk.write().take() else { return Ok(()) };
        self.shared.cache.clear();
        disk.persist()
    }
}

/// What a refused read of the state is to the file system. The one place that logs it.
fn refuse(error: &StateError) -> FsError {
    tracing::error!(%error, "the state store cannot be read");
    FsError::Io
}

impl Shared {
    fn disk(&self) -> Result<Arc<Disk>, StateError> {
        self.disk
            .read()
            .clone()
            .ok_or_else(|| StateError::storage(&self.dir, "closed: this MetaServer is stopping"))
    }

    fn damaged(&self, key: &[u8], reason: impl std::fmt::Display) -> StateError {
        let path = self.disk.read().as_ref().map_or(&*self.dir, |disk| disk.path()).to_owned();
        StateError::Damaged { path, key: key::show(key), reason: reason.to_string() }
    }

    /// A record of another kind than its key says: cannot come from `open`.
    fn misplaced(&self, key: &[u8]) -> StateError {
        self.damaged(key, "another kind of record than its key says")
    }

    fn decode(&self, key: &[u8], value: &[u8]) -> Result<Record, StateError> {
        record::open(key, value).map_err(|damage| self.damaged(key, damage))
    }

    /// The newest record of that key.
    fn get(&self, key: &[u8]) -> Result<Option<Record>, StateError> {
        let miss = match self.cache.get(key) {
            Ok(record) => return Ok(record),
            Err(miss) => miss,
        };
        let record = match self.disk()?.get(None, key)? {
            Some(value) => Some(self.decode(key, &value)?),
            None => None,
        };
        self.cache.fill(&miss, key, record.clone());
        Ok(record)
    }

    /// The newest records with `start <= key < end`, in order, at most `limit`.
    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Key, Record)>, StateError> {
        self.scan_over(&Changes::new(), start, end, limit)
    }

    /// The same with changes laid over the stored records.
    fn scan_over(
        &self,
        changes: &Changes,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StateError> {
        if start >= end {
            return Ok(Vec::new());
        }
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Included(start), Bound::Excluded(end));
        let mut changed = changes.range::<[u8], _>(bounds).peekable();
        let mut found = Vec::new();
        let mut take_changed = |found: &mut Vec<_>, upto: Option<&[u8]>, limit: usize| {
            while found.len() < limit
                && let Some((key, record)) =
                    changed.next_if(|(key, _)| upto.is_none_or(|upto| key[..] < *upto))
            {
                found.extend(record.clone().map(|record| (key.clone(), record)));
            }
        };
        for pair in self.disk()?.range(None, start, end) {
            let (key, value) = pair?;
            take_changed(&mut found, Some(&key), limit);
            if found.len() >= limit {
                return Ok(found);
            }
            // A stored record that was changed comes from the changes.
            if !changes.contains_key(&key[..]) {
                let record = self.decode(&key, &value)?;
                found.push((key.to_vec(), record));
            }
        }
        take_changed(&mut found, None, limit);
        Ok(found)
    }
}

//! One data directory.
//!
//! Small chunks and overwritten blocks are in the log; blocks that fill holes of large chunks go straight to
//! the chunk's own file. Nothing that was ever durable is overwritten before its replacement is durable in the
//! log, so neither a killed process nor a power cut makes a block unreadable (docs/decisions/0010).
//!
//! Locks, in this order: the gate, a chunk's state, the map of chunks, the log's writer. Whoever appends to the log and
//! changes a state accordingly holds the gate for reading; the index is copied under the gate held for
//! writing, and so is the state at exactly one point of the log.

mod checkpoint;
mod clean;
mod dirty;
mod open;
mod read;
mod write;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use gofs_tree::{ChunkId, ChunkVersion};
use lru::LruCache;
use parking_lot::{Mutex, RwLock};

pub use open::OpenError;
pub use read::{ChunkStat, Verified};
pub use write::{Ack, BeforeAck, Data, MayWrite, WriteMode};

use super::StoreOptions;
use super::changes::{Changes, ChunkInfo};
use super::chunk::{ChunkState, Doubt, Life};
use super::distrust;
use super::error::StoreError;
use super::home::{Home, HomeKey};
use super::identity::Claim;
use super::log::{Appended, Change, Log, Lsn, Tail};
use super::sys::{self, Space};

/// Read errors after which a directory is taken out.
const READ_ERRORS_MAX: u64 = 10;
/// For how long a measurement of free space is good.
const SPACE_FRESH: Duration = Duration::from_millis(200);
/// Files of large chunks kept open.
const OPEN_HOMES: usize = 512;
/// Damaged blocks remembered, so that each is counted once.
const CORRUPT_KNOWN_MAX: usize = 100_000;

/// One chunk with its lock.
#[derive(Default)]
struct Cell {
    state: RwLock<ChunkState>,
    /// Some block failed its checksum since it was last seen whole.
    corrupt: AtomicBool,
    /// How often one did. Counted under the lock, shared or not.
    corrupt_reads: AtomicU64,
}

/// A chunk is counted as clean when nothing was written to it for so long.
const DIRTY_FOR: Duration = Duration::from_secs(30);

/// How a disk is, for the heartbeat.
#[derive(Clone, Debug)]
pub struct DiskStatus {
    /// Data directory.
    pub path: PathBuf,
    /// Bytes in all.
    pub capacity_bytes: u64,
    /// Bytes that chunks may still take.
    pub free_bytes: u64,
    /// Why it is out of service.
    pub error: Option<String>,
    /// When the scrubber last saw it whole; 0 = never.
    pub last_scrub_unix_s: u64,
}

/// One data directory, open.
pub struct Disk {
    path: PathBuf,
    id: u64,
    options: StoreOptions,
    reserve_bytes: u64,
    chunks: RwLock<HashMap<ChunkId, Arc<Cell>>>,
    gate: RwLock<()>,
    log: Log,
    homes: Mutex<LruCache<HomeKey, Arc<Home>>>,
    /// Files whose names are not durable yet.
    new_homes: Mutex<HashSet<HomeKey>>,
    /// Files of deleted chunks, to be removed once the deletion is durable.
    condemned: Mutex<Vec<(Lsn, HomeKey)>>,
    space: Mutex<(Instant, Space, u64)>,
    failed: OnceLock<String>,
    read_errors: AtomicU64,
    corrupt_blocks: AtomicU64,
    corrupt_known: Mutex<HashSet<(ChunkId, u32)>>,
    last_scrub_unix_s: AtomicU64,
    /// It is not in the index yet.
    scrub_untold: AtomicBool,
    /// Dirty chunks, with the time of the last write.
    dirty: Mutex<HashMap<ChunkId, Instant>>,
    indexes: Mutex<Vec<(u64, Tail)>>,
    /// Blocks written since the last index.
    blocks_since_index: AtomicU64,
    bytes_since_index: AtomicU64,
    changes: Arc<Changes>,
    claim: Mutex<Option<Claim>>,
}

impl Disk {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is in service.
    pub fn is_up(&self) -> bool {
        self.failed.get().is_none()
    }

    fn check_up(&self) -> Result<(), StoreError> {
        match self.failed.get() {
            None => Ok(()),
            Some(why) => Err(StoreError::DiskFailed { disk: self.path.clone(), why: why.clone() }),
        }
    }

    /// Takes the directory out of service: what it holds cannot be trusted any more.
    fn fail(&self, error: &StoreError) {
        if self.failed.set(error.to_string()).is_ok() {
            tracing::error!(disk = %self.path.display(), %error, "data directory taken out of service");
            self.changes.push_all();
            distrust::mark(&self.path, &self.options.watch);
        }
    }

    /// A failed change: a full disk is refused, what the host lacks is an error of the moment,
    /// anything else takes the directory out.
    fn change_error(&self, what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        move |error| {
            let passing = is_passing(&error);
            let error = StoreError::io(what, path)(error);
            match error {
                StoreError::NoSpace { .. } => StoreError::NoSpace { disk: self.path.clone() },
                error if passing => error,
                error => {
                    self.fail(&error);
                    error
                }
            }
        }
    }

    /// An error that takes the directory out, whatever the reason. Of a sync: the kernel may have dropped what it
    /// could not write, and would call the next sync a success.
    fn final_error(&self, what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        move |source| {
            let error = StoreError::Io { what, path: path.to_owned(), source };
            self.fail(&error);
            error
        }
    }

    /// How it is.
    pub fn status(&self) -> DiskStatus {
        let (space, error) = match (self.failed.get(), sys::space(&self.path)) {
            (Some(why), space) => (space.ok(), Some(why.clone())),
            (None, Ok(space)) => (Some(space), None),
            (None, Err(error)) => (None, Some(error.to_string())),
        };
        let space = space.unwrap_or(Space { capacity_bytes: 0, free_bytes: 0 });
        let usable = if error.is_some() { 0 } else { space.free_bytes.saturating_sub(self.reserve_bytes) };
        DiskStatus {
            path: self.path.clone(),
            capacity_bytes: space.capacity_bytes,
            free_bytes: usable,
            error,
            last_scrub_unix_s: self.last_scrub_unix_s.load(Ordering::Relaxed),
        }
    }

    /// Bytes that chunks may still take, measured a moment ago.
    pub fn free_bytes(&self) -> u64 {
        let mut space = self.space.lock();
        if space.0.elapsed() > SPACE_FRESH || space.2 > self.reserve_bytes / 4 {
            match sys::space(&self.path) {
                Ok(now) => *space = (Instant::now(), now, 0),
                Err(_) => return 0,
            }
        }
        space.1.free_bytes.saturating_sub(self.reserve_bytes).saturating_sub(space.2)
    }

    /// Refuses what would take the reserve, which deletions and the log need.
    fn admit(&self, bytes: u64) -> Result<(), StoreError> {
        if self.free_bytes() < bytes {
            return Err(StoreError::NoSpace { disk: self.path.clone() });
        }
        self.space.lock().2 += bytes;
        Ok(())
    }

    /// Damaged blocks found since the start.
    pub fn corrupt_blocks(&self) -> u64 {
        self.corrupt_blocks.load(Ordering::Acquire)
    }

    fn cell(&self, chunk: ChunkId) -> Option<Arc<Cell>> {
        self.chunks.read().get(&chunk).cloned()
    }

    /// Whether it holds the chunk, staged ones included.
    pub fn holds(&self, chunk: ChunkId) -> bool {
        self.chunks.read().contains_key(&chunk)
    }

    /// How many chunks it holds.
    pub fn chunk_count(&self) -> usize {
        self.chunks.read().len()
    }

    /// Ids of all chunks, in order.
    pub fn chunk_ids(&self) -> Vec<ChunkId> {
        let mut ids: Vec<ChunkId> = self.chunks.read().keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// A chunk as the MetaServer is to know it; `None` where it is not live.
    pub fn info(&self, chunk: ChunkId) -> Option<ChunkInfo> {
        let cell = self.cell(chunk)?;
        let state = cell.state.read();
        state.is_live().then(|| cell.info(chunk, &state))
    }

    fn tell(&self, chunk: ChunkId, cell: &Cell, state: &ChunkState) {
        if matches!(state.life, Life::Live | Life::Gone) {
            self.changes.push(cell.info(chunk, state));
        }
    }

    /// Appends a record whose change the caller then makes to the state. The caller holds the gate.
    fn append(&self, chunk: ChunkId, change: &Change, data: &[&[u8]]) -> Result<Appended, StoreError> {
        self.check_up()?;
        let appended = self
            .log
            .append(chunk, change, data)
            .map_err(self.change_error("appending to the log in", &self.path))?;
        let bytes: usize = data.iter().map(|d| d.len()).sum();
        self.bytes_since_index.fetch_add(bytes as u64 + 64, Ordering::Relaxed);
        Ok(appended)
    }

    fn home_root(&self) -> PathBuf {
        self.path.join(CHUNKS_DIR)
    }

    /// The file of a large chunk, if it is open.
    fn open_home(&self, key: HomeKey) -> Option<Arc<Home>> {
        self.homes.lock().get(&key).cloned()
    }

    /// The open file of a large chunk.
    fn home(&self, key: HomeKey) -> io::Result<Arc<Home>> {
        if let Some(home) = self.open_home(key) {
            return Ok(home);
        }
        let home = Arc::new(Home::open(&self.home_root(), key, &self.options.watch)?);
        self.homes.lock().put(key, home.clone());
        Ok(home)
    }

    /// The file of a large chunk, of which the caller holds the state. One that is missing or another's is
    /// damage to the chunk.
    fn home_of(&self, chunk: ChunkId, cell: &Cell, state: &ChunkState) -> Result<Arc<Home>, StoreError> {
        let key = HomeKey { chunk, generation: state.home };
        self.home(key).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidData => {
                self.read_error(chunk, cell, state, 0, &error)
            }
            _ => self.change_error("opening", &key.path(&self.home_root()))(error),
        })
    }

    /// Brings what was written to these chunks so far onto stable storage. Those not here are skipped.
    pub fn sync(&self, chunks: &[ChunkId]) -> Result<(), StoreError> {
        self.check_up()?;
        let mut last = Lsn(0);
        for chunk in chunks {
            last = last.max(self.sync_chunk(*chunk)?);
        }
        self.sync_log(last)
    }

    /// Syncs what is in the chunk's own file; up to which record the log is to be synced for the rest.
    fn sync_chunk(&self, chunk: ChunkId) -> Result<Lsn, StoreError> {
        let Some(cell) = self.cell(chunk) else { return Ok(Lsn(0)) };
        let (home, key, written) = {
            let state = cell.state.read();
            if state.home == 0 || state.home_written <= state.home_synced || state.life == Life::Gone {
                return Ok(state.last);
            }
            let key = HomeKey { chunk, generation: state.home };
            (self.home_of(chunk, &cell, &state)?, key, state.home_written)
        };
        // Without the lock: reads and writes go on meanwhile.
        self.sync_home(&home, key)?;
        let _gate = self.gate.read();
        let mut state = cell.state.write();
        // A chunk deleted meanwhile has nothing to keep.
        if state.life == Life::Gone { Ok(state.last) } else { self.home_synced(chunk, &mut state, written) }
    }

    fn sync_home(&self, home: &Home, key: HomeKey) -> Result<(), StoreError> {
        home.sync().map_err(self.final_error("syncing", home.path()))?;
        if self.new_homes.lock().contains(&key) {
            let dir = key.dir(&self.home_root());
            super::file::sync_dir(&dir, &self.options.watch).map_err(|error| match is_passing(&error) {
                // It was not opened.
                true => self.change_error("syncing", &dir)(error),
                false => self.final_error("syncing", &dir)(error),
            })?;
            self.new_homes.lock().remove(&key);
        }
        Ok(())
    }

    fn home_synced(&self, chunk: ChunkId, state: &mut ChunkState, upto: Lsn) -> Result<Lsn, StoreError> {
        let appended = self.append(chunk, &Change::HomeSynced(upto), &[])?;
        state.home_synced = state.home_synced.max(upto);
        state.last = appended.lsn;
        Ok(appended.lsn)
    }

    fn sync_log(&self, lsn: Lsn) -> Result<(), StoreError> {
        self.log.sync(lsn).map_err(self.final_error("syncing the log in", &self.path))
    }

    /// See [`Store::set_version`](crate::store::Store::set_version).
    pub fn set_version(
        &self,
        chunk: ChunkId,
        from: ChunkVersion,
        to: ChunkVersion,
        doubt: Doubt,
    ) -> Result<(), StoreError> {
        self.check_up()?;
        let cell = self.cell(chunk).ok_or(StoreError::NoChunk { chunk })?;
        let lsn = {
            let _gate = self.gate.read();
            let mut state = cell.state.write();
            if !state.is_live() {
                return Err(StoreError::NoChunk { chunk });
            }
            if state.doubtful && doubt == Doubt::Refused {
                return Err(StoreError::Doubtful { chunk });
            }
            if state.version == to {
                state.last
            } else if state.version != from {
                return Err(StoreError::Stale { chunk, stored: state.version, asked: from });
            } else {
                let lsn = self.append(chunk, &Change::SetVersion(to), &[])?.lsn;
                state.version = to;
                state.doubtful = false;
                state.last = lsn;
                self.tell(chunk, &cell, &state);
                lsn
            }
        };
        self.sync_log(lsn)
    }

    /// Deletes the chunk where its version is at most `version` (`None`: whatever it is); durable when this
    /// returns. A chunk that is not here is deleted already.
    pub fn delete(&self, chunk: ChunkId, version: Option<ChunkVersion>) -> Result<(), StoreError> {
        self.remove(chunk, version, false)
    }

    /// Removes a staged chunk, and no other.
    pub fn discard(&self, chunk: ChunkId) -> Result<(), StoreError> {
        self.remove(chunk, None, true)
    }

    fn remove(&self, chunk: ChunkId, version: Option<ChunkVersion>, staged: bool) -> Result<(), StoreError> {
        self.check_up()?;
        let Some(cell) = self.cell(chunk) else { return Ok(()) };
        let lsn = {
            let _gate = self.gate.read();
            let mut state = cell.state.write();
            if matches!(state.life, Life::Gone | Life::Unborn) || (staged && state.life != Life::Staged) {
                return Ok(());
            }
            if let Some(asked) = version.filter(|version| state.version > *version) {
                return Err(StoreError::Stale { chunk, stored: state.version, asked });
            }
            self.bury(chunk, &cell, &mut state)?
        };
        self.sync_log(lsn)?;
        self.remove_condemned();
        Ok(())
    }

    /// Takes a chunk away. The caller holds the gate.
    fn bury(&self, chunk: ChunkId, cell: &Cell, state: &mut ChunkState) -> Result<Lsn, StoreError> {
        let lsn = self.append(chunk, &Change::Delete, &[])?.lsn;
        let told = state.is_live();
        self.dirty.lock().remove(&chunk);
        if state.home != 0 {
            let key = HomeKey { chunk, generation: state.home };
            self.homes.lock().pop(&key);
            self.condemned.lock().push((lsn, key));
        }
        state.slots.clear();
        state.life = Life::Gone;
        self.chunks.write().remove(&chunk);
        if told {
            self.tell(chunk, cell, state);
        }
        Ok(lsn)
    }

    /// Removes the files of chunks whose deletion is durable.
    fn remove_condemned(&self) {
        let durable = self.log.durable();
        let ripe: Vec<_> = self.condemned.lock().extract_if(.., |(lsn, _)| *lsn <= durable).collect();
        for (_, key) in ripe {
            let path = key.path(&self.home_root());
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "file of a deleted chunk stays; the next start removes it");
            }
        }
    }

    /// Makes a staged chunk visible; durable when this returns.
    pub fn publish(&self, chunk: ChunkId) -> Result<(), StoreError> {
        self.sync(&[chunk])?;
        let cell = self.cell(chunk).ok_or(StoreError::NoChunk { chunk })?;
        let lsn = {
            let _gate = self.gate.read();
            let mut state = cell.state.write();
            if state.life != Life::Staged {
                return Err(StoreError::NoChunk { chunk });
            }
            let lsn = self.append(chunk, &Change::Publish, &[])?.lsn;
            state.life = Life::Live;
            state.dirty = false;
            state.last = lsn;
            lsn
        };
        self.sync_log(lsn)?;
        let state = cell.state.read();
        self.tell(chunk, &cell, &state);
        Ok(())
    }

    /// What is regularly to be done: bounds the time for which a write is not durable, removes
    /// files of deleted chunks, and keeps the log short.
    pub fn maintain(&self) -> Result<(), StoreError> {
        self.check_up()?;
        self.sync_log(Lsn(self.log.tail().next.0 - 1))?;
        self.remove_condemned();
        self.clean_idle(DIRTY_FOR)?;
        if self.index_is_due() {
            self.checkpoint()?;
        }
        let _gate = self.gate.read();
        self.log.mark().map_err(self.change_error("appending to the log in", &self.path))
    }

    /// Brings everything onto stable storage and writes an index that is all the next start has to read.
    pub fn close(&self) -> Result<(), StoreError> {
        self.check_up()?;
        self.clean_idle(Duration::ZERO)?;
        self.checkpoint()
    }

    /// Refuses everything from now on, and lets another process have the directory.
    pub fn retire(&self) {
        // An error: it is out of service already.
        let _ = self.failed.set("it was closed".to_owned());
        // Whoever is changing something has the gate.
        let _gate = self.gate.write();
        self.claim.lock().take();
    }

    /// The scrubber has seen every block.
    pub fn set_scrubbed(&self, unix_s: u64) {
        self.last_scrub_unix_s.store(unix_s, Ordering::Relaxed);
        self.scrub_untold.store(true, Ordering::Relaxed);
    }
}

/// Whether an error is of the moment: the host or the process has no file or memory left, and nothing was done.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

impl Cell {
    fn info(&self, chunk: ChunkId, state: &ChunkState) -> ChunkInfo {
        ChunkInfo {
            chunk,
            version: state.version,
            gone: state.life == Life::Gone,
            corrupt: state.damaged || self.corrupt.load(Ordering::Relaxed),
            doubtful: state.doubtful,
        }
    }
}

/// Directory of the log in a data directory.
const LOG_DIR: &str = "log";
/// Directory of the files of large chunks in a data directory.
const CHUNKS_DIR: &str = "chunks";

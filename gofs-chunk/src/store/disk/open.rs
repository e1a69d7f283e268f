//! Opening a data directory: the newest whole index, the log after it, and what a crash left.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use gofs_tree::ChunkId;
use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use super::super::StoreOptions;
use super::super::block::{BLOCK_LEN, BlockSum};
use super::super::changes::Changes;
use super::super::chunk::{ChunkState, Life, Place};
use super::super::distrust;
use super::super::error::StoreError;
use super::super::file::{Watch, sync_dir};
use super::super::home::{Home, HomeKey, Table};
use super::super::identity::Claim;
use super::super::index::{Index, list_indexes};
use super::super::log::{self, Appended, Change, Log, Lsn, Position, Replay, ReplayError, Tail};
use super::super::sys;
use super::write::slots;
use super::{CHUNKS_DIR, Cell, Disk, LOG_DIR, OPEN_HOMES};

/// Why a data directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A system call failed.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The log is damaged.
    #[error("{0}; empty the directory to have its chunks copied from other servers")]
    Log(#[from] ReplayError),
    /// No index is whole.
    #[error(
        "{}: no whole index file: empty the directory to have its chunks copied from other servers",
        path.display()
    )]
    NoIndex {
        /// Data directory.
        path: PathBuf,
    },
    /// Finishing what a crash left failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { what, path: path.to_owned(), source }
}

/// A failed sync of what an earlier process has written to the directory: the next start's would not fail.
fn sync_error(dir: &Path, watch: &Watch, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |error| {
        distrust::mark(dir, watch);
        io_error("syncing", path)(error)
    }
}

/// What replay gathers.
#[derive(Default)]
struct Recovered {
    chunks: HashMap<ChunkId, ChunkState>,
    /// Tables whose way into the chunk's own file is not known to have ended.
    tables: HashMap<ChunkId, BTreeMap<u32, Vec<u8>>>,
    /// Chunks that got their file in what was replayed; its name may not be durable.
    made: HashSet<ChunkId>,
    records: u64,
}

impl Recovered {
    fn replay(&mut self, item: Replay<'_>) {
        match item {
            Replay::Record { lsn, chunk, change, data_at, data } => {
                self.records += 1;
                self.record(lsn, chunk, change, data_at, data);
            }
            Replay::Lost(chunk) => {
                self.records += 1;
                tracing::error!(%chunk, "a log record of this chunk is damaged");
                self.damage(chunk);
            }
        }
    }

    /// Whether anything has to be finished that is in the index.
    fn is_unfinished(&self) -> bool {
        self.chunks.values().any(|state| state.life == Life::Staged || !state.is_home_synced())
    }

    fn damage(&mut self, chunk: ChunkId) {
        let state =
            self.chunks.entry(chunk).or_insert_with(|| ChunkState { life: Life::Live, ..Default::default() });
        state.damaged = true;
    }

    fn record(&mut self, lsn: Lsn, chunk: ChunkId, change: Change, data_at: Position, data: &[u8]) {
        if change == Change::Mark {
            return;
        }
        let create = match &change {
            Change::Write { create, .. } => *create,
            Change::Create(create) => Some(*create),
            _ => None,
        };
        if let Some(create) = create {
            let life = if create.staged { Life::Staged } else { Life::Live };
            self.chunks.insert(
                chunk,
                ChunkState { version: create.version, life, dirty: true, ..Default::default() },
            );
            self.tables.remove(&chunk);
        }
        let Some(state) = self.chunks.get_mut(&chunk) else {
            // The record that made it is lost, or it was deleted while a sync was under way.
            if !matches!(change, Change::HomeSynced(_) | Change::Delete) {
                self.damage(chunk);
            }
            return;
        };
        match change {
            Change::Write { blocks, home, first, written, .. } => {
                if state.home != home {
                    self.made.insert(chunk);
                }
                state.home = home;
                let appended = Appended { lsn, data: data_at };
                state.write(lsn, first, slots(first, &written, appended), blocks);
            }
            Change::Create(_) => state.last = lsn,
            Change::Punch { range, blocks } => state.punch(lsn, range, blocks),
            Change::SetVersion(version) => {
                state.version = version;
                state.doubtful = false;
                state.last = lsn;
            }
            Change::Delete => {
                self.chunks.remove(&chunk);
                self.tables.remove(&chunk);
            }
            Change::Publish => {
                state.life = Life::Live;
                state.dirty = false;
                state.last = lsn;
            }
            Change::HomeSynced(upto) => {
                state.home_synced = state.home_synced.max(upto);
                state.last = lsn;
            }
            Change::Tables { home, groups } => {
                state.last = lsn;
                if home == state.home {
                    let tables = self.tables.entry(chunk).or_default();
                    for (group, bytes) in groups.into_iter().zip(data.chunks_exact(BLOCK_LEN)) {
                        tables.insert(group, bytes.to_vec());
                    }
                }
            }
            Change::Applied => {
                state.applied(lsn);
                self.tables.remove(&chunk);
            }
            Change::Dirty | Change::Clean => {
                state.dirty = change == Change::Dirty;
                state.last = lsn;
            }
            Change::Mark => {}
        }
    }
}

impl Disk {
    /// Opens a directory that is claimed.
    pub fn open(
        path: &Path,
        disk: u64,
        claim: Claim,
        options: &StoreOptions,
        changes: Arc<Changes>,
    ) -> Result<Disk, OpenError> {
        let started = Instant::now();
        let mut options = options.clone();
        options.boot = options.boot.on(path);
        let space = sys::space(path).map_err(io_error("measuring", path))?;
        options.segment_bytes = segment_bytes(options.segment_bytes, space.capacity_bytes);
        let (log_dir, chunks_dir) = (path.join(LOG_DIR), path.join(CHUNKS_DIR));
        for dir in [&log_dir, &chunks_dir] {
            std::fs::create_dir_all(dir).map_err(io_error("making", dir))?;
        }
        sync_dir(path, &options.watch).map_err(io_error("syncing", path))?;

        let homes = list_homes(&chunks_dir).map_err(io_error("listing", &chunks_dir))?;
        let index = load_index(path, disk, &log_dir, !homes.is_empty())?;
        let mut recovered = Recovered::default();
        let distrusted = distrust::is_marked(path).map_err(io_error("reading", path))?;
        let lossy = distrusted || index.as_ref().is_some_and(|index| index.boot != options.boot);
        let loaded = index.as_ref().map(|index| (index.number, index.tail));
        let (number, from, last_scrub_unix_s) = match index {
            Some(index) => {
                recovered.chunks.extend(index.chunks);
                (index.number, index.tail, index.last_scrub_unix_s)
            }
            None => (0, Tail { at: Position { segment: 0, offset: 0 }, next: Lsn(1) }, 0),
        };
        let end = log::replay::<OpenError>(&log_dir, disk, from, |item| {
            recovered.replay(item);
            Ok(())
        })?;
        for segment in log::segments_after(&log_dir, end.at.segment).map_err(io_error("listing", &log_dir))? {
            std::fs::remove_file(&segment).map_err(io_error("removing", &segment))?;
        }
        // A killed process leaves records in the page cache only.
        log::sync_from(&log_dir, from.at.segment, &options.watch).map_err(sync_error(
            path,
            &options.watch,
            &log_dir,
        ))?;
        let log = Log::open(&log_dir, disk, options.segment_bytes, end, &options.watch)
            .map_err(io_error("opening", &log_dir))?;

        // Anything that is decided here is written down, so that it is decided once, whatever the next crash leaves.
        let changed = lossy || recovered.records > 0 || recovered.is_unfinished();
        let finish =
            Finish { path, chunks_dir: &chunks_dir, options: &options, homes: &homes, log: &log, lossy };
        finish.all(&mut recovered)?;
        for state in recovered.chunks.values_mut() {
            state.doubtful |= lossy && state.dirty;
        }
        let dirty = recovered
            .chunks
            .iter()
            .filter(|(_, state)| state.dirty)
            .map(|(chunk, _)| (*chunk, started))
            .collect();
        let used: HashSet<HomeKey> = recovered
            .chunks
            .iter()
            .filter(|(_, state)| state.home != 0)
            .map(|(chunk, state)| HomeKey { chunk: *chunk, generation: state.home })
            .collect();
        let chunks: HashMap<ChunkId, Arc<Cell>> = recovered
            .chunks
            .into_iter()
            .map(|(chunk, state)| (chunk, Arc::new(Cell { state: RwLock::new(state), ..Cell::default() })))
            .collect();
        let opened = Disk {
            path: path.to_owned(),
            id: disk,
            reserve_bytes: options.reserve(space.capacity_bytes),
            options,
            chunks: RwLock::new(chunks),
            gate: RwLock::default(),
            log,
            homes: Mutex::new(LruCache::new(NonZeroUsize::new(OPEN_HOMES).expect("not 0"))),
            new_homes: Mutex::default(),
            condemned: Mutex::default(),
            space: Mutex::new((Instant::now(), space, 0)),
            failed: OnceLock::new(),
            read_errors: AtomicU64::new(0),
            corrupt_blocks: AtomicU64::new(0),
            corrupt_known: Mutex::default(),
            last_scrub_unix_s: AtomicU64::new(last_scrub_unix_s),
            scrub_untold: AtomicBool::new(false),
            dirty: Mutex::new(dirty),
            indexes: Mutex::new(loaded.into_iter().collect()),
            blocks_since_index: AtomicU64::new(0),
            bytes_since_index: AtomicU64::new(0),
            changes,
            claim: Mutex::new(Some(claim)),
        };
        if changed || number == 0 {
            opened.write_index()?;
        }
        distrust::unmark(path).map_err(io_error("removing from", path))?;
        for key in homes.difference(&used) {
            let path = key.path(&chunks_dir);
            std::fs::remove_file(&path).map_err(io_error("removing", &path))?;
        }
        tracing::info!(
            disk = %path.display(),
            chunks = opened.chunk_count(),
            records = recovered.records,
            ms = started.elapsed().as_millis() as u64,
            "data directory open"
        );
        Ok(opened)
    }
}

/// Small disks get small segments, so that preallocation does not take what chunks need.
fn segment_bytes(wanted: u32, capacity_bytes: u64) -> u32 {
    u32::try_from(capacity_bytes / 64).unwrap_or(u32::MAX).clamp(1 << 20, wanted.max(1 << 20)) & !0xfff
}

/// The newest whole index; `None` where the directory is new.
fn load_index(path: &Path, disk: u64, log_dir: &Path, has_homes: bool) -> Result<Option<Index>, OpenError> {
    let numbers = list_indexes(path).map_err(io_error("listing", path))?;
    for number in numbers.iter().rev() {
        match Index::load(path, disk, *number) {
            Ok(index) => return Ok(Some(index)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(disk = %path.display(), number, "index file is damaged, trying the one before");
            }
            Err(error) => return Err(io_error("reading the index in", path)(error)),
        }
    }
    let has_log = !log::segments_after(log_dir, 0).map_err(io_error("listing", log_dir))?.is_empty();
    if !numbers.is_empty() || has_log || has_homes {
        return Err(OpenError::NoIndex { path: path.to_owned() });
    }
    Ok(None)
}

/// The files of large chunks.
fn list_homes(chunks_dir: &Path) -> io::Result<HashSet<HomeKey>> {
    let mut homes = HashSet::new();
    for dir in std::fs::read_dir(chunks_dir)? {
        let dir = dir?.path();
        if dir.is_dir() {
            for entry in std::fs::read_dir(dir)? {
                homes.extend(entry?.file_name().to_str().and_then(HomeKey::parse));
            }
        }
    }
    Ok(homes)
}

/// What is to be done after the replay, before anyone may read.
struct Finish<'a> {
    path: &'a Path,
    chunks_dir: &'a Path,
    options: &'a StoreOptions,
    homes: &'a HashSet<HomeKey>,
    log: &'a Log,
    /// What was not synced may be lost. Else all that was written is there, and what is not is damage.
    lossy: bool,
}

impl Finish<'_> {
    fn all(&self, recovered: &mut Recovered) -> Result<(), OpenError> {
        // A copy that was not complete has no one who goes on with it.
        recovered.chunks.retain(|_, state| state.life != Life::Staged);
        let segments: HashSet<u32> = self.log.segments().into_iter().collect();
        for (chunk, state) in &mut recovered.chunks {
            let lost = state.slots.all().iter().any(|slot| match slot.place() {
                Place::Log(at) => !segments.contains(&at.segment),
                _ => false,
            });
            if lost {
                tracing::error!(%chunk, disk = %self.path.display(), "a log segment with blocks of this chunk is missing");
                state.damaged = true;
            }
            let key = HomeKey { chunk: *chunk, generation: state.home };
            if state.home == 0 || state.damaged {
                continue;
            }
            let tables = recovered.tables.remove(chunk).unwrap_or_default();
            if !self.homes.contains(&key) {
                self.without_file(key, state)?;
                continue;
            }
            if recovered.made.contains(chunk) {
                let dir = key.dir(self.chunks_dir);
                sync_dir(&dir, &self.options.watch).map_err(io_error("syncing", &dir))?;
            }
            // Nothing of a file that was never synced need be there, its header neither.
            let synced = state.table_end > 0 || state.home_synced > Lsn(0);
            if synced && tables.is_empty() && state.is_home_synced() {
                continue;
            }
            match Home::open(self.chunks_dir, key, &self.options.watch) {
                Ok(home) => self.finish_home(*chunk, state, &home, tables)?,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => self.bad_header(key, state)?,
                Err(error) => return Err(io_error("opening", &key.path(self.chunks_dir))(error)),
            }
        }
        Ok(())
    }

    fn finish_home(
        &self,
        chunk: ChunkId,
        state: &mut ChunkState,
        home: &Home,
        tables: BTreeMap<u32, Vec<u8>>,
    ) -> Result<(), OpenError> {
        for (group, bytes) in tables {
            if Table::decode(chunk, group, &bytes).is_none() {
                tracing::error!(%chunk, group, "checksums in the log are damaged");
                state.damaged = true;
                return Ok(());
            }
            home.write_table(group, &bytes).map_err(io_error("writing", home.path()))?;
        }
        if self.lossy {
            self.drop_lost(chunk, state, home)?;
        }
        home.sync().map_err(sync_error(self.path, &self.options.watch, home.path()))?;
        state.home_synced = state.home_written;
        Ok(())
    }

    /// Makes holes of the blocks that were written in place, were not synced, and do not have their bytes.
    fn drop_lost(&self, chunk: ChunkId, state: &mut ChunkState, home: &Home) -> Result<(), OpenError> {
        let mut lost = HashSet::new();
        let mut block = vec![0; BLOCK_LEN];
        for slot in state.slots.all().iter().filter(|slot| state.is_unsynced(**slot)) {
            home.read_blocks(slot.block, &mut block).map_err(io_error("reading", home.path()))?;
            if slot.sum() != Some(BlockSum::of(&block)) {
                lost.insert(slot.block);
            }
        }
        if !lost.is_empty() {
            // They had never been synced; before they were written there was nothing, and now there is nothing again.
            tracing::warn!(%chunk, blocks = lost.len(), disk = %self.path.display(), "writes that were not synced are lost");
            state.slots.retain(|slot| !lost.contains(&slot.block));
            state.blocks = state.blocks.saturating_sub(lost.len() as u32);
        }
        Ok(())
    }

    /// Whether the chunk's own file may have gone: nothing in it was ever synced.
    fn may_be_lost(&self, state: &ChunkState) -> bool {
        self.lossy && state.table_end == 0 && state.home_synced == Lsn(0)
    }

    /// A file that was never synced may be lost; one that holds durable blocks may not.
    fn without_file(&self, key: HomeKey, state: &mut ChunkState) -> Result<(), OpenError> {
        if !self.may_be_lost(state) {
            tracing::error!(chunk = %key.chunk, disk = %self.path.display(), "the file of this chunk is missing");
            state.damaged = true;
            return Ok(());
        }
        let before = state.slots.all().len();
        state.slots.retain(|slot| slot.place() != Place::Home);
        let lost = (before - state.slots.all().len()) as u32;
        state.blocks = state.blocks.saturating_sub(lost);
        let made = Home::create(self.chunks_dir, key, &self.options.watch).and_then(|home| home.sync());
        made.map_err(io_error("making", &key.path(self.chunks_dir)))?;
        let dir = key.dir(self.chunks_dir);
        sync_dir(&dir, &self.options.watch).map_err(io_error("syncing", &dir))
    }

    /// As [`Finish::without_file`]: the header of a file that was never synced may be lost.
    fn bad_header(&self, key: HomeKey, state: &mut ChunkState) -> Result<(), OpenError> {
        if self.may_be_lost(state) {
            let path = key.path(self.chunks_dir);
            std::fs::remove_file(&path).map_err(io_error("removing", &path))?;
        }
        self.without_file(key, state)
    }
}

impl Disk {
    /// The index as it is now, without carrying anything home.
    fn write_index(&self) -> Result<(), OpenError> {
        let mut indexes = self.indexes.lock();
        let number =
            list_indexes(&self.path).map_err(io_error("listing", &self.path))?.last().map_or(1, |n| n + 1);
        let index = Index {
            disk: self.id,
            boot: self.options.boot,
            number,
            tail: self.log.tail(),
            last_scrub_unix_s: self.last_scrub_unix_s.load(std::sync::atomic::Ordering::Relaxed),
            chunks: self
                .chunks
                .read()
                .iter()
                .map(|(chunk, cell)| (*chunk, cell.state.read().clone()))
                .collect(),
        };
        index.save(&self.path, &self.options.watch).map_err(io_error("writing the index in", &self.path))?;
        indexes.push((number, index.tail));
        Ok(())
    }
}

//! The contents of files that this client caches or has changed.
//!
//! Owns dirty bytes, clean bytes, chunk locations and the connections to ChunkServers; knows
//! nothing of leases: whoever calls holds them. A read sees every write before it. Bytes are
//! acknowledged by every current replica before the size that shows them is committed. What
//! cannot be written is reported once to every open handle and counted, never lost silently.
//! A crash of this process loses what was not flushed, and nothing else.
//!
//! `state`, `extents`, `chunks` and `readahead` decide and are sync; the rest does the I/O. `gather` lets small requests of many
//! files share frames.

mod chain;
mod chunks;
mod config;
mod errors;
mod extents;
mod fetch;
mod file;
mod flush;
mod gather;
mod links;
mod locate;
mod meta;
mod ranges;
mod read;
mod readahead;
mod resize;
mod retry;
mod seek;
mod state;
mod sync;
mod write;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod gather_tests;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dashmap::DashMap;
use gofs_proto::chunk::{Sync, Write};
use gofs_tree::{FsError, Ino, SessionId};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use chunks::{Chunks, Unsynced};
use file::{File, Totals};
use gather::{Gather, PATIENCE};
use state::{FileState, Geometry};

pub use config::DataConfig;
pub use errors::ErrorCursor;
pub use meta::{BoxFuture, ChunkLocation, Content, FileMeta, LocalAttr, Replica};

/// How often the background flusher looks for old changes.
const WRITE_BACK_PERIOD: Duration = Duration::from_millis(500);

/// A run this long is worth a write of its own while the file is still being written, bytes.
const EARLY_RUN_BYTES: u64 = 4 << 20;

/// Files that are not loaded of which it is remembered where their unsynced writes went.
const UNSYNCED_MAX: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();

/// What waits to be written, and what was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtyStats {
    /// Files with bytes, size or times that the servers do not have yet.
    pub files: u64,
    /// Bytes not yet acknowledged by ChunkServers or committed inline.
    pub bytes: u64,
    /// Clean bytes in the read cache.
    pub cached_bytes: u64,
    /// Bytes that could not be written, since the start.
    pub lost_bytes: u64,
}

/// What was written to a file and not synced before its lease was gone.
struct LeftUnsynced {
    chunks: Unsynced,
    /// The state that it was written in: a sync that goes on in that one knows of nothing that came later.
    by: Weak<File>,
}

/// The contents of the files of one mount.
pub struct FileData {
    config: DataConfig,
    meta: Arc<dyn FileMeta>,
    links: Arc<links::ChunkLinks>,
    writes: Gather<Write>,
    syncs: Gather<Sync>,
    files: DashMap<Ino, Arc<File>>,
    totals: Totals,
    errors: errors::StickyErrors,
    /// What was written to files that are not loaded, and not synced since.
    unsynced: Mutex<LruCache<Ino, LeftUnsynced>>,
    space_left: AtomicU64,
    /// Reads ahead under way.
    ahead: AtomicU64,
    flushers: Semaphore,
    kick: Arc<Notify>,
}

impl FileData {
    /// Starts the background flusher on the current tokio runtime; it ends with the last handle.
    pub fn new(config: DataConfig, meta: Arc<dyn FileMeta>) -> Arc<Self> {
        let period = WRITE_BACK_PERIOD.min(config.dirty_age / 4).max(Duration::from_millis(1));
        let kick = Arc::new(Notify::new());
        let links = Arc::new(links::ChunkLinks::new(config.cluster.clone(), config.round_trips.clone()));
        let data = Arc::new(FileData {
            writes: Gather::new(links.clone(), config.namespace, config.session.clone(), PATIENCE),
            syncs: Gather::new(links.clone(), config.namespace, config.session.clone(), PATIENCE),
            links,
            config,
            meta,
            files: DashMap::new(),
            totals: Totals::default(),
            errors: errors::StickyErrors::default(),
            unsynced: Mutex::new(LruCache::new(UNSYNCED_MAX)),
            space_left: AtomicU64::new(u64::MAX),
            ahead: AtomicU64::new(0),
            flushers: Semaphore::new(flush::flushers()),
            kick: kick.clone(),
        });
        tokio::spawn(FileData::write_back(Arc::downgrade(&data), kick, period));
        data
    }

    /// The session that the file was loaded in, as long as it is the one of `epoch`. `Io` where it was discarded since or given
    /// back: what is still under way for it is not for the next session, in which others may have changed the file.
    fn session_of(&self, file: &File, epoch: u64) -> Result<SessionId, FsError> {
        let session = (self.config.session)();
        // Looked at afterwards: files are discarded before the session is another.
        if file.look(|state| state.is_over(epoch)) { Err(FsError::Io) } else { Ok(session) }
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            chunk_size: self.config.chunk_size,
            inline_max: self.config.inline_max,
            // Well below the budget, or one writer would wait for its own run to get long.
            early_run_bytes: EARLY_RUN_BYTES.min(self.config.dirty_bytes / 4).max(1 << 16),
        }
    }

    fn file(&self, ino: Ino) -> Option<Arc<File>> {
        self.files.get(&ino).map(|file| file.value().clone())
    }

    /// After a grant: what the server says of the file. Local state that is newer stays.
    /// Must precede every other call on the inode, and follow `drop_clean` where the lease was lost between.
    pub fn load(&self, ino: Ino, content: Content) {
        let known = self.file(ino);
        match known {
            Some(file) => self.totals.change(&file, |state| state.load(content)),
            None => {
                self.files.entry(ino).or_insert_with(|| {
                    let mut state = FileState::new(ino, self.geometry(), content);
                    if let Some(left) = self.unsynced.lock().pop(&ino)
                        && state.in_chunks()
                    {
                        state.chunks.unsynced = left.chunks;
                    }
                    Arc::new(File::new(ino, state))
                });
            }
        }
    }

    /// Chunk 0 of a file whose bytes are all in it came with its attributes. What is known here already stays.
    pub fn learn_only_chunk(&self, ino: Ino, location: ChunkLocation) {
        let Some(file) = self.file(ino) else { return };
        self.totals.change(&file, |state| {
            if !state.has_news() && state.chunks.first_unknown(0, 1).is_some() {
                state.chunks.learn(0, 1, vec![location], self.config.chunk_size);
            }
        });
    }

    /// Whether `load` was called since the lease was last lost.
    pub fn is_loaded(&self, ino: Ino) -> bool {
        self.files.contains_key(&ino)
    }

    /// How long the file is, with what is newer here than at the server; `None` where it is not loaded.
    pub fn size(&self, ino: Ino) -> Option<u64> {
        Some(self.file(ino)?.look(FileState::size))
    }

    /// Attributes that are newer here than at the server.
    pub fn overlay(&self, ino: Ino) -> Option<LocalAttr> {
        self.file(ino)?.look(FileState::overlay)
    }

    /// The lease is lost: forgets clean bytes and locations. Dirty ones were flushed before (else they are
    /// kept, and the file stays loaded).
    pub fn drop_clean(&self, ino: Ino) {
        match self.files.remove_if(&ino, |_, file| !file.look(FileState::has_news)) {
            Some((_, file)) => {
                let unsynced = self.totals.change(&file, |state| {
                    state.retire();
                    state.chunks.unsynced.clone()
                });
                self.keep_unsynced(&file, unsynced);
            }
            None => {
                let Some(file) = self.file(ino) else { return };
                tracing::warn!(%ino, "a lease is gone before the file was flushed");
                self.totals.change(&file, |state| {
                    state.forget_clean(0, u64::MAX);
                    state.chunks.forget_all(true);
                });
            }
        }
    }

    /// The next `fsync` has to know, whenever that is. One that was called already has the file as it was.
    fn keep_unsynced(&self, file: &Arc<File>, chunks: Unsynced) {
        if !chunks.is_empty() {
            self.unsynced.lock().put(file.ino, LeftUnsynced { chunks, by: Arc::downgrade(file) });
        }
    }

    /// These were synced, or are known to be lost, by an `fsync` that was called before the lease was gone.
    fn no_longer_unsynced(&self, file: &File, settled: &Unsynced) {
        let mut all = self.unsynced.lock();
        let Some(left) = all.peek_mut(&file.ino).filter(|left| std::ptr::eq(left.by.as_ptr(), file)) else {
            return;
        };
        left.chunks.retain(|index, _| !settled.contains_key(index));
        if left.chunks.is_empty() {
            all.pop(&file.ino);
        }
    }

    /// Files written here and not synced whose leases are gone.
    pub fn unsynced_and_not_loaded(&self) -> Vec<Ino> {
        self.unsynced.lock().iter().map(|(ino, _)| *ino).collect()
    }

    /// The file is gone at the servers.
    pub fn forget_unsynced(&self, ino: Ino) {
        self.unsynced.lock().pop(&ino);
    }

    /// The session was fenced: forgets everything; true if unflushed changes were lost, which is then
    /// a sticky error. What was flushed stays to be synced.
    pub fn discard(&self, ino: Ino) -> bool {
        let Some((_, file)) = self.files.remove(&ino) else { return false };
        let (unsynced, lost) =
            self.totals.change(&file, |state| (state.chunks.unsynced.clone(), state.discard()));
        self.keep_unsynced(&file, unsynced);
        if lost > 0 {
            self.totals.lost_bytes.fetch_add(lost, Ordering::Relaxed);
            self.errors.set(ino, FsError::Io);
            tracing::error!(%ino, lost_bytes = lost, "the session ended before the file was flushed");
        }
        lost > 0
    }

    /// Something that was to be written to the file was lost before it came here: told every open handle once.
    pub fn fail(&self, ino: Ino, error: FsError) {
        self.errors.set(ino, error);
    }

    /// The file is removed and nobody has it open: what was not flushed need not be.
    pub fn forget(&self, ino: Ino) {
        self.forget_unsynced(ino);
        if let Some((_, file)) = self.files.remove(&ino) {
            self.totals.change(&file, |state| {
                state.discard();
                state.chunks = Chunks::default();
            });
        }
    }

    /// `discard` of every file; the number of files that lost something.
    pub fn discard_all(&self) -> u64 {
        let all: Vec<Ino> = self.files.iter().map(|file| *file.key()).collect();
        all.into_iter().filter(|&ino| self.discard(ino)).count() as u64
    }

    /// For a handle that is being opened.
    pub fn error_cursor(&self, ino: Ino) -> ErrorCursor {
        self.errors.cursor(ino)
    }

    /// The error that this handle has not yet been told (fsync, close), told once.
    pub fn take_error(&self, ino: Ino, cursor: &ErrorCursor) -> Result<(), FsError> {
        self.errors.take(ino, cursor)
    }

    /// Whether a write-back was refused and nobody was told.
    pub fn has_untold_errors(&self) -> bool {
        self.errors.are_untold()
    }

    /// For status.
    pub fn dirty(&self) -> DirtyStats {
        DirtyStats {
            files: self.totals.files_with_news.load(Ordering::Relaxed),
            bytes: self.totals.dirty_bytes.load(Ordering::Relaxed),
            cached_bytes: self.totals.cached_bytes.load(Ordering::Relaxed),
            lost_bytes: self.totals.lost_bytes.load(Ordering::Relaxed),
        }
    }
}

//! The files that are loaded, and what they weigh together.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use gofs_tree::{FsError, Ino};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::readahead::Readahead;
use super::state::{FetchId, FileState, Weight};

/// Clean pieces that are remembered for eviction at most: small ones must not cost more than they hold.
const PIECES_MAX: usize = 1 << 16;

/// What a read under way brings to those who joined it.
pub(super) type FetchResult = watch::Receiver<Option<Result<Bytes, FsError>>>;

/// One file. Locks are taken in the order of the fields, and none across another file's.
pub(super) struct File {
    pub ino: Ino,
    /// Held by whoever flushes or changes the size: one at a time.
    pub flight: tokio::sync::Mutex<()>,
    /// A background flush is on its way.
    pub queued: AtomicBool,
    chunked: OnceLock<Box<Chunked>>,
    state: Mutex<FileState>,
}

/// What only a file needs whose chunks are used; most are small, or only looked at. Locks are taken in the order of the
/// fields, after a file's flight and before its state.
#[derive(Default)]
pub(super) struct Chunked {
    /// Held while the server is asked where chunks are.
    pub map: tokio::sync::Mutex<()>,
    pub readahead: Mutex<Readahead>,
    /// Reads from chunks under way: where each starts, and what it brings.
    pub joins: Mutex<HashMap<FetchId, (u64, FetchResult)>>,
}

impl File {
    pub fn new(ino: Ino, state: FileState) -> Self {
        File {
            ino,
            flight: tokio::sync::Mutex::default(),
            queued: AtomicBool::new(false),
            chunked: OnceLock::new(),
            state: Mutex::new(state),
        }
    }

    pub fn chunked(&self) -> &Chunked {
        self.chunked.get_or_init(Box::default)
    }

    /// Looks at the state; changes go through [`Totals::change`].
    pub fn look<R>(&self, look: impl FnOnce(&FileState) -> R) -> R {
        look(&self.state.lock())
    }
}

/// Sums over all files, and who waits for them.
#[derive(Default)]
pub(super) struct Totals {
    pub dirty_bytes: AtomicU64,
    pub cached_bytes: AtomicU64,
    pub growth_bytes: AtomicU64,
    pub lost_bytes: AtomicU64,
    pub files_with_news: AtomicU64,
    /// Files with something that no flush has taken yet, and since when.
    pub waiting: Mutex<HashMap<Ino, Instant>>,
    /// Told when dirty bytes have become fewer.
    pub room: Notify,
    /// Clean pieces, oldest first.
    pieces: Mutex<VecDeque<(Arc<File>, u64, u64)>>,
}

fn shift(total: &AtomicU64, before: u64, after: u64) {
    if after >= before {
        total.fetch_add(after - before, Ordering::AcqRel);
    } else {
        total.fetch_sub(before - after, Ordering::AcqRel);
    }
}

impl Totals {
    /// Changes a file's state and keeps the sums right.
    pub fn change<R>(&self, file: &File, change: impl FnOnce(&mut FileState) -> R) -> R {
        let mut state = file.state.lock();
        let before = state.weight();
        let result = change(&mut state);
        let after = state.weight();
        if before != after {
            self.weigh(file.ino, before, after);
        }
        result
    }

    fn weigh(&self, ino: Ino, before: Weight, after: Weight) {
        shift(&self.dirty_bytes, before.dirty_bytes, after.dirty_bytes);
        shift(&self.cached_bytes, before.cached_bytes, after.cached_bytes);
        shift(&self.growth_bytes, before.growth_bytes, after.growth_bytes);
        shift(&self.files_with_news, before.news.into(), after.news.into());
        if before.dirty_since != after.dirty_since {
            let mut waiting = self.waiting.lock();
            match after.dirty_since {
                Some(since) => waiting.insert(ino, since),
                None => waiting.remove(&ino),
            };
        }
        if after.dirty_bytes < before.dirty_bytes {
            self.room.notify_waiters();
        }
    }

    /// A clean piece was added to the file's cache; the oldest pieces make room.
    pub fn cached(&self, file: &Arc<File>, start: u64, end: u64, budget_bytes: u64) {
        let mut pieces = self.pieces.lock();
        pieces.push_back((file.clone(), start, end));
        while self.cached_bytes.load(Ordering::Acquire) > budget_bytes || pieces.len() > PIECES_MAX {
            let Some((oldest, start, end)) = pieces.pop_front() else { break };
            self.change(&oldest, |state| state.evict(start, end));
        }
    }
}

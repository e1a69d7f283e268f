//! Write-back: dirty bytes to the chunks, then the edit that shows them.
//!
//! A flush of a file holds its flight lock and does not belong to its caller, so that one that
//! goes away does not stop it half-way. Writers go on meanwhile; what they write is the next flush's.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use gofs_tree::{ByteRange, ChunkIndex, Edit, FsError, Ino};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use super::FileData;
use super::chain::{ChunkWrite, Item};
use super::chunks::{ChunkSpan, spans};
use super::extents::Run;
use super::file::File;
use super::state::{FileState, OutPlan, Plan, Scope};
use crate::parked;

/// Payload of one Write frame: large enough to be cheap, small enough to move along a chain of servers in a pipeline.
const FRAME_BYTES: u32 = 2 << 20;
/// Items in one Write frame: small writes all over a chunk.
const FRAME_ITEMS_MAX: usize = 1024;
/// Frames of one flush under way at once: covers the round trip, bounds what servers buffer.
const FRAMES_MAX: usize = 16;
/// Chunks asked for in one Allocate.
const ALLOCATE_MAX: usize = 1024;
/// A flush of more is not begun on the caller's thread, which has other requests to read.
const AT_ONCE_BYTES: u64 = 256 << 10;
/// Files flushed at once: enough that small ones fill frames (see `gather`) while others' edits are committed.
const FILES_MAX: usize = 256;

impl FileData {
    /// Writes all dirty bytes and commits size and times; `durable`: on stable storage on every replica,
    /// bytes flushed earlier included. Nothing to do for a file that is not loaded. An error is also sticky.
    /// The file is the one that is loaded at the call, whatever becomes of its lease before the first poll.
    pub fn flush(
        self: &Arc<Self>,
        ino: Ino,
        durable: bool,
    ) -> impl Future<Output = Result<(), FsError>> + Send + use<> {
        let flushing = self.file(ino).map(|file| self.flush_loaded(file, durable));
        async move {
            match flushing {
                Some(flushing) => flushing.await,
                None => Ok(()),
            }
        }
    }

    /// [`flush`](Self::flush), durable, of a file that is loaded; `None` where it is not, which says nothing of what was written to
    /// it.
    pub fn sync(
        self: &Arc<Self>,
        ino: Ino,
    ) -> Option<impl Future<Output = Result<(), FsError>> + Send + use<>> {
        self.file(ino).map(|file| self.flush_loaded(file, true))
    }

    fn flush_loaded(
        self: &Arc<Self>,
        file: Arc<File>,
        durable: bool,
    ) -> impl Future<Output = Result<(), FsError>> + Send + use<> {
        let data = self.clone();
        async move {
            if file.look(|state| !(state.has_news() || durable && state.is_unsynced(true))) {
                return Ok(());
            }
            let much = file.look(FileState::weight).dirty_bytes > AT_ONCE_BYTES;
            data.on_own_task(|data| async move {
                if much {
                    tokio::task::yield_now().await;
                }
                data.flush_file(&file, durable).await
            })
            .await
        }
    }

    /// `flush` of every file; the first error after all were tried.
    pub async fn flush_all(self: &Arc<Self>, durable: bool) -> Result<(), FsError> {
        let mut files: VecDeque<Arc<File>> = self
            .files
            .iter()
            .filter(|file| file.look(|state| state.has_news() || (durable && state.is_unsynced(false))))
            .map(|file| file.value().clone())
            .collect();
        let mut flushes = FuturesUnordered::new();
        let mut first = Ok(());
        loop {
            while flushes.len() < FILES_MAX
                && let Some(file) = files.pop_front()
            {
                flushes.push(self.on_own_task(|data| async move { data.flush_file(&file, durable).await }));
            }
            match flushes.next().await {
                Some(result) => first = first.and(result),
                None => return first,
            }
        }
    }

    /// Begins here and runs to its end even if nobody waits any more.
    pub(super) fn on_own_task<T, F, W>(
        self: &Arc<Self>,
        work: W,
    ) -> impl Future<Output = Result<T, FsError>> + Send + use<T, F, W>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
        W: FnOnce(Arc<Self>) -> F,
    {
        let (tell, told) = oneshot::channel();
        let work = work(self.clone());
        parked::begin(&Handle::current(), async move {
            // An error: nobody waits any more.
            let _ = tell.send(work.await);
        });
        async move {
            told.await.unwrap_or_else(|_| {
                tracing::error!("a flush ended abnormally");
                Err(FsError::Io)
            })
        }
    }

    pub(super) async fn flush_file(&self, file: &File, durable: bool) -> Result<(), FsError> {
        let _flight = file.flight.lock().await;
        self.flush_locked(file, u64::MAX, durable).await.map_err(|refusal| refusal.report(self, file))
    }

    /// Flushes what is below `limit`. The caller holds the flight lock, and reports a refusal.
    pub(super) async fn flush_locked(&self, file: &File, limit: u64, durable: bool) -> Result<(), Refusal> {
        let epoch = file.look(|state| state.epoch());
        let result = self.flush_steps(file, limit, durable, epoch).await;
        let now = Instant::now();
        match result {
            Ok(()) => {
                self.change_live(file, epoch, |state| state.flush_ended(now));
                Ok(())
            }
            Err(error) => Err(self.refuse(file, epoch, error)),
        }
    }

    /// Drops what a flush could not write.
    pub(super) fn refuse(&self, file: &File, epoch: u64, error: FsError) -> Refusal {
        let lost_bytes = self.change_live(file, epoch, |state| state.refused(Instant::now()));
        Refusal { error, lost_bytes }
    }

    async fn flush_steps(&self, file: &File, limit: u64, durable: bool, epoch: u64) -> Result<(), FsError> {
        match self.totals.change(file, |state| state.begin_flush(Scope::Below(limit))) {
            Plan::Nothing => {}
            Plan::Inline(edit) => self.commit_flush(file, edit, epoch).await?,
            Plan::Out(plan) => self.write_out(file, &plan, epoch).await?,
        }
        if file.look(FileState::moves_durable_bytes) {
            // They may have been synced where they are, and are there until the edit is committed.
            self.sync_chunks(file, epoch).await?;
        }
        let commit = async {
            match self.totals.change(file, FileState::begin_commit) {
                Some(edit) => self.commit_flush(file, edit, epoch).await,
                None => Ok(()),
            }
        };
        if !durable {
            return commit.await;
        }
        // What the edit shows was acknowledged by every replica; that it is stable is waited for meanwhile. Both are
        // waited for in any case: a commit that was begun ends before the next flush.
        let (synced, committed) = tokio::join!(self.sync_chunks(file, epoch), commit);
        synced.and(committed)
    }

    pub(super) async fn commit_flush(&self, file: &File, edit: Edit, epoch: u64) -> Result<(), FsError> {
        let before = file.look(|state| state.server_size());
        let attr = self.meta.commit(file.ino, self.session_of(file, epoch)?, edit.clone()).await?;
        self.spend(attr.size.saturating_sub(before));
        self.change_live(file, epoch, |state| state.committed(&edit, &attr, Instant::now()))
            .ok_or(FsError::Io)
    }

    /// Changes the state unless it was discarded since `epoch`.
    pub(super) fn change_live<R>(
        &self,
        file: &File,
        epoch: u64,
        change: impl FnOnce(&mut FileState) -> R,
    ) -> Option<R> {
        self.totals.change(file, |state| (state.epoch() == epoch).then(|| change(state)))
    }

    /// Brings the bytes of a plan to the chunks.
    async fn write_out(&self, file: &File, plan: &OutPlan, epoch: u64) -> Result<(), FsError> {
        for range in &plan.zero {
            self.zero(file, *range, epoch).await?;
        }
        let chunks = self.by_chunk(&plan.runs);
        let indexes: Vec<ChunkIndex> = chunks.keys().copied().collect();
        for indexes in indexes.chunks(ALLOCATE_MAX) {
            self.make_chunks(file, indexes, epoch).await?;
        }
        let mut frames = Vec::new();
        for (index, items) in chunks {
            frames.extend(frames_of(index, items));
        }
        let write = |frame: ChunkWrite| async move { self.write_chunk(file, &frame, epoch).await };
        all_frames(frames.into_iter().map(write)).await?;
        self.change_live(file, epoch, |state| state.written_out(plan)).ok_or(FsError::Io)
    }

    /// Makes zero whatever chunks hold in the range. The caller holds the flight lock.
    pub(super) async fn zero(&self, file: &File, range: ByteRange, epoch: u64) -> Result<(), FsError> {
        let chunk_bytes = u64::from(self.config.chunk_size.bytes());
        self.learn(file, range.start / chunk_bytes, range.end.div_ceil(chunk_bytes)).await?;
        let spans = file.look(|state| state.chunks.not_zero(range, self.config.chunk_size));
        self.punch_spans(file, spans, epoch).await
    }

    pub(super) async fn punch_spans(
        &self,
        file: &File,
        spans: Vec<ChunkSpan>,
        epoch: u64,
    ) -> Result<(), FsError> {
        all_frames(spans.into_iter().map(|span| self.punch_chunk(file, span, epoch))).await
    }

    /// The runs cut at chunk boundaries.
    fn by_chunk(&self, runs: &[Run]) -> BTreeMap<ChunkIndex, Vec<Item>> {
        let mut chunks: BTreeMap<ChunkIndex, Vec<Item>> = BTreeMap::new();
        for run in runs {
            let mut pieces: VecDeque<Bytes> = run.pieces.iter().cloned().collect();
            let range = ByteRange { start: run.offset, end: run.offset + run.len() };
            for span in spans(range, self.config.chunk_size) {
                let pieces = take_front(&mut pieces, span.len);
                chunks.entry(span.index).or_default().push(Item { offset: span.offset.0, pieces });
            }
        }
        chunks
    }

    /// Writes out long runs of a file that is still being written, without a commit.
    pub(super) fn start_early(self: &Arc<Self>, file: &Arc<File>) {
        if file.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let (data, file) = (self.clone(), file.clone());
        tokio::spawn(async move {
            while data.write_early(&file).await {}
            file.queued.store(false, Ordering::Release);
        });
    }

    /// False when there was nothing more to do.
    async fn write_early(&self, file: &File) -> bool {
        let _flight = file.flight.lock().await;
        let epoch = file.look(|state| state.epoch());
        let Plan::Out(plan) = self.totals.change(file, |state| state.begin_flush(Scope::Early)) else {
            return false;
        };
        match self.write_out(file, &plan, epoch).await {
            Ok(()) => true,
            Err(error) => {
                self.refuse(file, epoch, error).report(self, file);
                false
            }
        }
    }

    /// Flushes files whose changes are old, or all that wait when there is little room. `kick` asks for it at once.
    pub(super) async fn write_back(data: Weak<FileData>, kick: Arc<Notify>, period: std::time::Duration) {
        loop {
            let _ = tokio::time::timeout(period, kick.notified()).await;
            let Some(data) = data.upgrade() else { return };
            data.start_flushes();
        }
    }

    fn start_flushes(self: &Arc<Self>) {
        let crowded = self.totals.dirty_bytes.load(Ordering::Acquire) > self.config.dirty_bytes / 2;
        let mut due: Vec<(Instant, Ino)> = self
            .totals
            .waiting
            .lock()
            .iter()
            .filter(|(_, since)| crowded || since.elapsed() >= self.config.dirty_age)
            .map(|(&ino, &since)| (since, ino))
            .collect();
        due.sort_unstable();
        let queue: VecDeque<Arc<File>> = due
            .into_iter()
            .filter_map(|(_, ino)| self.file(ino))
            .filter(|file| !file.queued.swap(true, Ordering::AcqRel))
            .collect();
        let workers = queue.len().min(FILES_MAX);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..workers {
            let (data, queue) = (self.clone(), queue.clone());
            tokio::spawn(async move {
                loop {
                    let Some(file) = queue.lock().pop_front() else { break };
                    let permit = data.flushers.acquire().await;
                    // What went wrong is logged and sticky.
                    let _ = data.flush_file(&file, false).await;
                    drop(permit);
                    file.queued.store(false, Ordering::Release);
                }
            });
        }
    }
}

/// Sends all frames, so many at once. When one fails no more are sent, but those that were are waited for: a server may have
/// them in its hands still, and carry them out over what others write once the file is given up.
async fn all_frames<F>(frames: impl Iterator<Item = F>) -> Result<(), FsError>
where
    F: Future<Output = Result<(), FsError>>,
{
    let mut left = frames.fuse();
    let mut sent = FuturesUnordered::new();
    let mut first = Ok(());
    loop {
        while first.is_ok()
            && sent.len() < FRAMES_MAX
            && let Some(frame) = left.next()
        {
            sent.push(frame);
        }
        match sent.next().await {
            Some(result) => first = first.and(result),
            None => return first,
        }
    }
}

/// A flush that was refused for good.
pub(super) struct Refusal {
    error: FsError,
    /// What was dropped; `None`: the state was discarded meanwhile, which has been told, or the file is no more.
    lost_bytes: Option<u64>,
}

impl Refusal {
    /// Counts what is lost and makes it the file's sticky error.
    pub fn report(self, data: &FileData, file: &File) -> FsError {
        let Refusal { error, lost_bytes } = self;
        if let Some(lost_bytes) = lost_bytes {
            data.totals.lost_bytes.fetch_add(lost_bytes, Ordering::Relaxed);
            data.errors.set(file.ino, error);
            tracing::error!(ino = %file.ino, lost_bytes, %error, "bytes of a file could not be written");
        }
        error
    }

    /// The same, where the last `own` bytes are of a write that waits to be told, so that nothing of them is lost.
    pub fn report_others(self, own: u64, data: &FileData, file: &File) -> FsError {
        match self.lost_bytes {
            Some(lost) if lost > own => Refusal { lost_bytes: Some(lost - own), ..self }.report(data, file),
            _ => self.error,
        }
    }
}

/// How many files a mount flushes in the background at once.
pub(super) const fn flushers() -> usize {
    FILES_MAX
}

/// Takes `len` bytes off the front of the pieces.
fn take_front(pieces: &mut VecDeque<Bytes>, mut len: u32) -> Vec<Bytes> {
    let mut taken = Vec::new();
    while len > 0
        && let Some(first) = pieces.front_mut()
    {
        let part = first.split_to(first.len().min(len as usize));
        len -= part.len() as u32;
        if first.is_empty() {
            pieces.pop_front();
        }
        taken.push(part);
    }
    taken
}

/// The items of one chunk in frames.
fn frames_of(index: ChunkIndex, items: Vec<Item>) -> Vec<ChunkWrite> {
    let mut frames: Vec<ChunkWrite> = Vec::new();
    let mut room = 0;
    for item in items {
        let mut offset = item.offset;
        let mut left = item.len();
        let mut pieces = VecDeque::from(item.pieces);
        while left > 0 {
            if room == 0 || frames.last().is_none_or(|frame| frame.items.len() >= FRAME_ITEMS_MAX) {
                frames.push(ChunkWrite { index, items: Vec::new() });
                room = FRAME_BYTES;
            }
            let len = left.min(room);
            if let Some(frame) = frames.last_mut() {
                frame.items.push(Item { offset, pieces: take_front(&mut pieces, len) });
            }
            offset += len;
            left -= len;
            room -= len;
        }
    }
    frames
}

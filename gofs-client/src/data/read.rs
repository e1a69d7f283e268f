//! Reads: what is in memory at once, the rest from the chunks in parallel, and more of it ahead of time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::try_join_all;
use gofs_tree::{ByteRange, FsError, Ino};
use tokio::sync::watch;

use super::FileData;
use super::fetch::push_zeros;
use super::file::{FetchResult, File};
use super::state::{FetchId, ReadPiece};

/// One request to a ChunkServer asks for at most this, and for nothing on both sides of a multiple of it, bytes.
const PIECE_BYTES: u64 = 1 << 20;
/// A random read of at most this is not cached, bytes.
const ALONE_BYTES: u64 = 64 << 10;
/// Reads ahead that may be under way at once, over all files: a bound on memory, `PIECE_BYTES` each.
const AHEAD_MAX: u64 = 64;
/// A read joined others' reads that came to nothing so often before it does its own.
const JOINS_MAX: u32 = 2;

/// A part of a read on its way to being bytes.
enum Part {
    Ready(Bytes),
    Zeros(u64),
    Own(Fetching, ByteRange),
    Joined(FetchResult, ByteRange, u64),
    Lost,
}

/// A read from the chunks that others may join. Ends the registration when dropped.
struct Fetching {
    data: Arc<FileData>,
    file: Arc<File>,
    id: FetchId,
    tell: watch::Sender<Option<Result<Bytes, FsError>>>,
    cached: bool,
}

impl Fetching {
    async fn run(mut self, range: ByteRange) -> Result<Bytes, FsError> {
        let result = self.data.fetch(&self.file, range).await;
        let data = self.data.clone();
        let bytes = result.clone().ok();
        let kept = self.cached && data.totals.change(&self.file, |state| state.end_fetch(self.id, bytes));
        if kept {
            data.totals.cached(&self.file, range.start, range.end, data.config.cache_bytes);
        }
        self.cached = false;
        self.tell.send_replace(Some(result.clone()));
        result
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.file.chunked().joins.lock().remove(&self.id);
        if self.cached {
            self.data.totals.change(&self.file, |state| state.end_fetch(self.id, None));
        }
    }
}

impl FileData {
    /// `len` bytes from `offset`, fewer only at the end of the file. `NotCached` where nothing is loaded.
    pub async fn read(self: &Arc<Self>, ino: Ino, offset: u64, len: u32) -> Result<Vec<Bytes>, FsError> {
        let file = self.file(ino).ok_or(FsError::NotCached)?;
        let bytes = match self.alone(&file, offset, u64::from(len)) {
            // On the heap: what is answered from memory must not carry the state of what is not.
            Some(range) => vec![Box::pin(self.fetch(&file, range)).await?],
            None => self.read_file(&file, offset, u64::from(len)).await?,
        };
        self.read_ahead(&file, offset, u64::from(len));
        Ok(bytes)
    }

    /// What a random reader wants, if it is one request to one ChunkServer: nobody else is likely to want it, and whoever
    /// asked keeps it (the kernel does), so others cannot join and it is not cached here.
    fn alone(&self, file: &File, offset: u64, len: u64) -> Option<ByteRange> {
        let end = offset.checked_add(len)?;
        let one_piece = len <= ALONE_BYTES && self.pieces(ByteRange { start: offset, end }).count() == 1;
        if !one_piece || !file.chunked().readahead.lock().is_random(offset) {
            return None;
        }
        match file.look(|state| state.plan_read(offset, len))[..] {
            [ReadPiece::Fetch(range)] => Some(range),
            _ => None,
        }
    }

    async fn read_file(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Bytes>, FsError> {
        for tries in 0.. {
            let plan = file.look(|state| state.plan_read(offset, len));
            let parts = self.parts(file, plan, tries < JOINS_MAX);
            if let Some(bytes) = self.gather(parts).await? {
                return Ok(bytes);
            }
        }
        Err(FsError::Io)
    }

    /// Registers the reads from chunks that the plan needs, before anything waits.
    fn parts(self: &Arc<Self>, file: &Arc<File>, plan: Vec<ReadPiece>, join: bool) -> Vec<Part> {
        let mut parts = Vec::with_capacity(plan.len());
        for piece in plan {
            match piece {
                ReadPiece::Bytes(bytes) => parts.push(Part::Ready(bytes)),
                ReadPiece::Zeros(len) => parts.push(Part::Zeros(len)),
                ReadPiece::Join(id, range) if join => {
                    // Between plan and now it may have ended, with its bytes in the cache or without.
                    let joined = file.chunked().joins.lock().get(&id).cloned();
                    parts.push(match joined {
                        Some((start, result)) => Part::Joined(result, range, start),
                        None => Part::Lost,
                    });
                }
                ReadPiece::Fetch(range) | ReadPiece::Join(_, range) => {
                    for range in self.pieces(range) {
                        parts.push(Part::Own(self.begin(file, range), range));
                    }
                }
            }
        }
        parts
    }

    fn begin(self: &Arc<Self>, file: &Arc<File>, range: ByteRange) -> Fetching {
        let (tell, result) = watch::channel(None);
        let mut joins = file.chunked().joins.lock();
        let id = self.totals.change(file, |state| state.begin_fetch(range));
        joins.insert(id, (range.start, result));
        drop(joins);
        Fetching { data: self.clone(), file: file.clone(), id, tell, cached: true }
    }

    /// Cut so that each piece is one request to one ChunkServer.
    fn pieces(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> + use<> {
        let unit = PIECE_BYTES.min(u64::from(self.config.chunk_size.bytes()));
        let mut start = range.start;
        std::iter::from_fn(move || {
            let end = (start - start % unit + unit).min(range.end);
            (start < end).then(|| ByteRange { start: std::mem::replace(&mut start, end), end })
        })
    }

    /// `None`: a read that was joined came to nothing, plan again.
    async fn gather(&self, parts: Vec<Part>) -> Result<Option<Vec<Bytes>>, FsError> {
        if parts.iter().all(|part| matches!(part, Part::Ready(_) | Part::Zeros(_))) {
            let mut out = Vec::with_capacity(parts.len());
            for part in parts {
                match part {
                    Part::Ready(bytes) => out.push(bytes),
                    Part::Zeros(len) => push_zeros(len, &mut out),
                    _ => {}
                }
            }
            return Ok(Some(out));
        }
        let resolved = try_join_all(parts.into_iter().map(|part| async move {
            Ok::<_, FsError>(match part {
                Part::Ready(bytes) => Some(vec![bytes]),
                Part::Zeros(len) => {
                    let mut out = Vec::new();
                    push_zeros(len, &mut out);
                    Some(out)
                }
                Part::Own(fetching, range) => Some(vec![fetching.run(range).await?]),
                Part::Joined(mut result, range, start) => match result.wait_for(Option::is_some).await {
                    Ok(done) => match &*done {
                        Some(Ok(bytes)) => {
                            let at = (range.start - start) as usize;
                            Some(vec![bytes.slice(at..at + range.len() as usize)])
                        }
                        _ => None,
                    },
                    Err(_) => None,
                },
                Part::Lost => None,
            })
        }))
        .await?;
        Ok(resolved.into_iter().collect::<Option<Vec<_>>>().map(|parts| parts.concat()))
    }

    /// Fetches what a sequential reader will want, if it is one.
    fn read_ahead(self: &Arc<Self>, file: &Arc<File>, offset: u64, len: u64) {
        let max = self.config.readahead_bytes.min(self.config.cache_bytes / 4);
        let (size, in_chunks) = file.look(|state| (state.size(), state.in_chunks()));
        let range = ByteRange { start: offset.min(size), end: offset.saturating_add(len).min(size) };
        if max == 0 || !in_chunks || range.is_empty() {
            return;
        }
        let Some(ahead) = file.chunked().readahead.lock().on_read(range, size, max) else { return };
        let plan = file.look(|state| state.plan_read(ahead.start, ahead.len()));
        let missing = plan.into_iter().filter_map(|piece| match piece {
            ReadPiece::Fetch(range) => Some(range),
            _ => None,
        });
        for range in missing.flat_map(|range| self.pieces(range)) {
            let Some(running) = Ahead::start(self) else { return };
            let fetching = self.begin(file, range);
            tokio::spawn(async move {
                // A failure shows again, and is reported, when the bytes are really read.
                let _ = fetching.run(range).await;
                drop(running);
            });
        }
    }
}

/// One of the reads ahead under way.
struct Ahead(Arc<FileData>);

impl Ahead {
    fn start(data: &Arc<FileData>) -> Option<Ahead> {
        let before = data.ahead.fetch_add(1, Ordering::AcqRel);
        let ahead = Ahead(data.clone());
        (before < AHEAD_MAX).then_some(ahead)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let _: u64 = AtomicU64::fetch_sub(&self.0.ahead, 1, Ordering::AcqRel);
    }
}

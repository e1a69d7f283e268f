//! Copies a chunk from another server.
//!
//! The copy is staged in the store and becomes visible when it is complete, verified and on stable
//! storage; what is left of one that was cut short is removed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gofs_proto::chunk::{Extents, Read, Stat};
use gofs_proto::cluster::CopyChunk;
use gofs_proto::kind::{self, Request};
use gofs_proto::{CallError, Link};
use gofs_tree::{ChunkId, ChunkVersion};
use parking_lot::Mutex;

use crate::service::{Service, blocking};
use crate::store::{Ack, BLOCK_LEN, BLOCKS_MAX, BlockRange, StoreError, WriteMode};

/// Blocks read at once.
const PIECE_BLOCKS: u32 = 256;
/// Reads on their way at once.
const READS_AHEAD: usize = 4;
/// What a copy costs beside its bytes, in bytes: round trips, and a sync. The MetaServer counts the same.
const COPY_COST_BYTES: usize = 128 << 10;
/// How long the source may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Keeps what copies read, all of them together, to the bytes a second that the MetaServer allows.
#[derive(Default)]
pub struct Pace {
    /// When what was read so far is paid for.
    paid: Mutex<Option<Instant>>,
}

impl Pace {
    /// How long to wait before the next `bytes` are asked for, which are taken for asked for then; `bytes_s` 0: not at all.
    fn next(&self, bytes: usize, bytes_s: u64, now: Instant) -> Duration {
        if bytes_s == 0 {
            return Duration::ZERO;
        }
        let mut paid = self.paid.lock();
        let from = paid.map_or(now, |paid| paid.max(now));
        *paid = Some(from + Duration::from_secs_f64(bytes as f64 / bytes_s as f64));
        from - now
    }
}

/// Carries out the instruction: any of the sources will do.
pub async fn copy(service: &Arc<Service>, pace: &Pace, order: &CopyChunk) -> Result<(), String> {
    let (chunk, version) = (ChunkId(order.chunk), ChunkVersion(order.version));
    // Another would remove what this one has staged.
    let Some(_only) = service.copying.begin(chunk) else {
        return Err(format!("{chunk} is being copied to here already"));
    };
    if blocking(|| make_room(service, chunk, version)).map_err(|error| error.to_string())? {
        return Ok(());
    }
    // Left by a copy that could not remove it.
    blocking(|| service.store.discard(chunk)).map_err(|error| error.to_string())?;
    let mut whys = Vec::new();
    for address in &order.from {
        let mut staged = Staged { service, chunk, published: false };
        let wait_for = |bytes| {
            let now = Instant::now();
            pace.next(bytes, bytes_s(order, service.foreground.is_busy(now)), now)
        };
        match copy_from(service, chunk, version, address, wait_for).await {
            Ok(()) => {
                staged.published = true;
                tracing::debug!(%chunk, %version, from = address, "chunk copied");
                return Ok(());
            }
            Err(why) => whys.push(format!("{address}: {why}")),
        }
    }
    if whys.is_empty() {
        whys.push("no server to copy from was named".to_owned());
    }
    Err(format!("{chunk} {version} not copied; {}", whys.join("; ")))
}

/// At what speed copies may run now.
fn bytes_s(order: &CopyChunk, is_busy: bool) -> u64 {
    match order.busy_bytes_s {
        busy if is_busy && busy > 0 => busy,
        _ => order.bytes_s,
    }
}

/// Removes what is here of an older version or damaged. True where nothing is left to be done.
fn make_room(service: &Service, chunk: ChunkId, version: ChunkVersion) -> Result<bool, StoreError> {
    match service.store.stat_before_copy(chunk) {
        Ok(stat) if stat.version == version && service.store.verify(chunk).is_ok() => Ok(true),
        Ok(stat) if stat.version > version => {
            Err(StoreError::Stale { chunk, stored: stat.version, asked: version })
        }
        Ok(_) => service.store.delete(chunk, Some(version)).map(|()| false),
        Err(StoreError::NoChunk { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the copy unless it was published, also where the task is cancelled.
struct Staged<'a> {
    service: &'a Service,
    chunk: ChunkId,
    published: bool,
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = blocking(|| self.service.store.discard(self.chunk))
        {
            tracing::warn!(chunk = %self.chunk, %error, "part of a copy stays until the next start");
        }
    }
}

async fn copy_from(
    service: &Service,
    chunk: ChunkId,
    version: ChunkVersion,
    address: &str,
    wait_for: impl Fn(usize) -> Duration,
) -> Result<(), String> {
    let link = service.peers.link(address, None, service.cluster()).await?;
    check_version(&link, chunk, version).await?;
    let wire = Extents { chunk: chunk.0, version: version.0 };
    let extents = call(&link, &wire).await?.0.extents;
    let mut pieces = VecDeque::new();
    for extent in extents {
        let end = extent.start_4k.checked_add(extent.blocks_4k).filter(|end| *end <= BLOCKS_MAX);
        let end = end.ok_or("it names blocks past the largest chunk")?;
        let mut first = extent.start_4k;
        while first < end {
            let count = (end - first).min(PIECE_BLOCKS);
            pieces.push_back(BlockRange { first, count });
            first += count;
        }
    }
    let write = |offset: u32, bytes: &[u8], mode| {
        blocking(|| service.store.write(chunk, version, offset, bytes, mode, Ack::Cached))
            .map_err(|error| error.to_string())
    };
    wait(wait_for(COPY_COST_BYTES)).await;
    write(0, &[], WriteMode::CopyFirst)?;
    let mut reads = VecDeque::new();
    loop {
        while reads.len() < READS_AHEAD
            && let Some(piece) = pieces.pop_front()
        {
            wait(wait_for(piece.bytes())).await;
            let (offset, len) = (piece.first * BLOCK_LEN as u32, piece.bytes() as u32);
            let read = Read { chunk: chunk.0, version: version.0, offset, len, copy: true };
            // Sent now; the answers are taken one after the other.
            reads.push_back((read, link.call(&read, Vec::new())));
        }
        let Some((read, answer)) = reads.pop_front() else { break };
        let (reply, bytes) = within(answer, Read::KIND).await?;
        if bytes.len() != read.len as usize || crc32c::crc32c(&bytes) != reply.crc32c {
            return Err("bytes were damaged on their way".to_owned());
        }
        // Not made anew where it was deleted meanwhile: what was copied before would be missing.
        write(read.offset, &bytes, WriteMode::Copy)?;
    }
    // A version that moved meanwhile: what was read may be of both.
    check_version(&link, chunk, version).await?;
    blocking(|| service.store.publish(chunk)).map_err(|error| error.to_string())
}

async fn wait(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

async fn check_version(link: &Link, chunk: ChunkId, version: ChunkVersion) -> Result<(), String> {
    let found = ChunkVersion(call(link, &Stat { chunk: chunk.0 }).await?.0.version);
    if found == version { Ok(()) } else { Err(format!("it has version {found}, not {version}")) }
}

async fn call<R: Request>(link: &Link, request: &R) -> Result<(R::Reply, Bytes), String> {
    within(link.call(request, Vec::new()), R::KIND).await
}

async fn within<T>(call: impl Future<Output = Result<T, CallError>>, kind: u16) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(CallError::Refused(failure))) => Err(failure.text),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer to {} within {ANSWER_TIMEOUT:?}", kind::name(kind))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_go_first() {
        let order = CopyChunk { bytes_s: 4, busy_bytes_s: 1, ..CopyChunk::default() };
        assert_eq!((bytes_s(&order, false), bytes_s(&order, true)), (4, 1));
        let of_an_older_server = CopyChunk { bytes_s: 4, ..CopyChunk::default() };
        assert_eq!(bytes_s(&of_an_older_server, true), 4);
    }

    #[test]
    fn copies_together_keep_to_their_pace_and_idle_time_is_not_saved_up() {
        let pace = Pace::default();
        let now = Instant::now();
        let mib = 1 << 20;
        assert_eq!(pace.next(mib, 0, now), Duration::ZERO);
        assert_eq!(pace.next(mib, mib as u64, now), Duration::ZERO);
        assert_eq!(pace.next(mib, 2 * mib as u64, now), Duration::from_secs(1));
        assert_eq!(pace.next(mib, mib as u64, now), Duration::from_millis(1500));
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.next(mib, mib as u64, later), Duration::ZERO);
        assert_eq!(pace.next(mib, mib as u64, later), Duration::from_secs(1));
    }
}

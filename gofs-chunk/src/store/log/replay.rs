//! Reads a log after a start, and tells a torn tail from damage.
//!
//! Records that were never synced may be lost or torn by a power cut: the log ends at the first of them that
//! is not whole. But where a later record says that the broken one had been on stable storage, it was
//! damaged since: its chunk is named and the rest of the log still counts.

use std::io;
use std::path::{Path, PathBuf};

use gofs_tree::ChunkId;

use super::record::{Head, SegmentKey};
use super::{Change, Lsn, Position, SEGMENT_HEADER_LEN, Tail, decode_header, list_segments, segment_path};

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A system call failed.
    #[error("reading {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Records that had been on stable storage are gone, and nothing tells of which chunks.
    #[error("log {}: record {} and its neighbour are damaged", dir.display(), lsn.0)]
    Damaged {
        /// The log's directory.
        dir: PathBuf,
        /// The first that is missing.
        lsn: Lsn,
    },
}

/// One thing found in the log, in order.
pub enum Replay<'a> {
    /// A whole record.
    Record {
        /// Its number.
        lsn: Lsn,
        /// Whose change.
        chunk: ChunkId,
        /// What changed.
        change: Change,
        /// The first byte of its data.
        data_at: Position,
        /// Its data.
        data: &'a [u8],
    },
    /// A record of this chunk is lost.
    Lost(ChunkId),
}

struct Segment {
    key: SegmentKey,
    first: Lsn,
    bytes: Vec<u8>,
}

/// Hands every record from `from` on to `each`; where the log ends.
pub fn replay<E: From<ReplayError>>(
    dir: &Path,
    disk: u64,
    from: Tail,
    mut each: impl FnMut(Replay<'_>) -> Result<(), E>,
) -> Result<Tail, E> {
    let numbers = list_segments(dir).map_err(|source| ReplayError::Io { path: dir.to_owned(), source })?;
    let numbers: Vec<u32> = numbers.into_iter().filter(|n| *n >= from.at.segment).collect();
    let durable = newest_durable(dir, disk, &numbers, from)?;
    let mut next = from.next;
    let mut at = from.at;
    'segments: for (i, number) in numbers.iter().enumerate() {
        let Some(segment) = load(dir, disk, *number)? else { continue };
        let starts_here = *number == from.at.segment;
        if !starts_here && segment.first != next {
            // Whole segments with what is missing are gone; whether they mattered, the end tells.
            continue;
        }
        let mut offset = if starts_here { from.at.offset as usize } else { SEGMENT_HEADER_LEN };
        at = Position { segment: *number, offset: offset as u32 };
        let following = numbers.get(i + 1).map(|n| load(dir, disk, *n)).transpose()?.flatten();
        loop {
            if following.as_ref().is_some_and(|following| following.first == next) {
                continue 'segments;
            }
            let rest = segment.bytes.get(offset..).unwrap_or_default();
            let head = Head::decode(segment.key, rest).filter(|head| head.lsn == next);
            let whole = head.and_then(|head| Some((head, head.change(rest)?))).filter(|(head, change)| {
                rest.len() >= head.record_len() && (head.lsn <= durable || head.data_is_whole(rest, change))
            });
            if let Some((head, change)) = whole {
                let data_at = Position { segment: *number, offset: (offset + head.data_offset()) as u32 };
                let data = &rest[head.data_offset()..head.record_len()];
                each(Replay::Record { lsn: next, chunk: head.chunk, change, data_at, data })?;
                offset += head.record_len();
            } else if next > durable {
                break 'segments;
            } else {
                // Damaged. Its own head tells whose it was, or the record after it does.
                let after = find(&segment, offset + 8, next.next());
                let first_of_next = following.as_ref().and_then(|s| find(s, SEGMENT_HEADER_LEN, next.next()));
                match (head, after, first_of_next) {
                    (Some(head), _, _) if head.record_len() <= rest.len() => {
                        each(Replay::Lost(head.chunk))?;
                        offset += head.record_len();
                    }
                    (_, Some((found, head)), _) if head.before != ChunkId(0) => {
                        each(Replay::Lost(head.before))?;
                        offset = found;
                    }
                    (_, _, Some((_, head))) if head.before != ChunkId(0) => each(Replay::Lost(head.before))?,
                    _ => return Err(ReplayError::Damaged { dir: dir.to_owned(), lsn: next }.into()),
                }
            }
            next = next.next();
            at.offset = offset as u32;
        }
    }
    if next <= durable {
        return Err(ReplayError::Damaged { dir: dir.to_owned(), lsn: next }.into());
    }
    Ok(Tail { at, next })
}

fn load(dir: &Path, disk: u64, segment: u32) -> Result<Option<Segment>, ReplayError> {
    let path = segment_path(dir, segment);
    let bytes = std::fs::read(&path).map_err(|source| ReplayError::Io { path, source })?;
    let key = SegmentKey { disk, segment };
    // With a damaged header the first whole record tells; a segment without either holds nothing.
    let first = decode_header(key, &bytes).or_else(|| Some(find_any(key, &bytes, SEGMENT_HEADER_LEN)?.1.lsn));
    Ok(first.map(|first| Segment { key, first, bytes }))
}

/// The next whole head at or after `from`, whatever its number.
fn find_any(key: SegmentKey, bytes: &[u8], from: usize) -> Option<(usize, Head)> {
    (from..bytes.len()).step_by(8).find_map(|at| Head::decode(key, &bytes[at..]).map(|head| (at, head)))
}

/// What the last of all whole heads say was durable; also of those after a gap.
fn newest_durable(dir: &Path, disk: u64, numbers: &[u32], from: Tail) -> Result<Lsn, ReplayError> {
    let mut durable = Lsn(from.next.0 - 1);
    for number in numbers {
        let Some(segment) = load(dir, disk, *number)? else { continue };
        let mut offset =
            if *number == from.at.segment { from.at.offset as usize } else { SEGMENT_HEADER_LEN };
        while let Some((found, head)) = find_any(segment.key, &segment.bytes, offset) {
            if head.lsn >= from.next {
                durable = durable.max(head.durable);
            }
            // A damaged length must not hide what follows.
            let end = found + head.record_len();
            offset = if end <= segment.bytes.len() { end } else { found + 8 };
        }
    }
    Ok(durable)
}

/// The record with this number at or after `from`.
fn find(segment: &Segment, from: usize, lsn: Lsn) -> Option<(usize, Head)> {
    (from.next_multiple_of(8)..segment.bytes.len()).step_by(8).find_map(|at| {
        Head::decode(segment.key, &segment.bytes[at..]).filter(|head| head.lsn == lsn).map(|head| (at, head))
    })
}

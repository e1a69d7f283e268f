//! The log of one disk: small chunks, overwritten blocks, and every change of every chunk.
//!
//! Owns the segment files: preallocated, appended to in order of [`Lsn`], never overwritten.
//! A record is in the page cache when [`Log::append`] returns, so a killed process loses none; [`Log::sync`]
//! brings all of them onto stable storage with one sync for all who wait. Segments go when nothing
//! that is still needed is in them ([`Log::remove`]). It does not know what records mean.

mod record;
mod replay;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut};
use gofs_tree::ChunkId;
use parking_lot::{Mutex, RwLock};

pub use record::{Change, Create, Lsn, Position};
pub use replay::{Replay, ReplayError, replay};

use super::file::{StoreFile, Watch, sync_dir};
use record::{Place, SegmentKey};

/// Bytes of a segment's header.
pub const SEGMENT_HEADER_LEN: usize = 64;
const SEGMENT_MAGIC: [u8; 8] = *b"gofsseg1";

/// Where records are synced one by one, the log is filled with zeros for so many bytes ahead: a sync that has blocks
/// to allocate writes more than the record, and writes it in turn.
const ZEROS_AHEAD_BYTES: usize = 128 << 10;
/// So they are if no more than this is appended between syncs, bytes.
const SYNCED_APART_BYTES: u64 = 64 << 10;

/// Where the next record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Its first byte.
    pub at: Position,
    /// Its number.
    pub next: Lsn,
}

/// Where [`Log::append`] put a record.
#[derive(Clone, Copy, Debug)]
pub struct Appended {
    /// Its number.
    pub lsn: Lsn,
    /// The first byte of its data.
    pub data: Position,
}

/// The log of one disk.
pub struct Log {
    dir: PathBuf,
    disk: u64,
    segment_bytes: u32,
    watch: Watch,
    files: RwLock<BTreeMap<u32, Arc<StoreFile>>>,
    writer: Mutex<Writer>,
    syncing: Mutex<()>,
    durable: AtomicU64,
}

struct Writer {
    tail: Tail,
    /// The segment of the tail; `None` until the first record after the start.
    file: Option<Arc<StoreFile>>,
    /// Segments that were filled and are not synced yet.
    unsynced: Vec<Arc<StoreFile>>,
    before: ChunkId,
    /// The tail segment was written up to here, be it with zeros.
    filled: usize,
    /// Bytes appended since the start, those of them when a sync last began, and how many lay between it and the one
    /// before.
    appended: u64,
    appended_at_sync: u64,
    synced_apart: u64,
    /// Whether the last record is a mark, or there is none yet.
    marked: bool,
}

/// Path of a segment.
fn segment_path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(format!("{segment:08x}.seg"))
}

/// The segments in a directory, by number.
fn list_segments(dir: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number =
            name.to_str().and_then(|n| n.strip_suffix(".seg")).and_then(|n| u32::from_str_radix(n, 16).ok());
        found.extend(number);
    }
    found.sort_unstable();
    Ok(found)
}

/// Paths of the segments with numbers over `segment`.
pub fn segments_after(dir: &Path, segment: u32) -> io::Result<Vec<PathBuf>> {
    let numbers = list_segments(dir)?;
    Ok(numbers.into_iter().filter(|n| *n > segment).map(|n| segment_path(dir, n)).collect())
}

/// Brings the segments from `segment` on onto stable storage, whoever wrote them.
pub fn sync_from(dir: &Path, segment: u32, watch: &Watch) -> io::Result<()> {
    for number in list_segments(dir)?.into_iter().filter(|n| *n >= segment) {
        StoreFile::open(&segment_path(dir, number), watch)?.sync()?;
    }
    Ok(())
}

fn encode_header(key: SegmentKey, first: Lsn) -> Vec<u8> {
    let mut out = SEGMENT_MAGIC.to_vec();
    out.put_u64_le(key.disk);
    out.put_u32_le(key.segment);
    out.put_u32_le(0);
    out.put_u64_le(first.0);
    out.put_u32_le(crc32c::crc32c(&out));
    out.resize(SEGMENT_HEADER_LEN, 0);
    out
}

/// The number of the segment's first record; `None` where the header is not that of this segment.
fn decode_header(key: SegmentKey, bytes: &[u8]) -> Option<Lsn> {
    let bytes = bytes.get(..SEGMENT_HEADER_LEN)?;
    let mut first = &bytes[24..];
    let first = Lsn(first.get_u64_le());
    (encode_header(key, first) == bytes).then_some(first)
}

impl Log {
    /// Goes on after `tail`, always in a new segment: what follows the tail in the old one may be torn.
    pub fn open(dir: &Path, disk: u64, segment_bytes: u32, tail: Tail, watch: &Watch) -> io::Result<Log> {
        let mut files = BTreeMap::new();
        for segment in list_segments(dir)? {
            files.insert(segment, Arc::new(StoreFile::open(&segment_path(dir, segment), watch)?));
        }
        Ok(Log {
            dir: dir.to_owned(),
            disk,
            segment_bytes,
            watch: watch.clone(),
            files: RwLock::new(files),
            writer: Mutex::new(Writer {
                tail,
                file: None,
                unsynced: Vec::new(),
                before: ChunkId(0),
                filled: 0,
                appended: 0,
                appended_at_sync: 0,
                synced_apart: u64::MAX,
                marked: true,
            }),
            syncing: Mutex::default(),
            durable: AtomicU64::new(tail.next.0 - 1),
        })
    }

    /// Where the next record goes.
    pub fn tail(&self) -> Tail {
        self.writer.lock().tail
    }

    /// Every record up to this one is on stable storage.
    pub fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    /// Bytes of data that one record may carry.
    pub fn data_max(&self) -> usize {
        (self.segment_bytes as usize / 4).min(1 << 20)
    }

    /// Numbers of the segments.
    pub fn segments(&self) -> Vec<u32> {
        self.files.read().keys().copied().collect()
    }

    /// Appends a record. `data` are the blocks that the change tells of.
    pub fn append(&self, chunk: ChunkId, change: &Change, data: &[&[u8]]) -> io::Result<Appended> {
        let (len, before_data) = record::measure(change);
        let mut writer = self.writer.lock();
        let file = match writer.file.take() {
            Some(file) if writer.tail.at.offset as usize + len <= self.segment_bytes as usize => file,
            full => self.next_segment(&mut writer, full)?,
        };
        writer.file = Some(file.clone());
        let Tail { at, next: lsn } = writer.tail;
        let place = Place {
            key: SegmentKey { disk: self.disk, segment: at.segment },
            lsn,
            durable: self.durable(),
            before: writer.before,
        };
        let mut record = record::encode(place, chunk, change, data);
        let end = at.offset as usize + len;
        if end > writer.filled {
            let mut filled = end;
            let since_sync = writer.appended - writer.appended_at_sync;
            if writer.synced_apart.max(since_sync) <= SYNCED_APART_BYTES {
                filled = (end + ZEROS_AHEAD_BYTES).min(self.segment_bytes as usize);
                record.resize(len + filled - end, 0);
            }
            writer.filled = filled;
        }
        file.write_at(&record, u64::from(at.offset))?;
        writer.appended += len as u64;
        writer.tail = Tail { at: Position { offset: at.offset + len as u32, ..at }, next: lsn.next() };
        writer.before = chunk;
        writer.marked = *change == Change::Mark;
        Ok(Appended { lsn, data: Position { offset: at.offset + before_data as u32, ..at } })
    }

    /// Appends a mark, unless there is one already or the last record is not durable yet.
    pub fn mark(&self) -> io::Result<()> {
        let (chunk, due) = {
            let writer = self.writer.lock();
            (writer.before, !writer.marked && self.durable().next() == writer.tail.next)
        };
        if due { self.append(chunk, &Change::Mark, &[]).map(|_| ()) } else { Ok(()) }
    }

    fn next_segment(&self, writer: &mut Writer, full: Option<Arc<StoreFile>>) -> io::Result<Arc<StoreFile>> {
        let newest = self.files.read().keys().next_back().copied().unwrap_or(0);
        let segment =
            newest.max(writer.tail.at.segment).checked_add(1).expect("2^32 segments are never filled");
        let key = SegmentKey { disk: self.disk, segment };
        let path = segment_path(&self.dir, segment);
        let make = || {
            let file = StoreFile::create(&path, &self.watch)?;
            file.allocate(u64::from(self.segment_bytes))?;
            file.write_at(&encode_header(key, writer.tail.next), 0)?;
            file.sync()?;
            sync_dir(&self.dir, &self.watch)?;
            Ok(file)
        };
        let file = match make() {
            Ok(file) => Arc::new(file),
            Err(error) => {
                // Half a segment is of no use and takes space; the old one stays the tail.
                let _ = std::fs::remove_file(&path);
                writer.file = full;
                return Err(error);
            }
        };
        writer.unsynced.extend(full);
        self.files.write().insert(segment, file.clone());
        writer.tail.at = Position { segment, offset: SEGMENT_HEADER_LEN as u32 };
        writer.filled = SEGMENT_HEADER_LEN;
        Ok(file)
    }

    /// Brings every record up to `lsn` onto stable storage. An error is final: what the
    /// disk holds is then unknown.
    pub fn sync(&self, lsn: Lsn) -> io::Result<()> {
        if self.durable() >= lsn {
            return Ok(());
        }
        // Whoever waited here mostly finds that the sync before covered its record too.
        let _turn = self.syncing.lock();
        if self.durable() >= lsn {
            return Ok(());
        }
        let (files, last) = {
            let mut writer = self.writer.lock();
            let mut files = std::mem::take(&mut writer.unsynced);
            files.extend(writer.file.clone());
            writer.synced_apart = writer.appended - writer.appended_at_sync;
            writer.appended_at_sync = writer.appended;
            (files, writer.tail.next.0 - 1)
        };
        if let Err(error) = files.iter().try_for_each(|file| file.sync()) {
            // Nobody may take the rest for all that there is to sync.
            self.writer.lock().unsynced.splice(0..0, files);
            return Err(error);
        }
        self.durable.store(last, Ordering::Release);
        Ok(())
    }

    /// Reads from a segment.
    pub fn read(&self, at: Position, out: &mut [u8]) -> io::Result<()> {
        let file = self.files.read().get(&at.segment).cloned();
        match file {
            Some(file) => file.read_at(out, u64::from(at.offset)),
            None => {
                Err(io::Error::new(io::ErrorKind::NotFound, format!("no log segment {:08x}", at.segment)))
            }
        }
    }

    /// As [`Log::read`], if that needs no disk; else false.
    pub fn read_at_once(&self, at: Position, out: &mut [u8]) -> bool {
        let file = self.files.read().get(&at.segment).cloned();
        file.is_some_and(|file| file.read_at_once(out, u64::from(at.offset)))
    }

    /// Bytes that are going to be read.
    pub fn will_read(&self, at: Position, len: u64) {
        if let Some(file) = self.files.read().get(&at.segment) {
            file.will_read(u64::from(at.offset), len);
        }
    }

    /// Removes a segment that nothing needs any more.
    pub fn remove(&self, segment: u32) -> io::Result<()> {
        self.files.write().remove(&segment);
        std::fs::remove_file(segment_path(&self.dir, segment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::file::FileWatch;
    use std::sync::atomic::AtomicBool;

    /// While it is set the sync of the first segment fails.
    #[derive(Default)]
    struct Broken(AtomicBool);

    impl FileWatch for Broken {
        fn will_sync(&self, path: &Path) -> io::Result<()> {
            let broken = path.ends_with("00000001.seg") && self.0.load(Ordering::Relaxed);
            if broken { Err(io::Error::other("lost")) } else { Ok(()) }
        }
    }

    /// Where writes to segments end.
    #[derive(Default)]
    struct Ends(Mutex<Vec<u64>>);

    impl FileWatch for Ends {
        fn will_write(&self, _: &Path, _: &std::fs::File, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.0.lock().push(offset + bytes.len() as u64);
            Ok(())
        }
    }

    #[test]
    fn the_header_of_a_segment_is_the_one_of_version_1() {
        let key = SegmentKey { disk: 7, segment: 3 };
        let bytes = encode_header(key, Lsn(0x0102));
        let golden = b"gofsseg1\x07\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0";
        let crc = crc32c::crc32c(golden).to_le_bytes();
        assert_eq!(bytes[..36], [&golden[..], &crc].concat());
        assert_eq!(decode_header(key, &bytes), Some(Lsn(0x0102)));
        assert_eq!(decode_header(SegmentKey { disk: 8, ..key }, &bytes), None);
    }

    #[test]
    fn zeros_go_ahead_of_records_that_are_synced_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let start = Tail { at: Position { segment: 0, offset: 0 }, next: Lsn(1) };
        let ends = Arc::new(Ends::default());
        let log = Log::open(dir.path(), 1, 1 << 20, start, &Some(ends.clone())).unwrap();
        let append = || log.append(ChunkId(1), &Change::Clean, &[]).unwrap().lsn;
        let filled = |ends: &Ends| ends.0.lock().iter().copied().max().unwrap();
        for _ in 0..100 {
            append();
        }
        assert_eq!(filled(&ends), u64::from(log.tail().at.offset), "nobody has synced");
        for _ in 0..100 {
            log.sync(append()).unwrap();
        }
        let ahead = filled(&ends);
        assert!(ahead >= u64::from(log.tail().at.offset) + (64 << 10));
        let wide = ends.0.lock().iter().filter(|end| **end == ahead).count();
        assert_eq!(wide, 1, "once, for many records");
        while u64::from(log.tail().at.offset) < ahead {
            append();
        }
        log.sync(append()).unwrap();
        append();
        assert_eq!(filled(&ends), u64::from(log.tail().at.offset), "many lay between the syncs");
    }

    #[test]
    fn after_a_failed_sync_nothing_is_called_durable() {
        let dir = tempfile::tempdir().unwrap();
        let start = Tail { at: Position { segment: 0, offset: 0 }, next: Lsn(1) };
        let broken = Arc::new(Broken::default());
        let log = Log::open(dir.path(), 1, 4096, start, &Some(broken.clone())).unwrap();
        let mut last = Lsn(0);
        while log.segments().len() < 2 {
            last = log.append(ChunkId(1), &Change::Clean, &[]).unwrap().lsn;
        }
        broken.0.store(true, Ordering::Relaxed);
        assert!(log.sync(last).is_err());
        // The kernel tells of a lost write once. The second segment alone is whole, but it is not the log.
        broken.0.store(false, Ordering::Relaxed);
        assert!(log.sync(last).is_err());
        assert_eq!(log.durable(), Lsn(0));
    }
}

//! The bytes of a segment file.
//!
//! A header, then records one after the other, then zeros to the end of the preallocated file. Nothing is ever
//! overwritten: dropping entries is a record too. Each record has
//!
//! ```text
//! magic u32 | kind u8, 0, 0, 0 | payload length u32 | crc32c u32 | seq u64 | synced u64 | term u64 | index u64 | payload
//! ```
//!
//! little-endian. The checksum covers the log's salt, all fields but magic and itself, and the payload; the
//! salt keeps bytes inside a payload from ever passing for a record. `seq` counts all records of the log.
//! `synced` is the seq up to which everything was on stable storage when the record was
//! written, and tells damage from a crash: a bad record with a good one behind it that says
//! "synced past it" was once whole.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::state::LogPosition;

pub(super) const HEADER_BYTES: u64 = 32;
pub(super) const RECORD_HEADER_BYTES: usize = 48;
const SEGMENT_MAGIC: &[u8; 8] = b"gofslog1";
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"GrEc");
const SEGMENT_VERSION: u32 = 1;
/// Longest payload: bounds what a damaged length can make a reader allocate.
pub(super) const PAYLOAD_MAX: usize = 1 << 30;
const ZERO_BYTES: usize = 1 << 20;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The next entry of the log.
    Append { position: LogPosition, payload: Bytes },
    /// Entries after this index are gone; `None`: all are.
    Truncate { after: Option<u64> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub seq: u64,
    pub synced: u64,
    pub entry: Entry,
}

const APPEND: u8 = 1;
const TRUNCATE: u8 = 2;
const TRUNCATE_ALL: u8 = 3;

/// One segment file, open.
#[derive(Debug)]
pub(super) struct Segment {
    pub file: File,
    pub path: PathBuf,
    pub salt: u64,
    pub first_seq: u64,
    pub len: u64,
}

/// What is at an offset of a segment.
#[derive(Debug)]
pub(super) enum Found {
    Record(Record, u64),
    /// Zeros: nothing was written here.
    Nothing,
    /// Neither.
    Bad,
}

/// File name of the segment that starts with that record.
pub(super) fn file_name(first_seq: u64) -> String {
    format!("{first_seq:020}.log")
}

pub(super) fn seq_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes a file of zeros, durable, for a segment to come.
pub(super) fn preallocate(path: &Path, len: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    let zeros = vec![0; ZERO_BYTES];
    let mut at = 0;
    while at < len {
        let part = ZERO_BYTES.min(usize::try_from(len - at).unwrap_or(ZERO_BYTES));
        file.write_all_at(&zeros[..part], at)?;
        at += part as u64;
    }
    file.sync_all()
}

fn header(salt: u64, first_seq: u64) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    header[..8].copy_from_slice(SEGMENT_MAGIC);
    header[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
    header[12..20].copy_from_slice(&salt.to_le_bytes());
    header[20..28].copy_from_slice(&first_seq.to_le_bytes());
    let crc = crc32c::crc32c(&header[..28]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
    header
}

impl Record {
    /// Appends the record's bytes.
    pub fn encode(&self, salt: u64, out: &mut Vec<u8>) {
        let none = Bytes::new();
        let (kind, position, payload) = match &self.entry {
            Entry::Append { position, payload } => (APPEND, *position, payload),
            Entry::Truncate { after: Some(index) } => {
                (TRUNCATE, LogPosition { index: *index, ..LogPosition::default() }, &none)
            }
            Entry::Truncate { after: None } => (TRUNCATE_ALL, LogPosition::default(), &none),
        };
        let mut head = [0; RECORD_HEADER_BYTES];
        head[..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        head[4] = kind;
        let len = u32::try_from(payload.len()).expect("payloads are bounded by PAYLOAD_MAX");
        head[8..12].copy_from_slice(&len.to_le_bytes());
        let fields = [self.seq, self.synced, position.term, position.index];
        for (at, field) in fields.into_iter().enumerate() {
            head[16 + at * 8..24 + at * 8].copy_from_slice(&field.to_le_bytes());
        }
        let crc = checksum(salt, &head, payload);
        head[12..16].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(payload);
    }
}

fn checksum(salt: u64, head: &[u8; RECORD_HEADER_BYTES], payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&salt.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &head[4..12]);
    let crc = crc32c::crc32c_append(crc, &head[16..]);
    crc32c::crc32c_append(crc, payload)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

impl Segment {
    /// Turns a file of zeros into the segment that starts with `first_seq`.
    pub fn create(dir: &Path, zeros: &Path, salt: u64, first_seq: u64) -> io::Result<Arc<Segment>> {
        let path = dir.join(file_name(first_seq));
        let file = OpenOptions::new().read(true).write(true).open(zeros)?;
        file.write_all_at(&header(salt, first_seq), 0)?;
        file.sync_all()?;
        std::fs::rename(zeros, &path)?;
        sync_dir(dir)?;
        let len = file.metadata()?.len();
        Ok(Arc::new(Segment { file, path, salt, first_seq, len }))
    }

    /// Opens a segment and checks its header.
    pub fn open(path: &Path) -> io::Result<Arc<Segment>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let len = file.metadata()?.len();
        let mut found = [0; HEADER_BYTES as usize];
        file.read_exact_at(&mut found, 0)?;
        let (salt, first_seq) = (u64_at(&found, 12), u64_at(&found, 20));
        let version = u32_at(&found, 8);
        let invalid = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        if found[..8] == *SEGMENT_MAGIC && version > SEGMENT_VERSION {
            return invalid(format!("format version {version} is newer than this program"));
        }
        if found != header(salt, first_seq) {
            return invalid("the header is damaged".into());
        }
        if path.file_name().and_then(|name| seq_of(name.to_str()?)) != Some(first_seq) {
            return invalid(format!("the header says that the file's name is {}", file_name(first_seq)));
        }
        Ok(Arc::new(Segment { file, path: path.to_owned(), salt, first_seq, len }))
    }

    /// What is at `offset`; with a record comes the offset behind it.
    pub fn at(&self, offset: u64) -> io::Result<Found> {
        let mut head = [0; RECORD_HEADER_BYTES];
        let room = self.len.saturating_sub(offset);
        if room < RECORD_HEADER_BYTES as u64 {
            let mut rest = vec![0; usize::try_from(room).unwrap_or(0)];
            self.file.read_exact_at(&mut rest, offset)?;
            let empty = rest.iter().all(|byte| *byte == 0);
            return Ok(if empty { Found::Nothing } else { Found::Bad });
        }
        self.file.read_exact_at(&mut head, offset)?;
        if head.iter().all(|byte| *byte == 0) {
            return Ok(Found::Nothing);
        }
        let len = u32_at(&head, 8) as usize;
        let fits = len <= PAYLOAD_MAX && len as u64 <= room - RECORD_HEADER_BYTES as u64;
        if u32_at(&head, 0) != RECORD_MAGIC || head[5..8] != [0; 3] || !fits {
            return Ok(Found::Bad);
        }
        let mut payload = vec![0; len];
        self.file.read_exact_at(&mut payload, offset + RECORD_HEADER_BYTES as u64)?;
        if checksum(self.salt, &head, &payload) != u32_at(&head, 12) {
            return Ok(Found::Bad);
        }
        let position = LogPosition { term: u64_at(&head, 32), index: u64_at(&head, 40) };
        let entry = match head[4] {
            APPEND => Entry::Append { position, payload: payload.into() },
            TRUNCATE => Entry::Truncate { after: Some(position.index) },
            TRUNCATE_ALL => Entry::Truncate { after: None },
            _ => return Ok(Found::Bad),
        };
        let record = Record { seq: u64_at(&head, 16), synced: u64_at(&head, 24), entry };
        Ok(Found::Record(record, offset + (RECORD_HEADER_BYTES + len) as u64))
    }

    /// Gives each block of the file from `offset` on that is not all zeros, with its offset, and `overlap` bytes of the next.
    fn blocks(
        &self,
        offset: u64,
        overlap: usize,
        mut take: impl FnMut(u64, &mut Vec<u8>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let zeros = vec![0; ZERO_BYTES + overlap];
        let mut block = Vec::with_capacity(zeros.len());
        let mut at = offset;
        while at < self.len {
            let part = zeros.len().min(usize::try_from(self.len - at).unwrap_or(zeros.len()));
            block.resize(part, 0);
            self.file.read_exact_at(&mut block, at)?;
            // Compared as a whole: most of a segment is zeros.
            if block != zeros[..part] && !take(at, &mut block)? {
                return Ok(());
            }
            at += ZERO_BYTES as u64;
        }
        Ok(())
    }

    /// The first good record at or after `offset` that says that `seq` was on stable storage before it was written.
    pub fn proves_synced(&self, offset: u64, seq: u64) -> io::Result<Option<u64>> {
        let magic = RECORD_MAGIC.to_le_bytes();
        let mut proof = None;
        self.blocks(offset, magic.len() - 1, |block_at, block| {
            for (at, _) in block.windows(magic.len()).enumerate().filter(|(_, window)| *window == magic) {
                if let Found::Record(record, _) = self.at(block_at + at as u64)?
                    && record.synced >= seq
                {
                    proof = Some(block_at + at as u64);
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        Ok(proof)
    }

    /// Makes everything from `offset` zeros again, durably: what a crash left behind must not pass for records later.
    pub fn wipe(&self, offset: u64) -> io::Result<()> {
        self.blocks(offset, 0, |at, block| {
            block.fill(0);
            self.file.write_all_at(block, at)?;
            Ok(true)
        })?;
        self.file.sync_data()
    }
}

//! Reading a log directory after a stop or a crash.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::index::Index;
use super::segment::{Entry, Found, HEADER_BYTES, Segment, seq_of, sync_dir};
use super::vote::{FILE, Vote};
use crate::state::LogPosition;

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EditLogError {
    /// The disk said no.
    #[error("EditLog {}: {error}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// Bytes that were on stable storage are not what they were.
    #[error(
        "EditLog {} is damaged at byte {offset}: {reason}. Entries that were acknowledged may be lost here, so this \
         MetaServer does not start. If other MetaServers run, delete this one's data directory and start it again: it fetches \
         everything from them. Otherwise restore the data directory from a backup",
        path.display()
    )]
    Damaged {
        /// Segment file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
}

/// What was found.
pub(super) struct Recovered {
    pub vote: Vote,
    pub index: Index,
    pub segments: Vec<Arc<Segment>>,
    /// Where the next record goes in the last segment.
    pub end: u64,
    pub next_seq: u64,
}

fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(seq) = entry.file_name().to_str().and_then(seq_of) {
            segments.push((seq, entry.path()));
        }
    }
    segments.sort();
    Ok(segments)
}

/// Reads everything, cuts what a crash left unfinished, and refuses what is damaged.
pub(super) fn recover(dir: &Path, cache_bytes: usize) -> Result<Recovered, EditLogError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| EditLogError::Io { path, error }
    };
    fs::create_dir_all(dir).map_err(failed(dir))?;
    if let Some(parent) = dir.parent() {
        sync_dir(parent).map_err(failed(parent))?;
    }
    let files = list(dir).map_err(failed(dir))?;
    let vote_path = dir.join(FILE);
    let vote = match Vote::load(dir) {
        Ok(Some(vote)) => vote,
        Ok(None) if files.is_empty() => Vote::default(),
        Ok(None) => return Err(damaged(&vote_path, 0, "the file is missing")),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(damaged(&vote_path, 0, &error.to_string()));
        }
        Err(error) => return Err(EditLogError::Io { path: vote_path, error }),
    };

    let mut replay = Replay { index: Index::new(vote.purged, cache_bytes), adrift: None };
    let mut segments: Vec<Arc<Segment>> = Vec::new();
    let mut next_seq = None;
    let mut end = HEADER_BYTES;
    for (at, (first_seq, path)) in files.iter().enumerate() {
        let last = at + 1 == files.len();
        let segment = match Segment::open(path) {
            Ok(segment) => segment,
            Err(error)
                if error.kind() == io::ErrorKind::InvalidData
                    || error.kind() == io::ErrorKind::UnexpectedEof =>
            {
                return Err(damaged(path, 0, &error.to_string()));
            }
            Err(error) => return Err(EditLogError::Io { path: path.clone(), error }),
        };
        let seq = *next_seq.get_or_insert(*first_seq);
        if seq != *first_seq {
            let reason = format!("records {seq} to {first_seq} before this file are missing");
            return Err(damaged(path, 0, &reason));
        }
        (end, next_seq) = {
            let (end, seq) = read_segment(&segment, seq, last, &mut replay)?;
            (end, Some(seq))
        };
        segments.push(segment);
    }
    if let Some(first) = replay.adrift {
        let path = segments.last().map_or(vote_path, |segment| segment.path.clone());
        let reason = format!("entries before entry {first} are missing");
        return Err(damaged(&path, end, &reason));
    }
    let index = replay.index;
    if let (Some(committed), Some(last)) = (vote.committed, index.last().or(vote.purged))
        && last.index < committed.index
    {
        let path = segments.last().map_or(vote_path, |segment| segment.path.clone());
        let reason =
            format!("entries {} to {} are missing, and were committed", last.index + 1, committed.index);
        return Err(damaged(&path, end, &reason));
    }
    Ok(Recovered { vote, index, segments, end, next_seq: next_seq.unwrap_or(1) })
}

fn damaged(path: &Path, offset: u64, reason: &str) -> EditLogError {
    EditLogError::Damaged { path: path.to_owned(), offset, reason: reason.to_owned() }
}

/// The log as it is read record by record.
struct Replay {
    index: Index,
    /// First of the entries whose predecessors were in a purged segment. They must turn out to have
    /// been truncated, else something is missing.
    adrift: Option<u64>,
}

impl Replay {
    /// `false` where the entry cannot come here.
    fn append(&mut self, position: LogPosition, payload: Bytes, seq: u64) -> bool {
        let purged = self.index.purged().is_some_and(|purged| position.index <= purged.index);
        match self.index.next_index() {
            _ if self.adrift.is_some() || purged => {}
            Some(due) if position.index > due && self.index.last().is_none() => {
                self.adrift = Some(position.index)
            }
            Some(due) if position.index != due => return false,
            _ => self.index.append(position, payload, seq),
        }
        true
    }

    fn truncate_after(&mut self, after: Option<u64>) {
        if self.adrift.is_some_and(|first| after.is_none_or(|after| after < first)) {
            self.adrift = None;
        }
        self.index.truncate_after(after);
    }
}

fn index_due(replay: &Replay) -> u64 {
    replay.index.next_index().unwrap_or(0)
}

/// Takes a segment's records into the index; returns where they end and the next seq.
fn read_segment(
    segment: &Arc<Segment>,
    mut seq: u64,
    last: bool,
    replay: &mut Replay,
) -> Result<(u64, u64), EditLogError> {
    let failed = |error| EditLogError::Io { path: segment.path.clone(), error };
    let mut offset = HEADER_BYTES;
    loop {
        match segment.at(offset).map_err(failed)? {
            Found::Record(record, next) if record.seq == seq => {
                match record.entry {
                    Entry::Append { position, payload } => {
                        if !replay.append(position, payload, seq) {
                            let reason =
                                format!("entry {} where {:?} was due", position.index, index_due(replay));
                            return Err(damaged(&segment.path, offset, &reason));
                        }
                        replay.index.placed(position.index, seq, segment, offset);
                    }
                    Entry::Truncate { after } => replay.truncate_after(after),
                }
                offset = next;
                seq += 1;
            }
            // The end, or the start of what a crash tore.
            Found::Nothing | Found::Bad | Found::Record(..) => {
                let proof = segment.proves_synced(offset, seq).map_err(failed)?;
                if let Some(proof) = proof {
                    let reason =
                        format!("record {seq} cannot be read, but byte {proof} shows that it was written");
                    return Err(damaged(&segment.path, offset, &reason));
                }
                if last {
                    cut(segment, offset)?;
                }
                return Ok((offset, seq));
            }
        }
    }
}

/// Wipes what follows the last whole record of the last segment.
fn cut(segment: &Segment, offset: u64) -> Result<(), EditLogError> {
    let failed = |error| EditLogError::Io { path: segment.path.clone(), error };
    if !matches!(segment.at(offset).map_err(failed)?, Found::Nothing) {
        tracing::warn!(
            path = %segment.path.display(), offset,
            "the EditLog ends in an unfinished record, as after a crash; it was not acknowledged and is cut"
        );
    }
    segment.wipe(offset).map_err(failed)
}

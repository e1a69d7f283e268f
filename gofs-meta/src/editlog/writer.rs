//! The thread that writes: takes what waits, writes it, syncs once, and tells everyone.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::Done;
use super::index::Index;
use super::segment::{Entry, HEADER_BYTES, RECORD_HEADER_BYTES, Record, Segment, preallocate, sync_dir};
use super::vote::Vote;
use crate::state::LogPosition;

/// What to do, in order.
pub(super) enum Request {
    /// Records with their seqs.
    Write {
        records: Vec<(u64, Entry)>,
        done: Done,
    },
    Purge {
        upto: LogPosition,
        done: Done,
    },
    Vote {
        vote: Vec<u8>,
        done: Done,
    },
    /// Everything before is done, and the hint is on disk.
    Stop {
        done: Done,
    },
}

/// At most so many bytes are written before a sync: bounds the wait of the first.
const BATCH_BYTES: usize = 8 << 20;

pub(super) struct LogWriter {
    pub dir: PathBuf,
    pub segment_bytes: u64,
    pub salt: u64,
    pub index: Arc<Mutex<Index>>,
    pub vote: Vote,
    /// What is known to be committed, written along with the vote.
    pub committed: Arc<Mutex<Option<LogPosition>>>,
    /// Index of the last entry on stable storage.
    pub written: Option<u64>,
    pub segments: Vec<Arc<Segment>>,
    /// Where the next record goes in the last segment.
    pub end: u64,
    /// Everything up to this record is on stable storage.
    pub synced: u64,
    pub spare: Option<JoinHandle<io::Result<PathBuf>>>,
    /// Tells files of zeros in the making apart.
    pub spares_made: u64,
}

impl LogWriter {
    pub fn run(mut self, requests: &Receiver<Request>) {
        let mut failure: Option<io::Error> = None;
        while let Ok(request) = requests.recv() {
            if let Some(error) = &failure {
                let stop = request.is_stop();
                request.refuse(error);
                if stop {
                    return;
                }
                continue;
            }
            let mut waiting = Vec::new();
            let mut buffered = 0;
            let mut next = Some(request);
            // Gather the writes that wait; anything else is done by itself, in its turn.
            while let Some(Request::Write { records, done }) = next {
                buffered += records.iter().map(|(_, entry)| entry_bytes(entry)).sum::<usize>();
                waiting.push((records, done));
                next = if buffered < BATCH_BYTES { requests.try_recv().ok() } else { None };
            }
            if !waiting.is_empty() {
                let (batches, dones): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
                let result = self.write(batches);
                for done in dones {
                    done(result.as_ref().map_err(clone_error).copied());
                }
                failure = result.err();
            }
            if let Some(request) = next {
                let stop = request.is_stop();
                match &failure {
                    Some(error) => request.refuse(error),
                    None => failure = self.other(request).err(),
                }
                if stop {
                    return;
                }
            }
            if let Some(error) = &failure {
                tracing::error!(dir = %self.dir.display(), %error, "the EditLog cannot be written; this MetaServer stops");
            }
        }
    }

    fn other(&mut self, request: Request) -> io::Result<()> {
        let (result, done) = match request {
            Request::Purge { upto, done } => (self.purge(upto), done),
            Request::Vote { vote, done } => {
                self.vote.vote = Some(vote);
                (self.save_vote(), done)
            }
            Request::Stop { done } => (self.save_vote(), done),
            Request::Write { records, done } => (self.write(vec![records]), done),
        };
        done(result.as_ref().map_err(clone_error).copied());
        result
    }

    fn save_vote(&mut self) -> io::Result<()> {
        let committed = *self.committed.lock();
        // The hint must never be ahead of the entries here, or their absence would look like damage.
        if committed.is_some_and(|committed| self.written.is_some_and(|written| committed.index <= written)) {
            self.vote.committed = committed;
        }
        self.vote.save(&self.dir)
    }

    /// Writes records and syncs them all.
    fn write(&mut self, batches: Vec<Vec<(u64, Entry)>>) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mut placed = Vec::new();
        let mut last_seq = self.synced;
        let mut written = self.written;
        for (seq, entry) in batches.into_iter().flatten() {
            let needed = entry_bytes(&entry) as u64;
            let room = match self.segments.last() {
                Some(segment) => segment.len.saturating_sub(self.end + buffer.len() as u64),
                None => 0,
            };
            if room < needed {
                self.flush(&mut buffer, &mut placed)?;
                self.synced = last_seq;
                self.roll(seq, needed)?;
            }
            written = match &entry {
                Entry::Append { position, .. } => {
                    placed.push((position.index, seq, self.end + buffer.len() as u64));
                    Some(position.index)
                }
                Entry::Truncate { after } => *after,
            };
            Record { seq, synced: self.synced, entry }.encode(self.salt, &mut buffer);
            last_seq = seq;
        }
        self.flush(&mut buffer, &mut placed)?;
        self.synced = last_seq;
        self.written = written;
        self.prepare_spare();
        Ok(())
    }

    fn flush(&mut self, buffer: &mut Vec<u8>, placed: &mut Vec<(u64, u64, u64)>) -> io::Result<()> {
        let Some(segment) = self.segments.last() else { return Ok(()) };
        if buffer.is_empty() {
            return Ok(());
        }
        segment.file.write_all_at(buffer, self.end)?;
        segment.file.sync_data()?;
        self.end += buffer.len() as u64;
        let mut index = self.index.lock();
        for (entry, seq, offset) in placed.drain(..) {
            index.placed(entry, seq, segment, offset);
        }
        buffer.clear();
        Ok(())
    }

    /// Starts a segment in which a record of `needed` bytes fits.
    fn roll(&mut self, first_seq: u64, needed: u64) -> io::Result<()> {
        // A log with segments and no vote file would look damaged.
        if self.segments.is_empty() {
            self.save_vote()?;
        }
        let len = self.segment_bytes.max(HEADER_BYTES + needed);
        let ready = match self.spare.take().map(JoinHandle::join) {
            Some(Ok(Ok(path))) if len == self.segment_bytes => path,
            // No spare, or one that failed or is too small: make one now, and meet the error here.
            _ => {
                let path = self.spare_path();
                preallocate(&path, len)?;
                path
            }
        };
        self.segments.push(Segment::create(&self.dir, &ready, self.salt, first_seq)?);
        self.end = HEADER_BYTES;
        Ok(())
    }

    fn spare_path(&mut self) -> PathBuf {
        self.spares_made += 1;
        self.dir.join(format!("spare-{}.new", self.spares_made))
    }

    /// Has the next file of zeros made beside the writing, once half of this one is used.
    fn prepare_spare(&mut self) {
        let half = self.segments.last().is_some_and(|segment| self.end > segment.len / 2);
        if half && self.spare.is_none() {
            let path = self.spare_path();
            let len = self.segment_bytes;
            let make = move || preallocate(&path, len).map(|()| path);
            // Without a thread the file is made when it is needed.
            self.spare = std::thread::Builder::new().name("editlog-zeros".into()).spawn(make).ok();
        }
    }

    fn purge(&mut self, upto: LogPosition) -> io::Result<()> {
        self.vote.purged = self.vote.purged.max(Some(upto));
        self.written = self.written.max(Some(upto.index));
        self.save_vote()?;
        let needed = self.index.lock().first_seq();
        let mut gone = Vec::new();
        // A segment can go when the next one starts at or before the first record still needed; the last one stays.
        while self.segments.len() > 1 && needed.is_none_or(|needed| self.segments[1].first_seq <= needed) {
            gone.push(self.segments.remove(0));
        }
        for segment in &gone {
            fs::remove_file(&segment.path)?;
        }
        if gone.is_empty() { Ok(()) } else { sync_dir(&self.dir) }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        if let Some(Ok(Ok(path))) = self.spare.take().map(JoinHandle::join) {
            // A left-over file of zeros is removed at the next start too.
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes files of zeros that never became segments.
pub(super) fn remove_spares(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(".new") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn entry_bytes(entry: &Entry) -> usize {
    match entry {
        Entry::Append { payload, .. } => RECORD_HEADER_BYTES + payload.len(),
        Entry::Truncate { .. } => RECORD_HEADER_BYTES,
    }
}

/// The same error for one more who waits.
fn clone_error(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

impl Request {
    fn is_stop(&self) -> bool {
        matches!(self, Request::Stop { .. })
    }

    pub fn refuse(self, error: &io::Error) {
        match self {
            Request::Write { done, .. }
            | Request::Purge { done, .. }
            | Request::Vote { done, .. }
            | Request::Stop { done } => done(Err(clone_error(error))),
        }
    }
}

//! The EditLog on disk: appends entries durably and in order.
//!
//! Owns the segment files and the vote file of one directory; never looks inside an entry. Entries can be read as soon as
//! `append` returns; its callback comes when they are on stable storage. One thread writes: whatever waits is
//! written together and synced once. After a crash at most entries whose callback never came are gone.

mod index;
mod recover;
mod segment;
mod vote;
mod writer;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::state::LogPosition;
use index::Index;
use recover::recover;
use segment::{Entry, PAYLOAD_MAX};
use writer::{LogWriter, Request, remove_spares};

pub use recover::EditLogError;

/// Told the result when it is on stable storage, or is known not to be.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// How a log is kept.
#[derive(Clone, Debug)]
pub(crate) struct EditLogConfig {
    pub dir: PathBuf,
    /// Bytes of one segment file.
    pub segment_bytes: u64,
    /// Bytes of entries kept in memory.
    pub cache_bytes: usize,
    /// Makes this log's records unlike those of any other, and unlike bytes that a client could send. Random.
    pub salt: u64,
}

/// A log. Clones share it.
#[derive(Clone)]
pub(crate) struct EditLog {
    shared: Arc<Shared>,
}

struct Shared {
    index: Arc<Mutex<Index>>,
    /// The order of requests is the order of records: taken around numbering and sending.
    order: Mutex<Order>,
    vote: Mutex<Option<Vec<u8>>>,
    committed: Arc<Mutex<Option<LogPosition>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

struct Order {
    next_seq: u64,
    requests: Sender<Request>,
}

impl EditLog {
    /// Opens the log in `config.dir`, empty if it is new.
    pub fn open(config: &EditLogConfig) -> Result<Self, EditLogError> {
        let io_error = |dir: &Path, error| EditLogError::Io { path: dir.to_owned(), error };
        let recovered = recover(&config.dir, config.cache_bytes)?;
        remove_spares(&config.dir).map_err(|error| io_error(&config.dir, error))?;
        let salt = recovered.segments.last().map_or(config.salt, |segment| segment.salt);
        let written = recovered.index.last().or(recovered.vote.purged).map(|last| last.index);
        let index = Arc::new(Mutex::new(recovered.index));
        let vote = Mutex::new(recovered.vote.vote.clone());
        let committed = Arc::new(Mutex::new(recovered.vote.committed));
        let writer = LogWriter {
            dir: config.dir.clone(),
            segment_bytes: config.segment_bytes,
            salt,
            index: index.clone(),
            vote: recovered.vote,
            committed: committed.clone(),
            written,
            segments: recovered.segments,
            end: recovered.end,
            synced: recovered.next_seq - 1,
            spare: None,
            spares_made: 0,
        };
        let (requests, received) = channel();
        let thread = std::thread::Builder::new()
            .name("editlog".into())
            .spawn(move || writer.run(&received))
            .map_err(|error| io_error(&config.dir, error))?;
        let order = Mutex::new(Order { next_seq: recovered.next_seq, requests });
        let shared = Shared { index, order, vote, committed, writer: Mutex::new(Some(thread)) };
        Ok(EditLog { shared: Arc::new(shared) })
    }

    /// The last purged entry.
    pub fn purged(&self) -> Option<LogPosition> {
        self.shared.index.lock().purged()
    }

    /// The last entry; the last purged one where none is left.
    pub fn last(&self) -> Option<LogPosition> {
        let index = self.shared.index.lock();
        index.last().or(index.purged())
    }

    /// Appends entries that follow the last one without a hole.
    pub fn append(&self, entries: Vec<(LogPosition, Bytes)>, done: Done) {
        if let Some((position, payload)) = entries.iter().find(|(_, payload)| payload.len() > PAYLOAD_MAX) {
            let reason =
                format!("entry {} has {} bytes, more than the EditLog takes", position.index, payload.len());
            return done(Err(io::Error::new(io::ErrorKind::InvalidInput, reason)));
        }
        if entries.is_empty() {
            return done(Ok(()));
        }
        let mut order = self.shared.order.lock();
        let mut records = Vec::with_capacity(entries.len());
        {
            let mut index = self.shared.index.lock();
            for (position, payload) in entries {
                let seq = order.next_seq;
                order.next_seq += 1;
                index.append(position, payload.clone(), seq);
                records.push((seq, Entry::Append { position, payload }));
            }
        }
        order.send(Request::Write { records, done });
    }

    /// Drops entries after `after`; `None`: all.
    pub fn truncate_after(&self, after: Option<u64>, done: Done) {
        let mut order = self.shared.order.lock();
        self.shared.index.lock().truncate_after(after);
        let seq = order.next_seq;
        order.next_seq += 1;
        order.send(Request::Write { records: vec![(seq, Entry::Truncate { after })], done });
    }

    /// Drops entries up to and with `upto`, which may be past the last one.
    pub fn purge(&self, upto: LogPosition, done: Done) {
        let order = self.shared.order.lock();
        self.shared.index.lock().purge(upto);
        order.send(Request::Purge { upto, done });
    }

    /// Remembers raft's vote.
    pub fn save_vote(&self, vote: Vec<u8>, done: Done) {
        let order = self.shared.order.lock();
        *self.shared.vote.lock() = Some(vote.clone());
        order.send(Request::Vote { vote, done });
    }

    /// Raft's vote.
    pub fn vote(&self) -> Option<Vec<u8>> {
        self.shared.vote.lock().clone()
    }

    /// Remembers what is committed; on disk with the next vote or purge, or at the end.
    pub fn save_committed(&self, committed: Option<LogPosition>) {
        *self.shared.committed.lock() = committed;
    }

    /// What was known to be committed; after a crash perhaps less.
    pub fn committed(&self) -> Option<LogPosition> {
        *self.shared.committed.lock()
    }

    /// Entries with `start <= index < end` that are there, in order, at most about `bytes` of them but one at least.
    pub fn read(&self, start: u64, end: u64, bytes: usize) -> io::Result<Vec<(LogPosition, Bytes)>> {
        let found = self.shared.index.lock().read(start, end, bytes);
        found.into_iter().map(index::Read::finish).collect()
    }

    /// Ends the writing thread when everything asked for is done. Waits; nothing can be appended any more.
    pub fn close(&self) -> io::Result<()> {
        let (sender, receiver) = channel();
        let Some(thread) = self.shared.writer.lock().take() else { return Ok(()) };
        self.shared
            .order
            .lock()
            .send(Request::Stop { done: Box::new(move |result| drop(sender.send(result))) });
        let result =
            receiver.recv().unwrap_or_else(|_| Err(io::Error::other("the EditLog's thread ended early")));
        if thread.join().is_err() {
            return Err(io::Error::other("the EditLog's thread panicked"));
        }
        result
    }
}

impl Order {
    fn send(&self, request: Request) {
        // A closed log tells everyone so: the request comes back and its callback runs.
        if let Err(returned) = self.requests.send(request) {
            returned.0.refuse(&io::Error::new(io::ErrorKind::BrokenPipe, "the EditLog is closed"));
        }
    }
}

//! openraft's log on our EditLog.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;
use gofs_wakeful::Wakeful;
use openraft::entry::RaftPayload;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{CommandBytes, Entry, LogId, Membership, Payload, Types, Vote, log_id_of, position_of, wire};
use crate::editlog::{Done, EditLog};
use crate::state::LogPosition;

/// Bytes of entries sent to a MetaServer at once.
const SEND_BYTES: usize = 4 << 20;

const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERSHIP: u8 = 2;

#[derive(Clone)]
pub(crate) struct LogStore {
    log: EditLog,
    /// Entries up to here may go with the next purge.
    spared: Arc<Mutex<Option<LogPosition>>>,
    wakeful: Arc<Wakeful>,
}

impl LogStore {
    pub fn new(log: EditLog, wakeful: Arc<Wakeful>) -> Self {
        LogStore { log, spared: Arc::default(), wakeful }
    }

    async fn wait(&self, ask: impl FnOnce(Done)) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        ask(Box::new(move |result| drop(sender.send(result))));
        receiver.await.unwrap_or_else(|_| Err(io::Error::other("the EditLog's thread ended")))
    }

    fn read(&self, start: u64, end: u64, bytes: usize) -> io::Result<Vec<Entry>> {
        self.log
            .read(start, end, bytes)?
            .into_iter()
            .map(|(position, payload)| {
                let payload = decode_payload(&payload)?;
                Ok(Entry { log_id: log_id_of(position), payload })
            })
            .collect()
    }
}

fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

fn encode_payload(payload: &Payload) -> io::Result<Bytes> {
    Ok(match payload {
        Payload::Blank => Bytes::from_static(&[BLANK]),
        Payload::Normal(command) => {
            let mut bytes = Vec::with_capacity(1 + command.0.len());
            bytes.push(COMMAND);
            bytes.extend_from_slice(&command.0);
            bytes.into()
        }
        Payload::Membership(membership) => {
            let mut bytes = vec![MEMBERSHIP];
            bytes.extend(wire::encode(membership).map_err(invalid)?);
            bytes.into()
        }
    })
}

fn decode_payload(bytes: &Bytes) -> io::Result<Payload> {
    match bytes.first() {
        Some(&BLANK) => Ok(Payload::blank()),
        Some(&COMMAND) => Ok(Payload::Normal(CommandBytes(bytes.slice(1..)))),
        Some(&MEMBERSHIP) => {
            Ok(Payload::Membership(wire::decode::<Membership>(&bytes[1..]).map_err(invalid)?))
        }
        _ => {
            Err(invalid("an entry of the EditLog is of an unknown kind: was it written by a newer version?"))
        }
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.log.vote().map(|vote| wire::decode(&vote).map_err(invalid)).transpose()
    }

    /// Nothing where the first entries are gone: raft takes what it gets for what follows `start`.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let entries = self.read(start, end, SEND_BYTES)?;
        let follows = entries.first().is_none_or(|first| position_of(&first.log_id).index == start);
        Ok(if follows { entries } else { Vec::new() })
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        Ok(LogState {
            last_purged_log_id: self.log.purged().map(log_id_of),
            last_log_id: self.log.last().map(log_id_of),
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = wire::encode(vote).map_err(invalid)?;
        self.wait(|done| self.log.save_vote(vote, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.log.save_committed(committed.as_ref().map(position_of));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.log.committed().map(log_id_of))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        for entry in entries {
            records.push((position_of(&entry.log_id), encode_payload(&entry.payload)?));
        }
        // Entries come with requests, here or at the leader; ticks bring none.
        self.wakeful.touch();
        self.log.append(records, Box::new(move |result| callback.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.wait(|done| self.log.truncate_after(last_log_id.map(|last| last.index), done)).await
    }

    /// Entries stay until the next purge, because raft may still be reading them for a member that has just
    /// failed to answer. Where a Snapshot took their place, and others follow after it, they go at once.
    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let upto = position_of(&log_id);
        let replaced = self.log.last().is_none_or(|last| last.index <= upto.index);
        let due = {
            let mut spared = self.spared.lock();
            if replaced { spared.take().max(Some(upto)) } else { spared.replace(upto) }
        };
        match due {
            Some(due) => self.wait(|done| self.log.purge(due, done)).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use gofs_wakeful::CpuLatency;

    use super::*;
    use crate::editlog::EditLogConfig;

    fn at(index: u64) -> LogPosition {
        LogPosition { term: 1, index }
    }

    async fn store(dir: &std::path::Path, entries: u64) -> LogStore {
        let config =
            EditLogConfig { dir: dir.to_owned(), segment_bytes: 1 << 16, cache_bytes: 1 << 20, salt: 7 };
        let store = LogStore::new(EditLog::open(&config).unwrap(), Arc::new(Wakeful::start(CpuLatency::Off)));
        let records = (1..=entries).map(|index| (at(index), Bytes::from_static(&[BLANK])));
        store.wait(|done| store.log.append(records.collect(), done)).await.unwrap();
        store
    }

    async fn sent(store: &mut LogStore, start: u64) -> Vec<u64> {
        let entries = store.limited_get_log_entries(start, start + 3).await.unwrap();
        entries.iter().map(|entry| position_of(&entry.log_id).index).collect()
    }

    #[tokio::test]
    async fn what_is_read_follows_what_was_asked_for_or_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store(dir.path(), 100).await;
        store.purge(log_id_of(at(50))).await.unwrap();
        assert_eq!(sent(&mut store, 30).await, [30, 31, 32], "it may be on its way to a member");
        store.purge(log_id_of(at(80))).await.unwrap();
        assert_eq!(sent(&mut store, 30).await, [], "never those after a hole");
        assert_eq!(sent(&mut store, 51).await, [51, 52, 53]);
        store.log.close().unwrap();
    }

    #[tokio::test]
    async fn a_snapshot_that_goes_further_than_the_log_replaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store(dir.path(), 10).await;
        store.purge(log_id_of(at(5))).await.unwrap();
        store.purge(log_id_of(at(40))).await.unwrap();
        assert_eq!(store.get_log_state().await.unwrap().last_log_id, Some(log_id_of(at(40))));
        store
            .wait(|done| store.log.append(vec![(at(41), Bytes::from_static(&[BLANK]))], done))
            .await
            .unwrap();
        assert_eq!(sent(&mut store, 41).await, [41]);
        store.log.close().unwrap();
    }
}

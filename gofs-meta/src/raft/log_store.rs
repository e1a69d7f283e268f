//! openraft's log on our EditLog.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use openraft::entry::RaftPayload;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use super::{CommandBytes, Entry, LogId, Membership, Payload, Types, Vote, log_id_of, position_of, wire};
use crate::editlog::{Done, EditLog};

/// Bytes of entries sent to a MetaServer at once.
const SEND_BYTES: usize = 4 << 20;

const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERSHIP: u8 = 2;

#[derive(Clone)]
pub(crate) struct LogStore {
    log: EditLog,
}

impl LogStore {
    pub fn new(log: EditLog) -> Self {
        LogStore { log }
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

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, SEND_BYTES)
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
        self.log.append(records, Box::new(move |result| callback.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.wait(|done| self.log.truncate_after(last_log_id.map(|last| last.index), done)).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.wait(|done| self.log.purge(position_of(&log_id), done)).await
    }
}

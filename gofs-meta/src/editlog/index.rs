//! Where each entry of the log is, and the latest entries themselves.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::segment::{Entry, Found, Segment};
use crate::state::LogPosition;

/// An entry's place in a file.
#[derive(Clone, Debug)]
pub(super) struct Place {
    segment: Arc<Segment>,
    offset: u64,
}

#[derive(Debug)]
struct Slot {
    position: LogPosition,
    seq: u64,
    /// `None` until it was written.
    place: Option<Place>,
    /// `None` once it left memory; only what has a place may.
    payload: Option<Bytes>,
}

/// All entries after the purged one. Indexes follow each other without a hole.
#[derive(Debug)]
pub(super) struct Index {
    purged: Option<LogPosition>,
    slots: VecDeque<Slot>,
    /// Slots before this one have no payload in memory.
    first_cached: usize,
    cached_bytes: usize,
    budget_bytes: usize,
}

/// An entry as found in the index: from memory, or to be read.
pub(super) enum Read {
    Memory(LogPosition, Bytes),
    Disk(LogPosition, Place),
}

impl Index {
    pub fn new(purged: Option<LogPosition>, budget_bytes: usize) -> Self {
        Index { purged, slots: VecDeque::new(), first_cached: 0, cached_bytes: 0, budget_bytes }
    }

    pub fn purged(&self) -> Option<LogPosition> {
        self.purged
    }

    /// The last entry that is there.
    pub fn last(&self) -> Option<LogPosition> {
        self.slots.back().map(|slot| slot.position)
    }

    fn first_index(&self) -> Option<u64> {
        self.slots.front().map(|slot| slot.position.index)
    }

    /// The index that the next entry must have; `None` where any may come first.
    pub fn next_index(&self) -> Option<u64> {
        self.last().or(self.purged).map(|last| last.index + 1)
    }

    /// Takes an entry in. Entries up to the purged one are dropped at once.
    pub fn append(&mut self, position: LogPosition, payload: Bytes, seq: u64) {
        if self.purged.is_some_and(|purged| position.index <= purged.index) {
            return;
        }
        self.cached_bytes += payload.len();
        self.slots.push_back(Slot { position, seq, place: None, payload: Some(payload) });
    }

    fn slot(&self, index: u64) -> Option<usize> {
        let at = usize::try_from(index.checked_sub(self.first_index()?)?).ok()?;
        (at < self.slots.len()).then_some(at)
    }

    /// Says where the entry of that index and record was written, unless it was dropped meanwhile.
    pub fn placed(&mut self, index: u64, seq: u64, segment: &Arc<Segment>, offset: u64) {
        if let Some(at) = self.slot(index)
            && self.slots[at].seq == seq
        {
            self.slots[at].place = Some(Place { segment: segment.clone(), offset });
        }
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.cached_bytes > self.budget_bytes
            && let Some(slot) = self.slots.get_mut(self.first_cached)
            && slot.place.is_some()
        {
            if let Some(payload) = slot.payload.take() {
                self.cached_bytes -= payload.len();
            }
            self.first_cached += 1;
        }
    }

    /// Drops entries after `after`; `None`: all.
    pub fn truncate_after(&mut self, after: Option<u64>) {
        let keep = match (after, self.first_index()) {
            (_, None) | (None, _) => 0,
            (Some(after), Some(first)) => {
                usize::try_from((after + 1).saturating_sub(first)).unwrap_or(usize::MAX)
            }
        };
        while self.slots.len() > keep {
            let payload = self.slots.pop_back().and_then(|slot| slot.payload);
            self.cached_bytes -= payload.map_or(0, |payload| payload.len());
        }
        self.first_cached = self.first_cached.min(self.slots.len());
    }

    /// Drops entries up to and with `upto`.
    pub fn purge(&mut self, upto: LogPosition) {
        self.purged = self.purged.max(Some(upto));
        while self.first_index().is_some_and(|first| first <= upto.index) {
            let payload = self.slots.pop_front().and_then(|slot| slot.payload);
            self.cached_bytes -= payload.map_or(0, |payload| payload.len());
            self.first_cached = self.first_cached.saturating_sub(1);
        }
    }

    /// Record number of the first entry that is still needed.
    pub fn first_seq(&self) -> Option<u64> {
        self.slots.front().map(|slot| slot.seq)
    }

    /// Entries with `start <= index < end`, at most about `bytes` of payload but one at least.
    pub fn read(&self, start: u64, end: u64, bytes: usize) -> Vec<Read> {
        let Some(first) = self.first_index() else { return Vec::new() };
        let mut found = Vec::new();
        let mut taken = 0;
        let from = usize::try_from(start.saturating_sub(first)).unwrap_or(usize::MAX);
        let upto = usize::try_from(end.saturating_sub(first)).unwrap_or(usize::MAX).min(self.slots.len());
        for slot in self.slots.range(from.min(upto)..upto) {
            match (&slot.payload, &slot.place) {
                (Some(payload), _) => {
                    taken += payload.len();
                    found.push(Read::Memory(slot.position, payload.clone()));
                }
                (None, Some(place)) => {
                    taken += UNREAD_BYTES;
                    found.push(Read::Disk(slot.position, place.clone()));
                }
                // Only what has a place loses its payload.
                (None, None) => break,
            }
            if taken >= bytes {
                break;
            }
        }
        found
    }
}

/// What an entry that is not in memory counts for when a read is bounded.
const UNREAD_BYTES: usize = 4096;

impl Read {
    /// The entry; goes to the disk where it must.
    pub fn finish(self) -> io::Result<(LogPosition, Bytes)> {
        let (position, place) = match self {
            Read::Memory(position, payload) => return Ok((position, payload)),
            Read::Disk(position, place) => (position, place),
        };
        if let Found::Record(record, _) = place.segment.at(place.offset)?
            && let Entry::Append { position: found, payload } = record.entry
            && found == position
        {
            return Ok((position, payload));
        }
        let path = place.segment.path.display();
        let reason = format!(
            "EditLog {path} is damaged at byte {}: entry {} cannot be read",
            place.offset, position.index
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, reason))
    }
}

//! Where a chunk is read and written, and where a new one goes.
//!
//! [`locate`] and [`placement`] decide. Where a writer cannot do with the replicas as they are these are changed
//! first ([`Changing`]), so that none without its bytes is ever current.

use std::time::Instant;

use gofs_tree::{ChunkId, ChunkServerId, ChunkVersion, FsError};

use super::{
    ChunkService,
    changing::{Changed, Changing},
};
use crate::{
    chunks::{
        Location, READ_ONLY, Servers, Wanted, Write, hidden_at, leader::Leader, locate, locate_to_write,
        placement, was_told,
    },
    state::ChunkRecord,
};

impl ChunkService {
    /// Replicas to read from, at version 0 ([`READ_ONLY`]) where they may not be written to as they are. Says
    /// [`Location::Wait`] where nothing is known yet: answer RETRY, never "lost".
    pub fn for_reading(&self, chunk: ChunkId) -> Location {
        let Some(record) = self.record(chunk) else { return Location::NoChunk };
        let (location, hidden) = {
            let leader = self.leader.lock();
            if leader.term == 0 {
                return Location::Wait;
            }
            let (view, known) = (leader.view(&self.config, Instant::now()), (&record).into());
            let entry = leader.directory.entry(chunk);
            let location = locate(&view, &known, entry);
            let hidden = entry.and_then(|entry| hidden_at(&view, &known, entry, &location));
            (location, hidden)
        };
        match hidden.filter(|_| self.is_unwritten(&record)) {
            // Shown without these it would read as zeros.
            Some(servers) if servers.is_empty() => Location::Wait,
            Some(servers) => Location::At { version: READ_ONLY, servers },
            None => self.or_unwritten(location, &record),
        }
    }

    /// Replicas to write to. Where some that may hold the version are away it is raised on the others
    /// first, so that those away cannot come back as current without the write. An old chunk
    /// that nobody ever wrote and nobody has is placed anew; where it is `blank`, also if those that were to have it do not say so, or
    /// are away and never did: nothing in it was ever acknowledged to the one session that may write it. What another one wrote
    /// that ended before it committed may have been read, and synced. [`Location::Wait`]: answer RETRY.
    pub async fn for_writing(&self, chunk: ChunkId, blank: bool) -> Location {
        let Some(record) = self.record(chunk) else { return Location::NoChunk };
        if self.leader.lock().changing.contains(&chunk) {
            return Location::Wait;
        }
        match self.find_to_write(chunk, &record, blank) {
            Write::Raise | Write::There(Location::Unwritten) => {}
            Write::There(location) => return location,
        }
        let Some(changing) = Changing::begin(self, chunk) else { return Location::Wait };
        // Servers may have told of it since.
        match self.find_to_write(chunk, &record, blank) {
            Write::Raise => match changing.replicas(Wanted::default()).await {
                Changed::Committed { version, holders, .. } => {
                    Location::At { version, servers: self.addresses(&holders) }
                }
                // Those that are there were promised the chunk and say that nobody ever wrote it.
                Changed::NoSurvivor if blank && self.is_to_be_placed(chunk, &record, &[]) => {
                    self.anew(&changing, &record).await
                }
                Changed::NoSurvivor | Changed::Lost => Location::Wait,
            },
            Write::There(Location::Unwritten) => self.anew(&changing, &record).await,
            Write::There(location) => location,
        }
    }

    /// Says [`Location::Unwritten`] where the chunk is to be placed anew.
    fn find_to_write(&self, chunk: ChunkId, record: &ChunkRecord, blank: bool) -> Write {
        let (write, told) = {
            let leader = self.leader.lock();
            if leader.term == 0 {
                return Write::There(Location::Wait);
            }
            let (view, known) = (leader.view(&self.config, Instant::now()), record.into());
            let entry = leader.directory.entry(chunk);
            let told = entry.is_some_and(|entry| was_told(&known, entry));
            (locate_to_write(&view, &known, entry), told)
        };
        match write {
            // A leader to whom nobody told of the chunk has waited for servers until it settled, as long as a repair does. More it
            // cannot know: a writer that waited on would wait for a lost server for ever.
            Write::There(Location::Absent { may_return: true })
                if blank && !told && self.is_unwritten(record) =>
            {
                Write::There(Location::Unwritten)
            }
            Write::There(location) => Write::There(self.or_unwritten(location, record)),
            Write::Raise => Write::Raise,
        }
    }

    async fn anew(&self, changing: &Changing<'_>, record: &ChunkRecord) -> Location {
        match changing.place_anew(record, &[]).await {
            Ok((version, servers)) => Location::At { version, servers },
            Err(_) => Location::Wait,
        }
    }

    /// Servers for a new chunk: `goal` of them where there are so many with room, at least
    /// one. `NoSpace` where none has room; `Busy` where none is there at the moment, or where there are fewer than `goal`
    /// and others may be about to come: answer RETRY.
    pub fn place(&self, goal: u32) -> Result<Servers, FsError> {
        self.place_without(goal, &[])
    }

    /// As [`place`](Self::place), on none of the servers to `avoid`.
    pub(super) fn place_without(&self, goal: u32, avoid: &[ChunkServerId]) -> Result<Servers, FsError> {
        let mut leader = self.leader.lock();
        let may_grow = leader.may_grow(&self.config, Instant::now());
        let Leader { servers, rng, .. } = &mut *leader;
        let goal = goal.max(1) as usize;
        let chosen = placement::choose(servers, &[], avoid, goal, self.config.reserve_bytes, rng);
        if chosen.len() < goal && may_grow {
            return Err(FsError::Busy);
        }
        if chosen.is_empty() {
            let known = servers.alive().any(|server| server.described && !avoid.contains(&server.id));
            return Err(if known { FsError::NoSpace } else { FsError::Busy });
        }
        for &id in &chosen {
            if let Some(server) = servers.get_mut(id) {
                server.placed = server.placed.saturating_add(1);
            }
        }
        drop(leader);
        Ok(self.addresses(&chosen))
    }

    /// Remembers the servers that a new chunk was placed on, as far as they are known. Call it before its location is
    /// answered.
    pub fn assigned(&self, chunk: ChunkId, version: ChunkVersion, servers: &[ChunkServerId]) {
        let mut leader = self.leader.lock();
        let Leader { servers: known, directory, .. } = &mut *leader;
        let servers: Vec<_> = servers.iter().copied().filter(|server| known.get(*server).is_some()).collect();
        directory.promise(chunk, version, &servers, Instant::now());
    }

    fn or_unwritten(&self, location: Location, record: &ChunkRecord) -> Location {
        match location {
            Location::Absent { may_return: false } if self.is_unwritten(record) => Location::Unwritten,
            location => location,
        }
    }
}

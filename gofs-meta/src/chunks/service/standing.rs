//! Servers that are emptied, taken back and removed.
//!
//! The decision is committed; every leader follows it ([`Leader::follow`](super::super::leader::Leader::follow)), and
//! [`judge`](super::super::judge) and placement do what it asks. What a removed server held does not count any more, whatever
//! becomes of it: its replicas are left behind by the changes that replace them.

use std::time::Instant;

use gofs_tree::{ChunkId, ChunkServerId, FsError};

use super::ChunkService;
use crate::{
    chunks::{Amount, Entry, ServerTable, directory::without_doubt},
    command::{Command, CommandOutcome, Standing},
    group::ProposeError,
    state::ChunkRecord,
};

/// Chunks of a server looked at under one lock.
const LOOK_AT: usize = 1024;

/// What is left on a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Chunks of files that have a replica there which counts.
    pub held: Amount,
    /// Those of them that would have fewer replicas than their goal without it.
    pub needed: u64,
    /// Those of them that would have none.
    pub only: u64,
}

/// Why a server's standing was not changed.
#[derive(Debug, thiserror::Error)]
pub enum StandingError {
    /// No such server.
    #[error("no ChunkServer {0}; see: gofsctl chunk list")]
    Unknown(ChunkServerId),
    /// Removing it would cost replicas.
    #[error("{0}")]
    Needed(String),
    /// It cannot be said yet what it holds.
    #[error("ChunkServers are still reporting to this leader: try again in a few seconds")]
    NotSettled,
    /// The state cannot be read.
    #[error("this MetaServer cannot read its state; see its log")]
    State(FsError),
    /// The decision could not be committed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

impl ChunkService {
    /// Begins to empty a server, or takes one back, also one that was removed.
    pub async fn set_draining(&self, server: ChunkServerId, draining: bool) -> Result<(), StandingError> {
        let record = self.group.state().server(server).map_err(StandingError::State)?;
        let record = record.ok_or(StandingError::Unknown(server))?;
        if draining && record.standing == Standing::Removed {
            return Err(StandingError::Unknown(server));
        }
        let others = self.leader.lock().servers.alive().any(|it| it.id != server && !it.draining);
        if draining && !others {
            return Err(StandingError::Needed(format!(
                "ChunkServer {server} cannot be drained: no other is alive and in service to take its chunks; add one first"
            )));
        }
        self.stand(server, if draining { Standing::Draining } else { Standing::InService }).await
    }

    /// Has a server forgotten and refused from now on. Without `force` only where every chunk has the replicas that
    /// it should have without it. What was lost by it. Walks: much of the state may be read.
    pub async fn remove_server(&self, server: ChunkServerId, force: bool) -> Result<Left, StandingError> {
        let record = self.group.state().server(server).map_err(StandingError::State)?;
        if record.is_none_or(|record| record.standing == Standing::Removed) {
            return Err(StandingError::Unknown(server));
        }
        if !force && !self.is_settled() {
            return Err(StandingError::NotSettled);
        }
        let service = self.own.upgrade().ok_or(StandingError::NotSettled)?;
        let left = tokio::task::spawn_blocking(move || service.left_on_or_hidden(server)).await;
        let left = left.map_err(|_| StandingError::NotSettled)?.map_err(StandingError::State)?;
        let why = self.why_needed(server, left);
        match why.filter(|_| !force) {
            Some(why) => Err(StandingError::Needed(why)),
            None => self.stand(server, Standing::Removed).await.map(|()| left),
        }
    }

    /// What is left on a server, as far as replicas are known. Walks: call it off the runtime's own threads.
    pub fn left_on(&self, server: ChunkServerId) -> Result<Left, FsError> {
        let (mut left, mut after) = (Left::default(), None);
        loop {
            let chunks = self.leader.lock().directory.chunks_on(server, after, LOOK_AT);
            after = chunks.last().copied();
            for &chunk in &chunks {
                if let Some(record) = self.group.state().chunk(chunk)? {
                    self.count_left(server, chunk, &record, &mut left);
                }
            }
            if chunks.len() < LOOK_AT {
                return Ok(left);
            }
        }
    }

    fn count_left(&self, server: ChunkServerId, chunk: ChunkId, record: &ChunkRecord, left: &mut Left) {
        if record.deleted || record.goal == 0 {
            return;
        }
        let leader = self.leader.lock();
        let Some(entry) = leader.directory.entry(chunk) else { return };
        let counts = entry.on(server).is_some_and(|own| own.version >= record.version && !own.corrupt);
        if !counts {
            return;
        }
        let others = others(&leader.servers, entry, record, server);
        drop(leader);
        if others == 0 && self.is_unwritten(record) {
            return;
        }
        left.held.chunks += 1;
        left.held.bytes += self.bytes_of(record);
        left.needed += u64::from(others < record.goal);
        left.only += u64::from(others == 0);
    }

    /// As [`left_on`](Self::left_on); for a server that did not list its chunks to this leader, what no other has
    /// may be there.
    fn left_on_or_hidden(&self, server: ChunkServerId) -> Result<Left, FsError> {
        let mut left = self.left_on(server)?;
        let seen = self.leader.lock().servers.get(server).is_some_and(|server| server.listed_before);
        if !seen {
            self.each_chunk(|_, record, health| {
                if health == crate::chunks::Health::Lost && !self.is_unwritten(record) {
                    left.held.chunks += 1;
                    left.held.bytes += self.bytes_of(record);
                    left.needed += 1;
                    left.only += 1;
                }
            })?;
        }
        Ok(left)
    }

    fn why_needed(&self, server: ChunkServerId, left: Left) -> Option<String> {
        let leader = self.leader.lock();
        let known = leader.servers.get(server);
        let (alive, draining) = known.map_or((false, false), |known| (known.is_alive(), known.draining));
        let in_service = alive && !draining;
        drop(leader);
        let what = match left {
            Left { only: 0, needed: 0, .. } if in_service => {
                return Some(format!(
                    "ChunkServer {server} is in service: empty it first (gofsctl chunk drain {server}), or remove it with --force"
                ));
            }
            Left { only: 0, needed: 0, .. } => return None,
            Left { only: 0, needed, .. } => {
                format!("{needed} chunks would have fewer replicas than they should, none would be lost")
            }
            Left { only, needed, .. } => format!(
                "it has the only replica of {only} chunks, which would be LOST, and {needed} would have fewer replicas than they should"
            ),
        };
        let first = if alive {
            format!("drain it first (gofsctl chunk drain {server}) and wait until it is drained")
        } else {
            "bring it back, or wait for the repair (gofsctl status)".to_owned()
        };
        Some(format!("ChunkServer {server} is still needed: {what}; {first}, or give this up with --force"))
    }

    async fn stand(&self, server: ChunkServerId, standing: Standing) -> Result<(), StandingError> {
        match self.group.propose(Command::SetServerStanding { server, standing }).await? {
            CommandOutcome::Refused(_) => return Err(StandingError::Unknown(server)),
            outcome => {
                tracing::info!(server = server.0, ?standing, ?outcome, "a ChunkServer's standing changed")
            }
        }
        // The planner does so twice a heartbeat; whoever asks next is to see it at once.
        let known = self.leader.lock().servers.ids();
        let records = self.group.state().servers().map_err(StandingError::State)?;
        let mut leader = self.leader.lock();
        if leader.term != 0 {
            leader.follow(&known, &records, Instant::now());
        }
        Ok(())
    }
}

/// Current replicas on live servers other than this one, which are not being emptied.
fn others(servers: &ServerTable, entry: &Entry, record: &ChunkRecord, server: ChunkServerId) -> u32 {
    let current = entry.replicas.iter().filter(|replica| replica.server != server);
    let current = current.filter(|replica| servers.is_alive(replica.server) && replica.confirmed);
    let current = current.filter(|replica| replica.version == record.version && !replica.corrupt);
    without_doubt(current.collect()).len() as u32
}

//! A change of one chunk's replicas, carried through: instructions go out, answers come in, the version is committed.
//!
//! What is to be done next is [`Change`]'s to say; here it is done. [`Changing`] is the right to do it: one holder for
//! each chunk, of one term, given back when dropped. Whatever is noted down after a pause is noted in the term in
//! which the change began, or not at all. A crash leaves what [`change`](super::super::change) tells.

use std::time::{Duration, Instant};

use gofs_proto::cluster::{self, instruction};
use gofs_tree::{ChunkId, ChunkServerId, ChunkVersion, FsError};
use parking_lot::MutexGuard;

use super::{ChunkService, said_yes};
use crate::{
    chunks::{
        Change, Copy, Servers, Step, Wanted,
        leader::{Answer, Leader},
        version::next_version_with_loss,
    },
    command::{Command, CommandOutcome},
    state::ChunkRecord,
};

/// How long [`Changing::wait_to_begin`] waits for another change of the same chunk, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A chunk whose replicas only the holder changes; given back when dropped.
pub(super) struct Changing<'a> {
    service: &'a ChunkService,
    chunk: ChunkId,
    term: u64,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if let Some(mut leader) = self.leader() {
            leader.changing.remove(&self.chunk);
        }
    }
}

/// How a change of replicas ended.
pub(super) enum Changed {
    Committed {
        version: ChunkVersion,
        holders: Vec<ChunkServerId>,
        /// Whether the copy that was asked for was made.
        copied: bool,
    },
    NoSurvivor,
    /// The leader's term ended, or the state refused: look again.
    Lost,
}

impl<'a> Changing<'a> {
    /// `None` while another change of the chunk runs, or this server does not lead.
    pub fn begin(service: &'a ChunkService, chunk: ChunkId) -> Option<Changing<'a>> {
        let mut leader = service.leader.lock();
        let term = leader.term;
        // Made only where it is one: dropping it locks the leader, and gives back the chunk.
        (term != 0 && leader.changing.insert(chunk)).then(|| Changing { service, chunk, term })
    }

    /// As [`begin`](Self::begin), after the change that runs. `Busy` where that takes too long.
    pub async fn wait_to_begin(service: &'a ChunkService, chunk: ChunkId) -> Result<Changing<'a>, FsError> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(changing) = Changing::begin(service, chunk) {
                return Ok(changing);
            }
            if Instant::now() > end {
                return Err(FsError::Busy);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The chunk.
    pub fn chunk(&self) -> ChunkId {
        self.chunk
    }

    /// Makes the replica that [`Repairs`](crate::chunks::Repairs) chose.
    pub async fn copied(&self, copy: &Copy) -> Changed {
        let wanted = Wanted { target: Some(copy.target), leaving: copy.leaving, ..Wanted::default() };
        self.carry_through(wanted, Some(copy)).await
    }

    /// Changes the replicas as is wanted, and leaves out those that cannot be used.
    pub async fn replicas(&self, wanted: Wanted<'_>) -> Changed {
        self.carry_through(wanted, None).await
    }

    async fn carry_through(&self, wanted: Wanted<'_>, planned: Option<&Copy>) -> Changed {
        let live = self.service.record(self.chunk).filter(|record| !record.deleted);
        let Some(record) = live else { return Changed::Lost };
        let (mut change, mut step) = {
            let leader = self.service.leader.lock();
            let Some(entry) = leader.directory.entry(self.chunk) else { return Changed::NoSurvivor };
            let view = leader.view(&self.service.config, Instant::now());
            Change::start(self.term, &(&record).into(), entry, &view, wanted)
        };
        loop {
            let yes = match step {
                Step::Raise { servers, to, sure } => self.raise(&servers, to, sure).await,
                Step::Copy { target, mut sources, version } => {
                    // The one that the copy was charged to is asked first.
                    sources.sort_by_key(|source| planned.is_none_or(|copy| copy.source != *source));
                    self.copy(target, &sources, version, planned).await
                }
                Step::Commit { from, to, holders, copied } => {
                    return if self.commit(from, to, holders.len()).await {
                        Changed::Committed { version: to, holders, copied }
                    } else {
                        Changed::Lost
                    };
                }
                Step::NoSurvivor => return Changed::NoSurvivor,
            };
            let Some(yes) = yes else { return Changed::Lost };
            step = change.answered(&yes);
        }
    }

    /// Gives an unwritten chunk new servers, none of those to `avoid`, under a version that whoever was promised it
    /// before never had. Errors are those of [`ChunkService::place`].
    pub async fn place_anew(
        &self,
        record: &ChunkRecord,
        avoid: &[ChunkServerId],
    ) -> Result<(ChunkVersion, Servers), FsError> {
        let servers = self.service.place_without(record.goal, avoid)?;
        let ids: Vec<ChunkServerId> = servers.iter().map(|(id, _)| *id).collect();
        let to = {
            let leader = self.service.leader.lock();
            let floor = leader.directory.entry(self.chunk).map_or(record.version, |entry| {
                let known = entry.replicas.iter().map(|replica| replica.version).max();
                entry.asked.max(record.version).max(known.unwrap_or_default())
            });
            // Whatever was acknowledged of it before is not there any more.
            next_version_with_loss(self.term, floor)
        };
        if !self.commit(record.version, to, ids.len()).await {
            return Err(FsError::Busy);
        }
        let mut leader = self.leader().ok_or(FsError::Busy)?;
        leader.directory.promise(self.chunk, to, &ids, Instant::now());
        Ok((to, servers))
    }

    /// Asks a server whether it has the chunk at this version. `Err` with its reason if not; `None` where it did not
    /// answer.
    pub async fn is_there(&self, server: ChunkServerId, version: ChunkVersion) -> Option<Answer> {
        let answer = {
            let mut leader = self.service.leader.lock();
            // A version set to what it is changes nothing and fails where it is not.
            let set =
                cluster::SetVersion { chunk: self.chunk.0, from: version.0, to: version.0, sure: false };
            leader.instruct(server, instruction::Body::SetVersion(set))
        };
        tokio::time::timeout(self.service.config.answer_timeout, answer).await.ok()?.ok()
    }

    /// What is known in this change's term; `None`: the term is over.
    fn leader(&self) -> Option<MutexGuard<'a, Leader>> {
        let leader = self.service.leader.lock();
        (leader.term == self.term).then_some(leader)
    }

    /// Has servers move to a version, those in doubt only where not `sure`; those that said yes. `None`: the term is over.
    async fn raise(
        &self,
        servers: &[(ChunkServerId, ChunkVersion)],
        to: ChunkVersion,
        sure: bool,
    ) -> Option<Vec<ChunkServerId>> {
        let answers: Vec<_> = {
            let mut leader = self.leader()?;
            leader.directory.asked(self.chunk, to);
            let send = |&(server, from): &(ChunkServerId, ChunkVersion)| {
                let set = cluster::SetVersion { chunk: self.chunk.0, from: from.0, to: to.0, sure };
                (server, leader.instruct(server, instruction::Body::SetVersion(set)))
            };
            servers.iter().map(send).collect()
        };
        let yes = said_yes(answers, self.service.config.answer_timeout).await;
        let mut leader = self.leader()?;
        for &server in &yes {
            leader.directory.holds(server, self.chunk, to, Instant::now());
        }
        Some(yes)
    }

    /// Has a server copy the chunk; it alone, if it did. `None`: the term is over.
    async fn copy(
        &self,
        target: ChunkServerId,
        sources: &[ChunkServerId],
        version: ChunkVersion,
        planned: Option<&Copy>,
    ) -> Option<Vec<ChunkServerId>> {
        let busy_bytes_s = self.service.config.repair_bytes_s;
        let bytes_s = planned.map_or(busy_bytes_s, |copy| copy.bytes_s);
        let bytes = planned.map_or(0, |copy| copy.bytes);
        // Others share the speed, and begin while little more than two seconds' worth is under way.
        let at_speed = Duration::from_secs_f64(4.0 * bytes as f64 / busy_bytes_s as f64);
        let from = self.service.addresses(sources).into_iter().map(|(_, address)| address).collect();
        let copy =
            cluster::CopyChunk { chunk: self.chunk.0, version: version.0, from, bytes_s, busy_bytes_s };
        let answer = self.leader()?.instruct(target, instruction::Body::Copy(copy));
        let yes = said_yes(vec![(target, answer)], self.service.config.copy_timeout + at_speed).await;
        let mut leader = self.leader()?;
        for &server in &yes {
            leader.directory.copied(server, self.chunk, version, Instant::now());
        }
        Some(yes)
    }

    /// `copies`: how many servers have the version, or are about to make the chunk at it.
    async fn commit(&self, from: ChunkVersion, to: ChunkVersion, copies: usize) -> bool {
        let (chunk, copies) = (self.chunk, copies as u32);
        match self.service.group.propose(Command::SetChunkVersion { chunk, from, to, copies }).await {
            Ok(CommandOutcome::Done) => true,
            Ok(outcome) => {
                tracing::info!(chunk = chunk.0, ?outcome, "a chunk's version was not moved");
                false
            }
            Err(error) => {
                tracing::warn!(chunk = chunk.0, %error, "a chunk's version could not be committed");
                false
            }
        }
    }
}

//! Does what the deciding code says: talks to ChunkServers, commits versions, runs the planner.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use gofs_proto::cluster::{self, instruction};
use gofs_tree::{ChunkId, ChunkServerId, ChunkVersion, FsError, SessionId, Store};
use parking_lot::{Mutex, MutexGuard};
use tokio::task::JoinSet;

use super::{
    Change, ChunkConfig, Disk, Health, Location, Record, Step, Write, judge,
    leader::{Answer, Leader},
    locate, locate_to_write, placement,
    version::next_version,
};
use crate::{
    command::{Command, CommandOutcome},
    group::{MetaGroup, Role},
    state::ChunkRecord,
};

/// Fenced sessions remembered beyond those in the state, for servers that connect later.
const FENCED_MAX: usize = 4096;
/// Chunks read from the state at once where all are walked.
const WALK_BATCH: usize = 4096;
/// Forgotten chunks committed in one round of the planner.
const FORGETS_PER_ROUND: usize = 256;
/// How long `replica_failed` waits for another change of the same chunk.
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);
const CHANGE_POLL: Duration = Duration::from_millis(20);

/// Room on the live servers, bytes of their disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// In all.
    pub total_bytes: u64,
    /// Free for chunks: without what disks keep in reserve.
    pub free_bytes: u64,
}

/// How servers and chunks are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkStatus {
    /// Servers that can be reached.
    pub servers_alive: u32,
    /// Registered servers that cannot.
    pub servers_dead: u32,
    /// Room.
    pub capacity: Capacity,
    /// Chunks of files.
    pub chunks: u64,
    /// Fewer current replicas than wanted, but at least one.
    pub under_replicated: u64,
    /// No current replica on any live server although bytes were written.
    pub lost: u64,
    /// Chunks whose deletion is not complete.
    pub to_delete: u64,
    /// Copies that run.
    pub repairs_running: u64,
    /// Replicas that their servers found corrupt and that are not replaced yet.
    pub corrupt_replicas: u64,
    /// Whether servers have reported or had their time to; before that the numbers are too dark.
    pub settled: bool,
}

/// A server for people.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerStatus {
    /// Its id.
    pub id: ChunkServerId,
    /// Address of its data door.
    pub address: String,
    /// Whether it can be reached.
    pub alive: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Chunks on it.
    pub chunks: u64,
    /// Corrupt blocks found in its life.
    pub corrupt_blocks_total: u64,
    /// When it was last heard of; `None`: not in this leader's term.
    pub heard_ago: Option<Duration>,
}

/// One replica for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The server.
    pub server: ChunkServerId,
    /// Address of its data door.
    pub address: String,
    /// Its version there.
    pub version: ChunkVersion,
    /// current, promised, suspect, corrupt, stale, newer; with "server dead" where it is.
    pub state: String,
}

/// The chunk side of a MetaServer. Answers while its server leads.
pub struct ChunkService {
    group: Arc<MetaGroup>,
    config: ChunkConfig,
    leader: Mutex<Leader>,
    /// Itself, for tasks that outlive a call.
    own: Weak<ChunkService>,
}

/// A chunk whose replicas only the holder changes; given back when dropped.
struct Changing<'a> {
    service: &'a ChunkService,
    chunk: ChunkId,
    term: u64,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut leader = self.service.leader.lock();
        if leader.term == self.term {
            leader.changing.remove(&self.chunk);
        }
    }
}

/// How a change of replicas ended.
enum Changed {
    Committed {
        version: ChunkVersion,
        holders: Vec<ChunkServerId>,
        copied: bool,
    },
    NoSurvivor,
    /// The leader's term ended, or the state refused: look again.
    Lost,
}

impl ChunkService {
    /// Starts its tasks, which end when the last other reference is dropped.
    pub fn new(group: Arc<MetaGroup>, config: ChunkConfig) -> Arc<Self> {
        let leader = Mutex::new(Leader::new(Instant::now()));
        let service = Arc::new_cyclic(|own| ChunkService { group, config, leader, own: own.clone() });
        tokio::spawn(follow_leadership(Arc::downgrade(&service)));
        tokio::spawn(plan(Arc::downgrade(&service)));
        service
    }

    /// Replicas to read from, at version 0 ([`READ_ONLY`](super::READ_ONLY)) where they may not be
    /// written to as they are. Says [`Location::Wait`] where nothing is known yet: answer RETRY, never "lost".
    pub fn replicas(&self, chunk: ChunkId) -> Location {
        let Some(record) = self.record(chunk) else { return Location::NoChunk };
        let location = {
            let leader = self.leader.lock();
            if leader.term == 0 {
                return Location::Wait;
            }
            locate(&leader.view(&self.config, Instant::now()), &plain(&record), leader.directory.entry(chunk))
        };
        self.or_unwritten(location, &record)
    }

    /// Replicas to write to. Where some that may hold the version are away it is raised on the others
    /// first, so that those away cannot come back as current without the write. An old chunk
    /// that nobody ever wrote and nobody has is placed anew. [`Location::Wait`]: answer RETRY.
    pub async fn for_writing(&self, chunk: ChunkId) -> Location {
        let Some(record) = self.record(chunk) else { return Location::NoChunk };
        let write = {
            let leader = self.leader.lock();
            if leader.term == 0 || leader.changing.contains(&chunk) {
                return Location::Wait;
            }
            locate_to_write(
                &leader.view(&self.config, Instant::now()),
                &plain(&record),
                leader.directory.entry(chunk),
            )
        };
        match write {
            Write::Raise => {
                let Some(changing) = self.begin_change(chunk) else { return Location::Wait };
                match self.change(&changing, &[], None).await {
                    Changed::Committed { version, holders, .. } => {
                        Location::At { version, servers: self.addresses(&holders) }
                    }
                    Changed::NoSurvivor | Changed::Lost => Location::Wait,
                }
            }
            Write::There(location) => match self.or_unwritten(location, &record) {
                Location::Unwritten => {
                    let Some(changing) = self.begin_change(chunk) else { return Location::Wait };
                    match self.place_anew(&changing, &record, &[]).await {
                        Ok((version, servers)) => Location::At { version, servers },
                        Err(_) => Location::Wait,
                    }
                }
                location => location,
            },
        }
    }

    /// Servers for a new chunk: `goal` of them where there are so many with room, at least
    /// one. `NoSpace` where none has room; `Busy` where none is there at the moment: answer RETRY.
    pub fn place(&self, goal: u32) -> Result<Vec<(ChunkServerId, String)>, FsError> {
        self.place_without(goal, &[])
    }

    fn place_without(
        &self,
        goal: u32,
        avoid: &[ChunkServerId],
    ) -> Result<Vec<(ChunkServerId, String)>, FsError> {
        let mut leader = self.leader.lock();
        let Leader { servers, rng, .. } = &mut *leader;
        let goal = goal.max(1) as usize;
        let chosen = placement::choose(servers, &[], avoid, goal, self.config.reserve_bytes, rng);
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

    /// Remembers the servers that a new chunk was placed on. Call it before its location is answered.
    pub fn assigned(&self, chunk: ChunkId, version: ChunkVersion, servers: &[ChunkServerId]) {
        self.leader.lock().directory.promise(chunk, version, servers, Instant::now());
    }

    /// A writer says that these replicas did not take its bytes. They are left out: the others move to a new
    /// version, which is committed and answered. A call with an old version gets the
    /// present location. `Io` where every replica is said to have failed, `Busy` where it cannot be said now: answer
    /// RETRY; `NotFound` where the chunk is not there.
    pub async fn replica_failed(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        failed: &[ChunkServerId],
    ) -> Result<(ChunkVersion, Vec<(ChunkServerId, String)>), FsError> {
        let live = || self.record(chunk).filter(|record| !record.deleted).ok_or(FsError::NotFound);
        if live()?.version == version {
            let changing = self.wait_to_change(chunk).await?;
            let record = live()?;
            if record.version == version {
                return self.leave_out(&changing, &record, failed).await;
            }
        }
        match self.for_writing(chunk).await {
            Location::At { version, servers } => Ok((version, servers)),
            Location::Wait | Location::Unwritten | Location::Absent { may_return: true } => {
                Err(FsError::Busy)
            }
            Location::Absent { may_return: false } => Err(FsError::Io),
            Location::NoChunk => Err(FsError::NotFound),
        }
    }

    async fn leave_out(
        &self,
        changing: &Changing<'_>,
        record: &ChunkRecord,
        failed: &[ChunkServerId],
    ) -> Result<(ChunkVersion, Vec<(ChunkServerId, String)>), FsError> {
        let chunk = changing.chunk;
        tracing::warn!(chunk = chunk.0, version = record.version.0, ?failed, "replicas failed in a write");
        let unseen = self.never_seen(chunk, record);
        match self.change(changing, failed, None).await {
            Changed::Committed { version, holders, .. } => Ok((version, self.addresses(&holders))),
            Changed::NoSurvivor if unseen && self.someone_lacks(chunk, failed) => {
                self.place_anew(changing, record, failed).await
            }
            Changed::NoSurvivor if self.others_exist(chunk, record.version, failed) => Err(FsError::Busy),
            Changed::NoSurvivor => {
                tracing::error!(chunk = chunk.0, ?failed, "no replica of a chunk is left to write to");
                Err(FsError::Io)
            }
            Changed::Lost => Err(FsError::Busy),
        }
    }

    /// A client found bad bytes on a server (`corrupt`), or no chunk. A replica with bad bytes is not
    /// read from until its server has verified it; found bad, it is replaced and then deleted. One that
    /// is really not there is left out, and replaced.
    pub fn bad_replica(&self, chunk: ChunkId, server: ChunkServerId, corrupt: bool) {
        let mut leader = self.leader.lock();
        let known = leader.directory.entry(chunk).and_then(|entry| entry.on(server));
        let Some(replica) = known.filter(|replica| replica.confirmed) else { return };
        let version = replica.version;
        if !leader.directory.suspect(server, chunk, Instant::now()) {
            return;
        }
        tracing::warn!(chunk = chunk.0, server = server.0, corrupt, "a client could not read a replica");
        if corrupt {
            leader.verify(server, chunk);
        } else {
            drop(leader);
            if let Some(service) = self.own.upgrade() {
                tokio::spawn(service.probe(chunk, server, version));
            }
        }
    }

    /// Asks a server whether it has the chunk at this version; if not, the chunk goes on without it.
    async fn probe(self: Arc<Self>, chunk: ChunkId, server: ChunkServerId, version: ChunkVersion) {
        let Some(changing) = self.begin_change(chunk) else { return };
        let answer = {
            let mut leader = self.leader.lock();
            // A version set to what it is changes nothing and fails where it is not.
            let set = cluster::SetVersion { chunk: chunk.0, from: version.0, to: version.0 };
            leader.instruct(server, instruction::Body::SetVersion(set))
        };
        match tokio::time::timeout(self.config.answer_timeout, answer).await {
            Ok(Ok(Ok(()))) => self.leader.lock().directory.cleared(server, chunk),
            Ok(Ok(Err(error))) => {
                tracing::warn!(chunk = chunk.0, server = server.0, error, "a replica is not where it was");
                if self.record(chunk).is_some_and(|record| record.version == version) {
                    self.change(&changing, &[server], None).await;
                }
            }
            // The end of its connection, or its silence, is dealt with as such.
            Ok(Err(_)) | Err(_) => {}
        }
    }

    /// Room on the live servers.
    pub fn capacity(&self) -> Capacity {
        let leader = self.leader.lock();
        let mut capacity = Capacity::default();
        for server in leader.servers.alive() {
            let disks = server.disks.iter().filter(|disk| disk.error.is_empty());
            capacity.total_bytes += disks.map(|disk| disk.capacity_bytes).sum::<u64>();
            capacity.free_bytes += server.room_bytes(self.config.reserve_bytes);
        }
        capacity
    }

    /// Has every live ChunkServer refuse the session's writes; returns when all said that they do,
    /// or after the bound. Servers that are away are told when they register.
    pub async fn fence(&self, session: SessionId) {
        let answers: Vec<_> = {
            let mut leader = self.leader.lock();
            if leader.fenced.len() >= FENCED_MAX {
                leader.fenced.remove(0);
            }
            leader.fenced.push(session);
            let alive: Vec<ChunkServerId> = leader.servers.alive().map(|server| server.id).collect();
            let body = instruction::Body::Fence(cluster::Fence { session: session.0 });
            alive.into_iter().map(|id| (id, leader.instruct(id, body.clone()))).collect()
        };
        let asked = answers.len();
        let yes = self.gather(answers, self.config.answer_timeout).await;
        if yes.len() < asked {
            tracing::warn!(
                session = session.0,
                asked,
                fenced = yes.len(),
                "not every ChunkServer confirmed a fence"
            );
        }
    }

    /// How everything is. Walks all chunks of the state: call it off the runtime's own threads.
    pub fn status(&self) -> Result<ChunkStatus, FsError> {
        let mut status = ChunkStatus { capacity: self.capacity(), ..ChunkStatus::default() };
        {
            let leader = self.leader.lock();
            status.servers_alive = leader.servers.alive().count() as u32;
            status.servers_dead = leader.servers.iter().count() as u32 - status.servers_alive;
            status.repairs_running = leader.repairs.running() as u64;
            status.corrupt_replicas = leader.directory.corrupt_replicas();
            status.settled = leader.settled;
        }
        self.each_chunk(|_, record, health| match health {
            Health::Deleting => status.to_delete += 1,
            _ => {
                status.chunks += 1;
                match health {
                    Health::Under => status.under_replicated += 1,
                    Health::Lost if !self.is_unwritten(record) => status.lost += 1,
                    _ => {}
                }
            }
        })?;
        Ok(status)
    }

    /// Calls `see` with every chunk of the state. Walks: call it off the runtime's own threads.
    pub fn each_chunk(&self, mut see: impl FnMut(ChunkId, &ChunkRecord, Health)) -> Result<(), FsError> {
        let mut after = None;
        loop {
            let batch = self.group.state().chunks_from(after, WALK_BATCH)?;
            for (chunk, record) in &batch {
                see(*chunk, record, self.health(*chunk, record));
            }
            match batch.last() {
                Some((last, _)) if batch.len() == WALK_BATCH => after = Some(*last),
                _ => return Ok(()),
            }
        }
    }

    /// How one chunk is now.
    pub fn health(&self, chunk: ChunkId, record: &ChunkRecord) -> Health {
        let leader = self.leader.lock();
        // The planner's notes are not touched: a copy of the entry is judged.
        let mut entry = leader.directory.entry(chunk).cloned();
        let record = plain(record);
        judge(&self.config, &leader.servers, Some(&record), true, entry.as_mut(), Instant::now()).health
    }

    /// Whether no flush ever reported bytes in the chunk.
    pub fn is_unwritten(&self, record: &ChunkRecord) -> bool {
        let tree = self.group.state().tree(record.namespace);
        matches!(tree.chunk(record.ino, record.index), Ok(Some(chunk)) if chunk.blocks_4k == 0)
    }

    /// All known servers.
    pub fn servers(&self) -> Vec<ServerStatus> {
        let now = Instant::now();
        let leader = self.leader.lock();
        let servers = leader.servers.iter().map(|server| ServerStatus {
            id: server.id,
            address: server.address.clone(),
            alive: server.is_alive(),
            labels: server.labels.clone(),
            disks: server.disks.clone(),
            chunks: server.chunks,
            corrupt_blocks_total: server.corrupt_blocks_total,
            heard_ago: server.heard.map(|heard| now.saturating_duration_since(heard)),
        });
        servers.collect()
    }

    /// The replicas of a chunk as they are known, good or not.
    pub fn why_chunk(&self, chunk: ChunkId) -> Vec<ReplicaStatus> {
        let committed = self.record(chunk).map(|record| record.version);
        let leader = self.leader.lock();
        let Some(entry) = leader.directory.entry(chunk) else { return Vec::new() };
        let replicas = entry.replicas.iter().map(|replica| {
            let state = match committed {
                _ if replica.corrupt => "corrupt",
                None => "unknown to the state",
                Some(version) if replica.version < version => "stale",
                Some(version) if replica.version > version => "newer than committed",
                Some(_) if replica.suspect.is_some() => "suspect, being verified",
                Some(_) if !replica.confirmed => "promised, not yet written",
                Some(_) => "current",
            };
            let server = leader.servers.get(replica.server);
            let dead = if server.is_some_and(|server| server.is_alive()) { "" } else { " (server dead)" };
            ReplicaStatus {
                server: replica.server,
                address: server.map(|server| server.address.clone()).unwrap_or_default(),
                version: replica.version,
                state: format!("{state}{dead}"),
            }
        });
        replicas.collect()
    }

    /// Whether servers have reported in this term, or had their time to.
    pub fn is_settled(&self) -> bool {
        self.leader.lock().settled
    }

    /// The group it serves.
    pub fn group(&self) -> &Arc<MetaGroup> {
        &self.group
    }

    pub(crate) fn config(&self) -> &ChunkConfig {
        &self.config
    }

    pub(crate) fn leader(&self) -> MutexGuard<'_, Leader> {
        self.leader.lock()
    }

    fn record(&self, chunk: ChunkId) -> Option<ChunkRecord> {
        // A record that cannot be read was logged by the store; nothing is decided about it.
        self.group.state().chunk(chunk).ok().flatten()
    }

    fn or_unwritten(&self, location: Location, record: &ChunkRecord) -> Location {
        match location {
            Location::Absent { may_return: false } if self.is_unwritten(record) => Location::Unwritten,
            location => location,
        }
    }

    fn addresses(&self, servers: &[ChunkServerId]) -> Vec<(ChunkServerId, String)> {
        let leader = self.leader.lock();
        let known = servers.iter().filter_map(|&id| leader.servers.get(id));
        known.map(|server| (server.id, server.address.clone())).collect()
    }

    fn begin_change(&self, chunk: ChunkId) -> Option<Changing<'_>> {
        let mut leader = self.leader.lock();
        let term = leader.term;
        (term != 0 && leader.changing.insert(chunk)).then_some(Changing { service: self, chunk, term })
    }

    async fn wait_to_change(&self, chunk: ChunkId) -> Result<Changing<'_>, FsError> {
        let end = Instant::now() + CHANGE_PATIENCE;
        loop {
            if let Some(changing) = self.begin_change(chunk) {
                return Ok(changing);
            }
            if Instant::now() > end {
                return Err(FsError::Busy);
            }
            tokio::time::sleep(CHANGE_POLL).await;
        }
    }

    /// Whether the chunk was placed in this term, is as it was placed, and neither a server nor a
    /// flush ever said that there are bytes in it.
    fn never_seen(&self, chunk: ChunkId, record: &ChunkRecord) -> bool {
        let leader = self.leader.lock();
        let new = leader.directory.entry(chunk).is_some_and(|entry| {
            entry.placed.is_some_and(|(version, _)| version == record.version)
                && entry
                    .replicas
                    .iter()
                    .all(|replica| !replica.confirmed && replica.version == record.version)
        });
        drop(leader);
        new && self.is_unwritten(record)
    }

    /// Whether a live server outside `failed` was promised the chunk and, after it was asked, still has
    /// not got it: so nothing was ever acknowledged on all of them.
    fn someone_lacks(&self, chunk: ChunkId, failed: &[ChunkServerId]) -> bool {
        let leader = self.leader.lock();
        leader.directory.entry(chunk).is_some_and(|entry| {
            entry.replicas.iter().any(|replica| {
                !replica.confirmed
                    && !failed.contains(&replica.server)
                    && leader.servers.is_alive(replica.server)
            })
        })
    }

    /// Whether another server has the chunk, which is dead or did not answer and may do so later.
    fn others_exist(&self, chunk: ChunkId, version: ChunkVersion, failed: &[ChunkServerId]) -> bool {
        let leader = self.leader.lock();
        leader.directory.entry(chunk).is_some_and(|entry| {
            entry.replicas.iter().any(|replica| {
                replica.confirmed
                    && replica.version >= version
                    && !replica.corrupt
                    && !failed.contains(&replica.server)
            })
        })
    }

    /// Gives an unwritten chunk new servers, under a version that whoever was promised it before never had.
    async fn place_anew(
        &self,
        changing: &Changing<'_>,
        record: &ChunkRecord,
        avoid: &[ChunkServerId],
    ) -> Result<(ChunkVersion, Vec<(ChunkServerId, String)>), FsError> {
        let chunk = changing.chunk;
        let servers = self.place_without(record.goal, avoid)?;
        let ids: Vec<ChunkServerId> = servers.iter().map(|(id, _)| *id).collect();
        let to = {
            let leader = self.leader.lock();
            let floor = leader.directory.entry(chunk).map_or(record.version, |entry| {
                let known = entry.replicas.iter().map(|replica| replica.version).max();
                entry.asked.max(record.version).max(known.unwrap_or_default())
            });
            next_version(changing.term, floor)
        };
        if !self.commit(chunk, record.version, to, ids.len()).await {
            return Err(FsError::Busy);
        }
        let mut leader = self.leader.lock();
        if leader.term != changing.term {
            return Err(FsError::Busy);
        }
        leader.directory.promise(chunk, to, &ids, Instant::now());
        Ok((to, servers))
    }

    /// Carries a change of replicas through.
    async fn change(
        &self,
        changing: &Changing<'_>,
        without: &[ChunkServerId],
        target: Option<ChunkServerId>,
    ) -> Changed {
        let chunk = changing.chunk;
        let Some(record) = self.record(chunk).filter(|record| !record.deleted) else { return Changed::Lost };
        let (mut change, mut step) = {
            let leader = self.leader.lock();
            let Some(entry) = leader.directory.entry(chunk) else { return Changed::NoSurvivor };
            let record = plain(&record);
            Change::start(changing.term, chunk, &record, entry, &leader.servers, without, target)
        };
        loop {
            let yes = match step {
                Step::Raise { servers, to } => {
                    let Some(yes) = self.raise(changing, &servers, to).await else { return Changed::Lost };
                    yes
                }
                Step::Copy { target, sources, version } => {
                    let Some(yes) = self.copy(changing, target, &sources, version).await else {
                        return Changed::Lost;
                    };
                    yes
                }
                Step::Commit { from, to, holders, copied } => {
                    return if self.commit(chunk, from, to, holders.len()).await {
                        Changed::Committed { version: to, holders, copied }
                    } else {
                        Changed::Lost
                    };
                }
                Step::NoSurvivor => return Changed::NoSurvivor,
            };
            step = change.answered(&yes);
        }
    }

    /// Has servers move to a version; those that said yes. `None`: the term is over.
    async fn raise(
        &self,
        changing: &Changing<'_>,
        servers: &[(ChunkServerId, ChunkVersion)],
        to: ChunkVersion,
    ) -> Option<Vec<ChunkServerId>> {
        let chunk = changing.chunk;
        let answers: Vec<_> = {
            let mut leader = self.leader.lock();
            if leader.term != changing.term {
                return None;
            }
            leader.directory.asked(chunk, to);
            let send = |&(server, from): &(ChunkServerId, ChunkVersion)| {
                let set = cluster::SetVersion { chunk: chunk.0, from: from.0, to: to.0 };
                (server, leader.instruct(server, instruction::Body::SetVersion(set)))
            };
            servers.iter().map(send).collect()
        };
        let yes = self.gather(answers, self.config.answer_timeout).await;
        let mut leader = self.leader.lock();
        if leader.term != changing.term {
            return None;
        }
        for &server in &yes {
            leader.directory.holds(server, chunk, to, Instant::now());
        }
        Some(yes)
    }

    /// Has a server copy the chunk; it alone, if it did. `None`: the term is over.
    async fn copy(
        &self,
        changing: &Changing<'_>,
        target: ChunkServerId,
        sources: &[ChunkServerId],
        version: ChunkVersion,
    ) -> Option<Vec<ChunkServerId>> {
        let chunk = changing.chunk;
        let from = self.addresses(sources).into_iter().map(|(_, address)| address).collect();
        let answer = {
            let mut leader = self.leader.lock();
            if leader.term != changing.term {
                return None;
            }
            let copy = cluster::CopyChunk { chunk: chunk.0, version: version.0, from };
            leader.instruct(target, instruction::Body::Copy(copy))
        };
        let yes = self.gather(vec![(target, answer)], self.config.copy_timeout).await;
        let mut leader = self.leader.lock();
        if leader.term != changing.term {
            return None;
        }
        for &server in &yes {
            leader.directory.copied(server, chunk, version, Instant::now());
        }
        Some(yes)
    }

    /// Waits for the answers, at most so long; the servers that said yes.
    async fn gather(
        &self,
        answers: Vec<(ChunkServerId, tokio::sync::oneshot::Receiver<Answer>)>,
        timeout: Duration,
    ) -> Vec<ChunkServerId> {
        let end = tokio::time::Instant::now() + timeout;
        let mut yes = Vec::new();
        for (server, answer) in answers {
            match tokio::time::timeout_at(end, answer).await {
                Ok(Ok(Ok(()))) => yes.push(server),
                Ok(Ok(Err(error))) => {
                    tracing::warn!(server = server.0, error, "a ChunkServer refused an instruction")
                }
                Ok(Err(_)) => {
                    tracing::warn!(server = server.0, "a ChunkServer went before it answered an instruction")
                }
                Err(_) => tracing::warn!(
                    server = server.0,
                    waited_ms = timeout.as_millis() as u64,
                    "a ChunkServer did not answer an instruction in time"
                ),
            }
        }
        yes
    }

    /// `copies`: how many servers have the version, or are about to make the chunk at it.
    async fn commit(&self, chunk: ChunkId, from: ChunkVersion, to: ChunkVersion, copies: usize) -> bool {
        let copies = copies as u32;
        match self.group.propose(Command::SetChunkVersion { chunk, from, to, copies }).await {
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

    /// Takes up a term: the registered servers are known, nothing else.
    fn begin_term(&self, term: u64) -> Result<(), FsError> {
        let servers = self.group.state().servers()?;
        let now = Instant::now();
        let mut leader = self.leader.lock();
        leader.reset(term, now);
        for server in servers {
            leader.servers.know(server.id, server.address, server.labels, now);
        }
        Ok(())
    }

    /// One round of the planner. Reads the state: runs off the runtime's own threads.
    fn round(self: &Arc<Self>) -> Result<Round, FsError> {
        let mut round = Round::default();
        let batch = self.config.scan_batch;
        let (mut chunks, walk_from) = {
            let mut leader = self.leader.lock();
            let now = Instant::now();
            leader.expire(&self.config, now);
            leader.settle(&self.config, now);
            leader.age_deletions(&self.config, now);
            if leader.term == 0 || !leader.settled {
                return Ok(round);
            }
            round.term = leader.term;
            let mut chunks = leader.directory.take_changed(batch);
            chunks.extend(leader.next_watched(batch));
            let walk = now >= leader.walk_at;
            if walk {
                leader.walk_at = now + self.config.walk_every;
            }
            (chunks, walk.then_some(leader.cursor))
        };
        let mut walk_next = None;
        if let Some(from) = walk_from {
            let walked = self.group.state().chunks_from(from, batch)?;
            if walked.len() == batch {
                walk_next = walked.last().map(|(chunk, _)| *chunk);
            }
            chunks.extend(walked.into_iter().map(|(chunk, _)| chunk));
        }
        chunks.sort_unstable();
        chunks.dedup();
        let next_chunk = self.group.state().counters()?.next_chunk;
        for chunk in chunks {
            let record = self.group.state().chunk(chunk)?;
            let mut leader = self.leader.lock();
            if leader.term != round.term {
                return Ok(Round::default());
            }
            if leader.changing.contains(&chunk) {
                continue;
            }
            self.judge_one(&mut leader, chunk, record.as_ref(), chunk < next_chunk, &mut round);
        }
        let mut leader = self.leader.lock();
        if leader.term == round.term {
            if walk_from.is_some() {
                leader.cursor = walk_next;
            }
            self.start_copies(&mut leader, &mut round);
        }
        Ok(round)
    }

    fn judge_one(
        &self,
        leader: &mut Leader,
        chunk: ChunkId,
        record: Option<&ChunkRecord>,
        issued: bool,
        round: &mut Round,
    ) {
        let now = Instant::now();
        let plain = record.map(plain);
        let Leader { servers, directory, .. } = leader;
        let verdict = judge(&self.config, servers, plain.as_ref(), issued, directory.entry_mut(chunk), now);
        let (delete_wanted, raise_wanted) = (!verdict.delete.is_empty(), verdict.raise_without.is_some());
        for (server, version) in verdict.delete {
            leader.delete(&self.config, server, chunk, version, now);
        }
        if let Some(without) = verdict.raise_without
            && round.raises.len() < self.config.copies_total
        {
            round.raises.push((chunk, without));
        }
        if verdict.forget && round.forgets.len() < FORGETS_PER_ROUND {
            round.forgets.push(chunk);
        }
        if verdict.repair {
            leader.repairs.want(chunk, verdict.current);
        } else {
            leader.repairs.unwant(chunk);
        }
        if record.is_none() {
            leader.directory.forget_if_empty(chunk);
        }
        let entry = leader.directory.entry(chunk);
        let at_rest = match verdict.health {
            Health::Healthy => {
                !delete_wanted && !raise_wanted && entry.is_none_or(|entry| entry.over_since.is_none())
            }
            // Nothing can be done until a server reports it, which is a change.
            Health::Lost => true,
            Health::Orphan => entry.is_none(),
            Health::Under | Health::Deleting => false,
        };
        if at_rest {
            leader.watched.remove(&chunk);
        } else {
            leader.watched.insert(chunk);
        }
    }

    fn start_copies(&self, leader: &mut Leader, round: &mut Round) {
        while let Some(copy) = self.next_copy(leader) {
            round.copies.push(copy);
        }
    }

    fn next_copy(&self, leader: &mut Leader) -> Option<super::Copy> {
        let Leader { repairs, servers, directory, rng, .. } = leader;
        repairs.next(&self.config, servers, |chunk| directory.entry(chunk), Instant::now(), rng)
    }

    /// Makes a replica, and goes on with the next copy that its end allows.
    async fn repair(self: Arc<Self>, copy: super::Copy, term: u64) {
        let mut next = Some(copy);
        while let Some(copy) = next {
            let mut copied = false;
            if let Some(changing) = self.begin_change(copy.chunk) {
                let changed = self.change(&changing, &[], Some(copy.target)).await;
                copied = matches!(changed, Changed::Committed { copied: true, .. });
            }
            if copied {
                tracing::info!(chunk = copy.chunk.0, server = copy.target.0, "a replica was made again");
            }
            let mut leader = self.leader.lock();
            if leader.term != term {
                return;
            }
            leader.repairs.finished(copy.chunk, copied, Instant::now());
            next = self.next_copy(&mut leader);
        }
    }

    async fn raise_without(self: Arc<Self>, chunk: ChunkId, without: Vec<ChunkServerId>) {
        if let Some(changing) = self.begin_change(chunk) {
            self.change(&changing, &without, None).await;
        }
    }
}

/// What a round of the planner wants done.
#[derive(Debug, Default)]
struct Round {
    term: u64,
    raises: Vec<(ChunkId, Vec<ChunkServerId>)>,
    forgets: Vec<ChunkId>,
    copies: Vec<super::Copy>,
}

fn plain(record: &ChunkRecord) -> Record {
    Record { version: record.version, copies: record.copies, goal: record.goal, deleted: record.deleted }
}

/// Begins and ends terms as the group says.
async fn follow_leadership(service: Weak<ChunkService>) {
    let Some(mut leadership) = service.upgrade().map(|service| service.group.leadership()) else { return };
    loop {
        let now = leadership.borrow_and_update().clone();
        let Some(service) = service.upgrade() else { return };
        let term = if now.role == Role::Leader { now.term } else { 0 };
        let led = service.leader.lock().term;
        let mut retry = false;
        if term == 0 && led != 0 {
            service.leader.lock().reset(0, Instant::now());
        } else if term != led
            && let Err(error) = service.begin_term(term)
        {
            tracing::error!(%error, term, "the registered ChunkServers cannot be read; trying again");
            retry = true;
        }
        drop(service);
        if retry {
            tokio::time::sleep(Duration::from_secs(1)).await;
        } else if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Runs the planner, twice a heartbeat.
async fn plan(service: Weak<ChunkService>) {
    let Some(pause) = service.upgrade().map(|service| service.config.heartbeat / 2) else { return };
    loop {
        tokio::time::sleep(pause).await;
        let Some(service) = service.upgrade() else { return };
        let planner = service.clone();
        let round = match tokio::task::spawn_blocking(move || planner.round()).await {
            Ok(Ok(round)) => round,
            Ok(Err(error)) => {
                tracing::error!(%error, "the planner of repair and deletion cannot read the state");
                continue;
            }
            Err(error) => {
                tracing::error!(%error, "the planner of repair and deletion failed");
                continue;
            }
        };
        for copy in round.copies {
            tokio::spawn(service.clone().repair(copy, round.term));
        }
        for (chunk, without) in round.raises {
            tokio::spawn(service.clone().raise_without(chunk, without));
        }
        let mut forgets = JoinSet::new();
        for chunk in round.forgets {
            let group = service.group.clone();
            forgets.spawn(async move { (chunk, group.propose(Command::ForgetChunk { chunk }).await) });
        }
        while let Some(forgotten) = forgets.join_next().await {
            match forgotten {
                Ok((chunk, Ok(_))) => service.leader.lock().directory.forget_if_empty(chunk),
                Ok((chunk, Err(error))) => {
                    tracing::debug!(chunk = chunk.0, %error, "a chunk could not be forgotten yet");
                }
                Err(error) => tracing::error!(%error, "forgetting a chunk failed"),
            }
        }
    }
}

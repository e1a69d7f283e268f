//! What the leader holds in memory about servers and chunks: one owner, changed by sync calls only.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Instant,
};

use gofs_proto::cluster::{self, instruction};
use gofs_tree::{ChunkId, ChunkServerId, ChunkVersion};
use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::{mpsc, oneshot};

use super::{Balance, ChunkConfig, Copy, Directory, Disk, Repairs, Reported, ServerTable, Speed, View};
use crate::{command::Standing, state::ServerRecord};

/// Instructions that may wait for a server to read them. More are not sent: the planner asks again.
const LINK_QUEUE: usize = 4096;

/// What a server said about an instruction: done, or why not.
pub type Answer = Result<(), String>;

/// Who waits for the answer to an instruction.
#[derive(Debug)]
enum Waiter {
    Caller(oneshot::Sender<Answer>),
    Delete { chunk: ChunkId },
    Verify { chunk: ChunkId },
}

#[derive(Debug)]
struct Sent {
    server: ChunkServerId,
    link: u64,
    waiter: Waiter,
}

#[derive(Debug)]
struct LinkEnd {
    id: u64,
    instructions: mpsc::Sender<cluster::Instruction>,
}

/// Servers, replicas, repairs and instructions under way, of one term.
#[derive(Debug)]
pub struct Leader {
    /// 0 while this server does not lead.
    pub term: u64,
    /// When the term began here.
    pub began: Instant,
    /// Whether servers have reported, or had their time to: repair and deletion may decide.
    pub settled: bool,
    /// The state was restored from a backup, and no leader has settled since.
    pub restoring: bool,
    /// The servers.
    pub servers: ServerTable,
    /// The replicas.
    pub directory: Directory,
    /// The copies.
    pub repairs: Repairs,
    /// How servers become equally full.
    pub balance: Balance,
    /// How fast replicas are made.
    pub speed: Speed,
    /// How fast draining servers give theirs up.
    pub drained: HashMap<ChunkServerId, Speed>,
    /// When a server registered last that the cluster did not know.
    pub newcomer_at: Option<Instant>,
    /// Chunks whose replicas are being changed.
    pub changing: HashSet<ChunkId>,
    /// Randomness for placement.
    pub rng: StdRng,
    /// Where the planner's walk over the state goes on.
    pub cursor: Option<ChunkId>,
    /// Chunks with which something is the matter: looked at again and again until nothing is.
    pub watched: BTreeSet<ChunkId>,
    /// Where the look at them goes on.
    pub watch_cursor: ChunkId,
    /// When the next part of the state is walked.
    pub walk_at: Instant,
    links: HashMap<ChunkServerId, LinkEnd>,
    sent: HashMap<u64, Sent>,
    deleting: HashMap<ChunkServerId, HashMap<ChunkId, Instant>>,
    next_id: u64,
}

impl Leader {
    /// One that does not lead.
    pub fn new(now: Instant) -> Self {
        Leader {
            term: 0,
            began: now,
            settled: false,
            restoring: false,
            servers: ServerTable::default(),
            directory: Directory::default(),
            repairs: Repairs::default(),
            balance: Balance::default(),
            speed: Speed::new(now),
            drained: HashMap::new(),
            newcomer_at: None,
            changing: HashSet::new(),
            rng: StdRng::from_rng(&mut rand::rng()),
            cursor: None,
            watched: BTreeSet::new(),
            watch_cursor: ChunkId(0),
            walk_at: now,
            links: HashMap::new(),
            sent: HashMap::new(),
            deleting: HashMap::new(),
            next_id: 1,
        }
    }

    /// Begins a term (0: stops leading): all that was known is forgotten, all connections end.
    /// Numbers of connections and instructions go on, so that nothing late is mistaken.
    pub fn reset(&mut self, term: u64, now: Instant) {
        let next_id = self.next_id;
        *self = Leader { term, next_id, ..Leader::new(now) };
    }

    /// What locating needs to know.
    pub fn view<'a>(&'a self, config: &ChunkConfig, now: Instant) -> View<'a> {
        View {
            servers: &self.servers,
            began: self.began,
            now,
            settled: self.settled,
            write_patience: config.write_patience,
            restoring: self.restoring,
            repair_after: config.repair_after,
        }
    }

    /// A server has registered: the connection's number and the instructions to pass on to it.
    pub fn connect(
        &mut self,
        id: ChunkServerId,
        address: String,
        labels: std::collections::BTreeMap<String, String>,
        now: Instant,
    ) -> (u64, mpsc::Receiver<cluster::Instruction>) {
        if self.servers.get(id).is_none() {
            self.newcomer_at = Some(now);
        }
        let link = self.take_id();
        let (instructions, receiver) = mpsc::channel(LINK_QUEUE);
        if let Some(old) = self.servers.connected(id, address, labels, link, now) {
            tracing::warn!(
                server = id.0,
                old,
                "a ChunkServer connected again while its connection stood; the old one is dropped"
            );
            self.drop_sent(old);
        }
        self.links.insert(id, LinkEnd { id: link, instructions });
        self.directory.touch_server(id);
        (link, receiver)
    }

    /// Takes over what was decided about servers. Those that were known before the records were read and that are not
    /// among them were removed.
    pub fn follow(&mut self, known: &[ChunkServerId], records: &[ServerRecord], now: Instant) {
        let gone = known.iter().copied().filter(|id| records.iter().all(|record| record.id != *id));
        for id in gone.collect::<Vec<_>>() {
            if self.servers.get(id).is_none() {
                continue;
            }
            tracing::info!(server = id.0, "a ChunkServer was removed from the cluster");
            if let Some(link) = self.servers.remove(id) {
                self.drop_sent(link);
            }
            self.links.remove(&id);
            self.deleting.remove(&id);
            self.drained.remove(&id);
            self.directory.forget_server(id);
        }
        for record in records {
            let draining = record.standing == Standing::Draining;
            let server = match self.servers.get_mut(record.id) {
                Some(server) => server,
                // Taken back after it was removed.
                None => self.servers.know(record.id, record.address.clone(), record.labels.clone(), now),
            };
            if server.draining == draining {
                continue;
            }
            server.draining = draining;
            self.drained.remove(&record.id);
            self.directory.touch_server(record.id);
        }
    }

    /// A replica was made, and perhaps one was given up for it.
    pub fn count_copy(&mut self, copy: &Copy, now: Instant) {
        self.speed.add(copy.bytes, now);
        if let Some(server) = copy.leaving {
            self.drained.entry(server).or_insert_with(|| Speed::new(now)).add(copy.bytes, now);
        }
    }

    /// Whether servers may soon be there that are not yet: a chunk that cannot be on as many as it should be waits
    /// for them a moment.
    pub fn may_grow(&self, config: &ChunkConfig, now: Instant) -> bool {
        let lately = |at: Instant| now.saturating_duration_since(at) < config.place_patience;
        let missing = self.servers.iter().any(|server| !server.is_alive() || !server.described);
        let silent = |at: Option<Instant>| at.is_some_and(lately);
        (missing && lately(self.began))
            || silent(self.newcomer_at)
            || self.servers.alive().any(|server| !server.described && silent(server.connected))
    }

    /// A connection has ended.
    pub fn disconnect(&mut self, id: ChunkServerId, link: u64, now: Instant) {
        self.drop_sent(link);
        if self.servers.disconnected(id, link, now) {
            self.links.remove(&id);
            self.directory.touch_server(id);
            tracing::warn!(server = id.0, "a ChunkServer is gone");
        }
    }

    /// Servers silent for too long are dead, their connections end.
    pub fn expire(&mut self, config: &ChunkConfig, now: Instant) {
        for (id, link) in self.servers.expire(now, config.dead_after) {
            self.drop_sent(link);
            self.links.remove(&id);
            self.directory.touch_server(id);
            tracing::warn!(server = id.0, "a ChunkServer is silent and taken for dead");
        }
    }

    /// Whether servers had their time since the term began.
    pub fn settle(&mut self, config: &ChunkConfig, now: Instant) {
        let time_is_up = now.saturating_duration_since(self.began) > config.dead_after + config.settle;
        // A restored state may not know of all servers.
        let all_listed = !self.restoring && self.servers.all_listed();
        if self.term != 0 && !self.settled && (time_is_up || all_listed) {
            self.settled = true;
            tracing::info!(
                term = self.term,
                alive = self.servers.alive().count(),
                known = self.servers.iter().count(),
                "chunks are known: repair and deletion begin"
            );
        }
    }

    /// A line of a server's report, or its status. `false`: the connection is over.
    pub fn report(
        &mut self,
        id: ChunkServerId,
        link: u64,
        body: cluster::report::Body,
        now: Instant,
    ) -> bool {
        if !self.servers.heard(id, link, now) {
            return false;
        }
        match body {
            cluster::report::Body::Register(_) => {
                tracing::warn!(server = id.0, "a ChunkServer registered twice over one connection");
                return false;
            }
            cluster::report::Body::Chunks(report) => self.chunks(id, report, now),
            cluster::report::Body::Status(status) => self.status(id, status),
            cluster::report::Body::Done(done) => self.done(id, done),
        }
        true
    }

    fn chunks(&mut self, id: ChunkServerId, report: cluster::ChunkReport, now: Instant) {
        let listing =
            self.servers.get_mut(id).map(|server| std::mem::replace(&mut server.listing, report.full));
        if report.full && listing == Some(false) {
            self.directory.begin_list(id);
        }
        for line in &report.chunks {
            let reported = Reported {
                chunk: ChunkId(line.chunk),
                version: ChunkVersion(line.version),
                gone: line.gone,
                corrupt: line.corrupt,
                doubtful: line.doubtful,
            };
            self.directory.report(id, reported, report.full, now);
        }
        if !report.full {
            // Changes may come between the parts of a full list.
            if let Some(server) = self.servers.get_mut(id) {
                server.listing = listing.unwrap_or(false);
            }
        } else if report.last {
            self.directory.end_list(id);
            if let Some(server) = self.servers.get_mut(id) {
                server.listing = false;
                server.listed = true;
                server.listed_before = true;
            }
        }
    }

    fn status(&mut self, id: ChunkServerId, status: cluster::Status) {
        let Some(server) = self.servers.get_mut(id) else { return };
        server.disks = status.disks.into_iter().map(disk_from_wire).collect();
        server.described = true;
        server.chunks = status.chunks;
        server.in_flight = status.in_flight;
        server.load = if status.load.is_finite() { status.load } else { 0.0 };
        server.corrupt_blocks_total = status.corrupt_blocks_total;
        server.cpu_latency = status.cpu_latency;
        server.placed = 0;
    }

    fn done(&mut self, id: ChunkServerId, done: cluster::Done) {
        // An answer to nothing, or of another server: from before, or a mistake of its.
        let Some(sent) = self.sent.remove(&done.id) else { return };
        if sent.server != id {
            self.sent.insert(done.id, sent);
            return;
        }
        let answer = if done.error.is_empty() { Ok(()) } else { Err(done.error) };
        match sent.waiter {
            Waiter::Caller(caller) => {
                // Who gave up does not listen any more.
                let _ = caller.send(answer);
            }
            Waiter::Delete { chunk } => {
                let promised =
                    self.directory.entry(chunk).and_then(|entry| entry.on(id)).is_some_and(|r| !r.confirmed);
                match answer {
                    Ok(()) => self.directory.remove(id, chunk),
                    Err(_) if promised => self.directory.remove(id, chunk),
                    Err(error) => {
                        tracing::warn!(
                            server = id.0,
                            chunk = chunk.0,
                            error,
                            "a replica could not be deleted"
                        );
                        // Asked again when `deleting` has aged.
                        return;
                    }
                }
                if let Some(under_way) = self.deleting.get_mut(&id) {
                    under_way.remove(&chunk);
                }
            }
            Waiter::Verify { chunk } => match answer {
                Ok(()) => self.directory.cleared(id, chunk),
                // The server's report says what it found; a chunk that it does not have is gone.
                Err(error) => {
                    tracing::warn!(
                        server = id.0,
                        chunk = chunk.0,
                        error,
                        "a replica failed its verification"
                    );
                }
            },
        }
    }

    /// Sends an instruction whose answer the caller awaits; the channel closes where none will come.
    pub fn instruct(&mut self, server: ChunkServerId, body: instruction::Body) -> oneshot::Receiver<Answer> {
        let (caller, answer) = oneshot::channel();
        self.send(server, body, Some(Waiter::Caller(caller)));
        answer
    }

    /// Has a replica of this version or older deleted, once at a time and within the server's bound.
    pub fn delete(
        &mut self,
        config: &ChunkConfig,
        server: ChunkServerId,
        chunk: ChunkId,
        version: ChunkVersion,
        now: Instant,
    ) {
        let under_way = self.deleting.entry(server).or_default();
        if under_way.contains_key(&chunk) || under_way.len() >= config.deletes_per_server {
            return;
        }
        let body = instruction::Body::Delete(cluster::DeleteChunk { chunk: chunk.0, version: version.0 });
        if self.send(server, body, Some(Waiter::Delete { chunk })) {
            self.deleting.entry(server).or_default().insert(chunk, now);
        }
    }

    /// The next `most` watched chunks, in turn.
    pub fn next_watched(&mut self, most: usize) -> Vec<ChunkId> {
        let mut next: Vec<ChunkId> = self.watched.range(self.watch_cursor..).take(most).copied().collect();
        if next.len() < most {
            next.extend(self.watched.range(..self.watch_cursor).take(most - next.len()));
        }
        self.watch_cursor = next.last().map_or(ChunkId(0), |last| ChunkId(last.0.saturating_add(1)));
        next
    }

    /// A copy to make now, if there is one and the bounds allow it.
    pub fn next_copy(&mut self, config: &ChunkConfig, now: Instant) -> Option<Copy> {
        let Leader { repairs, servers, directory, rng, .. } = self;
        repairs.next(config, servers, |chunk| directory.entry(chunk), now, rng)
    }

    /// Forgets deletions that were not answered in time, so that they are asked for again.
    pub fn age_deletions(&mut self, config: &ChunkConfig, now: Instant) {
        for under_way in self.deleting.values_mut() {
            under_way.retain(|_, at| now.saturating_duration_since(*at) < config.copy_timeout);
        }
    }

    /// Tells a server that its Status was heard, if the connection is the one that it came over.
    pub fn heard(&mut self, server: ChunkServerId, link: u64, number: u64) {
        if self.links.get(&server).is_some_and(|end| end.id == link) {
            self.send(server, instruction::Body::Heard(cluster::Heard { number }), None);
        }
    }

    /// Ends a server's connection, so that it registers anew.
    pub fn hang_up(&mut self, server: ChunkServerId, now: Instant) {
        if let Some(link) = self.links.get(&server).map(|end| end.id) {
            self.disconnect(server, link, now);
        }
    }

    /// Has the server read a replica that a client found bad. Where it cannot be asked now, it is when a client says so again.
    pub fn verify(&mut self, server: ChunkServerId, chunk: ChunkId) {
        let body = instruction::Body::Verify(cluster::VerifyChunk { chunk: chunk.0 });
        if !self.send(server, body, Some(Waiter::Verify { chunk })) {
            self.directory.cleared(server, chunk);
        }
    }

    fn send(&mut self, server: ChunkServerId, body: instruction::Body, waiter: Option<Waiter>) -> bool {
        let id = self.take_id();
        let Some(link) = self.links.get(&server) else { return false };
        let instruction = cluster::Instruction { id, body: Some(body) };
        if link.instructions.try_send(instruction).is_err() {
            return false;
        }
        if let Some(waiter) = waiter {
            self.sent.insert(id, Sent { server, link: link.id, waiter });
        }
        true
    }

    fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn drop_sent(&mut self, link: u64) {
        let mut ended = HashSet::new();
        self.sent.retain(|_, sent| {
            if sent.link == link {
                ended.insert(sent.server);
            }
            sent.link != link
        });
        for server in ended {
            self.deleting.remove(&server);
        }
    }
}

fn disk_from_wire(disk: cluster::Disk) -> Disk {
    Disk {
        path: disk.path,
        capacity_bytes: disk.capacity_bytes,
        free_bytes: disk.free_bytes,
        error: disk.error,
        last_scrub_unix_s: disk.last_scrub_unix_s,
    }
}

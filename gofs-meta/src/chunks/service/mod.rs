//! Does what the deciding code says: talks to ChunkServers, commits versions, runs the planner.
//!
//! Owns the leader's memory ([`Leader`]), behind one lock that is never held over an await, and begins and ends it
//! with the terms of the group. Whoever comes back after a pause finds perhaps another term, and looks.
//!
//! [`locations`], [`failures`] and [`fencing`] serve sessions, [`planner`] serves nobody in particular, [`changing`] is how all of
//! them change a chunk's replicas, and [`status`] tells people.

mod census;
mod changing;
mod failures;
mod fencing;
mod locations;
mod planner;
mod standing;
mod status;

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use gofs_proto::cluster::{self, report};
use gofs_tree::{ChunkId, ChunkServerId, FsError, Store};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::{
    ChunkConfig, Record, Servers,
    leader::{Answer, Leader},
};
use crate::{
    command::Standing,
    group::{MetaGroup, Role},
    state::ChunkRecord,
};

pub use census::Census;
pub use standing::{Left, StandingError};
pub use status::{Capacity, ServerStatus};

/// Pause after which a term is taken up once more where the state could not be read.
const TERM_RETRY: Duration = Duration::from_secs(1);

/// The chunk side of a MetaServer. Answers while its server leads.
pub struct ChunkService {
    group: Arc<MetaGroup>,
    config: ChunkConfig,
    leader: Mutex<Leader>,
    /// Itself, for tasks that outlive a call.
    own: Weak<ChunkService>,
}

impl ChunkService {
    /// Starts its tasks, which end when the last other reference is dropped.
    pub fn new(group: Arc<MetaGroup>, config: ChunkConfig) -> Arc<Self> {
        let leader = Mutex::new(Leader::new(Instant::now()));
        let service = Arc::new_cyclic(|own| ChunkService { group, config, leader, own: own.clone() });
        tokio::spawn(follow_leadership(Arc::downgrade(&service)));
        tokio::spawn(planner::run(Arc::downgrade(&service)));
        service
    }

    /// The group it serves.
    pub fn group(&self) -> &Arc<MetaGroup> {
        &self.group
    }

    /// Times and bounds.
    pub fn config(&self) -> &ChunkConfig {
        &self.config
    }

    /// A ChunkServer has registered: the connection's number, and the instructions to pass on to it, which end when
    /// the connection is to. `None`: this server does not lead.
    pub fn connect(
        &self,
        server: ChunkServerId,
        address: String,
        labels: BTreeMap<String, String>,
    ) -> Option<(u64, mpsc::Receiver<cluster::Instruction>)> {
        let mut leader = self.leader.lock();
        (leader.term != 0).then(|| leader.connect(server, address, labels, Instant::now()))
    }

    /// A ChunkServer has reported. `false`: the connection is over.
    pub fn report(&self, server: ChunkServerId, link: u64, body: report::Body) -> bool {
        self.leader.lock().report(server, link, body, Instant::now())
    }

    /// A ChunkServer's connection has ended.
    pub fn disconnect(&self, server: ChunkServerId, link: u64) {
        self.leader.lock().disconnect(server, link, Instant::now());
    }

    /// Whether no flush ever reported bytes in the chunk.
    pub fn is_unwritten(&self, record: &ChunkRecord) -> bool {
        let tree = self.group.state().tree(record.namespace);
        matches!(tree.chunk(record.ino, record.index), Ok(Some(chunk)) if chunk.blocks_4k == 0)
    }

    /// Bytes of a chunk, as far as flushes have told.
    fn bytes_of(&self, record: &ChunkRecord) -> u64 {
        let tree = self.group.state().tree(record.namespace);
        let known = tree.chunk(record.ino, record.index).ok().flatten();
        known.map_or(0, |chunk| u64::from(chunk.blocks_4k) * 4096)
    }

    fn record(&self, chunk: ChunkId) -> Option<ChunkRecord> {
        // A record that cannot be read was logged by the store; nothing is decided about it.
        self.group.state().chunk(chunk).ok().flatten()
    }

    fn addresses(&self, servers: &[ChunkServerId]) -> Servers {
        let leader = self.leader.lock();
        let known = servers.iter().filter_map(|&id| leader.servers.get(id));
        known.map(|server| (server.id, server.address.clone())).collect()
    }

    /// Takes up a term: the registered servers are known, nothing else.
    fn begin_term(&self, term: u64) -> Result<(), FsError> {
        let servers = self.group.state().servers()?;
        let restored = self.group.state().restored()?;
        let now = Instant::now();
        let mut leader = self.leader.lock();
        leader.reset(term, now);
        leader.restoring = restored.is_some_and(|restored| !restored.settled);
        for server in servers {
            let known = leader.servers.know(server.id, server.address, server.labels, now);
            known.draining = server.standing == Standing::Draining;
        }
        Ok(())
    }
}

impl From<&ChunkRecord> for Record {
    fn from(record: &ChunkRecord) -> Record {
        Record { version: record.version, copies: record.copies, goal: record.goal, deleted: record.deleted }
    }
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
            tokio::time::sleep(TERM_RETRY).await;
        } else if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Waits for the answers, at most so long; the servers that said yes.
async fn said_yes(
    answers: Vec<(ChunkServerId, oneshot::Receiver<Answer>)>,
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

#[cfg(test)]
mod tests;

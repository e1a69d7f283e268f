//! Keeps sessions that are over from writing to ChunkServers.
//!
//! A ChunkServer lets sessions write for [`ChunkConfig::dead_after`] after it sent what this leader is known to have heard, so
//! one that cannot be told of a fence does not let the session write for ever: it is waited for as long as that.
//! A server that registers is told all that the state knows, and a fence is committed before it is told.

use std::time::{Duration, Instant};

use gofs_proto::cluster::{self, instruction};
use gofs_tree::{ChunkServerId, SessionId};

use super::{ChunkService, said_yes};
use crate::chunks::{Server, ServerTable};

/// By so much a ChunkServer's clock may be slow over the time for which it lets sessions write.
const CLOCK_MARGIN: Duration = Duration::from_secs(1);
/// Pause between two looks at servers that are waited for.
const LOOK: Duration = Duration::from_millis(100);

/// A server that did not say that it refuses the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unsure {
    server: ChunkServerId,
    /// The connection that it had; a newer one tells it.
    link: Option<u64>,
    /// When it lets the session write no more, whatever it knows.
    until: Instant,
}

impl Unsure {
    /// `heard`: when it was last heard of, or the term began.
    fn new(servers: &ServerTable, server: ChunkServerId, began: Instant, lease: Duration) -> Option<Unsure> {
        let known = servers.get(server)?;
        let until = known.heard.unwrap_or(began) + lease + CLOCK_MARGIN;
        Some(Unsure { server, link: known.link, until })
    }

    /// Whether the session cannot write there any more.
    fn is_over(&self, servers: &ServerTable, now: Instant) -> bool {
        // It lists its chunks after it has read what it was told.
        let told = |server: &Server| server.link.is_some() && server.link != self.link && server.listed;
        now >= self.until || servers.get(self.server).is_none_or(told)
    }
}

impl ChunkService {
    /// Has every ChunkServer refuse the session's writes, of which the end is committed. Returns when all do, or cannot let
    /// anybody write any more.
    pub async fn fence(&self, session: SessionId) {
        let answers: Vec<_> = {
            let mut leader = self.leader.lock();
            let alive: Vec<ChunkServerId> = leader.servers.alive().map(|server| server.id).collect();
            let body = instruction::Body::Fence(cluster::Fence { session: session.0 });
            alive.into_iter().map(|id| (id, leader.instruct(id, body.clone()))).collect()
        };
        let yes = said_yes(answers, self.config.answer_timeout).await;
        let (term, mut unsure) = {
            let mut leader = self.leader.lock();
            let now = Instant::now();
            let others: Vec<ChunkServerId> =
                leader.servers.iter().map(|server| server.id).filter(|id| !yes.contains(id)).collect();
            let unsure: Vec<Unsure> = others
                .iter()
                .filter_map(|id| Unsure::new(&leader.servers, *id, leader.began, self.config.dead_after))
                .collect();
            // What they are not told any more does not let them go on.
            others.iter().for_each(|id| leader.hang_up(*id, now));
            (leader.term, unsure)
        };
        let mut told = false;
        loop {
            {
                let leader = self.leader.lock();
                if leader.term != term {
                    return;
                }
                unsure.retain(|unsure| !unsure.is_over(&leader.servers, Instant::now()));
            }
            if unsure.is_empty() {
                return;
            }
            if !std::mem::replace(&mut told, true) {
                let servers: Vec<u64> = unsure.iter().map(|unsure| unsure.server.0).collect();
                tracing::warn!(%session, ?servers, "waiting until ChunkServers that did not confirm a fence let nobody write");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A Status came: its sender may let sessions write on, if this server still leads.
    pub async fn acknowledge(&self, server: ChunkServerId, link: u64, number: u64) {
        if self.group.confirm_leader().await.is_ok() {
            self.leader.lock().heard(server, link, number);
        }
    }
}

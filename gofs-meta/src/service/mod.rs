//! The frame door: what mounts ask of the MetaServer.
//!
//! Owns connections and, while this server leads, a [`Term`]: the tables of sessions, leases and locks with
//! the tasks that wait on them. Decides nothing by itself: the tables do, gofs-tree does, and the EditLog orders
//! what changes. One request kind, one handler. When leadership is lost the term ends: every connection is closed
//! and nothing of it is used again.

mod answer;
mod batch;
mod chunk_map;
mod chunks;
mod closed;
mod connection;
mod edits;
mod fetch;
mod hello;
mod info;
mod keep_alive;
mod locks;
mod lookup;
mod node;
mod operation;
mod plan;
mod readdir;
mod refusal;
mod reserve;
mod slices;
mod space;
mod statfs;
mod term;
mod walk;
mod xattrs;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use gofs_proto::Link;
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpStream;

use crate::group::{MetaGroup, Role};
use crate::lease::Now;
use crate::session::SessionTimes;

pub use chunks::{BoxFuture, Chunks};

use connection::Connection;
use refusal::Refusal;
use term::Term;

/// Pause before the tables of a new term are tried again where the state could not be read.
const TERM_RETRY: Duration = Duration::from_secs(1);

/// How long a connection may take to say Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an operation starts over because a name meant something else when its turn came.
const AGAIN_MAX: usize = 100;

/// What all terms share.
pub(crate) struct Shared {
    group: Arc<MetaGroup>,
    chunks: Arc<dyn Chunks>,
    times: SessionTimes,
    started: Instant,
}

impl Shared {
    fn now(&self) -> Now {
        self.started.elapsed()
    }
}

/// The frame door of one MetaServer.
pub struct Service {
    shared: Arc<Shared>,
    current: RwLock<Option<Arc<Term>>>,
    /// All connections, greeted or not, so that they can be closed.
    links: Mutex<Vec<Weak<Link>>>,
}

impl Service {
    /// A door that serves while `group` leads; [`Service::run`] must be running.
    pub fn new(group: Arc<MetaGroup>, chunks: Arc<dyn Chunks>, times: SessionTimes) -> Arc<Service> {
        let shared = Shared { group, chunks, times, started: Instant::now() };
        Arc::new(Service { shared: Arc::new(shared), current: RwLock::new(None), links: Mutex::default() })
    }

    /// Follows the leadership: begins and ends terms, until it is dropped or aborted.
    pub async fn run(self: Arc<Self>) {
        let mut leadership = self.shared.group.leadership();
        loop {
            let now = leadership.borrow_and_update().clone();
            let running = self.current.read().as_ref().map(|term| term.number());
            if now.role == Role::Leader && running != Some(now.term) {
                self.end_term();
                match Term::begin(self.shared.clone(), now.term) {
                    Ok(term) => {
                        tracing::info!(term = now.term, in_grace = term.in_grace(), "leading");
                        *self.current.write() = Some(term);
                    }
                    Err(refusal) => {
                        tracing::error!(term = now.term, error = %refusal, "leading, but cannot serve yet");
                        tokio::time::sleep(TERM_RETRY).await;
                        leadership.mark_changed();
                    }
                }
            } else if now.role != Role::Leader {
                self.end_term();
            }
            if leadership.changed().await.is_err() {
                return self.end_term();
            }
        }
    }

    fn end_term(&self) {
        if let Some(term) = self.current.write().take() {
            tracing::info!(term = term.number(), "not leading any more");
            term.end();
        }
    }

    /// Takes a connection whose preface [`gofs_proto::door::which`] has seen. It has to say Hello soon.
    pub fn accept(self: &Arc<Self>, stream: TcpStream) -> std::io::Result<()> {
        let connection = Connection::new(self.clone());
        let link = Link::accept(stream, connection.clone())?;
        let mut links = self.links.lock();
        links.retain(|link| link.upgrade().is_some_and(|link| !link.is_closed()));
        links.push(Arc::downgrade(&link));
        drop(links);
        let (link, connection) = (Arc::downgrade(&link), Arc::downgrade(&connection));
        tokio::spawn(async move {
            tokio::time::sleep(HELLO_TIMEOUT).await;
            if let (Some(link), Some(connection)) = (link.upgrade(), connection.upgrade())
                && !connection.is_greeted()
            {
                tracing::warn!(peer = %link.peer(), "connection dropped: no Hello");
                link.close();
            }
        });
        Ok(())
    }

    /// Ends everything; sessions stay in the state and come back to the next leader.
    pub fn shutdown(&self) {
        self.end_term();
        for link in self.links.lock().drain(..).filter_map(|link| link.upgrade()) {
            link.close();
        }
    }

    /// The term that this server leads, or who does.
    fn term(&self) -> Result<Arc<Term>, Refusal> {
        if let Some(term) = self.current.read().clone() {
            return Ok(term);
        }
        let leadership = self.shared.group.leadership();
        let known = leadership.borrow();
        // Chosen, but not ready: it is this one that will serve.
        if known.role == Role::Leader {
            return Err(Refusal::Retry("the leader is getting ready".into()));
        }
        Err(Refusal::NotLeader(known.leader.as_ref().map(|(_, address)| address.clone())))
    }
}

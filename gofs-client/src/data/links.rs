//! Connections to ChunkServers: one for each, pipelined, made when first used and again after it broke.
//!
//! A call is tried once. Whether and where it is tried again is decided by whoever knows
//! what the call means. A server takes a new connection when it has done with all that came over the one before: what is sent again, or
//! afterwards, does not fall behind it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dashmap::DashMap;
use gofs_proto::chunk::Hello;
use gofs_proto::frame::Frame;
use gofs_proto::kind::{self, Request};
use gofs_proto::session::{Failure, failure};
use gofs_proto::{CallError, Link, LinkHandler, OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION};
use gofs_tree::ChunkServerId;
use parking_lot::Mutex;

use super::Replica;
use crate::latencies::Latencies;

/// How long connecting and the handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a server may take for one call before it counts as failed: a slow disk's sync, not more.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// A server that could not be reached is not tried again for so long.
const HOLD_OFF: Duration = Duration::from_millis(200);
/// A server that takes no connection for so long is gone: one that is just being started again does sooner.
const PATIENCE: Duration = Duration::from_millis(600);
/// For so long other replicas are read first.
const SUSPECT: Duration = Duration::from_secs(5);

/// Why a call to a ChunkServer has no reply.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ChunkCallError {
    /// No answer; whether the server acted is unknown.
    #[error("chunk server {address}: {why}")]
    Unreachable { address: String, why: String, trouble: Trouble },
    /// The server answered: no.
    #[error("chunk server {address} refused: {} ({:?})", failure.text, failure.code())]
    Refused { address: String, failure: Failure },
}

/// What kept an answer from coming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The connection ended, or none was taken: that may pass soon.
    Broken,
    /// Time passed: trying again would take as long.
    Silent,
}

/// See the module.
pub(super) struct ChunkLinks {
    cluster: Bytes,
    /// What these connections have in common and no others.
    writer: Bytes,
    peers: DashMap<Replica, Arc<Peer>>,
    round_trips: Arc<Latencies>,
}

#[derive(Default)]
struct Peer {
    link: Mutex<Option<Arc<Link>>>,
    connecting: tokio::sync::Mutex<()>,
    /// When a call last failed, and when connecting did.
    failed_at: Mutex<Option<Instant>>,
    refused_at: Mutex<Option<Instant>>,
    /// Since when connecting has failed each time.
    refused_since: Mutex<Option<Instant>>,
}

/// ChunkServers ask nothing of clients.
struct NoRequests;

impl LinkHandler for NoRequests {
    fn on_request(&self, link: &Arc<Link>, request: Frame) {
        let text = format!("a client answers no {}", kind::name(request.kind));
        link.refuse(
            request.id,
            &Failure { code: failure::Code::BadRequest.into(), text, ..Failure::default() },
        );
    }

    fn on_close(&self, _link: &Arc<Link>) {}
}

impl ChunkLinks {
    /// `cluster`, `round_trips`: see [`super::DataConfig`].
    pub fn new(cluster: Bytes, round_trips: Arc<Latencies>) -> Self {
        let writer = Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
        ChunkLinks { cluster, writer, peers: DashMap::new(), round_trips }
    }

    fn peer(&self, replica: &Replica) -> Arc<Peer> {
        if let Some(peer) = self.peers.get(replica) {
            return peer.clone();
        }
        self.peers.entry(replica.clone()).or_default().clone()
    }

    /// Whether the server failed a moment ago.
    pub fn is_suspect(&self, replica: &Replica) -> bool {
        self.peers
            .get(replica)
            .is_some_and(|peer| peer.failed_at.lock().is_some_and(|at| at.elapsed() < SUSPECT))
    }

    /// Whether the server may still be at work on what was sent over a connection that has ended.
    pub fn is_unsettled(&self, replica: &Replica) -> bool {
        self.peers
            .get(replica)
            .is_some_and(|peer| peer.link.lock().as_ref().is_some_and(|link| link.is_closed()))
    }

    /// Those servers of a chain that a write does without: the first if it takes no connection, one behind it if it takes none and may be
    /// at work on what was sent over one that has ended.
    pub async fn gone(&self, first: &Replica, rest: &[Replica]) -> Vec<(ChunkServerId, ChunkCallError)> {
        let mut gone = Vec::new();
        let unsettled = rest.iter().filter(|replica| self.is_unsettled(replica));
        for replica in std::iter::once(first).chain(unsettled) {
            if let Err(error) = self.reach(replica).await {
                gone.push((replica.server, error));
            }
        }
        gone
    }

    /// Waits until there is a connection. A server that takes none is waited for until it has taken none for `PATIENCE`.
    async fn reach(&self, replica: &Replica) -> Result<(), ChunkCallError> {
        loop {
            match self.ready(replica).await {
                Err(ChunkCallError::Unreachable { trouble: Trouble::Broken, .. })
                    if !self.peer(replica).is_gone() =>
                {
                    tokio::time::sleep(HOLD_OFF / 2).await;
                }
                reached => return reached.map(|_| ()),
            }
        }
    }

    /// Sends one request and waits for its reply, within bounds.
    pub async fn call<R: Request>(
        &self,
        replica: &Replica,
        request: &R,
        payload: Vec<Bytes>,
    ) -> Result<(R::Reply, Bytes), ChunkCallError> {
        let ready = self.ready(replica).await?;
        let answer = ready.send(request, payload);
        self.answer::<R>(ready, answer).await
    }

    /// Waits until the server takes a request.
    pub async fn ready<'a>(&self, replica: &'a Replica) -> Result<Ready<'a>, ChunkCallError> {
        let peer = self.peer(replica);
        let link = self.link(&peer, replica).await?;
        let ready = Ready { peer, replica, link };
        match tokio::time::timeout(CALL_TIMEOUT, ready.link.ready()).await {
            Ok(()) => Ok(ready),
            Err(_) => Err(ready.silent("takes no requests")),
        }
    }

    /// Waits for the answer to what was sent by [`Ready::send`].
    pub async fn answer<R: Request>(
        &self,
        ready: Ready<'_>,
        answer: impl Future<Output = Result<(R::Reply, Bytes), CallError>>,
    ) -> Result<(R::Reply, Bytes), ChunkCallError> {
        let sent = Instant::now();
        let Ok(answer) = tokio::time::timeout(CALL_TIMEOUT, answer).await else {
            return Err(
                ready.silent(&format!("no answer to {} within {CALL_TIMEOUT:?}", kind::name(R::KIND)))
            );
        };
        if matches!(answer, Ok(_) | Err(CallError::Refused(_))) {
            self.round_trips.record(R::KIND.into(), sent.elapsed());
        }
        match answer {
            Ok(reply) => {
                *ready.peer.failed_at.lock() = None;
                Ok(reply)
            }
            Err(CallError::Refused(failure)) => {
                Err(ChunkCallError::Refused { address: ready.replica.address.clone(), failure })
            }
            Err(error) => Err(ready.failed(error.to_string(), Trouble::Broken)),
        }
    }

    async fn link(&self, peer: &Peer, replica: &Replica) -> Result<Arc<Link>, ChunkCallError> {
        if let Some(link) = peer.live() {
            return Ok(link);
        }
        let asked = Instant::now();
        let _connecting = peer.connecting.lock().await;
        if let Some(link) = peer.live() {
            return Ok(link);
        }
        // Those who waited while another failed to connect fail with it.
        if peer.refused_at.lock().is_some_and(|at| at > asked || at.elapsed() < HOLD_OFF) {
            let why = "was not reachable a moment ago".to_owned();
            let trouble = Trouble::Broken;
            return Err(ChunkCallError::Unreachable { address: replica.address.clone(), why, trouble });
        }
        match self.connect(replica).await {
            Ok(link) => {
                *peer.link.lock() = Some(link.clone());
                *peer.refused_since.lock() = None;
                Ok(link)
            }
            Err(why) => {
                *peer.refused_at.lock() = Some(Instant::now());
                peer.refused_since.lock().get_or_insert_with(Instant::now);
                Err(peer.failed(replica, why))
            }
        }
    }

    async fn connect(&self, replica: &Replica) -> Result<Arc<Link>, (String, Trouble)> {
        let link = Link::connect(&replica.address, Arc::new(NoRequests), CONNECT_TIMEOUT).await.map_err(
            |error| {
                let late = error.kind() == std::io::ErrorKind::TimedOut;
                (format!("cannot connect: {error}"), if late { Trouble::Silent } else { Trouble::Broken })
            },
        )?;
        let hello = Hello {
            version: PROTOCOL_VERSION,
            oldest_version: OLDEST_PROTOCOL_VERSION,
            cluster: self.cluster.clone(),
            writer: self.writer.clone(),
        };
        let problem = match tokio::time::timeout(CONNECT_TIMEOUT, link.call(&hello, Vec::new())).await {
            Ok(Ok((welcome, _))) if welcome.server == replica.server.0 => return Ok(link),
            Ok(Ok((welcome, _))) => {
                format!("is server {:#x}, but {:#x} was expected there", welcome.server, replica.server.0)
            }
            Ok(Err(error)) => format!("handshake failed: {error}"),
            Err(_) => {
                link.close();
                return Err(("no answer to the handshake".to_owned(), Trouble::Silent));
            }
        };
        link.close();
        Err((problem, Trouble::Broken))
    }
}

/// A connection that takes a request now.
pub(super) struct Ready<'a> {
    peer: Arc<Peer>,
    replica: &'a Replica,
    link: Arc<Link>,
}

impl Ready<'_> {
    /// Sends a request at once; for [`ChunkLinks::answer`].
    pub fn send<R: Request>(
        &self,
        request: &R,
        payload: Vec<Bytes>,
    ) -> impl Future<Output = Result<(R::Reply, Bytes), CallError>> + Send + use<R> {
        self.link.call(request, payload)
    }

    fn silent(&self, why: &str) -> ChunkCallError {
        self.failed(why.to_owned(), Trouble::Silent)
    }

    fn failed(&self, why: String, trouble: Trouble) -> ChunkCallError {
        // A link that lost one answer may have lost others: nobody should wait for those.
        self.link.close();
        self.peer.failed(self.replica, (why, trouble))
    }
}

impl Peer {
    fn is_gone(&self) -> bool {
        self.refused_since.lock().is_some_and(|since| since.elapsed() >= PATIENCE)
    }

    fn live(&self) -> Option<Arc<Link>> {
        self.link.lock().clone().filter(|link| !link.is_closed())
    }

    fn failed(&self, replica: &Replica, (why, trouble): (String, Trouble)) -> ChunkCallError {
        *self.failed_at.lock() = Some(Instant::now());
        ChunkCallError::Unreachable { address: replica.address.clone(), why, trouble }
    }
}

impl Drop for ChunkLinks {
    fn drop(&mut self) {
        for peer in &self.peers {
            if let Some(link) = peer.link.lock().take() {
                link.close();
            }
        }
    }
}

//! Connections to other ChunkServers: one for each address, made when first used and again after it broke.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gofs_proto::chunk::Hello;
use gofs_proto::frame::Frame;
use gofs_proto::kind;
use gofs_proto::{Link, LinkHandler, OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION};
use gofs_tree::ChunkServerId;
use parking_lot::Mutex;

use super::failure::bad_request;

/// How long connecting and the handshake may take, each.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A server that could not be reached is not tried again for so long.
const HOLD_OFF: Duration = Duration::from_millis(300);

/// See the module.
pub struct Peers {
    own: ChunkServerId,
    peers: Mutex<HashMap<String, Arc<Peer>>>,
}

#[derive(Default)]
struct Peer {
    link: Mutex<Option<(ChunkServerId, Arc<Link>)>>,
    connecting: tokio::sync::Mutex<Option<(Instant, String)>>,
}

/// Servers ask nothing back of those that connect to them.
struct NoRequests;

impl LinkHandler for NoRequests {
    fn on_request(&self, link: &Arc<Link>, request: Frame) {
        link.refuse(request.id, &bad_request(format!("{} came the wrong way", kind::name(request.kind))));
    }

    fn on_close(&self, _: &Arc<Link>) {}
}

impl Peers {
    /// None yet; `own` is the server that connects.
    pub fn new(own: ChunkServerId) -> Peers {
        Peers { own, peers: Mutex::default() }
    }

    /// The connection to `address`, made if there is none. With `server`, only if that one answers there.
    pub async fn link(
        &self,
        address: &str,
        server: Option<ChunkServerId>,
        cluster: Bytes,
    ) -> Result<Arc<Link>, String> {
        let peer = self.peers.lock().entry(address.to_owned()).or_default().clone();
        if let Some(link) = peer.live(address, server)? {
            return Ok(link);
        }
        let asked = Instant::now();
        let mut failed = peer.connecting.lock().await;
        if let Some(link) = peer.live(address, server)? {
            return Ok(link);
        }
        // Those who waited while another failed to connect fail with it.
        if let Some((_, why)) = failed.as_ref().filter(|(at, _)| *at > asked || at.elapsed() < HOLD_OFF) {
            return Err(why.clone());
        }
        match connect(address, cluster, self.own).await {
            Ok(connected) => {
                *failed = None;
                *peer.link.lock() = Some(connected);
                peer.live(address, server)?.ok_or_else(|| format!("{address}: the connection ended at once"))
            }
            Err(why) => {
                *failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    /// Ends all connections.
    pub fn close(&self) {
        for (_, peer) in self.peers.lock().drain() {
            if let Some((_, link)) = peer.link.lock().take() {
                link.close();
            }
        }
    }
}

impl Peer {
    fn live(&self, address: &str, server: Option<ChunkServerId>) -> Result<Option<Arc<Link>>, String> {
        match &*self.link.lock() {
            Some((id, link)) if !link.is_closed() => match server {
                Some(wanted) if wanted != *id => Err(format!("{address} is server {id}, not {wanted}")),
                _ => Ok(Some(link.clone())),
            },
            _ => Ok(None),
        }
    }
}

async fn connect(
    address: &str,
    cluster: Bytes,
    own: ChunkServerId,
) -> Result<(ChunkServerId, Arc<Link>), String> {
    let link = Link::connect(address, Arc::new(NoRequests), CONNECT_TIMEOUT)
        .await
        .map_err(|error| format!("cannot connect to {address}: {error}"))?;
    // The same after a restart: what the process before has sent is behind it.
    let writer = Bytes::copy_from_slice(&own.0.to_be_bytes());
    let hello = Hello { version: PROTOCOL_VERSION, oldest_version: OLDEST_PROTOCOL_VERSION, cluster, writer };
    match tokio::time::timeout(CONNECT_TIMEOUT, link.call(&hello, Vec::new())).await {
        Ok(Ok((welcome, _))) => Ok((ChunkServerId(welcome.server), link)),
        Ok(Err(error)) => {
            link.close();
            Err(format!("{address} refused the handshake: {error}"))
        }
        Err(_) => {
            link.close();
            Err(format!("{address} did not answer the handshake within {CONNECT_TIMEOUT:?}"))
        }
    }
}

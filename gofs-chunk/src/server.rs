//! A whole ChunkServer: store, data door, heartbeat, upkeep.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use gofs_proto::{Link, door};
use gofs_tree::ChunkServerId;
use gofs_wakeful::Wakeful;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::heartbeat::{self, Announcement};
use crate::service::{Connection, Service};
use crate::store::Store;
use crate::upkeep::Upkeep;

/// Connections at once; more are closed at the door.
const CONNECTIONS_MAX: usize = 10_000;
/// Pause after a connection could not be accepted (no file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long requests under way may take to end at a shutdown.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// Boxed: so a server is compiled once and not in every program that starts one.
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A running ChunkServer. Several may run in one process, each with its own directories and address.
pub struct Server {
    address: SocketAddr,
    service: Arc<Service>,
    accepting: JoinHandle<()>,
    heartbeat: JoinHandle<String>,
    upkeep: Upkeep,
}

impl Server {
    /// Opens the directories and listens. Does not wait for a MetaServer: one is looked for for as
    /// long as the server runs.
    pub fn start(config: Config) -> BoxFuture<anyhow::Result<Server>> {
        Box::pin(Server::begin(config))
    }

    async fn begin(config: Config) -> anyhow::Result<Server> {
        config.validate()?;
        let options = config.store_options();
        let (data, scrub) = (config.data.clone(), (config.scrub_bytes_per_s, config.scrub_interval_s));
        let store = tokio::task::spawn_blocking(move || Store::open(&data, &options)).await??;
        let store = Arc::new(store);
        let listener = TcpListener::bind(config.listen).await.with_context(|| {
            format!("cannot listen on {}: is another server running there?", config.listen)
        })?;
        let address = listener.local_addr()?;
        let service = Service::new(store.clone(), Wakeful::start(config.cpu_latency));
        let announcement = Announcement {
            address: config.advertise.clone().unwrap_or_else(|| address.to_string()),
            labels: config.labels.clone(),
        };
        tracing::info!(server = %store.server(), %address, advertise = announcement.address, "ChunkServer started");
        Ok(Server {
            address,
            accepting: tokio::spawn(accept(listener, service.clone())),
            heartbeat: tokio::spawn(heartbeat::run(service.clone(), config.meta.clone(), announcement)),
            upkeep: Upkeep::start(store, scrub.0, Duration::from_secs(scrub.1)),
            service,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its id, chosen at random when its first data directory was made.
    pub fn id(&self) -> ChunkServerId {
        self.service.store.server()
    }

    /// Waits until the cluster refuses this server for good; says why. The server then serves nobody.
    pub async fn refused(&mut self) -> String {
        match (&mut self.heartbeat).await {
            Ok(why) => why,
            Err(error) => format!("the heartbeat ended: {error}"),
        }
    }

    /// Stops: no new requests, those under way end, everything is synced.
    pub fn shutdown(self) -> BoxFuture<()> {
        Box::pin(self.end())
    }

    async fn end(self) {
        self.heartbeat.abort();
        self.accepting.abort();
        let _ = self.accepting.await;
        let patience = tokio::time::Instant::now() + SHUTDOWN_PATIENCE;
        while self.service.in_flight() > 0 && tokio::time::Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.service.close_connections();
        self.service.peers.close();
        let (upkeep, store) = (self.upkeep, self.service.store.clone());
        let closed = tokio::task::spawn_blocking(move || {
            upkeep.stop();
            let closed = store.close();
            // Tasks of connections may hold the store for a moment longer.
            store.retire();
            closed
        });
        match closed.await {
            Ok(Ok(())) => tracing::info!(address = %self.address, "ChunkServer stopped"),
            Ok(Err(error)) => {
                tracing::error!(%error, "ChunkServer stopped; the next start has to repeat what was not written")
            }
            Err(error) => tracing::error!(%error, "ChunkServer stopped uncleanly"),
        }
    }
}

async fn accept(listener: TcpListener, service: Arc<Service>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) if service.connection_count() >= CONNECTIONS_MAX => {
                tracing::warn!(%peer, "connection refused: there are {CONNECTIONS_MAX} already");
                drop(stream);
            }
            Ok((stream, peer)) => {
                tokio::spawn(welcome(stream, peer, service.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn welcome(stream: TcpStream, peer: SocketAddr, service: Arc<Service>) {
    match door::which(&stream).await {
        Ok(door::Door::Frame) => match Link::accept(stream, Connection::new(service.clone())) {
            Ok(link) => service.remember(&link),
            Err(error) => tracing::debug!(%peer, %error, "connection ended at once"),
        },
        Ok(door::Door::Rpc) => {
            tracing::warn!(%peer, "a ChunkServer has no HTTP/2 door: use a MetaServer's address")
        }
        Err(error) => tracing::debug!(%peer, %error, "not a gofs connection"),
    }
}

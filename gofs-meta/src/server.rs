//! A MetaServer as a whole: one listener, two doors, the parts behind them.
//!
//! Also runs inside another process. After a stop, and after a crash, everything acknowledged is in the data
//! directory; sessions go on with whoever leads next.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use gofs_proto::door::{self, Door};
use gofs_tree::MetaServerId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::admin;
use crate::chunks::ChunkService;
use crate::config::Config;
use crate::group::{GroupConfig, MetaGroup};
use crate::rpc_stream::RpcStream;
use crate::service::{BoxFuture, Service};

/// gRPC connections that were accepted and not taken over yet.
const RPC_BACKLOG: usize = 64;
/// Pause after the system refused a connection (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often a stop looks whether all tasks have ended.
const STOP_POLL: Duration = Duration::from_millis(2);
/// How long a stop waits for requests under way, and then for what is left of their connections.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// A running MetaServer.
pub struct Server {
    id: MetaServerId,
    address: SocketAddr,
    data: PathBuf,
    group: Arc<MetaGroup>,
    service: Arc<Service>,
    stop: watch::Sender<bool>,
    /// Begins terms; must be over before the last one is ended.
    follow: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Opens the data directory, joins the group and listens.
    ///
    /// Boxed, here and in `shutdown`: so a server is compiled once and not in every program that starts one.
    pub fn start(config: Config) -> BoxFuture<'static, anyhow::Result<Server>> {
        Box::pin(Server::begin(config))
    }

    async fn begin(config: Config) -> anyhow::Result<Server> {
        let listener = TcpListener::bind(config.listen).await.with_context(|| {
            format!(
                "MetaServer {} cannot listen on {}: if another process has the port, stop it or choose another address \
                 with --listen",
                config.id.0, config.listen
            )
        })?;
        let address = listener.local_addr().context("the listener has no address")?;
        std::fs::create_dir_all(&config.data).with_context(|| {
            format!(
                "the data directory {} cannot be made: check the path and its permissions, or name another with --data",
                config.data.display()
            )
        })?;
        let advertised = config.advertise.clone().or_else(|| config.peers.get(&config.id).cloned());
        let own_address = advertised.unwrap_or_else(|| address.to_string());
        let mut group_config =
            GroupConfig::new(config.id, config.data.clone(), own_address, config.peers.clone());
        group_config.join = config.join;
        group_config.state = config.state;
        group_config.segment_bytes = config.segment_bytes;
        group_config.snapshot_entries = config.snapshot_entries;
        group_config.heartbeat_ms = config.heartbeat_ms;
        group_config.cpu_latency = config.cpu_latency;
        let group = MetaGroup::start(group_config).await.with_context(|| {
            format!("MetaServer {} cannot start with {}", config.id.0, config.data.display())
        })?;
        let chunks = ChunkService::new(group.clone(), config.chunks.clone());
        let service = Service::new(group.clone(), chunks.clone(), config.sessions);
        let (stop, stopped) = watch::channel(false);
        let (rpc, rpc_streams) = mpsc::channel(RPC_BACKLOG);
        let router = tonic::transport::Server::builder()
            .add_service(group.raft_service())
            .add_service(chunks.heartbeat_service())
            .add_service(admin::admin_service(group.clone(), chunks, service.clone()));
        let mut rpc_stopped = stopped.clone();
        let follow = tokio::spawn(service.clone().run());
        let tasks = vec![
            tokio::spawn(accept(listener, service.clone(), rpc, stopped)),
            tokio::spawn(async move {
                let until = async move {
                    // A sender that is gone means the same.
                    let _ = rpc_stopped.wait_for(|stopped| *stopped).await;
                };
                if let Err(error) =
                    router.serve_with_incoming_shutdown(ReceiverStream::new(rpc_streams), until).await
                {
                    tracing::error!(%error, "the gRPC door failed");
                }
            }),
        ];
        tracing::info!(id = config.id.0, %address, data = %config.data.display(), "MetaServer is up");
        Ok(Server { id: config.id, address, data: config.data, group, service, stop, follow, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its group, for whoever runs it in their own process.
    pub fn group(&self) -> &Arc<MetaGroup> {
        &self.group
    }

    /// Waits until this server was removed from its cluster: it serves nothing any more, and is to be shut down.
    pub async fn removed(&self) {
        let mut removed = self.group.removed();
        if removed.wait_for(|removed| *removed).await.is_err() {
            // The group is there for as long as the server.
            return std::future::pending().await;
        }
        tracing::error!(
            id = self.id.0,
            "this MetaServer was removed from its cluster (gofsctl meta remove) and stops. Its id is not used again: to have a \
             MetaServer here, delete the data directory and add it with another id"
        );
    }

    /// Waits until this server cannot go on, because its data could not be written or read: it serves nothing any more, and is
    /// to be shut down and started again.
    pub async fn failed(&self) {
        let mut failed = self.group.failed();
        match failed.wait_for(Option::is_some).await.map(|failed| failed.clone()) {
            Ok(why) => tracing::error!(
                id = self.id.0,
                data = %self.data.display(),
                error = why.unwrap_or_default(),
                "this MetaServer cannot write or read its data and stops: see to its disk, and start it again"
            ),
            // The group is there for as long as the server.
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops cleanly. Mounts notice that the server is gone and go on with the next one.
    pub fn shutdown(self) -> BoxFuture<'static, ()> {
        Box::pin(self.end())
    }

    async fn end(self) {
        // While the others can still reach this one.
        self.group.hand_over().await;
        self.stop.send_replace(true);
        self.follow.abort();
        // Cancelled is how it ends.
        let _ = self.follow.await;
        self.service.shutdown();
        for mut task in self.tasks {
            if tokio::time::timeout(STOP_PATIENCE, &mut task).await.is_err() {
                task.abort();
                let _ = task.await;
            }
        }
        self.group.shutdown().await;
        drop(self.service);
        // Whoever starts a server on this data directory next must find it free: tasks of closed connections
        // end a moment later.
        let deadline = tokio::time::Instant::now() + STOP_PATIENCE;
        while Arc::strong_count(&self.group) > 1 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(STOP_POLL).await;
        }
        tracing::info!(id = self.id.0, "MetaServer has stopped");
    }
}

/// Takes connections and sends each to its door.
async fn accept(
    listener: TcpListener,
    service: Arc<Service>,
    rpc: mpsc::Sender<std::io::Result<RpcStream>>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                tokio::spawn(show_in(stream, peer, service.clone(), rpc.clone(), stopped.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn show_in(
    stream: TcpStream,
    peer: SocketAddr,
    service: Arc<Service>,
    rpc: mpsc::Sender<std::io::Result<RpcStream>>,
    stopped: watch::Receiver<bool>,
) {
    match door::which(&stream).await {
        Ok(Door::Frame) => {
            if let Err(error) = service.accept(stream) {
                tracing::warn!(%peer, %error, "a connection was lost at the door");
            }
        }
        Ok(Door::Rpc) => {
            // Refused only when the server stops.
            let _ = rpc.send(Ok(RpcStream::new(stream, stopped))).await;
        }
        Err(error) => {
            tracing::warn!(%peer, %error, "connection dropped: it speaks neither gofs frames nor HTTP/2")
        }
    }
}

//! `gofs-meta`: runs one MetaServer until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use gofs_meta::Server;
use gofs_meta::config::{DEFAULT_LISTEN, FileConfig, parse_peers};
use gofs_wakeful::CpuLatency;
use tokio::signal::unix::{SignalKind, signal};

/// Keeps the directory trees of a gofs cluster and schedules it.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  gofs-meta --id 1 --data /var/lib/gofs/meta
  gofs-meta --id 1 --listen 10.0.0.1:7460 --data /var/lib/gofs/meta --peers 1=10.0.0.1:7460,2=10.0.0.2:7460,3=10.0.0.3:7460
  gofs-meta --id 4 --listen 10.0.0.4:7460 --data /var/lib/gofs/meta --join 10.0.0.1:7460,10.0.0.2:7460
  gofs-meta --config /etc/gofs/meta.toml

The exit status is 3 when the server was removed from its cluster (gofsctl meta remove): it is not to be started again. What a flag says counts more than the configuration file. GOFS_LOG sets what is logged: error, warn, info (default), debug."
)]
struct Args {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Number of this MetaServer in the cluster, from 1 [default: 1]
    #[arg(long)]
    id: Option<u64>,
    /// Address to listen on
    #[arg(long, value_name = "HOST:PORT", help = format!("Address to listen on [default: {DEFAULT_LISTEN}]"))]
    listen: Option<String>,
    /// Address that others are told to reach it at [default: its own in --peers, else where it listens]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Data directory; made if it is not there
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// All MetaServers of a new cluster, this one included [default: it is the only one]; later the cluster itself knows
    #[arg(long, value_name = "ID=HOST:PORT,...")]
    peers: Option<String>,
    /// Members of the cluster that this server is to be added to with: gofsctl meta add; looked at while it has no data
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    join: Vec<String>,
    /// Keep processors from sleeping while requests flow: auto, always (hold) or never (off) [default: auto]
    #[arg(long, value_name = "WHEN")]
    cpu_latency: Option<CpuLatency>,
}

impl Args {
    fn into_config(self) -> anyhow::Result<gofs_meta::config::Config> {
        let mut file = match &self.config {
            Some(path) => FileConfig::read(path)?,
            None => FileConfig::default(),
        };
        file.id = self.id.or(file.id);
        file.listen = self.listen.or(file.listen);
        file.advertise = self.advertise.or(file.advertise);
        file.data = self.data.or(file.data);
        file.cpu_latency = self.cpu_latency.or(file.cpu_latency);
        if !self.join.is_empty() {
            file.join = self.join;
        }
        if let Some(peers) = &self.peers {
            file.peers = parse_peers(peers)?;
        }
        file.check()
    }
}

/// Exit status of a server that was removed from its cluster.
const REMOVED: u8 = 3;

fn main() -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("GOFS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let config = Args::parse().into_config()?;
    let runtime = tokio::runtime::Runtime::new().context("the runtime cannot be started")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be listened for")?;
        let server = Server::start(config).await?;
        let mut status = ExitCode::SUCCESS;
        tokio::select! {
            _ = terminate.recv() => {}
            result = tokio::signal::ctrl_c() => result.context("Ctrl-C cannot be listened for")?,
            () = server.removed() => status = ExitCode::from(REMOVED),
            () = server.failed() => status = ExitCode::FAILURE,
        }
        server.shutdown().await;
        Ok(status)
    })
}

//! The gofs-chunk program.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Parser;
use gofs_chunk::{Config, Server};
use gofs_wakeful::CpuLatency;
use tokio::signal::unix::{SignalKind, signal};

/// Keeps chunks of gofs files on this host's disks.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  gofs-chunk --listen 10.0.0.7:7470 --data /srv/disk1,/srv/disk2 --meta meta1:7460,meta2:7460,meta3:7460 --label rack=r1
  gofs-chunk --config /etc/gofs/chunk.toml"
)]
struct Arguments {
    /// Settings from this file; options on the command line go before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen [default: 127.0.0.1:7470]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Where others reach this server, if not where it listens
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Data directories, one for each disk
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    data: Vec<PathBuf>,
    /// MetaServers
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    meta: Vec<String>,
    /// What placement goes by, for example rack=r1; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Keep processors from sleeping while requests flow: auto, always (hold) or never (off) [default: auto]
    #[arg(long, value_name = "WHEN")]
    cpu_latency: Option<CpuLatency>,
}

impl Arguments {
    fn config(self) -> anyhow::Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::load(path)?,
            None => Config::default(),
        };
        if let Some(listen) = self.listen {
            config.listen = listen;
        }
        if self.advertise.is_some() {
            config.advertise = self.advertise;
        }
        if !self.data.is_empty() {
            config.data = self.data;
        }
        if !self.meta.is_empty() {
            config.meta = self.meta;
        }
        if let Some(cpu_latency) = self.cpu_latency {
            config.cpu_latency = cpu_latency;
        }
        for label in self.label {
            match label.split_once('=') {
                Some((key, value)) if !key.is_empty() => {
                    config.labels.insert(key.to_owned(), value.to_owned())
                }
                _ => bail!("--label {label}: KEY=VALUE expected"),
            };
        }
        Ok(config)
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("GOFS_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let config = arguments.config()?;
    gofs_alloc::keep_buffers();
    let runtime = tokio::runtime::Runtime::new().context("cannot start")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut server = Server::start(config).await?;
        let mut refused = None;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            why = server.refused() => refused = Some(why),
        }
        server.shutdown().await;
        match refused {
            Some(why) => bail!("{why}"),
            None => Ok(()),
        }
    })
}

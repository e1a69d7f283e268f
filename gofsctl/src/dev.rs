//! `gofsctl dev`: a whole cluster in one process, mounted.
//!
//! Everything runs as it would in processes of its own and talks over loopback; only the
//! starting and stopping is shared. State stays in the directory, so that the next start goes on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use gofs_fuse::{MountConfig, MountOptions, Mounted};
use gofs_proto::cluster::{
    CreateNamespaceRequest, ListNamespacesRequest, ListServersRequest, ListSessionsRequest, NamespaceConfig,
};
use gofs_tree::MetaServerId;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::Admin;

/// Members of an EditLog majority that `dev` can run.
const METAS_MAX: u16 = 7;
/// ChunkServers that `dev` can run.
const CHUNKS_MAX: u16 = 32;

/// What to start.
#[derive(Args)]
#[command(after_help = "\
Examples:
  gofsctl dev
  gofsctl dev --metas 3 --chunks 4 --replicas 3
  gofsctl dev --dir /var/tmp/gofs --mount /mnt/gofs --namespace work")]
pub struct DevArgs {
    /// Where all state is kept; made if it is missing.
    #[arg(long, default_value = "gofs-dev")]
    dir: PathBuf,
    /// Where to mount (default: DIR/mnt); made if it is missing.
    #[arg(long)]
    mount: Option<PathBuf>,
    /// MetaServers, an odd number.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(METAS_MAX)))]
    metas: u16,
    /// ChunkServers.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(CHUNKS_MAX)))]
    chunks: u16,
    /// Copies of each chunk, of a namespace that does not exist yet.
    #[arg(long, default_value_t = 2)]
    replicas: u32,
    /// The namespace to mount; made if it is missing.
    #[arg(long, default_value = "demo")]
    namespace: String,
    /// First port: MetaServers listen from here on, ChunkServers from 10 above.
    #[arg(long, default_value_t = 7460)]
    port: u16,
    /// Mount options, as for mount -o.
    #[arg(short = 'o', long = "options", default_value = "")]
    options: String,
    /// Log in this detail to standard error (error, warn, info, debug, or a tracing filter).
    #[arg(long, default_value = "warn")]
    log: String,
}

/// Everything that runs; stopped in the order mount, ChunkServers, MetaServers.
struct Running {
    metas: Vec<gofs_meta::Server>,
    chunks: Vec<gofs_chunk::Server>,
    mounted: Option<Mounted>,
}

/// Starts it, waits for Ctrl-C or an unmount from outside, and stops it.
pub async fn run(args: DevArgs) -> anyhow::Result<()> {
    let begun = Instant::now();
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log).context("--log")?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    if args.metas.is_multiple_of(2) {
        bail!("--metas {}: a majority needs an odd number", args.metas);
    }
    std::fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {}", args.dir.display()))?;
    let dir = args.dir.canonicalize().with_context(|| args.dir.display().to_string())?;
    let mount_point = args.mount.clone().unwrap_or_else(|| dir.join("mnt"));
    std::fs::create_dir_all(&mount_point)
        .with_context(|| format!("cannot make the mount point {}", mount_point.display()))?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let mut running = Running { metas: Vec::new(), chunks: Vec::new(), mounted: None };
    let started = tokio::select! {
        result = start(&args, &dir, &mount_point, &mut running) => result,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    if let Err(error) = started {
        running.stop().await;
        return Err(error);
    }
    println!(
        "{} is mounted on {} ({:.1} s)",
        args.namespace,
        mount_point.display(),
        begun.elapsed().as_secs_f64()
    );
    println!("MetaServers  {}", addresses(&args).join(","));
    println!("state        {}", dir.display());
    println!("Ctrl-C unmounts and stops; the state stays.");
    if let Some(mounted) = &running.mounted {
        tokio::select! {
            () = mounted.wait() => println!("unmounted from outside, stopping"),
            _ = interrupt.recv() => println!("stopping"),
            _ = terminate.recv() => println!("stopping"),
        }
    }
    running.stop().await;
    Ok(())
}

fn addresses(args: &DevArgs) -> Vec<String> {
    (0..args.metas).map(|i| format!("127.0.0.1:{}", args.port.saturating_add(i))).collect()
}

async fn start(args: &DevArgs, dir: &Path, mount_point: &Path, running: &mut Running) -> anyhow::Result<()> {
    let metas = addresses(args);
    let peers: BTreeMap<MetaServerId, String> = (1..).map(MetaServerId).zip(metas.iter().cloned()).collect();
    let starting = peers.iter().map(|(id, address)| {
        let address: Result<SocketAddr, _> = address.parse();
        let data = dir.join(format!("meta{}", id.0));
        let peers = if args.metas > 1 { peers.clone() } else { BTreeMap::new() };
        let id = *id;
        tokio::spawn(async move {
            gofs_meta::Server::start(gofs_meta::Config {
                peers,
                ..gofs_meta::Config::new(id, address?, data)
            })
            .await
        })
    });
    // All at once: each waits for a majority of the others.
    for server in starting.collect::<Vec<_>>() {
        running.metas.push(server.await??);
    }
    for i in 1..=args.chunks {
        let address = SocketAddr::from(([127, 0, 0, 1], args.port.saturating_add(9 + i)));
        let config = gofs_chunk::Config::new(address, vec![dir.join(format!("chunk{i}"))], metas.clone());
        running.chunks.push(gofs_chunk::Server::start(config).await?);
    }
    let mut admin = Admin::new(&metas.join(","))?;
    wait_for_chunk_servers(&mut admin, args.chunks.into()).await?;
    ensure_namespace(&mut admin, args).await?;
    tell_of_sessions(&mut admin, args).await?;
    let config = MountConfig {
        source: format!("{}:/{}", metas.join(","), args.namespace),
        mount_point: mount_point.to_owned(),
        options: MountOptions::parse([args.options.as_str()].into_iter().filter(|o| !o.is_empty()))?,
    };
    running.mounted = Some(gofs_fuse::mount(config).await?);
    Ok(())
}

/// Placement chooses among those that are there and have told of their disks, and the mount asks once how much room there is,
/// so all should.
async fn wait_for_chunk_servers(admin: &mut Admin, count: u32) -> anyhow::Result<()> {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
    let begun = Instant::now();
    loop {
        let reply = admin.call(|mut c| async move { c.list_servers(ListServersRequest {}).await }).await?;
        let ready = reply.servers.iter().filter(|s| s.state != "dead" && !s.disks.is_empty()).count();
        if ready >= count as usize {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("only {ready} of {count} ChunkServers told of their disks; try --log info");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ensure_namespace(admin: &mut Admin, args: &DevArgs) -> anyhow::Result<()> {
    let all = admin.call(|mut c| async move { c.list_namespaces(ListNamespacesRequest {}).await }).await?;
    if all.namespaces.iter().any(|n| n.name == args.namespace) {
        return Ok(());
    }
    let config = NamespaceConfig { replicas: Some(args.replicas), ..NamespaceConfig::default() };
    let request = CreateNamespaceRequest { name: args.namespace.clone(), config: Some(config) };
    admin
        .call(|mut c| {
            let request = request.clone();
            async move { c.create_namespace(request).await }
        })
        .await?;
    Ok(())
}

/// After a kill: programs would seem to hang.
async fn tell_of_sessions(admin: &mut Admin, args: &DevArgs) -> anyhow::Result<()> {
    let request = ListSessionsRequest { namespace: args.namespace.clone() };
    let reply = admin
        .call(|mut c| {
            let request = request.clone();
            async move { c.list_sessions(request).await }
        })
        .await?;
    for session in reply.sessions {
        println!(
            "a mount on {} was not unmounted: what it used waits for it to come back, for half a minute at most",
            session.mount_point
        );
    }
    Ok(())
}

impl Running {
    async fn stop(self) {
        if let Some(mounted) = self.mounted {
            mounted.unmount().await;
        }
        for server in self.chunks {
            server.shutdown().await;
        }
        for server in self.metas {
            server.shutdown().await;
        }
    }
}

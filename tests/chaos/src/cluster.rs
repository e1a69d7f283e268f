//! The cluster under test: every server and every mount a process on a host of its own.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gofs_posix_tests::{Prepare, Server};
use serde_json::Value;

use crate::disk::Disk;
use crate::network::{HostId, Network};
use crate::options::Options;
use crate::sys;

const PORT: u16 = 7460;
const START_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// No gofsctl command takes longer.
const CTL_TIMEOUT_S: u32 = 20;
const META_DISK_BYTES: u64 = 1 << 30;
const CHUNK_DISK_BYTES: u64 = 2 << 30;
const CHUNK_BYTES: &str = "1MiB";
/// The namespace.
const NAMESPACE: &str = "chaos";

/// A server with its disk, on its host.
pub struct Node {
    /// `meta1`, `chunk3`.
    pub name: String,
    /// Where it is on the network.
    pub host: HostId,
    /// The process.
    pub server: Server,
    /// What it keeps its data on.
    pub disk: Disk,
    clock: Clock,
}

/// A mount, on its host.
pub struct Client {
    /// `client1`.
    pub name: String,
    /// Where it is on the network.
    pub host: HostId,
    /// The daemon.
    pub daemon: Server,
    /// The mount point.
    pub point: PathBuf,
    clock: Clock,
}

/// The wall clock of one process.
struct Clock(File);

impl Clock {
    fn new(path: &Path) -> Result<Clock> {
        let file = File::options().create(true).truncate(true).write(true).open(path);
        let file = file.with_context(|| format!("{}", path.display()))?;
        file.write_all_at(&0_i64.to_ne_bytes(), 0)?;
        Ok(Clock(file))
    }

    fn set(&self, offset_s: i64) -> Result<()> {
        self.0.write_all_at(&(offset_s * 1_000_000_000).to_ne_bytes(), 0).context("the offset of a clock")
    }
}

/// See the module.
pub struct Cluster {
    /// The router.
    pub network: Network,
    /// MetaServers, by their ids from 1.
    pub metas: Vec<Node>,
    /// ChunkServers.
    pub chunks: Vec<Node>,
    /// Mounts of one namespace.
    pub clients: Vec<Client>,
    meta_addresses: String,
    programs: PathBuf,
}

/// What every process needs to be started with.
struct Launch<'a> {
    dir: &'a Path,
    programs: &'a Path,
    network: &'a Network,
}

impl Launch<'_> {
    /// A process on a host, with clocks of its own.
    fn start(&self, name: &str, program: &str, host: HostId, args: Vec<String>) -> Result<(Server, Clock)> {
        let path = self.dir.join(format!("{name}.clock"));
        let clock = Clock::new(&path)?;
        let library = self.programs.join("libgofs_chaos_clock.so");
        ensure!(library.exists(), "{} is missing: run `cargo build --workspace`", library.display());
        let program = self.programs.join(program);
        ensure!(program.exists(), "{} is missing: run `cargo build --workspace`", program.display());
        let network = self.network.namespace(host)?;
        // No two machines were started at the same moment.
        let up_s = name.bytes().fold(7_u32, |sum, byte| (sum * 31 + u32::from(byte)) % 100_000) * 10;
        let prepare: Prepare = Box::new(move |command| {
            command.env("LD_PRELOAD", &library).env("GOFS_CHAOS_CLOCK", &path);
            sys::enter_network(command, &network);
            sys::shift_monotonic(command, up_s);
        });
        Ok((Server::start_prepared(name, program, args, self.dir, prepare), clock))
    }
}

impl Cluster {
    /// Starts everything and waits until it works. Data, logs and mount points are below `dir`.
    pub fn start(options: &Options, dir: &Path) -> Result<Cluster> {
        let own = std::env::current_exe().context("the own program is not found")?;
        let programs = programs_dir(&own)?;
        let mut network = Network::new()?;
        let mut hosts = |count: usize| (0..count).map(|_| network.add()).collect::<Result<Vec<HostId>>>();
        let (meta_hosts, chunk_hosts) = (hosts(options.metas)?, hosts(options.chunks)?);
        let client_hosts = hosts(options.clients)?;
        let address = |host: &HostId| format!("{}:{PORT}", network.address(*host));
        let meta_addresses = meta_hosts.iter().map(address).collect::<Vec<_>>().join(",");
        let launch = Launch { dir, programs: &programs, network: &network };
        let mut metas = Vec::new();
        for (i, &host) in meta_hosts.iter().enumerate() {
            metas.push(start_meta(&launch, options, i + 1, host, &meta_hosts)?);
        }
        let mut chunks = Vec::new();
        for (i, &host) in chunk_hosts.iter().enumerate() {
            chunks.push(start_chunk(&launch, i + 1, host, &meta_addresses)?);
        }
        let mut cluster = Cluster { network, metas, chunks, clients: Vec::new(), meta_addresses, programs };
        let count = options.chunks as u64;
        cluster.wait("every server", START_TIMEOUT, |cluster| {
            let status = cluster.ctl_json(&["status"])?;
            let servers = cluster.ctl_json(&["servers"])?;
            let disks = |server: &Value| server["disks"].as_array().is_some_and(|disks| !disks.is_empty());
            let told = servers.as_array().is_some_and(|servers| servers.iter().all(disks));
            Ok((status["chunk_servers_alive"] == count && told).then_some(()))
        })?;
        let replicas = options.replicas.to_string();
        cluster.ctl(&["ns", "create", NAMESPACE, "--replicas", &replicas, "--chunk-size", CHUNK_BYTES])?;
        for (i, host) in client_hosts.into_iter().enumerate() {
            let client = cluster.start_client(dir, i + 1, host)?;
            cluster.clients.push(client);
        }
        Ok(cluster)
    }

    fn start_client(&self, dir: &Path, number: usize, host: HostId) -> Result<Client> {
        let name = format!("client{number}");
        let point = dir.join(&name);
        fs::create_dir_all(&point)?;
        let source = format!("{}:/{NAMESPACE}", self.meta_addresses);
        let args = vec![
            source,
            point.display().to_string(),
            "--foreground".into(),
            "-o".into(),
            "cpu_latency=off".into(),
        ];
        let launch = Launch { dir, programs: &self.programs, network: &self.network };
        let (mut daemon, clock) = launch.start(&name, "gofs-fuse", host, args)?;
        let deadline = Instant::now() + START_TIMEOUT;
        while !is_mounted(&point)? {
            ensure!(daemon.is_running(), "{name} ended before it mounted:\n{}", daemon.log());
            ensure!(
                Instant::now() < deadline,
                "{name} is not mounted after {START_TIMEOUT:?}:\n{}",
                daemon.log()
            );
            std::thread::sleep(POLL);
        }
        Ok(Client { name, host, daemon, point, clock })
    }

    /// Runs gofsctl.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let output = Command::new("timeout")
            .arg(CTL_TIMEOUT_S.to_string())
            .arg(self.programs.join("gofsctl"))
            .args(["--meta", &self.meta_addresses])
            .args(args)
            .output()
            .context("gofsctl cannot be started")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !output.status.success() {
            bail!("gofsctl {}: {} {}", args.join(" "), text(&output.stdout), text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }

    /// Runs gofsctl with `--json`.
    pub fn ctl_json(&self, args: &[&str]) -> Result<Value> {
        let text = self.ctl(&[&["--json"], args].concat())?;
        serde_json::from_str(&text).with_context(|| format!("gofsctl {}: {text}", args.join(" ")))
    }

    /// The leading MetaServer, from 0; `None` while there is none.
    pub fn leader(&self) -> Option<usize> {
        let leader = self.ctl_json(&["status"]).ok()?["leader"].as_u64()?;
        (leader as usize).checked_sub(1)
    }

    /// Waits until `look` finds something; its last error otherwise.
    pub fn wait<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut look: impl FnMut(&mut Cluster) -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            let found = look(self);
            if let Ok(Some(found)) = found {
                return Ok(found);
            }
            ensure!(!sys::interrupted(), "interrupted while waiting for {what}");
            if Instant::now() > deadline {
                let last = found.err().map_or_else(String::new, |error| format!(": {error:#}"));
                bail!("waited {timeout:?} in vain for {what}{last}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Moves the wall clock of a process, named as its node or client.
    pub fn set_clock(&self, name: &str, offset_s: i64) -> Result<()> {
        let nodes = self.metas.iter().chain(&self.chunks).map(|node| (&node.name, &node.clock));
        let clients = self.clients.iter().map(|client| (&client.name, &client.clock));
        let found = nodes.chain(clients).find(|(own, _)| *own == name);
        found.with_context(|| format!("there is no {name}"))?.1.set(offset_s)
    }

    /// Servers and daemons that ended by themselves.
    pub fn ended(&mut self) -> Vec<String> {
        let nodes = self.metas.iter_mut().chain(&mut self.chunks);
        let nodes = nodes.map(|node| (node.name.clone(), node.server.is_running()));
        let clients = self.clients.iter_mut();
        let clients = clients.map(|client| (client.name.clone(), client.daemon.is_running()));
        nodes.chain(clients).filter(|(_, running)| !running).map(|(name, _)| name).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.metas.iter_mut().chain(&mut self.chunks) {
            if node.server.is_running() {
                node.server.signal(libc::SIGCONT);
            }
        }
        // While there are servers, so that what mounts hold goes to them.
        for client in &mut self.clients {
            if client.daemon.is_running() {
                client.daemon.signal(libc::SIGCONT);
                client.daemon.stop();
            }
            if is_mounted(&client.point).unwrap_or(true) {
                Command::new("umount").arg("-l").arg(&client.point).status().ok();
            }
        }
    }
}

/// Where the programs are: beside this one, or above it where it is a test.
fn programs_dir(own: &Path) -> Result<PathBuf> {
    let dir = own.parent().context("a program without a directory")?;
    Ok(if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_owned() } else { dir.to_owned() })
}

fn start_meta(
    launch: &Launch<'_>,
    options: &Options,
    id: usize,
    host: HostId,
    hosts: &[HostId],
) -> Result<Node> {
    let name = format!("meta{id}");
    let disk = Disk::new(launch.dir, &name, META_DISK_BYTES)?;
    let config = launch.dir.join(format!("{name}.toml"));
    let text = format!(
        "cpu_latency = \"off\"\nsession_validity_ms = {}\nsession_margin_ms = {}\nrepair_after_s = {}\n\
         dead_after_s = {}\nsnapshot_entries = {}\n",
        options.session_s * 1000,
        options.session_s * 250,
        options.repair_after_s,
        options.dead_after_s,
        options.snapshot_entries,
    );
    fs::write(&config, text).with_context(|| format!("{}", config.display()))?;
    let listen = |host: &HostId| format!("{}:{PORT}", launch.network.address(*host));
    let peers: Vec<String> =
        hosts.iter().enumerate().map(|(i, h)| format!("{}={}", i + 1, listen(h))).collect();
    let mut args = vec![
        "--id".to_owned(),
        id.to_string(),
        "--listen".into(),
        listen(&host),
        "--data".into(),
        disk.data().display().to_string(),
        "--config".into(),
        config.display().to_string(),
    ];
    if peers.len() > 1 {
        args.extend(["--peers".to_owned(), peers.join(",")]);
    }
    let (server, clock) = launch.start(&name, "gofs-meta", host, args)?;
    Ok(Node { name, host, server, disk, clock })
}

fn start_chunk(launch: &Launch<'_>, number: usize, host: HostId, metas: &str) -> Result<Node> {
    let name = format!("chunk{number}");
    let disk = Disk::new(launch.dir, &name, CHUNK_DISK_BYTES)?;
    let config = launch.dir.join(format!("{name}.toml"));
    let text = "cpu_latency = \"off\"\nscrub_interval_s = 3\nscrub_bytes_per_s = 200_000_000\n";
    fs::write(&config, text).with_context(|| format!("{}", config.display()))?;
    let args = [
        "--listen",
        &format!("{}:{PORT}", launch.network.address(host)),
        "--data",
        &disk.data().display().to_string(),
        "--meta",
        metas,
        "--config",
        &config.display().to_string(),
    ];
    let args = args.map(String::from).into();
    let (server, clock) = launch.start(&name, "gofs-chunk", host, args)?;
    Ok(Node { name, host, server, disk, clock })
}

/// Whether a gofs is mounted there.
fn is_mounted(point: &Path) -> Result<bool> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let point = point.to_str().context("a path that is text")?;
    Ok(table.lines().any(|line| line.split(' ').nth(4) == Some(point) && line.contains(" fuse.gofs ")))
}

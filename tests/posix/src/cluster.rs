//! MetaServers and ChunkServers as processes on loopback.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::disk::{Disk, SharedDir};
use crate::mount::Mount;
use crate::process::{Server, program};
use crate::run::{Output, run};
use crate::wait::{eventually, wait_for};

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running cluster. Its directory goes with it unless the test fails.
pub struct Cluster {
    /// MetaServers, in order of their ids from 1.
    pub metas: Vec<Server>,
    /// ChunkServers.
    pub chunks: Vec<Server>,
    /// Disks of the servers, if they have any of their own: MetaServers first.
    pub disks: Vec<Disk>,
    meta_addresses: Vec<String>,
    chunk_addresses: Vec<String>,
    session_s: u32,
    #[expect(dead_code, reason = "it is undone when dropped")]
    shared: Option<SharedDir>,
    dir: Option<TempDir>,
}

/// What to start.
pub struct ClusterBuilder {
    metas: usize,
    chunks: usize,
    scrub_interval_s: u32,
    session_s: u32,
    disk_bytes: u64,
    data_of: Option<PathBuf>,
    small_logs: bool,
}

impl ClusterBuilder {
    /// Number of MetaServers, 1 or 3.
    pub fn metas(mut self, count: usize) -> Self {
        self.metas = count;
        self
    }

    /// Number of ChunkServers.
    pub fn chunks(mut self, count: usize) -> Self {
        self.chunks = count;
        self
    }

    /// Pause between two passes of each scrubber.
    pub fn scrub_interval_s(mut self, seconds: u32) -> Self {
        self.scrub_interval_s = seconds;
        self
    }

    /// Validity of sessions; a quarter more, and a dead mount's session is fenced.
    pub fn session_s(mut self, seconds: u32) -> Self {
        self.session_s = seconds;
        self
    }

    /// Data directories that a cluster left behind, in an archive.
    pub fn data_of(mut self, archive: &Path) -> Self {
        self.data_of = Some(archive.to_owned());
        self
    }

    /// The smallest files that logs can have.
    pub fn small_logs(mut self) -> Self {
        self.small_logs = true;
        self
    }

    /// A disk of that size for each server.
    pub fn disk_bytes(mut self, bytes: u64) -> Self {
        self.disk_bytes = bytes;
        self
    }

    /// Starts it, and waits until every ChunkServer is known.
    pub fn start(self) -> Cluster {
        let dir = TempDir::with_prefix("gofs-test-").expect("a temporary directory");
        let meta_addresses: Vec<String> = (0..self.metas).map(|_| free_address()).collect();
        let chunk_addresses: Vec<String> = (0..self.chunks).map(|_| free_address()).collect();
        if let Some(archive) = &self.data_of {
            let (archive, dir) = (archive.display().to_string(), dir.path().display().to_string());
            run("tar", &["-C", &dir, "-xf", &archive]);
        }
        let log = if self.small_logs { "segment_bytes = 1048576\n" } else { "" };
        let shared = (self.disk_bytes > 0).then(|| SharedDir::make(dir.path()));
        let mut disks = Vec::new();
        if self.disk_bytes > 0 {
            let metas = (1..=self.metas).map(|i| format!("meta{i}"));
            for name in metas.chain((1..=self.chunks).map(|i| format!("chunk{i}"))) {
                disks.push(Disk::make(&dir.path().join(name), self.disk_bytes));
            }
        }
        let peers: Vec<String> =
            meta_addresses.iter().enumerate().map(|(i, address)| format!("{}={address}", i + 1)).collect();
        let metas = meta_addresses.iter().enumerate().map(|(i, address)| {
            let mut args = meta_args(dir.path(), i as u64 + 1, address, self.session_s, log);
            if self.metas > 1 {
                args.extend(["--peers".to_string(), peers.join(",")]);
            }
            Server::start(&format!("meta{}", i + 1), "gofs-meta", args, dir.path())
        });
        let metas = metas.collect();
        let boot_id = dir.path().join(BOOT_ID);
        boot(&boot_id);
        let chunks = chunk_addresses.iter().enumerate().map(|(i, address)| {
            let data = dir.path().join(format!("chunk{}", i + 1)).display().to_string();
            let config = dir.path().join(format!("chunk{}.toml", i + 1));
            std::fs::write(&config, format!("scrub_interval_s = {}\n{log}", self.scrub_interval_s))
                .expect("a configuration");
            let mut args: Vec<String> =
                ["--listen", address, "--data", &data, "--meta", &meta_addresses.join(",")]
                    .map(String::from)
                    .into();
            args.extend(["--config".to_string(), config.display().to_string()]);
            let name = format!("chunk{}", i + 1);
            if self.disk_bytes > 0 {
                Server::start_on_a_host(&name, "gofs-chunk", args, dir.path(), &boot_id)
            } else {
                Server::start(&name, "gofs-chunk", args, dir.path())
            }
        });
        let chunks = chunks.collect();
        let session_s = self.session_s;
        let cluster = Cluster {
            metas,
            chunks,
            disks,
            meta_addresses,
            chunk_addresses,
            session_s,
            shared,
            dir: Some(dir),
        };
        cluster.wait_chunk_servers(self.chunks);
        cluster
    }
}

/// What the kernel says of the boot, as ChunkServers with disks of their own see it.
const BOOT_ID: &str = "boot_id";

fn boot(path: &Path) {
    std::fs::write(path, format!("{:032x}\n", rand::random::<u128>())).expect("a file for the boot id");
}

impl Cluster {
    /// One MetaServer and three ChunkServers unless changed.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder {
            metas: 1,
            chunks: 3,
            scrub_interval_s: 24 * 3600,
            session_s: 20,
            disk_bytes: 0,
            data_of: None,
            small_logs: false,
        }
    }

    /// One MetaServer, three ChunkServers, and the namespace `test` with two replicas.
    pub fn start() -> Cluster {
        let cluster = Cluster::builder().start();
        cluster.create_namespace("test", &[]);
        cluster
    }

    /// The directory of data, logs and mount points.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("kept until drop").path()
    }

    /// Addresses of all MetaServers, as `--meta` wants them.
    pub fn meta(&self) -> String {
        self.meta_addresses.join(",")
    }

    /// Address of a MetaServer, from 0.
    pub fn meta_address(&self, index: usize) -> &str {
        &self.meta_addresses[index]
    }

    /// Starts an empty MetaServer that waits to be added: the last one of `metas`. Its id and address, as `gofsctl meta add`
    /// wants them.
    pub fn start_meta(&mut self) -> (String, String) {
        let (id, address) = (self.metas.len() as u64 + 1, free_address());
        let mut args = meta_args(self.dir(), id, &address, self.session_s, "");
        args.extend(["--join".to_string(), self.meta()]);
        let server = Server::start(&format!("meta{id}"), "gofs-meta", args, self.dir());
        self.metas.push(server);
        self.meta_addresses.push(address.clone());
        wait_for("the new MetaServer to listen", START_TIMEOUT, || TcpStream::connect(&address).is_ok());
        (id.to_string(), address)
    }

    /// Which of `metas` leads. Waits until one does.
    pub fn leader(&self) -> usize {
        let leader = eventually("a leader", START_TIMEOUT * 2, || {
            let output = self.try_ctl(&["--json", "status"]);
            let status: Value =
                serde_json::from_str(&output.stdout).map_err(|e| format!("{e}: {output:?}"))?;
            status["leader"].as_u64().filter(|id| *id > 0).ok_or_else(|| status.to_string())
        });
        leader as usize - 1
    }

    /// The hosts of ChunkServers with disks of their own have started anew: those that are started from now on know it.
    pub fn reboot_chunks(&self) {
        boot(&self.dir().join(BOOT_ID));
    }

    /// Waits until so many ChunkServers are alive and each has told of its disks. One that has not is given no chunks: what is
    /// written has a replica less; and a mount that asks how much room there is hears of none.
    pub fn wait_chunk_servers(&self, count: usize) {
        wait_for(&format!("{count} ChunkServers, and their disks"), START_TIMEOUT, || {
            let servers = self.ctl_json(&["servers"]);
            let alive = servers.as_array().into_iter().flatten().filter(|server| server["state"] != "dead");
            let told = |server: &&Value| server["disks"].as_array().is_some_and(|disks| !disks.is_empty());
            let alive: Vec<&Value> = alive.collect();
            alive.len() == count && alive.iter().all(told)
        });
    }

    /// Waits until every MetaServer and ChunkServer is back and every chunk has its replicas.
    pub fn wait_healthy(&self) {
        self.wait_status_for("everything to be healthy", START_TIMEOUT * 4, |status| {
            let metas = status["metas"].as_array();
            metas.is_some_and(|metas| metas.iter().all(|meta| meta["reachable"] == true))
                && status["chunk_servers_alive"] == self.chunks.len() as u64
                && status["chunks_known"] == true
                && status["chunks_under_replicated"] == 0
                && status["chunks_lost"] == 0
                && status["in_grace"] == false
        });
    }

    /// Address of a ChunkServer, from 0.
    pub fn chunk_address(&self, index: usize) -> &str {
        &self.chunk_addresses[index]
    }

    /// Runs gofsctl; panics unless it succeeds.
    pub fn ctl(&self, args: &[&str]) -> String {
        let output = self.try_ctl(args);
        assert!(output.status == 0, "gofsctl {args:?}: {output:#?}");
        output.stdout
    }

    /// Runs gofsctl, whatever its status.
    pub fn try_ctl(&self, args: &[&str]) -> Output {
        let output = std::process::Command::new(program("gofsctl"))
            .args(["--meta", &self.meta()])
            .args(args)
            .output()
            .expect("gofsctl starts");
        Output {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs gofsctl with `--json`.
    pub fn ctl_json(&self, args: &[&str]) -> Value {
        let text = self.ctl(&[&["--json"], args].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("gofsctl {args:?}: {e}: {text}"))
    }

    /// `gofsctl ns create NAME --replicas 2 OPTIONS`.
    pub fn create_namespace(&self, name: &str, options: &[&str]) {
        self.ctl(&[&["ns", "create", name], options].concat());
    }

    /// Waits until `gofsctl status` shows it.
    pub fn wait_status(&self, what: &str, mut holds: impl FnMut(&Value) -> bool) {
        self.wait_status_for(what, START_TIMEOUT, &mut holds);
    }

    /// As [`Cluster::wait_status`], for as long as told.
    pub fn wait_status_for(&self, what: &str, timeout: Duration, mut holds: impl FnMut(&Value) -> bool) {
        eventually(what, timeout, || {
            let output = self.try_ctl(&["--json", "status"]);
            let status: Value =
                serde_json::from_str(&output.stdout).map_err(|e| format!("{e}: {output:?}"))?;
            if holds(&status) { Ok(()) } else { Err(status.to_string()) }
        });
    }

    /// Mounts a namespace under `name` in the cluster's directory.
    pub fn mount_as(&self, name: &str, namespace: &str, options: &str) -> Mount {
        self.mount_at(&self.meta(), name, namespace, options)
    }

    /// As [`Cluster::mount_as`], by another way to the MetaServers.
    pub fn mount_at(&self, meta: &str, name: &str, namespace: &str, options: &str) -> Mount {
        Mount::start(name, &format!("{meta}:/{namespace}"), options, self.dir())
    }

    /// Mounts the namespace `test`.
    pub fn mount(&self, name: &str) -> Mount {
        self.mount_as(name, "test", "")
    }

    /// What `gofsctl sessions` shows of a mount; `None` while it has no session.
    pub fn session(&self, mount: &Mount) -> Option<Value> {
        let sessions = self.ctl_json(&["sessions"]);
        let own = mount.path().display().to_string();
        sessions.as_array().and_then(|all| all.iter().find(|session| session["mount_point"] == own)).cloned()
    }

    /// Starts a further ChunkServer on data directories of the test's own, with commas between them.
    pub fn start_chunk(&self, name: &str, data: &str) -> Server {
        let args = ["--listen", &free_address(), "--data", data, "--meta", &self.meta()].map(String::from);
        Server::start(name, "gofs-chunk", args.into(), self.dir())
    }

    /// Panics unless `gofsctl fsck` finds the state consistent.
    pub fn check(&self) {
        // Replicas that are still being reported or rebuilt are problems until they are.
        eventually("gofsctl fsck to find nothing", START_TIMEOUT * 3, || {
            let output = self.try_ctl(&["fsck"]);
            if output.status == 0 { Ok(()) } else { Err(format!("{output:#?}")) }
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("kept for a look: {}", dir.keep().display());
        }
    }
}

fn meta_args(dir: &Path, id: u64, address: &str, session_s: u32, more: &str) -> Vec<String> {
    let data = dir.join(format!("meta{id}")).display().to_string();
    let config = dir.join(format!("meta{id}.toml"));
    let (validity_ms, margin_ms) = (session_s * 1000, session_s * 250);
    let text = format!("session_validity_ms = {validity_ms}\nsession_margin_ms = {margin_ms}\n{more}");
    std::fs::write(&config, text).expect("a configuration");
    let config = config.display().to_string();
    ["--id", &id.to_string(), "--listen", address, "--data", &data, "--config", &config]
        .map(String::from)
        .into()
}

/// A free address on loopback, below the ports that the kernel gives to outgoing connections. Never the same twice, and
/// not what another test's process takes at the same time: it begins elsewhere.
fn free_address() -> String {
    const PORTS: std::ops::Range<u32> = 10_000..32_000;
    const OF_A_PROCESS: u32 = 32;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let at = std::process::id().wrapping_mul(OF_A_PROCESS);
        let at = at.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let address = format!("127.0.0.1:{}", PORTS.start + at % (PORTS.end - PORTS.start));
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

//! MetaServers and ChunkServers as processes on loopback.

use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::mount::Mount;
use crate::process::{Server, program};
use crate::run::Output;
use crate::wait::{eventually, wait_for};

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running cluster. Its directory goes with it unless the test fails.
pub struct Cluster {
    /// MetaServers, in order of their ids from 1.
    pub metas: Vec<Server>,
    /// ChunkServers.
    pub chunks: Vec<Server>,
    meta_addresses: Vec<String>,
    chunk_addresses: Vec<String>,
    dir: Option<TempDir>,
}

/// What to start.
pub struct ClusterBuilder {
    metas: usize,
    chunks: usize,
    scrub_interval_s: u32,
    session_s: u32,
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

    /// Starts it, and waits until every ChunkServer is known.
    pub fn start(self) -> Cluster {
        let dir = TempDir::with_prefix("gofs-test-").expect("a temporary directory");
        let meta_addresses: Vec<String> = (0..self.metas).map(|_| free_address()).collect();
        let chunk_addresses: Vec<String> = (0..self.chunks).map(|_| free_address()).collect();
        let peers: Vec<String> =
            meta_addresses.iter().enumerate().map(|(i, address)| format!("{}={address}", i + 1)).collect();
        let metas = meta_addresses.iter().enumerate().map(|(i, address)| {
            let data = dir.path().join(format!("meta{}", i + 1)).display().to_string();
            let mut args: Vec<String> =
                ["--id", &(i + 1).to_string(), "--listen", address, "--data", &data].map(String::from).into();
            let config = dir.path().join(format!("meta{}.toml", i + 1));
            let (validity_ms, margin_ms) = (self.session_s * 1000, self.session_s * 250);
            let text = format!("session_validity_ms = {validity_ms}\nsession_margin_ms = {margin_ms}\n");
            std::fs::write(&config, text).expect("a configuration");
            args.extend(["--config".to_string(), config.display().to_string()]);
            if self.metas > 1 {
                args.extend(["--peers".to_string(), peers.join(",")]);
            }
            Server::start(&format!("meta{}", i + 1), "gofs-meta", args, dir.path())
        });
        let metas = metas.collect();
        let chunks = chunk_addresses.iter().enumerate().map(|(i, address)| {
            let data = dir.path().join(format!("chunk{}", i + 1)).display().to_string();
            let config = dir.path().join(format!("chunk{}.toml", i + 1));
            std::fs::write(&config, format!("scrub_interval_s = {}\n", self.scrub_interval_s))
                .expect("a configuration");
            let mut args: Vec<String> =
                ["--listen", address, "--data", &data, "--meta", &meta_addresses.join(",")]
                    .map(String::from)
                    .into();
            args.extend(["--config".to_string(), config.display().to_string()]);
            Server::start(&format!("chunk{}", i + 1), "gofs-chunk", args, dir.path())
        });
        let chunks = chunks.collect();
        let cluster = Cluster { metas, chunks, meta_addresses, chunk_addresses, dir: Some(dir) };
        cluster
            .wait_status("every ChunkServer to be alive", |s| s["chunk_servers_alive"] == self.chunks as u64);
        // One that has not told of its disks yet is given no chunks, and what is written has a replica less.
        wait_for("every ChunkServer to have told of its disks", START_TIMEOUT, || {
            let servers = cluster.ctl_json(&["servers"]);
            let has_disks =
                |server: &Value| server["disks"].as_array().is_some_and(|disks| !disks.is_empty());
            servers.as_array().is_some_and(|servers| servers.iter().all(has_disks))
        });
        cluster
    }
}

impl Cluster {
    /// One MetaServer and three ChunkServers unless changed.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder { metas: 1, chunks: 3, scrub_interval_s: 24 * 3600, session_s: 20 }
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

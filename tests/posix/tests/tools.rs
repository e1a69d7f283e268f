//! `gofsctl profile` and `bench` on a real mount, and what all processes do about processor latency.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gofs_posix_tests::{Cluster, eventually};
use serde_json::Value;

/// Makes, writes, syncs and removes files until told to stop.
fn load(dir: &Path, stop: &AtomicBool) {
    for at in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let path = dir.join(format!("f{at}"));
        std::fs::write(&path, vec![7; 20_000]).expect("a write");
        std::fs::File::open(&path).expect("an open").sync_all().expect("an fsync");
        std::fs::remove_file(&path).expect("a removal");
    }
}

/// What `work` returns, done while files are made and removed in `dir`.
fn under_load<T>(dir: &Path, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| load(dir, &stop));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn profile_tells_operations_and_round_trips_apart() {
    let cluster = Cluster::start();
    let mount = cluster.mount("a");
    let at = mount.path().to_str().expect("a path of the test's own");
    let count =
        |interval: &Value, what: &str, kind: &str| interval[what][kind]["count"].as_u64().unwrap_or(0);
    under_load(mount.path(), || {
        eventually("an interval with every kind in it", Duration::from_secs(30), || {
            let text = cluster.ctl(&["profile", at, "--json", "--interval", "0.5", "--count", "2"]);
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), 2);
            let interval: Value = serde_json::from_str(lines[1]).expect("a line of JSON");
            let operations = ["create", "write", "flush", "fsync", "unlink"];
            let trips = ["session.Batch", "chunk.Write"];
            let seen = operations.iter().all(|kind| count(&interval, "operations", kind) > 0)
                && trips.iter().all(|kind| count(&interval, "round_trips", kind) > 0)
                && interval["operations"]["fsync"]["p99_us"].as_f64()
                    > interval["operations"]["create"]["p50_us"].as_f64()
                && interval["operations"]["fsync"]["waited"].as_u64() > Some(0);
            if seen { Ok(()) } else { Err(interval.to_string()) }
        });
    });
    let table = cluster.ctl(&["profile", at, "--interval", "0.1", "--count", "1"]);
    assert!(table.contains("operations/s") && table.contains("unflushed"), "{table}");
}

#[test]
fn profile_of_what_is_no_mount_says_what_to_do() {
    let cluster = Cluster::start();
    let elsewhere = cluster.try_ctl(&["profile", cluster.dir().to_str().expect("a path of the test's own")]);
    assert_ne!(elsewhere.status, 0);
    assert!(
        elsewhere.stderr.contains("not on a gofs mount") && elsewhere.stderr.contains("findmnt"),
        "{elsewhere:?}"
    );
    let missing = cluster.try_ctl(&["profile", "/nonexistent/mount"]);
    assert!(missing.status != 0 && missing.stderr.contains("/nonexistent/mount"), "{missing:?}");
}

#[test]
fn bench_runs_on_a_mount_and_leaves_nothing() {
    let cluster = Cluster::start();
    let mount = cluster.mount("a");
    let at = mount.path().to_str().expect("a path of the test's own");
    let report = cluster.ctl(&["bench", at, "--size", "8MiB", "--files", "50", "--seconds", "0.5", "--json"]);
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let results = report["results"].as_array().expect("results");
    assert_eq!(results.len(), 17);
    assert!(results.iter().all(|result| result["values"][0]["value"].as_f64() > Some(0.0)), "{report:#}");
    assert_eq!(std::fs::read_dir(mount.path()).expect("a listing").count(), 0);
}

/// Whether the process keeps the processors awake.
fn holds(pid: u32) -> bool {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a running process");
    open.flatten()
        .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == Path::new("/dev/cpu_dma_latency")))
}

#[test]
fn processors_are_kept_awake_only_while_requests_flow() {
    let cluster = Cluster::builder().metas(3).start();
    cluster.create_namespace("test", &[]);
    let mut mount = cluster.mount("a");
    let servers: Vec<u32> = cluster.metas.iter().chain(&cluster.chunks).map(|server| server.pid()).collect();
    let daemon = mount.daemon().pid();
    let status = || cluster.ctl_json(&["status"]);
    if std::fs::File::options().write(true).open("/dev/cpu_dma_latency").is_err() {
        under_load(mount.path(), || {
            eventually("a reason", Duration::from_secs(20), || match status()["metas"].to_string() {
                metas if metas.contains("cannot be held: /dev/cpu_dma_latency") => Ok(()),
                metas => Err(metas),
            });
        });
        return;
    }
    under_load(mount.path(), || {
        eventually("servers and daemon to hold", Duration::from_secs(20), || {
            let chunks = servers[3..].iter().any(|pid| holds(*pid));
            let metas = servers[..3].iter().any(|pid| holds(*pid));
            if chunks && metas && holds(daemon) { Ok(()) } else { Err(format!("{chunks} {metas}")) }
        });
        eventually("status to say so", Duration::from_secs(20), || {
            let metas = status()["metas"].to_string();
            let servers = cluster.ctl(&["servers", "--json"]);
            if metas.contains("held") && servers.contains("held") { Ok(()) } else { Err(metas + &servers) }
        });
    });
    // Heartbeats, replication, elections and KeepAlives go on. What was written goes out within 5 s.
    let all = || servers.iter().chain([&daemon]).copied();
    eventually("all to let go", Duration::from_secs(20), || {
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(1500) {
            if let Some(pid) = all().find(|pid| holds(*pid)) {
                return Err(format!("process {pid} of {servers:?}, {daemon}"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    });
    // The one that answers speaks for itself only.
    let status = status();
    let metas = status["metas"].as_array().expect("MetaServers").iter();
    let told: Vec<&str> =
        metas.filter_map(|meta| meta["cpu_latency"].as_str()).filter(|text| !text.is_empty()).collect();
    assert_eq!(told, ["released"], "{status:#}");
    let servers = cluster.ctl_json(&["servers"]);
    for server in servers.as_array().expect("ChunkServers") {
        assert_eq!(server["cpu_latency"], "released", "{server:#}");
    }
}

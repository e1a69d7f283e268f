//! ChunkServers come and go under load: one is drained and removed, another is added, and nobody notices.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use gofs_posix_tests::{Cluster, Load, wait_for};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(180);

/// What `gofsctl chunk list` says of the server at this address.
fn listed(cluster: &Cluster, address: &str) -> Option<Value> {
    let servers = cluster.ctl_json(&["chunk", "list"]);
    servers.as_array().unwrap().iter().find(|server| server["address"] == address).cloned()
}

#[test]
fn a_server_is_drained_and_removed_under_load_and_another_added() {
    let mut cluster = Cluster::builder().chunks(3).start();
    cluster.create_namespace("test", &["--replicas", "2"]);
    let mount = cluster.mount("m");
    let mut load = Load::new();
    load.start(mount.path(), 2, 1);
    wait_for("the load is under way", LONG, || load.operations() > 200);

    let leaving = cluster.chunk_address(0).to_owned();
    cluster.wait_status("every ChunkServer has told what it holds", |status| status["chunks_known"] == true);
    let refused = cluster.try_ctl(&["chunk", "remove", &leaving]);
    assert!(refused.status != 0 && refused.stderr.contains("drain"), "{refused:?}");
    let id = listed(&cluster, &leaving).unwrap()["id"].to_string();
    cluster.ctl(&["chunk", "drain", &leaving]);
    // What was placed before the drain is still written there for a while, so it is asked until it is empty.
    wait_for("the server is drained", LONG, || listed(&cluster, &leaving).unwrap()["state"] == "drained");
    let before = load.operations();
    wait_for("the load goes on", LONG, || load.operations() > before + 50);
    wait_for("the server is drained and stays so", LONG, || {
        cluster.try_ctl(&["chunk", "remove", &leaving]).status == 0
    });
    // It registers again, is refused, and stops by itself.
    assert_ne!(cluster.chunks[0].wait_exit(LONG), 0);
    assert!(cluster.chunks[0].log().contains("was removed from this cluster"), "{}", cluster.chunks[0].log());
    assert_eq!(listed(&cluster, &leaving), None);
    assert_eq!(cluster.ctl_json(&["status"])["chunk_servers_dead"], 0);

    let added = cluster.start_chunk("added", &cluster.dir().join("added").display().to_string());
    wait_for("the new server gets chunks", LONG, || {
        let servers = cluster.ctl_json(&["chunk", "list"]);
        let new = servers.as_array().unwrap().iter().find(|server| {
            server["address"] != cluster.chunk_address(1) && server["address"] != cluster.chunk_address(2)
        });
        new.is_some_and(|new| new["chunks"].as_u64().unwrap() > 0)
    });
    assert_eq!(load.stop(), Vec::<String>::new());
    cluster.wait_status_for("every chunk has its replicas", LONG, |status| {
        status["chunks_under_replicated"] == 0 && status["chunks_lost"] == 0 && status["move_chunks"] == 0
    });
    assert_eq!(load.verify(mount.path()), Vec::<String>::new());
    let again = cluster.mount("again");
    assert_eq!(load.verify(again.path()), Vec::<String>::new(), "on a mount that has nothing in its caches");

    // Taken back with what it still has, which does not count.
    cluster.ctl(&["chunk", "undrain", &id]);
    cluster.chunks[0].restart();
    wait_for("it is back in service", LONG, || {
        listed(&cluster, &leaving).is_some_and(|server| server["state"] == "alive")
    });
    cluster.check();
    drop(added);
}

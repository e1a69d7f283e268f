//! kill -9 of anything, then restart: what was acknowledged is there.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::time::{Duration, Instant};

use gofs_posix_tests::{Cluster, Load, content, eventually, wait_for};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Rounds of the random test; GOFS_CRASH_ROUNDS changes it.
const ROUNDS: u64 = 50;
/// After a restart the load must go on within this time.
const RECOVERY: Duration = Duration::from_secs(60);

fn seed() -> u64 {
    let seed =
        std::env::var("GOFS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| rand::rng().random());
    eprintln!("replay with GOFS_SEED={seed}");
    seed
}

#[test]
fn what_was_fsynced_survives_kills_of_every_process() {
    let seed = seed();
    let rounds = std::env::var("GOFS_CRASH_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(ROUNDS);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::builder().session_s(8).start();
    cluster.create_namespace("test", &[]);
    let mut mount = cluster.mount("m0");
    let mut load = Load::new();
    for round in 0..rounds {
        load.start(mount.path(), 2, rng.random());
        let begun = load.operations();
        wait_for("the load to run", RECOVERY, || load.operations() > begun + 10);
        let moment = Instant::now() + Duration::from_millis(rng.random_range(0..300));
        wait_for("the moment", RECOVERY, || Instant::now() > moment);
        let victim = rng.random_range(0..5);
        match victim {
            0 => {
                cluster.metas[0].kill();
                cluster.metas[0].restart();
            }
            1..4 => {
                let chunk = &mut cluster.chunks[victim - 1];
                chunk.kill();
                chunk.restart();
            }
            _ => {
                mount.daemon().kill();
                // The load's threads get ENOTCONN and end.
                load.stop();
                mount.kill();
                mount = cluster.mount(&format!("m{}", round + 1));
                load.start(mount.path(), 2, rng.random());
            }
        }
        let killed = load.operations();
        let since = Instant::now();
        wait_for(&format!("the load to go on after victim {victim} in round {round}"), RECOVERY, || {
            load.operations() > killed + 10
        });
        eprintln!("round {round}: victim {victim}, on after {:?}, {} files", since.elapsed(), load.files());
        let errors = load.stop();
        assert!(errors.is_empty(), "round {round}, victim {victim}: {errors:?}");
        let wrong = load.verify(mount.path());
        assert!(wrong.is_empty(), "round {round}, victim {victim}: {wrong:#?}");
    }
    // A second mount, which has cached nothing, sees the same.
    let other = cluster.mount("other");
    let wrong = load.verify(other.path());
    assert!(wrong.is_empty(), "{wrong:#?}");
    cluster.wait_status_for("all chunks to be replicated", Duration::from_secs(120), |s| {
        s["chunks_under_replicated"] == 0 && s["chunks_lost"] == 0
    });
    cluster.check();
    gofs_posix_tests::shell(mount.path(), "rm -rf load*");
    cluster.wait_status_for("removed files to free their chunks", Duration::from_secs(120), |s| {
        s["chunks"] == 0 && s["chunks_to_delete"] == 0
    });
    let check = cluster.ctl_json(&["fsck"]);
    assert_eq!((&check["orphans"], &check["inodes"]), (&0.into(), &1.into()), "{check}");
}

#[test]
fn with_one_of_three_chunk_servers_dead_files_stay_usable_and_replicas_are_rebuilt() {
    let mut cluster = Cluster::start();
    let mount = cluster.mount("m");
    for i in 0..12 {
        fs::write(mount.join(&format!("f{i}")), content(i, 1_000_000)).unwrap();
    }
    gofs_posix_tests::shell(mount.path(), "sync f*");
    cluster.chunks[1].kill();
    let reader = cluster.mount("reader");
    for i in 0..12 {
        assert_eq!(fs::read(reader.join(&format!("f{i}"))).unwrap(), content(i, 1_000_000), "f{i}");
    }
    for i in 12..24 {
        fs::write(mount.join(&format!("f{i}")), content(i, 1_000_000)).unwrap();
    }
    gofs_posix_tests::shell(mount.path(), "sync f*");
    cluster.wait_status_for("the dead server to be noticed", Duration::from_secs(60), |s| {
        s["chunk_servers_dead"] == 1
    });
    cluster.wait_status_for("the replicas to be rebuilt", Duration::from_secs(120), |s| {
        s["chunks_under_replicated"] == 0 && s["chunks_lost"] == 0 && s["chunks"] == 24
    });
    // The servers that are left hold everything twice: one more may go.
    cluster.chunks[0].kill();
    let last = cluster.mount("last");
    for i in 0..24 {
        assert_eq!(fs::read(last.join(&format!("f{i}"))).unwrap(), content(i, 1_000_000), "f{i}");
    }
    cluster.chunks[0].restart();
    cluster.chunks[1].restart();
    cluster.wait_status_for("the servers to be back", Duration::from_secs(60), |s| {
        s["chunk_servers_alive"] == 3
    });
    cluster.wait_status_for("nothing to be missing", Duration::from_secs(120), |s| {
        s["chunks_under_replicated"] == 0
    });
    cluster.check();
}

#[test]
fn a_new_leader_calls_nothing_lost_before_the_chunk_servers_have_reported() {
    let mut cluster = Cluster::start();
    let mount = cluster.mount("m");
    fs::write(mount.join("f"), content(1, 1_000_000)).unwrap();
    gofs_posix_tests::shell(mount.path(), "sync f");
    drop(mount);
    for server in &mut cluster.chunks {
        server.kill();
    }
    cluster.metas[0].kill();
    cluster.metas[0].restart();
    let early = cluster.try_ctl(&["status"]);
    assert!(early.status == 0 && early.stdout.contains("1 so far"), "{early:#?}");
    for server in &mut cluster.chunks {
        server.restart();
    }
    cluster.wait_status("the chunk to be known", |s| s["chunks_known"] == true && s["chunks_lost"] == 0);
    cluster.check();
}

#[test]
fn the_mount_answers_what_it_has_cached_while_servers_are_gone_and_unmounts() {
    let mut cluster = Cluster::start();
    let mount = cluster.mount("m");
    fs::write(mount.join("small"), "cached").unwrap();
    assert_eq!(fs::read_to_string(mount.join("small")).unwrap(), "cached");
    cluster.metas[0].kill();
    for chunk in &mut cluster.chunks {
        chunk.kill();
    }
    assert_eq!(fs::read_to_string(mount.join("small")).unwrap(), "cached");
    // A program that needs the dead server waits; another one that does not is not held up.
    let blocked = std::thread::spawn({
        let path = mount.join("new");
        move || fs::write(path, "late")
    });
    assert_eq!(fs::read_to_string(mount.join("small")).unwrap(), "cached");
    assert!(!blocked.is_finished());
    cluster.metas[0].restart();
    for chunk in &mut cluster.chunks {
        chunk.restart();
    }
    blocked.join().unwrap().unwrap();
    eventually("the file", Duration::from_secs(10), || {
        fs::read_to_string(mount.join("new"))
            .map_err(|e| e.to_string())
            .and_then(|t| if t == "late" { Ok(()) } else { Err(t) })
    });
    cluster.metas[0].kill();
    let begun = Instant::now();
    mount.unmount_whatever();
    assert!(
        begun.elapsed() < Duration::from_secs(40),
        "unmounting without servers took {:?}",
        begun.elapsed()
    );
}

#[test]
fn locks_go_with_the_daemon_that_held_them() {
    let cluster = Cluster::start();
    let mut a = cluster.mount("a");
    let b = cluster.mount("b");
    fs::write(a.join("f"), "").unwrap();
    let held = fs::File::open(a.join("f")).unwrap();
    held.lock().unwrap();
    let other = fs::File::open(b.join("f")).unwrap();
    assert!(other.try_lock().is_err());
    a.daemon().kill();
    eventually("the lock to be free", Duration::from_secs(60), || {
        other.try_lock().map_err(|e| e.to_string())
    });
    drop(held);
    a.kill();
}

#[test]
fn three_meta_servers_lose_one_and_go_on() {
    let mut cluster = Cluster::builder().metas(3).start();
    cluster.create_namespace("test", &[]);
    let mount = cluster.mount("m");
    let mut load = Load::new();
    load.start(mount.path(), 2, seed());
    for _ in 0..3 {
        let before = load.operations();
        wait_for("the load to run", RECOVERY, || load.operations() > before + 20);
        let leader = cluster.ctl_json(&["status"])["leader"].as_u64().unwrap() as usize - 1;
        cluster.metas[leader].kill();
        let killed = load.operations();
        wait_for("the load to go on under a new leader", RECOVERY, || load.operations() > killed + 20);
        cluster.metas[leader].restart();
        cluster.wait_status_for("all MetaServers to be back", RECOVERY, |s| {
            s["metas"].as_array().is_some_and(|m| m.len() == 3 && m.iter().all(|m| m["reachable"] == true))
        });
    }
    let errors = load.stop();
    assert!(errors.is_empty(), "{errors:?}");
    let wrong = load.verify(mount.path());
    assert!(wrong.is_empty(), "{wrong:#?}");
    cluster.check();
}

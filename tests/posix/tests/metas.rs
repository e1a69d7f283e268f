//! MetaServers that are killed, replaced, moved on or missing, under a mount that is used meanwhile.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gofs_posix_tests::{Cluster, Load, Pauses, content, eventually, posix, sys, wait_for};
use serde_json::Value;

const RECOVERY: Duration = Duration::from_secs(60);
/// What `gofs-meta` ends with when it was removed.
const REMOVED: i32 = 3;

fn three() -> Cluster {
    let cluster = Cluster::builder().metas(3).start();
    cluster.create_namespace("test", &[]);
    cluster
}

fn goes_on(load: &Load, what: &str) {
    let before = load.operations();
    wait_for(&format!("the load to go on {what}"), RECOVERY, || load.operations() > before + 20);
}

#[test]
fn mounts_and_chunk_servers_go_on_when_every_meta_server_was_replaced() {
    let mut cluster = three();
    let mount = cluster.mount("m");
    let mut load = Load::new();
    load.start(mount.path(), 2, 7);
    for old in 1..=3 {
        goes_on(&load, "before a member is replaced");
        let (id, address) = cluster.start_meta();
        let told = cluster.ctl(&["meta", "add", &id, &address]);
        assert!(told.contains("voter"), "{told}");
        // Dead ones are replaced as live ones are; the leader is one of both.
        if old == 2 {
            cluster.metas[old - 1].kill();
        }
        let told = cluster.ctl(&["meta", "remove", &old.to_string()]);
        assert!(told.contains("of the 3 that are left, 1 may fail"), "{told}");
        if old != 2 {
            assert_eq!(cluster.metas[old - 1].wait_exit(RECOVERY), REMOVED);
            let log = cluster.metas[old - 1].log();
            assert!(log.contains("was removed from its cluster"), "{log}");
        }
        goes_on(&load, "after a member was replaced");
    }
    // One of those that were there at the start is enough to be asked about, and none of them is there.
    let status = cluster.ctl_json(&["meta", "status"]);
    let ids: Vec<_> =
        status["members"].as_array().unwrap().iter().map(|m| m["id"].as_u64().unwrap()).collect();
    assert_eq!((ids, &status["majority"]), (vec![4, 5, 6], &Value::from(true)), "{status}");
    // The mount and the ChunkServers were started with addresses where nobody is any more.
    // They were told of those that are.
    let leader = cluster.leader();
    cluster.metas[leader].kill();
    goes_on(&load, "under a leader that nobody was told of at the start");
    cluster.metas[leader].restart();
    cluster.wait_healthy();
    let errors = load.stop();
    assert!(errors.is_empty(), "{errors:?}");
    let wrong = load.verify(mount.path());
    assert!(wrong.is_empty(), "{wrong:#?}");
    cluster.check();
    // A removed one that is started again says the same.
    cluster.metas[1].restart();
    assert_eq!(cluster.metas[1].wait_exit(RECOVERY), REMOVED);
    goes_to(&cluster, "4");
}

fn goes_to(cluster: &Cluster, id: &str) {
    let told = cluster.ctl(&["meta", "transfer", id]);
    assert!(told.contains(&format!("MetaServer {id} leads")), "{told}");
    assert_eq!(cluster.ctl_json(&["status"])["leader"].to_string(), id);
}

fn median(mut pauses: Vec<Duration>) -> (Duration, Duration) {
    pauses.sort();
    eprintln!("{pauses:?}");
    (pauses[pauses.len() / 2], pauses[pauses.len() - 1])
}

/// Rounds of the measurement; GOFS_PAUSE_ROUNDS changes it.
fn rounds() -> usize {
    std::env::var("GOFS_PAUSE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(4)
}

#[test]
fn operations_wait_for_a_moment_when_the_leader_is_killed_or_gives_the_lead_away() {
    let mut cluster = three();
    let (mount, other) = (cluster.mount("m"), cluster.mount("other"));
    let pauses = Pauses::start(mount.join("d"));
    let mut kills = Vec::new();
    let mut transfers = Vec::new();
    for round in 0..rounds() {
        let leader = cluster.leader();
        kills.push(pauses.longest_after(|| cluster.metas[leader].kill()));
        cluster.metas[leader].restart();
        cluster.wait_healthy();
        fs::write(other.join(&format!("f{round}")), "the other mount goes on as well").unwrap();
        transfers.push(pauses.longest_after(|| drop(cluster.ctl(&["meta", "transfer"]))));
    }
    pauses.stop();
    let (kill_median, kill_longest) = median(kills);
    let (transfer_median, transfer_longest) = median(transfers);
    eprintln!("leader kill: median {kill_median:?}, longest {kill_longest:?}");
    eprintln!("transfer: median {transfer_median:?}, longest {transfer_longest:?}");
    // Far above what is measured on a machine that does nothing else.
    assert!(kill_median < Duration::from_secs(4) && kill_longest < Duration::from_secs(10));
    assert!(transfer_median < Duration::from_secs(2) && transfer_longest < Duration::from_secs(8));
}

#[test]
fn operations_go_on_while_a_leader_is_frozen_and_nothing_happens_when_it_wakes() {
    let cluster = three();
    let mount = cluster.mount("m");
    let pauses = Pauses::start(mount.join("d"));
    let leader = cluster.leader();
    let (stop, go_on) = (19, 18);
    let pause = pauses.longest_after(|| cluster.metas[leader].signal(stop));
    eprintln!("a frozen leader: {pause:?}");
    assert_ne!(cluster.leader(), leader);
    let woken = pauses.longest_after(|| cluster.metas[leader].signal(go_on));
    eprintln!("it wakes: {woken:?}");
    assert!(pause < Duration::from_secs(30) && woken < Duration::from_secs(10), "{pause:?} {woken:?}");
    pauses.stop();
    cluster.wait_healthy();
    cluster.check();
}

#[test]
fn without_a_majority_programs_wait_status_says_what_is_missing_and_all_goes_on() {
    let mut cluster = three();
    let (hard, soft) = (cluster.mount("hard"), cluster.mount_as("soft", "test", "soft=2s"));
    fs::write(hard.join("before"), content(1, 100_000)).unwrap();
    File::open(hard.join("before")).unwrap().sync_all().unwrap();
    let survivor = cluster.leader();
    let killed: Vec<usize> = (0..3).filter(|i| *i != survivor).collect();
    for i in &killed {
        cluster.metas[*i].kill();
    }
    let writer = std::thread::spawn({
        let path = hard.join("during");
        move || {
            let file = File::create(&path)?;
            std::io::Write::write_all(&mut &file, &content(2, 100_000))?;
            file.sync_all()
        }
    });
    // For as long as its lease lasts the survivor may say that all is well.
    wait_for("the survivor to notice", RECOVERY, || cluster.try_ctl(&["status"]).status == 1);
    for command in [vec!["status"], vec!["meta", "status"]] {
        let begun = Instant::now();
        let output = cluster.try_ctl(&command);
        let took = begun.elapsed();
        assert!(output.status == 1 && took < Duration::from_secs(15), "{took:?} {output:#?}");
        assert!(
            output.stderr.contains("no majority: 1 of 3 MetaServers answer, 2 are needed"),
            "{output:#?}"
        );
        for i in &killed {
            let named = format!("{} at {}", i + 1, cluster.meta_address(*i));
            assert!(output.stderr.contains(&named), "{named}: {output:#?}");
        }
        let json = cluster.try_ctl(&[&["--json"], &command[..]].concat());
        let json: Value = serde_json::from_str(&json.stdout).unwrap();
        assert_eq!((&json["majority"], &json["answering"]), (&false.into(), &1.into()), "{json}");
    }
    eventually("a soft mount to give up", RECOVERY, || match fs::write(soft.join("soft"), "x") {
        Err(error) if error.raw_os_error() == Some(libc_eio()) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert!(!writer.is_finished(), "a hard mount waits");
    for i in &killed {
        cluster.metas[*i].restart();
    }
    writer.join().unwrap().unwrap();
    cluster.wait_healthy();
    let status = cluster.ctl_json(&["meta", "status"]);
    assert_eq!((&status["majority"], &status["problem"]), (&true.into(), &Value::Null), "{status}");
    let reader = cluster.mount("reader");
    assert_eq!(fs::read(reader.join("before")).unwrap(), content(1, 100_000));
    assert_eq!(fs::read(reader.join("during")).unwrap(), content(2, 100_000));
    cluster.check();
}

fn libc_eio() -> i32 {
    5
}

/// Takes all room but a little on the disk of a MetaServer, until the file is removed.
fn fill(disk: &Path) -> PathBuf {
    const LEFT: u64 = 1 << 20;
    let path = disk.join("ballast");
    let ballast = File::create(&path).unwrap();
    sys::allocate(&ballast, sys::available(&ballast).unwrap().saturating_sub(LEFT)).unwrap();
    path
}

/// Large edits, so that files that a log has made ahead do not last long, however slow the disks are.
fn use_up_the_log(dir: &Path, ended: &AtomicBool) {
    let begun = Instant::now();
    for number in 0.. {
        if ended.load(Ordering::Relaxed) || begun.elapsed() > RECOVERY {
            return;
        }
        posix::set_xattr(dir, "user.large", &content(number, 60_000)).unwrap();
        File::open(dir).unwrap().sync_all().unwrap();
    }
}

#[test]
fn a_meta_server_whose_disk_is_full_ends_and_goes_on_once_there_is_room() {
    let mut cluster = Cluster::builder().metas(3).disk_bytes(1 << 30).small_logs().start();
    cluster.create_namespace("test", &[]);
    let mount = cluster.mount("m");
    let mut load = Load::new();
    load.start(mount.path(), 4, 11);
    goes_on(&load, "before a disk is full");
    let leader = cluster.leader();
    let ballast = fill(cluster.disks[leader].mount_point());
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| use_up_the_log(mount.path(), &ended));
        assert_eq!(cluster.metas[leader].wait_exit(RECOVERY), 1);
        ended.store(true, Ordering::Relaxed);
    });
    let log = cluster.metas[leader].log();
    assert!(log.contains("cannot write or read its data and stops"), "{log}");
    goes_on(&load, "under another leader");
    fs::remove_file(ballast).unwrap();
    cluster.metas[leader].restart();
    cluster.wait_healthy();
    goes_on(&load, "with all of them");
    let errors = load.stop();
    assert!(errors.is_empty(), "{errors:?}");
    let wrong = load.verify(mount.path());
    assert!(wrong.is_empty(), "{wrong:#?}");
    mount.unmount();
    cluster.check();
}

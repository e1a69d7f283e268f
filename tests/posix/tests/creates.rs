//! kill -9 of the MetaServer while a mount makes files that no server has yet.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gofs_posix_tests::{Cluster, wait_for};

const FILES: usize = 10_000;
/// One in so many gets bytes, too many for its inode.
const WITH_BYTES: usize = 20;
/// How many are made when the server dies.
const AT_DEATH: [usize; 3] = [1_000, 4_000, 8_000];

fn bytes(n: usize) -> Vec<u8> {
    (0..9000).map(|at| ((at * 7 + n) % 251) as u8).collect()
}

/// Makes the files, while `kill` is called; each is there once afterwards, and none was an error.
fn every_create_is_there_once(metas: usize, kill: impl Fn(&mut Cluster)) {
    let mut cluster = Cluster::builder().metas(metas).start();
    cluster.create_namespace("test", &[]);
    let mount = cluster.mount("m");
    fs::create_dir(mount.join("d")).unwrap();
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let maker = scope.spawn(|| {
            for n in 0..FILES {
                let failed = |error| -> File { panic!("f{n}: {error}") };
                let mut file = File::create_new(mount.join(&format!("d/f{n}"))).unwrap_or_else(failed);
                if n % WITH_BYTES == 0 {
                    file.write_all(&bytes(n)).unwrap_or_else(|error| drop(failed(error)));
                }
                made.fetch_add(1, Ordering::AcqRel);
            }
        });
        for at in AT_DEATH {
            wait_for("files to be made", Duration::from_secs(120), || {
                made.load(Ordering::Acquire) >= at || maker.is_finished()
            });
            kill(&mut cluster);
        }
        maker.join().unwrap();
    });
    File::open(mount.join("d")).unwrap().sync_all().unwrap();
    for n in (0..FILES).step_by(WITH_BYTES) {
        File::open(mount.join(&format!("d/f{n}"))).unwrap().sync_all().unwrap();
    }
    let other = cluster.mount("other");
    let mut names: Vec<_> = fs::read_dir(other.join("d")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let mut expected: Vec<_> = (0..FILES).map(|n| std::ffi::OsString::from(format!("f{n}"))).collect();
    expected.sort();
    assert!(names == expected, "{} names", names.len());
    for n in (0..FILES).step_by(WITH_BYTES) {
        assert!(fs::read(other.join(&format!("d/f{n}"))).unwrap() == bytes(n), "f{n}");
    }
    // The last MetaServer to lead may not have heard of every ChunkServer yet.
    wait_for("a state without a problem", Duration::from_secs(60), || cluster.try_ctl(&["fsck"]).status == 0);
    let check = cluster.ctl_json(&["fsck"]);
    assert_eq!(check["inodes"], FILES + 2, "{check}");
    mount.unmount();
}

#[test]
fn every_create_is_there_once_when_the_only_meta_server_dies() {
    every_create_is_there_once(1, |cluster| {
        cluster.metas[0].kill();
        cluster.metas[0].restart();
    });
}

#[test]
fn every_create_is_there_once_when_the_leader_of_three_dies() {
    every_create_is_there_once(3, |cluster| {
        let leader = || {
            let output = cluster.try_ctl(&["--json", "status"]);
            let status: serde_json::Value = serde_json::from_str(&output.stdout).ok()?;
            status["leader"].as_u64()
        };
        let mut found = None;
        wait_for("a leader", Duration::from_secs(60), || {
            found = leader();
            found.is_some()
        });
        let leader = found.unwrap() as usize - 1;
        cluster.metas[leader].kill();
        cluster.metas[leader].restart();
    });
}

#[test]
fn a_new_file_is_on_disk_after_one_commit_and_finds_its_chunks_without_a_request() {
    const NEW: usize = 200;
    let mut cluster = Cluster::start();
    let mount = cluster.mount("m");
    let make = |n: usize| {
        let mut file = File::create_new(mount.join(&format!("f{n}"))).unwrap();
        file.write_all(&bytes(n)).unwrap();
        file.sync_all().unwrap();
    };
    make(0);
    wait_for("chunks to be reserved", Duration::from_secs(20), || {
        mount.counted("round_trip session.ReserveChunks") > 0
    });
    let before = mount.counted("round_trip session.Batch");
    (1..NEW).for_each(make);
    let batches = mount.counted("round_trip session.Batch") - before;
    assert!(batches as usize <= NEW + NEW / 10, "{batches} commits for {NEW} files");
    let asked = mount.counted("round_trip session.Allocate");
    assert!(asked as usize <= 1 + NEW / 10, "{asked} files had to ask for a chunk");
    // Places that were chosen on a server that is gone.
    cluster.chunks[0].kill();
    (NEW..NEW + 20).for_each(make);
    let other = cluster.mount("other");
    for n in 0..NEW + 20 {
        assert!(fs::read(other.join(&format!("f{n}"))).unwrap() == bytes(n), "f{n}");
    }
    cluster.chunks[0].restart();
    cluster.wait_status("every chunk to have its replicas", |status| {
        status["chunks_under_replicated"] == 0 && status["chunks_lost"] == 0
    });
    mount.unmount();
}

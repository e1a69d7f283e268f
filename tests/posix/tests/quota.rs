//! Quotas under changes that are made in memory first: what was accepted is never refused.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gofs_posix_tests::{Cluster, Mount, eventually, wait_for};

const LONG: Duration = Duration::from_secs(60);

fn is_quota(error: &io::Error) -> bool {
    error.kind() == ErrorKind::QuotaExceeded
}

/// Makes empty files until the quota ends that; how many.
fn fill_with_files(dir: &Path, made: &AtomicUsize) {
    fs::create_dir_all(dir).unwrap();
    for n in 0.. {
        match File::create_new(dir.join(format!("f{n}"))) {
            Ok(_) => drop(made.fetch_add(1, Ordering::AcqRel)),
            Err(error) if is_quota(&error) => return,
            Err(error) => panic!("f{n}: {error}"),
        }
    }
}

/// Nothing that a mount has accepted was refused later.
fn assert_nothing_lost(cluster: &Cluster, mounts: &[&Mount]) {
    for mount in mounts {
        File::open(mount.path()).unwrap().sync_all().unwrap();
        let session = cluster.session(mount).unwrap();
        for what in ["lost_edits", "lost_files"] {
            assert_eq!(session[what], 0, "{session}");
        }
    }
}

fn usage(cluster: &Cluster, what: &str) -> u64 {
    cluster.ctl_json(&["ns", "show", "test"])[what].as_u64().unwrap()
}

#[test]
fn two_mounts_use_an_inode_quota_up_to_the_last_and_nothing_is_refused_later() {
    let cluster = Cluster::builder().session_s(4).start();
    cluster.create_namespace("test", &["--quota-inodes", "5000"]);
    let mounts = [cluster.mount("a"), cluster.mount("b")];
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (n, mount) in mounts.iter().enumerate() {
            let (dir, made) = (mount.join(&format!("d{n}")), &made);
            scope.spawn(move || fill_with_files(&dir, made));
        }
    });
    assert_nothing_lost(&cluster, &[&mounts[0], &mounts[1]]);
    // The root and the two directories count too.
    assert_eq!(made.load(Ordering::Acquire), 4997);
    assert_eq!(usage(&cluster, "used_inodes"), 5000);
    fs::remove_file(mounts[0].join("d0/f0")).unwrap();
    // Free for others when it is committed.
    eventually("an inode to be free", LONG, || {
        File::create_new(mounts[1].join("d1/again")).map_err(|error| error.to_string())
    });
    cluster.check();
}

#[test]
fn two_mounts_write_up_to_a_byte_quota_and_nothing_is_refused_later() {
    const FILE: usize = 300_000;
    let cluster = Cluster::builder().session_s(4).start();
    let quota = 200 << 20;
    cluster.create_namespace("test", &["--quota-bytes", &quota.to_string(), "--chunk-size", "1MiB"]);
    let mounts = [cluster.mount("a"), cluster.mount("b")];
    let written = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (n, mount) in mounts.iter().enumerate() {
            let written = &written;
            scope.spawn(move || {
                for file in 0.. {
                    let mut file = File::create_new(mount.join(&format!("m{n}f{file}"))).unwrap();
                    match file.write_all(&vec![n as u8; FILE]) {
                        Ok(()) => drop(written.fetch_add(1, Ordering::AcqRel)),
                        Err(error) if is_quota(&error) => {
                            file.set_len(0).unwrap();
                            return;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    for mount in &mounts {
        for entry in fs::read_dir(mount.path()).unwrap() {
            File::open(entry.unwrap().path()).unwrap().sync_all().unwrap();
        }
    }
    assert_nothing_lost(&cluster, &[&mounts[0], &mounts[1]]);
    let (written, used) = (written.load(Ordering::Acquire) * FILE, usage(&cluster, "used_bytes") as usize);
    assert!(used == written && used <= quota && used + 2 * FILE > quota, "{written} {used} {quota}");
    cluster.check();
}

#[test]
fn a_quota_that_is_set_while_files_are_made_refuses_nothing_that_was_made() {
    let cluster = Cluster::builder().session_s(4).start();
    cluster.create_namespace("test", &[]);
    let mount = cluster.mount("m");
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let maker = scope.spawn(|| fill_with_files(&mount.join("d"), &made));
        for quota in [40_000, 20_000, 6_000] {
            let before = made.load(Ordering::Acquire);
            wait_for("files to be made", LONG, || made.load(Ordering::Acquire) > before + 500);
            cluster.ctl(&["ns", "set", "test", "--quota-inodes", &quota.to_string()]);
        }
        maker.join().unwrap();
    });
    assert_nothing_lost(&cluster, &[&mount]);
    let made = made.load(Ordering::Acquire) as u64;
    assert_eq!(usage(&cluster, "used_inodes"), made + 2);
    assert!(made + 2 >= 6_000);
    cluster.ctl(&["ns", "set", "test", "--quota-inodes", "0"]);
    eventually("files to be made again", LONG, || {
        File::create(mount.join("more")).map_err(|error| error.to_string())
    });
    cluster.check();
}

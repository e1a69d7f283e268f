//! Listings that the kernel keeps: read once, and never older than what anybody did.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gofs_posix_tests::posix::Directory;
use gofs_posix_tests::{Cluster, Mount, eventually, sys, wait_for};

/// More than one reply of the kernel's holds.
const FILES: usize = 300;

fn names(dir: &Path) -> Vec<String> {
    Directory::open(dir).unwrap().list().unwrap()
}

fn make(dir: &Path, name: &str) {
    drop(File::create_new(dir.join(name)).unwrap());
}

fn directory_of_files(mount: &Mount) -> BTreeSet<String> {
    fs::create_dir(mount.join("dir")).unwrap();
    let made: BTreeSet<String> = (0..FILES).map(|n| format!("f{n:03}")).collect();
    made.iter().for_each(|name| make(&mount.join("dir"), name));
    made
}

fn requests(mount: &Mount) -> u64 {
    mount.counted("operation readdir") + mount.counted("operation readdirplus")
}

/// A change of a directory: names that are there then, and names that are not.
type Changed = (Option<String>, Option<String>);

fn create(dir: &Path) -> Changed {
    make(dir, "new");
    (Some("new".to_owned()), None)
}

fn rename(dir: &Path) -> Changed {
    fs::rename(dir.join("new"), dir.join("newer")).unwrap();
    (Some("newer".to_owned()), Some("new".to_owned()))
}

fn remove(dir: &Path) -> Changed {
    fs::remove_file(dir.join("newer")).unwrap();
    (None, Some("newer".to_owned()))
}

fn make_directory(dir: &Path) -> Changed {
    fs::create_dir(dir.join("sub")).unwrap();
    (Some("sub".to_owned()), None)
}

#[test]
fn a_listing_is_asked_for_once_until_something_changes() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let mut expected = directory_of_files(&a);
    let (on_a, on_b) = (a.join("dir"), b.join("dir"));
    let listed = |mount: &Mount, expected: &BTreeSet<String>| {
        assert!(names(&mount.join("dir")).iter().eq(expected), "a listing that is old");
    };
    // The second listing may find what the first one left behind, a third one nothing new.
    let settle = |expected: &BTreeSet<String>| (0..2).for_each(|_| listed(&a, expected));

    settle(&expected);
    let before = requests(&a);
    (0..10).for_each(|_| listed(&a, &expected));
    assert_eq!(requests(&a), before, "the kernel answers from its copy");

    for dir in [&on_a, &on_b] {
        for change in [create, rename, remove, make_directory] {
            let (more, less) = change(dir);
            expected.extend(more);
            less.into_iter().for_each(|name| assert!(expected.remove(&name)));
            listed(&a, &expected);
            listed(&b, &expected);
            settle(&expected);
            let before = requests(&a);
            listed(&a, &expected);
            assert_eq!(requests(&a), before, "kept again");
        }
        fs::remove_dir(dir.join("sub")).unwrap();
        expected.remove("sub");
        listed(&a, &expected);
        settle(&expected);
    }
}

#[test]
fn programs_that_list_while_another_mount_changes_never_see_what_is_old() {
    const ROUNDS: usize = 300;
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let mut expected = directory_of_files(&a);
    let (on_a, on_b) = (a.join("dir"), b.join("dir"));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Some read a part, some all, so that copies are filled from replies of every age.
        for part in [3, 150, usize::MAX] {
            let (dir, over) = (&on_a, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    fs::read_dir(dir).unwrap().take(part).for_each(|entry| drop(entry.unwrap()));
                }
            });
        }
        let mut kept = Directory::open(&on_a).unwrap();
        for round in 0..ROUNDS {
            let (old, new) = (format!("f{:03}", round % FILES), format!("r{round:03}"));
            if round % 3 == 0 {
                make(&on_b, &new);
            } else {
                fs::rename(on_b.join(&old), on_b.join(&new)).unwrap();
                expected.remove(&old);
            }
            expected.insert(new);
            assert!(names(&on_a).iter().eq(&expected), "round {round}: a new handle");
            assert!(kept.list().unwrap().iter().eq(&expected), "round {round}: one that is rewound");
            if round % 7 == 0 {
                kept = Directory::open(&on_a).unwrap();
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn what_was_done_for_a_program_that_was_killed_is_seen() {
    let cluster = Cluster::builder().session_s(300).start();
    cluster.create_namespace("test", &[]);
    let mount = cluster.mount("m");
    let dir = mount.join("dir");
    fs::create_dir(&dir).unwrap();
    File::open(&dir).unwrap().sync_all().unwrap();

    // Files are made without the server until inode numbers run out.
    let endless = "n=0; while :; do : > $n; n=$((n+1)); done";
    let mut shell = Command::new("sh").args(["-c", endless]).current_dir(&dir).spawn().unwrap();
    let created = || mount.counted("operation create");
    wait_for("files to be made", Duration::from_secs(60), || created() > 50);
    sys::stop(cluster.metas[0].pid());
    let (mut made, mut looks) = (0, 0);
    eventually("creates to wait for the server", Duration::from_secs(60), || {
        let now = created();
        looks = if now == made { looks + 1 } else { 0 };
        made = now;
        if looks < 40 { Err(format!("{now} files were made")) } else { Ok(()) }
    });
    let waits_for = dir.join(made.to_string());
    assert!(!waits_for.exists());
    shell.kill().unwrap();
    shell.wait().unwrap();
    sys::kill(cluster.metas[0].pid(), libc::SIGCONT);
    eventually("the file to be seen", Duration::from_secs(5), || {
        let made_now = names(&dir).len() as u64;
        if waits_for.exists() && made_now == made + 1 { Ok(()) } else { Err(format!("{made_now} files")) }
    });
}

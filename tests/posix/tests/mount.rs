//! The mount itself: the helper, its options, its end.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use gofs_posix_tests::{Cluster, run, wait_for};

fn gofs_fuse(args: &[&str]) -> Output {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("gofs-fuse");
    assert!(program.exists(), "{} is missing: run `cargo build --workspace`", program.display());
    Command::new(program).args(args).output().unwrap()
}

/// The processes that serve `mount_point`.
fn daemons(mount_point: &Path) -> Vec<u32> {
    let wanted = mount_point.to_str().unwrap().as_bytes();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|&byte| byte == 0);
            words.next().is_some_and(|program| program.ends_with(b"gofs-fuse"))
                && words.any(|word| word == wanted)
        })
        .collect()
}

fn mount_line(mount_point: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let point = mount_point.to_str().unwrap();
    table.lines().find(|line| line.split(' ').nth(1) == Some(point)).map(str::to_owned)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_helper_returns_when_the_mount_answers_and_the_daemon_ends_with_umount() {
    let cluster = Cluster::start();
    let point = cluster.dir().join("helped");
    fs::create_dir(&point).unwrap();
    let source = format!("{}:/test", cluster.meta());
    // As mount(8) calls it.
    let log = cluster.dir().join("helped.log");
    let options = format!("rw,_netdev,nofail,x-systemd.automount,log={}", log.display());
    let output = gofs_fuse(&[&source, point.to_str().unwrap(), "-v", "-o", &options, "-t", "fuse.gofs"]);
    assert!(output.status.success(), "{output:?}");
    fs::write(point.join("f"), "at once").unwrap();
    let line = mount_line(&point).unwrap();
    assert!(line.starts_with(&source) && line.contains(" fuse.gofs rw"), "{line}");
    assert_eq!(daemons(&point).len(), 1);
    run("umount", &[point.to_str().unwrap()]);
    wait_for("the daemon to end", Duration::from_secs(20), || daemons(&point).is_empty());
    let again = cluster.mount("again");
    assert_eq!(fs::read_to_string(again.join("f")).unwrap(), "at once");
    assert!(fs::read_to_string(log).unwrap().contains("unmounted from outside"));
}

#[test]
fn sigterm_unmounts_and_writes_back() {
    let cluster = Cluster::start();
    let mut mount = cluster.mount("m");
    fs::write(mount.join("f"), vec![5; 3_000_000]).unwrap();
    assert!(mount.daemon().stop(), "the daemon did not end after SIGTERM");
    assert_eq!(mount_line(mount.path()), None);
    let again = cluster.mount("again");
    assert!(fs::read(again.join("f")).unwrap() == vec![5; 3_000_000]);
    cluster.check();
}

#[test]
fn a_mount_in_use_is_detached_by_sigterm_within_bounds() {
    let cluster = Cluster::start();
    let mut mount = cluster.mount("m");
    let held = fs::File::create(mount.join("f")).unwrap();
    assert!(mount.daemon().stop(), "the daemon did not end after SIGTERM");
    assert_eq!(mount_line(mount.path()), None);
    drop(held);
}

#[test]
fn a_read_only_mount_refuses_changes() {
    let cluster = Cluster::start();
    let writable = cluster.mount("rw");
    fs::write(writable.join("f"), "x").unwrap();
    let mount = cluster.mount_as("ro", "test", "ro");
    assert_eq!(fs::read(mount.join("f")).unwrap(), b"x");
    let error = fs::write(mount.join("g"), "y").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    assert!(mount_line(mount.path()).unwrap().contains(" ro,"));
}

#[test]
fn a_subdirectory_can_be_mounted() {
    let cluster = Cluster::start();
    let whole = cluster.mount("whole");
    fs::create_dir_all(whole.join("a/b/c")).unwrap();
    fs::write(whole.join("a/b/f"), "below").unwrap();
    let part = cluster.mount_as("part", "test/a/b", "");
    assert_eq!(fs::read_to_string(part.join("f")).unwrap(), "below");
    fs::write(part.join("c/g"), "from there").unwrap();
    assert_eq!(fs::read_to_string(whole.join("a/b/c/g")).unwrap(), "from there");
    let names: Vec<_> = fs::read_dir(part.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn what_cannot_be_mounted_says_why() {
    let cluster = Cluster::start();
    let point = cluster.dir().join("point");
    fs::create_dir(&point).unwrap();
    let point = point.to_str().unwrap();
    let meta = cluster.meta();

    let output = gofs_fuse(&[&format!("{meta}:/absent"), point]);
    assert_eq!(output.status.code(), Some(32), "{output:?}");
    assert!(stderr(&output).contains("absent"), "{output:?}");

    let output = gofs_fuse(&[&format!("{meta}:/test/no/such/dir"), point]);
    assert_eq!(output.status.code(), Some(32), "{output:?}");

    let output = gofs_fuse(&[&format!("{meta}:/test"), "/no/such/point"]);
    assert_eq!(output.status.code(), Some(32), "{output:?}");
    assert!(stderr(&output).contains("/no/such/point"), "{output:?}");

    let output = gofs_fuse(&[&format!("{meta}:/test"), point, "-o", "cahce=1G"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("'cahce=1G'"), "{output:?}");
    assert_eq!(mount_line(Path::new(point)), None);
}

#[test]
fn statfs_shows_the_space_of_the_cluster() {
    let cluster = Cluster::start();
    let mount = cluster.mount("m");
    let text = run("stat", &["-f", "-c", "%T %s %b %f %l", mount.path().to_str().unwrap()]);
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words[0], "fuseblk", "stat's name of the magic number that all of FUSE has");
    let blocks: u64 = words[2].parse().unwrap();
    let free: u64 = words[3].parse().unwrap();
    assert!(blocks > 0 && free > 0 && free <= blocks, "{text}");
    assert_eq!(words[4], "255");
}

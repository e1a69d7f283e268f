//! A namespace is a file system of its own.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use gofs_posix_tests::{Cluster, wait_for};

const MIB: usize = 1 << 20;

#[test]
fn two_namespaces_see_nothing_of_each_other() {
    let cluster = Cluster::start();
    cluster.create_namespace("other", &[]);
    let a = cluster.mount_as("a", "test", "");
    let b = cluster.mount_as("b", "other", "");
    fs::create_dir(a.join("dir")).unwrap();
    fs::write(a.join("dir/file"), vec![7; 3 * MIB]).unwrap();
    assert_eq!(fs::read_dir(b.path()).unwrap().count(), 0);
    assert_eq!(fs::read(b.join("dir/file")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    fs::write(b.join("file"), "b").unwrap();
    assert!(!a.join("file").exists());
    assert_ne!(fs::metadata(a.path()).unwrap().dev(), fs::metadata(b.path()).unwrap().dev());
    let link = fs::hard_link(a.join("dir/file"), b.join("link"));
    assert_eq!(link.unwrap_err().raw_os_error(), Some(libc::EXDEV));
}

#[test]
fn a_subdirectory_is_mounted_as_a_root_that_nothing_leaves() {
    let cluster = Cluster::start();
    let whole = cluster.mount("whole");
    fs::create_dir_all(whole.join("a/b")).unwrap();
    fs::write(whole.join("a/b/inside"), "x").unwrap();
    fs::write(whole.join("outside"), "y").unwrap();
    let part = cluster.mount_as("part", "test/a/b", "");
    assert_eq!(fs::read_to_string(part.join("inside")).unwrap(), "x");
    assert!(!part.join("../outside").exists());
    fs::write(part.join("new"), "z").unwrap();
    assert_eq!(fs::read_to_string(whole.join("a/b/new")).unwrap(), "z");
}

#[test]
fn the_byte_quota_of_one_namespace_stops_its_writers_and_nobody_else() {
    let cluster = Cluster::start();
    cluster.create_namespace("small", &["--quota-bytes", "8MiB"]);
    let small = cluster.mount_as("small", "small", "");
    let free = cluster.mount_as("free", "test", "");
    fs::write(small.join("first"), vec![1; 4 * MIB]).unwrap();

    let mut file = fs::File::create(small.join("second")).unwrap();
    let block = vec![2; MIB];
    let mut refused = None;
    for _ in 0..16 {
        if let Err(error) = file.write_all(&block).and_then(|()| file.sync_all()) {
            refused = error.raw_os_error();
            break;
        }
    }
    assert_eq!(refused, Some(libc::EDQUOT));
    drop(file);
    // What was accepted before is whole; nothing half-written shows.
    assert_eq!(fs::read(small.join("first")).unwrap(), vec![1; 4 * MIB]);
    let second = fs::read(small.join("second")).unwrap();
    assert!(second.len() <= 4 * MIB && second.iter().all(|&b| b == 2), "{} bytes", second.len());
    fs::write(free.join("big"), vec![3; 12 * MIB]).unwrap();

    fs::remove_file(small.join("first")).unwrap();
    let again = fs::File::create(small.join("third")).unwrap();
    (&again).write_all(&vec![4; 2 * MIB]).unwrap();
    again.sync_all().unwrap();
    cluster.check();
}

#[test]
fn the_inode_quota_refuses_creates_with_edquot() {
    let cluster = Cluster::start();
    cluster.create_namespace("few", &["--quota-inodes", "10"]);
    let few = cluster.mount_as("few", "few", "");
    let mut made = 0;
    let refused = loop {
        match fs::write(few.join(&format!("f{made}")), "") {
            Ok(()) => made += 1,
            Err(error) => break error.raw_os_error(),
        }
        assert!(made < 20);
    };
    assert_eq!((made, refused), (9, Some(libc::EDQUOT)), "the root is an inode too");
    fs::remove_file(few.join("f0")).unwrap();
    fs::create_dir(few.join("d")).unwrap();
}

#[test]
fn a_mounted_or_filled_namespace_is_deleted_only_when_told() {
    let cluster = Cluster::start();
    let mount = cluster.mount("m");
    fs::write(mount.join("big"), vec![1; 5 * MIB]).unwrap();
    let refused = cluster.try_ctl(&["ns", "delete", "test", "--even-if-not-empty"]);
    assert!(refused.status != 0 && refused.stderr.contains("mount"), "{refused:?}");
    mount.unmount();
    let refused = cluster.try_ctl(&["ns", "delete", "test"]);
    assert!(refused.status != 0 && refused.stderr.contains("empty"), "{refused:?}");
    cluster.ctl(&["ns", "delete", "test", "--even-if-not-empty"]);
    let list = cluster.ctl_json(&["ns", "list"]);
    assert_eq!(list.as_array().unwrap().len(), 0);
    cluster.wait_status_for("the chunks to be deleted", std::time::Duration::from_secs(60), |s| {
        s["chunks"] == 0 && s["chunks_to_delete"] == 0
    });
}

#[test]
fn statfs_tells_the_quota() {
    let cluster = Cluster::start();
    cluster.create_namespace("small", &["--quota-bytes", "64MiB", "--quota-inodes", "1000"]);
    let small = cluster.mount_as("small", "small", "");
    let df = |what: &str| {
        let text = gofs_posix_tests::run("df", &[what, small.path().to_str().unwrap()]);
        text.lines().last().unwrap().split_whitespace().last().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(df("--output=size"), 64 * 1024);
    assert_eq!(df("--output=itotal"), 1000);
    let file = fs::File::create(small.join("f")).unwrap();
    (&file).write_all(&vec![1; 32 * MIB]).unwrap();
    file.sync_all().unwrap();
    wait_for("the use to show", std::time::Duration::from_secs(5), || df("--output=used") == 32 * 1024);
}

//! Data directories that earlier versions of gofs left behind are opened, and everything in them is there.
//!
//! `tests/posix/state/VERSION.tar.xz` holds the data directories of a MetaServer and a ChunkServer of that version, as a clean
//! stop left them. Each version adds one, made by the test below that is ignored, and none is ever replaced.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use gofs_posix_tests::{Cluster, Mount, posix, run, shell};

fn archives() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("state")
}

/// Bytes that an archive of them needs little room for.
fn lines(seed: u64, len: usize) -> Vec<u8> {
    let lines = (0..).flat_map(|number| format!("line {number} of {seed}\n").into_bytes());
    lines.take(len).collect()
}

/// Fills the namespace `old` with one of each kind of thing.
fn fill(mount: &Mount) {
    fs::create_dir_all(mount.join("dir/deep")).unwrap();
    fs::write(mount.join("dir/deep/small"), "inline").unwrap();
    fs::hard_link(mount.join("dir/deep/small"), mount.join("again")).unwrap();
    symlink("dir/deep/small", mount.join("link")).unwrap();
    posix::set_xattr(&mount.join("again"), "user.colour", b"blue").unwrap();
    fs::write(mount.join("packed"), lines(1, 40_000)).unwrap();
    fs::write(mount.join("large"), lines(2, 400_000)).unwrap();
    // In the log, over what is in the chunk's own file.
    let large = fs::File::options().write(true).open(mount.join("large")).unwrap();
    large.write_all_at(&lines(3, 10_000), 100_000).unwrap();
    let sparse = fs::File::create(mount.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    sparse.write_all_at(b"island", 2 << 20).unwrap();
    shell(
        mount.path(),
        "chmod 640 packed; touch -d @1000000000.5 packed; sync packed large sparse dir/deep/small link .",
    );
}

/// Panics unless all of it is there.
fn see(mount: &Mount) {
    assert_eq!(fs::read_to_string(mount.join("link")).unwrap(), "inline");
    assert_eq!(fs::metadata(mount.join("again")).unwrap().nlink(), 2);
    assert_eq!(posix::get_xattr(&mount.join("dir/deep/small"), "user.colour").unwrap(), b"blue");
    assert!(fs::read(mount.join("packed")).unwrap() == lines(1, 40_000));
    let packed = fs::metadata(mount.join("packed")).unwrap();
    assert_eq!(
        (packed.mode() & 0o7777, packed.mtime(), packed.mtime_nsec()),
        (0o640, 1_000_000_000, 500_000_000)
    );
    let mut large = lines(2, 400_000);
    large[100_000..110_000].copy_from_slice(&lines(3, 10_000));
    assert!(fs::read(mount.join("large")).unwrap() == large);
    let sparse = fs::read(mount.join("sparse")).unwrap();
    assert_eq!((sparse.len(), &sparse[2 << 20..][..6]), (3 << 20, &b"island"[..]));
    assert!(sparse[..2 << 20].iter().all(|byte| *byte == 0));
    let names: Vec<_> = fs::read_dir(mount.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 6, "{names:?}");
}

#[test]
fn data_directories_of_every_earlier_version_are_opened_with_all_that_is_in_them() {
    let mut seen = 0;
    for archive in fs::read_dir(archives()).unwrap() {
        let archive = archive.unwrap().path();
        eprintln!("{}", archive.display());
        let cluster = Cluster::builder().chunks(1).data_of(&archive).start();
        let mount = cluster.mount_as("m", "old", "");
        see(&mount);
        fs::write(mount.join("new"), lines(9, 300_000)).unwrap();
        shell(mount.path(), "sync new");
        fs::remove_file(mount.join("new")).unwrap();
        mount.unmount();
        cluster.check();
        seen += 1;
    }
    assert!(seen >= 1, "no archive in {}", archives().display());
}

#[test]
#[ignore = "makes the archive of this version; run it by hand before a release: it refuses to replace one"]
fn makes_the_archive_of_this_version() {
    let archive = archives().join(format!("{}.tar.xz", env!("CARGO_PKG_VERSION")));
    assert!(!archive.exists(), "{} is there already", archive.display());
    let mut cluster = Cluster::builder().chunks(1).small_logs().start();
    cluster.create_namespace("old", &["--replicas", "1", "--chunk-size", "1M"]);
    let mount = cluster.mount_as("m", "old", "");
    fill(&mount);
    mount.unmount();
    let mount = cluster.mount_as("again", "old", "");
    see(&mount);
    mount.unmount();
    assert!(cluster.chunks[0].stop() && cluster.metas[0].stop());
    fs::create_dir_all(archives()).unwrap();
    let dir = cluster.dir().to_str().unwrap();
    run("tar", &["-C", dir, "--sort=name", "-cJf", archive.to_str().unwrap(), "meta1", "chunk1"]);
    eprintln!("{}: {} bytes", archive.display(), fs::metadata(&archive).unwrap().len());
}

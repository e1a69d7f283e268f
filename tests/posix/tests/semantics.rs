//! Promises of docs/SEMANTICS.md that no other suite shows.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant, SystemTime};

use gofs_posix_tests::posix::Mapping;
use gofs_posix_tests::{Cluster, eventually, shell};

#[test]
fn what_a_shared_map_wrote_is_seen_elsewhere_after_msync_munmap_or_close() {
    const LEN: usize = 256 << 10;
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    fs::write(a.join("f"), vec![b'.'; LEN]).unwrap();
    let open = || OpenOptions::new().read(true).write(true).open(a.join("f")).unwrap();
    let seen = |at: usize, bytes: &[u8]| {
        let mut found = vec![0; bytes.len()];
        File::open(b.join("f")).unwrap().read_exact_at(&mut found, at as u64).unwrap();
        assert_eq!(found, bytes, "at {at}");
    };
    seen(0, b".");
    let file = open();
    let mut map = Mapping::new(&file, LEN).unwrap();
    map.write(10_000, b"by msync");
    map.sync().unwrap();
    seen(10_000, b"by msync");
    map.write(90_000, b"by munmap");
    drop(map);
    drop(file);
    seen(90_000, b"by munmap");
    let file = open();
    let mut map = Mapping::new(&file, LEN).unwrap();
    map.write(200_000, b"by close");
    drop(file);
    seen(200_000, b"by close");
    drop(map);
}

#[test]
fn what_a_handle_that_only_writes_overwrites_shows_in_maps_and_in_open_files_and_takes_nothing_of_a_map() {
    const LEN: usize = 64 << 10;
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    fs::write(a.join("f"), vec![b'.'; LEN]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(a.join("f")).unwrap();
    let writer = OpenOptions::new().write(true).open(a.join("f")).unwrap();
    let mut map = Mapping::new(&file, LEN).unwrap();
    let mut expected = vec![b'.'; LEN];
    let mut found = vec![0; LEN];
    for round in 0..50_u8 {
        // In the same page, on both sides of what is written; the page is not written back yet.
        let at = 4096 * (usize::from(round) % 16) + 1000;
        map.write(at - 10, &[round; 10]);
        map.write(at + 10, &[round; 10]);
        writer.write_all_at(&[b'w'; 10], at as u64).unwrap();
        expected[at - 10..at + 20].fill(round);
        expected[at..at + 10].fill(b'w');
        assert_eq!(map.read(at - 20, 60), expected[at - 20..at + 40], "round {round}");
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected, "round {round}");
    }
    map.sync().unwrap();
    assert!(fs::read(b.join("f")).unwrap() == expected);
}

#[test]
fn reading_leaves_atime_alone_and_utimensat_sets_it() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    fs::create_dir(a.join("dir")).unwrap();
    fs::write(a.join("dir/f"), "text").unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 7_000);
    let set = FileTimes::new().set_accessed(time);
    for path in ["dir/f", "dir"] {
        File::open(a.join(path)).unwrap().set_times(set).unwrap();
    }
    for mount in [&a, &b, &a] {
        assert_eq!(fs::read_to_string(mount.join("dir/f")).unwrap(), "text");
        assert_eq!(fs::read_dir(mount.join("dir")).unwrap().count(), 1);
        for path in ["dir/f", "dir"] {
            assert_eq!(fs::metadata(mount.join(path)).unwrap().accessed().unwrap(), time, "{path}");
        }
    }
}

#[test]
fn a_soft_mount_gives_eio_when_servers_stay_away_and_goes_on_when_they_are_back() {
    const SOFT: Duration = Duration::from_secs(3);
    let mut cluster = Cluster::start();
    let hard = cluster.mount("hard");
    let soft = cluster.mount_as("soft", "test", "soft=3s");
    fs::write(hard.join("f"), "text").unwrap();
    shell(hard.path(), "sync f");
    cluster.metas[0].kill();
    let begun = Instant::now();
    let error = fs::read(soft.join("f")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    let waited = begun.elapsed();
    assert!(waited >= SOFT.mul_f32(0.5) && waited < SOFT * 6, "{waited:?}");
    // A hard mount waits, and a program that does can be killed.
    let text = format!("timeout -s KILL 2 cat {} || echo killed", hard.join("not-cached").display());
    let output = shell("/".as_ref(), &text);
    assert!(output.contains("killed"), "{output}");
    cluster.metas[0].restart();
    for mount in [&soft, &hard] {
        eventually("the mount to go on", Duration::from_secs(60), || {
            fs::read_to_string(mount.join("f")).map_err(|error: io::Error| error.to_string())
        });
    }
}

//! A power cut of everything at once: what was fsynced is there, and the state is sound.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use gofs_posix_tests::{Cluster, Load, sys, wait_for};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const ROUNDS: u64 = 4;
const DISK_BYTES: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(60);
/// Threads that write and fsync, each in a directory of its own.
const THREADS: usize = 4;
/// Proves that the cut is one: these bytes must be gone. The name may be there, if a server's fsync was under
/// way and committed the journal.
const NOT_SYNCED: &str = "not-synced";
const LOST: &[u8] = b"lost";

fn seed() -> u64 {
    let seed =
        std::env::var("GOFS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| rand::rng().random());
    eprintln!("replay with GOFS_SEED={seed}");
    seed
}

/// All at the same moment: processes stand still, disks lose what was not written to them, processes end. `from`: the first disk.
fn cut_power(cluster: &mut Cluster, from: usize) {
    let metas = cluster.metas.len() - from;
    for server in cluster.metas.iter().take(metas).chain(&cluster.chunks) {
        sys::stop(server.pid());
    }
    for disk in &cluster.disks[from..] {
        fs::write(disk.mount_point().join(NOT_SYNCED), LOST).unwrap();
        disk.lose_power();
    }
    for server in cluster.metas.iter_mut().take(metas).chain(&mut cluster.chunks) {
        server.kill();
    }
}

fn power_on(cluster: &mut Cluster, from: usize) {
    cluster.reboot_chunks();
    for disk in &mut cluster.disks[from..] {
        disk.power_on();
        let kept = fs::read(disk.mount_point().join(NOT_SYNCED)).unwrap_or_default();
        assert_ne!(kept, LOST, "the cut lost nothing: it was none");
    }
    let metas = cluster.metas.len() - from;
    for server in cluster.metas.iter_mut().take(metas).chain(&mut cluster.chunks) {
        server.restart();
    }
}

fn what_was_fsynced_survives(metas: usize) {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::builder().metas(metas).session_s(8).disk_bytes(DISK_BYTES).start();
    cluster.create_namespace("test", &["--chunk-size", "1M"]);
    let mut load = Load::new();
    for round in 0..ROUNDS {
        let mount = cluster.mount(&format!("m{round}"));
        load.start(mount.path(), THREADS, rng.random());
        let begun = load.operations();
        wait_for("the load to run", PATIENCE, || load.operations() > begun + 100);
        let moment = Instant::now() + Duration::from_millis(rng.random_range(0..500));
        wait_for("the moment", PATIENCE, || Instant::now() > moment);
        cut_power(&mut cluster, 0);
        // The clients' host is without power too: what it had in memory is gone.
        mount.kill();
        let errors = load.stop();
        assert_eq!(errors.len(), THREADS, "every thread saw the end of its mount: {errors:?}");
        power_on(&mut cluster, 0);
        let reader = cluster.mount(&format!("r{round}"));
        let wrong = load.verify(reader.path());
        assert!(wrong.is_empty(), "round {round}: {wrong:#?}");
        eprintln!("round {round}: {} operations, {} files are there", load.operations(), load.files());
        reader.unmount();
    }
    assert!(load.files() > 20, "{}", load.files());
    // Chunks that no file was fsynced with may be on no disk. What gives them up takes nothing else.
    wait_for("fsck to give up what was never synced", PATIENCE, || {
        cluster.try_ctl(&["fsck", "--repair", "--lost-to-holes"]).status == 0
    });
    let reader = cluster.mount("repaired");
    let wrong = load.verify(reader.path());
    assert!(wrong.is_empty(), "after fsck: {wrong:#?}");
    reader.unmount();
    cluster.check();
}

#[test]
fn what_was_fsynced_survives_a_power_cut_of_everything() {
    what_was_fsynced_survives(1);
}

#[test]
fn what_was_fsynced_survives_a_power_cut_of_three_meta_servers_and_everything_else() {
    what_was_fsynced_survives(3);
}

#[test]
fn an_fsync_after_all_chunk_servers_lost_their_power_is_not_a_lie() {
    let mut cluster = Cluster::builder().disk_bytes(DISK_BYTES).start();
    cluster.create_namespace("test", &["--chunk-size", "1M"]);
    let (mount, other) = (cluster.mount("m"), cluster.mount("other"));
    let path = mount.path().join("file");
    let (kept, lost) = (vec![1; 100_000], vec![2; 100_000]);
    let file = File::create(&path).unwrap();
    file.write_all_at(&kept, 0).unwrap();
    file.sync_all().unwrap();
    file.write_all_at(&lost, 100_000).unwrap();
    // Another mount sees it: it is acknowledged by all ChunkServers that have it, and on no disk.
    assert_eq!(fs::read(other.path().join("file")).unwrap(), [&kept[..], &lost].concat());
    cut_power(&mut cluster, 1);
    power_on(&mut cluster, 1);
    let told = file.sync_all();
    cluster.wait_healthy();
    // The other mount may have it in its memory.
    let reader = cluster.mount("reader");
    let there = fs::read(reader.path().join("file")).unwrap();
    assert_eq!(there[..100_000], kept);
    assert!(there[100_000..] != lost, "the power cut lost nothing: the test shows nothing");
    assert_eq!(told.map_err(|error| error.raw_os_error()), Err(Some(libc::EIO)), "it is not there");
    file.sync_all().expect("it is told once");
    // What is written from now on is kept as ever.
    file.write_all_at(&lost, 100_000).unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(reader.path().join("file")).unwrap(), [kept, lost].concat());
    drop(file);
    for mount in [mount, other, reader] {
        mount.unmount();
    }
    cluster.check();
}

#[test]
fn what_a_mount_wrote_is_durable_once_it_is_unmounted() {
    let mut cluster = Cluster::builder().disk_bytes(DISK_BYTES).start();
    cluster.create_namespace("test", &["--chunk-size", "1M"]);
    let (mount, other) = (cluster.mount("m"), cluster.mount("other"));
    let (mine, shared) = (vec![1; 100_000], vec![2; 100_000]);
    fs::write(mount.path().join("mine"), &mine).unwrap();
    fs::write(mount.path().join("shared"), &shared).unwrap();
    // Takes the lease: the first mount sends the bytes to the ChunkServers and forgets all that it knows of the file.
    File::options().append(true).open(other.path().join("shared")).unwrap().write_all(b"more").unwrap();
    mount.unmount();
    cut_power(&mut cluster, 1);
    power_on(&mut cluster, 1);
    cluster.wait_healthy();
    let reader = cluster.mount("reader");
    assert!(fs::read(reader.path().join("mine")).unwrap() == mine, "a file of its own is lost");
    let there = fs::read(reader.path().join("shared")).unwrap();
    assert!(there[..100_000] == shared, "a file that another mount used since is lost");
    reader.unmount();
    // What it wrote itself it did not sync before the power was cut, and says so.
    other.unmount_whatever();
    cluster.check();
}

#[test]
fn a_writer_that_a_power_cut_of_all_chunk_servers_interrupts_goes_on_and_is_told() {
    const PART: usize = 12 << 20;
    let mut cluster = Cluster::builder().disk_bytes(DISK_BYTES).start();
    cluster.create_namespace("test", &[]);
    let mount = cluster.mount("m");
    let path = mount.path().join("file");
    let file = File::create(&path).unwrap();
    let part = vec![1; PART];
    file.write_all_at(&part, 0).unwrap();
    // On its way already, and nothing of it is committed.
    wait_for("ChunkServers have some of it", PATIENCE, || mount.counted("round_trip chunk.Write") > 0);
    cut_power(&mut cluster, 1);
    power_on(&mut cluster, 1);
    file.write_all_at(&part, PART as u64).unwrap();
    assert_eq!(file.sync_all().map_err(|error| error.raw_os_error()), Err(Some(libc::EIO)));
    // Whatever is lost, the file can be written anew.
    file.set_len(0).unwrap();
    file.write_all_at(&part, 0).unwrap();
    file.sync_all().unwrap();
    let reader = cluster.mount("reader");
    assert!(fs::read(reader.path().join("file")).unwrap() == part, "it was written anew");
    drop(file);
    for mount in [mount, reader] {
        mount.unmount();
    }
    cluster.check();
}

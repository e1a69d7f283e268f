//! Disks that fail, and directories that are not ours.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Instant;

use gofs_chunk::store::{Ack, FileWatch, Store, StoreError, Taken, WriteMode};
use gofs_tree::{ChunkId, ChunkVersion};

use super::support::options;

const VERSION: ChunkVersion = ChunkVersion(1);

/// Breaks one directory when told to.
struct Broken {
    dir: PathBuf,
    sync: AtomicBool,
    read: AtomicBool,
    write: AtomicBool,
    errno: AtomicI32,
}

impl Broken {
    fn fails(&self, path: &Path, flag: &AtomicBool) -> io::Result<()> {
        let hit = path.starts_with(&self.dir) && flag.load(Ordering::Relaxed);
        if hit { Err(io::Error::from_raw_os_error(self.errno.load(Ordering::Relaxed))) } else { Ok(()) }
    }
}

impl FileWatch for Broken {
    fn will_sync(&self, path: &Path) -> io::Result<()> {
        self.fails(path, &self.sync)
    }
    fn will_read(&self, path: &Path, _: u64, _: usize) -> io::Result<()> {
        self.fails(path, &self.read)
    }
    fn will_write(&self, path: &Path, _: &File, _: u64, _: &[u8]) -> io::Result<()> {
        self.fails(path, &self.write)
    }
}

fn two_disks() -> (tempfile::TempDir, Store, Arc<Broken>) {
    let root = tempfile::tempdir().unwrap();
    let dirs = [root.path().join("a"), root.path().join("b")];
    let broken = Arc::new(Broken {
        dir: dirs[1].clone(),
        sync: false.into(),
        read: false.into(),
        write: false.into(),
        errno: libc::EIO.into(),
    });
    let mut options = options();
    options.watch = Some(broken.clone());
    let store = Store::open(&dirs, &options).unwrap();
    for chunk in 1..=40 {
        store
            .write(ChunkId(chunk), VERSION, 0, &[chunk as u8; 5000], WriteMode::Create, Ack::Cached)
            .unwrap();
    }
    assert!(store.disks().all(|disk| disk.chunk_count() > 5), "chunks are spread");
    (root, store, broken)
}

fn chunks_of_broken(store: &Store, broken: &Broken) -> (Vec<ChunkId>, Vec<ChunkId>) {
    let ids = |ours: bool| {
        let disks = store.disks().filter(|disk| (disk.path() == broken.dir) == ours);
        disks.flat_map(|disk| disk.chunk_ids()).collect::<Vec<_>>()
    };
    (ids(true), ids(false))
}

#[test]
fn a_disk_that_cannot_sync_is_taken_out_and_the_others_go_on() {
    let (_root, store, broken) = two_disks();
    let (lost, kept) = chunks_of_broken(&store, &broken);
    store.changes().take();
    broken.sync.store(true, Ordering::Relaxed);
    assert!(matches!(store.sync(&[lost[0]]), Err(StoreError::Io { .. })));
    assert!(matches!(store.sync(&[lost[1]]), Err(StoreError::DiskFailed { .. })), "nor is another durable");
    assert_eq!(store.changes().take(), Taken::Everything);
    assert_eq!(store.list().len(), kept.len());
    let status = store.status();
    let errors: Vec<bool> = status.iter().map(|disk| disk.error.is_some()).collect();
    assert_eq!(errors, [false, true]);
    assert_eq!(status[1].free_bytes, 0);
    // Its chunks are refused and not made anew elsewhere; others are served, and new ones go to the other disk.
    let again = store.write(lost[0], VERSION, 0, b"x", WriteMode::Create, Ack::Cached);
    assert!(matches!(again, Err(StoreError::DiskFailed { .. })), "{again:?}");
    assert!(store.read(lost[0], VERSION, 0, 10).is_err());
    store.sync(&kept).unwrap();
    for chunk in 100..120 {
        store.write(ChunkId(chunk), VERSION, 0, b"new", WriteMode::Create, Ack::Cached).unwrap();
    }
}

#[test]
fn a_disk_that_cannot_read_is_taken_out_after_some_errors() {
    let (_root, store, broken) = two_disks();
    let (lost, _) = chunks_of_broken(&store, &broken);
    broken.read.store(true, Ordering::Relaxed);
    let first = store.read(lost[0], VERSION, 0, 10);
    assert!(matches!(first, Err(StoreError::Corrupt { .. })), "{first:?}");
    assert_eq!(store.disks().count(), 2, "one bad sector is not a bad disk");
    for _ in 0..10 {
        assert!(store.read(lost[1], VERSION, 0, 10).is_err());
    }
    assert_eq!(store.disks().count(), 1);
}

#[test]
fn what_the_host_lacks_for_a_moment_takes_no_disk_out() {
    let (_root, store, broken) = two_disks();
    let (ours, _) = chunks_of_broken(&store, &broken);
    let write = || store.write(ours[0], VERSION, 0, b"new", WriteMode::Existing, Ack::Cached);
    for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
        broken.errno.store(errno, Ordering::Relaxed);
        broken.write.store(true, Ordering::Relaxed);
        assert!(matches!(write(), Err(StoreError::Io { .. })));
        broken.write.store(false, Ordering::Relaxed);
        broken.read.store(true, Ordering::Relaxed);
        for _ in 0..20 {
            assert!(matches!(store.read(ours[0], VERSION, 0, 10), Err(StoreError::Io { .. })));
        }
        broken.read.store(false, Ordering::Relaxed);
        write().unwrap();
        assert_eq!(&store.read(ours[0], VERSION, 0, 3).unwrap(), b"new");
    }
    assert_eq!(store.corrupt_blocks(), 0);
    assert!(store.status().iter().all(|disk| disk.error.is_none()), "{:?}", store.status());
}

#[test]
fn a_full_disk_at_a_sync_takes_it_out_for_what_was_written_may_be_dropped() {
    let (_root, store, broken) = two_disks();
    let (ours, _) = chunks_of_broken(&store, &broken);
    broken.errno.store(libc::ENOSPC, Ordering::Relaxed);
    broken.sync.store(true, Ordering::Relaxed);
    assert!(store.sync(&[ours[0]]).is_err());
    broken.sync.store(false, Ordering::Relaxed);
    assert!(store.sync(&[ours[0]]).is_err());
    assert!(store.status()[1].error.is_some());
}

#[test]
fn a_directory_that_cannot_be_used_at_the_start_does_not_stop_the_others() {
    let root = tempfile::tempdir().unwrap();
    let dirs = [root.path().join("a"), root.path().join("b")];
    let store = Store::open(&dirs, &options()).unwrap();
    for chunk in 1..=20 {
        store.write(ChunkId(chunk), VERSION, 0, b"kept", WriteMode::Create, Ack::Cached).unwrap();
    }
    store.close().unwrap();
    let kept = store.disks().next().unwrap().chunk_count();
    drop(store);
    for entry in std::fs::read_dir(&dirs[1]).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("index") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let store = Store::open(&dirs, &options()).unwrap();
    assert_eq!(store.list().len(), kept);
    assert!(store.status()[1].error.as_ref().is_some_and(|error| error.contains("index")));
    drop(store);
    assert!(Store::open(&dirs[1..], &options()).is_err());
}

#[test]
fn directories_of_different_servers_are_not_mixed() {
    let root = tempfile::tempdir().unwrap();
    let dirs = [root.path().join("a"), root.path().join("b")];
    for dir in &dirs {
        Store::open(std::slice::from_ref(dir), &options()).unwrap();
    }
    let error = Store::open(&dirs, &options()).err().unwrap().to_string();
    assert!(error.contains("server"), "{error}");
    // A further, empty directory joins.
    let more = [dirs[0].clone(), root.path().join("c")];
    let server = Store::open(&dirs[..1], &options()).unwrap().server();
    let store = Store::open(&more, &options()).unwrap();
    assert_eq!((store.server(), store.disks().count()), (server, 2));
}

#[test]
fn of_a_chunk_on_two_disks_the_newer_stays() {
    let root = tempfile::tempdir().unwrap();
    let (a, b, away) = (root.path().join("a"), root.path().join("b"), root.path().join("away"));
    let store = Store::open(&[a.clone(), b.clone()], &options()).unwrap();
    // Both disks get chunk 5: one while the other is away.
    let one = loop {
        store.write(ChunkId(5), VERSION, 0, b"old", WriteMode::Create, Ack::Cached).unwrap();
        if store.disks().next().unwrap().holds(ChunkId(5)) {
            break a.clone();
        }
        store.delete(ChunkId(5), None).unwrap();
    };
    store.close().unwrap();
    drop(store);
    std::fs::rename(&one, &away).unwrap();
    let store = Store::open(std::slice::from_ref(&b), &options()).unwrap();
    store.write(ChunkId(5), ChunkVersion(2), 0, b"new", WriteMode::Create, Ack::Cached).unwrap();
    store.close().unwrap();
    drop(store);
    let store = Store::open(&[away, b], &options()).unwrap();
    assert_eq!(store.list().len(), 1);
    assert_eq!(store.read(ChunkId(5), ChunkVersion(2), 0, 3).unwrap(), b"new");
}

#[test]
fn a_copy_in_the_place_of_a_chunk_on_a_failed_disk_is_used_and_stays_when_that_is_back() {
    let (root, store, broken) = two_disks();
    let (lost, _) = chunks_of_broken(&store, &broken);
    let (chunk, newer) = (lost[0], VERSION.next());
    broken.sync.store(true, Ordering::Relaxed);
    assert!(store.sync(&[chunk]).is_err());

    store.discard(chunk).unwrap();
    store.write(chunk, newer, 0, b"copied", WriteMode::CopyFirst, Ack::Cached).unwrap();
    store.discard(chunk).unwrap();
    store.write(chunk, newer, 0, b"copied", WriteMode::CopyFirst, Ack::Cached).unwrap();
    assert!(store.read(chunk, VERSION, 0, 6).is_err(), "nothing is shown before it is complete");
    store.write(chunk, newer, 6, b" in two", WriteMode::Copy, Ack::Cached).unwrap();
    store.publish(chunk).unwrap();
    assert_eq!(store.read(chunk, newer, 0, 13).unwrap(), b"copied in two");
    let stale = store.write(chunk, VERSION, 0, b"old", WriteMode::Create, Ack::Cached);
    assert!(matches!(stale, Err(StoreError::Stale { .. })), "{stale:?}");
    store.write(chunk, newer, 0, b"C", WriteMode::Create, Ack::Cached).unwrap();
    store.sync(&[chunk]).unwrap();
    drop(store);

    let store = Store::open(&[root.path().join("a"), root.path().join("b")], &options()).unwrap();
    assert_eq!(store.list().len(), 40);
    assert_eq!(store.read(chunk, newer, 0, 13).unwrap(), b"Copied in two");
}

#[test]
fn a_hundred_thousand_chunks_are_open_in_a_moment() {
    let root = tempfile::tempdir().unwrap();
    let dir = [root.path().join("disk")];
    let mut options = options();
    options.segment_bytes = 64 << 20;
    let store = Store::open(&dir, &options).unwrap();
    let started = Instant::now();
    for chunk in 1..=100_000 {
        store.write(ChunkId(chunk), VERSION, 0, b"small", WriteMode::Create, Ack::Cached).unwrap();
    }
    let written = started.elapsed();
    drop(store);
    let started = Instant::now();
    let store = Store::open(&dir, &options).unwrap();
    let after_kill = started.elapsed();
    assert_eq!(store.list().len(), 100_000);
    store.close().unwrap();
    drop(store);
    let started = Instant::now();
    let store = Store::open(&dir, &options).unwrap();
    let after_stop = started.elapsed();
    assert_eq!(store.read(ChunkId(77), VERSION, 0, 5).unwrap(), b"small");
    println!(
        "written in {written:?}, open after a kill in {after_kill:?}, after a clean stop in {after_stop:?}"
    );
    // Very wide bounds: machines that run tests are busy.
    assert!(after_kill.as_secs() < 60 && after_stop.as_secs() < 10);
}

#[test]
fn when_a_disk_was_last_seen_whole_is_remembered() {
    let root = tempfile::tempdir().unwrap();
    let dir = [root.path().join("disk")];
    let store = Store::open(&dir, &options()).unwrap();
    assert_eq!(store.status()[0].last_scrub_unix_s, 0);
    store.disks().for_each(|disk| disk.set_scrubbed(1_800_000_000));
    store.close().unwrap();
    drop(store);
    assert_eq!(Store::open(&dir, &options()).unwrap().status()[0].last_scrub_unix_s, 1_800_000_000);
}

#[test]
fn a_missing_file_is_damage_to_its_chunk_and_to_no_other() {
    let root = tempfile::tempdir().unwrap();
    let dir = [root.path().join("disk")];
    let store = Store::open(&dir, &options()).unwrap();
    for chunk in [1, 2] {
        store.write(ChunkId(chunk), VERSION, 0, &[7; 200_000], WriteMode::Create, Ack::Cached).unwrap();
    }
    store.close().unwrap();
    drop(store);
    for entry in std::fs::read_dir(dir[0].join("chunks/01")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let store = Store::open(&dir, &options()).unwrap();
    assert!(matches!(store.read(ChunkId(1), VERSION, 0, 10), Err(StoreError::Corrupt { .. })));
    for offset in [0, 400_000] {
        let written =
            store.write(ChunkId(1), VERSION, offset, &[8; 100_000], WriteMode::Existing, Ack::Cached);
        assert!(matches!(written, Err(StoreError::Corrupt { .. })), "{written:?}");
    }
    store.write(ChunkId(2), VERSION, 400_000, &[8; 100_000], WriteMode::Existing, Ack::Cached).unwrap();
    store.sync(&[ChunkId(2)]).unwrap();
    store.close().unwrap();
    assert!(store.status()[0].error.is_none(), "{:?}", store.status());
    assert!(store.list().iter().any(|info| info.chunk == ChunkId(1) && info.corrupt));
    store.delete(ChunkId(1), None).unwrap();
    assert_eq!(store.list().len(), 1);
}

#[test]
fn a_copy_shows_when_it_is_published_and_is_not_begun_anew_in_the_middle() {
    let root = tempfile::tempdir().unwrap();
    let dir = [root.path().join("disk")];
    let store = Store::open(&dir, &options()).unwrap();
    let chunk = ChunkId(1);
    let copy = |offset, mode| store.write(chunk, VERSION, offset, &[1; 5000], mode, Ack::Cached);
    assert!(matches!(copy(0, WriteMode::Copy), Err(StoreError::NoChunk { .. })));
    copy(0, WriteMode::CopyFirst).unwrap();
    assert!(matches!(copy(0, WriteMode::CopyFirst), Err(StoreError::Invalid(_))));
    copy(9000, WriteMode::Copy).unwrap();
    assert!(store.list().is_empty());
    assert!(matches!(store.read(chunk, VERSION, 0, 1), Err(StoreError::NoChunk { .. })));
    assert!(matches!(copy(0, WriteMode::Existing), Err(StoreError::NoChunk { .. })));
    // Deleted in the middle: the rest alone would be a chunk that lacks its first part.
    store.delete(chunk, Some(VERSION)).unwrap();
    assert!(matches!(copy(18_000, WriteMode::Copy), Err(StoreError::NoChunk { .. })));
    assert!(store.publish(chunk).is_err());

    copy(0, WriteMode::CopyFirst).unwrap();
    store.publish(chunk).unwrap();
    assert_eq!(store.list().len(), 1);
    assert!(matches!(copy(0, WriteMode::Copy), Err(StoreError::Invalid(_))));
    store.discard(chunk).unwrap();
    assert_eq!(store.read(chunk, VERSION, 0, 5000).unwrap(), [1; 5000]);
}

#[test]
fn half_a_copy_is_gone_after_a_kill() {
    let root = tempfile::tempdir().unwrap();
    let dir = [root.path().join("disk")];
    let store = Store::open(&dir, &options()).unwrap();
    store.write(ChunkId(1), VERSION, 0, &[1; 500_000], WriteMode::CopyFirst, Ack::Cached).unwrap();
    store.sync(&[ChunkId(1)]).unwrap();
    drop(store);
    let store = Store::open(&dir, &options()).unwrap();
    assert!(store.list().is_empty());
    assert!(!store.disks().any(|disk| disk.holds(ChunkId(1))));
    store.close().unwrap();
    let left: Vec<_> = std::fs::read_dir(dir[0].join("chunks/01")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_chunk_that_was_made_anew_while_its_disk_was_away_is_kept() {
    for away in 0..2 {
        let root = tempfile::tempdir().unwrap();
        let both = [root.path().join("a"), root.path().join("b")];
        let store = Store::open(&both, &options()).unwrap();
        for chunk in 1..=40 {
            store.write(ChunkId(chunk), VERSION, 0, b"old", WriteMode::Create, Ack::Cached).unwrap();
        }
        let disk = store.disks().find(|disk| disk.path() == both[away]).unwrap();
        let chunk = disk.chunk_ids()[0];
        store.close().unwrap();
        drop(store);
        let store = Store::open(&both[1 - away..2 - away], &options()).unwrap();
        store.write(chunk, VERSION, 0, b"new", WriteMode::Create, Ack::Cached).unwrap();
        store.close().unwrap();
        drop(store);
        let store = Store::open(&both, &options()).unwrap();
        assert_eq!(store.list().len(), 40);
        assert_eq!(store.read(chunk, VERSION, 0, 3).unwrap(), b"new", "away: {away}");
    }
}

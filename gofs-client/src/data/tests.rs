//! Whole files through links to fake ChunkServers, with servers that fail.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use gofs_tree::{AttrChange, ChunkIndex, EditOp, FsError, Ino, TimeChange, Timestamp};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::fake::{CHUNK_BYTES, FakeCluster, INO, SESSION};
use super::{DataConfig, FileData, FileMeta};

mod durability;
mod refusals;
mod sessions;

const CHUNK: u64 = CHUNK_BYTES as u64;

struct Mount {
    cluster: Arc<FakeCluster>,
    data: Arc<FileData>,
}

impl Mount {
    async fn new(change: impl FnOnce(&mut DataConfig)) -> Mount {
        let cluster = FakeCluster::start(3).await;
        Mount::on(cluster, change)
    }

    fn on(cluster: Arc<FakeCluster>, change: impl FnOnce(&mut DataConfig)) -> Mount {
        let mut config = cluster.config();
        change(&mut config);
        let data = FileData::new(config, cluster.clone());
        data.load(INO, cluster.content(INO));
        Mount { cluster, data }
    }

    async fn write(&self, offset: u64, bytes: &[u8]) {
        let now = self.cluster.now();
        let at = self.data.write(INO, Some(offset), Bytes::copy_from_slice(bytes), now).await;
        assert_eq!(at, Ok(offset));
    }

    async fn read(&self, offset: u64, len: u32) -> Vec<u8> {
        self.data.read(INO, offset, len).await.unwrap().concat()
    }

    async fn truncate(&self, size: u64) {
        let change = AttrChange { size: Some(size), ..AttrChange::default() };
        self.data.set_attr(INO, change, self.cluster.now()).await.unwrap();
    }

    async fn flush(&self) {
        self.data.flush(INO, false).await.unwrap();
    }

    /// As another mount sees it: everything given back, and loaded again.
    async fn reload(&self) {
        self.flush().await;
        assert_eq!(self.data.overlay(INO), None);
        self.data.drop_clean(INO);
        assert!(!self.data.is_loaded(INO));
        self.data.load(INO, self.cluster.content(INO));
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed).wrapping_add((i >> 8) as u8)).collect()
}

#[tokio::test]
async fn a_chunk_that_nobody_has_written_is_zeros_and_is_written_where_it_is() {
    let mount = Mount::new(|_| {}).await;
    // Its author died before it wrote, or found no room.
    let made = mount.cluster.allocate(INO, SESSION, vec![ChunkIndex(0)], Vec::new()).await.unwrap();
    mount.truncate(100_000).await;
    mount.cluster.map_read_only.store(true, Ordering::Relaxed);
    mount.reload().await;
    assert_eq!(mount.read(90_000, 100).await, vec![0; 100]);
    let bytes = pattern(20_000, 3);
    mount.write(0, &bytes).await;
    mount.data.flush(INO, true).await.unwrap();
    assert_eq!(mount.read(0, 20_000).await, bytes);
    let added = |op: &EditOp| matches!(op, EditOp::AddChunk { .. });
    assert!(!mount.cluster.commits.lock().iter().any(added), "the place was taken");
    let map = mount.cluster.chunk_map(INO, ChunkIndex(0), 1).await.unwrap();
    assert_eq!(map.iter().map(|chunk| chunk.chunk).collect::<Vec<_>>(), [made[0].chunk]);
}

#[tokio::test]
async fn a_small_file_is_one_edit() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, b"hello").await;
    mount.write(5, b" world").await;
    assert_eq!(mount.read(0, 100).await, b"hello world");
    assert_eq!(mount.data.overlay(INO).unwrap().size, 11);
    mount.reload().await;
    assert_eq!(mount.read(0, 100).await, b"hello world");
    let commits = mount.cluster.commits.lock();
    assert!(matches!(&commits[..], [EditOp::WriteInline { size: 11, .. }]), "{commits:?}");
    assert_eq!(mount.cluster.servers.iter().map(|s| s.writes.load(Ordering::Relaxed)).sum::<u64>(), 0);
}

#[tokio::test]
async fn a_file_outgrows_its_inode_and_every_replica_has_it() {
    let mount = Mount::new(|_| {}).await;
    let bytes = pattern(300_000, 1);
    mount.write(0, &bytes[..1000]).await;
    mount.flush().await;
    mount.write(1000, &bytes[1000..]).await;
    mount.reload().await;
    assert_eq!(mount.read(0, 400_000).await, bytes);
    assert_eq!(mount.read(123_456, 70_000).await, &bytes[123_456..193_456]);
    mount.cluster.check_replicas(INO);
    let cleared =
        mount.cluster.commits.lock().iter().any(|op| matches!(op, EditOp::Extend { clear_inline: true, .. }));
    assert!(cleared);
    assert_eq!(mount.data.dirty(), super::DirtyStats { cached_bytes: 300_000, ..Default::default() });
}

#[tokio::test]
async fn a_hole_is_zeros_without_a_request() {
    let mount = Mount::new(|_| {}).await;
    mount.write(10 * CHUNK, b"end").await;
    mount.reload().await;
    assert_eq!(mount.read(CHUNK, 2 * CHUNK_BYTES).await, vec![0; 2 * CHUNK as usize]);
    assert_eq!(mount.cluster.servers.iter().map(|s| s.reads.load(Ordering::Relaxed)).sum::<u64>(), 0);
    assert_eq!(mount.read(10 * CHUNK - 2, 10).await, b"\0\0end");
}

#[tokio::test]
async fn a_replica_that_fails_is_left_out_and_the_write_goes_on() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(10_000, 1)).await;
    mount.flush().await;
    for victim in 0..2 {
        let replicas = mount.cluster.replicas(INO, victim);
        let at = u64::from(victim) * CHUNK;
        mount.write(at, &pattern(10_000, 2)).await;
        if victim == 0 {
            replicas[0].down.store(true, Ordering::Relaxed);
        } else {
            replicas[1].down.store(true, Ordering::Relaxed);
        }
        mount.flush().await;
        assert_eq!(mount.cluster.replicas(INO, victim).len(), 1);
        assert_eq!(mount.read(at, 10_000).await, pattern(10_000, 2));
        mount.cluster.check_replicas(INO);
        replicas.iter().for_each(|server| server.down.store(false, Ordering::Relaxed));
        mount.write(CHUNK, &pattern(20_000, 9)).await;
        mount.flush().await;
    }
}

#[tokio::test]
async fn a_chunk_in_which_nothing_was_acknowledged_goes_elsewhere_when_its_servers_are_lost() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(10_000, 1)).await;
    mount.flush().await;
    mount.cluster.allocate(INO, SESSION, vec![ChunkIndex(1)], Vec::new()).await.unwrap();
    let lost = mount.cluster.replicas(INO, 1);
    lost.iter().for_each(|server| server.down.store(true, Ordering::Relaxed));
    mount.write(CHUNK, &pattern(10_000, 2)).await;
    mount.flush().await;
    assert_eq!(mount.read(CHUNK, 10_000).await, pattern(10_000, 2));
    let found = mount.cluster.replicas(INO, 1);
    assert!(found.iter().all(|server| lost.iter().all(|lost| lost.id != server.id)));
}

#[tokio::test]
async fn when_replicas_fail_a_chunk_is_called_blank_only_where_nothing_in_it_was_acknowledged() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(10_000, 1)).await;
    mount.flush().await;
    mount.cluster.allocate(INO, SESSION, vec![ChunkIndex(1)], Vec::new()).await.unwrap();
    for (index, is_blank) in [(0, false), (1, true)] {
        let lost = &mount.cluster.replicas(INO, index)[0];
        lost.down.store(true, Ordering::Relaxed);
        mount.write(u64::from(index) * CHUNK, &pattern(10_000, 2)).await;
        mount.flush().await;
        let called = std::mem::take(&mut *mount.cluster.called_blank.lock());
        assert_eq!(called, [(ChunkIndex(index), is_blank)]);
        lost.down.store(false, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_chunk_that_was_called_blank_is_written_also_where_nobody_waited_for_the_answer() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(10_000, 1)).await;
    mount.flush().await;
    let allocated = mount.cluster.allocate(INO, SESSION, vec![ChunkIndex(1)], Vec::new()).await.unwrap();
    let [seen] = &allocated[..] else { panic!("{allocated:?}") };
    let file = mount.data.file(INO).unwrap();
    let size = mount.data.config.chunk_size;
    mount.data.totals.change(&file, |state| state.chunks.allocated(seen.clone(), size));
    {
        let mut asking =
            std::pin::pin!(mount.data.relocate_to_write(&file, file.look(|state| state.epoch()), seen));
        assert!(futures_util::poll!(&mut asking).is_pending());
    }
    mount.write(CHUNK, &pattern(10_000, 2)).await;
    tokio::time::timeout(Duration::from_secs(20), mount.flush()).await.expect("what was written counts");
    assert_eq!(mount.read(CHUNK, 10_000).await, pattern(10_000, 2));
}

#[tokio::test]
async fn a_slow_replica_is_raced_by_another() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(20_000, 1)).await;
    mount.reload().await;
    let slow = mount.cluster.replicas(INO, 0);
    for server in &slow {
        server.deaf.store(true, Ordering::Relaxed);
        let read = tokio::time::timeout(Duration::from_secs(5), mount.read(0, 20_000)).await;
        assert_eq!(read.unwrap(), pattern(20_000, 1));
        server.deaf.store(false, Ordering::Relaxed);
        mount.reload().await;
    }
}

#[tokio::test]
async fn a_new_file_asks_for_no_chunk_map() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(20_000, 1)).await;
    mount.flush().await;
    mount.truncate(0).await;
    mount.write(0, &pattern(30_000, 2)).await;
    mount.flush().await;
    assert_eq!(mount.cluster.maps.load(Ordering::Relaxed), 0);
    mount.reload().await;
    assert_eq!(mount.read(0, 40_000).await, pattern(30_000, 2));
}

#[tokio::test]
async fn a_replica_that_lost_its_chunk_is_not_made_again_by_a_write() {
    for victim in 0..2 {
        let mount = Mount::new(|_| {}).await;
        let mut bytes = pattern(50_000, 1);
        mount.write(0, &bytes).await;
        mount.reload().await;
        mount.cluster.replicas(INO, 0)[victim].chunks.lock().clear();
        mount.write(100, b"new").await;
        bytes[100..103].copy_from_slice(b"new");
        mount.flush().await;
        assert_eq!(mount.cluster.replicas(INO, 0).len(), 1);
        mount.reload().await;
        assert_eq!(mount.read(0, 60_000).await, bytes);
    }
}

#[tokio::test]
async fn bad_bytes_are_never_returned_and_are_reported() {
    let mount = Mount::new(|_| {}).await;
    let bytes = pattern(50_000, 3);
    mount.write(0, &bytes).await;
    mount.reload().await;
    let replicas = mount.cluster.replicas(INO, 0);
    replicas[0].corrupt.store(true, Ordering::Relaxed);
    assert_eq!(mount.read(0, 50_000).await, bytes);
    replicas[0].corrupt.store(false, Ordering::Relaxed);
    replicas[1].corrupt.store(true, Ordering::Relaxed);
    mount.reload().await;
    assert_eq!(mount.read(0, 50_000).await, bytes);
    // One of the two was asked first.
    let reported = mount.cluster.reported.lock().clone();
    assert!(reported.iter().all(|&(server, corrupt)| corrupt && replicas.iter().any(|r| r.id == server)));
    assert_eq!(reported.len(), 1);
}

#[tokio::test]
async fn what_a_random_reader_asks_for_is_all_that_is_read_and_not_kept() {
    let mount = Mount::new(|_| {}).await;
    let bytes = pattern(6 << 20, 1);
    mount.write(0, &bytes).await;
    mount.reload().await;
    for at in [5 << 20, 1 << 20, 4_000_000, 100] {
        assert_eq!(mount.read(at, 4096).await, &bytes[at as usize..][..4096]);
    }
    let sum =
        |of: fn(&super::fake::FakeServer) -> u64| mount.cluster.servers.iter().map(|s| of(s)).sum::<u64>();
    assert_eq!(sum(|server| server.read_bytes.load(Ordering::Relaxed)), 4 * 4096);
    assert_eq!(mount.data.dirty().cached_bytes, 0);
    // What was written here and is not out yet is read all the same.
    mount.write(3_000_000, b"new").await;
    assert_eq!(
        mount.read(2_999_999, 5).await,
        [&bytes[2_999_999..3_000_000], b"new", &bytes[3_000_003..][..1]].concat()
    );
}

#[tokio::test]
async fn a_full_cluster_is_told_once_to_each_handle_and_counted() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(20_000, 1)).await;
    mount.flush().await;
    let (first, second) = (mount.data.error_cursor(INO), mount.data.error_cursor(INO));
    mount.cluster.servers.iter().for_each(|server| server.full.store(true, Ordering::Relaxed));
    mount.write(20_000, &pattern(5_000, 2)).await;
    assert_eq!(mount.data.flush(INO, false).await, Err(FsError::NoSpace));
    for cursor in [&first, &second] {
        assert_eq!(mount.data.take_error(INO, cursor), Err(FsError::NoSpace));
        assert_eq!(mount.data.take_error(INO, cursor), Ok(()));
    }
    assert_eq!(mount.data.dirty().lost_bytes, 5_000);
    assert_eq!(mount.data.dirty().files, 0);
    assert_eq!(mount.read(0, 50_000).await, pattern(20_000, 1));
    mount.cluster.servers.iter().for_each(|server| server.full.store(false, Ordering::Relaxed));
    mount.write(20_000, &pattern(5_000, 3)).await;
    mount.reload().await;
    assert_eq!(mount.read(20_000, 50_000).await, pattern(5_000, 3));
}

#[tokio::test]
async fn a_full_replica_is_left_out_while_another_has_room() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(20_000, 1)).await;
    mount.flush().await;
    for full in mount.cluster.replicas(INO, 0).into_iter().take(1) {
        full.full.store(true, Ordering::Relaxed);
    }
    mount.write(0, &pattern(20_000, 2)).await;
    mount.flush().await;
    assert_eq!(mount.cluster.replicas(INO, 0).len(), 1);
    mount.reload().await;
    assert_eq!(mount.read(0, 20_000).await, pattern(20_000, 2));
}

#[tokio::test]
async fn with_little_space_left_the_error_comes_from_the_write() {
    let mount = Mount::new(|_| {}).await;
    mount.cluster.set_quota(100_000);
    mount.data.set_space_left(100_000);
    let cursor = mount.data.error_cursor(INO);
    let mut written = 0;
    let error = loop {
        let now = mount.cluster.now();
        match mount.data.write(INO, None, Bytes::from(pattern(30_000, 1)), now).await {
            Ok(at) => {
                assert_eq!(at, written);
                written += 30_000;
            }
            Err(error) => break error,
        }
    };
    assert_eq!((error, written), (FsError::QuotaExceeded, 90_000));
    // It was told, and nothing that was taken is lost.
    assert_eq!(mount.data.take_error(INO, &cursor), Ok(()));
    assert_eq!(mount.data.dirty().lost_bytes, 0);
    mount.reload().await;
    assert_eq!(
        mount.read(0, 200_000).await,
        [pattern(30_000, 1), pattern(30_000, 1), pattern(30_000, 1)].concat()
    );
}

#[tokio::test]
async fn a_refused_commit_takes_the_size_back() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(20_000, 1)).await;
    *mount.cluster.refuse_commits.lock() = Some(FsError::QuotaExceeded);
    assert_eq!(mount.data.flush(INO, false).await, Err(FsError::QuotaExceeded));
    *mount.cluster.refuse_commits.lock() = None;
    assert_eq!(mount.read(0, 100).await, b"");
    mount.write(0, b"small again").await;
    mount.reload().await;
    assert_eq!(mount.read(0, 100).await, b"small again");
}

#[tokio::test]
async fn writers_wait_for_room_and_all_bytes_arrive() {
    let mount = Mount::new(|config| config.dirty_bytes = 1 << 20).await;
    let data = pattern(64 << 10, 1);
    for piece in 0..100u64 {
        mount.write(piece * data.len() as u64, &data).await;
        assert!(mount.data.dirty().bytes <= 1 << 20);
    }
    mount.reload().await;
    for piece in 0..100u64 {
        assert_eq!(mount.read(piece * data.len() as u64, 64 << 10).await, data);
    }
    mount.cluster.check_replicas(INO);
}

#[tokio::test]
async fn old_changes_are_flushed_without_being_asked() {
    let mount = Mount::new(|config| config.dirty_age = Duration::from_millis(100)).await;
    mount.write(0, &pattern(10_000, 1)).await;
    assert_eq!(mount.data.dirty().files, 1);
    tokio::time::timeout(Duration::from_secs(10), async {
        while mount.data.dirty().files > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(mount.cluster.content(INO).size, 10_000);
}

#[tokio::test]
async fn a_writer_waits_for_a_dead_replica_set_and_goes_on_when_it_is_back() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(10_000, 1)).await;
    mount.flush().await;
    let replicas = mount.cluster.replicas(INO, 0);
    replicas.iter().for_each(|server| server.down.store(true, Ordering::Relaxed));
    mount.write(0, &pattern(10_000, 2)).await;
    let data = mount.data.clone();
    let flush = tokio::spawn(async move { data.flush(INO, false).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Reads and writes of what is in memory go on.
    assert_eq!(mount.read(0, 10_000).await, pattern(10_000, 2));
    mount.write(5_000, b"later").await;
    assert!(!flush.is_finished());
    replicas.iter().for_each(|server| server.down.store(false, Ordering::Relaxed));
    flush.await.unwrap().unwrap();
    mount.reload().await;
    assert_eq!(mount.read(5_000, 5).await, b"later");
    assert_eq!(mount.data.dirty().lost_bytes, 0);

    // The same with an fsync of what is out already.
    mount.write(0, &pattern(10_000, 3)).await;
    mount.flush().await;
    let replicas = mount.cluster.replicas(INO, 0);
    replicas.iter().for_each(|server| server.down.store(true, Ordering::Relaxed));
    let data = mount.data.clone();
    let flush = tokio::spawn(async move { data.flush(INO, true).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!flush.is_finished());
    replicas.iter().for_each(|server| server.down.store(false, Ordering::Relaxed));
    flush.await.unwrap().unwrap();
    mount.cluster.servers.iter().for_each(|server| server.lose_power());
    mount.reload().await;
    assert_eq!(mount.read(0, 10_000).await, pattern(10_000, 3));
}

#[tokio::test]
async fn soft_gives_up_and_says_so() {
    let mount = Mount::new(|config| config.soft_timeout = Some(Duration::from_millis(200))).await;
    mount.write(0, &pattern(10_000, 1)).await;
    mount.reload().await;
    mount.cluster.servers.iter().for_each(|server| server.down.store(true, Ordering::Relaxed));
    assert_eq!(mount.data.read(INO, 0, 100).await, Err(FsError::Io));
}

#[tokio::test]
async fn a_sequential_reader_finds_its_bytes_in_memory() {
    let mount = Mount::new(|_| {}).await;
    let bytes = pattern(6 << 20, 1);
    mount.write(0, &bytes).await;
    mount.reload().await;
    for at in (0..bytes.len()).step_by(32 << 10) {
        assert_eq!(mount.read(at as u64, 32 << 10).await, &bytes[at..at + (32 << 10)]);
    }
    let read: u64 = mount.cluster.servers.iter().map(|s| s.read_bytes.load(Ordering::Relaxed)).sum();
    assert_eq!(read, 6 << 20, "every byte is fetched once");
    let requests: u64 = mount.cluster.servers.iter().map(|s| s.reads.load(Ordering::Relaxed)).sum();
    assert!(requests < 110, "{requests} requests for {} chunks", bytes.len() as u64 / CHUNK);
}

#[tokio::test]
async fn the_read_cache_keeps_to_its_budget() {
    let mount = Mount::new(|config| config.cache_bytes = 1 << 20).await;
    let bytes = pattern(4 << 20, 1);
    mount.write(0, &bytes).await;
    mount.reload().await;
    for round in 0..2 {
        for at in (0..bytes.len()).step_by(64 << 10) {
            assert_eq!(mount.read(at as u64, 64 << 10).await, &bytes[at..at + (64 << 10)], "round {round}");
            assert!(mount.data.dirty().cached_bytes <= 1 << 20);
        }
    }
    mount.data.drop_clean(INO);
    assert_eq!(mount.data.dirty().cached_bytes, 0);
}

#[tokio::test]
async fn times_that_were_set_win_over_those_of_earlier_writes() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(10_000, 1)).await;
    let set = Timestamp::new(1_000_000, 5);
    let change = AttrChange { mtime: Some(TimeChange::To(set)), ..AttrChange::default() };
    let attr = mount.data.set_attr(INO, change, mount.cluster.now()).await.unwrap();
    assert_eq!(mount.data.overlay(INO).unwrap().mtime, set);
    mount.flush().await;
    let content = mount.cluster.content(INO);
    assert_eq!((content.mtime, content.ctime, content.size), (set, attr.ctime, 10_000));
}

#[tokio::test]
async fn a_location_for_reading_is_not_written_to() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(10_000, 1)).await;
    mount.reload().await;
    mount.cluster.map_read_only.store(true, Ordering::Relaxed);
    assert_eq!(mount.read(0, 10_000).await, pattern(10_000, 1));
    mount.write(0, &pattern(10_000, 2)).await;
    mount.data.flush(INO, true).await.unwrap();
    mount.reload().await;
    assert_eq!(mount.read(0, 10_000).await, pattern(10_000, 2));
}

#[tokio::test]
async fn seek_finds_data_and_holes() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, b"abc").await;
    mount.truncate(1000).await;
    assert_eq!(mount.data.seek(INO, 0, true).await, Ok(3));
    assert_eq!(mount.data.seek(INO, 3, false).await, Err(FsError::NoData));
    assert_eq!(mount.data.seek(INO, 1000, true).await, Err(FsError::NoData));
    mount.write(3 * CHUNK + 8192, &pattern(4096, 1)).await;
    mount.write(9 * CHUNK, b"x").await;
    mount.truncate(20 * CHUNK).await;
    assert_eq!(mount.data.seek(INO, 0, false).await, Ok(0));
    assert_eq!(mount.data.seek(INO, 0, true).await, Ok(4096));
    assert_eq!(mount.data.seek(INO, 4096, false).await, Ok(3 * CHUNK + 8192));
    assert_eq!(mount.data.seek(INO, 3 * CHUNK + 8192, true).await, Ok(3 * CHUNK + 12288));
    assert_eq!(mount.data.seek(INO, 4 * CHUNK, false).await, Ok(9 * CHUNK));
    assert_eq!(mount.data.seek(INO, 10 * CHUNK, false).await, Err(FsError::NoData));
    assert_eq!(mount.data.seek(INO, 10 * CHUNK, true).await, Ok(10 * CHUNK));
}

#[tokio::test]
async fn a_range_is_copied_within_the_cluster() {
    let mount = Mount::new(|_| {}).await;
    let other = Ino(3);
    mount.cluster.create(other);
    mount.data.load(other, mount.cluster.content(other));
    let bytes = pattern(200_000, 1);
    mount.write(0, &bytes).await;
    let now = mount.cluster.now();
    assert_eq!(mount.data.copy_range(INO, 1000, other, 50, 1 << 30, now).await, Ok(199_000));
    let copy = mount.data.read(other, 0, 300_000).await.unwrap().concat();
    assert_eq!(copy[50..], bytes[1000..]);
    assert_eq!(mount.data.copy_range(INO, 0, INO, 10, 100, now).await, Err(FsError::Invalid));
    assert_eq!(mount.data.copy_range(INO, 0, INO, 300_000, 100, now).await, Ok(100));
}

#[tokio::test]
async fn a_copy_has_the_holes_of_its_source() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(8192, 1)).await;
    mount.write(3 * CHUNK, &pattern(4096, 2)).await;
    mount.truncate(5 * CHUNK).await;
    let source = mount.read(0, 5 * CHUNK as u32).await;
    for (other, before) in [(Ino(3), 0), (Ino(4), 6 * CHUNK)] {
        mount.cluster.create(other);
        mount.data.load(other, mount.cluster.content(other));
        let now = mount.cluster.now();
        if before > 0 {
            let bytes = pattern(before as usize, 3).into();
            mount.data.write(other, Some(0), bytes, now).await.unwrap();
        }
        assert_eq!(mount.data.copy_range(INO, 0, other, 0, 1 << 40, now).await, Ok(5 * CHUNK));
        let copy = mount.data.read(other, 0, 5 * CHUNK as u32).await.unwrap().concat();
        assert!(copy == source, "over {before} bytes");
        assert_eq!(mount.data.seek(other, 0, true).await, Ok(8192));
        assert_eq!(mount.data.seek(other, 8192, false).await, Ok(3 * CHUNK));
        let behind = mount.data.seek(other, 3 * CHUNK + 4096, false).await;
        assert_eq!(behind, if before > 0 { Ok(5 * CHUNK) } else { Err(FsError::NoData) });
    }
}

/// Random operations against a byte model, with connections that break and servers that go away and come back.
async fn random_workload(seed: u64, steps: usize, faults: bool) {
    let mount = Mount::new(|config| {
        config.dirty_bytes = 512 << 10;
        config.cache_bytes = 512 << 10;
        config.dirty_age = Duration::from_millis(30);
    })
    .await;
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut model: Vec<u8> = Vec::new();
    let mut crippled = false;
    let space = 12 * CHUNK;
    if faults {
        mount.cluster.trip_one_in.store(23, Ordering::Relaxed);
    }
    for step in 0..steps {
        let at = if rng.random_bool(0.3) { rng.random_range(0..6000) } else { rng.random_range(0..space) };
        let len = if rng.random_bool(0.5) { rng.random_range(1..5000) } else { rng.random_range(1..150_000) };
        match rng.random_range(0..20) {
            0..=7 => {
                let offset = if rng.random_bool(0.3) { model.len() as u64 } else { at };
                let end = (offset + len).min(space).max(offset) as usize;
                let bytes = pattern(end - offset as usize, rng.random());
                mount.write(offset, &bytes).await;
                if !bytes.is_empty() {
                    model.resize(model.len().max(end), 0);
                    model[offset as usize..end].copy_from_slice(&bytes);
                }
            }
            8..=11 => {
                let read = mount.read(at, len as u32).await;
                let start = (at as usize).min(model.len());
                let end = ((at + len) as usize).min(model.len());
                assert!(read == model[start..end], "seed {seed}, step {step}: read of {len} at {at}");
            }
            12 => {
                let size = if rng.random_bool(0.2) { 0 } else { at };
                mount.truncate(size).await;
                model.resize(size as usize, 0);
            }
            13 => {
                mount.data.punch(INO, at, at + len, mount.cluster.now()).await.unwrap();
                let (start, end) = ((at as usize).min(model.len()), ((at + len) as usize).min(model.len()));
                model[start..end].fill(0);
            }
            14 => {
                mount.data.allocate(INO, at, mount.cluster.now()).await.unwrap();
                model.resize(model.len().max(at as usize), 0);
            }
            15 | 16 => mount.data.flush(INO, rng.random_bool(0.5)).await.unwrap(),
            17 => mount.reload().await,
            18 if faults && !crippled => {
                // One server is away while everything goes on; its replicas are then left out.
                let victim = rng.random_range(0..3);
                mount.cluster.servers[victim].down.store(true, Ordering::Relaxed);
                mount.data.flush(INO, true).await.unwrap();
                mount.cluster.servers[victim].down.store(false, Ordering::Relaxed);
                crippled = true;
            }
            _ => tokio::time::sleep(Duration::from_millis(rng.random_range(0..20))).await,
        }
    }
    mount.data.flush(INO, true).await.unwrap();
    mount.cluster.servers.iter().for_each(|server| server.lose_power());
    mount.reload().await;
    let read = mount.read(0, 2 * space as u32).await;
    assert!(read == model, "seed {seed}: the whole file after the power was lost");
    mount.cluster.check_replicas(INO);
    assert_eq!(mount.data.dirty().lost_bytes, 0);
}

#[tokio::test]
async fn random_operations_agree_with_a_byte_model() {
    for seed in 0..20 {
        random_workload(seed, 120, false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_agree_while_connections_break_and_servers_go_away() {
    for seed in 100..110 {
        random_workload(seed, 80, true).await;
    }
}

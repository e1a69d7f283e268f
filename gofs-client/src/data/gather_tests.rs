//! Many small files at once, in frames that they share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::poll;
use gofs_proto::chunk::{ItemDone, Write, WriteItem};
use gofs_tree::{FsError, Ino, NamespaceId, SessionId};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::fake::{FakeCluster, FakeServer, SESSION};
use super::gather::{Gather, PATIENCE, Way};
use super::links::ChunkLinks;
use super::{DataConfig, FileData, Replica};
use crate::latencies::Latencies;

const FILE_BYTES: usize = 8 << 10;
/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(60);

/// A mount with so many files, all in one directory.
struct Mount {
    cluster: Arc<FakeCluster>,
    data: Arc<FileData>,
    files: Vec<Ino>,
}

fn contents(ino: Ino, generation: u8) -> Vec<u8> {
    (0..FILE_BYTES).map(|i| (i as u8).wrapping_mul(31) ^ (ino.0 as u8) ^ generation).collect()
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

impl Mount {
    async fn new(files: u64, change: impl FnOnce(&mut DataConfig)) -> Mount {
        let cluster = FakeCluster::start(3).await;
        let mut config = cluster.config();
        change(&mut config);
        let data = FileData::new(config, cluster.clone());
        let files: Vec<Ino> = (10..10 + files).map(Ino).collect();
        for &ino in &files {
            cluster.create(ino);
            data.load(ino, cluster.content(ino));
        }
        Mount { cluster, data, files }
    }

    async fn write(&self, ino: Ino, offset: u64, bytes: &[u8]) {
        let now = self.cluster.now();
        self.data.write(ino, Some(offset), Bytes::copy_from_slice(bytes), now).await.unwrap();
    }

    async fn write_all(&self, generation: u8) {
        for &ino in &self.files {
            self.write(ino, 0, &contents(ino, generation)).await;
        }
    }

    /// As another mount sees it.
    async fn read(&self, ino: Ino) -> Vec<u8> {
        self.data.drop_clean(ino);
        self.data.load(ino, self.cluster.content(ino));
        self.data.read(ino, 0, 1 << 20).await.unwrap().concat()
    }

    async fn check(&self, generation: u8) {
        for &ino in &self.files {
            assert!(self.read(ino).await == contents(ino, generation), "{ino}");
            self.cluster.check_replicas(ino);
        }
    }

    fn sum(&self, of: fn(&FakeServer) -> &AtomicU64) -> u64 {
        self.cluster.servers.iter().map(|server| of(server).load(Ordering::Relaxed)).sum()
    }
}

#[tokio::test]
async fn many_files_flushed_at_once_make_few_requests() {
    let mount = Mount::new(200, |_| {}).await;
    mount.write_all(1).await;
    mount.data.flush_all(true).await.unwrap();
    // Each frame is at two servers. A machine that is busy may send some alone.
    let (writes, syncs) = (mount.sum(|server| &server.writes) / 2, mount.sum(|server| &server.syncs));
    assert!(writes <= 100, "{writes} Write requests for 200 files");
    assert!(syncs <= 100, "{syncs} Sync requests for 200 files on three servers");
    mount.cluster.servers.iter().for_each(|server| server.lose_power());
    mount.check(1).await;
}

#[tokio::test]
async fn an_item_that_is_refused_concerns_its_file_alone() {
    for victim in 0..2 {
        let mount = Mount::new(40, |_| {}).await;
        mount.write_all(1).await;
        mount.data.flush_all(false).await.unwrap();
        let hurt = mount.files[20];
        let chunk = mount.cluster.chunk_id(hurt, 0);
        mount.cluster.replicas(hurt, 0)[victim].chunks.lock().remove(&chunk.0);
        mount.write_all(2).await;
        mount.data.flush_all(true).await.unwrap();
        for &ino in &mount.files {
            assert_eq!(mount.cluster.replicas(ino, 0).len(), if ino == hurt { 1 } else { 2 }, "{ino}");
        }
        mount.check(2).await;
    }
}

#[tokio::test]
async fn an_error_is_told_to_the_file_that_it_concerns() {
    let mount = Mount::new(40, |_| {}).await;
    mount.write_all(1).await;
    mount.data.flush_all(false).await.unwrap();
    let hurt = mount.files[20];
    let chunk = mount.cluster.chunk_id(hurt, 0);
    for server in &mount.cluster.servers {
        server.no_room_for.lock().insert(chunk.0);
    }
    let cursors: Vec<_> = mount.files.iter().map(|&ino| mount.data.error_cursor(ino)).collect();
    mount.write_all(2).await;
    assert_eq!(mount.data.flush_all(true).await, Err(FsError::NoSpace));
    for (&ino, cursor) in mount.files.iter().zip(&cursors) {
        let told = if ino == hurt { Err(FsError::NoSpace) } else { Ok(()) };
        assert_eq!(mount.data.take_error(ino, cursor), told, "{ino}");
        let generation = if ino == hurt { 1 } else { 2 };
        assert!(mount.read(ino).await == contents(ino, generation), "{ino}");
        assert_eq!(mount.cluster.replicas(ino, 0).len(), 2, "{ino}");
    }
    assert_eq!(mount.data.dirty().lost_bytes, FILE_BYTES as u64);
}

#[tokio::test]
async fn a_connection_that_breaks_under_many_writes_loses_none() {
    let mount = Mount::new(60, |_| {}).await;
    mount.write_all(1).await;
    mount.data.flush_all(false).await.unwrap();
    mount.write_all(2).await;
    mount.cluster.servers.iter().for_each(|server| server.forgetful.store(2, Ordering::Relaxed));
    mount.data.flush_all(true).await.unwrap();
    mount.cluster.servers.iter().for_each(|server| server.lose_power());
    mount.check(2).await;
    assert!(mount.files.iter().all(|&ino| mount.cluster.replicas(ino, 0).len() == 2));
}

#[tokio::test]
async fn what_a_server_does_late_does_not_undo_what_was_written_afterwards() {
    for victim in 0..2 {
        let mount = Mount::new(1, |_| {}).await;
        let ino = mount.files[0];
        mount.write_all(1).await;
        mount.data.flush_all(false).await.unwrap();
        // It has the bytes, and does not write them before its connection has ended and all is written through the other one.
        let late = mount.cluster.replicas(ino, 0)[victim].clone();
        late.late.store(1, Ordering::Relaxed);
        mount.write_all(2).await;
        mount.data.flush_all(false).await.unwrap();
        assert_eq!(late.late.load(Ordering::Relaxed), 0);
        // Too many pieces for a frame that goes to both at once.
        let mut expected = contents(ino, 2);
        for piece in 0..70 {
            mount.write(ino, piece * 100, &[piece as u8; 50]).await;
            expected[piece as usize * 100..][..50].fill(piece as u8);
        }
        mount.data.flush_all(false).await.unwrap();
        late.catch_up();
        assert!(mount.read(ino).await == expected, "victim {victim}");
        mount.cluster.check_replicas(ino);
        assert_eq!(mount.cluster.replicas(ino, 0).len(), 2, "it was there again");
    }
}

#[tokio::test]
async fn random_files_agree_while_connections_break_and_a_server_goes_away() {
    for seed in 0..6 {
        let mount = Mount::new(24, |config| config.dirty_age = Duration::from_millis(30)).await;
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut model: Vec<Vec<u8>> = vec![Vec::new(); mount.files.len()];
        mount.cluster.trip_one_in.store(29, Ordering::Relaxed);
        for round in 0..12 {
            for (&ino, bytes) in mount.files.iter().zip(&mut model) {
                let at = rng.random_range(0..=bytes.len().min(60_000));
                let len = rng.random_range(1..20_000);
                let new = vec![rng.random::<u8>(); len];
                mount.write(ino, at as u64, &new).await;
                bytes.resize(bytes.len().max(at + len), 0);
                bytes[at..at + len].copy_from_slice(&new);
            }
            if round == 6 {
                mount.cluster.servers[seed as usize % 3].down.store(true, Ordering::Relaxed);
            }
            mount.data.flush_all(rng.random()).await.unwrap();
            mount.cluster.servers.iter().for_each(|server| server.down.store(false, Ordering::Relaxed));
        }
        mount.data.flush_all(true).await.unwrap();
        mount.cluster.servers.iter().for_each(|server| server.lose_power());
        for (&ino, bytes) in mount.files.iter().zip(&model) {
            assert!(mount.read(ino).await == *bytes, "seed {seed}: {ino}");
            mount.cluster.check_replicas(ino);
        }
        assert_eq!(mount.data.dirty().lost_bytes, 0, "seed {seed}");
    }
}

/// The gathering of writes by itself, to one server, which holds its answers.
struct Bench {
    cluster: Arc<FakeCluster>,
    gather: Gather<Write>,
    session: Arc<AtomicU64>,
}

impl Bench {
    async fn new(patience: Duration) -> Bench {
        let cluster = FakeCluster::start(1).await;
        let links = ChunkLinks::new(Bytes::from_static(b"cluster"), Arc::new(Latencies::of_requests()));
        let session = Arc::new(AtomicU64::new(SESSION.0));
        let current = session.clone();
        let now = Arc::new(move || SessionId(current.load(Ordering::Relaxed)));
        let gather = Gather::new(Arc::new(links), NamespaceId(1), now, patience);
        let bench = Bench { cluster, gather, session };
        assert!(bench.write(1).await.is_some(), "connected");
        bench.server().holding.store(true, Ordering::Relaxed);
        bench
    }

    fn server(&self) -> &FakeServer {
        &self.cluster.servers[0]
    }

    fn release(&self) {
        self.server().holding.store(false, Ordering::Relaxed);
    }

    fn has(&self, chunk: u64) -> bool {
        self.server().chunks.lock().contains_key(&chunk)
    }

    fn writes(&self) -> u64 {
        self.server().writes.load(Ordering::Relaxed)
    }

    fn write(&self, chunk: u64) -> impl Future<Output = Option<Vec<ItemDone>>> {
        let server = self.server();
        let way = Way {
            session: SESSION,
            servers: vec![Replica { server: server.id, address: server.address.clone() }],
        };
        let bytes = Bytes::from(vec![chunk as u8; 4096]);
        let crc32c = crc32c::crc32c(&bytes);
        let item = WriteItem { chunk, version: 1, offset: 0, len: 4096, crc32c, create: true };
        self.gather.send(way, vec![item], vec![bytes])
    }
}

#[tokio::test]
async fn a_lone_write_leaves_before_it_first_waits_and_those_behind_it_leave_together() {
    let bench = Bench::new(LONG).await;
    let mut lone = Box::pin(bench.write(2));
    assert!(poll!(&mut lone).is_pending());
    // Not polled again: it is on its way.
    eventually("the lone write arrives", || bench.has(2)).await;
    let mut behind: Vec<_> = (3..50).map(|chunk| Box::pin(bench.write(chunk))).collect();
    for write in &mut behind {
        assert!(poll!(write).is_pending());
    }
    bench.release();
    assert!(lone.await.is_some());
    for write in behind {
        assert!(write.await.is_some_and(|done| done == [ItemDone { blocks_4k: 1 }]));
    }
    assert_eq!(bench.writes(), 3, "one to connect, the lone one, and all others");
    assert!((2..50).all(|chunk| bench.has(chunk)));
}

#[tokio::test]
async fn a_write_does_not_wait_for_long_behind_one_that_has_trouble() {
    let bench = Bench::new(PATIENCE).await;
    let mut stuck = Box::pin(bench.write(2));
    assert!(poll!(&mut stuck).is_pending());
    assert_eq!(bench.write(3).await, None, "it is to go alone");
    assert!(!bench.has(3));
    bench.release();
    assert!(stuck.await.is_some());
}

#[tokio::test]
async fn what_its_author_gave_up_is_not_sent() {
    let bench = Bench::new(LONG).await;
    let mut first = Box::pin(bench.write(2));
    let mut given_up = Box::pin(bench.write(3));
    let mut last = Box::pin(bench.write(4));
    for write in [&mut first, &mut given_up, &mut last] {
        assert!(poll!(write).is_pending());
    }
    drop(given_up);
    bench.release();
    assert!(first.await.is_some() && last.await.is_some());
    assert!(bench.has(4) && !bench.has(3));

    // One that was sent goes its way without its author, and those behind it too.
    bench.server().holding.store(true, Ordering::Relaxed);
    let (mut first, mut behind) = (Box::pin(bench.write(5)), Box::pin(bench.write(6)));
    assert!(poll!(&mut first).is_pending() && poll!(&mut behind).is_pending());
    drop(first);
    bench.release();
    assert!(behind.await.is_some());
    eventually("the first arrives", || bench.has(5)).await;
}

#[tokio::test]
async fn what_waits_when_its_session_ends_is_not_sent() {
    let bench = Bench::new(LONG).await;
    let (mut first, mut behind) = (Box::pin(bench.write(2)), Box::pin(bench.write(3)));
    assert!(poll!(&mut first).is_pending() && poll!(&mut behind).is_pending());
    bench.session.store(SESSION.0 + 1, Ordering::Relaxed);
    bench.release();
    assert!(first.await.is_some(), "it was sent before");
    assert_eq!(behind.await, None);
    assert!(!bench.has(3));
}

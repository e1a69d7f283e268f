//! The parts that need chunks, with a chunk directory made of paper.

use std::net::SocketAddr;
use std::sync::Arc;

use gofs_proto::frame::Frame;
use gofs_proto::kind::Request;
use gofs_proto::session as wire;
use gofs_proto::{CallError, Link, LinkHandler, PROTOCOL_VERSION, convert, door};
use gofs_tree::{
    ChunkId, ChunkIndex, ChunkServerId, ChunkVersion, Edit, EditOp, FsError, Ino, Mode, Name, NewNode,
    ROOT_INO, SessionId, Timestamp,
};
use parking_lot::Mutex;
use tokio::net::TcpListener;

use super::{BoxFuture, Chunks, Service};
use crate::chunks::{Capacity, Location, Servers};
use crate::command::{Command, NamespaceConfig};
use crate::fixture::GroupOfOne;
use crate::session::SessionTimes;

/// Three servers; remembers what it was told.
#[derive(Default)]
struct Paper {
    assigned: Mutex<Vec<ChunkId>>,
    /// Where the last one was said to be.
    place: Mutex<Vec<ChunkServerId>>,
    /// Chunks whose version was moved.
    moved: Mutex<Vec<ChunkId>>,
    absent: Mutex<Vec<ChunkId>>,
    fenced: Mutex<Vec<SessionId>>,
    full: Mutex<Option<FsError>>,
    /// Nobody is told where a chunk is written while it is kept; and that somebody asks.
    writing: tokio::sync::Mutex<()>,
    asked: tokio::sync::Notify,
}

fn servers() -> Servers {
    (1..=2).map(|n| (ChunkServerId(n), format!("127.0.0.1:{n}"))).collect()
}

impl Chunks for Paper {
    fn for_reading(&self, chunk: ChunkId) -> Location {
        if self.absent.lock().contains(&chunk) {
            return Location::Absent { may_return: false };
        }
        assert!(self.assigned.lock().contains(&chunk), "{chunk} was never assigned");
        Location::At { version: ChunkVersion(1), servers: servers() }
    }
    fn for_writing(&self, chunk: ChunkId, _: bool) -> BoxFuture<'_, Location> {
        Box::pin(async move {
            self.asked.notify_one();
            let _told = self.writing.lock().await;
            self.for_reading(chunk)
        })
    }
    fn place(&self, _: u32) -> Result<Servers, FsError> {
        self.full.lock().map_or_else(|| Ok(servers()), Err)
    }
    fn assigned(&self, chunk: ChunkId, _: ChunkVersion, servers: &[ChunkServerId]) {
        self.assigned.lock().push(chunk);
        *self.place.lock() = servers.to_vec();
    }
    fn replica_failed<'a>(
        &'a self,
        chunk: ChunkId,
        version: ChunkVersion,
        failed: &'a [ChunkServerId],
        _: bool,
    ) -> BoxFuture<'a, Result<(ChunkVersion, Servers), FsError>> {
        self.moved.lock().push(chunk);
        let left = servers().into_iter().filter(|(server, _)| !failed.contains(server)).collect();
        Box::pin(async move { Ok((version.next(), left)) })
    }
    fn bad_replica(&self, _: ChunkId, _: ChunkServerId, _: bool) {}
    fn capacity(&self) -> Capacity {
        Capacity { total_bytes: 1000, free_bytes: 600 }
    }
    fn fence(&self, session: SessionId) -> BoxFuture<'_, ()> {
        self.fenced.lock().push(session);
        Box::pin(async {})
    }
}

struct Quiet;

impl LinkHandler for Quiet {
    fn on_request(&self, link: &Arc<Link>, request: Frame) {
        link.reply::<wire::Recall>(request.id, &wire::RecallReply { open: false }, Vec::new());
    }
    fn on_close(&self, _: &Arc<Link>) {}
}

/// Gives back what it is asked for, and remembers what that was.
#[derive(Default)]
struct Recalled(Mutex<Vec<Ino>>);

impl LinkHandler for Recalled {
    fn on_request(&self, link: &Arc<Link>, request: Frame) {
        if request.kind == wire::Recall::KIND {
            let recall = <wire::Recall as prost::Message>::decode(request.header).unwrap();
            self.0.lock().push(Ino(recall.ino));
        }
        link.reply::<wire::Recall>(request.id, &wire::RecallReply { open: false }, Vec::new());
    }
    fn on_close(&self, _: &Arc<Link>) {}
}

struct World {
    paper: Arc<Paper>,
    link: Arc<Link>,
    address: SocketAddr,
    one: GroupOfOne,
}

async fn world(quota_bytes: u64) -> World {
    let one = GroupOfOne::start().await;
    let config = NamespaceConfig { quota_bytes, ..NamespaceConfig::default() };
    let command = Command::CreateNamespace { name: "demo".into(), config, time: Timestamp::default() };
    one.group.propose(command).await.unwrap();
    let paper = Arc::new(Paper::default());
    let service = Service::new(one.group.clone(), paper.clone(), SessionTimes::default());
    tokio::spawn(service.clone().run());
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            door::which(&stream).await.unwrap();
            service.accept(stream).unwrap();
        }
    });
    World { paper, link: mount(address, Arc::new(Quiet)).await, address, one }
}

async fn mount(address: SocketAddr, handler: Arc<dyn LinkHandler>) -> Arc<Link> {
    let hello = wire::Hello {
        version: PROTOCOL_VERSION,
        oldest_version: PROTOCOL_VERSION,
        namespace: "demo".into(),
        ..Default::default()
    };
    loop {
        let link = Link::connect(address, handler.clone(), std::time::Duration::from_secs(5)).await.unwrap();
        if link.call(&hello, Vec::new()).await.is_ok() {
            return link;
        }
        link.close();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

impl World {
    async fn call<R: Request>(&self, request: R) -> Result<R::Reply, CallError> {
        self.link.call(&request, Vec::new()).await.map(|(reply, _)| reply)
    }

    async fn file(&self) -> Ino {
        let op = EditOp::Create {
            parent: ROOT_INO,
            name: Name::new(b"f").unwrap(),
            ino: Ino(0),
            node: NewNode::File,
            mode: Mode::new(0o600),
            umask: Mode::new(0),
            uid: 0,
            gid: 0,
        };
        let edit = convert::edit_to_wire(&Edit { time: Timestamp::default(), op });
        let request = wire::Edits { first_seq: 1, edits: vec![edit], ..Default::default() };
        Ino(self.call(request).await.unwrap().results[0].ino)
    }
}

fn code(error: CallError) -> wire::failure::Code {
    let CallError::Refused(failure) = error else { panic!("{error}") };
    failure.code()
}

#[tokio::test(flavor = "multi_thread")]
async fn allocating_twice_gives_the_same_chunks() {
    let world = world(0).await;
    let ino = world.file().await;
    let ask = |indexes: &[u32]| wire::Allocate { ino: ino.0, indexes: indexes.to_vec(), blank: Vec::new() };
    let first = world.call(ask(&[3, 0, 3])).await.unwrap().chunks;
    assert_eq!(first.iter().map(|chunk| chunk.index).collect::<Vec<_>>(), [0, 3]);
    let again = world.call(ask(&[0, 1, 3])).await.unwrap().chunks;
    assert_eq!((&again[0], &again[2]), (&first[0], &first[1]));
    assert_eq!(world.paper.assigned.lock().len(), 3);
    let map = |first, count| wire::ChunkMap { ino: ino.0, first, count };
    assert_eq!(world.call(map(0, 100)).await.unwrap().chunks, again);
    assert_eq!(world.call(map(1, 2)).await.unwrap().chunks, again[1..2]);
    let node = world.call(wire::Fetch { ino: ino.0, want: 1 }).await.unwrap().node.unwrap();
    assert!(node.has_chunks, "although nothing was written yet");
    // One that no server has does not hide the others.
    world.paper.absent.lock().push(ChunkId(again[1].chunk));
    let chunks = world.call(map(0, 100)).await.unwrap().chunks;
    assert_eq!((chunks.len(), chunks[1].replicas.len(), chunks[2].replicas.len()), (3, 0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_chunks_that_comes_twice_at_once_gives_the_same_chunks() {
    let world = world(0).await;
    let ino = world.file().await;
    for index in 0..50 {
        let ask = || wire::Allocate { ino: ino.0, indexes: vec![index], blank: Vec::new() };
        let (one, other) = tokio::join!(world.call(ask()), world.call(ask()));
        assert_eq!(one.unwrap().chunks, other.unwrap().chunks);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_the_file_was_given_by_an_earlier_request_meanwhile_is_found_by_asking_again() {
    let world = world(0).await;
    let ino = world.file().await;
    let ask = |indexes: &[u32]| wire::Allocate { ino: ino.0, indexes: indexes.to_vec(), blank: Vec::new() };
    world.call(ask(&[1])).await.unwrap();
    let earlier = ChunkId(7);
    let give = async {
        let kept = world.paper.writing.lock().await;
        world.paper.asked.notified().await;
        let op = EditOp::AddChunk { ino, index: ChunkIndex(0), chunk: earlier };
        let edits = vec![Edit { time: Timestamp::default(), op }];
        let namespace = world.one.group.state().namespace_by_name("demo").unwrap().unwrap().id;
        world.one.group.propose(Command::ServerEdits { namespace, edits }).await.unwrap();
        world.paper.assigned(earlier, ChunkVersion(1), &[]);
        drop(kept);
    };
    let ((), refused) = tokio::join!(give, world.call(ask(&[0, 1])));
    assert_eq!(code(refused.unwrap_err()), wire::failure::Code::Retry);
    let chunks = world.call(ask(&[0, 1])).await.unwrap().chunks;
    assert_eq!(chunks[0].chunk, earlier.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_allocated_says_why() {
    let world = world(0).await;
    let ino = world.file().await;
    let ask = |ino: u64| wire::Allocate { ino, indexes: vec![0], blank: Vec::new() };
    assert_eq!(code(world.call(ask(ROOT_INO.0)).await.unwrap_err()), wire::failure::Code::Fs);
    *world.paper.full.lock() = Some(FsError::Busy);
    assert_eq!(code(world.call(ask(ino.0)).await.unwrap_err()), wire::failure::Code::Retry);
    *world.paper.full.lock() = Some(FsError::NoSpace);
    let CallError::Refused(failure) = world.call(ask(ino.0)).await.unwrap_err() else { panic!() };
    assert_eq!(failure.to_fs_error(), Ok(Some(FsError::NoSpace)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reserved_chunk_and_its_bytes_are_shown_by_one_batch() {
    let world = world(0).await;
    let ino = world.file().await;
    let reserved = world.call(wire::ReserveChunks { count: 3 }).await.unwrap().chunks;
    assert!(reserved.iter().all(|chunk| chunk.version == 1 && chunk.replicas.len() == 2));
    let batch = |first_seq, chunk: u64, index| {
        let ops = [
            EditOp::AddChunk { ino, index: ChunkIndex(index), chunk: ChunkId(chunk) },
            EditOp::Extend {
                ino,
                size: 5000,
                mtime: Timestamp::default(),
                blocks_4k: vec![(ChunkIndex(index), 2)],
                clear_inline: false,
            },
        ];
        let edit = |op| convert::edit_to_wire(&Edit { time: Timestamp::default(), op });
        wire::Batch {
            first_seq,
            answered_seq: first_seq - 1,
            edits: ops.map(edit).to_vec(),
            placed: vec![wire::Placed { chunk, servers: vec![1, 2] }],
        }
    };
    let errors = |reply: &wire::BatchReply| {
        reply.results.iter().map(|result| FsError::from_code(result.fs_error)).collect::<Vec<_>>()
    };
    let first = batch(2, reserved[1].chunk, 0);
    let reply = world.call(first.clone()).await.unwrap();
    assert_eq!(errors(&reply), [None, None]);
    assert_eq!(reply.results[1].attr.as_ref().map(|attr| attr.size), Some(5000));
    assert_eq!(*world.paper.assigned.lock(), [ChunkId(reserved[1].chunk)], "readers find it there");
    // Its answer was lost.
    assert_eq!(world.call(first).await.unwrap(), reply);
    let map = world.call(wire::ChunkMap { ino: ino.0, first: 0, count: 9 }).await.unwrap().chunks;
    assert_eq!((map.len(), map[0].chunk, map[0].blocks_4k), (1, reserved[1].chunk, 2));
    // One that is in use, one that nobody gave out, one for a range that has one: no bytes are shown without.
    let invalid = vec![Some(FsError::Invalid); 2];
    assert_eq!(errors(&world.call(batch(4, reserved[1].chunk, 1)).await.unwrap()), invalid);
    assert_eq!(errors(&world.call(batch(6, 999, 1)).await.unwrap()), invalid);
    let again = errors(&world.call(batch(8, reserved[0].chunk, 0)).await.unwrap());
    assert_eq!(again[0], Some(FsError::Exists));
    assert_eq!(world.paper.assigned.lock().len(), 2, "and of those no place is remembered");
    // What the leader allocates by itself is another.
    let own = world
        .call(wire::Allocate { ino: ino.0, indexes: vec![7], blank: Vec::new() })
        .await
        .unwrap()
        .chunks
        .remove(0);
    assert!(own.chunk > reserved[2].chunk);
    *world.paper.full.lock() = Some(FsError::NoSpace);
    let CallError::Refused(failure) = world.call(wire::ReserveChunks { count: 1 }).await.unwrap_err() else {
        panic!()
    };
    assert_eq!(failure.to_fs_error(), Ok(Some(FsError::NoSpace)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_replica_is_left_out_of_ones_own_chunks_only() {
    let world = world(0).await;
    let ino = world.file().await;
    let chunk = world
        .call(wire::Allocate { ino: ino.0, indexes: vec![0], blank: Vec::new() })
        .await
        .unwrap()
        .chunks
        .remove(0);
    let failed = wire::ReplicaFailed {
        ino: ino.0,
        index: 0,
        chunk: chunk.chunk,
        version: 1,
        servers: vec![1],
        blank: false,
    };
    let moved = world.call(failed.clone()).await.unwrap().chunk.unwrap();
    assert_eq!((moved.version, moved.replicas.len(), moved.replicas[0].server), (2, 1, 2));
    for wrong in
        [wire::ReplicaFailed { chunk: 99, ..failed.clone() }, wire::ReplicaFailed { index: 1, ..failed }]
    {
        assert_eq!(code(world.call(wrong).await.unwrap_err()), wire::failure::Code::Fs);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_where_a_chunk_is_that_its_writer_calls_blank_before_it_has_a_place() {
    let world = world(0).await;
    let ino = world.file().await;
    let allocate = wire::Allocate { ino: ino.0, indexes: vec![0], blank: Vec::new() };
    let chunk = world.call(allocate).await.unwrap().chunks.remove(0);
    let (recalled, fetch) = (Arc::new(Recalled::default()), wire::Fetch { ino: ino.0, want: 1 });
    let other = mount(world.address, recalled.clone()).await;
    for (blank, expected) in [(false, Vec::new()), (true, vec![ino])] {
        other.call(&fetch, Vec::new()).await.unwrap();
        let failed = wire::ReplicaFailed {
            ino: ino.0,
            index: 0,
            chunk: chunk.chunk,
            version: 1,
            servers: vec![1],
            blank,
        };
        world.call(failed).await.unwrap();
        assert_eq!(*recalled.0.lock(), expected, "blank: {blank}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_servers_that_a_writer_gave_a_chunk_to_count_although_fewer_are_asked_for_by_then() {
    let world = world(0).await;
    let ino = world.file().await;
    let reserved = world.call(wire::ReserveChunks { count: 2 }).await.unwrap().chunks;
    let add = |first_seq, index: usize| {
        let chunk = reserved[index].chunk;
        let op = EditOp::AddChunk { ino, index: ChunkIndex(index as u32), chunk: ChunkId(chunk) };
        wire::Batch {
            first_seq,
            answered_seq: first_seq - 1,
            edits: vec![convert::edit_to_wire(&Edit { time: Timestamp::default(), op })],
            placed: vec![wire::Placed { chunk, servers: vec![1, 2] }],
        }
    };
    world.call(add(2, 0)).await.unwrap();
    assert_eq!(*world.paper.moved.lock(), []);
    let id = world.one.group.state().namespace_by_name("demo").unwrap().unwrap().id;
    let config = NamespaceConfig { replicas: 1, ..NamespaceConfig::default() };
    world.one.group.propose(Command::SetNamespace { id, config }).await.unwrap();
    world.call(add(3, 1)).await.unwrap();
    assert_eq!(*world.paper.place.lock(), [ChunkServerId(1), ChunkServerId(2)]);
    assert_eq!(*world.paper.moved.lock(), [ChunkId(reserved[1].chunk)], "a later leader knows, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn statfs_shows_the_share_of_the_namespace() {
    let free = world(0).await.call(wire::Statfs {}).await.unwrap();
    assert_eq!((free.total_bytes, free.free_bytes), (500, 300), "two replicas of everything");
    let bound = world(200).await.call(wire::Statfs {}).await.unwrap();
    assert_eq!((bound.total_bytes, bound.free_bytes), (200, 200));
}

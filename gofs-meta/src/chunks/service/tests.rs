//! The service, the heartbeat door and the group together, with ChunkServers that keep no bytes.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use gofs_proto::cluster::{self, heartbeat_client::HeartbeatClient, instruction, report};
use gofs_tree::{
    ChunkId, ChunkIndex, ChunkServerId, ChunkVersion, EditOp, Ino, Mode, Name, NewNode, ROOT_INO, SessionId,
    Timestamp,
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};

use super::*;
use crate::{
    chunks::{Location, READ_ONLY, leader::Leader},
    command::{Command, CommandOutcome, NamespaceConfig},
    fixture::GroupOfOne,
    group::MetaGroup,
};

mod moves;

const FILE: Ino = Ino(2);
const CLUSTER: [u8; 16] = [7; 16];

/// A MetaServer's chunk side on a port of its own.
struct Meta {
    one: GroupOfOne,
    chunks: Arc<ChunkService>,
    address: String,
    server: JoinHandle<()>,
}

fn config() -> ChunkConfig {
    ChunkConfig {
        heartbeat: Duration::from_millis(50),
        dead_after: Duration::from_millis(600),
        repair_after: Duration::from_millis(200),
        settle: Duration::from_millis(200),
        walk_every: Duration::from_millis(100),
        orphan_grace: Duration::from_millis(200),
        forget_after: Duration::from_secs(1),
        promise: Duration::from_millis(500),
        copy_retry: Duration::from_millis(100),
        answer_timeout: Duration::from_millis(500),
        write_patience: Duration::from_millis(200),
        place_patience: Duration::from_millis(1000),
        extra_grace: Duration::from_millis(200),
        ..ChunkConfig::default()
    }
}

impl Meta {
    async fn start() -> Meta {
        Meta::with(config()).await
    }

    async fn with(config: ChunkConfig) -> Meta {
        let one = GroupOfOne::start().await;
        if one.group.state().cluster().unwrap().is_none() {
            one.group.propose(Command::InitCluster { cluster: CLUSTER }).await.unwrap();
        }
        let (chunks, address, server) = serve(&one.group, config).await;
        Meta { one, chunks, address, server }
    }

    fn cluster(&self) -> Vec<u8> {
        self.one.group.state().cluster().unwrap().unwrap().to_vec()
    }

    /// The chunk side starts anew, knowing nothing but the state.
    async fn restart(&mut self) {
        self.server.abort();
        let (chunks, address, server) = serve(&self.one.group, config()).await;
        self.chunks = chunks;
        self.address = address;
        self.server = server;
    }

    async fn make_file(&mut self, replicas: u32) {
        let config = NamespaceConfig { replicas, ..NamespaceConfig::default() };
        let time = Timestamp::new(1, 0);
        let made = Command::CreateNamespace { name: "demo".into(), config, time };
        let CommandOutcome::Namespace(namespace) = self.one.group.propose(made).await.unwrap() else {
            panic!()
        };
        self.one.open_session(namespace).await;
        let create = EditOp::Create {
            parent: ROOT_INO,
            name: Name::new(b"file").unwrap(),
            ino: FILE,
            node: NewNode::File,
            mode: Mode::new(0o644),
            umask: Mode::new(0),
            uid: 0,
            gid: 0,
        };
        self.one.edit(create).await;
    }

    /// What Allocate does, and then the client's write to all replicas.
    async fn write_chunk(&mut self, index: u32, goal: u32, servers: &[Fake]) -> ChunkId {
        let chunk = ChunkId(u64::from(index) + 1);
        let version = ChunkVersion(1);
        let placed = self.chunks.place(goal).unwrap();
        self.one.edit(EditOp::AddChunk { ino: FILE, index: ChunkIndex(index), chunk }).await;
        let ids: Vec<ChunkServerId> = placed.iter().map(|(id, _)| *id).collect();
        self.chunks.assigned(chunk, version, &ids);
        for server in servers.iter().filter(|server| ids.contains(&server.id)) {
            server.put(chunk, version).await;
        }
        let size = (u64::from(index) + 1) << 20;
        let blocks_4k = vec![(ChunkIndex(index), 1)];
        let mtime = Timestamp::new(1, 0);
        self.one.edit(EditOp::Extend { ino: FILE, size, mtime, blocks_4k, clear_inline: false }).await;
        chunk
    }
}

/// Whether the leader knows from the server itself that it has the chunk.
fn has_told(meta: &Meta, server: ChunkServerId, chunk: ChunkId) -> bool {
    let leader = meta.chunks.leader.lock();
    leader.directory.entry(chunk).and_then(|entry| entry.on(server)).is_some_and(|replica| replica.confirmed)
}

async fn serve(group: &Arc<MetaGroup>, config: ChunkConfig) -> (Arc<ChunkService>, String, JoinHandle<()>) {
    let chunks = ChunkService::new(group.clone(), config);
    until("the chunk side has taken up the term", || chunks.leader.lock().term != 0).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let door = chunks.heartbeat_service();
    let server = tokio::spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        tonic::transport::Server::builder().add_service(door).serve_with_incoming(incoming).await.unwrap();
    });
    (chunks, address, server)
}

#[derive(Default)]
struct Held {
    chunks: BTreeMap<ChunkId, (ChunkVersion, bool, bool)>,
    fenced: Vec<u64>,
    /// Number of the last Status that was heard.
    heard: u64,
    /// Chunks that were copied to here.
    copied: Vec<ChunkId>,
    /// Does not answer instructions.
    mute: bool,
}

/// A ChunkServer that keeps versions only.
struct Fake {
    id: ChunkServerId,
    held: Arc<Mutex<Held>>,
    reports: mpsc::Sender<cluster::Report>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn body(body: report::Body) -> cluster::Report {
    cluster::Report { body: Some(body) }
}

fn line(chunk: ChunkId, held: Option<&(ChunkVersion, bool, bool)>) -> cluster::ChunkState {
    cluster::ChunkState {
        chunk: chunk.0,
        version: held.map_or(0, |held| held.0.0),
        gone: held.is_none(),
        corrupt: held.is_some_and(|held| held.1),
        doubtful: held.is_some_and(|held| held.2),
    }
}

impl Fake {
    async fn start(
        meta: &Meta,
        id: u64,
        held: Arc<Mutex<Held>>,
        cluster: Vec<u8>,
    ) -> Result<Fake, tonic::Status> {
        let mut client = HeartbeatClient::connect(format!("http://{}", meta.address)).await.unwrap();
        let (reports, outgoing) = mpsc::channel(64);
        let register = cluster::Register {
            version: gofs_proto::PROTOCOL_VERSION,
            oldest_version: gofs_proto::OLDEST_PROTOCOL_VERSION,
            cluster: cluster.into(),
            server: id,
            address: format!("127.0.0.1:{}", 20_000 + id),
            labels: Default::default(),
        };
        reports.send(body(report::Body::Register(register))).await.unwrap();
        let mut instructions = client.beat(ReceiverStream::new(outgoing)).await?.into_inner();
        let first = instructions.message().await?.unwrap();
        assert!(matches!(first.body, Some(instruction::Body::Accepted(_))), "{first:?}");
        let lines = held.lock().chunks.iter().map(|(&chunk, held)| line(chunk, Some(held))).collect();
        let list = cluster::ChunkReport { chunks: lines, full: true, last: true };
        reports.send(body(report::Body::Chunks(list))).await.unwrap();
        let beat = tokio::spawn({
            let reports = reports.clone();
            async move {
                for number in 1.. {
                    let disk = cluster::Disk {
                        path: "/d".into(),
                        capacity_bytes: 100 << 30,
                        free_bytes: 50 << 30,
                        ..Default::default()
                    };
                    let status = cluster::Status { disks: vec![disk], number, ..Default::default() };
                    if reports.send(body(report::Body::Status(status))).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
        let obey = tokio::spawn({
            let (held, reports) = (held.clone(), reports.clone());
            async move {
                while let Ok(Some(instruction)) = instructions.message().await {
                    if held.lock().mute {
                        continue;
                    }
                    let (change, error) = obey(&mut held.lock(), instruction.body.unwrap());
                    if let Some(change) = change {
                        let report = cluster::ChunkReport { chunks: vec![change], full: false, last: false };
                        let _ = reports.send(body(report::Body::Chunks(report))).await;
                    }
                    let done = cluster::Done { id: instruction.id, error };
                    let _ = reports.send(body(report::Body::Done(done))).await;
                }
            }
        });
        Ok(Fake { id: ChunkServerId(id), held, reports, tasks: vec![beat, obey] })
    }

    async fn put(&self, chunk: ChunkId, version: ChunkVersion) {
        self.held.lock().chunks.insert(chunk, (version, false, false));
        self.tell(chunk).await;
    }

    async fn tell(&self, chunk: ChunkId) {
        let change = line(chunk, self.held.lock().chunks.get(&chunk));
        let report = cluster::ChunkReport { chunks: vec![change], full: false, last: false };
        self.reports.send(body(report::Body::Chunks(report))).await.unwrap();
    }

    fn version(&self, chunk: ChunkId) -> Option<ChunkVersion> {
        self.held.lock().chunks.get(&chunk).map(|held| held.0)
    }
}

fn obey(held: &mut Held, instruction: instruction::Body) -> (Option<cluster::ChunkState>, String) {
    let (chunk, error) = match instruction {
        instruction::Body::SetVersion(set) => {
            let chunk = ChunkId(set.chunk);
            match held.chunks.get_mut(&chunk) {
                Some(held) if held.0.0 == set.from => {
                    *held = (ChunkVersion(set.to), held.1, false);
                    (chunk, String::new())
                }
                _ => return (None, "not at that version".into()),
            }
        }
        instruction::Body::Copy(copy) => {
            assert!(!copy.from.is_empty());
            held.copied.push(ChunkId(copy.chunk));
            held.chunks.insert(ChunkId(copy.chunk), (ChunkVersion(copy.version), false, false));
            (ChunkId(copy.chunk), String::new())
        }
        instruction::Body::Delete(delete) => {
            let chunk = ChunkId(delete.chunk);
            if held.chunks.get(&chunk).is_some_and(|held| held.0.0 > delete.version) {
                return (None, "newer".into());
            }
            held.chunks.remove(&chunk);
            (chunk, String::new())
        }
        instruction::Body::Verify(verify) => (ChunkId(verify.chunk), String::new()),
        instruction::Body::Fence(fence) => {
            held.fenced.push(fence.session);
            return (None, String::new());
        }
        instruction::Body::Heard(heard) => {
            held.heard = heard.number;
            return (None, String::new());
        }
        instruction::Body::Accepted(_) | instruction::Body::Members(_) => {
            return (None, "accepted twice".into());
        }
    };
    (Some(line(chunk, held.chunks.get(&chunk))), error)
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "did not come about: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn fakes(meta: &Meta, ids: std::ops::RangeInclusive<u64>) -> Vec<Fake> {
    let mut servers = Vec::new();
    for id in ids {
        servers.push(Fake::start(meta, id, Arc::default(), Vec::new()).await.unwrap());
    }
    let count = servers.len();
    until("servers are described", || {
        meta.chunks.servers().iter().filter(|server| server.alive && !server.disks.is_empty()).count()
            == count
    })
    .await;
    servers
}

fn holders(servers: &[Fake], chunk: ChunkId, version: ChunkVersion) -> usize {
    servers.iter().filter(|server| server.version(chunk) == Some(version)).count()
}

fn committed(meta: &Meta, chunk: ChunkId) -> ChunkVersion {
    meta.one.group.state().chunk(chunk).unwrap().unwrap().version
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_is_replaced_and_what_it_brings_back_goes() {
    let mut meta = Meta::start().await;
    let mut servers = fakes(&meta, 1..=3).await;
    meta.make_file(2).await;
    let chunk = meta.write_chunk(0, 2, &servers).await;
    let Location::At { version, servers: placed } = meta.chunks.for_reading(chunk) else { panic!() };
    assert_eq!((version, placed.len()), (ChunkVersion(1), 2));

    let at = servers.iter().position(|server| server.id == placed[0].0).unwrap();
    let dead = servers.remove(at);
    let (id, held) = (dead.id, dead.held.clone());
    drop(dead);
    until("readers are told of the one that is left", || {
        matches!(meta.chunks.for_reading(chunk), Location::At { version: READ_ONLY, servers } if servers.len() == 1)
    })
    .await;
    until("the goal is reached again", || {
        committed(&meta, chunk) > ChunkVersion(1) && holders(&servers, chunk, committed(&meta, chunk)) == 2
    })
    .await;
    let raised = committed(&meta, chunk);
    until("the location is whole", || {
        matches!(meta.chunks.for_reading(chunk), Location::At { version, servers } if version == raised && servers.len() == 2)
    })
    .await;

    assert_eq!(held.lock().chunks[&chunk].0, ChunkVersion(1));
    let back = Fake::start(&meta, id.0, held, meta.cluster()).await.unwrap();
    until("the stale replica is deleted", || back.version(chunk).is_none()).await;
    let status = meta.chunks.status().unwrap();
    assert_eq!((status.servers_alive, status.under_replicated, status.lost, status.chunks), (3, 0, 0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_replica_is_left_out_and_a_mute_one_too() {
    let mut meta = Meta::start().await;
    let servers = fakes(&meta, 1..=3).await;
    meta.make_file(3).await;
    let chunk = meta.write_chunk(0, 3, &servers).await;
    servers[1].held.lock().mute = true;
    let old = ChunkVersion(1);
    let (version, left) = meta.chunks.replica_failed(chunk, old, &[servers[0].id], false).await.unwrap();
    assert_eq!(left.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [servers[2].id]);
    assert_eq!((committed(&meta, chunk), servers[2].version(chunk)), (version, Some(version)));
    // Late, with the old version: the present location, and nothing moves.
    let again = meta.chunks.replica_failed(chunk, old, &[servers[2].id], false).await.unwrap();
    assert_eq!(again, (version, left));
    assert_eq!(
        meta.chunks.replica_failed(chunk, version, &[servers[2].id], false).await,
        Err(gofs_tree::FsError::Io),
        "the last one cannot be left out"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_chunk_and_one_that_nobody_knows_disappear() {
    let mut meta = Meta::start().await;
    let servers = fakes(&meta, 1..=2).await;
    meta.make_file(2).await;
    let chunk = meta.write_chunk(0, 2, &servers).await;
    let unknown_but_issued = ChunkId(0);
    servers[0].put(unknown_but_issued, ChunkVersion(1)).await;
    let not_issued = ChunkId(1000);
    servers[0].put(not_issued, ChunkVersion(1)).await;
    let name = Name::new(b"file").unwrap();
    meta.one.edit(EditOp::Unlink { parent: ROOT_INO, name, holders: Vec::new() }).await;
    until("the replicas are deleted and the chunk is forgotten", || {
        servers.iter().all(|server| server.version(chunk).is_none())
            && meta.one.group.state().chunk(chunk).unwrap().is_none()
    })
    .await;
    until("the orphan is deleted", || servers[0].version(unknown_but_issued).is_none()).await;
    assert!(servers[0].version(not_issued).is_some(), "an id from the future is not ours to delete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_waits_for_servers_and_then_finds_everything() {
    let mut meta = Meta::start().await;
    let servers = fakes(&meta, 1..=2).await;
    meta.make_file(2).await;
    let chunk = meta.write_chunk(0, 2, &servers).await;
    let held: Vec<_> = servers.iter().map(|server| (server.id, server.held.clone())).collect();
    drop(servers);
    meta.restart().await;
    assert_eq!(meta.chunks.for_reading(chunk), Location::Wait, "not lost: nobody had time to report");
    assert_eq!(meta.chunks.place(1), Err(gofs_tree::FsError::Busy));
    let cluster = meta.cluster();
    let mut back = Vec::new();
    for (id, held) in held {
        back.push(Fake::start(&meta, id.0, held, cluster.clone()).await.unwrap());
    }
    until(
        "both are found",
        || matches!(meta.chunks.for_reading(chunk), Location::At { servers, .. } if servers.len() == 2),
    )
    .await;
    let Location::At { version, .. } = meta.chunks.for_writing(chunk, false).await else { panic!() };
    assert_eq!(version, ChunkVersion(1), "all holders are back: nothing needs to move");

    let gone = back.pop().unwrap();
    drop(gone);
    until("one is dead", || meta.chunks.servers().iter().filter(|server| server.alive).count() == 1).await;
    let Location::At { version, servers } = meta.chunks.for_writing(chunk, false).await else { panic!() };
    assert!(version > ChunkVersion(1) && servers.len() == 1, "the dead one is left behind before the write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_places_a_chunk_anew_that_its_writer_calls_blank_although_a_server_is_lost() {
    let mut meta = Meta::start().await;
    let servers = fakes(&meta, 1..=3).await;
    meta.make_file(2).await;
    let written = meta.write_chunk(0, 1, &servers).await;
    let holder = servers.iter().find(|server| server.version(written).is_some()).unwrap().id;
    // Placed where the other one is that will be lost, and written by nobody.
    let (chunk, version) = (ChunkId(2), ChunkVersion(1));
    meta.one.edit(EditOp::AddChunk { ino: FILE, index: ChunkIndex(1), chunk }).await;
    let other = servers.iter().find(|server| server.id != holder).unwrap().id;
    meta.chunks.assigned(chunk, version, &[holder, other]);
    let held: Vec<_> = servers.iter().map(|server| (server.id, server.held.clone())).collect();
    drop(servers);
    meta.restart().await;
    let failed = meta.chunks.replica_failed(chunk, version, &[holder], false).await;
    assert_eq!(failed, Err(gofs_tree::FsError::Busy), "nobody had time to report");
    let mut back = Vec::new();
    for (id, held) in held.into_iter().filter(|(id, _)| *id != holder) {
        back.push(Fake::start(&meta, id.0, held, meta.cluster()).await.unwrap());
    }
    until("servers had their time", || meta.chunks.is_settled()).await;
    let may_return = Location::Absent { may_return: true };
    assert_eq!(
        meta.chunks.for_writing(chunk, false).await,
        may_return,
        "it may have bytes that were acknowledged"
    );
    assert_eq!(meta.chunks.for_writing(written, true).await, may_return, "it has bytes that were committed");
    let Location::At { version: anew, servers } = meta.chunks.for_writing(chunk, true).await else {
        panic!()
    };
    assert!(anew > version && servers.iter().all(|(server, _)| *server != holder), "{servers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_whose_first_write_failed_on_one_server_is_placed_anew_when_the_other_lost_it() {
    let mut meta = Meta::start().await;
    let mut servers = fakes(&meta, 1..=3).await;
    meta.make_file(2).await;
    let (chunk, version) = (ChunkId(1), ChunkVersion(1));
    meta.one.edit(EditOp::AddChunk { ino: FILE, index: ChunkIndex(0), chunk }).await;
    meta.chunks.assigned(chunk, version, &[servers[0].id, servers[1].id]);
    // One took the first write, which failed on the other, and lost it with its power.
    let again = servers.remove(1);
    let (id, held) = (again.id, again.held.clone());
    again.put(chunk, version).await;
    let on = |leader: &Leader| leader.directory.entry(chunk).and_then(|entry| entry.on(id).cloned());
    until("it has told", || on(&meta.chunks.leader.lock()).is_some_and(|replica| replica.confirmed)).await;
    held.lock().chunks.clear();
    drop(again);
    until("it is gone", || !meta.chunks.leader.lock().servers.is_alive(id)).await;
    servers.push(Fake::start(&meta, id.0, held, meta.cluster()).await.unwrap());
    until("it is back", || {
        let leader = meta.chunks.leader.lock();
        leader.servers.is_alive(id) && on(&leader).is_none()
    })
    .await;
    let Location::At { version: anew, servers: found } = meta.chunks.for_writing(chunk, true).await else {
        panic!("it has no place")
    };
    assert!(anew > version && found.len() == 2, "{anew:?} {found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_its_writer_calls_blank_is_placed_anew_as_often_as_it_must_be_and_no_other() {
    let mut meta = Meta::start().await;
    let servers = fakes(&meta, 1..=3).await;
    meta.make_file(2).await;
    let (chunk, version) = (ChunkId(1), ChunkVersion(1));
    meta.one.edit(EditOp::AddChunk { ino: FILE, index: ChunkIndex(0), chunk }).await;
    meta.chunks.assigned(chunk, version, &[servers[0].id, servers[1].id]);
    let failed = [servers[0].id];
    let kept = meta.chunks.replica_failed(chunk, version, &failed, false).await;
    assert_eq!(
        kept,
        Err(gofs_tree::FsError::Busy),
        "the other one may have what was acknowledged, and say so late"
    );
    let (anew, places) = meta.chunks.replica_failed(chunk, version, &failed, true).await.unwrap();
    assert!(anew > version && places.iter().all(|(server, _)| *server != failed[0]), "{places:?}");
    // It had taken the first write after all, and says so now: that was acknowledged to nobody.
    servers[1].put(chunk, version).await;
    let id = servers[1].id;
    until("it has told of it", || has_told(&meta, id, chunk)).await;
    let Location::At { version: again, .. } = meta.chunks.for_writing(chunk, true).await else {
        panic!("it has no place")
    };
    assert!(again > anew);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_nobody_committed_are_waited_for_while_the_servers_that_have_them_are_away() {
    uncommitted_and_away(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_waited_for_beside_a_server_that_was_to_have_them_and_does_not() {
    uncommitted_and_away(1).await;
}

/// A chunk's writer ended before it committed, and another mount may have read and synced what it wrote. So many of the two
/// servers that were promised the chunk told of it, and are away.
async fn uncommitted_and_away(told: usize) {
    let mut meta = Meta::start().await;
    let mut servers = fakes(&meta, 1..=3).await;
    meta.make_file(2).await;
    let (chunk, version) = (ChunkId(1), ChunkVersion(1));
    meta.one.edit(EditOp::AddChunk { ino: FILE, index: ChunkIndex(0), chunk }).await;
    meta.chunks.assigned(chunk, version, &[servers[0].id, servers[1].id]);
    let gone: Vec<Fake> = servers.drain(..told).collect();
    let ids: Vec<ChunkServerId> = gone.iter().map(|server| server.id).collect();
    for server in &gone {
        server.put(chunk, version).await;
    }
    until("they have told of it", || ids.iter().all(|id| has_told(&meta, *id, chunk))).await;
    let held: Vec<_> = gone.into_iter().map(|server| (server.id, server.held.clone())).collect();
    let are_alive = || ids.iter().all(|id| meta.chunks.leader.lock().servers.is_alive(*id));
    until("they are away", || ids.iter().all(|id| !meta.chunks.leader.lock().servers.is_alive(*id))).await;
    let Location::At { version: READ_ONLY, servers: found } = meta.chunks.for_reading(chunk) else {
        panic!("it reads as zeros: {:?}", meta.chunks.for_reading(chunk))
    };
    assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids);
    let write = meta.chunks.for_writing(chunk, true).await;
    assert!(matches!(write, Location::Absent { may_return: true } | Location::Wait), "{write:?}");
    for (id, held) in held {
        servers.push(Fake::start(&meta, id.0, held, meta.cluster()).await.unwrap());
    }
    until("they are back", are_alive).await;
    let mut write = Location::Wait;
    while write == Location::Wait {
        tokio::time::sleep(Duration::from_millis(10)).await;
        write = meta.chunks.for_writing(chunk, true).await;
    }
    let Location::At { servers: found, .. } = write else { panic!("{write:?}") };
    assert!(found.iter().any(|(id, _)| ids.contains(id)), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_tells_while_it_is_decided_whether_a_chunk_is_placed_anew_counts() {
    let mut meta = Meta::start().await;
    let mut servers = fakes(&meta, 1..=4).await;
    meta.make_file(3).await;
    let version = ChunkVersion(1);
    for (index, chunk) in [ChunkId(1), ChunkId(2)].into_iter().enumerate() {
        let index = ChunkIndex(index as u32);
        meta.one.edit(EditOp::AddChunk { ino: FILE, index, chunk }).await;
        let placed: Vec<ChunkServerId> = servers[..3].iter().map(|server| server.id).collect();
        meta.chunks.assigned(chunk, version, &placed);
    }
    let failed = [servers.remove(0).id];
    until("it is gone", || !meta.chunks.leader.lock().servers.is_alive(failed[0])).await;
    // One does not answer in time, and tells meanwhile that it took the first write. The other one has nothing.
    servers[0].held.lock().mute = true;
    let (late, chunks) = (servers[0].id, &meta.chunks);
    let tells = async |chunk| {
        let is_asked = || chunks.leader.lock().directory.entry(chunk).is_some_and(|it| it.asked > version);
        until("the servers are asked", is_asked).await;
        servers[0].put(chunk, version).await;
        until("it has told of it", || has_told(&meta, late, chunk)).await;
    };
    let reported = chunks.replica_failed(ChunkId(1), version, &failed, true);
    assert_eq!(tokio::join!(reported, tells(ChunkId(1))).0, Err(gofs_tree::FsError::Busy));
    let asked = chunks.for_writing(ChunkId(2), true);
    assert_eq!(tokio::join!(asked, tells(ChunkId(2))).0, Location::Wait);
    assert_eq!((committed(&meta, ChunkId(1)), committed(&meta, ChunkId(2))), (version, version));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_replica_is_replaced_and_then_deleted() {
    let mut meta = Meta::start().await;
    let servers = fakes(&meta, 1..=3).await;
    meta.make_file(2).await;
    let chunk = meta.write_chunk(0, 2, &servers).await;
    let bad = servers.iter().find(|server| server.version(chunk).is_some()).unwrap();
    bad.held.lock().chunks.insert(chunk, (ChunkVersion(1), true, false));
    let id = bad.id;
    until("it has told of it", || has_told(&meta, id, chunk)).await;
    meta.chunks.bad_replica(chunk, id, true);
    until("two others hold it", || {
        let version = committed(&meta, chunk);
        version > ChunkVersion(1) && holders(&servers, chunk, version) == 2 && bad.version(chunk).is_none()
    })
    .await;
    let Location::At { servers: found, .. } = meta.chunks.for_reading(chunk) else { panic!() };
    assert!(found.iter().all(|(server, _)| *server != id), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_replica_that_is_all_there_is_left_is_read_and_written() {
    let mut meta = Meta::start().await;
    let servers = fakes(&meta, 1..=2).await;
    meta.make_file(1).await;
    let chunk = meta.write_chunk(0, 1, &servers).await;
    let holder = servers.iter().find(|server| server.version(chunk).is_some()).unwrap();
    until("it can be said what is left", || meta.chunks.is_settled()).await;
    holder.held.lock().chunks.insert(chunk, (ChunkVersion(1), true, false));
    holder.tell(chunk).await;
    let is_left = |location: &Location, least: ChunkVersion| matches!(location, Location::At { version, servers } if *version >= least && servers.len() == 1 && servers[0].0 == holder.id);
    until("it is read as it is", || {
        let location = meta.chunks.for_reading(chunk);
        matches!(location, Location::At { version: READ_ONLY, .. }) && is_left(&location, READ_ONLY)
    })
    .await;
    let location = meta.chunks.for_writing(chunk, false).await;
    assert!(is_left(&location, ChunkVersion(2)), "{location:?}");
    assert!(is_left(&meta.chunks.for_reading(chunk), READ_ONLY));
}

/// A server's disk goes away, the chunk is written, the disk comes back with its old bytes.
async fn written_while_a_disk_is_away(new_leader: bool) {
    let mut meta = Meta::start().await;
    let mut servers = fakes(&meta, 1..=2).await;
    meta.make_file(2).await;
    let chunk = meta.write_chunk(0, 2, &servers).await;
    let old = servers[1].held.lock().chunks.remove(&chunk).unwrap();
    if new_leader {
        let held: Vec<_> = servers.drain(..).map(|server| (server.id, server.held.clone())).collect();
        meta.restart().await;
        for (id, held) in held {
            servers.push(Fake::start(&meta, id.0, held, meta.cluster()).await.unwrap());
        }
    } else {
        servers[1].tell(chunk).await;
    }
    until("one holder is known", || {
        matches!(meta.chunks.for_reading(chunk), Location::At { version: READ_ONLY, servers } if servers.len() == 1)
    })
    .await;
    // No pause: the planner must not be what saves the bytes.
    let mut location = meta.chunks.for_writing(chunk, false).await;
    while location == Location::Wait {
        tokio::time::sleep(Duration::from_millis(5)).await;
        location = meta.chunks.for_writing(chunk, false).await;
    }
    let Location::At { version, .. } = location else { panic!("{location:?}") };
    assert!(version > old.0, "the version of the replica that is away is written again");
    servers[1].held.lock().chunks.entry(chunk).or_insert(old);
    servers[1].tell(chunk).await;
    for _ in 0..50 {
        if let Location::At { servers: found, .. } = meta.chunks.for_reading(chunk) {
            let stale = found.iter().any(|(id, _)| {
                servers.iter().any(|server| server.id == *id && server.version(chunk) == Some(old.0))
            });
            assert!(!stale, "the old bytes count as current: {found:?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    until("both are current again", || {
        let version = committed(&meta, chunk);
        version > old.0 && holders(&servers, chunk, version) == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_was_away_during_a_write_does_not_come_back_as_current() {
    written_while_a_disk_is_away(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_where_a_new_leader_never_saw_what_was_on_it() {
    written_while_a_disk_is_away(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_a_reader_misses_is_asked_for_and_left_out() {
    let mut meta = Meta::start().await;
    let servers = fakes(&meta, 1..=2).await;
    meta.make_file(2).await;
    let chunk = meta.write_chunk(0, 2, &servers).await;
    until("it has told of it", || has_told(&meta, servers[0].id, chunk)).await;
    meta.chunks.bad_replica(chunk, servers[0].id, false);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(committed(&meta, chunk), ChunkVersion(1), "it is there after all");
    // Gone, and the report of that was lost.
    servers[1].held.lock().chunks.remove(&chunk);
    meta.chunks.bad_replica(chunk, servers[1].id, false);
    until("it is made again", || {
        let version = committed(&meta, chunk);
        version > ChunkVersion(1) && holders(&servers, chunk, version) == 2
    })
    .await;
}

/// Whether readers are told of the one replica that is not suspect, and writers that it is not all.
fn is_left_out(meta: &Meta, chunk: ChunkId, suspect: ChunkServerId) -> bool {
    match meta.chunks.for_reading(chunk) {
        Location::At { version: READ_ONLY, servers } => servers.iter().all(|(id, _)| *id != suspect),
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_client_suspects_a_replica_nobody_writes_to_the_others_alone() {
    let mut meta = Meta::start().await;
    let servers = fakes(&meta, 1..=2).await;
    meta.make_file(2).await;
    let chunk = meta.write_chunk(0, 2, &servers).await;
    let id = servers[0].id;
    until("it has told of it", || has_told(&meta, id, chunk)).await;
    servers[0].held.lock().mute = true;
    meta.chunks.bad_replica(chunk, id, true);
    assert!(is_left_out(&meta, chunk, id), "{:?}", meta.chunks.for_reading(chunk));
    let Location::At { version, servers: all } = meta.chunks.for_writing(chunk, false).await else {
        panic!()
    };
    assert_eq!((version, all.len()), (ChunkVersion(1), 2), "an fsync asks here, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_suspect_no_longer_than_until_its_server_was_asked() {
    let mut meta = Meta::start().await;
    let mut servers = fakes(&meta, 1..=2).await;
    meta.make_file(2).await;
    let chunk = meta.write_chunk(0, 2, &servers).await;
    let id = servers[0].id;
    until("it has told of it", || has_told(&meta, id, chunk)).await;
    let is_whole = || matches!(meta.chunks.for_reading(chunk), Location::At { version, servers } if version == ChunkVersion(1) && servers.len() == 2);
    // Its turn comes after a change that is under way.
    let changing = changing::Changing::begin(&meta.chunks, chunk).unwrap();
    meta.chunks.bad_replica(chunk, id, false);
    assert!(is_left_out(&meta, chunk, id));
    drop(changing);
    until("it is asked, and is there", is_whole).await;
    servers[0].held.lock().mute = true;
    meta.chunks.bad_replica(chunk, id, false);
    assert!(is_left_out(&meta, chunk, id));
    until("it was asked and did not answer", is_whole).await;
    // One that cannot be asked at all.
    drop(servers.remove(0));
    until("it is gone", || !meta.chunks.leader.lock().servers.is_alive(id)).await;
    meta.chunks.bad_replica(chunk, id, true);
    let leader = meta.chunks.leader.lock();
    assert_eq!(leader.directory.entry(chunk).and_then(|entry| entry.on(id)).unwrap().suspect, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fences_reach_servers_and_strangers_are_refused() {
    let meta = Meta::start().await;
    let servers = fakes(&meta, 1..=2).await;
    meta.chunks.fence(SessionId(9)).await;
    assert!(servers.iter().all(|server| server.held.lock().fenced == [9]));
    until("a Status is heard", || servers.iter().all(|server| server.held.lock().heard > 0)).await;
    let Err(refused) = Fake::start(&meta, 5, Arc::default(), vec![9; 16]).await else { panic!() };
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("belongs to cluster 0909"), "{}", refused.message());
    assert!(refused.metadata().contains_key(gofs_proto::OTHER_CLUSTER_METADATA));
    // What passes with an upgrade must not stop the server for good.
    let mut client = HeartbeatClient::connect(format!("http://{}", meta.address)).await.unwrap();
    let ahead = gofs_proto::PROTOCOL_VERSION + 1;
    let register =
        cluster::Register { version: ahead, oldest_version: ahead, server: 6, ..Default::default() };
    let refused = client.beat(tokio_stream::once(body(report::Body::Register(register)))).await.unwrap_err();
    assert!(refused.message().contains("upgrade"), "{}", refused.message());
    assert!(!refused.metadata().contains_key(gofs_proto::OTHER_CLUSTER_METADATA));
    // One that still speaks ours is taken in, at ours.
    let register = cluster::Register {
        version: ahead,
        oldest_version: gofs_proto::PROTOCOL_VERSION,
        server: 6,
        address: "10.0.0.6:1".into(),
        ..Default::default()
    };
    let reports = tokio_stream::once(body(report::Body::Register(register)));
    let first = client.beat(reports).await.unwrap().into_inner().message().await.unwrap().unwrap();
    let Some(instruction::Body::Accepted(accepted)) = first.body else { panic!("{first:?}") };
    assert_eq!(accepted.version, gofs_proto::PROTOCOL_VERSION);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_confirms_no_fence_is_waited_for_until_it_lets_nobody_write() {
    let meta = Meta::start().await;
    let servers = fakes(&meta, 1..=3).await;
    // One that is mute, one that goes without a word.
    servers[0].held.lock().mute = true;
    servers[2].tasks.iter().for_each(|task| task.abort());
    let began = Instant::now();
    meta.chunks.fence(SessionId(9)).await;
    // Heard of a moment before.
    assert!(began.elapsed() >= meta.chunks.config().dead_after, "{:?}", began.elapsed());
    assert_eq!(servers[0].held.lock().fenced, []);
    assert_eq!(servers[1].held.lock().fenced, [9]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_registers_anew_needs_no_fence() {
    // Longer than the test lasts.
    let meta = Meta::with(ChunkConfig { dead_after: Duration::from_secs(600), ..config() }).await;
    let servers = fakes(&meta, 1..=1).await;
    servers[0].held.lock().mute = true;
    let chunks = meta.chunks.clone();
    let fenced = tokio::spawn(async move { chunks.fence(SessionId(9)).await });
    until("it is hung up on", || !meta.chunks.leader.lock().servers.is_alive(servers[0].id)).await;
    let _again = Fake::start(&meta, 1, Arc::default(), Vec::new()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), fenced).await.expect("it was told").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_planner_ends_with_the_group_although_the_service_is_still_there() {
    let meta = Meta::start().await;
    meta.one.group.shutdown().await;
    // Else it goes on for ever, and finds a closed state an error each time.
    let planner = planner::run(Arc::downgrade(&meta.chunks));
    tokio::time::timeout(Duration::from_secs(10), planner).await.expect("the planner ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_change_of_a_chunk_neither_begins_nor_ends_the_first() {
    let meta = Meta::start().await;
    let first = changing::Changing::begin(&meta.chunks, ChunkId(1)).unwrap();
    for _ in 0..2 {
        let (chunks, (tell, told)) = (meta.chunks.clone(), std::sync::mpsc::channel());
        // On a thread of its own: one that waits for itself does so for ever.
        std::thread::spawn(move || tell.send(changing::Changing::begin(&chunks, ChunkId(1)).is_none()));
        assert!(told.recv_timeout(Duration::from_secs(20)).expect("the chunk side is stuck"), "it began");
    }
    drop(first);
    assert!(changing::Changing::begin(&meta.chunks, ChunkId(1)).is_some());
}

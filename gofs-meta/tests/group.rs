//! One MetaServer and three, on loopback: what is acknowledged stays, whoever stops.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gofs_meta::StateConfig;
use gofs_meta::command::{Command, CommandOutcome, NamespaceConfig, Refusal};
use gofs_meta::group::{GroupConfig, MetaGroup, ProposeError, Role, StartError};
use gofs_tree::{
    Edit, EditOp, EditSeq, Ino, MetaServerId, Mode, Name, NamespaceId, NewNode, ROOT_INO, SessionId, Store,
    Timestamp,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::TcpListenerStream;

const PATIENCE: Duration = Duration::from_secs(60);

fn small(config: GroupConfig) -> GroupConfig {
    GroupConfig {
        segment_bytes: 64 << 10,
        snapshot_entries: 100_000,
        state: StateConfig { record_cache_bytes: 1 << 20, block_cache_bytes: 1 << 20 },
        ..config
    }
}

fn alone(data: &Path) -> GroupConfig {
    small(GroupConfig::new(MetaServerId(1), data.to_owned(), "127.0.0.1:1".into(), BTreeMap::new()))
}

/// A MetaServer with a listener for the others.
struct Node {
    group: Arc<MetaGroup>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Node {
    async fn start(config: GroupConfig) -> Node {
        let group = MetaGroup::start(config.clone()).await.expect("the group starts");
        let address: SocketAddr = config.address.parse().unwrap();
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let router = tonic::transport::Server::builder().add_service(group.raft_service());
        let served = tokio::spawn(async move {
            let ended = async { drop(stopped.await) };
            router.serve_with_incoming_shutdown(TcpListenerStream::new(listener), ended).await.unwrap();
        });
        Node { group, stop, served }
    }

    async fn stop(self) {
        self.group.shutdown().await;
        drop(self.stop);
        self.served.abort();
        let _ = self.served.await;
    }
}

struct Cluster {
    dir: TempDir,
    peers: BTreeMap<MetaServerId, String>,
    nodes: BTreeMap<u64, Node>,
    snapshot_entries: u64,
}

impl Cluster {
    async fn start(snapshot_entries: u64) -> Cluster {
        let mut peers = BTreeMap::new();
        let mut held = Vec::new();
        for id in 1..=3 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            peers.insert(MetaServerId(id), listener.local_addr().unwrap().to_string());
            held.push(listener);
        }
        drop(held);
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster { dir, peers, nodes: BTreeMap::new(), snapshot_entries };
        for id in 1..=3 {
            cluster.start_node(id).await;
        }
        cluster
    }

    fn data(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("meta-{id}"))
    }

    async fn start_node(&mut self, id: u64) {
        let address = self.peers[&MetaServerId(id)].clone();
        let config = GroupConfig::new(MetaServerId(id), self.data(id), address, self.peers.clone());
        let config = GroupConfig { snapshot_entries: self.snapshot_entries, ..small(config) };
        self.nodes.insert(id, Node::start(config).await);
    }

    async fn stop_node(&mut self, id: u64) {
        self.nodes.remove(&id).unwrap().stop().await;
    }

    async fn leader(&self) -> u64 {
        let until = Instant::now() + PATIENCE;
        loop {
            for (id, node) in &self.nodes {
                if node.group.leadership().borrow().role == Role::Leader
                    && node.group.confirm_leader().await.is_ok()
                {
                    return *id;
                }
            }
            assert!(Instant::now() < until, "no leader");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Proposes wherever the leader is, as often as it takes.
    async fn propose(&self, command: Command) -> CommandOutcome {
        let until = Instant::now() + PATIENCE;
        loop {
            let leader = self.leader().await;
            match self.nodes[&leader].group.propose(command.clone()).await {
                Ok(outcome) => return outcome,
                Err(error) => assert!(Instant::now() < until, "not committed: {error}"),
            }
        }
    }

    /// Waits until all have applied the same, and checks that it is the same.
    async fn agree(&self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let digests: Vec<_> =
                self.nodes.values().map(|node| node.group.state().digest().unwrap()).collect();
            if digests.iter().all(|digest| digest.applied == digests[0].applied) {
                assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
                return;
            }
            assert!(Instant::now() < until, "the MetaServers do not catch up: {digests:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stop(mut self) {
        for (_, node) in std::mem::take(&mut self.nodes) {
            node.stop().await;
        }
    }
}

fn namespace(name: &str) -> Command {
    Command::CreateNamespace {
        name: name.into(),
        config: NamespaceConfig::default(),
        time: Timestamp::new(1, 0),
    }
}

fn session(id: u64) -> Command {
    Command::OpenSession {
        session: SessionId(id),
        namespace: NamespaceId(1),
        token: [id as u8; 16],
        host: "host".into(),
        mount_point: "/mnt".into(),
        pid: 1,
    }
}

fn create(session: u64, seq: u64) -> Command {
    let op = EditOp::Create {
        parent: ROOT_INO,
        name: Name::new(format!("file-{session}-{seq}").as_bytes()).unwrap(),
        ino: Ino(session * 1_000_000 + seq),
        node: NewNode::File,
        mode: Mode::new(0o644),
        umask: Mode::new(0o022),
        uid: 1,
        gid: 1,
    };
    Command::Edits {
        session: SessionId(session),
        first_seq: EditSeq(seq),
        answered: EditSeq(seq - 1),
        edits: vec![Edit { time: Timestamp::new(seq as i64, 0), op }],
    }
}

fn created(outcome: CommandOutcome) {
    match outcome {
        CommandOutcome::Edits(results) => assert!(results.iter().all(Result::is_ok), "{results:?}"),
        other => panic!("{other:?}"),
    }
}

fn entries(group: &MetaGroup) -> usize {
    group.state().tree(NamespaceId(1)).entries(ROOT_INO, None, usize::MAX).unwrap().len()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if !entry.file_name().to_string_lossy().ends_with(".new") {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

async fn prepare(group: &MetaGroup) {
    assert_eq!(group.propose(namespace("demo")).await.unwrap(), CommandOutcome::Namespace(NamespaceId(1)));
    assert_eq!(group.propose(session(1)).await.unwrap(), CommandOutcome::Session(SessionId(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_metaserver_leads_when_it_has_started_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let group = MetaGroup::start(alone(dir.path())).await.unwrap();
    let first = group.leadership().borrow().clone();
    assert_eq!((first.role, first.leader), (Role::Leader, Some((MetaServerId(1), "127.0.0.1:1".into()))));
    group.confirm_leader().await.unwrap();
    let cluster = group.state().cluster().unwrap();
    assert!(cluster.is_some());
    prepare(&group).await;
    assert_eq!(
        group.propose(namespace("demo")).await.unwrap(),
        CommandOutcome::Refused(Refusal::NameTaken("demo".into()))
    );
    let metrics = group.metrics();
    assert_eq!(metrics.members, [(MetaServerId(1), "127.0.0.1:1".into(), true)]);
    assert_eq!(metrics.applied, metrics.committed);
    group.shutdown().await;
    assert!(matches!(group.propose(namespace("late")).await, Err(ProposeError::Shutdown)));

    let group = MetaGroup::start(alone(dir.path())).await.unwrap();
    assert!(group.leadership().borrow().term > first.term, "each start is a term of its own");
    assert_eq!(group.state().cluster().unwrap(), cluster);
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_metaserver_has_everything_acknowledged_and_replays_to_the_same_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut data = dir.path().join("0");
    let mut seq = 0;
    for life in 1..4 {
        let group = MetaGroup::start(alone(&data)).await.unwrap();
        if life == 1 {
            prepare(&group).await;
        }
        for _ in 0..40 {
            seq += 1;
            created(group.propose(create(1, seq)).await.unwrap());
        }
        let digest = group.state().digest().unwrap();
        // What is on disk now is what a kill at this moment leaves.
        let image = dir.path().join(life.to_string());
        copy(&data, &image);
        group.shutdown().await;
        data = image;
        let group = MetaGroup::start(alone(&data)).await.unwrap();
        assert_eq!(entries(&group), seq as usize);
        let session = group.state().session(SessionId(1)).unwrap().unwrap();
        assert_eq!(session.applied, EditSeq(seq));
        // The start is an entry too; but for its position the records are the same.
        assert_eq!(group.state().digest().unwrap().records, digest.records);
        assert_eq!(group.state().verify().unwrap().damaged_records, 0);
        // The same edit again, as after a lost reply: the recorded outcome.
        created(group.propose(create(1, seq)).await.unwrap());
        assert_eq!(entries(&group), seq as usize);
        group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_side_by_side_are_all_answered() {
    let dir = tempfile::tempdir().unwrap();
    let group = MetaGroup::start(alone(dir.path())).await.unwrap();
    assert_eq!(group.propose(namespace("demo")).await.unwrap(), CommandOutcome::Namespace(NamespaceId(1)));
    let mut authors = Vec::new();
    for author in 1..=16 {
        let group = group.clone();
        authors.push(tokio::spawn(async move {
            assert_eq!(
                group.propose(session(author)).await.unwrap(),
                CommandOutcome::Session(SessionId(author))
            );
            for seq in 1..=30 {
                created(group.propose(create(author, seq)).await.unwrap());
            }
        }));
    }
    for author in authors {
        author.await.unwrap();
    }
    assert_eq!(entries(&group), 16 * 30);
    assert_eq!(group.state().tree(NamespaceId(1)).usage().unwrap().inodes, 16 * 30 + 1);
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let group = MetaGroup::start(alone(dir.path())).await.unwrap();
    let before = group.state().digest().unwrap().records;
    prepare(&group).await;
    for seq in 1..=50 {
        created(group.propose(create(1, seq)).await.unwrap());
    }
    assert_eq!(
        group.propose(Command::DeleteNamespace { id: NamespaceId(1) }).await.unwrap(),
        CommandOutcome::Done
    );
    assert_eq!(
        group.propose(create(1, 51)).await.unwrap(),
        CommandOutcome::Refused(Refusal::NoSession(SessionId(1)))
    );
    let until = Instant::now() + PATIENCE;
    while !group.state().deleted_namespaces().unwrap().is_empty() {
        assert!(Instant::now() < until, "the records are not swept");
        sleep(Duration::from_millis(10)).await;
    }
    // What stays: counters, and that the session was fenced.
    assert_eq!(group.state().digest().unwrap().records, before + 2);
    assert_eq!(group.state().fenced_sessions().unwrap(), [SessionId(1)]);
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_trimmed_behind_snapshots_and_a_restart_needs_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let config = GroupConfig { snapshot_entries: 40, ..alone(dir.path()) };
    let group = MetaGroup::start(config.clone()).await.unwrap();
    prepare(&group).await;
    for seq in 1..=400 {
        created(group.propose(create(1, seq)).await.unwrap());
    }
    let until = Instant::now() + PATIENCE;
    while group.metrics().snapshot.0 < 300 {
        assert!(Instant::now() < until, "no Snapshot");
        sleep(Duration::from_millis(10)).await;
    }
    let image = dir.path().join("image");
    copy(&dir.path().join("log"), &image.join("log"));
    copy(&dir.path().join("state"), &image.join("state"));
    copy(&dir.path().join("snapshot"), &image.join("snapshot"));
    std::fs::copy(dir.path().join("id"), image.join("id")).unwrap();
    group.shutdown().await;
    let group = MetaGroup::start(GroupConfig { data: image, ..config }).await.unwrap();
    assert_eq!(entries(&group), 400);
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_metaservers_go_on_when_the_leader_stops() {
    let mut cluster = Cluster::start(100_000).await;
    assert_eq!(cluster.propose(namespace("demo")).await, CommandOutcome::Namespace(NamespaceId(1)));
    assert_eq!(cluster.propose(session(1)).await, CommandOutcome::Session(SessionId(1)));
    let mut seq = 0;
    for _ in 0..3 {
        for _ in 0..20 {
            seq += 1;
            created(cluster.propose(create(1, seq)).await);
        }
        let leader = cluster.leader().await;
        let follower = *cluster.nodes.keys().find(|id| **id != leader).unwrap();
        let refused = cluster.nodes[&follower].group.propose(create(1, seq + 1)).await;
        match refused {
            Err(ProposeError::NotLeader { leader: Some(address) }) => {
                assert_eq!(address, cluster.peers[&MetaServerId(leader)]);
            }
            other => panic!("{other:?}"),
        }
        cluster.stop_node(leader).await;
        for _ in 0..20 {
            seq += 1;
            created(cluster.propose(create(1, seq)).await);
        }
        cluster.start_node(leader).await;
        cluster.agree().await;
    }
    let leader = cluster.leader().await;
    assert_eq!(entries(&cluster.nodes[&leader].group), seq as usize);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metaserver_that_was_away_or_lost_its_disk_gets_a_snapshot() {
    let mut cluster = Cluster::start(50).await;
    cluster.propose(namespace("demo")).await;
    cluster.propose(session(1)).await;
    let mut seq = 0;
    for lost in [false, true] {
        let leader = cluster.leader().await;
        let away = *cluster.nodes.keys().find(|id| **id != leader).unwrap();
        cluster.stop_node(away).await;
        for _ in 0..300 {
            seq += 1;
            created(cluster.propose(create(1, seq)).await);
        }
        let leader = cluster.leader().await;
        let until = Instant::now() + PATIENCE;
        while cluster.nodes[&leader].group.metrics().snapshot.0 < 200 * (1 + u64::from(lost)) {
            assert!(Instant::now() < until, "no Snapshot: {:?}", cluster.nodes[&leader].group.metrics());
            sleep(Duration::from_millis(20)).await;
        }
        if lost {
            std::fs::remove_dir_all(cluster.data(away)).unwrap();
        }
        cluster.start_node(away).await;
        seq += 1;
        created(cluster.propose(create(1, seq)).await);
        cluster.agree().await;
        assert_eq!(entries(&cluster.nodes[&away].group), seq as usize);
        // Told a little after what it brought has been applied.
        while cluster.nodes[&away].group.metrics().snapshot.0 == 0 {
            assert!(Instant::now() < until + PATIENCE, "it came by a Snapshot");
            sleep(Duration::from_millis(20)).await;
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_of_another_metaserver_or_cluster_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    MetaGroup::start(alone(dir.path())).await.unwrap().shutdown().await;
    let other = GroupConfig { id: MetaServerId(2), ..alone(dir.path()) };
    assert!(matches!(MetaGroup::start(other).await, Err(StartError::Identity(_))));
    let peers = BTreeMap::from([1, 2, 3].map(|id| (MetaServerId(id), format!("127.0.0.1:{id}"))));
    let grown = GroupConfig { peers, ..alone(dir.path()) };
    let Err(StartError::Identity(text)) = MetaGroup::start(grown).await else { panic!("refused") };
    assert!(text.contains("[1]") && text.contains("[1, 2, 3]"), "{text}");
}

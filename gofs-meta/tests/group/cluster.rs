//! MetaServers of one process, each with a listener for the others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gofs_meta::StateConfig;
use gofs_meta::command::{Command, CommandOutcome, NamespaceConfig};
use gofs_meta::group::{GroupConfig, MetaGroup, Role};
use gofs_tree::{
    Edit, EditOp, EditSeq, Ino, MetaServerId, Mode, Name, NamespaceId, NewNode, ROOT_INO, SessionId,
    Timestamp,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::TcpListenerStream;

pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn small(config: GroupConfig) -> GroupConfig {
    GroupConfig {
        segment_bytes: 64 << 10,
        snapshot_entries: 100_000,
        state: StateConfig { record_cache_bytes: 1 << 20, block_cache_bytes: 1 << 20 },
        ..config
    }
}

pub fn alone(data: &Path) -> GroupConfig {
    small(GroupConfig::new(MetaServerId(1), data.to_owned(), "127.0.0.1:1".into(), BTreeMap::new()))
}

/// A MetaServer with a listener for the others.
pub struct Node {
    pub group: Arc<MetaGroup>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Node {
    pub async fn start(config: GroupConfig) -> Node {
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

    /// As a server that is told to stop.
    pub async fn stop(self) {
        self.group.hand_over().await;
        self.kill().await;
    }

    /// The others are not told.
    pub async fn kill(self) {
        self.served.abort();
        let _ = self.served.await;
        self.group.shutdown().await;
        drop(self.stop);
    }
}

pub struct Cluster {
    dir: TempDir,
    /// The founders.
    pub peers: BTreeMap<MetaServerId, String>,
    /// Where everyone is.
    pub addresses: BTreeMap<u64, String>,
    pub nodes: BTreeMap<u64, Node>,
    snapshot_entries: u64,
}

impl Cluster {
    pub async fn start(snapshot_entries: u64) -> Cluster {
        let filter = tracing_subscriber::EnvFilter::from_env("GOFS_LOG");
        // Started once in a process that runs several tests.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = tempfile::tempdir().unwrap();
        let addresses: BTreeMap<u64, String> = (1..).zip(free_addresses(3).await).collect();
        let peers = addresses.iter().map(|(id, address)| (MetaServerId(*id), address.clone())).collect();
        let mut cluster = Cluster { dir, peers, addresses, nodes: BTreeMap::new(), snapshot_entries };
        for id in 1..=3 {
            cluster.start_node(id).await;
        }
        cluster
    }

    pub fn data(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("meta-{id}"))
    }

    pub fn config(&self, id: u64) -> GroupConfig {
        let founder = self.peers.contains_key(&MetaServerId(id));
        let peers = if founder { self.peers.clone() } else { BTreeMap::new() };
        let config = GroupConfig::new(MetaServerId(id), self.data(id), self.addresses[&id].clone(), peers);
        let others = self.addresses.iter().filter(|(other, _)| **other != id);
        let join = if founder { Vec::new() } else { others.map(|(_, address)| address.clone()).collect() };
        GroupConfig { join, snapshot_entries: self.snapshot_entries, ..small(config) }
    }

    pub async fn start_node(&mut self, id: u64) {
        let node = Node::start(self.config(id)).await;
        self.nodes.insert(id, node);
    }

    /// Starts an empty server that waits to be added.
    pub async fn start_newcomer(&mut self, id: u64) -> String {
        let address = free_addresses(1).await.remove(0);
        self.addresses.insert(id, address.clone());
        self.start_node(id).await;
        address
    }

    pub async fn stop_node(&mut self, id: u64) {
        self.nodes.remove(&id).unwrap().stop().await;
    }

    pub async fn kill_node(&mut self, id: u64) {
        self.nodes.remove(&id).unwrap().kill().await;
    }

    pub async fn lead(&self) -> Arc<MetaGroup> {
        let leader = self.leader().await;
        self.nodes[&leader].group.clone()
    }

    pub async fn leader(&self) -> u64 {
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
    pub async fn propose(&self, command: Command) -> CommandOutcome {
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
    pub async fn agree(&self) {
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

    pub async fn stop(mut self) {
        for (_, node) in std::mem::take(&mut self.nodes) {
            node.stop().await;
        }
    }
}

pub fn namespace(name: &str) -> Command {
    Command::CreateNamespace {
        name: name.into(),
        config: NamespaceConfig::default(),
        time: Timestamp::new(1, 0),
    }
}

pub fn session(id: u64) -> Command {
    Command::OpenSession {
        session: SessionId(id),
        namespace: NamespaceId(1),
        token: [id as u8; 16],
        host: "host".into(),
        mount_point: "/mnt".into(),
        pid: 1,
    }
}

pub fn create(session: u64, seq: u64) -> Command {
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

pub fn created(outcome: CommandOutcome) {
    match outcome {
        CommandOutcome::Edits { results, .. } => assert!(results.iter().all(Result::is_ok), "{results:?}"),
        other => panic!("{other:?}"),
    }
}

pub fn entries(group: &MetaGroup) -> usize {
    group.state().tree(NamespaceId(1)).entries(ROOT_INO, None, usize::MAX).unwrap().len()
}

pub fn copy(from: &Path, to: &Path) {
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

pub async fn prepare(group: &MetaGroup) {
    assert_eq!(group.propose(namespace("demo")).await.unwrap(), CommandOutcome::Namespace(NamespaceId(1)));
    assert_eq!(group.propose(session(1)).await.unwrap(), CommandOutcome::Session(SessionId(1)));
}

/// Addresses that nobody listens on.
pub async fn free_addresses(count: usize) -> Vec<String> {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    held.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

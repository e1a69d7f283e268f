//! The operations on a group of one, with a session side that answers what the test says.

use std::future::poll_fn;
use std::task::Poll;

use gofs_proto::cluster::CheckRequest;
use gofs_tree::{
    ChunkId, ChunkIndex, EditOp, Ino, LeaseMode, Mode, Name, NamespaceId, NewNode, ROOT_INO, SessionId,
    Timestamp,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::*;
use crate::{
    chunks::ChunkConfig,
    command::{Command, CommandOutcome},
    fixture::GroupOfOne,
    repair::{Count, Repair},
};

#[derive(Default)]
struct Sessions {
    ended: Mutex<Vec<NamespaceId>>,
    metered: Mutex<Vec<NamespaceId>>,
    /// Tells when that is over.
    metering: Mutex<Option<oneshot::Sender<()>>>,
}

impl SessionInfo for Sessions {
    fn sessions(&self) -> Vec<SessionSummary> {
        let heard_ago = Some(Duration::from_millis(40));
        vec![SessionSummary {
            id: SessionId(1),
            leases: 3,
            heard_ago,
            recalls_pending: 1,
            unsent_edits: 5,
            unsent_bytes: 6,
            lost_edits: 7,
            lost_files: 8,
            lost_bytes: 9,
        }]
    }
    fn leases(&self, _: NamespaceId, ino: Ino) -> Vec<LeaseSummary> {
        let mode = Some(LeaseMode::Write);
        let lease = LeaseSummary { session: SessionId(1), mode, recalling: true, open: false };
        if ino == Ino(2) { vec![lease] } else { Vec::new() }
    }
    fn in_grace(&self) -> bool {
        true
    }
    fn meter(
        &self,
        namespace: NamespaceId,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Metering, FsError>> + Send + '_>> {
        self.metered.lock().push(namespace);
        let metering = self.metering.lock().take();
        Box::pin(async { Ok(Box::new(metering) as Metering) })
    }
    fn end_sessions(
        &self,
        namespace: NamespaceId,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), FsError>> + Send + '_>> {
        self.ended.lock().push(namespace);
        Box::pin(async { Ok(()) })
    }
}

struct World {
    admin: Arc<Admin>,
    sessions: Arc<Sessions>,
    one: GroupOfOne,
}

impl World {
    async fn start() -> World {
        let one = GroupOfOne::start().await;
        let group = one.group.clone();
        // No server is known, so there is nobody to wait for; a long term keeps the planner still.
        let chunks = ChunkService::new(group.clone(), ChunkConfig::default());
        let sessions = Arc::new(Sessions::default());
        let admin = Arc::new(Admin { group, chunks, sessions: sessions.clone() });
        World { admin, sessions, one }
    }

    async fn create(&self, name: &str) -> Result<cluster::Namespace, Status> {
        let request = cluster::CreateNamespaceRequest { name: name.into(), config: None };
        namespaces::create(&self.admin, request).await
    }

    async fn delete(&self, name: &str, even_if_not_empty: bool, even_if_mounted: bool) -> Result<(), Status> {
        let request =
            cluster::DeleteNamespaceRequest { name: name.into(), even_if_not_empty, even_if_mounted };
        namespaces::delete(&self.admin, request).await.map(|_| ())
    }

    async fn mount(&self, namespace: u32) {
        self.one.open_session(NamespaceId(namespace)).await;
    }

    async fn make(&mut self, parent: Ino, name: &str, ino: u64, node: NewNode) {
        self.one
            .edit(EditOp::Create {
                parent,
                name: Name::new(name.as_bytes()).unwrap(),
                ino: Ino(ino),
                node,
                mode: Mode::new(0o755),
                umask: Mode::new(0),
                uid: 0,
                gid: 0,
            })
            .await;
    }

    async fn check(&self, request: CheckRequest) -> cluster::CheckReply {
        repair::run(&self.admin, request).await.unwrap()
    }

    async fn why(&self, path: &str) -> Result<cluster::WhyReply, Status> {
        let path = cluster::WhyPath { namespace: "demo".into(), path: path.as_bytes().to_vec().into() };
        let what = Some(cluster::why_request::What::Path(path));
        self.admin.walk(move |admin| why::why(admin, cluster::WhyRequest { what })).await
    }
}

#[tokio::test]
async fn a_namespace_is_made_once_shown_and_changed() {
    let world = World::start().await;
    let made = world.create("demo").await.unwrap();
    assert_eq!((made.name.as_str(), made.replicas, made.used_inodes, made.mounts), ("demo", 2, 1, 0));
    let again = world.create("demo").await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::AlreadyExists, "{}", again.message());
    assert_eq!(world.create("a/b").await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let config =
        cluster::NamespaceConfig { replicas: Some(3), quota_bytes: Some(1 << 30), ..Default::default() };
    let request = cluster::SetNamespaceRequest { name: "demo".into(), config: Some(config) };
    let set = namespaces::set(&world.admin, request).await.unwrap();
    assert_eq!((set.replicas, set.quota_bytes), (3, 1 << 30));
    let listed = world.admin.walk(namespaces::list).await.unwrap().namespaces;
    assert_eq!(listed, [set]);
    let missing = cluster::SetNamespaceRequest { name: "other".into(), config: None };
    assert_eq!(namespaces::set(&world.admin, missing).await.unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn a_new_quota_is_committed_before_metering_ends_also_where_who_asked_for_it_has_gone() {
    let world = World::start().await;
    world.create("demo").await.unwrap();
    let (metering, over) = oneshot::channel();
    *world.sessions.metering.lock() = Some(metering);
    let config = cluster::NamespaceConfig { quota_bytes: Some(1 << 30), ..Default::default() };
    let request = cluster::SetNamespaceRequest { name: "demo".into(), config: Some(config) };
    let mut set = Box::pin(namespaces::set(&world.admin, request));
    assert!(poll_fn(|cx| Poll::Ready(set.as_mut().poll(cx).is_pending())).await, "it is under way");
    drop(set);
    over.await.unwrap_err();
    assert_eq!(world.admin.walk(namespaces::list).await.unwrap().namespaces[0].quota_bytes, 1 << 30);
}

#[tokio::test]
async fn a_namespace_in_use_is_deleted_only_when_told() {
    let mut world = World::start().await;
    let id = world.create("demo").await.unwrap().id;
    world.mount(id).await;
    world.make(ROOT_INO, "dir", 2, NewNode::Directory).await;
    let refused = world.delete("demo", false, false).await.unwrap_err();
    assert!(refused.message().contains("not empty"), "{}", refused.message());
    let refused = world.delete("demo", true, false).await.unwrap_err();
    assert!(refused.message().contains("web1:/mnt"), "{}", refused.message());
    world.delete("demo", true, true).await.unwrap();
    assert_eq!(*world.sessions.ended.lock(), [NamespaceId(id)]);
    assert_eq!(world.delete("demo", true, true).await.unwrap_err().code(), tonic::Code::NotFound);
    assert!(world.admin.walk(namespaces::list).await.unwrap().namespaces.is_empty());
    let sweeper = tokio::spawn(sweep::run(Arc::downgrade(&world.admin.group)));
    for _ in 0..1000 {
        if world.admin.group.state().deleted_namespaces().unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.admin.group.state().deleted_namespaces().unwrap(), []);
    sweeper.abort();
}

#[tokio::test]
async fn why_walks_a_path_and_says_where_it_ends() {
    let mut world = World::start().await;
    let id = world.create("demo").await.unwrap().id;
    world.mount(id).await;
    world.make(ROOT_INO, "dir", 2, NewNode::Directory).await;
    world.make(Ino(2), "file", 3, NewNode::File).await;
    let target = bytes::Bytes::from_static(b"dir");
    world.make(ROOT_INO, "link", 4, NewNode::Symlink { target }).await;
    world.one.edit(EditOp::AddChunk { ino: Ino(3), index: ChunkIndex(0), chunk: ChunkId(1) }).await;

    let dir = world.why("/dir/").await.unwrap();
    assert_eq!((dir.ino, dir.file_type.as_str(), dir.nlink), (2, "directory", 2));
    assert_eq!((dir.leases[0].host.as_str(), dir.leases[0].mode.as_str()), ("web1", "write"));
    assert!(dir.leases[0].recalling);
    let file = world.why("dir/./file").await.unwrap();
    assert_eq!((file.ino, file.file_type.as_str(), file.chunks.len()), (3, "file", 1));
    assert_eq!((file.chunks[0].chunk, file.chunks[0].goal), (1, 2));
    assert_eq!(file.chunks[0].state, "never written");
    for (path, says) in [
        ("/dir/none", "/dir/none: no such file"),
        ("/link/file", "symbolic link to \"dir\""),
        ("/dir/file/x", "/dir/file is not a directory"),
        ("/dir/../x", "\"..\""),
    ] {
        let refused = world.why(path).await.unwrap_err();
        assert!(refused.message().contains(says), "{path}: {}", refused.message());
    }
    let what = Some(cluster::why_request::What::Chunk(77));
    let refused = world.admin.walk(move |admin| why::why(admin, cluster::WhyRequest { what })).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn sessions_are_listed_with_what_their_leader_knows() {
    let world = World::start().await;
    let id = world.create("demo").await.unwrap().id;
    world.create("other").await.unwrap();
    world.mount(id).await;
    let list = |namespace: &str| {
        let request = cluster::ListSessionsRequest { namespace: namespace.into() };
        sessions::list(&world.admin, &request).map(|reply| reply.sessions)
    };
    let all = list("").unwrap();
    assert_eq!((all.len(), all[0].leases, all[0].heard_ms, all[0].recalls_pending), (1, 3, 40, 1));
    assert_eq!((all[0].namespace.as_str(), all[0].mount_point.as_str()), ("demo", "/mnt"));
    assert_eq!(list("other").unwrap(), []);
    assert_eq!(list("none").unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn a_sound_state_has_no_problem_and_lost_bytes_are_told() {
    let mut world = World::start().await;
    let id = world.create("demo").await.unwrap().id;
    world.mount(id).await;
    world.make(ROOT_INO, "dir", 2, NewNode::Directory).await;
    world.make(Ino(2), "file", 3, NewNode::File).await;
    world.make(Ino(2), "fifo", 4, NewNode::Fifo).await;
    world.one.edit(EditOp::AddChunk { ino: Ino(3), index: ChunkIndex(0), chunk: ChunkId(1) }).await;
    let name = Name::new(b"again").unwrap();
    world.one.edit(EditOp::Link { ino: Ino(3), parent: ROOT_INO, name }).await;
    let (parent, name) = (Ino(2), Name::new(b"fifo").unwrap());
    world.one.edit(EditOp::Unlink { parent, name, holders: vec![SessionId(1)] }).await;
    for _ in 0..1000 {
        if world.admin.chunks.is_settled() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let sound = world.check(CheckRequest::default()).await;
    assert_eq!(sound.problems, Vec::<String>::new());
    assert_eq!((sound.inodes, sound.entries, sound.chunks, sound.orphans), (4, 3, 1, 1));
    let blocks_4k = vec![(ChunkIndex(0), 1)];
    let (ino, size, mtime) = (Ino(3), 5000, Timestamp::new(1, 0));
    world.one.edit(EditOp::Extend { ino, size, mtime, blocks_4k, clear_inline: false }).await;
    let lost = world.check(CheckRequest { lost_to_holes: true, ..CheckRequest::default() }).await.problems;
    // Without any ChunkServer nobody can say that it is gone for good.
    assert!(lost.len() == 1 && lost[0].contains("no current replica"), "{lost:?}");
    assert!(lost[0].contains("demo:/dir/file") && lost[0].contains("demo:/again"), "{lost:?}");
    let status = world.admin.walk(status::cluster_status).await.unwrap();
    assert_eq!((status.leader, status.chunks, status.chunks_lost, status.sessions), (1, 1, 1, 1));
    assert!(status.in_grace && status.metas[0].role == "leader");
    assert!(status.chunks_known);
    let file = world.why("/again").await.unwrap();
    assert_eq!(file.chunks[0].state, "lost");
}

#[tokio::test]
async fn what_is_wrong_is_named_repaired_on_request_and_left_alone_where_it_is_mounted() {
    let mut world = World::start().await;
    let ns = NamespaceId(world.create("demo").await.unwrap().id);
    world.mount(ns.0).await;
    world.make(ROOT_INO, "dir", 2, NewNode::Directory).await;
    world.make(Ino(2), "file", 3, NewNode::File).await;
    let group = world.admin.group.clone();
    let spoil = async |repairs: Vec<Repair>| {
        let spoilt = group.propose(Command::Repair { namespace: ns, repairs }).await.unwrap();
        assert!(matches!(spoilt, CommandOutcome::Repaired(done) if done > 0), "{spoilt:?}");
    };
    let end = Command::EndSession { session: SessionId(1), fenced: false };
    assert_eq!(group.propose(end).await.unwrap(), CommandOutcome::Done);
    while !world.admin.chunks.is_settled() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let links = Repair::Count { ino: Ino(3), count: Count::Links, from: 1, to: 4 };
    spoil(vec![Repair::Usage { from: (0, 3), to: (5, 9) }, links.clone()]).await;
    let found = world.check(CheckRequest::default()).await;
    assert_eq!((found.problems.len(), found.repaired.len()), (2, 0), "{found:?}");
    assert!(
        found
            .problems
            .iter()
            .any(|problem| problem.contains("4 links") && problem.contains("demo:/dir/file"))
    );
    let repaired = world.check(CheckRequest { repair: true, ..CheckRequest::default() }).await;
    assert_eq!((repaired.problems.len(), repaired.repaired.len()), (0, 2), "{repaired:?}");
    assert_eq!(world.check(CheckRequest::default()).await.problems, Vec::<String>::new());

    spoil(vec![Repair::Usage { from: (0, 3), to: (5, 9) }, links]).await;
    world.mount(ns.0).await;
    let refused = world.check(CheckRequest { repair: true, ..CheckRequest::default() }).await;
    assert_eq!(refused.repaired, Vec::<String>::new());
    assert!(refused.problems.iter().any(|problem| problem.contains("is mounted")), "{refused:?}");
    assert!(refused.problems.iter().any(|problem| problem.contains("its usage says")), "{refused:?}");
    assert!(refused.problems.iter().any(|problem| problem.contains("4 links")), "{refused:?}");
}

//! A mount as the MetaServer sees it: a session over a link, recalls answered when the test says so.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gofs_meta::Config;
use gofs_meta::Server;
use gofs_meta::SessionTimes;
use gofs_meta::command::{Command, CommandOutcome, NamespaceConfig};
use gofs_proto::frame::Frame;
use gofs_proto::kind::Request;
use gofs_proto::session::failure::Code;
use gofs_proto::session::{self as wire, Failure};
use gofs_proto::{CallError, Link, LinkHandler, PROTOCOL_VERSION, convert};
use gofs_tree::{Edit, EditOp, FsError, Ino, MetaServerId, Mode, Name, NewNode, Timestamp};
use prost::Message;
use tempfile::TempDir;
use tokio::sync::mpsc;

pub const ROOT: Ino = Ino(1);
pub const LONG: Duration = Duration::from_secs(20);

/// Short times, for tests that wait for the end of a session.
pub const SHORT: SessionTimes =
    SessionTimes { validity: Duration::from_millis(1200), margin: Duration::from_millis(300) };

/// A server on a free port with the namespace "demo", and its data.
pub struct Served {
    server: Server,
    times: SessionTimes,
    data: TempDir,
}

/// See [`Served`].
pub async fn serve() -> Served {
    serve_with(SessionTimes::default()).await
}

/// The same with other times than the usual, which no test waits for.
pub async fn serve_with(times: SessionTimes) -> Served {
    let data = tempfile::tempdir().unwrap();
    Served { server: start(data.path(), times).await, times, data }
}

impl Served {
    /// A new session.
    pub async fn mount(&self) -> Mount {
        Mount::open(self.address()).await
    }

    /// Ends it and starts it again over the same data.
    pub async fn restart(self) -> Served {
        self.server.shutdown().await;
        Served { server: start(self.data.path(), self.times).await, ..self }
    }

    pub async fn shutdown(self) {
        self.server.shutdown().await;
    }
}

impl std::ops::Deref for Served {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

async fn start(data: &Path, times: SessionTimes) -> Server {
    let config = Config {
        sessions: times,
        ..Config::new(MetaServerId(1), SocketAddr::from(([127, 0, 0, 1], 0)), data.to_owned())
    };
    let server = Server::start(config).await.unwrap();
    let mut leadership = server.group().leadership();
    let leads = |known: &gofs_meta::group::Leadership| known.role == gofs_meta::group::Role::Leader;
    tokio::time::timeout(LONG, leadership.wait_for(leads)).await.unwrap().unwrap();
    if server.group().state().namespace_by_name("demo").unwrap().is_none() {
        let command = Command::CreateNamespace {
            name: "demo".into(),
            config: NamespaceConfig::default(),
            time: Timestamp::default(),
        };
        let outcome = server.group().propose(command).await.unwrap();
        assert!(matches!(outcome, CommandOutcome::Namespace(_)), "{outcome:?}");
    }
    server
}

/// A recall that waits for its answer.
pub struct Asked {
    link: Arc<Link>,
    id: u64,
    pub recall: wire::Recall,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.recall)
    }
}

impl std::fmt::Debug for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "mount of session {}", self.welcome.session)
    }
}

impl Asked {
    pub fn answer(self, open: bool) {
        self.link.reply::<wire::Recall>(self.id, &wire::RecallReply { open }, Vec::new());
    }
}

struct Door {
    recalls: mpsc::UnboundedSender<Asked>,
    slices: mpsc::UnboundedSender<(Arc<Link>, u64)>,
    /// Answer at once: nothing is open, nothing dirty.
    willing: Arc<AtomicBool>,
}

impl LinkHandler for Door {
    fn on_request(&self, link: &Arc<Link>, request: Frame) {
        if request.kind == wire::RecallSlice::KIND {
            // A test that does not look has gone.
            let _ = self.slices.send((link.clone(), request.id));
            return;
        }
        if request.kind == wire::Members::KIND {
            return link.reply::<wire::Members>(request.id, &wire::MembersReply {}, Vec::new());
        }
        assert_eq!(request.kind, wire::Recall::KIND);
        let recall = wire::Recall::decode(request.header).unwrap();
        let asked = Asked { link: link.clone(), id: request.id, recall };
        if self.willing.load(Ordering::Relaxed) {
            asked.answer(false);
        } else {
            // A test that does not look has gone.
            let _ = self.recalls.send(asked);
        }
    }
    fn on_close(&self, _: &Arc<Link>) {}
}

pub struct Mount {
    pub link: Arc<Link>,
    pub welcome: wire::Welcome,
    pub willing: Arc<AtomicBool>,
    recalls: tokio::sync::Mutex<mpsc::UnboundedReceiver<Asked>>,
    slices: tokio::sync::Mutex<mpsc::UnboundedReceiver<(Arc<Link>, u64)>>,
    next_seq: AtomicU64,
    silent: Arc<AtomicBool>,
}

pub fn hello() -> wire::Hello {
    wire::Hello {
        version: PROTOCOL_VERSION,
        oldest_version: PROTOCOL_VERSION,
        namespace: "demo".into(),
        host: "testhost".into(),
        mount_point: "/mnt".into(),
        ..Default::default()
    }
}

pub fn refused(error: CallError) -> Failure {
    match error {
        CallError::Refused(failure) => failure,
        other => panic!("{other}"),
    }
}

impl Mount {
    pub async fn open(address: SocketAddr) -> Mount {
        Mount::say(address, hello()).await.unwrap()
    }

    pub async fn say(address: SocketAddr, hello: wire::Hello) -> Result<Mount, CallError> {
        let (sender, recalls) = mpsc::unbounded_channel();
        let willing = Arc::new(AtomicBool::new(false));
        let (slices, slices_asked) = mpsc::unbounded_channel();
        let door = Arc::new(Door { recalls: sender, slices, willing: willing.clone() });
        let link = Link::connect(address, door, LONG).await.unwrap();
        // A server that just began to lead asks for patience.
        let welcome = match link.call(&hello, Vec::new()).await {
            Ok((welcome, _)) => welcome,
            Err(CallError::Refused(failure)) if failure.code() == Code::Retry => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                link.close();
                return Box::pin(Mount::say(address, hello)).await;
            }
            Err(error) => return Err(error),
        };
        let silent = Arc::new(AtomicBool::new(false));
        tokio::spawn(keep_alive(link.clone(), welcome.validity_ms, silent.clone()));
        let next_seq = AtomicU64::new(welcome.applied_seq + 1);
        let recalls = tokio::sync::Mutex::new(recalls);
        let slices = tokio::sync::Mutex::new(slices_asked);
        Ok(Mount { link, welcome, willing, recalls, slices, next_seq, silent })
    }

    /// The same session over a new connection.
    pub async fn again(
        &self,
        address: SocketAddr,
        leases: Vec<wire::HeldLease>,
        locks: Vec<wire::Lock>,
    ) -> Result<Mount, CallError> {
        let hello = wire::Hello {
            session: self.welcome.session,
            token: self.welcome.token.clone(),
            leases,
            locks,
            ..hello()
        };
        let mount = Mount::say(address, hello).await?;
        mount.next_seq.store(self.next_seq.load(Ordering::Relaxed), Ordering::Relaxed);
        Ok(mount)
    }

    pub fn fall_silent(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }

    pub async fn call<R: Request>(&self, request: R) -> Result<R::Reply, CallError> {
        let call = self.link.call(&request, Vec::new());
        tokio::time::timeout(LONG, call).await.expect("no answer").map(|(reply, _)| reply)
    }

    pub async fn asked(&self) -> Asked {
        tokio::time::timeout(LONG, self.recalls.lock().await.recv()).await.expect("no recall").unwrap()
    }

    /// Gives everything back until it is asked for this inode.
    pub async fn asked_for(&self, ino: Ino) -> Asked {
        loop {
            let asked = self.asked().await;
            if asked.recall.ino == ino.0 {
                return asked;
            }
            asked.answer(false);
        }
    }

    pub async fn not_asked(&self, wait: Duration) {
        let asked = tokio::time::timeout(wait, self.recalls.lock().await.recv()).await;
        assert!(asked.is_err(), "{asked:?}");
    }

    pub fn new_seq(&self) -> u64 {
        self.next_seq.fetch_add(1, Ordering::Relaxed)
    }

    pub async fn edit(&self, op: EditOp) -> Result<wire::EditResult, FsError> {
        self.edit_as(self.new_seq(), op, false, false).await
    }

    pub async fn edit_as(
        &self,
        seq: u64,
        op: EditOp,
        open_here: bool,
        keep_open: bool,
    ) -> Result<wire::EditResult, FsError> {
        match self.call(edits(seq, op, open_here, keep_open)).await {
            Ok(reply) => {
                let result = reply.results.into_iter().next().unwrap();
                result.outcome().unwrap().map(|_| result)
            }
            Err(error) => {
                let failure = refused(error);
                Err(failure.to_fs_error().unwrap().unwrap_or_else(|| panic!("{failure:?}")))
            }
        }
    }

    pub async fn create(&self, parent: Ino, name: &str) -> Result<wire::EditResult, FsError> {
        self.edit(create(parent, name, NewNode::File)).await
    }

    pub async fn mkdir(&self, parent: Ino, name: &str) -> Ino {
        Ino(self.edit(create(parent, name, NewNode::Directory)).await.unwrap().ino)
    }

    pub async fn lookup(&self, parent: Ino, name: &str) -> wire::LookupReply {
        let name = Bytes::copy_from_slice(name.as_bytes());
        self.call(wire::Lookup { parent: parent.0, name }).await.unwrap()
    }

    /// The next time that the slice of the quota is asked back, answered by `answer_slice`.
    pub async fn slice_asked(&self) -> (Arc<Link>, u64) {
        let mut asked = self.slices.lock().await;
        tokio::time::timeout(LONG, asked.recv()).await.expect("asked back").expect("the link is open")
    }

    pub fn answer_slice((link, id): (Arc<Link>, u64)) {
        link.reply::<wire::RecallSlice>(id, &wire::RecallSliceReply {}, Vec::new());
    }

    pub async fn fetch(&self, ino: Ino, want: wire::Mode) -> Result<wire::Node, FsError> {
        match self.call(wire::Fetch { ino: ino.0, want: want.into() }).await {
            Ok(reply) => Ok(reply.node.unwrap()),
            Err(error) => Err(refused(error).to_fs_error().unwrap().unwrap()),
        }
    }
}

async fn keep_alive(link: Arc<Link>, validity_ms: u32, silent: Arc<AtomicBool>) {
    while !link.is_closed() && !silent.load(Ordering::Relaxed) {
        // Whether it is refused is for the test's own requests to find.
        let _ = link.call(&wire::KeepAlive::default(), Vec::new()).await;
        tokio::time::sleep(Duration::from_millis(u64::from(validity_ms) / 4)).await;
    }
}

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub fn create(parent: Ino, text: &str, node: NewNode) -> EditOp {
    EditOp::Create {
        parent,
        name: name(text),
        ino: Ino(0),
        node,
        mode: Mode::new(0o644),
        umask: Mode::new(0),
        uid: 1,
        gid: 1,
    }
}

pub fn unlink(parent: Ino, text: &str) -> EditOp {
    EditOp::Unlink { parent, name: name(text), holders: Vec::new() }
}

pub fn edits(seq: u64, op: EditOp, open_here: bool, keep_open: bool) -> wire::Edits {
    let edit = Edit { time: Timestamp::new(1000, 0), op };
    wire::Edits {
        first_seq: seq,
        answered_seq: 0,
        edits: vec![convert::edit_to_wire(&edit)],
        open_here,
        keep_open,
    }
}

/// The grant of an inode in a result, as it is claimed back.
pub fn held(node: &wire::Node) -> wire::HeldLease {
    let grant = node.grant.as_ref().expect("a grant");
    wire::HeldLease { ino: grant.ino, mode: grant.mode, epoch: grant.epoch }
}

pub fn node_of(result: &wire::EditResult, ino: Ino) -> &wire::Node {
    result.nodes.iter().find(|node| node.attr.as_ref().unwrap().ino == ino.0).expect("a node")
}

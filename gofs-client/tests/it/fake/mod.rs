//! A MetaServer in memory that does as it is told: one session, a real tree, scripted misbehaviour.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use gofs_client::{Client, ClientConfig, KernelCache};
use gofs_proto::convert::{self, Grant, Node};
use gofs_proto::frame::Frame;
use gofs_proto::kind::{self, Request};
use gofs_proto::session::failure::Code;
use gofs_proto::session::{self as wire, Failure};
use gofs_proto::{Link, LinkHandler};
use gofs_tree::{
    ChunkSize, Edit, EditOp, FileType, FsError, Ino, LeaseEpoch, LeaseMode, MemoryStore, Mode, Name,
    NamespaceLimits, Outcome, ROOT_INO, SessionId, Store, Timestamp, XattrName, apply,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What happens to one request, instead of its being served.
#[derive(Clone, Debug)]
pub enum Act {
    /// The connection ends before it is looked at.
    Drop,
    /// It is served, and the connection ends before the answer.
    ServeThenDrop,
    /// It is refused.
    Refuse(Failure),
    /// It is served, without a grant.
    NoGrant,
    /// It is never answered.
    Ignore,
    /// It is served, and the lease on that inode recalled right behind the answer.
    ThenRecall(Ino),
    /// The lease on that inode is recalled, and it is served when that is acknowledged.
    RecallThenServe(Ino),
}

#[derive(Default)]
struct Told {
    /// Acts for the next requests of that kind, in order.
    acts: Vec<(u16, Act)>,
    /// Kinds that misbehave for ever.
    always: HashMap<u16, Act>,
}

struct State {
    tree: MemoryStore,
    next_ino: u64,
    next_epoch: u64,
    leases: HashMap<Ino, Grant>,
    session: u64,
    outcomes: BTreeMap<u64, Result<Outcome, FsError>>,
    /// Edits applied, as text.
    applied: Vec<String>,
    requests: Vec<String>,
    hellos: Vec<wire::Hello>,
    told: Told,
    link: Option<Arc<Link>>,
    validity_ms: u32,
    /// Every grant is for Write, as for the only session of a namespace.
    alone: bool,
    /// The edit of a batch that is refused, as text.
    refused: Option<String>,
    leader: Option<String>,
    /// Answers to recalls that `Act::ThenRecall` sent.
    recalled: Vec<Option<bool>>,
}

/// See the module.
pub struct Fake {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    pub changed: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

struct Handler {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

impl Fake {
    pub async fn start() -> Fake {
        let limits = NamespaceLimits {
            quota_bytes: 0,
            quota_inodes: 0,
            inline_max: 4096,
            chunk_size: ChunkSize::DEFAULT,
        };
        let time = Timestamp::new(1, 0);
        let state = Arc::new(Mutex::new(State {
            tree: MemoryStore::with_root(limits, Mode::new(0o755), 0, 0, time),
            next_ino: 2,
            next_epoch: 1,
            leases: HashMap::new(),
            session: 100,
            outcomes: BTreeMap::new(),
            applied: Vec::new(),
            requests: Vec::new(),
            hellos: Vec::new(),
            told: Told::default(),
            link: None,
            validity_ms: 20_000,
            alone: false,
            refused: None,
            leader: None,
            recalled: Vec::new(),
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let changed = Arc::new(Notify::new());
        let (shared, notify) = (state.clone(), changed.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                gofs_proto::door::which(&stream).await.unwrap();
                let handler = Handler { state: shared.clone(), changed: notify.clone() };
                Link::accept(stream, Arc::new(handler)).unwrap();
            }
        });
        Fake { address, state, changed, task }
    }

    /// Nobody listens any more, and the connection is gone.
    pub fn stop(&self) {
        self.task.abort();
        if let Some(link) = self.state.lock().link.take() {
            link.close();
        }
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig {
            metas: vec![self.address.to_string()],
            namespace: "test".to_owned(),
            mount_timeout: Duration::from_secs(10),
            dirty_age: Duration::from_secs(3600),
            ..ClientConfig::default()
        }
    }

    pub async fn mount(&self) -> (Arc<Client>, Arc<Kernel>) {
        let kernel = Arc::new(Kernel::default());
        let client = Client::mount(self.config(), kernel.clone()).await.unwrap();
        *kernel.client.lock() = Some(Arc::downgrade(&client));
        (client, kernel)
    }

    pub fn next<R: Request>(&self, act: Act) {
        self.state.lock().told.acts.push((R::KIND, act));
    }

    pub fn always<R: Request>(&self, act: Act) {
        self.state.lock().told.always.insert(R::KIND, act);
    }

    pub fn well_behaved(&self) {
        self.state.lock().told = Told::default();
    }

    pub fn set_validity(&self, validity: Duration) {
        self.state.lock().validity_ms = validity.as_millis() as u32;
    }

    /// As the only session of its namespace the client gets Write leases.
    pub fn alone(&self) {
        self.state.lock().alone = true;
    }

    /// Refuses that edit of a batch.
    pub fn refuse(&self, edit: &str) {
        self.state.lock().refused = Some(edit.to_owned());
    }

    /// Sends mounts on.
    pub fn not_leader(&self, leader: &str) {
        self.state.lock().leader = Some(leader.to_owned());
    }

    /// Makes a file behind the client's back and returns its inode.
    pub fn put_file(&self, text: &str, bytes: &[u8]) -> Ino {
        let mut state = self.state.lock();
        let ino = Ino(state.next_ino);
        state.next_ino += 1;
        let time = Timestamp::new(2, 0);
        let create = EditOp::Create {
            parent: ROOT_INO,
            name: name(text),
            ino,
            node: gofs_tree::NewNode::File,
            mode: Mode::new(0o644),
            umask: Mode::new(0),
            uid: 0,
            gid: 0,
        };
        apply(&mut state.tree, &Edit { time, op: create }).unwrap();
        let write = EditOp::WriteInline {
            ino,
            data: Bytes::copy_from_slice(bytes),
            size: bytes.len() as u64,
            mtime: time,
        };
        apply(&mut state.tree, &Edit { time, op: write }).unwrap();
        ino
    }

    /// What the servers hold of a small file.
    pub fn bytes_of(&self, ino: Ino) -> Vec<u8> {
        self.state.lock().tree.inode(ino).unwrap().unwrap().inline.to_vec()
    }

    /// Requests so far, by kind, without keep-alives.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().requests.clone()
    }

    pub fn applied(&self) -> Vec<String> {
        self.state.lock().applied.clone()
    }

    pub fn hellos(&self) -> Vec<wire::Hello> {
        self.state.lock().hellos.clone()
    }

    pub fn lease(&self, ino: Ino) -> Option<Grant> {
        self.state.lock().leases.get(&ino).copied()
    }

    pub fn drop_connection(&self) {
        let link = self.state.lock().link.take();
        link.expect("connected").close();
    }

    /// The session ends, as if it had not been heard of for long.
    pub fn fence(&self) {
        let mut state = self.state.lock();
        state.session += 1;
        state.leases.clear();
        state.outcomes.clear();
    }

    /// Asks for a lease, or names, and returns the acknowledgement.
    pub async fn recall(&self, ino: Ino, epoch: u64, keep: Option<LeaseMode>, names: &[&str]) -> bool {
        let (link, request) = {
            let state = self.state.lock();
            let names = names.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect();
            let keep = convert::lease_mode_to_wire(keep);
            (state.link.clone().expect("connected"), wire::Recall { ino: ino.0, epoch, keep, names })
        };
        let (reply, _) = link.call(&request, Vec::new()).await.expect("acknowledged");
        let mut state = self.state.lock();
        match (keep, names) {
            (None, []) => drop(state.leases.remove(&ino)),
            (Some(mode), []) => {
                state.leases.entry(ino).and_modify(|grant| grant.mode = mode);
            }
            _ => {}
        }
        reply.open
    }

    /// As `recall`, of the whole lease as it is held.
    pub async fn recall_all(&self, ino: Ino) -> bool {
        let epoch = self.lease(ino).expect("held").epoch.0;
        self.recall(ino, epoch, None, &[]).await
    }

    /// Acknowledgements of the recalls of `Act::ThenRecall`; `None` = not yet.
    pub fn recalled(&self) -> Vec<Option<bool>> {
        self.state.lock().recalled.clone()
    }

    pub async fn until(&self, done: impl Fn(&Fake) -> bool) {
        let waiting = async {
            while !done(self) {
                let changed = self.changed.notified();
                let _ = tokio::time::timeout(Duration::from_millis(10), changed).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it must come to that");
    }
}

impl LinkHandler for Handler {
    fn on_request(&self, link: &Arc<Link>, request: Frame) {
        let mut state = self.state.lock();
        if request.kind != wire::KeepAlive::KIND && request.kind != wire::Statfs::KIND {
            state.requests.push(kind::name(request.kind).trim_start_matches("session.").to_owned());
        }
        let at = state.told.acts.iter().position(|(kind, _)| *kind == request.kind);
        let act = at.map(|at| state.told.acts.remove(at).1);
        let act = act.or_else(|| state.told.always.get(&request.kind).cloned());
        match act {
            Some(Act::Drop) => link.close(),
            Some(Act::Ignore) => {}
            Some(Act::Refuse(failure)) => link.refuse(request.id, &failure),
            Some(Act::ServeThenDrop) => {
                let mut silent = Answers { link: None, granting: true };
                state.serve(&mut silent, link, &request);
                link.close();
            }
            Some(Act::NoGrant) => {
                state.serve(&mut Answers { link: Some(link), granting: false }, link, &request);
            }
            Some(Act::ThenRecall(ino)) => {
                state.serve(&mut Answers { link: Some(link), granting: true }, link, &request);
                let epoch = state.leases.remove(&ino).map_or(1, |grant| grant.epoch.0);
                let recall = wire::Recall { ino: ino.0, epoch, keep: 0, names: Vec::new() };
                let at = state.recalled.len();
                state.recalled.push(None);
                let answer = link.call(&recall, Vec::new());
                let (shared, changed) = (self.state.clone(), self.changed.clone());
                tokio::spawn(async move {
                    let open = answer.await.expect("acknowledged").0.open;
                    shared.lock().recalled[at] = Some(open);
                    changed.notify_waiters();
                });
            }
            Some(Act::RecallThenServe(ino)) => {
                let epoch = state.leases.get(&ino).expect("held").epoch.0;
                let recall = wire::Recall { ino: ino.0, epoch, keep: 0, names: Vec::new() };
                let answer = link.call(&recall, Vec::new());
                let (shared, changed, link) = (self.state.clone(), self.changed.clone(), link.clone());
                tokio::spawn(async move {
                    answer.await.expect("acknowledged");
                    let mut state = shared.lock();
                    state.leases.remove(&ino);
                    state.serve(&mut Answers { link: Some(&link), granting: true }, &link, &request);
                    changed.notify_waiters();
                });
            }
            None => state.serve(&mut Answers { link: Some(link), granting: true }, link, &request),
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn on_close(&self, _link: &Arc<Link>) {
        self.changed.notify_waiters();
    }
}

struct Answers<'a> {
    link: Option<&'a Arc<Link>>,
    granting: bool,
}

impl Answers<'_> {
    fn reply<R: Request>(&self, id: u64, reply: &R::Reply) {
        if let Some(link) = self.link {
            link.reply::<R>(id, reply, Vec::new());
        }
    }

    fn fs(&self, id: u64, error: FsError) {
        if let Some(link) = self.link {
            link.refuse(id, &Failure::fs(error));
        }
    }
}

impl State {
    fn grant(&mut self, answers: &Answers<'_>, ino: Ino, mode: LeaseMode) -> Option<Grant> {
        if !answers.granting {
            return None;
        }
        let mode = if self.alone { LeaseMode::Write } else { mode };
        let next = LeaseEpoch(self.next_epoch);
        let grant = self.leases.entry(ino).or_insert(Grant { ino, mode, epoch: next });
        if grant.mode < mode {
            (grant.mode, grant.epoch) = (mode, next);
        }
        self.next_epoch += 1;
        Some(*grant)
    }

    fn node(&mut self, answers: &Answers<'_>, ino: Ino, mode: LeaseMode) -> Result<wire::Node, FsError> {
        let inode = self.tree.inode(ino)?.ok_or(FsError::NotFound)?;
        let grant = self.grant(answers, ino, mode);
        Ok((&Node::of(ino, &inode, false, grant)).into())
    }

    fn hello(&mut self, answers: &Answers<'_>, link: &Arc<Link>, id: u64, hello: wire::Hello) {
        let refuse = |failure| link.refuse(id, &failure);
        if let Some(leader) = &self.leader {
            return refuse(Failure::not_leader(Some(leader)));
        }
        self.hellos.push(hello.clone());
        if hello.session != 0 && hello.session != self.session {
            return refuse(Failure::new(Code::NoSession, "fenced"));
        }
        if hello.namespace != "test" {
            return refuse(Failure::new(Code::NoNamespace, "no such namespace"));
        }
        self.link = Some(link.clone());
        let welcome = wire::Welcome {
            version: 1,
            cluster: b"0123456789abcdef"[..].into(),
            session: self.session,
            token: b"token"[..].into(),
            namespace_id: 1,
            chunk_size: ChunkSize::DEFAULT.bytes(),
            inline_max: 4096,
            replicas: 1,
            validity_ms: self.validity_ms,
            ..wire::Welcome::default()
        };
        answers.reply::<wire::Hello>(id, &welcome);
    }

    fn edits(&mut self, answers: &Answers<'_>, request: &wire::Edits) -> wire::EditsReply {
        let mut results = Vec::new();
        for (at, bytes) in request.edits.iter().enumerate() {
            let seq = request.first_seq + at as u64;
            assert!(request.answered_seq < request.first_seq, "an answered edit is sent again");
            let mut edit = convert::edit(bytes).expect("an edit");
            let mut made = None;
            let outcome = match self.outcomes.get(&seq) {
                Some(outcome) => *outcome,
                None => {
                    if let EditOp::Create { ino, .. } = &mut edit.op {
                        *ino = Ino(self.next_ino);
                        self.next_ino += 1;
                        made = Some(*ino);
                    }
                    if request.open_here
                        && let EditOp::Unlink { holders, .. }
                        | EditOp::Rmdir { holders, .. }
                        | EditOp::Rename { holders, .. } = &mut edit.op
                    {
                        *holders = vec![SessionId(self.session)];
                    }
                    self.applied.push(describe(&edit.op));
                    let outcome = apply(&mut self.tree, &edit);
                    self.outcomes.insert(seq, outcome);
                    outcome
                }
            };
            let mut nodes = Vec::new();
            if let Ok(outcome) = outcome {
                for ino in touched(&edit.op).into_iter().chain([outcome.ino]) {
                    let is_file =
                        self.tree.inode(ino).unwrap().is_some_and(|i| i.file_type == FileType::File);
                    let mode = if made == Some(ino) && is_file { LeaseMode::Write } else { LeaseMode::Read };
                    nodes.extend(self.node(answers, ino, mode).ok());
                }
            }
            results.push(wire::EditResult::new(outcome, nodes));
        }
        wire::EditsReply { results }
    }

    fn batch(&mut self, answers: &Answers<'_>, request: &wire::Batch) -> wire::BatchReply {
        assert!(request.answered_seq < request.first_seq, "an answered edit is sent again");
        let edits: Vec<Edit> =
            request.edits.iter().map(|bytes| convert::edit(bytes).expect("an edit")).collect();
        let mut reply = wire::BatchReply::default();
        for (edit, seq) in edits.iter().zip(request.first_seq..) {
            let outcome = match self.outcomes.get(&seq) {
                Some(outcome) => *outcome,
                None => {
                    self.applied.push(describe(&edit.op));
                    let refused = self.refused.take_if(|op| describe(&edit.op) == *op);
                    let outcome = match refused {
                        Some(_) => Err(FsError::NoSpace),
                        None => apply(&mut self.tree, edit),
                    };
                    self.outcomes.insert(seq, outcome);
                    outcome
                }
            };
            reply.results.push(match outcome {
                Ok(outcome) => wire::BatchResult {
                    removed: outcome.removed.map_or(0, |ino| ino.0),
                    attr: self
                        .tree
                        .inode(outcome.ino)
                        .unwrap()
                        .map(|inode| (&inode.attr(outcome.ino)).into()),
                    ..wire::BatchResult::default()
                },
                Err(error) => wire::BatchResult { fs_error: error.code(), ..wire::BatchResult::default() },
            });
        }
        for edit in &edits {
            if let EditOp::Create { ino, .. } = &edit.op
                && self.tree.inode(*ino).unwrap().is_some()
            {
                reply.grants.extend(self.grant(answers, *ino, LeaseMode::Write).map(wire::Grant::from));
            }
        }
        reply
    }

    fn serve(&mut self, answers: &mut Answers<'_>, link: &Arc<Link>, frame: &Frame) {
        fn of<R: Request>(frame: &Frame) -> Option<R> {
            (frame.kind == R::KIND).then(|| R::decode(frame.header.clone()).expect("a message"))
        }
        let id = frame.id;
        if let Some(hello) = of::<wire::Hello>(frame) {
            self.hello(answers, link, id, hello);
        } else if of::<wire::KeepAlive>(frame).is_some() {
            answers.reply::<wire::KeepAlive>(id, &wire::KeepAliveReply::default());
        } else if of::<wire::Goodbye>(frame).is_some() {
            answers.reply::<wire::Goodbye>(id, &wire::GoodbyeReply {});
        } else if let Some(lookup) = of::<wire::Lookup>(frame) {
            let parent = Ino(lookup.parent);
            let entry = self.tree.entry(parent, &convert::name(&lookup.name).unwrap()).unwrap();
            let node = entry.map(|entry| self.node(answers, entry.ino, LeaseMode::Read).unwrap());
            let dir = self.grant(answers, parent, LeaseMode::Read).map(Into::into);
            answers.reply::<wire::Lookup>(id, &wire::LookupReply { node, dir });
        } else if let Some(fetch) = of::<wire::Fetch>(frame) {
            let want = convert::lease_mode(fetch.want).unwrap().unwrap_or(LeaseMode::Read);
            match self.node(answers, Ino(fetch.ino), want) {
                Ok(node) => answers.reply::<wire::Fetch>(id, &wire::FetchReply { node: Some(node) }),
                Err(error) => answers.fs(id, error),
            }
        } else if let Some(list) = of::<wire::ReadDir>(frame) {
            let ino = Ino(list.ino);
            let after = Name::new(&list.after).ok();
            let all: Vec<(Name, gofs_tree::DirEntry)> =
                self.tree.entries(ino).map(|(name, entry)| (name.clone(), entry)).collect();
            // Small pages, so that there are several.
            let mut left =
                all.into_iter().filter(|(name, _)| after.as_ref().is_none_or(|after| name > after));
            let page: Vec<_> = left.by_ref().take(3).collect();
            let end = left.next().is_none();
            let items = page.into_iter().map(|(name, entry)| wire::DirItem {
                name: name.as_bytes().to_vec().into(),
                ino: entry.ino.0,
                file_type: convert::file_type_to_wire(entry.file_type),
                node: if list.plus { self.node(answers, entry.ino, LeaseMode::Read).ok() } else { None },
            });
            let items = items.collect();
            let dir = self.grant(answers, ino, LeaseMode::Read).map(Into::into);
            let reply = wire::ReadDirReply { items, end, dir, node: None, parent: 1 };
            answers.reply::<wire::ReadDir>(id, &reply);
        } else if let Some(edits) = of::<wire::Edits>(frame) {
            let reply = self.edits(answers, &edits);
            answers.reply::<wire::Edits>(id, &reply);
        } else if let Some(batch) = of::<wire::Batch>(frame) {
            let reply = self.batch(answers, &batch);
            answers.reply::<wire::Batch>(id, &reply);
        } else if let Some(reserve) = of::<wire::Reserve>(frame) {
            let first = self.next_ino;
            self.next_ino += u64::from(reserve.count);
            answers.reply::<wire::Reserve>(id, &wire::ReserveReply { first, count: reserve.count });
        } else if let Some(xattrs) = of::<wire::Xattrs>(frame) {
            let ino = Ino(xattrs.ino);
            let all: Vec<(XattrName, Bytes)> = self.tree.xattrs(ino).unwrap();
            let xattrs =
                all.into_iter().map(|(n, value)| wire::Xattr { name: n.as_bytes().to_vec().into(), value });
            let reply = wire::XattrsReply {
                xattrs: xattrs.collect(),
                grant: self.grant(answers, ino, LeaseMode::Read).map(Into::into),
            };
            answers.reply::<wire::Xattrs>(id, &reply);
        } else if of::<wire::Statfs>(frame).is_some() {
            let reply = wire::StatfsReply { total_bytes: 1 << 40, free_bytes: 1 << 40, ..Default::default() };
            answers.reply::<wire::Statfs>(id, &reply);
        } else if of::<wire::SetLock>(frame).is_some() {
            answers.reply::<wire::SetLock>(id, &wire::SetLockReply {});
        } else if of::<wire::Unlock>(frame).is_some() {
            answers.reply::<wire::Unlock>(id, &wire::UnlockReply {});
        } else if of::<wire::CancelLock>(frame).is_some() {
            answers.reply::<wire::CancelLock>(id, &wire::CancelLockReply {});
        } else if of::<wire::Closed>(frame).is_some() {
            answers.reply::<wire::Closed>(id, &wire::ClosedReply {});
        } else if let Some(release) = of::<wire::Release>(frame) {
            for ino in release.inos {
                self.leases.remove(&Ino(ino));
            }
            answers.reply::<wire::Release>(id, &wire::ReleaseReply {});
        } else {
            link.refuse(id, &Failure::new(Code::BadRequest, format!("kind {}", frame.kind)));
        }
    }
}

fn describe(op: &EditOp) -> String {
    match op {
        EditOp::Create { name, .. } => format!("create {name}"),
        EditOp::Unlink { name, holders, .. } => format!("unlink {name} holders {}", holders.len()),
        EditOp::Rename { name, new_name, .. } => format!("rename {name} {new_name}"),
        EditOp::WriteInline { data, .. } => format!("write {}", data.escape_ascii()),
        EditOp::SetAttr { .. } => "setattr".to_owned(),
        EditOp::SetXattr { name, .. } => format!("setxattr {name}"),
        other => format!("{other:?}"),
    }
}

fn touched(op: &EditOp) -> Vec<Ino> {
    match op {
        EditOp::Create { parent, .. } | EditOp::Unlink { parent, .. } | EditOp::Rmdir { parent, .. } => {
            vec![*parent]
        }
        EditOp::Link { parent, .. } => vec![*parent],
        EditOp::Rename { parent, new_parent, .. } => vec![*parent, *new_parent],
        _ => Vec::new(),
    }
}

/// A kernel that remembers what it was asked to forget.
#[derive(Default)]
pub struct Kernel {
    pub forgotten: Mutex<Vec<String>>,
    /// Runs inside of the next invalidations of an inode, as what the kernel does meanwhile.
    pub meanwhile: Mutex<Vec<Meanwhile>>,
    pub client: Mutex<Option<Weak<Client>>>,
    /// A page that a request in flight keeps locked.
    locked_page: Mutex<Option<u64>>,
    unlocked: parking_lot::Condvar,
    pub cannot_forget_names: std::sync::atomic::AtomicBool,
}

pub type Meanwhile = Box<dyn FnOnce(Arc<Client>) + Send>;

impl Kernel {
    pub fn forgotten(&self) -> Vec<String> {
        self.forgotten.lock().clone()
    }

    pub fn lock_page(&self, page: u64) {
        *self.locked_page.lock() = Some(page);
    }

    pub fn unlock_page(&self) {
        *self.locked_page.lock() = None;
        self.unlocked.notify_all();
    }

    /// As the kernel does: what is locked is waited for.
    fn wait_for_pages(&self, offset: u64, len: u64) {
        let mut locked = self.locked_page.lock();
        let in_the_way = |page: u64| page * 4096 >= offset && (len == 0 || page * 4096 < offset + len);
        while locked.is_some_and(in_the_way) {
            self.unlocked.wait(&mut locked);
        }
    }
}

impl KernelCache for Kernel {
    fn invalidate_inode(&self, ino: Ino) {
        let work = self.meanwhile.lock().pop();
        let client = self.client.lock().as_ref().and_then(Weak::upgrade);
        if let (Some(work), Some(client)) = (work, client) {
            work(client);
        }
        self.wait_for_pages(0, 0);
        self.forgotten.lock().push(ino.to_string());
    }

    fn invalidate_pages(&self, ino: Ino, offset: u64, len: u64) {
        self.wait_for_pages(offset, len);
        self.forgotten.lock().push(format!("{ino} {offset}+{len}"));
    }

    fn invalidate_entries(&self) {
        self.forgotten.lock().push("names".to_owned());
    }

    fn can_cache_entries(&self) -> bool {
        !self.cannot_forget_names.load(std::sync::atomic::Ordering::Relaxed)
    }
}

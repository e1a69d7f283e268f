//! The server behind the fake: one session, a real tree, and an answer to every request that a client sends.
//!
//! It grants what is asked for and recalls nothing by itself. Edits that come again are answered as the first time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use gofs_proto::Link;
use gofs_proto::convert::{self, Grant, Node};
use gofs_proto::frame::Frame;
use gofs_proto::kind::{self, Request};
use gofs_proto::session::failure::Code;
use gofs_proto::session::{self as wire, Failure};
use gofs_tree::{
    ChunkSize, DirEntry, Edit, EditOp, FileType, FsError, Ino, LeaseEpoch, LeaseMode, MemoryStore, Mode,
    Name, NamespaceLimits, NewNode, Outcome, SessionId, Store, Timestamp, XattrName, apply,
};

use super::script::Script;

/// Largest inline file, bytes.
const INLINE_MAX: u32 = 4096;
/// Entries of a page of a directory: few, so that there are several pages.
const PAGE: usize = 3;

/// Sends the answer to a request over a connection.
pub type Answer = Box<dyn FnOnce(&Link) + Send>;

/// What the servers know, and what they have been asked.
pub struct Server {
    pub tree: MemoryStore,
    next_ino: u64,
    next_epoch: u64,
    pub leases: HashMap<Ino, Grant>,
    session: u64,
    outcomes: BTreeMap<u64, Result<Outcome, FsError>>,
    /// Edits applied, as text.
    pub applied: Vec<String>,
    pub requests: Vec<String>,
    pub hellos: Vec<wire::Hello>,
    pub script: Script,
    /// Whether the request that is being served gets grants.
    granting: bool,
    pub link: Option<Arc<Link>>,
    pub validity_ms: u32,
    /// Walks are served: else they are refused, because they come when they like.
    pub walks: bool,
    /// Every grant is for Write, as for the only session of a namespace.
    pub alone: bool,
    /// The edit of a batch that is refused, as text.
    pub refused: Option<String>,
    /// What the next wishes for a slice of the quota bring, bytes and inodes; `None`: nothing is metered.
    pub slice: Option<(u64, u64)>,
    pub meters_inodes: bool,
    given: wire::Amount,
    /// Wishes, and what was given back.
    pub delegated: Vec<wire::Delegate>,
    pub leader: Option<String>,
    /// Leases that the next Hello claims in vain.
    pub refused_leases: Vec<Ino>,
    /// Answers to recalls that `Act::ThenRecall` sent.
    pub recalled: Vec<Option<bool>>,
}

impl Server {
    pub fn new() -> Server {
        let limits = NamespaceLimits {
            quota_bytes: 0,
            quota_inodes: 0,
            inline_max: INLINE_MAX,
            chunk_size: ChunkSize::DEFAULT,
        };
        let time = Timestamp::new(1, 0);
        Server {
            tree: MemoryStore::with_root(limits, Mode::new(0o755), 0, 0, time),
            next_ino: 2,
            next_epoch: 1,
            leases: HashMap::new(),
            session: 100,
            outcomes: BTreeMap::new(),
            applied: Vec::new(),
            requests: Vec::new(),
            hellos: Vec::new(),
            script: Script::default(),
            granting: true,
            link: None,
            validity_ms: 20_000,
            walks: false,
            alone: false,
            refused: None,
            slice: None,
            meters_inodes: true,
            given: wire::Amount::default(),
            delegated: Vec::new(),
            leader: None,
            refused_leases: Vec::new(),
            recalled: Vec::new(),
        }
    }

    /// Makes an inode behind the client's back.
    pub fn put(&mut self, parent: Ino, text: &str, node: NewNode) -> Ino {
        let ino = Ino(self.next_ino);
        self.next_ino += 1;
        let (mode, umask) = (Mode::new(0o644), Mode::new(0));
        let name = super::name(text);
        self.edit(EditOp::Create { parent, name, ino, node, mode, umask, uid: 0, gid: 0 });
        ino
    }

    /// Edits the tree behind the client's back.
    pub fn edit(&mut self, op: EditOp) {
        apply(&mut self.tree, &Edit { time: Timestamp::new(2, 0), op }).unwrap();
    }

    /// Forgets the session, as if it had not been heard of for long.
    pub fn fence(&mut self) {
        self.session += 1;
        self.leases.clear();
        self.outcomes.clear();
        self.given = wire::Amount::default();
    }

    /// Serves a request, with grants or without; what comes back sends the answer.
    pub fn serve(&mut self, link: &Arc<Link>, frame: &Frame, granting: bool) -> Answer {
        self.granting = granting;
        match frame.kind {
            wire::Hello::KIND => answer(frame, |hello: wire::Hello| self.hello(link, hello)),
            wire::Lookup::KIND => answer(frame, |lookup: wire::Lookup| Ok(self.lookup(&lookup))),
            wire::Fetch::KIND => answer(frame, |fetch: wire::Fetch| self.fetch(&fetch)),
            wire::ReadDir::KIND => answer(frame, |list: wire::ReadDir| Ok(self.readdir(&list))),
            wire::Walk::KIND if self.walks => answer(frame, |walk: wire::Walk| {
                let mut listings = Vec::new();
                for &ino in &walk.inos {
                    self.walk(Ino(ino), walk.below, &mut listings);
                }
                Ok(wire::WalkReply { listings })
            }),
            wire::Edits::KIND => answer(frame, |edits: wire::Edits| Ok(self.edits(&edits))),
            wire::Batch::KIND => answer(frame, |batch: wire::Batch| Ok(self.batch(&batch))),
            wire::Reserve::KIND => answer(frame, |reserve: wire::Reserve| Ok(self.reserve(reserve.count))),
            wire::Delegate::KIND => answer(frame, |wish: wire::Delegate| Ok(self.delegate(wish))),
            wire::Xattrs::KIND => answer(frame, |xattrs: wire::Xattrs| Ok(self.xattrs(Ino(xattrs.ino)))),
            wire::Release::KIND => answer(frame, |release: wire::Release| {
                self.leases.retain(|ino, _| !release.inos.contains(&ino.0));
                Ok(wire::ReleaseReply {})
            }),
            wire::Statfs::KIND => answer(frame, |_: wire::Statfs| {
                Ok(wire::StatfsReply { total_bytes: 1 << 40, free_bytes: 1 << 40, ..Default::default() })
            }),
            wire::KeepAlive::KIND => done::<wire::KeepAlive>(frame),
            wire::Goodbye::KIND => done::<wire::Goodbye>(frame),
            wire::SetLock::KIND => done::<wire::SetLock>(frame),
            wire::Unlock::KIND => done::<wire::Unlock>(frame),
            wire::CancelLock::KIND => done::<wire::CancelLock>(frame),
            wire::Closed::KIND => done::<wire::Closed>(frame),
            // Nobody has written to any chunk.
            wire::ChunkMap::KIND => done::<wire::ChunkMap>(frame),
            kind => {
                let (id, failure) = (frame.id, Failure::new(Code::BadRequest, format!("kind {kind}")));
                Box::new(move |link| link.refuse(id, &failure))
            }
        }
    }

    /// Notes a request down, for tests to ask for.
    pub fn record(&mut self, kind: u16) {
        let is_routine = [wire::KeepAlive::KIND, wire::Statfs::KIND, wire::Delegate::KIND];
        if !is_routine.contains(&kind) {
            self.requests.push(kind::name(kind).trim_start_matches("session.").to_owned());
        }
    }

    fn grant(&mut self, ino: Ino, mode: LeaseMode) -> Option<Grant> {
        if !self.granting {
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

    fn node(&mut self, ino: Ino, mode: LeaseMode) -> Result<wire::Node, FsError> {
        let inode = self.tree.inode(ino)?.ok_or(FsError::NotFound)?;
        let grant = self.grant(ino, mode);
        Ok((&Node::of(ino, &inode, inode.chunks > 0, grant)).into())
    }

    fn read_grant(&mut self, ino: Ino) -> Option<wire::Grant> {
        self.grant(ino, LeaseMode::Read).map(Into::into)
    }

    fn hello(&mut self, link: &Arc<Link>, hello: wire::Hello) -> Result<wire::Welcome, Failure> {
        if let Some(leader) = &self.leader {
            return Err(Failure::not_leader(Some(leader)));
        }
        self.hellos.push(hello.clone());
        if hello.session != 0 && hello.session != self.session {
            return Err(Failure::new(Code::NoSession, "fenced"));
        }
        if hello.namespace != "test" {
            return Err(Failure::new(Code::NoNamespace, "no such namespace"));
        }
        self.link = Some(link.clone());
        Ok(wire::Welcome {
            version: 1,
            cluster: b"0123456789abcdef"[..].into(),
            session: self.session,
            token: b"token"[..].into(),
            namespace_id: 1,
            chunk_size: ChunkSize::DEFAULT.bytes(),
            inline_max: INLINE_MAX,
            replicas: 1,
            validity_ms: self.validity_ms,
            refused_leases: self.refused_leases.drain(..).map(|ino| ino.0).collect(),
            ..wire::Welcome::default()
        })
    }

    fn lookup(&mut self, lookup: &wire::Lookup) -> wire::LookupReply {
        let parent = Ino(lookup.parent);
        let entry = self.tree.entry(parent, &convert::name(&lookup.name).unwrap()).unwrap();
        let node = entry.map(|entry| self.node(entry.ino, LeaseMode::Read).unwrap());
        wire::LookupReply { node, dir: self.read_grant(parent) }
    }

    fn fetch(&mut self, fetch: &wire::Fetch) -> Result<wire::FetchReply, Failure> {
        let want = convert::lease_mode(fetch.want).unwrap().unwrap_or(LeaseMode::Read);
        let node = self.node(Ino(fetch.ino), want).map_err(Failure::fs)?;
        Ok(wire::FetchReply { node: Some(node) })
    }

    fn readdir(&mut self, list: &wire::ReadDir) -> wire::ReadDirReply {
        let ino = Ino(list.ino);
        let after = Name::new(&list.after).ok();
        let mut left = self.entries(ino);
        left.retain(|(name, _)| after.as_ref().is_none_or(|after| name > after));
        let end = left.len() <= PAGE;
        left.truncate(PAGE);
        let items = left.iter().map(|(name, entry)| self.item(name, *entry, list.plus)).collect();
        wire::ReadDirReply { items, end, dir: self.read_grant(ino), node: None, parent: 1 }
    }

    fn walk(&mut self, dir: Ino, below: bool, out: &mut Vec<wire::Listing>) {
        let Ok(node) = self.node(dir, LeaseMode::Read) else { return };
        let parent = self.tree.inode(dir).unwrap().expect("just seen").parent.0;
        let entries = self.entries(dir);
        let items = entries.iter().map(|(name, entry)| self.item(name, *entry, true)).collect();
        out.push(wire::Listing { node: Some(node), parent, items, end: true });
        let directories = entries.iter().filter(|(_, entry)| entry.file_type == FileType::Directory);
        for (_, entry) in directories.filter(|_| below) {
            self.walk(entry.ino, below, out);
        }
    }

    fn entries(&self, dir: Ino) -> Vec<(Name, DirEntry)> {
        self.tree.entries(dir).map(|(name, entry)| (name.clone(), entry)).collect()
    }

    fn item(&mut self, name: &Name, entry: DirEntry, with_node: bool) -> wire::DirItem {
        wire::DirItem {
            name: name.as_bytes().to_vec().into(),
            ino: entry.ino.0,
            file_type: convert::file_type_to_wire(entry.file_type),
            node: if with_node { self.node(entry.ino, LeaseMode::Read).ok() } else { None },
            chunk: None,
        }
    }

    fn xattrs(&mut self, ino: Ino) -> wire::XattrsReply {
        let all = self.tree.xattrs(ino).unwrap();
        let shown =
            |(name, value): (XattrName, Bytes)| wire::Xattr { name: name.as_bytes().to_vec().into(), value };
        wire::XattrsReply { xattrs: all.into_iter().map(shown).collect(), grant: self.read_grant(ino) }
    }

    fn edits(&mut self, request: &wire::Edits) -> wire::EditsReply {
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
                        && let Some(holders) = edit.op.holders_mut()
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
                    nodes.extend(self.node(ino, mode).ok());
                }
            }
            results.push(wire::EditResult::new(outcome, nodes));
        }
        wire::EditsReply { results }
    }

    fn batch(&mut self, request: &wire::Batch) -> wire::BatchReply {
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
                reply.grants.extend(self.grant(*ino, LeaseMode::Write).map(wire::Grant::from));
            }
        }
        reply
    }

    fn reserve(&mut self, count: u32) -> wire::ReserveReply {
        let first = self.next_ino;
        self.next_ino += u64::from(count);
        wire::ReserveReply { first, count }
    }

    fn delegate(&mut self, wish: wire::Delegate) -> wire::DelegateReply {
        self.delegated.push(wish);
        if let Some((bytes, inodes)) = self.slice
            && !wish.give_back
        {
            self.given.bytes += bytes;
            self.given.inodes += inodes;
        }
        let metered = self.slice.is_some();
        wire::DelegateReply {
            given: Some(self.given),
            metered: Some(wire::Metered { bytes: metered, inodes: metered && self.meters_inodes }),
        }
    }
}

fn answer<R: Request>(frame: &Frame, serve: impl FnOnce(R) -> Result<R::Reply, Failure>) -> Answer {
    let id = frame.id;
    let served = serve(R::decode(frame.header.clone()).expect("a message"));
    Box::new(move |link| match served {
        Ok(reply) => link.reply::<R>(id, &reply, Vec::new()),
        Err(failure) => link.refuse(id, &failure),
    })
}

/// The answer to what is always fine and changes nothing here.
fn done<R: Request>(frame: &Frame) -> Answer {
    answer(frame, |_: R| Ok(R::Reply::default()))
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

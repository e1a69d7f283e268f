//! Random edits against a model that was written from the manual pages, not from `apply`:
//! a tree of nodes that own their children, links counted by looking, never kept.

mod model;

use std::cell::Cell;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use self::model::{Model, Seen};
use super::fixture::{LIMITS, xattr_name};
use crate::{
    AttrChange, ChunkId, ChunkIndex, ChunkRef, DirEntry, Edit, EditOp, Encode, FsError, Ino, Inode,
    MemoryStore, Mode, Name, NamespaceLimits, NewNode, Orphan, ROOT_INO, RenameFlags, SessionId, Store,
    TimeChange, Timestamp, Usage, XattrName, XattrSetMode, apply, check,
};

/// Small enough that sequences run into both quotas.
const TIGHT: NamespaceLimits =
    NamespaceLimits { quota_bytes: 400_000, quota_inodes: 12, inline_max: 100, ..LIMITS };

/// Inode numbers in generated edits are positions in the list of all that were ever made.
fn ino() -> impl Strategy<Value = Ino> {
    (0u64..16).prop_map(Ino)
}

fn name() -> impl Strategy<Value = Name> {
    prop_oneof!["a", "b", "cc"].prop_map(|text| Name::new(text.as_bytes()).unwrap())
}

fn mode() -> impl Strategy<Value = Mode> {
    (0u32..0o10000).prop_map(Mode::new)
}

fn holders() -> impl Strategy<Value = Vec<SessionId>> {
    prop_oneof![2 => Just(vec![]), 1 => vec((1u64..4).prop_map(SessionId), 1..3)]
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..200_000, 1 => Just(65_536), 1 => Just(131_072), 1 => any::<u64>()]
}

fn time() -> impl Strategy<Value = Timestamp> {
    (0i64..100, 0u32..1000).prop_map(|(secs, nanos)| Timestamp::new(secs, nanos))
}

fn node() -> impl Strategy<Value = NewNode> {
    prop_oneof![
        3 => Just(NewNode::File),
        4 => Just(NewNode::Directory),
        1 => prop_oneof!["", "t", "longer"].prop_map(|t| NewNode::Symlink { target: t.into() }),
        1 => Just(NewNode::Fifo),
        1 => (1u32..3).prop_map(|rdev| NewNode::CharDevice { rdev }),
    ]
}

fn change() -> impl Strategy<Value = AttrChange> {
    let time_change = || prop_oneof![Just(TimeChange::Now), time().prop_map(TimeChange::To)];
    (
        proptest::option::of(mode()),
        proptest::option::of(0u32..3),
        proptest::option::of(0u32..3),
        proptest::option::of(size()),
        proptest::option::of(time_change()),
        proptest::option::of(time_change()),
        any::<bool>(),
    )
        .prop_map(|(mode, uid, gid, size, atime, mtime, kill)| AttrChange {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
            kill_suid_sgid: kill,
        })
}

fn names_op() -> impl Strategy<Value = EditOp> {
    let flags = prop_oneof![
        3 => Just(RenameFlags::default()),
        1 => Just(RenameFlags { no_replace: true, exchange: false }),
        2 => Just(RenameFlags { no_replace: false, exchange: true }),
        1 => Just(RenameFlags { no_replace: true, exchange: true }),
    ];
    prop_oneof![
        6 => (ino(), name(), node(), mode(), mode(), 0u32..3, 0u32..3).prop_map(
            |(parent, name, node, mode, umask, uid, gid)| EditOp::Create {
                parent, name, ino: Ino(0), node, mode, umask, uid, gid,
            }
        ),
        2 => (ino(), ino(), name()).prop_map(|(ino, parent, name)| EditOp::Link { ino, parent, name }),
        2 => (ino(), name(), holders())
            .prop_map(|(parent, name, holders)| EditOp::Unlink { parent, name, holders }),
        1 => (ino(), name(), holders())
            .prop_map(|(parent, name, holders)| EditOp::Rmdir { parent, name, holders }),
        5 => (ino(), name(), ino(), name(), flags, holders()).prop_map(
            |(parent, name, new_parent, new_name, flags, holders)| EditOp::Rename {
                parent, name, new_parent, new_name, flags, holders,
            }
        ),
        1 => (ino(), (1u64..4).prop_map(SessionId))
            .prop_map(|(ino, session)| EditOp::ReleaseOrphan { ino, session }),
    ]
}

fn inode_op() -> impl Strategy<Value = EditOp> {
    let set_mode =
        prop_oneof![Just(XattrSetMode::Either), Just(XattrSetMode::Create), Just(XattrSetMode::Replace)];
    let xattr = || proptest::sample::select(vec!["user.a", "user.b", "trusted.c"]).prop_map(xattr_name);
    let index = || (0u32..4).prop_map(ChunkIndex);
    prop_oneof![
        3 => (ino(), change()).prop_map(|(ino, change)| EditOp::SetAttr { ino, change }),
        1 => (ino(), xattr(), vec(any::<u8>(), 0..3), set_mode).prop_map(|(ino, name, value, mode)| {
            EditOp::SetXattr { ino, name, value: value.into(), mode }
        }),
        1 => (ino(), xattr()).prop_map(|(ino, name)| EditOp::RemoveXattr { ino, name }),
        3 => (ino(), vec(any::<u8>(), 0..110), 0u64..120, time()).prop_map(|(ino, data, size, mtime)| {
            EditOp::WriteInline { ino, data: data.into(), size, mtime }
        }),
        3 => (ino(), index()).prop_map(|(ino, index)| EditOp::AddChunk { ino, index, chunk: ChunkId(0) }),
        3 => (ino(), size(), time(), vec((index(), 0u32..18), 0..3), any::<bool>()).prop_map(
            |(ino, size, mtime, blocks_4k, clear_inline)| EditOp::Extend {
                ino, size, mtime, blocks_4k, clear_inline,
            }
        ),
        1 => (ino(), size()).prop_map(|(ino, end)| EditOp::Allocate { ino, end }),
        2 => (ino(), size(), size()).prop_map(|(ino, start, end)| EditOp::Punch { ino, start, end }),
    ]
}

fn edits() -> impl Strategy<Value = Vec<EditOp>> {
    vec(prop_oneof![names_op(), inode_op()], 1..60)
}

/// Puts in what the generator left open: positions become inode numbers, new ids are fresh.
struct Numbering {
    made: Vec<Ino>,
    next: u64,
}

impl Numbering {
    fn new() -> Self {
        Numbering { made: vec![ROOT_INO], next: 2 }
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn edit(&mut self, at: usize, mut op: EditOp) -> Edit {
        let made = self.made.clone();
        let known = |ino: &mut Ino| *ino = made[ino.0 as usize % made.len()];
        match &mut op {
            EditOp::Create { parent, ino, .. } => {
                known(parent);
                *ino = Ino(self.fresh());
                self.made.push(*ino);
            }
            EditOp::Link { ino, parent, .. } => {
                known(ino);
                known(parent);
            }
            EditOp::Unlink { parent, .. } | EditOp::Rmdir { parent, .. } => known(parent),
            EditOp::Rename { parent, new_parent, .. } => {
                known(parent);
                known(new_parent);
            }
            EditOp::AddChunk { ino, chunk, .. } => {
                known(ino);
                *chunk = ChunkId(self.fresh());
            }
            EditOp::SetAttr { ino, .. }
            | EditOp::SetXattr { ino, .. }
            | EditOp::RemoveXattr { ino, .. }
            | EditOp::WriteInline { ino, .. }
            | EditOp::Extend { ino, .. }
            | EditOp::Allocate { ino, .. }
            | EditOp::Punch { ino, .. }
            | EditOp::ReleaseOrphan { ino, .. } => known(ino),
        }
        Edit { time: Timestamp::new(1000 + at as i64, 7), op }
    }
}

fn numbered(ops: Vec<EditOp>) -> Vec<Edit> {
    let mut numbering = Numbering::new();
    ops.into_iter().enumerate().map(|(at, op)| numbering.edit(at, op)).collect()
}

fn new_store() -> MemoryStore {
    MemoryStore::with_root(TIGHT, Mode::new(0o755), 0, 0, Timestamp::new(1, 0))
}

/// What a person would see in the store: every path, and every open file without one.
fn seen_in(store: &MemoryStore) -> Seen {
    let mut seen = Seen::default();
    let mut todo = vec![(String::new(), ROOT_INO)];
    todo.extend(store.orphans().map(|(ino, _)| (format!("orphan {}", ino.0), ino)));
    while let Some((path, ino)) = todo.pop() {
        let inode = store.inode(ino).unwrap().expect("a name of what does not exist");
        let chunks = store.chunks_from(ino, ChunkIndex(0)).unwrap();
        let xattrs = store.xattrs(ino).unwrap();
        seen.insert(
            path.clone(),
            model::Look {
                attr: inode.attr(ino),
                inline: inode.inline.to_vec(),
                chunks: chunks
                    .iter()
                    .map(|(index, chunk)| (index.0, chunk.chunk.0, chunk.blocks_4k))
                    .collect(),
                xattrs: xattrs.iter().map(|(name, value)| (name.to_string(), value.to_vec())).collect(),
                holders: store
                    .orphan(ino)
                    .unwrap()
                    .map_or(vec![], |o| o.holders.iter().map(|s| s.0).collect()),
            },
        );
        todo.extend(store.entries(ino).map(|(name, entry)| (format!("{path}/{name}"), entry.ino)));
    }
    seen
}

/// All records as bytes.
fn bytes_of(store: &MemoryStore) -> Vec<u8> {
    let mut out = store.usage().unwrap().to_bytes();
    for (ino, inode) in store.inodes() {
        out.extend(ino.0.to_le_bytes());
        inode.encode(&mut out);
    }
    for (parent, name, entry) in store.all_entries() {
        out.extend(parent.0.to_le_bytes());
        out.extend(name.as_bytes());
        entry.encode(&mut out);
    }
    for (ino, name, value) in store.all_xattrs() {
        out.extend(ino.0.to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(value);
    }
    for (ino, index, chunk) in store.all_chunks() {
        out.extend(ino.0.to_le_bytes());
        out.extend(index.0.to_le_bytes());
        chunk.encode(&mut out);
    }
    for (ino, orphan) in store.orphans() {
        out.extend(ino.0.to_le_bytes());
        orphan.encode(&mut out);
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn apply_does_what_the_model_does(ops in edits()) {
        let mut store = new_store();
        let mut model = Model::new(TIGHT, Timestamp::new(1, 0));
        for edit in numbered(ops) {
            let before = store.clone();
            let done = apply(&mut store, &edit);
            prop_assert_eq!(done, model.apply(&edit), "{:?}", edit);
            if done.is_err() {
                prop_assert_eq!(&store, &before, "{:?} was refused and changed something", edit);
            }
            prop_assert_eq!(seen_in(&store), model.seen(), "after {:?}", edit);
            prop_assert_eq!(store.usage().unwrap(), model.usage(), "after {:?}", edit);
            prop_assert_eq!(check(&store), Vec::<String>::new(), "after {:?}", edit);
            let live: Vec<u64> = store.all_chunks().map(|(.., chunk)| chunk.chunk.0).collect();
            let removed: Vec<u64> = store.removed_chunks().iter().map(|chunk| chunk.0).collect();
            let mut all = [live, removed].concat();
            all.sort_unstable();
            prop_assert_eq!(all, model.chunks_ever(), "a chunk was forgotten, or removed twice");
        }
    }

    #[test]
    fn a_replay_from_bytes_gives_the_same_bytes(ops in edits()) {
        let edits = numbered(ops);
        let mut first = new_store();
        let outcomes: Vec<_> = edits.iter().map(|edit| apply(&mut first, edit)).collect();
        let mut second = new_store();
        for (edit, outcome) in edits.iter().zip(outcomes) {
            prop_assert_eq!(apply(&mut second, &Edit::decode(&edit.to_bytes()).unwrap()), outcome);
        }
        prop_assert_eq!(bytes_of(&first), bytes_of(&second));
        prop_assert_eq!(first, second);
    }

    #[test]
    fn a_store_that_cannot_answer_is_left_as_it_was(ops in edits()) {
        let mut store = new_store();
        for edit in numbered(ops) {
            let expected = apply(&mut store.clone(), &edit);
            for reads in 0.. {
                prop_assert!(reads < 100, "{:?} reads on and on", edit);
                let mut failing = Failing { inner: store.clone(), reads: Cell::new(reads), failed: Cell::new(false) };
                let result = apply(&mut failing, &edit);
                if result.is_err() {
                    prop_assert_eq!(&failing.inner, &store, "{:?} after {} reads", edit, reads);
                }
                if !failing.failed.get() {
                    prop_assert_eq!(result, expected);
                    store = failing.inner;
                    break;
                }
                prop_assert_eq!(result, Err(FsError::NotCached));
            }
        }
    }
}

/// Answers only so many reads.
struct Failing {
    inner: MemoryStore,
    reads: Cell<u32>,
    failed: Cell<bool>,
}

impl Failing {
    fn read(&self) -> Result<&MemoryStore, FsError> {
        match self.reads.get().checked_sub(1) {
            Some(left) => {
                self.reads.set(left);
                Ok(&self.inner)
            }
            None => {
                self.failed.set(true);
                Err(FsError::NotCached)
            }
        }
    }
}

impl Store for Failing {
    fn limits(&self) -> NamespaceLimits {
        self.inner.limits()
    }
    fn usage(&self) -> Result<Usage, FsError> {
        self.read()?.usage()
    }
    fn set_usage(&mut self, usage: Usage) {
        self.inner.set_usage(usage);
    }
    fn inode(&self, ino: Ino) -> Result<Option<Inode>, FsError> {
        self.read()?.inode(ino)
    }
    fn set_inode(&mut self, ino: Ino, inode: Inode) {
        self.inner.set_inode(ino, inode);
    }
    fn remove_inode(&mut self, ino: Ino) {
        self.inner.remove_inode(ino);
    }
    fn entry(&self, parent: Ino, name: &Name) -> Result<Option<DirEntry>, FsError> {
        self.read()?.entry(parent, name)
    }
    fn set_entry(&mut self, parent: Ino, name: &Name, entry: DirEntry) {
        self.inner.set_entry(parent, name, entry);
    }
    fn remove_entry(&mut self, parent: Ino, name: &Name) {
        self.inner.remove_entry(parent, name);
    }
    fn is_empty_dir(&self, ino: Ino) -> Result<bool, FsError> {
        self.read()?.is_empty_dir(ino)
    }
    fn xattr(&self, ino: Ino, name: &XattrName) -> Result<Option<Bytes>, FsError> {
        self.read()?.xattr(ino, name)
    }
    fn xattrs(&self, ino: Ino) -> Result<Vec<(XattrName, Bytes)>, FsError> {
        self.read()?.xattrs(ino)
    }
    fn set_xattr(&mut self, ino: Ino, name: &XattrName, value: Bytes) {
        self.inner.set_xattr(ino, name, value);
    }
    fn remove_xattr(&mut self, ino: Ino, name: &XattrName) {
        self.inner.remove_xattr(ino, name);
    }
    fn chunk(&self, ino: Ino, index: ChunkIndex) -> Result<Option<ChunkRef>, FsError> {
        self.read()?.chunk(ino, index)
    }
    fn chunks_from(&self, ino: Ino, first: ChunkIndex) -> Result<Vec<(ChunkIndex, ChunkRef)>, FsError> {
        self.read()?.chunks_from(ino, first)
    }
    fn set_chunk(&mut self, ino: Ino, index: ChunkIndex, chunk: ChunkRef) {
        self.inner.set_chunk(ino, index, chunk);
    }
    fn remove_chunk(&mut self, ino: Ino, index: ChunkIndex, chunk: ChunkId) {
        self.inner.remove_chunk(ino, index, chunk);
    }
    fn orphan(&self, ino: Ino) -> Result<Option<Orphan>, FsError> {
        self.read()?.orphan(ino)
    }
    fn set_orphan(&mut self, ino: Ino, orphan: Orphan) {
        self.inner.set_orphan(ino, orphan);
    }
    fn remove_orphan(&mut self, ino: Ino) {
        self.inner.remove_orphan(ino);
    }
}

/// The comparison is no formality: one bit of one mode is a difference.
#[test]
fn a_store_that_differs_from_the_model_is_noticed() {
    let mut store = new_store();
    let mut model = Model::new(TIGHT, Timestamp::new(1, 0));
    assert_eq!(seen_in(&store), model.seen());
    let set_mode = |bits| Edit {
        time: Timestamp::new(2, 0),
        op: EditOp::SetAttr {
            ino: ROOT_INO,
            change: AttrChange { mode: Some(Mode::new(bits)), ..AttrChange::default() },
        },
    };
    apply(&mut store, &set_mode(0o700)).unwrap();
    model.apply(&set_mode(0o701)).unwrap();
    assert_ne!(seen_in(&store), model.seen());
}

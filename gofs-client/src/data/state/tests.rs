//! A file's state against a byte model and a server that applies its edits: random writes, sizes and holes,
//! flushes that overlap writes, flushes that are abandoned or refused, authors who died.

use std::collections::BTreeMap;

use gofs_tree::{
    Attr, AttrChange, ChunkId, ChunkIndex, ChunkVersion, EditOp, Mode, Name, NamespaceLimits, NewNode,
    ROOT_INO, Store, apply,
};
use proptest::prelude::*;

use super::super::ChunkLocation;
use super::super::chunks::{ChunkSpan, spans};
use super::*;

const CHUNK_BYTES: u32 = 64 << 10;
const SPACE: u64 = 330 << 10;
const INO: Ino = Ino(2);

fn geometry() -> Geometry {
    Geometry { chunk_size: ChunkSize::new(CHUNK_BYTES).unwrap(), inline_max: 4096, early_run_bytes: 24 << 10 }
}

struct Server {
    store: gofs_tree::MemoryStore,
    bytes: BTreeMap<ChunkId, Vec<u8>>,
    clock: i64,
    next_chunk: u64,
}

impl Server {
    fn new() -> Self {
        let limits = NamespaceLimits {
            quota_bytes: 0,
            quota_inodes: 0,
            inline_max: geometry().inline_max,
            chunk_size: geometry().chunk_size,
        };
        let store = gofs_tree::MemoryStore::with_root(limits, Mode::new(0o755), 0, 0, Timestamp::default());
        let mut server = Server { store, bytes: BTreeMap::new(), clock: 0, next_chunk: 1 };
        server.apply(EditOp::Create {
            parent: ROOT_INO,
            name: Name::new(b"f").unwrap(),
            ino: INO,
            node: NewNode::File,
            mode: Mode::new(0o644),
            umask: Mode::new(0),
            uid: 0,
            gid: 0,
        });
        server
    }

    fn now(&mut self) -> Timestamp {
        self.clock += 1;
        Timestamp::new(self.clock, 0)
    }

    fn apply(&mut self, op: EditOp) -> Attr {
        let time = self.now();
        self.commit(&Edit { time, op })
    }

    fn commit(&mut self, edit: &Edit) -> Attr {
        apply(&mut self.store, edit).unwrap_or_else(|error| panic!("{error}: {edit:?}"));
        self.store.inode(INO).unwrap().unwrap().attr(INO)
    }

    fn content(&self) -> Content {
        let inode = self.store.inode(INO).unwrap().unwrap();
        // As the MetaServer tells it: not of a file with inline bytes.
        let has_chunks =
            inode.inline.is_empty() && !self.store.chunks_from(INO, ChunkIndex(0)).unwrap().is_empty();
        Content::new(&inode.attr(INO), inode.inline.clone(), has_chunks)
    }

    fn chunk(&self, index: ChunkIndex) -> Option<&Vec<u8>> {
        self.store.chunk(INO, index).unwrap().map(|chunk| &self.bytes[&chunk.chunk])
    }

    fn chunk_mut(&mut self, index: ChunkIndex) -> Option<&mut Vec<u8>> {
        let chunk = self.store.chunk(INO, index).unwrap()?;
        self.bytes.get_mut(&chunk.chunk)
    }

    fn add_chunk(&mut self, index: ChunkIndex, fill: u8) {
        let chunk = ChunkId(self.next_chunk);
        self.next_chunk += 1;
        self.apply(EditOp::AddChunk { ino: INO, index, chunk });
        self.bytes.insert(chunk, vec![fill; CHUNK_BYTES as usize]);
    }

    fn locations(&self, first: u64, end: u64) -> Vec<ChunkLocation> {
        let all = self.store.chunks_from(INO, ChunkIndex(first as u32)).unwrap();
        all.into_iter()
            .filter(|(index, _)| u64::from(index.0) < end)
            .map(|(index, chunk)| ChunkLocation {
                index,
                chunk: chunk.chunk,
                version: ChunkVersion(1),
                blocks_4k: chunk.blocks_4k,
                replicas: Vec::new(),
                lost: false,
            })
            .collect()
    }

    fn read(&self, range: ByteRange) -> Vec<u8> {
        let mut out = Vec::new();
        for span in spans(range, geometry().chunk_size) {
            let at = span.offset.0 as usize..(span.offset.0 + span.len) as usize;
            match self.chunk(span.index) {
                Some(bytes) => out.extend_from_slice(&bytes[at]),
                None => out.resize(out.len() + at.len(), 0),
            }
        }
        out
    }
}

/// A flush that has begun.
enum Pending {
    Inline(Edit),
    Out(OutPlan, bool),
}

struct World {
    server: Server,
    state: FileState,
    model: Vec<u8>,
    pending: Option<Pending>,
}

impl World {
    fn new() -> Self {
        let server = Server::new();
        let state = FileState::new(INO, geometry(), server.content());
        World { server, state, model: Vec::new(), pending: None }
    }

    fn learn(&mut self, range: ByteRange) {
        let (first, end) = (range.start / u64::from(CHUNK_BYTES), range.end.div_ceil(u64::from(CHUNK_BYTES)));
        while let Some((at, until)) = self.state.chunks.first_unknown(first, end) {
            self.state.chunks.learn(at, until, self.server.locations(at, until), geometry().chunk_size);
        }
    }

    fn zero(&mut self, range: ByteRange) {
        self.learn(range);
        for span in self.state.chunks.not_zero(range, geometry().chunk_size) {
            let bytes = self.server.chunk_mut(span.index).unwrap();
            bytes[span.offset.0 as usize..(span.offset.0 + span.len) as usize].fill(0);
        }
    }

    fn write_span(&mut self, span: ChunkSpan, bytes: &[u8]) {
        let start = span.index.start(geometry().chunk_size).0;
        self.learn(ByteRange { start, end: start + 1 });
        if self.state.chunks.get(span.index) == Some(None) {
            self.server.add_chunk(span.index, 0);
            let at = u64::from(span.index.0);
            let location = self.server.locations(at, at + 1).remove(0);
            self.state.chunks.allocated(location, geometry().chunk_size);
        }
        let end = span.offset.0 + span.len;
        self.state.chunks.writing(span.index, u64::from(end));
        self.server.chunk_mut(span.index).unwrap()[span.offset.0 as usize..end as usize]
            .copy_from_slice(bytes);
        assert!(self.state.chunks.written(span.index, ChunkVersion(1), end.div_ceil(4096)));
    }

    /// Writes a plan, all of it or the first `part` runs.
    fn write_out(&mut self, plan: &OutPlan, part: usize) {
        for range in &plan.zero {
            self.zero(*range);
        }
        for run in plan.runs.iter().take(part) {
            let bytes = run.pieces.concat();
            let range = ByteRange { start: run.offset, end: run.offset + run.len() };
            for span in spans(range, geometry().chunk_size) {
                let at = (span.index.start(geometry().chunk_size).0 + u64::from(span.offset.0) - run.offset)
                    as usize;
                self.write_span(span, &bytes[at..at + span.len as usize]);
            }
        }
    }

    fn begin(&mut self, scope: Scope) {
        assert!(self.pending.is_none());
        self.pending = match self.state.begin_flush(scope) {
            Plan::Nothing if scope == Scope::Early => None,
            Plan::Nothing => {
                let nothing = OutPlan { zero: Vec::new(), runs: Vec::new(), valid_end: 0 };
                Some(Pending::Out(nothing, true))
            }
            Plan::Inline(edit) => Some(Pending::Inline(edit)),
            Plan::Out(plan) => Some(Pending::Out(plan, scope != Scope::Early)),
        };
    }

    fn commit(&mut self, edit: &Edit) {
        let attr = self.server.commit(edit);
        self.state.committed(edit, &attr, Instant::now());
    }

    fn finish(&mut self) {
        match self.pending.take() {
            None => {}
            Some(Pending::Inline(edit)) => self.commit(&edit),
            Some(Pending::Out(plan, full)) => {
                self.write_out(&plan, usize::MAX);
                self.state.written_out(&plan);
                if full && let Some(edit) = self.state.begin_commit() {
                    // No reader of the server may see bytes that nobody wrote.
                    self.commit(&edit);
                }
            }
        }
    }

    fn flush(&mut self, limit: u64) {
        self.finish();
        self.begin(Scope::Below(limit));
        self.finish();
    }

    fn refuse(&mut self, part: usize) {
        match self.pending.take() {
            None => return,
            Some(Pending::Inline(_)) => {}
            Some(Pending::Out(plan, _)) => self.write_out(&plan, part),
        }
        self.state.refused(Instant::now());
        // What is lost is undefined, but from now on it is what this reads.
        self.model = self.read(0, u64::MAX);
    }

    fn abandon(&mut self, part: usize) {
        match &self.pending {
            Some(Pending::Out(..)) => {
                let Some(Pending::Out(plan, _)) = self.pending.take() else { return };
                self.write_out(&plan, part);
            }
            // A commit under way is waited for.
            _ => self.finish(),
        }
    }

    fn write(&mut self, offset: Option<u64>, len: u64, byte: u8) {
        let offset_in = offset.unwrap_or(self.model.len() as u64);
        let len = len.min(SPACE.saturating_sub(offset_in));
        let now = self.server.now();
        let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add((i % 251) as u8) | 1).collect();
        let at = self.state.write(offset, Bytes::from(data.clone()), now, Instant::now()).unwrap();
        assert_eq!(at, offset_in);
        if len > 0 {
            let end = (offset_in + len) as usize;
            self.model.resize(self.model.len().max(end), 0);
            self.model[offset_in as usize..end].copy_from_slice(&data);
        }
    }

    fn truncate(&mut self, size: u64) {
        self.finish();
        if size > 0 {
            self.flush(size);
        }
        if let Some(range) = self.state.exposed_by(size) {
            self.zero(range);
        }
        let change = AttrChange { size: Some(size), ..AttrChange::default() };
        let attr = self.server.apply(EditOp::SetAttr { ino: INO, change });
        self.state.attr_set(Some(size), &attr, Instant::now());
        self.model.resize(size as usize, 0);
    }

    fn punch(&mut self, start: u64, end: u64) {
        self.flush(u64::MAX);
        let size = self.state.size();
        let inside = ByteRange { start: start.min(size), end: end.min(size) };
        if self.state.in_chunks() && !inside.is_empty() {
            let edges: Vec<ChunkSpan> =
                spans(inside, geometry().chunk_size).filter(|span| span.len < CHUNK_BYTES).collect();
            for span in edges {
                let from = span.index.start(geometry().chunk_size).0 + u64::from(span.offset.0);
                self.zero(ByteRange { start: from, end: from + u64::from(span.len) });
            }
        }
        let attr = self.server.apply(EditOp::Punch { ino: INO, start, end });
        self.state.punched(inside, &attr);
        self.model[inside.start as usize..inside.end as usize].fill(0);
    }

    fn allocate(&mut self, end: u64) {
        self.flush(u64::MAX);
        if let Some(range) = self.state.exposed_by(end) {
            self.zero(range);
        }
        let attr = self.server.apply(EditOp::Allocate { ino: INO, end });
        self.state.grown(&attr);
        self.model.resize(self.model.len().max(end as usize), 0);
    }

    /// The lease goes and comes back; meanwhile authors died and left what they may leave.
    fn reload(&mut self, garbage: u8) {
        self.flush(u64::MAX);
        assert!(!self.state.has_news());
        assert_eq!(self.state.weight().dirty_bytes, 0);
        let size = self.model.len() as u64;
        let chunk_bytes = u64::from(CHUNK_BYTES);
        let inline = self.server.content().inline;
        if let Some(inline) = &inline {
            if garbage & 1 == 1 && !inline.is_empty() && self.server.chunk(ChunkIndex(0)).is_none() {
                self.server.add_chunk(ChunkIndex(0), 0xEE);
            }
        } else if let Some(bytes) = self.server.chunk_mut(ChunkIndex((size / chunk_bytes) as u32)) {
            bytes[(size % chunk_bytes) as usize..].fill(0xEE);
        }
        let past = ChunkIndex(size.div_ceil(chunk_bytes) as u32);
        let is_sparse = inline.is_some_and(|inline| inline.is_empty()) && size > 0;
        if garbage & 2 == 2 && !is_sparse && self.server.chunk(past).is_none() {
            self.server.add_chunk(past, 0xEE);
        }
        self.state = FileState::new(INO, geometry(), self.server.content());
    }

    fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in self.state.plan_read(offset, len) {
            match piece {
                ReadPiece::Bytes(bytes) => out.extend_from_slice(&bytes),
                ReadPiece::Zeros(len) => out.resize(out.len() + len as usize, 0),
                ReadPiece::Fetch(range) => {
                    let id = self.state.begin_fetch(range);
                    let bytes = self.server.read(range);
                    out.extend_from_slice(&bytes);
                    self.state.end_fetch(id, Some(Bytes::from(bytes)));
                }
                ReadPiece::Join(..) => panic!("no read is under way"),
            }
        }
        out
    }

    fn check(&mut self, offset: u64, len: u64) {
        let read = self.read(offset, len);
        let start = (offset as usize).min(self.model.len());
        let end = (offset.saturating_add(len)).min(self.model.len() as u64) as usize;
        let expected = &self.model[start..end.max(start)];
        assert_eq!(read.len(), expected.len());
        if let Some(at) = (0..read.len()).find(|&i| read[i] != expected[i]) {
            panic!("byte {} is {:#x}, not {:#x}", start + at, read[at], expected[at]);
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, u64, u8),
    Append(u64, u8),
    Read(u64, u64),
    Truncate(u64),
    Punch(u64, u64),
    Allocate(u64),
    Begin,
    BeginEarly,
    Finish,
    Abandon(usize),
    Refuse(usize),
    Reload(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let at = prop_oneof![0..5000u64, 0..SPACE];
    let len = prop_oneof![1..3000u64, 1..80_000u64];
    let op = prop_oneof![
        6 => (at.clone(), len.clone(), any::<u8>()).prop_map(|(at, len, byte)| Op::Write(at, len, byte)),
        3 => (len.clone(), any::<u8>()).prop_map(|(len, byte)| Op::Append(len, byte)),
        3 => (at.clone(), len.clone()).prop_map(|(at, len)| Op::Read(at, len)),
        2 => at.clone().prop_map(Op::Truncate),
        1 => Just(Op::Truncate(0)),
        1 => (at.clone(), len).prop_map(|(at, len)| Op::Punch(at, at + len)),
        1 => at.prop_map(Op::Allocate),
        3 => Just(Op::Begin),
        2 => Just(Op::BeginEarly),
        3 => Just(Op::Finish),
        1 => (0..4usize).prop_map(Op::Abandon),
        1 => (0..4usize).prop_map(Op::Refuse),
        2 => any::<u8>().prop_map(Op::Reload),
    ];
    prop::collection::vec(op, 1..60)
}

fn run(ops: Vec<Op>) {
    let mut world = World::new();
    for op in ops {
        match op {
            Op::Write(at, len, byte) => world.write(Some(at), len, byte),
            Op::Append(len, byte) => world.write(None, len, byte),
            Op::Read(at, len) => world.check(at, len),
            Op::Truncate(size) => world.truncate(size),
            Op::Punch(start, end) => world.punch(start, end),
            Op::Allocate(end) => world.allocate(end),
            Op::Begin if world.pending.is_none() => world.begin(Scope::Below(u64::MAX)),
            Op::BeginEarly if world.pending.is_none() => world.begin(Scope::Early),
            Op::Begin | Op::BeginEarly => {}
            Op::Finish => world.finish(),
            Op::Abandon(part) => world.abandon(part),
            Op::Refuse(part) => world.refuse(part),
            Op::Reload(garbage) => world.reload(garbage),
        }
        world.check(0, u64::MAX);
        assert_eq!(world.state.size(), world.model.len() as u64);
    }
    world.reload(0);
    world.check(0, u64::MAX);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_file_reads_as_it_was_written_here_and_after_every_flush(ops in ops()) {
        run(ops);
    }
}

#[test]
fn bytes_past_the_end_never_show() {
    let mut world = World::new();
    world.write(Some(0), 70_000, 1);
    world.reload(0);
    world.truncate(10_000);
    world.reload(0);
    world.truncate(60_000);
    world.check(0, u64::MAX);
    world.reload(0);
    world.write(Some(62_000), 10, 7);
    world.reload(0);
    world.check(0, u64::MAX);
}

#[test]
fn what_a_flush_took_shows_until_it_is_out_and_new_writes_win() {
    let mut world = World::new();
    world.write(Some(0), 20_000, 1);
    world.begin(Scope::Below(u64::MAX));
    world.write(Some(5_000), 100, 9);
    world.check(0, u64::MAX);
    world.finish();
    assert!(world.state.has_news());
    assert_eq!(world.state.weight().dirty_bytes, 100);
    world.check(0, u64::MAX);
}

#[test]
fn a_read_that_began_before_a_write_is_not_kept() {
    let mut world = World::new();
    world.write(Some(0), 20_000, 1);
    world.reload(0);
    world.learn(ByteRange { start: 0, end: 1 });
    let range = ByteRange { start: 0, end: 20_000 };
    let before = world.server.read(range);
    let id = world.state.begin_fetch(range);
    world.write(Some(100), 10, 77);
    world.flush(u64::MAX);
    assert!(!world.state.end_fetch(id, Some(Bytes::from(before))));
    world.check(0, u64::MAX);
}

#[test]
fn a_read_that_began_under_a_dirty_write_does_not_outlive_its_flush() {
    for ends_before_flush in [true, false] {
        let mut world = World::new();
        world.write(Some(0), 20_000, 1);
        world.reload(0);
        let range = ByteRange { start: 0, end: 20_000 };
        let before = Bytes::from(world.server.read(range));
        // The read was planned, the write came, and only then the read was registered.
        world.write(Some(100), 10, 77);
        let id = world.state.begin_fetch(range);
        if ends_before_flush {
            assert!(world.state.end_fetch(id, Some(before.clone())));
            world.check(0, u64::MAX);
        }
        world.flush(u64::MAX);
        if !ends_before_flush {
            assert!(!world.state.end_fetch(id, Some(before)));
        }
        world.check(0, u64::MAX);
    }
}

#[test]
fn an_overlay_shows_until_the_commit_is_answered() {
    let mut world = World::new();
    assert_eq!(world.state.overlay(), None);
    world.write(Some(0), 100, 1);
    world.begin(Scope::Below(u64::MAX));
    let overlay = world.state.overlay().unwrap();
    assert_eq!((overlay.size, overlay.mtime), (100, overlay.ctime));
    world.finish();
    assert_eq!(world.state.overlay(), None);
    let attr = world.server.store.inode(INO).unwrap().unwrap();
    assert_eq!((attr.size, attr.mtime, attr.ctime), (100, overlay.mtime, overlay.ctime));
}

#[test]
fn nothing_is_left_of_a_discarded_file() {
    let mut world = World::new();
    world.write(Some(0), 50_000, 1);
    assert_eq!(world.state.discard(), 50_000);
    assert_eq!(world.state.weight(), Weight::default());
    let refused = world.state.write(Some(0), Bytes::from_static(b"x"), Timestamp::default(), Instant::now());
    assert_eq!(refused, Err(FsError::NotCached));
}

#[test]
fn of_a_file_that_was_discarded_on_its_way_out_of_its_inode_nothing_is_flushed() {
    let mut world = World::new();
    world.write(Some(0), 1000, 1);
    world.flush(u64::MAX);
    world.write(Some(1000), 50_000, 2);
    assert!(matches!(world.state.begin_flush(Scope::Below(u64::MAX)), Plan::Out(_)));
    assert!(world.state.discard() > 0);
    // Another one waited for the first. The file is somebody else's by now, and so are its chunks.
    assert!(matches!(world.state.begin_flush(Scope::Below(u64::MAX)), Plan::Nothing));
    assert!(world.state.begin_commit().is_none());
    assert!(world.state.is_over(0) && world.state.is_over(1), "nor is anything sent for it");
}

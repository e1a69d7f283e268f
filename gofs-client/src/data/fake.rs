//! A cluster in memory for tests: ChunkServers on real links, and the metadata of one namespace, with faults
//! on demand.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use gofs_proto::chunk::*;
use gofs_proto::frame::Frame;
use gofs_proto::kind::Request;
use gofs_proto::session::{Failure, failure::Code};
use gofs_proto::{Link, LinkHandler};
use gofs_tree::{
    Attr, ChunkId, ChunkIndex, ChunkRef, ChunkServerId, ChunkSize, ChunkVersion, Edit, EditOp, FsError, Ino,
    MemoryStore, Mode, Name, NamespaceId, NamespaceLimits, NewNode, ROOT_INO, SessionId, Store, Timestamp,
    apply,
};
use parking_lot::{Mutex, MutexGuard};
use prost::Message;

use crate::slices::Room;

use super::{BoxFuture, ChunkLocation, Content, DataConfig, FileMeta, Replica};

pub const CHUNK_BYTES: u32 = 64 << 10;
pub const INO: Ino = Ino(2);
pub const SESSION: SessionId = SessionId(7);

/// One chunk as a server has it.
#[derive(Clone, Default)]
pub struct Stored {
    pub version: u64,
    pub bytes: Vec<u8>,
    blocks: BTreeSet<u32>,
}

impl Stored {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes.resize(self.bytes.len().max(offset + bytes.len()), 0);
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        let last = (offset + bytes.len() - 1) as u32 / 4096;
        self.blocks.extend(offset as u32 / 4096..=last);
    }

    fn punch(&mut self, offset: usize, len: usize) {
        let end = (offset + len).min(self.bytes.len());
        if offset < end {
            self.bytes[offset..end].fill(0);
        }
        let whole = (offset as u32).div_ceil(4096)..(offset + len) as u32 / 4096;
        self.blocks.retain(|block| !whole.contains(block));
    }
}

/// A ChunkServer.
pub struct FakeServer {
    pub id: ChunkServerId,
    pub address: String,
    pub chunks: Mutex<HashMap<u64, Stored>>,
    /// What a power loss leaves.
    durable: Mutex<HashMap<u64, Stored>>,
    /// Drops every connection at its next request.
    pub down: AtomicBool,
    pub full: AtomicBool,
    /// Damages what it reads.
    pub corrupt: AtomicBool,
    pub fenced: AtomicBool,
    /// Answers nothing.
    pub deaf: AtomicBool,
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    pub writes: AtomicU64,
    pub syncs: AtomicU64,
    /// Answers no Write before this is taken back.
    pub holding: AtomicBool,
    /// So many Writes are done, and the connection ends instead of an answer.
    pub forgetful: AtomicU64,
    /// So many Writes are taken, the connection ends, and they are done when there is time: at the latest before the next
    /// connection is taken.
    pub late: AtomicU64,
    undone: Mutex<Vec<(Write, Bytes)>>,
    /// Chunks for which there is no room.
    pub no_room_for: Mutex<BTreeSet<u64>>,
}

impl FakeServer {
    pub fn lose_power(&self) {
        *self.chunks.lock() = self.durable.lock().clone();
    }

    /// Does what is late.
    pub fn catch_up(&self) {
        for (write, payload) in self.undone.lock().drain(..) {
            // Refused where the version has moved meanwhile.
            let _ = self.write(&write, &payload);
        }
    }

    fn sync(&self, chunk: u64) {
        if let Some(stored) = self.chunks.lock().get(&chunk) {
            self.durable.lock().insert(chunk, stored.clone());
        }
    }

    fn admit(&self, chunk: u64, version: u64, create: bool) -> Result<(), Failure> {
        if self.fenced.load(Ordering::Relaxed) {
            return Err(refusal(Code::StaleChunk, "fenced"));
        }
        if self.full.load(Ordering::Relaxed) || self.no_room_for.lock().contains(&chunk) {
            let fs_error = FsError::NoSpace.code();
            return Err(Failure { fs_error, ..refusal(Code::Fs, "full") });
        }
        match self.chunks.lock().get(&chunk) {
            Some(stored) if stored.version == version => Ok(()),
            Some(_) => Err(refusal(Code::StaleChunk, "version")),
            None if create => Ok(()),
            None => Err(refusal(Code::NoChunk, "not here")),
        }
    }

    fn write(&self, write: &Write, payload: &[u8]) -> Result<Vec<ItemDone>, Failure> {
        let mut at = 0;
        let mut done = Vec::new();
        for item in &write.items {
            self.admit(item.chunk, item.version, item.create)?;
            let bytes = &payload[at..at + item.len as usize];
            at += bytes.len();
            assert_eq!(crc32c::crc32c(bytes), item.crc32c, "checksum of an item");
            assert!(item.offset + item.len <= CHUNK_BYTES, "past the end of a chunk");
            let mut chunks = self.chunks.lock();
            let stored = chunks.entry(item.chunk).or_default();
            stored.version = item.version;
            stored.put(item.offset as usize, bytes);
            done.push(ItemDone { blocks_4k: stored.blocks.len() as u32 });
        }
        assert_eq!(at, payload.len());
        self.writes.fetch_add(1, Ordering::Relaxed);
        if write.sync {
            write.items.iter().for_each(|item| self.sync(item.chunk));
        }
        Ok(done)
    }

    fn punch(&self, punch: &Punch) -> Result<u32, Failure> {
        self.admit(punch.chunk, punch.version, false)?;
        let mut chunks = self.chunks.lock();
        let stored = chunks.get_mut(&punch.chunk).ok_or_else(|| refusal(Code::NoChunk, "not here"))?;
        stored.punch(punch.offset as usize, punch.len as usize);
        Ok(stored.blocks.len() as u32)
    }
}

/// Whether one was left.
fn count_down(left: &AtomicU64) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

fn refusal(code: Code, text: &str) -> Failure {
    Failure { code: code.into(), text: text.to_owned(), ..Failure::default() }
}

fn failed(server: &FakeServer, failure: &Failure) -> Failed {
    let no_space = failure.fs_error == FsError::NoSpace.code();
    Failed { server: server.id.0, text: failure.text.clone(), no_space }
}

struct Door {
    cluster: std::sync::Weak<FakeCluster>,
    server: Arc<FakeServer>,
}

impl LinkHandler for Door {
    fn on_request(&self, link: &Arc<Link>, request: Frame) {
        let Some(cluster) = self.cluster.upgrade() else { return link.close() };
        if self.server.down.load(Ordering::Relaxed) || cluster.trip() {
            return link.close();
        }
        if self.server.deaf.load(Ordering::Relaxed) && request.kind != Hello::KIND {
            return;
        }
        cluster.serve(&self.server, link, request);
    }

    fn on_close(&self, _link: &Arc<Link>) {}
}

struct Meta {
    store: MemoryStore,
    replicas: BTreeMap<ChunkId, (ChunkVersion, Vec<ChunkServerId>)>,
    clock: i64,
    next_chunk: u64,
    /// Calls of `place`.
    places: u64,
    /// What they added.
    unsent: Vec<Edit>,
    /// Chunks that were asked for by somebody who did not wait for them.
    given_up: Vec<(Ino, ChunkIndex)>,
    /// What has no replica is lost.
    all_servers_are_there: bool,
}

/// See the module.
pub struct FakeCluster {
    me: std::sync::Weak<FakeCluster>,
    pub servers: Vec<Arc<FakeServer>>,
    meta: Mutex<Meta>,
    /// One in so many requests breaks its connection; 0: none.
    pub trip_one_in: AtomicU32,
    requests: AtomicU32,
    pub commits: Mutex<Vec<EditOp>>,
    pub maps: AtomicU64,
    pub refuse_commits: Mutex<Option<FsError>>,
    pub reported: Mutex<Vec<(ChunkServerId, bool)>>,
    /// The session of now: requests and writes of others are refused.
    pub session: Mutex<SessionId>,
    pub map_read_only: AtomicBool,
    /// Its replicas may lack writes: they are not told of, and refuse to be synced.
    pub in_doubt: Mutex<Option<ChunkServerId>>,
    /// So many requests for chunks are given up by whoever asks, and carried out before the next one or the next commit.
    pub allocations_given_up: AtomicU64,
    /// Answers no question for a map before this is taken back.
    pub maps_held: AtomicBool,
    /// Answers no Sync before this is taken back.
    pub syncs_held: AtomicBool,
    /// Of each chunk of which replicas failed, whether it was called blank.
    pub called_blank: Mutex<Vec<(ChunkIndex, bool)>>,
    /// Neither commits nor syncs are answered before one of each has been asked for.
    pub meeting: AtomicBool,
    pub committing: AtomicBool,
}

impl FakeCluster {
    pub async fn start(servers: u64) -> Arc<FakeCluster> {
        let mut listeners = Vec::new();
        let mut fakes = Vec::new();
        for id in 1..=servers {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            fakes.push(Arc::new(FakeServer {
                id: ChunkServerId(id),
                address: listener.local_addr().unwrap().to_string(),
                chunks: Mutex::default(),
                durable: Mutex::default(),
                down: AtomicBool::new(false),
                full: AtomicBool::new(false),
                corrupt: AtomicBool::new(false),
                fenced: AtomicBool::new(false),
                deaf: AtomicBool::new(false),
                reads: AtomicU64::new(0),
                read_bytes: AtomicU64::new(0),
                writes: AtomicU64::new(0),
                syncs: AtomicU64::new(0),
                holding: AtomicBool::new(false),
                forgetful: AtomicU64::new(0),
                late: AtomicU64::new(0),
                undone: Mutex::default(),
                no_room_for: Mutex::default(),
            }));
            listeners.push(listener);
        }
        let limits = NamespaceLimits {
            quota_bytes: 0,
            quota_inodes: 0,
            inline_max: 4096,
            chunk_size: ChunkSize::new(CHUNK_BYTES).unwrap(),
        };
        let store = MemoryStore::with_root(limits, Mode::new(0o755), 0, 0, Timestamp::default());
        let meta = Meta {
            store,
            replicas: BTreeMap::new(),
            clock: 0,
            next_chunk: 1,
            places: 0,
            unsent: Vec::new(),
            given_up: Vec::new(),
            all_servers_are_there: false,
        };
        let cluster = Arc::new_cyclic(|me| FakeCluster {
            me: me.clone(),
            servers: fakes,
            meta: Mutex::new(meta),
            trip_one_in: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            commits: Mutex::default(),
            maps: AtomicU64::new(0),
            refuse_commits: Mutex::default(),
            reported: Mutex::default(),
            session: Mutex::new(SESSION),
            map_read_only: AtomicBool::new(false),
            in_doubt: Mutex::default(),
            allocations_given_up: AtomicU64::new(0),
            maps_held: AtomicBool::new(false),
            syncs_held: AtomicBool::new(false),
            called_blank: Mutex::default(),
            meeting: AtomicBool::new(false),
            committing: AtomicBool::new(false),
        });
        for (listener, server) in listeners.into_iter().zip(cluster.servers.clone()) {
            let weak = Arc::downgrade(&cluster);
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let door = Door { cluster: weak.clone(), server: server.clone() };
                    Link::accept(stream, Arc::new(door)).unwrap();
                }
            });
        }
        cluster.create(INO);
        cluster
    }

    pub fn create(&self, ino: Ino) {
        let name = Name::new(format!("f{}", ino.0).as_bytes()).unwrap();
        let op = EditOp::Create {
            parent: ROOT_INO,
            name,
            ino,
            node: NewNode::File,
            mode: Mode::new(0o644),
            umask: Mode::new(0),
            uid: 0,
            gid: 0,
        };
        let edit = Edit { time: Timestamp::default(), op };
        apply(&mut self.meta.lock().store, &edit).unwrap();
    }

    pub fn config(&self) -> DataConfig {
        let (me, chunk_size) = (self.me.clone(), ChunkSize::new(CHUNK_BYTES).unwrap());
        let session = move || me.upgrade().map_or(SessionId(0), |cluster| *cluster.session.lock());
        DataConfig::new(NamespaceId(1), Arc::new(session), Bytes::from_static(b"cluster"), chunk_size, 4096)
    }

    pub fn now(&self) -> Timestamp {
        let mut meta = self.meta.lock();
        meta.clock += 1;
        Timestamp::new(meta.clock, 0)
    }

    pub fn set_quota(&self, quota_bytes: u64) {
        let mut meta = self.meta.lock();
        let limits = NamespaceLimits { quota_bytes, ..meta.store.limits() };
        meta.store.set_limits(limits);
    }

    pub fn content(&self, ino: Ino) -> Content {
        let meta = self.meta.lock();
        let inode = meta.store.inode(ino).unwrap().unwrap();
        let has_chunks =
            inode.inline.is_empty() && !meta.store.chunks_from(ino, ChunkIndex(0)).unwrap().is_empty();
        Content::new(&inode.attr(ino), inode.inline.clone(), has_chunks)
    }

    pub fn server(&self, id: ChunkServerId) -> &Arc<FakeServer> {
        &self.servers[id.0 as usize - 1]
    }

    /// Which chunk of the cluster a file's chunk is.
    pub fn chunk_id(&self, ino: Ino, index: u32) -> ChunkId {
        let meta = self.settled().unwrap();
        meta.store.chunk(ino, ChunkIndex(index)).unwrap().unwrap().chunk
    }

    /// All servers go down with what was not synced, and what is left counts from then on.
    pub fn lose_power(&self) {
        let mut meta = self.meta.lock();
        for (chunk, (version, servers)) in &mut meta.replicas {
            version.0 += 1 << ChunkVersion::COUNT_BITS;
            for id in &*servers {
                let server = self.server(*id);
                if let Some(stored) = server.durable.lock().get_mut(&chunk.0) {
                    stored.version = version.0;
                }
            }
        }
        self.servers.iter().for_each(|server| server.lose_power());
    }

    /// The replicas of a file's chunk.
    pub fn replicas(&self, ino: Ino, index: u32) -> Vec<Arc<FakeServer>> {
        let meta = self.meta.lock();
        let chunk = meta.store.chunk(ino, ChunkIndex(index)).unwrap().unwrap().chunk;
        meta.replicas[&chunk].1.iter().map(|id| self.server(*id).clone()).collect()
    }

    /// Nothing is left of the chunk, and no server is away that could have it.
    pub fn lose_chunk(&self, ino: Ino, index: u32) {
        self.lose_unwritten(ino, index);
        self.meta.lock().all_servers_are_there = true;
    }

    /// Nothing is left of the chunk, which was never written so far as is known here.
    pub fn lose_unwritten(&self, ino: Ino, index: u32) {
        let chunk = self.chunk_id(ino, index);
        self.meta.lock().replicas.entry(chunk).and_modify(|(_, servers)| servers.clear());
        self.servers.iter().for_each(|server| drop(server.chunks.lock().remove(&chunk.0)));
    }

    /// Every replica of every chunk of the file holds the same bytes below the file's size.
    pub fn check_replicas(&self, ino: Ino) {
        let meta = self.meta.lock();
        let size = meta.store.inode(ino).unwrap().unwrap().size;
        for (index, chunk) in meta.store.chunks_from(ino, ChunkIndex(0)).unwrap() {
            let start = u64::from(index.0) * u64::from(CHUNK_BYTES);
            let len = size.saturating_sub(start).min(u64::from(CHUNK_BYTES)) as usize;
            let (version, servers) = &meta.replicas[&chunk.chunk];
            let mut first: Option<Vec<u8>> = None;
            for server in servers {
                let chunks = self.server(*server).chunks.lock();
                let Some(stored) = chunks.get(&chunk.chunk.0) else {
                    assert_eq!(chunk.blocks_4k, 0, "{server} lacks chunk {}", index.0);
                    continue;
                };
                assert_eq!(stored.version, version.0);
                let mut bytes = stored.bytes.clone();
                bytes.resize(CHUNK_BYTES as usize, 0);
                bytes.truncate(len);
                assert!(
                    *first.get_or_insert_with(|| bytes.clone()) == bytes,
                    "replicas of chunk {} differ",
                    index.0
                );
            }
        }
    }

    fn trip(&self) -> bool {
        let one_in = self.trip_one_in.load(Ordering::Relaxed);
        // Not every so many: a retry of just that many requests would break at the same one for ever.
        let mixed = self.requests.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9) >> 12;
        one_in > 0 && mixed % one_in == one_in - 1
    }

    fn serve(&self, server: &FakeServer, link: &Arc<Link>, request: Frame) {
        let id = request.id;
        let header = request.header;
        match request.kind {
            Hello::KIND => {
                let hello = Hello::decode(header).unwrap();
                assert_eq!((&hello.cluster[..], hello.writer.len()), (&b"cluster"[..], 16));
                server.catch_up();
                link.reply::<Hello>(
                    id,
                    &Welcome { version: 1, server: server.id.0, incarnation: 1 },
                    Vec::new(),
                );
            }
            Write::KIND => {
                let write = Write::decode(header).unwrap();
                if write.writer != Some(Writer { namespace: 1, session: self.session.lock().0 }) {
                    return link.refuse(id, &refusal(Code::StaleChunk, "session"));
                }
                if count_down(&server.late) {
                    server.undone.lock().push((write, request.payload));
                    return link.close();
                }
                match server.write(&write, &request.payload) {
                    Err(failure) => link.refuse(id, &failure),
                    Ok(done) => {
                        let others = write.chain.iter().map(|hop| self.server(ChunkServerId(hop.server)));
                        let failed = others
                            .filter_map(|other| {
                                let result = match other.down.load(Ordering::Relaxed) {
                                    true => Err(refusal(Code::Retry, "down")),
                                    false => other.write(&write, &request.payload),
                                };
                                result.err().map(|failure| failed(other, &failure))
                            })
                            .collect();
                        if count_down(&server.forgetful) {
                            return link.close();
                        }
                        let reply = WriteReply { done, failed };
                        if !server.holding.load(Ordering::Relaxed) {
                            return link.reply::<Write>(id, &reply, Vec::new());
                        }
                        let (server, link) = (self.server(server.id).clone(), link.clone());
                        tokio::spawn(async move {
                            while server.holding.load(Ordering::Relaxed) {
                                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                            }
                            link.reply::<Write>(id, &reply, Vec::new());
                        });
                    }
                }
            }
            Punch::KIND => {
                let punch = Punch::decode(header).unwrap();
                match server.punch(&punch) {
                    Err(failure) => link.refuse(id, &failure),
                    Ok(blocks_4k) => {
                        let others = punch.chain.iter().map(|hop| self.server(ChunkServerId(hop.server)));
                        let failed = others
                            .filter_map(|other| {
                                let result = match other.down.load(Ordering::Relaxed) {
                                    true => Err(refusal(Code::Retry, "down")),
                                    false => other.punch(&punch),
                                };
                                result.err().map(|failure| failed(other, &failure))
                            })
                            .collect();
                        link.reply::<Punch>(id, &PunchReply { blocks_4k, failed }, Vec::new());
                    }
                }
            }
            Read::KIND => {
                let read = Read::decode(header).unwrap();
                server.reads.fetch_add(1, Ordering::Relaxed);
                server.read_bytes.fetch_add(read.len.into(), Ordering::Relaxed);
                let chunks = server.chunks.lock();
                let Some(stored) = chunks.get(&read.chunk) else {
                    return link.refuse(id, &refusal(Code::NoChunk, "not here"));
                };
                if stored.version < read.version {
                    return link.refuse(id, &refusal(Code::StaleChunk, "old"));
                }
                let mut bytes = stored.bytes.clone();
                bytes.resize(CHUNK_BYTES as usize, 0);
                let mut bytes = bytes[read.offset as usize..(read.offset + read.len) as usize].to_vec();
                let crc32c = crc32c::crc32c(&bytes);
                if server.corrupt.load(Ordering::Relaxed) {
                    bytes[0] ^= 1;
                }
                link.reply::<Read>(id, &ReadReply { crc32c }, vec![Bytes::from(bytes)]);
            }
            Sync::KIND => {
                let sync = Sync::decode(header).unwrap();
                if *self.in_doubt.lock() == Some(server.id) {
                    return link.refuse(id, &refusal(Code::StaleChunk, "in doubt"));
                }
                server.syncs.fetch_add(1, Ordering::Relaxed);
                for item in &sync.items {
                    let Some(stored) = server.chunks.lock().get(&item.chunk).map(|stored| stored.version)
                    else {
                        return link.refuse(id, &refusal(Code::NoChunk, "not here"));
                    };
                    if stored < item.version.max(item.written) {
                        return link.refuse(id, &refusal(Code::StaleChunk, "old"));
                    }
                    let losses = |version| ChunkVersion(version).losses();
                    if item.written > 0 && losses(stored) > losses(item.written) {
                        return link.refuse(id, &refusal(Code::LostWrites, "lost"));
                    }
                    server.sync(item.chunk);
                }
                let (cluster, link) = (self.me.clone(), link.clone());
                tokio::spawn(async move {
                    if let Some(cluster) = cluster.upgrade() {
                        cluster.sync_is_let_go().await;
                    }
                    link.reply::<Sync>(id, &SyncReply {}, Vec::new());
                });
            }
            Extents::KIND => {
                let extents = Extents::decode(header).unwrap();
                let chunks = server.chunks.lock();
                let Some(stored) = chunks.get(&extents.chunk) else {
                    return link.refuse(id, &refusal(Code::NoChunk, "not here"));
                };
                let extents =
                    stored.blocks.iter().map(|&start_4k| Extent { start_4k, blocks_4k: 1 }).collect();
                link.reply::<Extents>(id, &ExtentsReply { extents }, Vec::new());
            }
            other => panic!("request of kind {other}"),
        }
    }

    async fn sync_is_let_go(&self) {
        while self.syncs_held.load(Ordering::Relaxed) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        self.meet().await;
    }

    async fn meet(&self) {
        let synced = || self.servers.iter().any(|server| server.syncs.load(Ordering::Relaxed) > 0);
        while self.meeting.load(Ordering::Relaxed) && !(self.committing.load(Ordering::Relaxed) && synced()) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    fn location(&self, meta: &Meta, index: ChunkIndex, chunk: ChunkRef) -> ChunkLocation {
        let (version, servers) = &meta.replicas[&chunk.chunk];
        ChunkLocation {
            index,
            chunk: chunk.chunk,
            version: *version,
            blocks_4k: chunk.blocks_4k,
            replicas: servers
                .iter()
                .map(|id| Replica { server: *id, address: self.server(*id).address.clone() })
                .collect(),
            lost: servers.is_empty() && meta.all_servers_are_there,
        }
    }

    /// A chunk with two replicas on servers that are there.
    fn new_chunk(&self, meta: &mut Meta) -> ChunkId {
        let chunk = ChunkId(meta.next_chunk);
        meta.next_chunk += 1;
        self.place_at(meta, chunk, ChunkVersion(1));
        chunk
    }

    /// On servers that are there.
    fn place_at(&self, meta: &mut Meta, chunk: ChunkId, version: ChunkVersion) {
        let live = self.servers.iter().filter(|server| !server.down.load(Ordering::Relaxed));
        let mut live: Vec<ChunkServerId> = live.map(|server| server.id).collect();
        let turn = chunk.0 as usize % live.len().max(1);
        live.rotate_left(turn);
        live.truncate(2);
        meta.replicas.insert(chunk, (version, live));
    }

    /// Does what was given up.
    fn carry_out(&self) {
        let mut meta = self.meta.lock();
        for (ino, index) in std::mem::take(&mut meta.given_up) {
            let chunk = self.new_chunk(&mut meta);
            let op = EditOp::AddChunk { ino, index, chunk };
            // Refused where the file has one.
            let _ = apply(&mut meta.store, &Edit { time: Timestamp::default(), op });
        }
    }

    fn admit(&self, session: SessionId) -> Result<(), FsError> {
        if *self.session.lock() == session { Ok(()) } else { Err(FsError::Stale) }
    }

    /// What the server knows, after all that was done without it.
    fn settled(&self) -> Result<MutexGuard<'_, Meta>, FsError> {
        let mut meta = self.meta.lock();
        for edit in std::mem::take(&mut meta.unsent) {
            apply(&mut meta.store, &edit)?;
        }
        Ok(meta)
    }
}

impl FileMeta for FakeCluster {
    fn make_room(&self, _bytes: u64) -> BoxFuture<'_, Result<Room, FsError>> {
        unreachable!("nothing is metered")
    }

    fn chunk_map(
        &self,
        ino: Ino,
        first: ChunkIndex,
        count: u32,
    ) -> BoxFuture<'_, Result<Vec<ChunkLocation>, FsError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.maps.fetch_add(1, Ordering::Relaxed);
            while self.maps_held.load(Ordering::Relaxed) {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            let meta = self.settled()?;
            let end = u64::from(first.0) + u64::from(count);
            let found = meta.store.chunks_from(ino, first)?;
            let inside = found.into_iter().filter(|(index, _)| u64::from(index.0) < end);
            let mut found: Vec<_> = inside.map(|(index, chunk)| self.location(&meta, index, chunk)).collect();
            if self.map_read_only.load(Ordering::Relaxed) {
                for location in &mut found {
                    location.version = ChunkVersion(0);
                    if location.blocks_4k == 0 {
                        location.replicas.clear();
                    }
                }
            }
            let in_doubt = *self.in_doubt.lock();
            for location in &mut found {
                let all = location.replicas.len();
                location.replicas.retain(|replica| Some(replica.server) != in_doubt);
                if location.replicas.len() < all {
                    location.version = ChunkVersion(0);
                }
            }
            Ok(found)
        })
    }

    fn allocate(
        &self,
        ino: Ino,
        session: SessionId,
        indexes: Vec<ChunkIndex>,
        blank: Vec<ChunkId>,
    ) -> BoxFuture<'_, Result<Vec<ChunkLocation>, FsError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.admit(session)?;
            self.carry_out();
            let mut meta = self.settled()?;
            if count_down(&self.allocations_given_up) {
                meta.given_up.extend(indexes.iter().map(|&index| (ino, index)));
                return Err(FsError::Io);
            }
            let mut out = Vec::new();
            for index in indexes {
                if meta.store.chunk(ino, index)?.is_none() {
                    let chunk = self.new_chunk(&mut meta);
                    let op = EditOp::AddChunk { ino, index, chunk };
                    apply(&mut meta.store, &Edit { time: Timestamp::default(), op })?;
                }
                let chunk = meta.store.chunk(ino, index)?.ok_or(FsError::Io)?;
                let (version, servers) = meta.replicas[&chunk.chunk].clone();
                if servers.is_empty() && chunk.blocks_4k == 0 && !meta.all_servers_are_there {
                    let with_loss = ChunkVersion(version.0 + (1 << ChunkVersion::COUNT_BITS));
                    self.place_at(&mut meta, chunk.chunk, with_loss);
                }
                if blank.contains(&chunk.chunk)
                    && servers.iter().all(|id| self.server(*id).down.load(Ordering::Relaxed))
                {
                    self.place_at(&mut meta, chunk.chunk, version.next());
                }
                out.push(self.location(&meta, index, chunk));
            }
            Ok(out)
        })
    }

    /// Every second time out of a pool: the server hears of it with the next request.
    fn place(&self, ino: Ino, session: SessionId, indexes: &[ChunkIndex]) -> Option<Vec<ChunkLocation>> {
        self.admit(session).ok()?;
        let mut meta = self.meta.lock();
        meta.places += 1;
        if meta.places.is_multiple_of(2) {
            return None;
        }
        let place = |&index: &ChunkIndex| {
            let chunk = self.new_chunk(&mut meta);
            let op = EditOp::AddChunk { ino, index, chunk };
            meta.unsent.push(Edit { time: Timestamp::default(), op });
            self.location(&meta, index, ChunkRef { chunk, blocks_4k: 0 })
        };
        Some(indexes.iter().map(place).collect())
    }

    fn replica_failed(
        &self,
        ino: Ino,
        session: SessionId,
        seen: &ChunkLocation,
        servers: Vec<ChunkServerId>,
        blank: bool,
    ) -> BoxFuture<'_, Result<ChunkLocation, FsError>> {
        let ChunkLocation { index, chunk, version, .. } = *seen;
        Box::pin(async move {
            self.admit(session)?;
            self.called_blank.lock().push((index, blank));
            tokio::task::yield_now().await;
            let mut meta = self.settled()?;
            let (current, replicas) = meta.replicas[&chunk].clone();
            if current == version {
                let away = |id: &ChunkServerId| self.server(*id).down.load(Ordering::Relaxed);
                let survivors: Vec<_> =
                    replicas.into_iter().filter(|id| !servers.contains(id) && !away(id)).collect();
                if survivors.is_empty() {
                    return Err(FsError::Io);
                }
                let next = current.next();
                for id in &survivors {
                    if let Some(stored) = self.server(*id).chunks.lock().get_mut(&chunk.0) {
                        stored.version = next.0;
                    }
                    if let Some(stored) = self.server(*id).durable.lock().get_mut(&chunk.0) {
                        stored.version = next.0;
                    }
                }
                meta.replicas.insert(chunk, (next, survivors));
            }
            let reference = meta.store.chunk(ino, index)?.ok_or(FsError::Stale)?;
            Ok(self.location(&meta, index, reference))
        })
    }

    fn bad_replica(&self, _chunk: ChunkId, server: ChunkServerId, corrupt: bool) {
        self.reported.lock().push((server, corrupt));
    }

    fn leave_behind(&self, ino: Ino, seen: &ChunkLocation) -> BoxFuture<'_, Result<ChunkLocation, FsError>> {
        let version = self.meta.lock().replicas[&seen.chunk].0;
        let session = *self.session.lock();
        let in_doubt = self.in_doubt.lock().iter().copied().collect();
        self.replica_failed(ino, session, &ChunkLocation { version, ..seen.clone() }, in_doubt, false)
    }

    fn commit(&self, ino: Ino, session: SessionId, edit: Edit) -> BoxFuture<'_, Result<Attr, FsError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.committing.store(true, Ordering::Relaxed);
            self.meet().await;
            self.admit(session)?;
            if let Some(error) = *self.refuse_commits.lock() {
                return Err(error);
            }
            self.carry_out();
            let mut meta = self.settled()?;
            apply(&mut meta.store, &edit)?;
            self.commits.lock().push(edit.op);
            Ok(meta.store.inode(ino)?.ok_or(FsError::Stale)?.attr(ino))
        })
    }
}

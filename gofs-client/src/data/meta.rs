//! What the contents of files need of the rest of the client: requests to the MetaServer,
//! and what it answers.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use gofs_tree::{
    Attr, ChunkId, ChunkIndex, ChunkServerId, ChunkVersion, Edit, FsError, Ino, SessionId, Timestamp,
};

use crate::slices::Room;

/// A future behind a pointer, so that a trait object can return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Requests to the MetaServer. Implementations wait and ask again while no server answers
/// (`hard`) or until their own bound has passed (`soft`); an error returned is final. What names a session is asked in that
/// one or not at all (`Stale`, `Io`): in the next one others may have changed the file, and its contents are loaded anew.
pub trait FileMeta: Send + Sync + 'static {
    /// The chunks that exist at indexes `[first, first + count)`, in any order.
    fn chunk_map(
        &self,
        ino: Ino,
        first: ChunkIndex,
        count: u32,
    ) -> BoxFuture<'_, Result<Vec<ChunkLocation>, FsError>>;

    /// Chunks at exactly these indexes, made where they are missing. Needs the Write lease. `blank`: those among them in which
    /// nothing was ever acknowledged; they are placed anew where no server has them.
    fn allocate(
        &self,
        ino: Ino,
        session: SessionId,
        indexes: Vec<ChunkIndex>,
        blank: Vec<ChunkId>,
    ) -> BoxFuture<'_, Result<Vec<ChunkLocation>, FsError>>;

    /// Chunks for these indexes, where the server is known to have none, out of those that were reserved: the server hears
    /// of them before, or together with, the next edit of the file that is committed. `None`: it must be asked.
    fn place(&self, ino: Ino, session: SessionId, indexes: &[ChunkIndex]) -> Option<Vec<ChunkLocation>>;

    /// `servers` did not take a write to the chunk, which was thought to be there: the location without them. `blank`: nothing in
    /// it was ever acknowledged; it is placed anew where the others do not have it.
    fn replica_failed(
        &self,
        ino: Ino,
        session: SessionId,
        seen: &ChunkLocation,
        servers: Vec<ChunkServerId>,
        blank: bool,
    ) -> BoxFuture<'_, Result<ChunkLocation, FsError>>;

    /// Has the replicas of a chunk that are away, or in doubt, left behind by a version that they do not have; the location of the others,
    /// good for writing. Needs no lease: writers ask again where it is.
    fn leave_behind(&self, ino: Ino, seen: &ChunkLocation) -> BoxFuture<'_, Result<ChunkLocation, FsError>>;

    /// A read found bad bytes (`corrupt`) or no chunk on a server. Returns at once.
    fn bad_replica(&self, chunk: ChunkId, server: ChunkServerId, corrupt: bool);

    /// Leave for files to grow by so many bytes, where the slice of the quota does not suffice.
    fn make_room(&self, bytes: u64) -> BoxFuture<'_, Result<Room, FsError>>;

    /// Commits an edit of the file (`WriteInline`, `Extend`, `Punch`, `Allocate`, `SetAttr`) with
    /// the time that it carries, and returns the attributes after it.
    fn commit(&self, ino: Ino, session: SessionId, edit: Edit) -> BoxFuture<'_, Result<Attr, FsError>>;
}

/// A server that holds a chunk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Replica {
    /// Its id, proven by its Welcome.
    pub server: ChunkServerId,
    /// host:port
    pub address: String,
}

/// Where a chunk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkLocation {
    /// Its position in the file.
    pub index: ChunkIndex,
    /// The chunk.
    pub chunk: ChunkId,
    /// What its current replicas have.
    pub version: ChunkVersion,
    /// Allocated blocks of 4 KiB, as last committed.
    pub blocks_4k: u32,
    /// The current replicas; may be empty while none is known.
    pub replicas: Vec<Replica>,
    /// There is no server left that could have one.
    pub lost: bool,
}

/// A file as the server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last change of the attributes.
    pub ctime: Timestamp,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// The bytes of a small file (empty for an empty or wholly sparse one); `None`: in chunks.
    pub inline: Option<Bytes>,
    /// Whether chunks exist. Beside inline bytes they count for nothing: their author died while the file
    /// outgrew its inode.
    pub has_chunks: bool,
}

impl Content {
    /// From attributes and the inline bytes; `has_chunks` as in the server's `Node`.
    pub fn new(attr: &Attr, inline: Bytes, has_chunks: bool) -> Self {
        // While a file outgrows its inode both exist for a moment; the inline bytes count until they are cleared.
        let inline = if has_chunks && inline.is_empty() { None } else { Some(inline) };
        Content {
            size: attr.size,
            mtime: attr.mtime,
            ctime: attr.ctime,
            blocks: attr.blocks,
            inline,
            has_chunks,
        }
    }
}

/// Attributes that are newer here than at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAttr {
    /// Bytes.
    pub size: u64,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last change of the attributes.
    pub ctime: Timestamp,
    /// Allocated blocks of 512 bytes, estimated for what is not flushed.
    pub blocks: u64,
}

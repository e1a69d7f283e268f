//! Keys of the records. The first byte is the kind; ids are big-endian, so that keys sort as ids do.

use gofs_tree::{
    ChunkId, ChunkIndex, ChunkServerId, Ino, MetaServerId, Name, NamespaceId, SessionId, XattrName,
};

/// Kinds of records: the first byte of a key.
pub(crate) mod kind {
    pub const CHUNK_REF: u8 = b'b';
    pub const CHUNK: u8 = b'c';
    pub const ENTRY: u8 = b'd';
    pub const FENCED: u8 = b'f';
    pub const SERVER: u8 = b'h';
    pub const INODE: u8 = b'i';
    /// A session's slice of a namespace's quota.
    pub const SLICE: u8 = b'l';
    pub const META: u8 = b'm';
    pub const NAMESPACE: u8 = b'n';
    pub const ORPHAN: u8 = b'o';
    pub const PROGRESS: u8 = b'q';
    pub const RESERVED: u8 = b'r';
    pub const SESSION: u8 = b's';
    /// What is left of all slices of a namespace's quota.
    pub const SLICED: u8 = b't';
    pub const USAGE: u8 = b'u';
    pub const XATTR: u8 = b'x';
    /// Id of a MetaServer that was removed.
    pub const RETIRED: u8 = b'y';
    /// A deleted namespace whose records are not all gone.
    pub const DELETED_NAMESPACE: u8 = b'z';
}

/// Where the EditLog stands: which entry the records hold.
pub(crate) const APPLIED: &[u8] = b"m/applied";
/// Identity of the cluster.
pub(crate) const CLUSTER: &[u8] = b"m/cluster";
/// Next ids.
pub(crate) const COUNTERS: &[u8] = b"m/counters";
/// Who the MetaServers are, as raft wrote it.
pub(crate) const MEMBERSHIP: &[u8] = b"m/membership";

/// What a restore from a backup left.
pub(crate) const RESTORED: &[u8] = b"m/restored";

/// A record's key.
pub(crate) type Key = Vec<u8>;

fn key(kind: u8, parts: &[&[u8]]) -> Key {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(kind);
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

/// The start of all keys of one kind in one namespace.
pub(crate) fn in_namespace(kind: u8, ns: NamespaceId) -> Key {
    key(kind, &[&ns.0.to_be_bytes()])
}

/// The start of all keys of one kind under one inode.
pub(crate) fn in_inode(kind: u8, ns: NamespaceId, ino: Ino) -> Key {
    key(kind, &[&ns.0.to_be_bytes(), &ino.0.to_be_bytes()])
}

pub(crate) fn namespace(ns: NamespaceId) -> Key {
    in_namespace(kind::NAMESPACE, ns)
}

pub(crate) fn deleted_namespace(ns: NamespaceId) -> Key {
    in_namespace(kind::DELETED_NAMESPACE, ns)
}

pub(crate) fn usage(ns: NamespaceId) -> Key {
    in_namespace(kind::USAGE, ns)
}

pub(crate) fn inode(ns: NamespaceId, ino: Ino) -> Key {
    in_inode(kind::INODE, ns, ino)
}

pub(crate) fn orphan(ns: NamespaceId, ino: Ino) -> Key {
    in_inode(kind::ORPHAN, ns, ino)
}

pub(crate) fn entry(ns: NamespaceId, parent: Ino, name: &Name) -> Key {
    key(kind::ENTRY, &[&ns.0.to_be_bytes(), &parent.0.to_be_bytes(), name.as_bytes()])
}

pub(crate) fn xattr(ns: NamespaceId, ino: Ino, name: &XattrName) -> Key {
    key(kind::XATTR, &[&ns.0.to_be_bytes(), &ino.0.to_be_bytes(), name.as_bytes()])
}

pub(crate) fn chunk_ref(ns: NamespaceId, ino: Ino, index: ChunkIndex) -> Key {
    key(kind::CHUNK_REF, &[&ns.0.to_be_bytes(), &ino.0.to_be_bytes(), &index.0.to_be_bytes()])
}

pub(crate) fn chunk(chunk: ChunkId) -> Key {
    key(kind::CHUNK, &[&chunk.0.to_be_bytes()])
}

pub(crate) fn session(session: SessionId) -> Key {
    key(kind::SESSION, &[&session.0.to_be_bytes()])
}

pub(crate) fn progress(session: SessionId) -> Key {
    key(kind::PROGRESS, &[&session.0.to_be_bytes()])
}

pub(crate) fn reserved(session: SessionId) -> Key {
    key(kind::RESERVED, &[&session.0.to_be_bytes()])
}

pub(crate) fn slice(ns: NamespaceId, session: SessionId) -> Key {
    key(kind::SLICE, &[&ns.0.to_be_bytes(), &session.0.to_be_bytes()])
}

pub(crate) fn sliced(ns: NamespaceId) -> Key {
    in_namespace(kind::SLICED, ns)
}

pub(crate) fn fenced(session: SessionId) -> Key {
    key(kind::FENCED, &[&session.0.to_be_bytes()])
}

pub(crate) fn retired(meta: MetaServerId) -> Key {
    key(kind::RETIRED, &[&meta.0.to_be_bytes()])
}

pub(crate) fn server(server: ChunkServerId) -> Key {
    key(kind::SERVER, &[&server.0.to_be_bytes()])
}

/// Bytes of `kind` and namespace, and of kind, namespace and inode.
const NAMESPACE_PREFIX: usize = 5;
const INODE_PREFIX: usize = 13;

fn u64_at(key: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?))
}

/// The inode in a key under a namespace.
pub(crate) fn ino_of(key: &[u8]) -> Option<Ino> {
    u64_at(key, NAMESPACE_PREFIX).map(Ino)
}

/// The session in a key under a namespace.
pub(crate) fn session_of(key: &[u8]) -> Option<SessionId> {
    u64_at(key, NAMESPACE_PREFIX).map(SessionId)
}

/// What follows the inode: an entry's or an attribute's name.
pub(crate) fn name_of(key: &[u8]) -> Option<&[u8]> {
    key.get(INODE_PREFIX..)
}

pub(crate) fn index_of(key: &[u8]) -> Option<ChunkIndex> {
    let bytes: [u8; 4] = key.get(INODE_PREFIX..)?.try_into().ok()?;
    Some(ChunkIndex(u32::from_be_bytes(bytes)))
}

/// The namespace in a key under one.
pub(crate) fn namespace_of(key: &[u8]) -> Option<NamespaceId> {
    let bytes: [u8; 4] = key.get(1..NAMESPACE_PREFIX)?.try_into().ok()?;
    Some(NamespaceId(u32::from_be_bytes(bytes)))
}

/// The id in a key of chunks, sessions and servers.
pub(crate) fn id_of(key: &[u8]) -> Option<u64> {
    u64_at(key, 1)
}

/// The first key after all that start with `prefix`; empty where there is none.
pub(crate) fn end_of_prefix(prefix: &[u8]) -> Key {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

/// The smallest key after `key`.
pub(crate) fn just_after(mut key: Key) -> Key {
    key.push(0);
    key
}

/// A key for people.
pub(crate) fn show(key: &[u8]) -> String {
    let Some(&kind) = key.first() else { return "(empty key)".into() };
    let ns = || namespace_of(key).map_or_else(|| "?".into(), |ns| ns.0.to_string());
    let ino = || ino_of(key).map_or_else(|| "?".into(), |ino| ino.0.to_string());
    let id = || id_of(key).map_or_else(|| "?".into(), |id| id.to_string());
    let name = || name_of(key).map_or_else(|| "?".into(), |name| name.escape_ascii().to_string());
    let shown = char::from(kind);
    match kind {
        kind::META => String::from_utf8_lossy(key).into_owned(),
        kind::NAMESPACE | kind::USAGE | kind::SLICED | kind::DELETED_NAMESPACE => {
            format!("{shown}/{}", ns())
        }
        kind::INODE | kind::ORPHAN | kind::SLICE => format!("{shown}/{}/{}", ns(), ino()),
        kind::ENTRY | kind::XATTR => format!("{shown}/{}/{}/{}", ns(), ino(), name()),
        kind::CHUNK_REF => {
            let index = index_of(key).map_or_else(|| "?".into(), |index| index.0.to_string());
            format!("{shown}/{}/{}/{index}", ns(), ino())
        }
        kind::CHUNK
        | kind::SESSION
        | kind::PROGRESS
        | kind::RESERVED
        | kind::FENCED
        | kind::RETIRED
        | kind::SERVER => {
            format!("{shown}/{}", id())
        }
        _ => key.escape_ascii().to_string(),
    }
}

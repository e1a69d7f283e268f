//! The records that are not gofs-tree's, and how every record is sealed.
//!
//! A stored value is the record's bytes and their CRC32C, which covers the key too: a flipped bit,
//! or a value under another's key, is noticed when it is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use gofs_tree::{
    ChunkId, ChunkIndex, ChunkRef, ChunkServerId, ChunkVersion, CodecError, DirEntry, EditSeq, Encode,
    FsError, Ino, Inode, NamespaceId, Orphan, Outcome, SessionId, Usage,
};

use super::key::{self, kind};
use super::ranges::Reserved;
use super::restored::Restored;
use crate::codec::{Reader, Writer};
use crate::command::{NamespaceConfig, Standing, read_labels, write_labels};

const VERSION: u8 = 1;
/// Version of a ChunkServer's record that says how it stands.
const SERVER_WITH_STANDING: u8 = 2;
const CRC_BYTES: usize = 4;

/// A namespace as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceRecord {
    /// Its id, never reused.
    pub id: NamespaceId,
    /// Its name, unique.
    pub name: String,
    /// How it keeps files.
    pub config: NamespaceConfig,
    /// What it uses now.
    pub usage: Usage,
    /// Inode numbers from here on were never used.
    pub next_ino: Ino,
}

/// A mount's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its id, never reused.
    pub id: SessionId,
    /// What it mounts.
    pub namespace: NamespaceId,
    /// Proof of ownership.
    pub token: [u8; 16],
    /// The mount's host.
    pub host: String,
    /// Where it is mounted there.
    pub mount_point: String,
    /// The daemon's process id there.
    pub pid: u32,
    /// Highest edit of its that was applied.
    pub applied: EditSeq,
}

/// A chunk. Where its replicas are is known from heartbeats only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRecord {
    /// The namespace of its file.
    pub namespace: NamespaceId,
    /// Its file.
    pub ino: Ino,
    /// Its position in the file.
    pub index: ChunkIndex,
    /// Replicas of other versions are stale.
    pub version: ChunkVersion,
    /// Most servers that can have it at this version; 0 = not known.
    pub copies: u32,
    /// Replicas wanted: what the namespace asks for now; 0 where the namespace is gone. Not stored here.
    pub goal: u32,
    /// No file has it any more: replicas are to be deleted, then it is forgotten.
    pub deleted: bool,
}

/// A ChunkServer that was here once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRecord {
    /// Which.
    pub id: ChunkServerId,
    /// Of its data door, as it said last.
    pub address: String,
    /// Failure domains and the like.
    pub labels: BTreeMap<String, String>,
    /// What was decided about it.
    pub standing: Standing,
}

/// How many of the latest ids of sessions are told apart by name where they are over. Of older ones all are over that are
/// not in the state, because none is opened so late.
pub(super) const RECENT_SESSIONS: u64 = 4096;

/// The next ids of each kind. Ids from here on were never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Next chunk.
    pub next_chunk: ChunkId,
    /// Next session.
    pub next_session: SessionId,
    /// Next namespace.
    pub next_namespace: NamespaceId,
}

impl Counters {
    /// No session is opened with an id below: those that are not in the state are over.
    pub fn session_floor(self) -> SessionId {
        SessionId(self.next_session.0.saturating_sub(RECENT_SESSIONS))
    }
}

impl Default for Counters {
    fn default() -> Self {
        Counters { next_chunk: ChunkId(1), next_session: SessionId(1), next_namespace: NamespaceId(1) }
    }
}

/// Position of an entry in the replicated log. A term has one leader, so this names one entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// Term of the leader that wrote it.
    pub term: u64,
    /// Index in the log.
    pub index: u64,
}

/// How far a session's edits were applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Highest applied.
    pub applied: EditSeq,
    /// Outcomes up to here have reached the author.
    pub answered: EditSeq,
    /// Those after `answered`. Requests of one session run side by side, so there may be gaps.
    pub outcomes: BTreeMap<EditSeq, Result<Outcome, FsError>>,
}

/// A session's slice of its namespace's quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slice {
    /// All that it was given.
    pub given: Usage,
    /// What its batches have not used.
    pub left: Usage,
}

/// Any record, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Inode(Arc<Inode>),
    Entry(DirEntry),
    Xattr(Bytes),
    ChunkRef(ChunkRef),
    Orphan(Orphan),
    Namespace {
        name: String,
        config: NamespaceConfig,
    },
    DeletedNamespace,
    Usage {
        usage: Usage,
        next_ino: Ino,
    },
    Chunk(ChunkRecord),
    /// `applied` is kept in `Progress`.
    Session(Arc<SessionRecord>),
    Progress(Arc<Progress>),
    Reserved(Arc<Reserved>),
    Slice(Slice),
    Sliced(Usage),
    Fenced,
    Retired,
    Server(Arc<ServerRecord>),
    Applied(LogPosition),
    Cluster([u8; 16]),
    Counters(Counters),
    Membership(Bytes),
    Restored(Restored),
}

/// Why a stored value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    #[error("checksum does not match")]
    Checksum,
    #[error("shorter than its checksum")]
    Short,
    #[error("{0}")]
    Codec(#[from] CodecError),
    #[error("no such kind of record")]
    Kind,
}

fn checksum(key: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), payload)
}

/// The bytes to store under `key`.
pub(crate) fn seal(key: &[u8], record: &Record) -> Vec<u8> {
    let mut value = Vec::with_capacity(128);
    record.encode(&mut value);
    let crc = checksum(key, &value);
    value.extend_from_slice(&crc.to_le_bytes());
    value
}

/// Checks and decodes what was stored under `key`.
pub(crate) fn open(key: &[u8], value: &[u8]) -> Result<Record, Damage> {
    let (payload, crc) = value.split_last_chunk::<CRC_BYTES>().ok_or(Damage::Short)?;
    if checksum(key, payload) != u32::from_le_bytes(*crc) {
        return Err(Damage::Checksum);
    }
    Record::decode(key, payload)
}

impl Record {
    /// Bytes of memory that it takes, roughly.
    pub fn weight(&self) -> usize {
        let heap = match self {
            Record::Inode(inode) => size_of::<Inode>() + inode.inline.len(),
            Record::Xattr(value) | Record::Membership(value) => value.len(),
            Record::Orphan(orphan) => orphan.holders.len() * 8,
            Record::Namespace { name, .. } => name.len(),
            Record::Session(session) => {
                size_of::<SessionRecord>() + session.host.len() + session.mount_point.len()
            }
            Record::Progress(progress) => size_of::<Progress>() + progress.outcomes.len() * 48,
            Record::Reserved(reserved) => reserved.weight(),
            Record::Server(_) => 256,
            _ => 0,
        };
        size_of::<Record>() + heap
    }

    fn encode(&self, buffer: &mut Vec<u8>) {
        let mut out = Writer(buffer);
        match self {
            Record::Inode(inode) => inode.encode(out.0),
            Record::Entry(entry) => entry.encode(out.0),
            Record::Xattr(value) | Record::Membership(value) => out.raw(value),
            Record::ChunkRef(chunk) => chunk.encode(out.0),
            Record::Orphan(orphan) => orphan.encode(out.0),
            Record::DeletedNamespace | Record::Fenced | Record::Retired => out.u8(VERSION),
            Record::Namespace { name, config } => {
                out.u8(VERSION);
                out.str(name);
                config.write(&mut out);
            }
            Record::Usage { usage, next_ino } => {
                out.u8(VERSION);
                out.u64(next_ino.0);
                usage.encode(out.0);
            }
            Record::Chunk(chunk) => {
                out.u8(VERSION);
                out.u32(chunk.namespace.0);
                out.u64(chunk.ino.0);
                out.u32(chunk.index.0);
                out.u64(chunk.version.0);
                out.u32(chunk.copies);
                out.bool(chunk.deleted);
            }
            Record::Session(session) => {
                out.u8(VERSION);
                out.u32(session.namespace.0);
                out.raw(&session.token);
                out.str(&session.host);
                out.str(&session.mount_point);
                out.u32(session.pid);
            }
            Record::Progress(progress) => progress.write(&mut out),
            Record::Reserved(reserved) => {
                out.u8(VERSION);
                reserved.write(&mut out);
            }
            Record::Slice(slice) => {
                out.u8(VERSION);
                write_amount(&mut out, slice.given);
                write_amount(&mut out, slice.left);
            }
            Record::Sliced(left) => {
                out.u8(VERSION);
                write_amount(&mut out, *left);
            }
            Record::Server(server) => {
                // The first version knew no standing, and is what a server in service is still written as.
                let stands = server.standing != Standing::InService;
                out.u8(if stands { SERVER_WITH_STANDING } else { VERSION });
                out.str(&server.address);
                write_labels(&mut out, &server.labels);
                if stands {
                    out.u8(server.standing.code());
                }
            }
            Record::Applied(at) => {
                out.u8(VERSION);
                out.u64(at.term);
                out.u64(at.index);
            }
            Record::Cluster(cluster) => {
                out.u8(VERSION);
                out.raw(cluster);
            }
            Record::Restored(restored) => {
                out.u8(VERSION);
                restored.write(&mut out);
            }
            Record::Counters(counters) => {
                out.u8(VERSION);
                out.u64(counters.next_chunk.0);
                out.u64(counters.next_session.0);
                out.u32(counters.next_namespace.0);
            }
        }
    }

    fn decode(key: &[u8], payload: &[u8]) -> Result<Self, Damage> {
        let id = || key::id_of(key).ok_or(Damage::Kind);
        let record = match *key.first().ok_or(Damage::Kind)? {
            kind::INODE => Record::Inode(Arc::new(Inode::decode(payload)?)),
            kind::ENTRY => Record::Entry(DirEntry::decode(payload)?),
            kind::XATTR => Record::Xattr(Bytes::copy_from_slice(payload)),
            kind::CHUNK_REF => Record::ChunkRef(ChunkRef::decode(payload)?),
            kind::ORPHAN => Record::Orphan(Orphan::decode(payload)?),
            kind::NAMESPACE => decode_with("namespace", payload, |from| {
                Ok(Record::Namespace { name: from.str()?, config: NamespaceConfig::read(from)? })
            })?,
            kind::DELETED_NAMESPACE => {
                decode_with("deleted namespace", payload, |_| Ok(Record::DeletedNamespace))?
            }
            kind::USAGE => decode_with("usage", payload, |from| {
                let next_ino = Ino(from.u64()?);
                Ok(Record::Usage { usage: Usage::decode(from.rest())?, next_ino })
            })?,
            kind::CHUNK => decode_with("chunk", payload, |from| {
                Ok(Record::Chunk(ChunkRecord {
                    namespace: NamespaceId(from.u32()?),
                    ino: Ino(from.u64()?),
                    index: ChunkIndex(from.u32()?),
                    version: ChunkVersion(from.u64()?),
                    copies: from.u32()?,
                    goal: 0,
                    deleted: from.bool()?,
                }))
            })?,
            kind::SESSION => {
                let id = SessionId(id()?);
                decode_with("session", payload, |from| {
                    Ok(Record::Session(Arc::new(SessionRecord {
                        id,
                        namespace: NamespaceId(from.u32()?),
                        token: from.array()?,
                        host: from.str()?,
                        mount_point: from.str()?,
                        pid: from.u32()?,
                        applied: EditSeq(0),
                    })))
                })?
            }
            kind::PROGRESS => decode_with("progress of a session", payload, |from| {
                Ok(Record::Progress(Arc::new(Progress::read(from)?)))
            })?,
            kind::RESERVED => decode_with("numbers of a session", payload, |from| {
                Ok(Record::Reserved(Arc::new(Reserved::read(from)?)))
            })?,
            kind::SLICE => decode_with("slice of a quota", payload, |from| {
                Ok(Record::Slice(Slice { given: read_amount(from)?, left: read_amount(from)? }))
            })?,
            kind::SLICED => {
                decode_with("slices of a quota", payload, |from| Ok(Record::Sliced(read_amount(from)?)))?
            }
            kind::FENCED => decode_with("fenced session", payload, |_| Ok(Record::Fenced))?,
            kind::RETIRED => decode_with("removed MetaServer", payload, |_| Ok(Record::Retired))?,
            kind::SERVER => {
                let id = ChunkServerId(id()?);
                decode_server(id, payload)?
            }
            kind::META if key == key::APPLIED => decode_with("applied position", payload, |from| {
                Ok(Record::Applied(LogPosition { term: from.u64()?, index: from.u64()? }))
            })?,
            kind::META if key == key::CLUSTER => {
                decode_with("cluster", payload, |from| Ok(Record::Cluster(from.array()?)))?
            }
            kind::META if key == key::COUNTERS => decode_with("counters", payload, |from| {
                Ok(Record::Counters(Counters {
                    next_chunk: ChunkId(from.u64()?),
                    next_session: SessionId(from.u64()?),
                    next_namespace: NamespaceId(from.u32()?),
                }))
            })?,
            kind::META if key == key::RESTORED => {
                decode_with("restored", payload, |from| Ok(Record::Restored(Restored::read(from)?)))?
            }
            kind::META if key == key::MEMBERSHIP => Record::Membership(Bytes::copy_from_slice(payload)),
            _ => return Err(Damage::Kind),
        };
        Ok(record)
    }
}

fn decode_server(id: ChunkServerId, payload: &[u8]) -> Result<Record, CodecError> {
    let mut from = Reader::new("server", payload);
    let version = from.version(SERVER_WITH_STANDING)?;
    let (address, labels) = (from.str()?, read_labels(&mut from)?);
    let standing = match version {
        SERVER_WITH_STANDING => Standing::from_code(from.u8()?).ok_or_else(|| from.malformed())?,
        _ => Standing::InService,
    };
    from.end()?;
    Ok(Record::Server(Arc::new(ServerRecord { id, address, labels, standing })))
}

fn write_amount(out: &mut Writer<'_>, amount: Usage) {
    out.u64(amount.bytes);
    out.u64(amount.inodes);
}

fn read_amount(from: &mut Reader<'_>) -> Result<Usage, CodecError> {
    Ok(Usage { bytes: from.u64()?, inodes: from.u64()? })
}

fn decode_with(
    what: &'static str,
    payload: &[u8],
    read: impl FnOnce(&mut Reader<'_>) -> Result<Record, CodecError>,
) -> Result<Record, CodecError> {
    let mut from = Reader::new(what, payload);
    from.version(VERSION)?;
    let record = read(&mut from)?;
    from.end()?;
    Ok(record)
}

impl Progress {
    /// Forgets outcomes that the author has.
    pub fn answer(&mut self, answered: EditSeq) {
        if answered > self.answered {
            self.answered = answered;
            self.outcomes.retain(|seq, _| *seq > answered);
        }
    }

    fn write(&self, out: &mut Writer<'_>) {
        out.u8(VERSION);
        out.u64(self.applied.0);
        out.u64(self.answered.0);
        out.u32(u32::try_from(self.outcomes.len()).expect("bounded by UNANSWERED_MAX"));
        for (seq, result) in &self.outcomes {
            out.u64(seq.0);
            match result {
                Ok(outcome) => {
                    out.u32(0);
                    out.nested(|buffer| outcome.encode(buffer));
                }
                Err(error) => out.u32(error.code()),
            }
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        let applied = EditSeq(from.u64()?);
        let answered = EditSeq(from.u64()?);
        let count = from.count(12)?;
        let mut outcomes = BTreeMap::new();
        for _ in 0..count {
            let seq = EditSeq(from.u64()?);
            let result = match from.u32()? {
                0 => Ok(Outcome::decode(from.bytes()?)?),
                code => Err(FsError::from_code(code).ok_or_else(|| from.malformed())?),
            };
            outcomes.insert(seq, result);
        }
        Ok(Progress { applied, answered, outcomes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind of record that is not gofs-tree's, with the bytes that it always had.
    fn golden() -> Vec<(key::Key, Record, Vec<u8>)> {
        let chunk = ChunkRecord {
            namespace: NamespaceId(1),
            ino: Ino(2),
            index: ChunkIndex(3),
            version: ChunkVersion(4),
            copies: 5,
            goal: 0,
            deleted: true,
        };
        let session = SessionRecord {
            id: SessionId(9),
            namespace: NamespaceId(1),
            token: [2; 16],
            host: "h".into(),
            mount_point: "/m".into(),
            pid: 3,
            applied: EditSeq(0),
        };
        let counters =
            Counters { next_chunk: ChunkId(1), next_session: SessionId(2), next_namespace: NamespaceId(3) };
        let restored = Restored {
            times: 1,
            index: gofs_tree::EditIndex(2),
            digest: 3,
            time: gofs_tree::Timestamp { secs: 4, nanos: 5 },
            chunks_below: ChunkId(7),
            kept_from: ChunkId(8),
            versions_below: ChunkVersion(9),
            settled: true,
        };
        let le =
            |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        vec![
            (key::APPLIED.to_vec(), Record::Applied(LogPosition { term: 1, index: 2 }), le(&[1, 2])),
            (key::CLUSTER.to_vec(), Record::Cluster([6; 16]), vec![6; 16]),
            (key::COUNTERS.to_vec(), Record::Counters(counters), [&le(&[1, 2])[..], &[3, 0, 0, 0]].concat()),
            (
                key::chunk(ChunkId(1)),
                Record::Chunk(chunk),
                [&[1, 0, 0, 0][..], &le(&[2]), &[3, 0, 0, 0], &le(&[4]), &[5, 0, 0, 0, 1]].concat(),
            ),
            (
                key::session(SessionId(9)),
                Record::Session(Arc::new(session)),
                [&[1, 0, 0, 0][..], &[2; 16], b"\x01\0\0\0h\x02\0\0\0/m\x03\0\0\0"].concat(),
            ),
            (
                key::RESTORED.to_vec(),
                Record::Restored(restored),
                [
                    &[1, 0, 0, 0][..],
                    &le(&[2]),
                    &[3, 0, 0, 0],
                    &le(&[4]),
                    &[5, 0, 0, 0],
                    &le(&[7, 8, 9]),
                    &[1],
                ]
                .concat(),
            ),
        ]
    }

    #[test]
    fn golden_bytes_of_records_and_a_newer_version_is_refused() {
        for (key, record, body) in golden() {
            let payload = [&[VERSION][..], &body].concat();
            let crc = crc32c::crc32c(&[&key[..], &payload].concat()).to_le_bytes();
            let sealed = [&payload[..], &crc].concat();
            assert_eq!(seal(&key, &record), sealed, "{record:?}");
            assert_eq!(open(&key, &sealed), Ok(record.clone()));

            let newer = [&[VERSION + 1][..], &body].concat();
            let crc = crc32c::crc32c(&[&key[..], &newer].concat()).to_le_bytes();
            let refused = open(&key, &[&newer[..], &crc].concat());
            assert!(matches!(refused, Err(Damage::Codec(CodecError::Version { .. }))), "{refused:?}");
        }
    }
}

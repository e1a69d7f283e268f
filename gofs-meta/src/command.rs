//! What one entry of the EditLog is, and what applying it answers.
//!
//! Everything chosen (ids, times, tokens) is in the command, so that every MetaServer that
//! applies the same log reaches the same records, byte for byte.

use std::collections::BTreeMap;

use gofs_tree::{
    ChunkId, ChunkServerId, ChunkSize, ChunkVersion, CodecError, Edit, EditSeq, Encode, FsError,
    INLINE_MAX_LIMIT, Ino, MetaServerId, NamespaceId, NamespaceLimits, Outcome, SessionId, Timestamp, Usage,
};

use crate::codec::{Reader, Writer};
use crate::repair::{self, Repair};

/// Most bytes of a namespace's name.
pub const NAMESPACE_NAME_MAX: usize = 128;
/// Most replicas that a namespace may ask for.
pub const REPLICAS_MAX: u32 = 16;
/// Version of the commands' bytes.
const COMMAND_VERSION: u8 = 1;

/// How a namespace keeps its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceConfig {
    /// Copies of each chunk, 1 to [`REPLICAS_MAX`].
    pub replicas: u32,
    /// Bytes in a chunk; fixed when the namespace is made.
    pub chunk_size: ChunkSize,
    /// Largest file kept in its inode, bytes, at most [`INLINE_MAX_LIMIT`].
    pub inline_max: u32,
    /// Most bytes, 0 = no limit.
    pub quota_bytes: u64,
    /// Most inodes, 0 = no limit.
    pub quota_inodes: u64,
}

impl Default for NamespaceConfig {
    fn default() -> Self {
        NamespaceConfig {
            replicas: 2,
            chunk_size: ChunkSize::DEFAULT,
            inline_max: 4096,
            quota_bytes: 0,
            quota_inodes: 0,
        }
    }
}

impl NamespaceConfig {
    /// What gofs-tree needs to know of it.
    pub fn limits(&self) -> NamespaceLimits {
        NamespaceLimits {
            quota_bytes: self.quota_bytes,
            quota_inodes: self.quota_inodes,
            inline_max: self.inline_max,
            chunk_size: self.chunk_size,
        }
    }

    /// Whether there is a limit.
    pub fn has_quota(&self) -> bool {
        self.quota_bytes != 0 || self.quota_inodes != 0
    }

    /// Whether what this one allows, in bytes or in inodes, `other` does not.
    pub fn has_more_quota_than(&self, other: &NamespaceConfig) -> bool {
        let more = |own: u64, other: u64| other != 0 && (own == 0 || own > other);
        more(self.quota_bytes, other.quota_bytes) || more(self.quota_inodes, other.quota_inodes)
    }

    /// Why this configuration cannot be, if it cannot.
    pub fn problem(&self) -> Option<String> {
        if !(1..=REPLICAS_MAX).contains(&self.replicas) {
            return Some(format!("replicas must be 1 to {REPLICAS_MAX}, not {}", self.replicas));
        }
        if self.inline_max > INLINE_MAX_LIMIT {
            return Some(format!(
                "inline_max must be at most {INLINE_MAX_LIMIT} bytes, not {}",
                self.inline_max
            ));
        }
        None
    }

    pub(crate) fn write(&self, out: &mut Writer<'_>) {
        out.u32(self.replicas);
        out.u32(self.chunk_size.bytes());
        out.u32(self.inline_max);
        out.u64(self.quota_bytes);
        out.u64(self.quota_inodes);
    }

    pub(crate) fn read(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(NamespaceConfig {
            replicas: from.u32()?,
            chunk_size: ChunkSize::new(from.u32()?).ok_or_else(|| from.malformed())?,
            inline_max: from.u32()?,
            quota_bytes: from.u64()?,
            quota_inodes: from.u64()?,
        })
    }
}

/// What an administrator has decided about a ChunkServer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It holds replicas and gets new ones.
    #[default]
    InService,
    /// It gets no new ones, and those that it has are made elsewhere and given up.
    Draining,
    /// It is not part of the cluster any more and is refused.
    Removed,
}

impl Standing {
    pub(crate) fn code(self) -> u8 {
        match self {
            Standing::InService => 0,
            Standing::Draining => 1,
            Standing::Removed => 2,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Standing> {
        [Standing::InService, Standing::Draining, Standing::Removed].into_iter().find(|it| it.code() == code)
    }
}

/// Why a namespace cannot have this name, if it cannot: it is part of mount sources and of command lines.
pub fn namespace_name_problem(name: &str) -> Option<String> {
    if name.is_empty() || name.len() > NAMESPACE_NAME_MAX {
        return Some(format!("a namespace's name has 1 to {NAMESPACE_NAME_MAX} bytes, not {}", name.len()));
    }
    if name == "." || name == ".." || name.starts_with('-') {
        return Some(format!("a namespace cannot be named {name:?}"));
    }
    let bad = name.chars().find(|c| c.is_control() || c.is_whitespace() || matches!(c, '/' | ':' | ','));
    bad.map(|c| format!("a namespace's name cannot contain {c:?}"))
}

/// One change of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Edits of a session; edit `n` has the sequence number `first_seq + n`. One that was applied
    /// before is answered with its recorded outcome.
    Edits {
        /// Whose edits.
        session: SessionId,
        /// Sequence number of the first, from 1.
        first_seq: EditSeq,
        /// Every outcome up to here has reached the author and is forgotten.
        answered: EditSeq,
        /// The edits, in order.
        edits: Vec<Edit>,
    },
    /// The same for edits that the session has applied already: a `Create` names one of the inode numbers that are
    /// reserved for it ([`Command::ReserveInos`]) and that it did not use before, else it is refused as invalid; so does
    /// an `AddChunk` with chunks ([`Command::ReserveChunks`]).
    Batch {
        /// Whose edits.
        session: SessionId,
        /// As in `Edits`.
        first_seq: EditSeq,
        /// As in `Edits`.
        answered: EditSeq,
        /// The edits, in order.
        edits: Vec<Edit>,
    },
    /// Inode numbers for a session's own Creates: nobody else gets them, also when the session is gone.
    ReserveInos {
        /// For whom.
        session: SessionId,
        /// The first; from the leader's counter, so never given before.
        first: Ino,
        /// How many, at least 1.
        count: u32,
    },
    /// Ids of chunks for a session's own AddChunks: nobody else gets them, also when the session is gone.
    ReserveChunks {
        /// For whom.
        session: SessionId,
        /// The first; from the leader's counter, so never given before.
        first: ChunkId,
        /// How many, at least 1.
        count: u32,
    },
    /// Gives a session a slice of its namespace's quota, out of which its batches grow the namespace, or takes what is left of
    /// it back. Answers `Delegated`.
    Delegate {
        /// To whom.
        session: SessionId,
        /// What it asks for.
        want: Usage,
        /// What it was given so far, as far as it knows: where it was given more, this is a repeated command.
        known: Usage,
        /// Takes it back instead.
        give_back: bool,
    },
    /// Edits that the leader makes by itself, which need no dedup: each is refused or does nothing where it was
    /// applied before. Answers `Edits`.
    ServerEdits {
        /// Whose tree.
        namespace: NamespaceId,
        /// The edits, in order.
        edits: Vec<Edit>,
    },
    /// A mount begins. Answers `Session`; also where that session is there with the same token.
    OpenSession {
        /// Never used before.
        session: SessionId,
        /// What it mounts.
        namespace: NamespaceId,
        /// Proof of ownership.
        token: [u8; 16],
        /// For people: the mount's host.
        host: String,
        /// For people: where it is mounted.
        mount_point: String,
        /// For people: the daemon's process id.
        pid: u32,
    },
    /// Removes a session and takes it out of all orphans; those that nobody holds any more are freed.
    EndSession {
        /// Which.
        session: SessionId,
        /// Taken from it rather than given back: remembered for ChunkServers that were away.
        fenced: bool,
    },
    /// Makes a namespace with an empty root directory. Answers `Namespace`.
    CreateNamespace {
        /// See [`namespace_name_problem`].
        name: String,
        /// How it keeps files.
        config: NamespaceConfig,
        /// The root's times.
        time: Timestamp,
    },
    /// Replaces a namespace's configuration. The chunk size cannot change.
    SetNamespace {
        /// Which.
        id: NamespaceId,
        /// The whole new configuration.
        config: NamespaceConfig,
    },
    /// Takes a namespace away at once: its name is free and its sessions are fenced. Its records go
    /// by [`Command::SweepNamespace`].
    DeleteNamespace {
        /// Which.
        id: NamespaceId,
    },
    /// Removes the next records of a deleted namespace, a bounded number. The leader proposes it until all are gone.
    SweepNamespace {
        /// Which.
        id: NamespaceId,
    },
    /// Moves a chunk's version; refused where it is not `from` now.
    SetChunkVersion {
        /// Which.
        chunk: ChunkId,
        /// What it must be.
        from: ChunkVersion,
        /// What it becomes, more than `from`.
        to: ChunkVersion,
        /// How many servers have it at `to`, or were told to make it.
        copies: u32,
    },
    /// Forgets a chunk that is to be deleted and that no server has any more.
    ForgetChunk {
        /// Which.
        chunk: ChunkId,
    },
    /// A ChunkServer's identity, address and labels, new or changed.
    RegisterServer {
        /// Which.
        server: ChunkServerId,
        /// Of its data door.
        address: String,
        /// Failure domains and the like.
        labels: BTreeMap<String, String>,
    },
    /// Whether a ChunkServer is one to use, to empty or to refuse; refused where none with that id ever registered.
    SetServerStanding {
        /// Which.
        server: ChunkServerId,
        /// What it becomes.
        standing: Standing,
    },
    /// Names the cluster. The log's first command; refused where another name is set.
    InitCluster {
        /// Chosen at random.
        cluster: [u8; 16],
    },
    /// ChunkServers have had their time to report to a cluster that was restored.
    SettleRestore,
    /// Chunks that a restored cluster does not know are kept no more.
    DiscardUnknown,
    /// Sets right what `fsck` found wrong. Answers `Repaired`.
    Repair {
        /// Where.
        namespace: NamespaceId,
        /// At most [`REPAIRS_MAX`](crate::repair::REPAIRS_MAX).
        repairs: Vec<Repair>,
    },
    /// A MetaServer is about to be removed: its id names nobody else from now on.
    RetireMeta {
        /// Which.
        id: MetaServerId,
    },
}

/// What applying a command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    /// What became of edits.
    Edits {
        /// One for each edit. Fewer: the next one does not fit into the quota, but would if other slices of it were given
        /// back; nothing of it is recorded.
        results: Vec<Result<Outcome, FsError>>,
        /// Of some the result is the recorded one of an earlier time: the tree may have changed since.
        repeated: bool,
    },
    /// What the session was given of the quota, since it began.
    Delegated(Usage),
    /// The session that was opened.
    Session(SessionId),
    /// The namespace that was made.
    Namespace(NamespaceId),
    /// How many repairs were done; the others did not find what they were to repair.
    Repaired(u32),
    /// Done.
    Done,
    /// Not done; nothing changed.
    Refused(Refusal),
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Fenced, ended or never opened.
    #[error("session {0} does not exist (it ended or was fenced)")]
    NoSession(SessionId),
    /// The id is in use.
    #[error("session {0} exists already")]
    SessionExists(SessionId),
    /// Too many outcomes that the author has not acknowledged.
    #[error("session {0} has too many outcomes that it has not acknowledged")]
    TooManyUnanswered(SessionId),
    /// No such namespace.
    #[error("no namespace {0}")]
    NoNamespace(NamespaceId),
    /// The name is in use.
    #[error("a namespace named {0:?} exists already")]
    NameTaken(String),
    /// The command cannot be carried out as it stands.
    #[error("{0}")]
    Invalid(String),
    /// No such chunk.
    #[error("no chunk {0}")]
    NoChunk(ChunkId),
    /// The version has moved.
    #[error("chunk {chunk} is at version {current}")]
    ChunkVersion {
        /// Which.
        chunk: ChunkId,
        /// Its version.
        current: ChunkVersion,
    },
    /// Not to be deleted.
    #[error("chunk {0} belongs to a file")]
    ChunkLive(ChunkId),
    /// A mount may have cached what would change.
    #[error("namespace {0} is mounted: unmount it first, gofsctl sessions shows where it is mounted")]
    Mounted(NamespaceId),
    /// No such ChunkServer.
    #[error("no ChunkServer {0} ever registered here")]
    NoServer(ChunkServerId),
    /// It has another name.
    #[error("the cluster has another identity already")]
    ClusterSet,
}

const EDITS: u8 = 1;
const OPEN_SESSION: u8 = 2;
const END_SESSION: u8 = 3;
const CREATE_NAMESPACE: u8 = 4;
const SET_NAMESPACE: u8 = 5;
const DELETE_NAMESPACE: u8 = 6;
const SWEEP_NAMESPACE: u8 = 7;
const SET_CHUNK_VERSION: u8 = 8;
const FORGET_CHUNK: u8 = 9;
const REGISTER_SERVER: u8 = 10;
const INIT_CLUSTER: u8 = 11;
const SERVER_EDITS: u8 = 12;
const BATCH: u8 = 13;
const RESERVE_INOS: u8 = 14;
const DELEGATE: u8 = 15;
const RESERVE_CHUNKS: u8 = 16;
const SETTLE_RESTORE: u8 = 80;
const DISCARD_UNKNOWN: u8 = 81;
const REPAIR: u8 = 82;
const RETIRE_META: u8 = 32;
const SET_SERVER_STANDING: u8 = 60;

impl Encode for Command {
    fn encode(&self, buffer: &mut Vec<u8>) {
        let mut out = Writer(buffer);
        out.u8(COMMAND_VERSION);
        match self {
            Command::Edits { session, first_seq, answered, edits } => {
                out.u8(EDITS);
                write_edits(&mut out, *session, *first_seq, *answered, edits);
            }
            Command::Batch { session, first_seq, answered, edits } => {
                out.u8(BATCH);
                write_edits(&mut out, *session, *first_seq, *answered, edits);
            }
            Command::ReserveInos { session, first, count } => {
                out.u8(RESERVE_INOS);
                out.u64(session.0);
                out.u64(first.0);
                out.u32(*count);
            }
            Command::ReserveChunks { session, first, count } => {
                out.u8(RESERVE_CHUNKS);
                out.u64(session.0);
                out.u64(first.0);
                out.u32(*count);
            }
            Command::Delegate { session, want, known, give_back } => {
                out.u8(DELEGATE);
                out.u64(session.0);
                for amount in [want, known] {
                    out.u64(amount.bytes);
                    out.u64(amount.inodes);
                }
                out.bool(*give_back);
            }
            Command::ServerEdits { namespace, edits } => {
                out.u8(SERVER_EDITS);
                out.u32(namespace.0);
                out.u32(u32::try_from(edits.len()).expect("a batch of edits is bounded by its request"));
                for edit in edits {
                    out.nested(|buffer| edit.encode(buffer));
                }
            }
            Command::OpenSession { session, namespace, token, host, mount_point, pid } => {
                out.u8(OPEN_SESSION);
                out.u64(session.0);
                out.u32(namespace.0);
                out.raw(token);
                out.str(host);
                out.str(mount_point);
                out.u32(*pid);
            }
            Command::EndSession { session, fenced } => {
                out.u8(END_SESSION);
                out.u64(session.0);
                out.bool(*fenced);
            }
            Command::CreateNamespace { name, config, time } => {
                out.u8(CREATE_NAMESPACE);
                out.str(name);
                config.write(&mut out);
                out.i64(time.secs);
                out.u32(time.nanos);
            }
            Command::SetNamespace { id, config } => {
                out.u8(SET_NAMESPACE);
                out.u32(id.0);
                config.write(&mut out);
            }
            Command::DeleteNamespace { id } => {
                out.u8(DELETE_NAMESPACE);
                out.u32(id.0);
            }
            Command::SweepNamespace { id } => {
                out.u8(SWEEP_NAMESPACE);
                out.u32(id.0);
            }
            Command::SetChunkVersion { chunk, from, to, copies } => {
                out.u8(SET_CHUNK_VERSION);
                out.u64(chunk.0);
                out.u64(from.0);
                out.u64(to.0);
                out.u32(*copies);
            }
            Command::ForgetChunk { chunk } => {
                out.u8(FORGET_CHUNK);
                out.u64(chunk.0);
            }
            Command::RegisterServer { server, address, labels } => {
                out.u8(REGISTER_SERVER);
                out.u64(server.0);
                out.str(address);
                write_labels(&mut out, labels);
            }
            Command::SettleRestore => out.u8(SETTLE_RESTORE),
            Command::DiscardUnknown => out.u8(DISCARD_UNKNOWN),
            Command::Repair { namespace, repairs } => {
                out.u8(REPAIR);
                repair::write_all(&mut out, *namespace, repairs);
            }
            Command::SetServerStanding { server, standing } => {
                out.u8(SET_SERVER_STANDING);
                out.u64(server.0);
                out.u8(standing.code());
            }
            Command::InitCluster { cluster } => {
                out.u8(INIT_CLUSTER);
                out.raw(cluster);
            }
            Command::RetireMeta { id } => {
                out.u8(RETIRE_META);
                out.u64(id.0);
            }
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut from = Reader::new("command", bytes);
        from.version(COMMAND_VERSION)?;
        let command = match from.u8()? {
            EDITS => {
                let (session, first_seq, answered) = read_sequence(&mut from)?;
                Command::Edits { session, first_seq, answered, edits: read_edits(&mut from)? }
            }
            BATCH => {
                let (session, first_seq, answered) = read_sequence(&mut from)?;
                Command::Batch { session, first_seq, answered, edits: read_edits(&mut from)? }
            }
            RESERVE_INOS => Command::ReserveInos {
                session: SessionId(from.u64()?),
                first: Ino(from.u64()?),
                count: from.u32()?,
            },
            RESERVE_CHUNKS => Command::ReserveChunks {
                session: SessionId(from.u64()?),
                first: ChunkId(from.u64()?),
                count: from.u32()?,
            },
            DELEGATE => Command::Delegate {
                session: SessionId(from.u64()?),
                want: Usage { bytes: from.u64()?, inodes: from.u64()? },
                known: Usage { bytes: from.u64()?, inodes: from.u64()? },
                give_back: from.bool()?,
            },
            SERVER_EDITS => {
                let namespace = NamespaceId(from.u32()?);
                Command::ServerEdits { namespace, edits: read_edits(&mut from)? }
            }
            OPEN_SESSION => Command::OpenSession {
                session: SessionId(from.u64()?),
                namespace: NamespaceId(from.u32()?),
                token: from.array()?,
                host: from.str()?,
                mount_point: from.str()?,
                pid: from.u32()?,
            },
            END_SESSION => Command::EndSession { session: SessionId(from.u64()?), fenced: from.bool()? },
            CREATE_NAMESPACE => Command::CreateNamespace {
                name: from.str()?,
                config: NamespaceConfig::read(&mut from)?,
                time: Timestamp::new(from.i64()?, from.u32()?),
            },
            SET_NAMESPACE => Command::SetNamespace {
                id: NamespaceId(from.u32()?),
                config: NamespaceConfig::read(&mut from)?,
            },
            DELETE_NAMESPACE => Command::DeleteNamespace { id: NamespaceId(from.u32()?) },
            SWEEP_NAMESPACE => Command::SweepNamespace { id: NamespaceId(from.u32()?) },
            SET_CHUNK_VERSION => Command::SetChunkVersion {
                chunk: ChunkId(from.u64()?),
                from: ChunkVersion(from.u64()?),
                to: ChunkVersion(from.u64()?),
                copies: from.u32()?,
            },
            FORGET_CHUNK => Command::ForgetChunk { chunk: ChunkId(from.u64()?) },
            REGISTER_SERVER => Command::RegisterServer {
                server: ChunkServerId(from.u64()?),
                address: from.str()?,
                labels: read_labels(&mut from)?,
            },
            SET_SERVER_STANDING => Command::SetServerStanding {
                server: ChunkServerId(from.u64()?),
                standing: Standing::from_code(from.u8()?).ok_or_else(|| from.malformed())?,
            },
            INIT_CLUSTER => Command::InitCluster { cluster: from.array()? },
            SETTLE_RESTORE => Command::SettleRestore,
            DISCARD_UNKNOWN => Command::DiscardUnknown,
            REPAIR => {
                let (namespace, repairs) = repair::read_all(&mut from)?;
                Command::Repair { namespace, repairs }
            }
            RETIRE_META => Command::RetireMeta { id: MetaServerId(from.u64()?) },
            _ => return Err(from.malformed()),
        };
        from.end()?;
        Ok(command)
    }
}

fn write_edits(
    out: &mut Writer<'_>,
    session: SessionId,
    first_seq: EditSeq,
    answered: EditSeq,
    edits: &[Edit],
) {
    out.u64(session.0);
    out.u64(first_seq.0);
    out.u64(answered.0);
    out.u32(u32::try_from(edits.len()).expect("a batch of edits is bounded by its frame"));
    for edit in edits {
        out.nested(|buffer| edit.encode(buffer));
    }
}

fn read_sequence(from: &mut Reader<'_>) -> Result<(SessionId, EditSeq, EditSeq), CodecError> {
    Ok((SessionId(from.u64()?), EditSeq(from.u64()?), EditSeq(from.u64()?)))
}

fn read_edits(from: &mut Reader<'_>) -> Result<Vec<Edit>, CodecError> {
    let count = from.count(4)?;
    let mut edits = Vec::with_capacity(count);
    for _ in 0..count {
        edits.push(Edit::decode(from.bytes()?)?);
    }
    Ok(edits)
}

pub(crate) fn write_labels(out: &mut Writer<'_>, labels: &BTreeMap<String, String>) {
    out.u32(u32::try_from(labels.len()).expect("labels come from a command line"));
    for (key, value) in labels {
        out.str(key);
        out.str(value);
    }
}

pub(crate) fn read_labels(from: &mut Reader<'_>) -> Result<BTreeMap<String, String>, CodecError> {
    let count = from.count(8)?;
    let mut labels = BTreeMap::new();
    for _ in 0..count {
        labels.insert(from.str()?, from.str()?);
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use gofs_tree::{ChunkIndex, EditOp, Name, ROOT_INO};

    use super::*;
    use crate::repair::Count;

    fn samples() -> Vec<Command> {
        let config = NamespaceConfig { quota_bytes: 7, ..NamespaceConfig::default() };
        vec![
            Command::Edits {
                session: SessionId(3),
                first_seq: EditSeq(9),
                answered: EditSeq(8),
                edits: vec![
                    Edit {
                        time: Timestamp::new(5, 6),
                        op: EditOp::Link { ino: Ino(4), parent: ROOT_INO, name: Name::new(b"n").unwrap() },
                    },
                    Edit {
                        time: Timestamp::new(-5, 6),
                        op: EditOp::ReleaseOrphan { ino: Ino(4), session: SessionId(1) },
                    },
                ],
            },
            Command::OpenSession {
                session: SessionId(1),
                namespace: NamespaceId(2),
                token: [7; 16],
                host: "host".into(),
                mount_point: "/mnt".into(),
                pid: 11,
            },
            Command::EndSession { session: SessionId(5), fenced: true },
            Command::CreateNamespace { name: "demo".into(), config, time: Timestamp::new(1, 2) },
            Command::SetNamespace { id: NamespaceId(1), config },
            Command::DeleteNamespace { id: NamespaceId(1) },
            Command::SweepNamespace { id: NamespaceId(1) },
            Command::SetChunkVersion {
                chunk: ChunkId(1),
                from: ChunkVersion(2),
                to: ChunkVersion(3),
                copies: 2,
            },
            Command::ForgetChunk { chunk: ChunkId(1) },
            Command::RegisterServer {
                server: ChunkServerId(9),
                address: "h:1".into(),
                labels: BTreeMap::from([("rack".into(), "r1".into())]),
            },
            Command::SetServerStanding { server: ChunkServerId(9), standing: Standing::Draining },
            Command::InitCluster { cluster: [1; 16] },
            Command::SettleRestore,
            Command::DiscardUnknown,
            Command::Repair {
                namespace: NamespaceId(2),
                repairs: vec![
                    Repair::Usage { from: (1, 2), to: (3, 4) },
                    Repair::Sliced { from: (1, 2), to: (3, 4) },
                    Repair::Count { ino: Ino(5), count: Count::Blocks4k, from: 6, to: 7 },
                    Repair::DropEntry { parent: Ino(1), name: Name::new(b"n").unwrap(), ino: Ino(8) },
                    Repair::Adopt { ino: Ino(9) },
                    Repair::DropOrphan { ino: Ino(9) },
                    Repair::Release { ino: Ino(9), session: SessionId(3) },
                    Repair::ClaimChunk { ino: Ino(9), index: ChunkIndex(1), chunk: ChunkId(4) },
                    Repair::DropChunk { chunk: ChunkId(4) },
                    Repair::DropReference { ino: Ino(9), index: ChunkIndex(1), chunk: ChunkId(4) },
                ],
            },
            Command::RetireMeta { id: MetaServerId(3) },
            Command::Batch {
                session: SessionId(3),
                first_seq: EditSeq(9),
                answered: EditSeq(8),
                edits: vec![Edit {
                    time: Timestamp::new(5, 6),
                    op: EditOp::Link { ino: Ino(4), parent: ROOT_INO, name: Name::new(b"n").unwrap() },
                }],
            },
            Command::ReserveInos { session: SessionId(3), first: Ino(17), count: 9 },
            Command::ReserveChunks { session: SessionId(3), first: ChunkId(17), count: 9 },
            Command::Delegate {
                session: SessionId(3),
                want: Usage { bytes: 1, inodes: 2 },
                known: Usage { bytes: 3, inodes: 4 },
                give_back: true,
            },
        ]
    }

    #[test]
    fn commands_survive_their_bytes() {
        for command in samples() {
            assert_eq!(Command::decode(&command.to_bytes()).unwrap(), command);
        }
    }

    #[test]
    fn a_command_cut_anywhere_or_longer_is_refused() {
        for command in samples() {
            let mut bytes = command.to_bytes();
            for cut in 0..bytes.len() {
                assert!(Command::decode(&bytes[..cut]).is_err(), "{command:?} cut at {cut}");
            }
            bytes.push(0);
            assert!(Command::decode(&bytes).is_err());
        }
    }

    #[test]
    fn golden_bytes_of_a_command() {
        let command = Command::SetChunkVersion {
            chunk: ChunkId(0x0102),
            from: ChunkVersion(3),
            to: ChunkVersion(4),
            copies: 5,
        };
        let golden =
            [1, 8, 2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0];
        assert_eq!(command.to_bytes(), golden);
    }

    #[test]
    fn names_that_would_confuse_a_mount_source_are_refused() {
        for bad in ["", ".", "..", "a/b", "a:b", "a,b", "a b", "-x", "a\n"] {
            assert!(namespace_name_problem(bad).is_some(), "{bad:?}");
        }
        for good in ["demo", "Ünï", "a.b-c_d"] {
            assert_eq!(namespace_name_problem(good), None);
        }
    }
}

//! Conversions between wire messages and gofs-tree types.
//!
//! To the wire cannot fail. From the wire everything is input: what is missing or
//! out of range is a [`ConvertError`] that names the field.

use bytes::Bytes;
use gofs_tree::{
    Attr, CodecError, Edit, Encode, FileType, FsError, Ino, Inode, LeaseEpoch, LeaseMode, Mode, Name,
    NameError, Outcome, SessionId, Timestamp, XattrName,
};

use crate::session;
use crate::session::failure::Code;

/// A message whose fields cannot be what they say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A number outside of its range.
    #[error("{what} cannot be {value}")]
    Range {
        /// The field.
        what: &'static str,
        /// What it holds.
        value: u64,
    },
    /// Bytes that are not a name.
    #[error("{what}: {error}")]
    Name {
        /// The field.
        what: &'static str,
        /// Why not.
        error: NameError,
    },
    /// Bytes of a gofs-tree value that cannot be read.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl From<ConvertError> for session::Failure {
    /// The message is malformed, so the answer is BAD_REQUEST.
    fn from(error: ConvertError) -> Self {
        session::Failure::new(Code::BadRequest, error.to_string())
    }
}

// ---- ids and names ----------------------------------------------------------------

/// An inode number, never 0.
pub fn ino(value: u64) -> Result<Ino, ConvertError> {
    if value == 0 { Err(ConvertError::Range { what: "inode number", value }) } else { Ok(Ino(value)) }
}

/// A session, 0 = none.
pub fn session_id(value: u64) -> Option<SessionId> {
    (value != 0).then_some(SessionId(value))
}

/// A directory entry's name.
pub fn name(bytes: &[u8]) -> Result<Name, ConvertError> {
    Name::new(bytes).map_err(|error| ConvertError::Name { what: "name", error })
}

/// An extended attribute's name.
pub fn xattr_name(bytes: &[u8]) -> Result<XattrName, ConvertError> {
    XattrName::new(bytes).map_err(|error| ConvertError::Name { what: "attribute name", error })
}

// ---- attributes ---------------------------------------------------------------------

impl From<Timestamp> for session::Time {
    fn from(time: Timestamp) -> Self {
        session::Time { secs: time.secs, nanos: time.nanos }
    }
}

impl TryFrom<&session::Time> for Timestamp {
    type Error = ConvertError;

    fn try_from(time: &session::Time) -> Result<Self, ConvertError> {
        if time.nanos >= 1_000_000_000 {
            return Err(ConvertError::Range { what: "nanoseconds", value: u64::from(time.nanos) });
        }
        Ok(Timestamp { secs: time.secs, nanos: time.nanos })
    }
}

/// A file type's number on the wire.
pub fn file_type_to_wire(file_type: FileType) -> u32 {
    u32::from(file_type.code())
}

/// The file type of that number.
pub fn file_type(value: u32) -> Result<FileType, ConvertError> {
    u8::try_from(value)
        .ok()
        .and_then(FileType::from_code)
        .ok_or(ConvertError::Range { what: "file type", value: u64::from(value) })
}

/// Permission bits: at most the low 12.
pub fn mode(value: u32) -> Result<Mode, ConvertError> {
    if value > 0o7777 {
        return Err(ConvertError::Range { what: "mode", value: u64::from(value) });
    }
    Ok(Mode::new(value))
}

impl From<&Attr> for session::Attr {
    fn from(attr: &Attr) -> Self {
        session::Attr {
            ino: attr.ino.0,
            file_type: file_type_to_wire(attr.file_type),
            mode: attr.mode.bits(),
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink,
            size: attr.size,
            blocks: attr.blocks,
            rdev: attr.rdev,
            atime: Some(attr.atime.into()),
            mtime: Some(attr.mtime.into()),
            ctime: Some(attr.ctime.into()),
            btime: Some(attr.btime.into()),
        }
    }
}

impl TryFrom<&session::Attr> for Attr {
    type Error = ConvertError;

    fn try_from(attr: &session::Attr) -> Result<Self, ConvertError> {
        let time = |time: &Option<session::Time>, what| {
            time.as_ref().ok_or(ConvertError::Missing(what)).and_then(Timestamp::try_from)
        };
        Ok(Attr {
            ino: ino(attr.ino)?,
            file_type: file_type(attr.file_type)?,
            mode: mode(attr.mode)?,
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink,
            size: attr.size,
            blocks: attr.blocks,
            rdev: attr.rdev,
            atime: time(&attr.atime, "atime")?,
            mtime: time(&attr.mtime, "mtime")?,
            ctime: time(&attr.ctime, "ctime")?,
            btime: time(&attr.btime, "btime")?,
        })
    }
}

// ---- leases -------------------------------------------------------------------------

/// A lease mode's number on the wire; `None` is NONE.
pub fn lease_mode_to_wire(mode: Option<LeaseMode>) -> i32 {
    match mode {
        None => session::Mode::None,
        Some(LeaseMode::Read) => session::Mode::Read,
        Some(LeaseMode::Write) => session::Mode::Write,
    }
    .into()
}

/// The lease mode of that number; NONE is `None`.
pub fn lease_mode(value: i32) -> Result<Option<LeaseMode>, ConvertError> {
    match session::Mode::try_from(value) {
        Ok(session::Mode::None) => Ok(None),
        Ok(session::Mode::Read) => Ok(Some(LeaseMode::Read)),
        Ok(session::Mode::Write) => Ok(Some(LeaseMode::Write)),
        Err(_) => Err(ConvertError::Range { what: "lease mode", value: u64::from(value.unsigned_abs()) }),
    }
}

/// A lease as it is granted, or as its holder claims it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The inode.
    pub ino: Ino,
    /// What it allows.
    pub mode: LeaseMode,
    /// The grant's number.
    pub epoch: LeaseEpoch,
}

fn held_mode(value: i32) -> Result<LeaseMode, ConvertError> {
    lease_mode(value)?.ok_or(ConvertError::Range { what: "mode of a granted lease", value: 0 })
}

impl From<Grant> for session::Grant {
    fn from(grant: Grant) -> Self {
        session::Grant { ino: grant.ino.0, mode: lease_mode_to_wire(Some(grant.mode)), epoch: grant.epoch.0 }
    }
}

impl TryFrom<&session::Grant> for Grant {
    type Error = ConvertError;

    fn try_from(grant: &session::Grant) -> Result<Self, ConvertError> {
        Ok(Grant { ino: ino(grant.ino)?, mode: held_mode(grant.mode)?, epoch: LeaseEpoch(grant.epoch) })
    }
}

impl From<Grant> for session::HeldLease {
    fn from(grant: Grant) -> Self {
        session::HeldLease {
            ino: grant.ino.0,
            mode: lease_mode_to_wire(Some(grant.mode)),
            epoch: grant.epoch.0,
        }
    }
}

impl TryFrom<&session::HeldLease> for Grant {
    type Error = ConvertError;

    fn try_from(lease: &session::HeldLease) -> Result<Self, ConvertError> {
        Ok(Grant { ino: ino(lease.ino)?, mode: held_mode(lease.mode)?, epoch: LeaseEpoch(lease.epoch) })
    }
}

/// An inode as a session may cache it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Attributes.
    pub attr: Attr,
    /// Without one: use once, do not cache.
    pub grant: Option<Grant>,
    /// Symlink target, or the bytes of a small file.
    pub inline: Bytes,
    /// Of a regular file: its bytes are in chunks.
    pub has_chunks: bool,
    /// Whether it has extended attributes.
    pub has_xattrs: bool,
}

impl Node {
    /// The node of a record.
    pub fn of(ino: Ino, inode: &Inode, has_chunks: bool, grant: Option<Grant>) -> Self {
        Node {
            attr: inode.attr(ino),
            grant,
            inline: inode.inline.clone(),
            has_chunks,
            has_xattrs: inode.has_xattrs,
        }
    }
}

impl From<&Node> for session::Node {
    fn from(node: &Node) -> Self {
        session::Node {
            attr: Some((&node.attr).into()),
            grant: node.grant.map(Into::into),
            inline: node.inline.clone(),
            has_chunks: node.has_chunks,
            has_xattrs: node.has_xattrs,
        }
    }
}

impl TryFrom<&session::Node> for Node {
    type Error = ConvertError;

    fn try_from(node: &session::Node) -> Result<Self, ConvertError> {
        let attr = Attr::try_from(node.attr.as_ref().ok_or(ConvertError::Missing("attr"))?)?;
        let grant = node.grant.as_ref().map(Grant::try_from).transpose()?;
        if let Some(grant) = grant
            && grant.ino != attr.ino
        {
            return Err(ConvertError::Range { what: "inode of a node's grant", value: grant.ino.0 });
        }
        Ok(Node {
            attr,
            grant,
            inline: node.inline.clone(),
            has_chunks: node.has_chunks,
            has_xattrs: node.has_xattrs,
        })
    }
}

// ---- failures -------------------------------------------------------------------------

impl session::Failure {
    /// A refusal of that code; `text` is for people.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        session::Failure { code: code.into(), fs_error: 0, text: text.into(), leader: String::new() }
    }

    /// The file system's own refusal.
    pub fn fs(error: FsError) -> Self {
        session::Failure { fs_error: error.code(), ..session::Failure::new(Code::Fs, error.to_string()) }
    }

    /// This server does not lead; `leader` does, where that is known.
    pub fn not_leader(leader: Option<&str>) -> Self {
        let text = match leader {
            Some(leader) => format!("not the leader; ask {leader}"),
            None => "not the leader, and none is known yet; ask again".to_string(),
        };
        session::Failure {
            leader: leader.unwrap_or_default().to_string(),
            ..session::Failure::new(Code::NotLeader, text)
        }
    }

    /// The file system's error where this is one; an error of that number must exist.
    pub fn to_fs_error(&self) -> Result<Option<FsError>, ConvertError> {
        if self.code() != Code::Fs { Ok(None) } else { fs_error(self.fs_error).map(Some) }
    }
}

/// The error of that number. [`FsError::NotCached`] never travels.
pub fn fs_error(code: u32) -> Result<FsError, ConvertError> {
    match FsError::from_code(code) {
        None | Some(FsError::NotCached) => {
            Err(ConvertError::Range { what: "error number", value: u64::from(code) })
        }
        Some(error) => Ok(error),
    }
}

// ---- edits ------------------------------------------------------------------------------

/// An edit's bytes.
pub fn edit_to_wire(edit: &Edit) -> Bytes {
    edit.to_bytes().into()
}

/// The edit of these bytes.
pub fn edit(bytes: &[u8]) -> Result<Edit, ConvertError> {
    Ok(Edit::decode(bytes)?)
}

impl session::EditResult {
    /// The result of an edit, with what the inodes that it touched are now.
    pub fn new(result: Result<Outcome, FsError>, nodes: Vec<session::Node>) -> Self {
        match result {
            Ok(outcome) => session::EditResult {
                fs_error: 0,
                ino: outcome.ino.0,
                removed: outcome.removed.map_or(0, |ino| ino.0),
                nodes,
            },
            Err(error) => session::EditResult { fs_error: error.code(), ino: 0, removed: 0, nodes },
        }
    }

    /// What the edit did, or why it was refused.
    pub fn outcome(&self) -> Result<Result<Outcome, FsError>, ConvertError> {
        if self.fs_error != 0 {
            return Ok(Err(fs_error(self.fs_error)?));
        }
        let removed = (self.removed != 0).then_some(Ino(self.removed));
        Ok(Ok(Outcome { ino: ino(self.ino)?, removed }))
    }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;

//! Edits and their outcomes as bytes.

use super::bytes::{Reader, Writer};
use super::{CodecError, Encode};
use crate::{
    AttrChange, ChunkId, Edit, EditOp, Ino, NewNode, Outcome, RenameFlags, SessionId, TimeChange,
    XattrSetMode,
};

const VERSION: u8 = 1;

/// Numbers of the operations.
mod tag {
    pub const CREATE: u8 = 1;
    pub const LINK: u8 = 2;
    pub const UNLINK: u8 = 3;
    pub const RMDIR: u8 = 4;
    pub const RENAME: u8 = 5;
    pub const SET_ATTR: u8 = 6;
    pub const SET_XATTR: u8 = 7;
    pub const REMOVE_XATTR: u8 = 8;
    pub const WRITE_INLINE: u8 = 9;
    pub const ADD_CHUNK: u8 = 10;
    pub const EXTEND: u8 = 11;
    pub const ALLOCATE: u8 = 12;
    pub const PUNCH: u8 = 13;
    pub const RELEASE_ORPHAN: u8 = 14;
}

impl Encode for Edit {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer(out);
        w.u8(VERSION);
        w.time(self.time);
        match &self.op {
            EditOp::Create { parent, name, ino, node, mode, umask, uid, gid } => {
                w.u8(tag::CREATE);
                w.ino(*parent);
                w.name(name.as_bytes());
                w.ino(*ino);
                put_node(&mut w, node);
                w.mode(*mode);
                w.mode(*umask);
                w.u32(*uid);
                w.u32(*gid);
            }
            EditOp::Link { ino, parent, name } => {
                w.u8(tag::LINK);
                w.ino(*ino);
                w.ino(*parent);
                w.name(name.as_bytes());
            }
            EditOp::Unlink { parent, name, holders } => {
                w.u8(tag::UNLINK);
                w.ino(*parent);
                w.name(name.as_bytes());
                w.sessions(holders);
            }
            EditOp::Rmdir { parent, name, holders } => {
                w.u8(tag::RMDIR);
                w.ino(*parent);
                w.name(name.as_bytes());
                w.sessions(holders);
            }
            EditOp::Rename { parent, name, new_parent, new_name, flags, holders } => {
                w.u8(tag::RENAME);
                w.ino(*parent);
                w.name(name.as_bytes());
                w.ino(*new_parent);
                w.name(new_name.as_bytes());
                w.u8(u8::from(flags.no_replace) | u8::from(flags.exchange) << 1);
                w.sessions(holders);
            }
            EditOp::SetAttr { ino, change } => {
                w.u8(tag::SET_ATTR);
                w.ino(*ino);
                put_change(&mut w, change);
            }
            EditOp::SetXattr { ino, name, value, mode } => {
                w.u8(tag::SET_XATTR);
                w.ino(*ino);
                w.name(name.as_bytes());
                w.blob(value);
                w.u8(match mode {
                    XattrSetMode::Either => 0,
                    XattrSetMode::Create => 1,
                    XattrSetMode::Replace => 2,
                });
            }
            EditOp::RemoveXattr { ino, name } => {
                w.u8(tag::REMOVE_XATTR);
                w.ino(*ino);
                w.name(name.as_bytes());
            }
            EditOp::WriteInline { ino, data, size, mtime } => {
                w.u8(tag::WRITE_INLINE);
                w.ino(*ino);
                w.blob(data);
                w.u64(*size);
                w.time(*mtime);
            }
            EditOp::AddChunk { ino, index, chunk } => {
                w.u8(tag::ADD_CHUNK);
                w.ino(*ino);
                w.u32(index.0);
                w.u64(chunk.0);
            }
            EditOp::Extend { ino, size, mtime, blocks_4k, clear_inline } => {
                w.u8(tag::EXTEND);
                w.ino(*ino);
                w.u64(*size);
                w.time(*mtime);
                w.count(blocks_4k.len());
                for (index, blocks_4k) in blocks_4k {
                    w.u32(index.0);
                    w.u32(*blocks_4k);
                }
                w.bool(*clear_inline);
            }
            EditOp::Allocate { ino, end } => {
                w.u8(tag::ALLOCATE);
                w.ino(*ino);
                w.u64(*end);
            }
            EditOp::Punch { ino, start, end } => {
                w.u8(tag::PUNCH);
                w.ino(*ino);
                w.u64(*start);
                w.u64(*end);
            }
            EditOp::ReleaseOrphan { ino, session } => {
                w.u8(tag::RELEASE_ORPHAN);
                w.ino(*ino);
                w.u64(session.0);
            }
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new("edit", bytes, VERSION)?;
        let time = r.time()?;
        let op = match r.u8()? {
            tag::CREATE => EditOp::Create {
                parent: r.ino()?,
                name: r.name()?,
                ino: r.ino()?,
                node: take_node(&mut r)?,
                mode: r.mode()?,
                umask: r.mode()?,
                uid: r.u32()?,
                gid: r.u32()?,
            },
            tag::LINK => EditOp::Link { ino: r.ino()?, parent: r.ino()?, name: r.name()? },
            tag::UNLINK => EditOp::Unlink { parent: r.ino()?, name: r.name()?, holders: r.sessions()? },
            tag::RMDIR => EditOp::Rmdir { parent: r.ino()?, name: r.name()?, holders: r.sessions()? },
            tag::RENAME => EditOp::Rename {
                parent: r.ino()?,
                name: r.name()?,
                new_parent: r.ino()?,
                new_name: r.name()?,
                flags: match r.u8()? {
                    bits if bits > 3 => return Err(r.malformed()),
                    bits => RenameFlags { no_replace: bits & 1 != 0, exchange: bits & 2 != 0 },
                },
                holders: r.sessions()?,
            },
            tag::SET_ATTR => EditOp::SetAttr { ino: r.ino()?, change: take_change(&mut r)? },
            tag::SET_XATTR => EditOp::SetXattr {
                ino: r.ino()?,
                name: r.xattr_name()?,
                value: r.blob()?,
                mode: match r.u8()? {
                    0 => XattrSetMode::Either,
                    1 => XattrSetMode::Create,
                    2 => XattrSetMode::Replace,
                    _ => return Err(r.malformed()),
                },
            },
            tag::REMOVE_XATTR => EditOp::RemoveXattr { ino: r.ino()?, name: r.xattr_name()? },
            tag::WRITE_INLINE => {
                EditOp::WriteInline { ino: r.ino()?, data: r.blob()?, size: r.u64()?, mtime: r.time()? }
            }
            tag::ADD_CHUNK => EditOp::AddChunk { ino: r.ino()?, index: r.index()?, chunk: ChunkId(r.u64()?) },
            tag::EXTEND => EditOp::Extend {
                ino: r.ino()?,
                size: r.u64()?,
                mtime: r.time()?,
                blocks_4k: {
                    let count = r.count(8)?;
                    (0..count).map(|_| Ok((r.index()?, r.u32()?))).collect::<Result<_, _>>()?
                },
                clear_inline: r.bool()?,
            },
            tag::ALLOCATE => EditOp::Allocate { ino: r.ino()?, end: r.u64()? },
            tag::PUNCH => EditOp::Punch { ino: r.ino()?, start: r.u64()?, end: r.u64()? },
            tag::RELEASE_ORPHAN => EditOp::ReleaseOrphan { ino: r.ino()?, session: SessionId(r.u64()?) },
            _ => return Err(r.malformed()),
        };
        r.finish(Edit { time, op })
    }
}

fn put_node(w: &mut Writer<'_>, node: &NewNode) {
    w.file_type(node.file_type());
    match node {
        NewNode::Symlink { target } => w.blob(target),
        NewNode::CharDevice { rdev } | NewNode::BlockDevice { rdev } => w.u32(*rdev),
        NewNode::File | NewNode::Directory | NewNode::Fifo | NewNode::Socket => {}
    }
}

fn take_node(r: &mut Reader<'_>) -> Result<NewNode, CodecError> {
    use crate::FileType;
    Ok(match r.file_type()? {
        FileType::File => NewNode::File,
        FileType::Directory => NewNode::Directory,
        FileType::Symlink => NewNode::Symlink { target: r.blob()? },
        FileType::Fifo => NewNode::Fifo,
        FileType::Socket => NewNode::Socket,
        FileType::CharDevice => NewNode::CharDevice { rdev: r.u32()? },
        FileType::BlockDevice => NewNode::BlockDevice { rdev: r.u32()? },
    })
}

/// A byte says which fields follow.
fn put_change(w: &mut Writer<'_>, change: &AttrChange) {
    let AttrChange { mode, uid, gid, size, atime, mtime, kill_suid_sgid } = change;
    let present = [
        mode.is_some(),
        uid.is_some(),
        gid.is_some(),
        size.is_some(),
        atime.is_some(),
        mtime.is_some(),
        *kill_suid_sgid,
    ];
    w.u8(present.iter().enumerate().fold(0, |bits, (at, set)| bits | u8::from(*set) << at));
    if let Some(mode) = mode {
        w.mode(*mode);
    }
    for id in [uid, gid].into_iter().flatten() {
        w.u32(*id);
    }
    if let Some(size) = size {
        w.u64(*size);
    }
    for time in [atime, mtime].into_iter().flatten() {
        match time {
            TimeChange::Now => w.u8(0),
            TimeChange::To(time) => {
                w.u8(1);
                w.time(*time);
            }
        }
    }
}

fn take_change(r: &mut Reader<'_>) -> Result<AttrChange, CodecError> {
    let bits = r.u8()?;
    if bits >= 1 << 7 {
        return Err(r.malformed());
    }
    let has = |at: u8| bits & 1 << at != 0;
    Ok(AttrChange {
        mode: has(0).then(|| r.mode()).transpose()?,
        uid: has(1).then(|| r.u32()).transpose()?,
        gid: has(2).then(|| r.u32()).transpose()?,
        size: has(3).then(|| r.u64()).transpose()?,
        atime: has(4).then(|| take_time_change(r)).transpose()?,
        mtime: has(5).then(|| take_time_change(r)).transpose()?,
        kill_suid_sgid: has(6),
    })
}

fn take_time_change(r: &mut Reader<'_>) -> Result<TimeChange, CodecError> {
    match r.u8()? {
        0 => Ok(TimeChange::Now),
        1 => Ok(TimeChange::To(r.time()?)),
        _ => Err(r.malformed()),
    }
}

impl Encode for Outcome {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer(out);
        w.u8(VERSION);
        w.ino(self.ino);
        w.bool(self.removed.is_some());
        if let Some(removed) = self.removed {
            w.ino(removed);
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new("outcome", bytes, VERSION)?;
        let ino: Ino = r.ino()?;
        let removed = r.bool()?.then(|| r.ino()).transpose()?;
        r.finish(Outcome { ino, removed })
    }
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;

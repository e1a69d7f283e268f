//! What `fsck --repair` can set right: one record at a time, each checked again when it is applied.
//!
//! A repair says what it found and what it makes of it; where the state is not as found any more it does nothing. Those that
//! change what a mount may have cached are refused while the namespace is mounted.

use gofs_tree::{ChunkId, ChunkIndex, CodecError, Ino, Name, NamespaceId, SessionId, Usage};

use crate::codec::{Reader, Writer};

/// A number that an inode keeps of other records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Count {
    /// Hard links.
    Links,
    /// Bytes of names in a directory.
    NamesBytes,
    /// Blocks in chunks.
    Blocks4k,
    /// Chunks.
    Chunks,
}

/// One repair in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Repair {
    /// What the namespace uses.
    Usage {
        /// As found.
        from: (u64, u64),
        /// Bytes and inodes that there are.
        to: (u64, u64),
    },
    /// What is left of all slices of its quota.
    Sliced {
        /// As found.
        from: (u64, u64),
        /// The sum.
        to: (u64, u64),
    },
    /// A number in an inode.
    Count {
        /// Which inode.
        ino: Ino,
        /// Which number.
        count: Count,
        /// As found.
        from: u64,
        /// What there is.
        to: u64,
    },
    /// An entry that leads nowhere, or is in nothing that could have entries, goes.
    DropEntry {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Name,
        /// What it names.
        ino: Ino,
    },
    /// An inode without a name gets one in the root: `lost+found.INO`.
    Adopt {
        /// Which.
        ino: Ino,
    },
    /// The mark of an unlinked inode that does not exist goes.
    DropOrphan {
        /// Which.
        ino: Ino,
    },
    /// A session that ended holds an unlinked inode no more.
    Release {
        /// Which inode.
        ino: Ino,
        /// Which session.
        session: SessionId,
    },
    /// A chunk that a file refers to is that file's, and is not to be deleted.
    ClaimChunk {
        /// The file.
        ino: Ino,
        /// The position in it.
        index: ChunkIndex,
        /// The chunk.
        chunk: ChunkId,
    },
    /// A chunk to which no file refers is to be deleted.
    DropChunk {
        /// Which.
        chunk: ChunkId,
    },
    /// A file has a hole where the chunk was.
    DropReference {
        /// The file.
        ino: Ino,
        /// The position in it.
        index: ChunkIndex,
        /// The chunk.
        chunk: ChunkId,
    },
}

impl Repair {
    /// Whether it is made only while nobody has the namespace mounted: a mount may have cached what it changes, or have moved the
    /// sum while what it is made of was read.
    pub fn needs_no_mount(&self) -> bool {
        matches!(
            self,
            Repair::Usage { .. }
                | Repair::Sliced { .. }
                | Repair::Count { .. }
                | Repair::DropEntry { .. }
                | Repair::Adopt { .. }
                | Repair::DropReference { .. }
        )
    }

    pub(crate) fn write(&self, out: &mut Writer<'_>) {
        let place = |out: &mut Writer<'_>, ino: Ino, index: ChunkIndex, chunk: ChunkId| {
            out.u64(ino.0);
            out.u32(index.0);
            out.u64(chunk.0);
        };
        match self {
            Repair::Usage { from, to } | Repair::Sliced { from, to } => {
                out.u8(if matches!(self, Repair::Usage { .. }) { 1 } else { 2 });
                for number in [from.0, from.1, to.0, to.1] {
                    out.u64(number);
                }
            }
            Repair::Count { ino, count, from, to } => {
                out.u8(3);
                out.u64(ino.0);
                out.u8(match count {
                    Count::Links => 1,
                    Count::NamesBytes => 2,
                    Count::Blocks4k => 3,
                    Count::Chunks => 4,
                });
                out.u64(*from);
                out.u64(*to);
            }
            Repair::DropEntry { parent, name, ino } => {
                out.u8(4);
                out.u64(parent.0);
                out.bytes(name.as_bytes());
                out.u64(ino.0);
            }
            Repair::Adopt { ino } => {
                out.u8(5);
                out.u64(ino.0);
            }
            Repair::DropOrphan { ino } => {
                out.u8(6);
                out.u64(ino.0);
            }
            Repair::Release { ino, session } => {
                out.u8(7);
                out.u64(ino.0);
                out.u64(session.0);
            }
            Repair::ClaimChunk { ino, index, chunk } => {
                out.u8(8);
                place(out, *ino, *index, *chunk);
            }
            Repair::DropChunk { chunk } => {
                out.u8(9);
                out.u64(chunk.0);
            }
            Repair::DropReference { ino, index, chunk } => {
                out.u8(10);
                place(out, *ino, *index, *chunk);
            }
        }
    }

    pub(crate) fn read(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        let kind = from.u8()?;
        Ok(match kind {
            1 | 2 => {
                let numbers = ((from.u64()?, from.u64()?), (from.u64()?, from.u64()?));
                let (from, to) = numbers;
                if kind == 1 { Repair::Usage { from, to } } else { Repair::Sliced { from, to } }
            }
            3 => Repair::Count {
                ino: Ino(from.u64()?),
                count: match from.u8()? {
                    1 => Count::Links,
                    2 => Count::NamesBytes,
                    3 => Count::Blocks4k,
                    4 => Count::Chunks,
                    _ => return Err(from.malformed()),
                },
                from: from.u64()?,
                to: from.u64()?,
            },
            4 => Repair::DropEntry {
                parent: Ino(from.u64()?),
                name: Name::new(from.bytes()?).map_err(|_| from.malformed())?,
                ino: Ino(from.u64()?),
            },
            5 => Repair::Adopt { ino: Ino(from.u64()?) },
            6 => Repair::DropOrphan { ino: Ino(from.u64()?) },
            7 => Repair::Release { ino: Ino(from.u64()?), session: SessionId(from.u64()?) },
            9 => Repair::DropChunk { chunk: ChunkId(from.u64()?) },
            8 | 10 => {
                let (ino, index, chunk) = (Ino(from.u64()?), ChunkIndex(from.u32()?), ChunkId(from.u64()?));
                if kind == 8 {
                    Repair::ClaimChunk { ino, index, chunk }
                } else {
                    Repair::DropReference { ino, index, chunk }
                }
            }
            _ => return Err(from.malformed()),
        })
    }
}

/// Bytes and inodes.
pub(crate) fn pair(usage: Usage) -> (u64, u64) {
    (usage.bytes, usage.inodes)
}

/// The same the other way round.
pub(crate) fn usage((bytes, inodes): (u64, u64)) -> Usage {
    Usage { bytes, inodes }
}

/// A batch of repairs; bounds one entry of the EditLog.
pub(crate) const REPAIRS_MAX: usize = 256;

/// Appends a namespace and its repairs.
pub(crate) fn write_all(out: &mut Writer<'_>, namespace: NamespaceId, repairs: &[Repair]) {
    out.u32(namespace.0);
    out.u32(u32::try_from(repairs.len()).expect("bounded by REPAIRS_MAX"));
    for repair in repairs {
        repair.write(out);
    }
}

/// Takes what [`write_all`] appended.
pub(crate) fn read_all(from: &mut Reader<'_>) -> Result<(NamespaceId, Vec<Repair>), CodecError> {
    let namespace = NamespaceId(from.u32()?);
    let mut repairs = Vec::new();
    for _ in 0..from.count(9)? {
        repairs.push(Repair::read(from)?);
    }
    Ok((namespace, repairs))
}

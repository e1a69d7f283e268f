//! Records of the log: what they say and how they lie on disk.
//!
//! `{head, body, data, padding to 8}`. The head names the chunk and repeats the chunk of the record before, so
//! that damage to one record tells which chunk suffered. Head and body have a checksum each; data blocks are
//! covered by the checksums in the body. Little endian.

use bytes::{Buf, BufMut};
use gofs_tree::{ChunkId, ChunkVersion};

use crate::store::block::{BLOCK_LEN, BLOCKS_MAX, BlockRange, BlockSum};
use crate::store::home::Table;

/// Number of a record of one disk's log, from 1, without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The number of the record after this one.
    pub fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }
}

/// A byte of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Number of the segment, from 1.
    pub segment: u32,
    /// Byte in it.
    pub offset: u32,
}

/// Bytes of a record's head.
pub const HEAD_LEN: usize = 56;
/// Largest body: the checksums of the largest write, with room.
pub const BODY_MAX: usize = 64 << 10;
const MAGIC: u32 = u32::from_le_bytes(*b"gfR1");

/// What a record says of its chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Blocks were written. The bytes of those not `in_home` follow the record, in order.
    Write {
        /// `Some` where the record brings the chunk into being.
        create: Option<Create>,
        /// Blocks that the chunk then has.
        blocks: u32,
        /// Generation of the chunk's own file from now on; 0 = none.
        home: u64,
        /// First block written.
        first: u32,
        /// Of each block: its checksum, and whether it was written in place in the chunk's own file.
        written: Vec<(BlockSum, bool)>,
    },
    /// An empty chunk.
    Create(Create),
    /// Whole blocks became holes; the chunk then has `blocks`.
    Punch {
        /// Which.
        range: BlockRange,
        /// Blocks that the chunk then has.
        blocks: u32,
    },
    /// The version moved.
    SetVersion(ChunkVersion),
    /// The chunk is no more.
    Delete,
    /// A staged chunk is complete.
    Publish,
    /// In-place writes of records up to this one are on stable storage.
    HomeSynced(Lsn),
    /// New pages for the table in the chunk's own file, which follow the record in order.
    Tables {
        /// Generation of the chunk's own file.
        home: u64,
        /// Which groups' pages.
        groups: Vec<u32>,
    },
    /// Everything that was told of the chunk before is in its own file, tables included.
    Applied,
    /// From here on writes to the chunk are acknowledged before they are durable. A chunk is made so.
    Dirty,
    /// Every write to the chunk before is durable.
    Clean,
    /// Nothing; but its head says that the records before it are durable, so that later damage to them
    /// is not taken for a torn tail.
    Mark,
}

/// How a chunk comes into being.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Create {
    /// Its first version.
    pub version: ChunkVersion,
    /// For the copier only until [`Change::Publish`].
    pub staged: bool,
}

impl Change {
    fn kind(&self) -> u8 {
        match self {
            Change::Write { .. } => 1,
            Change::Create(_) => 2,
            Change::Punch { .. } => 3,
            Change::SetVersion(_) => 4,
            Change::Delete => 5,
            Change::Publish => 6,
            Change::HomeSynced(_) => 7,
            Change::Tables { .. } => 8,
            Change::Applied => 9,
            Change::Mark => 10,
            Change::Dirty => 11,
            Change::Clean => 12,
        }
    }

    fn encode_body(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let create = |out: &mut Vec<u8>, create: &Option<Create>| {
            out.put_u8(create.map_or(0, |c| 1 + u8::from(c.staged)));
            out.put_u64_le(create.map_or(0, |c| c.version.0));
        };
        match self {
            Change::Write { create: born, blocks, home, first, written } => {
                create(&mut out, born);
                out.put_u32_le(*blocks);
                out.put_u64_le(*home);
                out.put_u32_le(*first);
                out.put_u32_le(written.len() as u32);
                for (sum, in_home) in written {
                    out.put_u32_le(sum.raw());
                    out.put_u8(u8::from(*in_home));
                }
            }
            Change::Create(born) => create(&mut out, &Some(*born)),
            Change::Punch { range, blocks } => {
                out.put_u32_le(range.first);
                out.put_u32_le(range.count);
                out.put_u32_le(*blocks);
            }
            Change::SetVersion(version) => out.put_u64_le(version.0),
            Change::HomeSynced(lsn) => out.put_u64_le(lsn.0),
            Change::Tables { home, groups } => {
                out.put_u64_le(*home);
                out.put_u32_le(groups.len() as u32);
                groups.iter().for_each(|group| out.put_u32_le(*group));
            }
            Change::Delete
            | Change::Publish
            | Change::Applied
            | Change::Mark
            | Change::Dirty
            | Change::Clean => {}
        }
        out
    }

    fn decode_body(kind: u8, mut body: &[u8]) -> Option<Change> {
        let body = &mut body;
        let change = match kind {
            1 => {
                let create = decode_create(body)?;
                let (blocks, home) = (body.try_get_u32_le().ok()?, body.try_get_u64_le().ok()?);
                let (first, count) = (body.try_get_u32_le().ok()?, body.try_get_u32_le().ok()?);
                if first.checked_add(count)? > BLOCKS_MAX || body.len() != count as usize * 5 {
                    return None;
                }
                let mut written = Vec::with_capacity(count as usize);
                for _ in 0..count {
                    let sum = BlockSum::from_raw(body.get_u32_le())?;
                    let in_home = match body.get_u8() {
                        0 => false,
                        1 if home != 0 => true,
                        _ => return None,
                    };
                    written.push((sum, in_home));
                }
                Change::Write { create, blocks, home, first, written }
            }
            2 => Change::Create(decode_create(body)??),
            3 => {
                let range =
                    BlockRange { first: body.try_get_u32_le().ok()?, count: body.try_get_u32_le().ok()? };
                if range.first.checked_add(range.count)? > BLOCKS_MAX {
                    return None;
                }
                Change::Punch { range, blocks: body.try_get_u32_le().ok()? }
            }
            4 => Change::SetVersion(ChunkVersion(body.try_get_u64_le().ok()?)),
            5 => Change::Delete,
            6 => Change::Publish,
            7 => Change::HomeSynced(Lsn(body.try_get_u64_le().ok()?)),
            8 => {
                let (home, count) = (body.try_get_u64_le().ok()?, body.try_get_u32_le().ok()?);
                if body.len() != count as usize * 4 {
                    return None;
                }
                Change::Tables { home, groups: (0..count).map(|_| body.get_u32_le()).collect() }
            }
            9 => Change::Applied,
            10 => Change::Mark,
            11 => Change::Dirty,
            12 => Change::Clean,
            _ => return None,
        };
        body.is_empty().then_some(change)
    }

    /// Sizes in bytes of body and data.
    fn data_len(&self) -> usize {
        BLOCK_LEN
            * match self {
                Change::Write { written, .. } => written.iter().filter(|(_, in_home)| !in_home).count(),
                Change::Tables { groups, .. } => groups.len(),
                _ => 0,
            }
    }
}

fn decode_create(body: &mut &[u8]) -> Option<Option<Create>> {
    let (born, version) = (body.try_get_u8().ok()?, body.try_get_u64_le().ok()?);
    match born {
        0 => Some(None),
        1 | 2 => Some(Some(Create { version: ChunkVersion(version), staged: born == 2 })),
        _ => None,
    }
}

/// What identifies a log segment; mixed into the checksum of each head, so that what an older use of
/// the same space left behind is never taken for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentKey {
    /// Of the disk.
    pub disk: u64,
    /// Number of the segment.
    pub segment: u32,
}

/// A record's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    kind: u8,
    /// Its number.
    pub lsn: Lsn,
    /// Every record up to this one was on stable storage when this one was written.
    pub durable: Lsn,
    /// Whose change.
    pub chunk: ChunkId,
    /// The chunk of the record before.
    pub before: ChunkId,
    body_len: u32,
    data_len: u32,
    body_crc: u32,
}

impl Head {
    /// Bytes of the whole record with its padding.
    pub fn record_len(&self) -> usize {
        (HEAD_LEN + self.body_len as usize + self.data_len as usize).next_multiple_of(8)
    }

    /// Bytes from the start of the record to its data.
    pub fn data_offset(&self) -> usize {
        HEAD_LEN + self.body_len as usize
    }

    /// Reads a head; `None` where there is none.
    pub fn decode(key: SegmentKey, bytes: &[u8]) -> Option<Head> {
        let bytes = bytes.get(..HEAD_LEN)?;
        let mut rest = bytes;
        if rest.get_u32_le() != MAGIC {
            return None;
        }
        let kind = rest.get_u8();
        rest.advance(3);
        let head = Head {
            kind,
            lsn: Lsn(rest.get_u64_le()),
            durable: Lsn(rest.get_u64_le()),
            chunk: ChunkId(rest.get_u64_le()),
            before: ChunkId(rest.get_u64_le()),
            body_len: rest.get_u32_le(),
            data_len: rest.get_u32_le(),
            body_crc: rest.get_u32_le(),
        };
        (rest.get_u32_le() == head_crc(key, bytes) && head.body_len as usize <= BODY_MAX).then_some(head)
    }

    /// Reads the change of a record that starts at `record`. `None` where its body is damaged.
    pub fn change(&self, record: &[u8]) -> Option<Change> {
        let body = record.get(HEAD_LEN..self.data_offset())?;
        if crc32c::crc32c(body) != self.body_crc {
            return None;
        }
        let change = Change::decode_body(self.kind, body)?;
        (change.data_len() == self.data_len as usize).then_some(change)
    }

    /// Whether the data that follows a record are the blocks that its change tells of.
    pub fn data_is_whole(&self, record: &[u8], change: &Change) -> bool {
        let Some(data) = record.get(self.data_offset()..self.data_offset() + self.data_len as usize) else {
            return false;
        };
        match change {
            Change::Write { written, .. } => written
                .iter()
                .filter(|(_, in_home)| !in_home)
                .zip(data.chunks_exact(BLOCK_LEN))
                .all(|((sum, _), block)| BlockSum::of(block) == *sum),
            // Tables carry their checksums in themselves.
            Change::Tables { groups, .. } => groups
                .iter()
                .zip(data.chunks_exact(BLOCK_LEN))
                .all(|(group, table)| Table::decode(self.chunk, *group, table).is_some()),
            _ => true,
        }
    }
}

fn head_crc(key: SegmentKey, head: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&key.disk.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &key.segment.to_le_bytes());
    crc32c::crc32c_append(crc, &head[..HEAD_LEN - 4])
}

/// What a record is made of besides its change.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Of the segment that it goes to.
    pub key: SegmentKey,
    /// Its number.
    pub lsn: Lsn,
    /// See [`Head::durable`].
    pub durable: Lsn,
    /// See [`Head::before`].
    pub before: ChunkId,
}

/// Sizes of a record before it has a place: bytes in all, and bytes before its data.
pub fn measure(change: &Change) -> (usize, usize) {
    let before_data = HEAD_LEN + change.encode_body().len();
    ((before_data + change.data_len()).next_multiple_of(8), before_data)
}

/// A whole record, padding included. `data` are the blocks that follow it.
pub fn encode(place: Place, chunk: ChunkId, change: &Change, data: &[&[u8]]) -> Vec<u8> {
    let body = change.encode_body();
    let data_len: usize = data.iter().map(|d| d.len()).sum();
    debug_assert_eq!(data_len, change.data_len());
    let mut out = Vec::with_capacity((HEAD_LEN + body.len() + data_len).next_multiple_of(8));
    out.put_u32_le(MAGIC);
    out.put_u8(change.kind());
    out.put_bytes(0, 3);
    out.put_u64_le(place.lsn.0);
    out.put_u64_le(place.durable.0);
    out.put_u64_le(chunk.0);
    out.put_u64_le(place.before.0);
    out.put_u32_le(body.len() as u32);
    out.put_u32_le(data_len as u32);
    out.put_u32_le(crc32c::crc32c(&body));
    out.put_u32_le(0);
    let crc = head_crc(place.key, &out);
    out[HEAD_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&body);
    data.iter().for_each(|piece| out.extend_from_slice(piece));
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SegmentKey = SegmentKey { disk: 7, segment: 3 };

    fn sample() -> (Change, Vec<u8>) {
        let block = vec![5u8; BLOCK_LEN];
        let sum = BlockSum::of(&block);
        let change = Change::Write {
            create: Some(Create { version: ChunkVersion(2), staged: true }),
            blocks: 2,
            home: 4,
            first: 6,
            written: vec![(sum, true), (sum, false)],
        };
        let place = Place { key: KEY, lsn: Lsn(9), durable: Lsn(4), before: ChunkId(1) };
        let bytes = encode(place, ChunkId(8), &change, &[&block]);
        (change, bytes)
    }

    #[test]
    fn every_change_comes_back_as_it_was_written() {
        let changes = [
            sample().0,
            Change::Create(Create { version: ChunkVersion(1), staged: false }),
            Change::Punch { range: BlockRange { first: 1, count: 2 }, blocks: 3 },
            Change::SetVersion(ChunkVersion(3)),
            Change::Delete,
            Change::Publish,
            Change::HomeSynced(Lsn(5)),
            Change::Tables { home: 6, groups: vec![0, 3] },
            Change::Applied,
            Change::Mark,
            Change::Dirty,
            Change::Clean,
        ];
        for change in changes {
            let blocks = match &change {
                Change::Tables { groups, .. } => {
                    groups.iter().flat_map(|group| Table::empty().encode(ChunkId(8), *group)).collect()
                }
                change => vec![5u8; change.data_len()],
            };
            let place = Place { key: KEY, lsn: Lsn(9), durable: Lsn(4), before: ChunkId(1) };
            let bytes = encode(place, ChunkId(8), &change, &[&blocks]);
            let head = Head::decode(KEY, &bytes).unwrap();
            assert_eq!(
                (head.lsn, head.durable, head.chunk, head.before),
                (Lsn(9), Lsn(4), ChunkId(8), ChunkId(1))
            );
            assert_eq!(head.change(&bytes).unwrap(), change);
            assert_eq!((head.record_len(), head.data_offset()), measure(&change));
            assert_eq!(head.record_len(), bytes.len());
            assert!(head.data_is_whole(&bytes, &change));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        let (change, bytes) = sample();
        let used = HEAD_LEN + change.encode_body().len() + change.data_len();
        for bit in (0..used * 8).filter(|bit| *bit < 2048 || bit % 97 == 0) {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let whole = Head::decode(KEY, &bytes)
                .and_then(|head| head.change(&bytes).map(|change| head.data_is_whole(&bytes, &change)));
            assert_ne!(whole, Some(true), "bit {bit}");
        }
    }

    #[test]
    fn a_record_of_another_segment_is_none() {
        let (_, bytes) = sample();
        assert!(Head::decode(KEY, &bytes).is_some());
        assert!(Head::decode(SegmentKey { segment: 4, ..KEY }, &bytes).is_none());
        assert!(Head::decode(SegmentKey { disk: 8, ..KEY }, &bytes).is_none());
    }

    #[test]
    fn the_format_is_the_one_of_version_1() {
        let place = Place { key: KEY, lsn: Lsn(0x0102), durable: Lsn(1), before: ChunkId(2) };
        let bytes = encode(place, ChunkId(3), &Change::SetVersion(ChunkVersion(4)), &[]);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            &hex[..96],
            concat!(
                "6766523104000000",
                "0201000000000000",
                "0100000000000000",
                "0300000000000000",
                "0200000000000000",
                "0800000000000000"
            )
        );
        assert_eq!(&hex[112..], "0400000000000000");
    }
}

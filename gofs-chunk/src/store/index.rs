//! The index file: every chunk of a disk as it was at one point of the log.
//!
//! `index-NUMBER`, written whole and never changed, in the order header, chunks, checksum of everything. Two
//! generations are kept, with the log since the older, so that one damaged file loses nothing.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};
use gofs_tree::{ChunkId, ChunkVersion};

use super::boot::BootId;
use super::chunk::{ChunkState, Life, Slot, Slots};
use super::file::{Watch, replace};
use super::log::{Lsn, Position, Tail};

const MAGIC: [u8; 8] = *b"gofsidx2";
/// The same without boot, and without dirty chunks.
const MAGIC_1: [u8; 8] = *b"gofsidx1";

/// Contents of an index file.
#[derive(Debug)]
pub struct Index {
    /// Of the disk.
    pub disk: u64,
    /// The host's boot in which it was written.
    pub boot: BootId,
    /// Counts index files.
    pub number: u64,
    /// The log up to here is in the index.
    pub tail: Tail,
    /// When the disk was last seen whole by the scrubber; 0 = never.
    pub last_scrub_unix_s: u64,
    /// Every chunk.
    pub chunks: Vec<(ChunkId, ChunkState)>,
}

const STAGED: u8 = 1;
const DAMAGED: u8 = 2;
const DOUBTFUL: u8 = 4;
const DIRTY: u8 = 8;

/// Path of an index file.
pub fn index_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("index-{number:016x}"))
}

/// Numbers of the index files in a directory, oldest first.
pub fn list_indexes(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|n| n.strip_prefix("index-"))
            .and_then(|n| u64::from_str_radix(n, 16).ok());
        found.extend(number);
    }
    found.sort_unstable();
    Ok(found)
}

impl Index {
    /// Writes the file; it is durable when this returns.
    pub fn save(&self, dir: &Path, watch: &Watch) -> io::Result<()> {
        replace(&index_path(dir, self.number), &self.encode(), watch)
    }

    /// Reads a file; InvalidData where it is damaged.
    pub fn load(dir: &Path, disk: u64, number: u64) -> io::Result<Index> {
        let bytes = std::fs::read(index_path(dir, number))?;
        Index::decode(&bytes)
            .filter(|index| index.disk == disk && index.number == number)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "damaged index file"))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.chunks.len() * 96);
        out.extend_from_slice(&MAGIC);
        out.put_u64_le(self.disk);
        out.put_u128_le(self.boot.0);
        out.put_u64_le(self.number);
        out.put_u32_le(self.tail.at.segment);
        out.put_u32_le(self.tail.at.offset);
        out.put_u64_le(self.tail.next.0);
        out.put_u64_le(self.last_scrub_unix_s);
        out.put_u64_le(self.chunks.len() as u64);
        for (chunk, state) in &self.chunks {
            let flag = |on: bool, flag: u8| if on { flag } else { 0 };
            let flags = flag(state.life == Life::Staged, STAGED)
                | flag(state.damaged, DAMAGED)
                | flag(state.doubtful, DOUBTFUL)
                | flag(state.dirty, DIRTY);
            out.put_u64_le(chunk.0);
            out.put_u64_le(state.version.0);
            out.put_u8(flags);
            out.put_u32_le(state.blocks);
            out.put_u32_le(state.end);
            out.put_u64_le(state.home);
            out.put_u32_le(state.table_end);
            for lsn in [state.last, state.home_written, state.home_synced] {
                out.put_u64_le(lsn.0);
            }
            out.put_u32_le(state.slots.all().len() as u32);
            for slot in state.slots.all() {
                slot.to_raw().iter().for_each(|field| out.put_u32_le(*field));
            }
        }
        out.put_u32_le(crc32c::crc32c(&out));
        out
    }

    fn decode(bytes: &[u8]) -> Option<Index> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if u32::from_le_bytes(*crc) != crc32c::crc32c(body) {
            return None;
        }
        let (mut rest, has_boot) = match body.strip_prefix(&MAGIC) {
            Some(rest) => (rest, true),
            None => (body.strip_prefix(&MAGIC_1)?, false),
        };
        let rest = &mut rest;
        let u32 = |rest: &mut &[u8]| rest.try_get_u32_le().ok();
        let u64 = |rest: &mut &[u8]| rest.try_get_u64_le().ok();
        let disk = u64(rest)?;
        let boot = if has_boot { BootId(rest.try_get_u128_le().ok()?) } else { BootId(0) };
        let number = u64(rest)?;
        let at = Position { segment: u32(rest)?, offset: u32(rest)? };
        let tail = Tail { at, next: Lsn(u64(rest)?) };
        let last_scrub_unix_s = u64(rest)?;
        let count = u64(rest)?;
        let mut chunks = Vec::with_capacity((count as usize).min(rest.len() / 64));
        for _ in 0..count {
            let chunk = ChunkId(u64(rest)?);
            let version = ChunkVersion(u64(rest)?);
            let flags = rest.try_get_u8().ok()?;
            let (blocks, end, home, table_end) = (u32(rest)?, u32(rest)?, u64(rest)?, u32(rest)?);
            let (last, home_written, home_synced) = (Lsn(u64(rest)?), Lsn(u64(rest)?), Lsn(u64(rest)?));
            let slot_count = u32(rest)? as usize;
            if slot_count > rest.len() / 16 {
                return None;
            }
            let mut slots = Vec::with_capacity(slot_count);
            for _ in 0..slot_count {
                slots.push(Slot::from_raw([u32(rest)?, u32(rest)?, u32(rest)?, u32(rest)?])?);
            }
            let state = ChunkState {
                version,
                life: if flags & STAGED != 0 { Life::Staged } else { Life::Live },
                blocks,
                end,
                home,
                table_end,
                slots: Slots::from_sorted(slots)?,
                damaged: flags & DAMAGED != 0,
                doubtful: flags & DOUBTFUL != 0,
                dirty: flags & DIRTY != 0,
                dirtied: Lsn(0),
                last,
                home_written,
                home_synced,
            };
            chunks.push((chunk, state));
        }
        rest.is_empty().then_some(Index { disk, boot, number, tail, last_scrub_unix_s, chunks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::block::BlockSum;

    fn sample() -> Index {
        let sum = BlockSum::of(&[1; 4096]);
        let slots = vec![Slot::in_log(1, sum, Position { segment: 2, offset: 64 }), Slot::hole(4)];
        let state = ChunkState {
            version: ChunkVersion(3),
            life: Life::Live,
            blocks: 2,
            end: 5,
            home: 6,
            table_end: 7,
            slots: Slots::from_sorted(slots).unwrap(),
            damaged: true,
            dirty: true,
            last: Lsn(11),
            home_written: Lsn(9),
            home_synced: Lsn(8),
            ..ChunkState::default()
        };
        let tail = Tail { at: Position { segment: 2, offset: 4242 }, next: Lsn(12) };
        Index {
            disk: 5,
            boot: BootId(3),
            number: 1,
            tail,
            last_scrub_unix_s: 77,
            chunks: vec![(ChunkId(9), state)],
        }
    }

    #[test]
    fn an_index_comes_back_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let index = sample();
        index.save(dir.path(), &None).unwrap();
        assert_eq!(list_indexes(dir.path()).unwrap(), [1]);
        let back = Index::load(dir.path(), 5, 1).unwrap();
        assert_eq!(format!("{back:?}"), format!("{index:?}"));
        assert!(Index::load(dir.path(), 6, 1).is_err());
    }

    #[test]
    fn an_index_of_the_first_format_is_read() {
        let new = sample().encode();
        let mut old = MAGIC_1.to_vec();
        old.extend_from_slice(&new[8..16]);
        old.extend_from_slice(&new[32..new.len() - 4]);
        old.put_u32_le(crc32c::crc32c(&old));
        let index = Index::decode(&old).unwrap();
        assert_eq!(index.boot, BootId(0));
        assert_eq!(format!("{:?}", index.chunks), format!("{:?}", sample().chunks));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = sample().encode();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Index::decode(&bytes).is_none(), "bit {bit}");
        }
    }
}

//! A large chunk's own file: a header block, then groups of one table block and the data blocks it covers.
//!
//! A table block holds the checksums of its group's data blocks; 0 = never written. Tables are changed only
//! after their new contents are on stable storage in the log, so a torn table is rewritten at the next start.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut};
use gofs_tree::ChunkId;
use parking_lot::Mutex;

use super::block::{BLOCK_LEN, BlockRange, BlockSum};
use super::file::{StoreFile, Watch};

/// Data blocks that one table covers.
pub const GROUP_BLOCKS: u32 = (BLOCK_LEN as u32 - TABLE_HEAD_LEN as u32) / 4;
const TABLE_HEAD_LEN: usize = 16;
/// Tables of one file that are kept in memory, 4 KiB each: those of a chunk of 64 MiB.
const TABLES_KEPT: usize = 17;
const HEADER_MAGIC: [u8; 8] = *b"gofsbig1";

/// Checksums of one group.
#[derive(Clone, PartialEq, Eq)]
pub struct Table {
    sums: Vec<u32>,
}

impl Table {
    /// Of a group in which nothing was written.
    pub fn empty() -> Table {
        Table { sums: vec![0; GROUP_BLOCKS as usize] }
    }

    /// Of a block, by its index in the group.
    pub fn get(&self, index: u32) -> Option<BlockSum> {
        BlockSum::from_raw(self.sums[index as usize])
    }

    /// Sets or, with `None`, forgets a checksum.
    pub fn set(&mut self, index: u32, sum: Option<BlockSum>) {
        self.sums[index as usize] = sum.map_or(0, BlockSum::raw);
    }

    /// As on disk: `{crc, group, chunk, checksums}`.
    pub fn encode(&self, chunk: ChunkId, group: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK_LEN);
        out.put_u32_le(0);
        out.put_u32_le(group);
        out.put_u64_le(chunk.0);
        self.sums.iter().for_each(|sum| out.put_u32_le(*sum));
        let crc = crc32c::crc32c(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// From disk; `None` where it is damaged or another's.
    pub fn decode(chunk: ChunkId, group: u32, mut bytes: &[u8]) -> Option<Table> {
        if bytes.len() != BLOCK_LEN || bytes.get_u32_le() != crc32c::crc32c(bytes) {
            return None;
        }
        let own = bytes.get_u32_le() == group && bytes.get_u64_le() == chunk.0;
        own.then(|| Table { sums: bytes.chunks_exact(4).map(|mut sum| sum.get_u32_le()).collect() })
    }
}

/// The group of a block, and its index there.
pub fn group_of(block: u32) -> (u32, u32) {
    (block / GROUP_BLOCKS, block % GROUP_BLOCKS)
}

/// Groups that cover the first `blocks` blocks.
pub fn groups_of(blocks: u32) -> u32 {
    blocks.div_ceil(GROUP_BLOCKS)
}

fn table_offset(group: u32) -> u64 {
    BLOCK_LEN as u64 * (1 + u64::from(group) * u64::from(GROUP_BLOCKS + 1))
}

fn data_offset(block: u32) -> u64 {
    let (group, index) = group_of(block);
    table_offset(group) + BLOCK_LEN as u64 * u64::from(1 + index)
}

/// Names the file of a chunk. A generation is never used twice for one chunk, so a new copy of a
/// chunk and the file of a deleted one do not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HomeKey {
    /// Which chunk.
    pub chunk: ChunkId,
    /// Its generation.
    pub generation: u64,
}

impl HomeKey {
    /// Directory of the file, under the directory of all.
    pub fn dir(self, root: &Path) -> PathBuf {
        root.join(format!("{:02x}", self.chunk.0 & 0xff))
    }

    /// Path of the file, under the directory of all.
    pub fn path(self, root: &Path) -> PathBuf {
        self.dir(root).join(format!("{:016x}-{:016x}.chunk", self.chunk.0, self.generation))
    }

    /// From a file's name.
    pub fn parse(name: &str) -> Option<HomeKey> {
        let (chunk, generation) = name.strip_suffix(".chunk")?.split_once('-')?;
        let number = |hex: &str| u64::from_str_radix(hex, 16).ok();
        Some(HomeKey { chunk: ChunkId(number(chunk)?), generation: number(generation)? })
    }

    fn header(self) -> Vec<u8> {
        let mut out = HEADER_MAGIC.to_vec();
        out.put_u64_le(self.chunk.0);
        out.put_u64_le(self.generation);
        out.put_u32_le(crc32c::crc32c(&out));
        out.resize(BLOCK_LEN, 0);
        out
    }
}

/// An open file of a large chunk.
pub struct Home {
    file: StoreFile,
    key: HomeKey,
    /// Tables as they are on disk, by group.
    tables: Mutex<HashMap<u32, Arc<Table>>>,
}

impl Home {
    /// Makes it, empty. Its name is durable once [`Home::dir`] was synced.
    pub fn create(root: &Path, key: HomeKey, watch: &Watch) -> io::Result<Home> {
        let dir = key.dir(root);
        if !dir.exists() {
            match std::fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => super::file::sync_dir(root, watch)?,
            }
        }
        let file = StoreFile::create(&key.path(root), watch)?;
        if let Err(error) = file.write_at(&key.header(), 0) {
            let _ = std::fs::remove_file(file.path());
            return Err(error);
        }
        Ok(Home { file, key, tables: Mutex::default() })
    }

    /// Opens it; InvalidData where it is another chunk's or damaged.
    pub fn open(root: &Path, key: HomeKey, watch: &Watch) -> io::Result<Home> {
        let file = StoreFile::open(&key.path(root), watch)?;
        let mut header = vec![0; BLOCK_LEN];
        file.read_at(&mut header, 0)?;
        if header != key.header() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not the file of this chunk"));
        }
        Ok(Home { file, key, tables: Mutex::default() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The table, from memory or from the file; `None` where it is damaged.
    pub fn read_table(&self, group: u32) -> io::Result<Option<Arc<Table>>> {
        if let Some(table) = self.kept_table(group) {
            return Ok(Some(table));
        }
        let mut bytes = vec![0; BLOCK_LEN];
        self.file.read_at(&mut bytes, table_offset(group))?;
        let table = Table::decode(self.key.chunk, group, &bytes).map(Arc::new);
        if let Some(table) = &table {
            let mut tables = self.tables.lock();
            if tables.len() >= TABLES_KEPT {
                tables.clear();
            }
            tables.insert(group, table.clone());
        }
        Ok(table)
    }

    /// The table if memory has it.
    pub fn kept_table(&self, group: u32) -> Option<Arc<Table>> {
        self.tables.lock().get(&group).cloned()
    }

    /// The next look at a table is at the file.
    pub fn forget_tables(&self) {
        self.tables.lock().clear();
    }

    /// Overwrites a table with its form on disk. Nobody reads it meanwhile.
    pub fn write_table(&self, group: u32, encoded: &[u8]) -> io::Result<()> {
        self.tables.lock().remove(&group);
        self.file.write_at(encoded, table_offset(group))
    }

    /// Reads blocks from `first` on, as they are on disk.
    pub fn read_blocks(&self, first: u32, out: &mut [u8]) -> io::Result<()> {
        let mut out = out;
        for part in by_group(first, out.len() / BLOCK_LEN) {
            let (now, rest) = out.split_at_mut(part.bytes());
            self.file.read_at(now, data_offset(part.first))?;
            out = rest;
        }
        Ok(())
    }

    /// As [`Home::read_blocks`], if that needs no disk; else false.
    pub fn read_blocks_at_once(&self, first: u32, out: &mut [u8]) -> bool {
        let mut out = out;
        by_group(first, out.len() / BLOCK_LEN).all(|part| {
            let (now, rest) = std::mem::take(&mut out).split_at_mut(part.bytes());
            out = rest;
            self.file.read_at_once(now, data_offset(part.first))
        })
    }

    /// Blocks that are going to be read.
    pub fn will_read(&self, range: BlockRange) {
        for part in by_group(range.first, range.count as usize) {
            self.file.will_read(data_offset(part.first), part.bytes() as u64);
        }
    }

    /// Has the disk begin with what was written to these blocks.
    pub fn begin_writing(&self, range: BlockRange) {
        for part in by_group(range.first, range.count as usize) {
            self.file.begin_writing(data_offset(part.first), part.bytes() as u64);
        }
    }

    /// Overwrites blocks from `first` on.
    pub fn write_blocks(&self, first: u32, bytes: &[u8]) -> io::Result<()> {
        let mut bytes = bytes;
        for part in by_group(first, bytes.len() / BLOCK_LEN) {
            let (now, rest) = bytes.split_at(part.bytes());
            self.file.write_at(now, data_offset(part.first))?;
            bytes = rest;
        }
        Ok(())
    }

    /// Gives the space of blocks back.
    pub fn punch(&self, range: BlockRange) -> io::Result<()> {
        for part in by_group(range.first, range.count as usize) {
            self.file.punch(data_offset(part.first), part.bytes() as u64)?;
        }
        Ok(())
    }

    /// Everything written so far onto stable storage.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

/// Splits a run of blocks where a table lies between them.
fn by_group(first: u32, count: usize) -> impl Iterator<Item = BlockRange> {
    let end = first + count as u32;
    let mut next = first;
    std::iter::from_fn(move || {
        let range = BlockRange { first: next, count: (end - next).min(GROUP_BLOCKS - next % GROUP_BLOCKS) };
        next = range.end();
        (range.count > 0).then_some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_a_chunk_file_is_the_one_of_version_1() {
        let header = HomeKey { chunk: ChunkId(0x0102), generation: 3 }.header();
        let golden = b"gofsbig1\x02\x01\0\0\0\0\0\0\x03\0\0\0\0\0\0\0";
        let crc = crc32c::crc32c(golden).to_le_bytes();
        assert_eq!(header[..28], [&golden[..], &crc].concat());
        assert!(header.len() == BLOCK_LEN && header[28..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn tables_and_data_never_overlap() {
        assert_eq!(table_offset(0), 4096);
        assert_eq!(data_offset(0), 8192);
        assert_eq!(data_offset(GROUP_BLOCKS - 1) + 4096, table_offset(1));
        assert_eq!(data_offset(GROUP_BLOCKS), table_offset(1) + 4096);
        let parts: Vec<_> =
            by_group(GROUP_BLOCKS - 1, 2 + GROUP_BLOCKS as usize).map(|r| (r.first, r.count)).collect();
        assert_eq!(parts, [(GROUP_BLOCKS - 1, 1), (GROUP_BLOCKS, GROUP_BLOCKS), (2 * GROUP_BLOCKS, 1)]);
    }

    #[test]
    fn a_damaged_or_foreign_table_is_none() {
        let mut table = Table::empty();
        table.set(5, Some(BlockSum::of(&[1; 4096])));
        let bytes = table.encode(ChunkId(3), 2);
        assert_eq!(bytes.len(), BLOCK_LEN);
        assert!(Table::decode(ChunkId(3), 2, &bytes).is_some_and(|t| t == table));
        assert!(Table::decode(ChunkId(4), 2, &bytes).is_none());
        assert!(Table::decode(ChunkId(3), 1, &bytes).is_none());
        assert!(Table::decode(ChunkId(3), 2, &[0; 4096]).is_none());
        for bit in (0..4096 * 8).step_by(61) {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Table::decode(ChunkId(3), 2, &bytes).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_file_name_names_its_chunk() {
        let key = HomeKey { chunk: ChunkId(0xabc), generation: 7 };
        let path = key.path(Path::new("/x"));
        assert_eq!(path.to_str().unwrap(), "/x/bc/0000000000000abc-0000000000000007.chunk");
        assert_eq!(HomeKey::parse(path.file_name().unwrap().to_str().unwrap()), Some(key));
        assert_eq!(HomeKey::parse("lost+found"), None);
    }
}

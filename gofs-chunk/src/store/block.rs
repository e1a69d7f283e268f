//! Blocks: the unit of checksums, of holes and of accounting.

use std::num::NonZeroU32;
use std::sync::LazyLock;

/// Bytes in a block.
pub const BLOCK_LEN: usize = 4096;
/// Most blocks in a chunk: 1 GiB, the largest chunk size a namespace can have.
pub const BLOCKS_MAX: u32 = (1 << 30) / BLOCK_LEN as u32;

/// CRC32C of one block. Never 0 on disk, so that 0 can mean "never written".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSum(NonZeroU32);

impl BlockSum {
    /// Of a whole block.
    pub fn of(block: &[u8]) -> Self {
        debug_assert_eq!(block.len(), BLOCK_LEN);
        BlockSum::from_crc(crc32c::crc32c(block))
    }

    /// From the CRC32C of a whole block.
    pub fn from_crc(crc: u32) -> Self {
        BlockSum(NonZeroU32::new(crc).unwrap_or(NonZeroU32::MAX))
    }

    /// As read from disk; `None` for a block that was never written.
    pub fn from_raw(raw: u32) -> Option<Self> {
        NonZeroU32::new(raw).map(BlockSum)
    }

    /// As written to disk.
    pub fn raw(self) -> u32 {
        self.0.get()
    }
}

/// What a block behind makes of the CRC32C of all before it: the operation is linear, so one table for each byte.
static APPEND_BLOCK: LazyLock<[[u32; 256]; 4]> = LazyLock::new(|| {
    let mut tables = [[0; 256]; 4];
    for (i, table) in tables.iter_mut().enumerate() {
        for bit in 0..8 {
            let image = crc32c::crc32c_combine(1 << (8 * i + bit), 0, BLOCK_LEN);
            for byte in 1 << bit..2 << bit {
                table[byte] = table[byte - (1 << bit)] ^ image;
            }
        }
    }
    tables
});

/// CRC32C of bytes with the CRC32C `before`, and a whole block with the CRC32C `block` behind them.
pub fn append_crc(before: u32, block: u32) -> u32 {
    let tables = &*APPEND_BLOCK;
    let moved = before.to_le_bytes().into_iter().zip(tables).map(|(byte, table)| table[usize::from(byte)]);
    moved.fold(block, |crc, part| crc ^ part)
}

/// A run of whole blocks of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// First block.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl BlockRange {
    /// The blocks that `len` bytes from `offset` touch; `None` past the largest chunk.
    pub fn covering(offset: u32, len: u32) -> Option<Self> {
        let end = u64::from(offset) + u64::from(len);
        if end > u64::from(BLOCKS_MAX) * BLOCK_LEN as u64 {
            return None;
        }
        let first = offset / BLOCK_LEN as u32;
        let count = if len == 0 { 0 } else { end.div_ceil(BLOCK_LEN as u64) as u32 - first };
        Some(BlockRange { first, count })
    }

    /// One past the last block.
    pub fn end(self) -> u32 {
        self.first + self.count
    }

    /// Bytes covered.
    pub fn bytes(self) -> usize {
        self.count as usize * BLOCK_LEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_blocks_make_that_of_all() {
        let bytes: Vec<u8> = (0..5 * BLOCK_LEN).map(|i| (i * 7 + i / 251) as u8).collect();
        let crc = bytes.chunks_exact(BLOCK_LEN).fold(0, |crc, block| append_crc(crc, crc32c::crc32c(block)));
        assert_eq!(crc, crc32c::crc32c(&bytes));
    }

    #[test]
    fn a_range_covers_what_it_touches_and_no_more() {
        let range = |offset, len| BlockRange::covering(offset, len).map(|r| (r.first, r.count));
        assert_eq!(range(0, 0), Some((0, 0)));
        assert_eq!(range(4095, 1), Some((0, 1)));
        assert_eq!(range(4095, 2), Some((0, 2)));
        assert_eq!(range(4096, 4096), Some((1, 1)));
        assert_eq!(range(1 << 30, 0), Some((BLOCKS_MAX, 0)));
        assert_eq!(range(1 << 30, 1), None);
        assert_eq!(range(u32::MAX, u32::MAX), None);
    }
}

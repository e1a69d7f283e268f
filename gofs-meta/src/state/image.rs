//! Blocks of records in a file: what Snapshots and backups are made of.
//!
//! A block is `length, crc32c, payload`. Records follow one another in key order, many in a block, as they are stored (each
//! with its own checksum); an empty block ends them. Whoever reads trusts nothing: lengths are checked before
//! allocation, checksums and order before a record is given on.

use std::io::{self, Read, Write};

use super::key;
use super::record;
use crate::codec::{Reader, Writer};

/// Records are gathered up to this size before a block is written.
pub(super) const BLOCK_BYTES: usize = 256 << 10;
/// No block is larger: bounds what a damaged length can make a reader allocate.
const BLOCK_BYTES_MAX: usize = 64 << 20;

/// What the records of an image came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub records: u64,
    /// CRC32C of all blocks of records, one after the other.
    pub digest: u32,
}

pub(super) fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

pub(super) fn write_block(out: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    let len = u32::try_from(payload.len())
        .map_err(|_| io::Error::other("a record is larger than a block can be"))?;
    out.write_all(&len.to_le_bytes())?;
    out.write_all(&crc32c::crc32c(payload).to_le_bytes())?;
    out.write_all(payload)
}

pub(super) fn read_block(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = [0; 8];
    from.read_exact(&mut head)?;
    let [l0, l1, l2, l3, c0, c1, c2, c3] = head;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if len > BLOCK_BYTES_MAX {
        return Err(invalid("a block's length cannot be"));
    }
    let mut payload = vec![0; len];
    from.read_exact(&mut payload)?;
    if crc32c::crc32c(&payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(invalid("a block's checksum does not match"));
    }
    Ok(payload)
}

/// Writes records.
pub(super) struct Records<W> {
    out: W,
    block: Vec<u8>,
    sum: Sum,
}

impl<W: Write> Records<W> {
    pub fn new(out: W) -> Self {
        Records { out, block: Vec::with_capacity(BLOCK_BYTES + 4096), sum: Sum::default() }
    }

    /// Records so far.
    pub fn count(&self) -> u64 {
        self.sum.records
    }

    /// The next record in key order; its checksum was looked at by the caller.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let mut records = Writer(&mut self.block);
        records.bytes(key);
        records.bytes(value);
        self.sum.records += 1;
        if self.block.len() >= BLOCK_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sum.digest = crc32c::crc32c_append(self.sum.digest, &self.block);
        write_block(&mut self.out, &self.block)?;
        self.block.clear();
        Ok(())
    }

    /// Ends the records.
    pub fn finish(mut self) -> io::Result<(W, Sum)> {
        if !self.block.is_empty() {
            self.flush()?;
        }
        write_block(&mut self.out, &[])?;
        Ok((self.out, self.sum))
    }
}

/// Gives every record, in order, to `take`, up to the block that ends them.
pub(super) fn read_records(
    from: &mut impl Read,
    mut take: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
) -> io::Result<Sum> {
    let mut sum = Sum::default();
    let mut last = Vec::new();
    loop {
        let block = read_block(from)?;
        if block.is_empty() {
            return Ok(sum);
        }
        sum.digest = crc32c::crc32c_append(sum.digest, &block);
        let mut records = Reader::new("block of records", &block);
        while !records.is_empty() {
            let cut = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            let key = records.bytes().map_err(cut)?;
            let value = records.bytes().map_err(cut)?;
            record::open(key, value)
                .map_err(|damage| invalid(format!("record {}: {damage}", key::show(key))))?;
            if sum.records > 0 && key <= &last[..] {
                return Err(invalid(format!("record {} is out of order", key::show(key))));
            }
            last.clear();
            last.extend_from_slice(key);
            take(key, value)?;
            sum.records += 1;
        }
    }
}

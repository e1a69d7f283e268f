//! Reading: finds where the newest bytes of each block are, and verifies every block before it is used.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gofs_tree::{ChunkId, ChunkVersion};

use super::super::block::{BLOCK_LEN, BlockRange, BlockSum, append_crc};
use super::super::chunk::{ChunkState, Place};
use super::super::error::StoreError;
use super::super::home::{GROUP_BLOCKS, HomeKey, Table, group_of};
use super::super::log::Position;
use super::{CORRUPT_KNOWN_MAX, Cell, Disk, READ_ERRORS_MAX, is_passing};

/// Blocks verified at once by [`Disk::verify`].
const VERIFY_BLOCKS: u32 = 256;

/// Of each block of a range: its checksum and where its bytes are; `None` = never written.
pub(super) type Places = Vec<Option<(BlockSum, Place)>>;

/// Bytes that were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// They have the checksums with which they were written.
    pub bytes: Vec<u8>,
    /// Theirs.
    pub crc32c: u32,
}

impl Verified {
    /// `len` bytes from `offset` out of the blocks that cover them, which have this CRC32C.
    fn cut(mut blocks: Vec<u8>, crc32c: u32, offset: u32, len: u32) -> Verified {
        let (skip, len) = (offset as usize % BLOCK_LEN, len as usize);
        if skip == 0 && len == blocks.len() {
            return Verified { bytes: blocks, crc32c };
        }
        blocks.copy_within(skip..skip + len, 0);
        blocks.truncate(len);
        Verified { crc32c: crc32c::crc32c(&blocks), bytes: blocks }
    }
}

/// What a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkStat {
    /// Of the bytes held.
    pub version: ChunkVersion,
    /// Up to the last block that was ever written.
    pub len_bytes: u32,
    /// Blocks written.
    pub blocks: u32,
}

impl Disk {
    /// Reads `len` bytes from `offset`. Bytes never written are zeros.
    pub fn read(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u32,
        len: u32,
    ) -> Result<Verified, StoreError> {
        let Some(range) = BlockRange::covering(offset, len) else {
            return Err(StoreError::Invalid(format!("{len} bytes from {offset} are past the largest chunk")));
        };
        self.with_live(chunk, version, |cell, state| {
            let mut out = vec![0; range.bytes()];
            let crc32c = self.read_range(chunk, cell, state, range, &mut out)?;
            Ok(Verified::cut(out, crc32c, offset, len))
        })
    }

    /// As [`Disk::read`], if all of it is in memory and nobody is changing the chunk. `None` says nothing.
    pub fn read_at_once(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u32,
        len: u32,
    ) -> Option<Verified> {
        let range = BlockRange::covering(offset, len)?;
        self.check_up().ok()?;
        let cell = self.cell(chunk)?;
        let state = cell.state.try_read()?;
        if !state.is_live() || state.check(chunk, version).is_err() {
            return None;
        }
        let mut out = vec![0; range.bytes()];
        let places = self.places_at_once(chunk, &state, range)?;
        for (block, run) in runs(&places) {
            let bytes = &mut out[block * BLOCK_LEN..(block + run) * BLOCK_LEN];
            let first = range.first + block as u32;
            let read = match places[block] {
                Some((_, Place::Home)) => {
                    let key = HomeKey { chunk, generation: state.home };
                    self.open_home(key).is_some_and(|home| home.read_blocks_at_once(first, bytes))
                }
                Some((_, Place::Log(at))) => self.log.read_at_once(at, bytes),
                _ => true,
            };
            if !read {
                return None;
            }
        }
        let crc32c = verified(&out, &places).ok()?;
        Some(Verified::cut(out, crc32c, offset, len))
    }

    /// The range is going to be read: has the disk begin where it is known at once what is to be read.
    pub fn will_read(&self, chunk: ChunkId, offset: u32, len: u32) {
        let Some(range) = BlockRange::covering(offset, len) else { return };
        let Some(cell) = self.cell(chunk) else { return };
        let Some(state) = cell.state.try_read() else { return };
        let Some(places) = self.places_at_once(chunk, &state, range) else { return };
        for (block, run) in runs(&places) {
            let range = BlockRange { first: range.first + block as u32, count: run as u32 };
            match places[block] {
                Some((_, Place::Home)) => {
                    if let Some(home) = self.open_home(HomeKey { chunk, generation: state.home }) {
                        home.will_read(range);
                    }
                }
                Some((_, Place::Log(at))) => self.log.will_read(at, range.bytes() as u64),
                _ => {}
            }
        }
    }

    fn with_live<T>(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        then: impl FnOnce(&Cell, &ChunkState) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.check_up()?;
        let cell = self.cell(chunk).ok_or(StoreError::NoChunk { chunk })?;
        let state = cell.state.read();
        if !state.is_live() {
            return Err(StoreError::NoChunk { chunk });
        }
        state.check(chunk, version)?;
        then(&cell, &state)
    }

    /// See [`Store::check_sync`](crate::store::Store::check_sync).
    pub fn check_sync(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        written: ChunkVersion,
    ) -> Result<(), StoreError> {
        self.with_live(chunk, version.max(written), |_, state| {
            if written > ChunkVersion(0) && state.version.losses() > written.losses() {
                return Err(StoreError::Lost { chunk, stored: state.version, written });
            }
            Ok(())
        })
    }

    /// What it is.
    pub fn stat(&self, chunk: ChunkId) -> Result<ChunkStat, StoreError> {
        self.with_live(chunk, ChunkVersion(0), |_, state| {
            Ok(ChunkStat {
                version: state.version,
                len_bytes: state.end * BLOCK_LEN as u32,
                blocks: state.blocks,
            })
        })
    }

    /// Which blocks were written: sorted, disjoint, not touching.
    pub fn extents(&self, chunk: ChunkId, version: ChunkVersion) -> Result<Vec<BlockRange>, StoreError> {
        self.with_live(chunk, version, |cell, state| {
            let mut extents: Vec<BlockRange> = Vec::new();
            let places = self.places(chunk, cell, state, BlockRange { first: 0, count: state.end })?;
            for (block, _) in places.iter().enumerate().filter(|(_, place)| place.is_some()) {
                match extents.last_mut() {
                    Some(last) if last.end() == block as u32 => last.count += 1,
                    _ => extents.push(BlockRange { first: block as u32, count: 1 }),
                }
            }
            Ok(extents)
        })
    }

    /// Reads everything of a chunk and throws it away; calls `pace` with the bytes of each step before
    /// it, which may wait, and stops where it says no. The chunk counts as whole again if it is.
    /// All damage is reported; the first is returned.
    pub fn verify(&self, chunk: ChunkId, mut pace: impl FnMut(u64) -> bool) -> Result<(), StoreError> {
        let damage_before = self.with_live(chunk, ChunkVersion(0), |cell, state| {
            if state.home != 0
                && let Ok(home) = self.home(HomeKey { chunk, generation: state.home })
            {
                home.forget_tables();
            }
            Ok(cell.corrupt_reads.load(Ordering::Relaxed))
        })?;
        let mut first = 0;
        let mut found = Ok(());
        loop {
            // The lock is let go between steps, so that writers do not wait for the pace.
            let step = self.with_live(chunk, ChunkVersion(0), |cell, state| {
                let range = BlockRange { first, count: state.end.saturating_sub(first).min(VERIFY_BLOCKS) };
                let mut out = vec![0; range.bytes()];
                self.read_range(chunk, cell, state, range, &mut out)?;
                Ok(range.count)
            });
            match step {
                Ok(0) => break,
                Ok(count) => first += count,
                Err(error @ StoreError::Corrupt { .. }) => {
                    first += VERIFY_BLOCKS;
                    if found.is_ok() {
                        found = Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
            if !pace(u64::from(VERIFY_BLOCKS) * BLOCK_LEN as u64) {
                return found;
            }
        }
        if found.is_ok()
            && let Some(cell) = self.cell(chunk)
        {
            // Exclusively: nobody finds damage meanwhile. What was found since this began may lie where it had been already.
            let state = cell.state.write();
            let as_before = cell.corrupt_reads.load(Ordering::Relaxed) == damage_before;
            if as_before && !state.damaged && cell.corrupt.swap(false, Ordering::Relaxed) {
                self.corrupt_known.lock().retain(|(of, _)| *of != chunk);
                self.tell(chunk, &cell, &state);
            }
        }
        found
    }

    /// Fills `out`, which is zeros, with the verified blocks of `range`; returns the CRC32C of all of it.
    pub(super) fn read_range(
        &self,
        chunk: ChunkId,
        cell: &Cell,
        state: &ChunkState,
        range: BlockRange,
        out: &mut [u8],
    ) -> Result<u32, StoreError> {
        let places = self.places(chunk, cell, state, range)?;
        for (block, run) in runs(&places) {
            let first = range.first + block as u32;
            let bytes = &mut out[block * BLOCK_LEN..(block + run) * BLOCK_LEN];
            let read = match places[block] {
                Some((_, Place::Home)) => self
                    .home(HomeKey { chunk, generation: state.home })
                    .and_then(|h| h.read_blocks(first, bytes)),
                Some((_, Place::Log(at))) => self.log.read(at, bytes),
                _ => Ok(()),
            };
            if let Err(error) = read {
                return Err(self.read_error(chunk, cell, state, first, &error));
            }
        }
        verified(out, &places).map_err(|block| {
            let what = "its bytes do not have the checksum they were written with";
            self.corrupt(chunk, cell, state, range.first + block as u32, what)
        })
    }

    /// Where the blocks of a range are.
    pub(super) fn places(
        &self,
        chunk: ChunkId,
        cell: &Cell,
        state: &ChunkState,
        range: BlockRange,
    ) -> Result<Places, StoreError> {
        if state.damaged {
            let what = "the log record of a change was damaged, so its newest bytes are not known";
            return Err(self.corrupt(chunk, cell, state, range.first, what));
        }
        places_by(state, range, |group| self.table(chunk, cell, state, group))
    }

    /// The same from memory alone.
    fn places_at_once(&self, chunk: ChunkId, state: &ChunkState, range: BlockRange) -> Option<Places> {
        if state.damaged {
            return None;
        }
        let table = |group| {
            let home = self.open_home(HomeKey { chunk, generation: state.home });
            home.and_then(|home| home.kept_table(group)).ok_or(())
        };
        places_by(state, range, table).ok()
    }

    /// A table of the chunk's own file. Entries from `table_end` on mean nothing.
    pub(super) fn table(
        &self,
        chunk: ChunkId,
        cell: &Cell,
        state: &ChunkState,
        group: u32,
    ) -> Result<Arc<Table>, StoreError> {
        let first = group * GROUP_BLOCKS;
        match self.home(HomeKey { chunk, generation: state.home }).and_then(|home| home.read_table(group)) {
            Ok(Some(table)) => Ok(table),
            Ok(None) => {
                Err(self.corrupt(chunk, cell, state, first, "the checksums of its group are damaged"))
            }
            Err(error) => Err(self.read_error(chunk, cell, state, first, &error)),
        }
    }

    /// Bytes that cannot be read are as good as damaged, unless it is for what the host lacks at the moment. Too
    /// many of them take the directory out.
    pub(super) fn read_error(
        &self,
        chunk: ChunkId,
        cell: &Cell,
        state: &ChunkState,
        block: u32,
        error: &io::Error,
    ) -> StoreError {
        if is_passing(error) {
            let source = io::Error::from(error.kind());
            return StoreError::Io { what: "reading from", path: self.path.clone(), source };
        }
        let what = match error.kind() {
            io::ErrorKind::NotFound => "its file is missing",
            io::ErrorKind::InvalidData => "its file is damaged",
            _ => {
                tracing::warn!(%chunk, block, disk = %self.path.display(), %error, "read failed");
                if self.read_errors.fetch_add(1, Ordering::Relaxed) + 1 >= READ_ERRORS_MAX {
                    self.fail(&StoreError::Invalid(format!(
                        "{READ_ERRORS_MAX} reads failed, the last with: {error}"
                    )));
                }
                "it cannot be read"
            }
        };
        self.corrupt(chunk, cell, state, block, what)
    }

    /// Counts and reports a damaged block.
    fn corrupt(
        &self,
        chunk: ChunkId,
        cell: &Cell,
        state: &ChunkState,
        block: u32,
        what: &'static str,
    ) -> StoreError {
        let error = StoreError::Corrupt { chunk, block, disk: self.path.clone(), what };
        cell.corrupt_reads.fetch_add(1, Ordering::Relaxed);
        // Told before it is counted: whoever sees the count finds the chunk among the changes.
        if !cell.corrupt.swap(true, Ordering::Relaxed) {
            self.tell(chunk, cell, state);
        }
        let mut known = self.corrupt_known.lock();
        if known.len() < CORRUPT_KNOWN_MAX && known.insert((chunk, block)) {
            drop(known);
            self.corrupt_blocks.fetch_add(1, Ordering::Release);
            tracing::error!(%chunk, block, disk = %self.path.display(), what, "corrupt block");
        }
        error
    }
}

/// Where the blocks of a range are, with the tables that `table` brings.
fn places_by<E>(
    state: &ChunkState,
    range: BlockRange,
    mut table: impl FnMut(u32) -> Result<Arc<Table>, E>,
) -> Result<Places, E> {
    let mut places: Places = vec![None; range.count as usize];
    let mut block = range.first;
    let listed = range.end().min(state.table_end);
    while block < listed {
        let (group, index) = group_of(block);
        let table = table(group)?;
        let upto = listed.min((group + 1) * GROUP_BLOCKS);
        for i in 0..upto - block {
            places[(block - range.first + i) as usize] = table.get(index + i).map(|sum| (sum, Place::Home));
        }
        block = upto;
    }
    for slot in state.slots.of(range) {
        places[(slot.block - range.first) as usize] = slot.sum().map(|sum| (sum, slot.place()));
    }
    Ok(places)
}

/// The runs of written blocks that lie together, so that each is read at once: index of the first, and how many.
fn runs(places: &Places) -> impl Iterator<Item = (usize, usize)> {
    let mut block = 0;
    std::iter::from_fn(move || {
        let start = block + places[block..].iter().position(Option::is_some)?;
        let (_, place) = places[start]?;
        let behind = places[start + 1..].iter().enumerate();
        let run = 1 + behind.take_while(|(i, next)| follows(place, i + 1, **next)).count();
        block = start + run;
        Some((start, run))
    })
}

/// The CRC32C of the blocks, each of which has the checksum it was written with; else the index of the first that has not.
fn verified(bytes: &[u8], places: &Places) -> Result<u32, usize> {
    let mut whole = 0;
    for (block, (bytes, place)) in bytes.chunks_exact(BLOCK_LEN).zip(places).enumerate() {
        let crc = crc32c::crc32c(bytes);
        if place.is_some_and(|(sum, _)| sum != BlockSum::from_crc(crc)) {
            return Err(block);
        }
        whole = append_crc(whole, crc);
    }
    Ok(whole)
}

/// Whether a block lies `after` blocks behind one at `place`, so that both are read at once.
fn follows(place: Place, after: usize, next: Option<(BlockSum, Place)>) -> bool {
    match (place, next) {
        (Place::Home, Some((_, Place::Home))) => true,
        (Place::Log(at), Some((_, Place::Log(next)))) => {
            next == Position { offset: at.offset + (after * BLOCK_LEN) as u32, ..at }
        }
        _ => false,
    }
}

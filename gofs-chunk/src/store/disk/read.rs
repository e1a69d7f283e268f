//! Reading: finds where the newest bytes of each block are, and verifies every block before it is used.

use std::io;
use std::sync::atomic::Ordering;

use gofs_tree::{ChunkId, ChunkVersion};

use super::super::block::{BLOCK_LEN, BlockRange, BlockSum};
use super::super::chunk::{ChunkState, Place};
use super::super::error::StoreError;
use super::super::home::{GROUP_BLOCKS, HomeKey, Table, group_of};
use super::super::log::Position;
use super::{CORRUPT_KNOWN_MAX, Cell, Disk, READ_ERRORS_MAX, is_passing};

/// Blocks verified at once by [`Disk::verify`].
const VERIFY_BLOCKS: u32 = 256;

/// Of each block of a range: its checksum and where its bytes are; `None` = never written.
pub(super) type Places = Vec<Option<(BlockSum, Place)>>;

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
    ) -> Result<Vec<u8>, StoreError> {
        let Some(range) = BlockRange::covering(offset, len) else {
            return Err(StoreError::Invalid(format!("{len} bytes from {offset} are past the largest chunk")));
        };
        self.with_live(chunk, version, |cell, state| {
            let mut out = vec![0; range.bytes()];
            self.read_range(chunk, cell, state, range, &mut out)?;
            let skip = offset as usize % BLOCK_LEN;
            if skip > 0 {
                out.copy_within(skip.., 0);
            }
            out.truncate(len as usize);
            Ok(out)
        })
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
        if version > state.version {
            return Err(StoreError::Stale { chunk, stored: state.version, asked: version });
        }
        then(&cell, &state)
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
            let state = cell.state.read();
            if !state.damaged && cell.corrupt.swap(false, Ordering::Relaxed) {
                self.corrupt_known.lock().retain(|(of, _)| *of != chunk);
                self.tell(chunk, &cell, &state);
            }
        }
        found
    }

    /// Fills `out` with the verified blocks of `range`.
    pub(super) fn read_range(
        &self,
        chunk: ChunkId,
        cell: &Cell,
        state: &ChunkState,
        range: BlockRange,
        out: &mut [u8],
    ) -> Result<(), StoreError> {
        let places = self.places(chunk, cell, state, range)?;
        let mut block = 0;
        while block < places.len() {
            let Some((_, place)) = places[block] else {
                block += 1;
                continue;
            };
            let run = 1 + places[block + 1..]
                .iter()
                .enumerate()
                .take_while(|(i, next)| follows(place, i + 1, **next))
                .count();
            let first = range.first + block as u32;
            let bytes = &mut out[block * BLOCK_LEN..(block + run) * BLOCK_LEN];
            let read = match place {
                Place::Home => self
                    .home(HomeKey { chunk, generation: state.home })
                    .and_then(|h| h.read_blocks(first, bytes)),
                Place::Log(at) => self.log.read(at, bytes),
                Place::Hole => Ok(()),
            };
            if let Err(error) = read {
                return Err(self.read_error(chunk, cell, state, first, &error));
            }
            for (i, bytes) in bytes.chunks_exact(BLOCK_LEN).enumerate() {
                let sum = places[block + i].map(|(sum, _)| sum);
                if sum != Some(BlockSum::of(bytes)) {
                    let at = first + i as u32;
                    return Err(self.corrupt(
                        chunk,
                        cell,
                        state,
                        at,
                        "its bytes do not have the checksum they were written with",
                    ));
                }
            }
            block += run;
        }
        Ok(())
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
        let mut places: Places = vec![None; range.count as usize];
        let mut block = range.first;
        while block < range.end().min(state.table_end) {
            let (group, index) = group_of(block);
            let table = self.table(chunk, cell, state, group)?;
            let upto = range.end().min(state.table_end).min((group + 1) * GROUP_BLOCKS);
            for i in 0..upto - block {
                places[(block - range.first + i) as usize] =
                    table.get(index + i).map(|sum| (sum, Place::Home));
            }
            block = upto;
        }
        for slot in state.slots.of(range) {
            places[(slot.block - range.first) as usize] = slot.sum().map(|sum| (sum, slot.place()));
        }
        Ok(places)
    }

    /// A table of the chunk's own file. Entries from `table_end` on mean nothing.
    pub(super) fn table(
        &self,
        chunk: ChunkId,
        cell: &Cell,
        state: &ChunkState,
        group: u32,
    ) -> Result<Table, StoreError> {
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
        let mut known = self.corrupt_known.lock();
        if known.len() < CORRUPT_KNOWN_MAX && known.insert((chunk, block)) {
            drop(known);
            self.corrupt_blocks.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%chunk, block, disk = %self.path.display(), what, "corrupt block");
        }
        if !cell.corrupt.swap(true, Ordering::Relaxed) {
            self.tell(chunk, cell, state);
        }
        error
    }
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

//! Writing and punching.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use gofs_tree::{ChunkId, ChunkVersion};

use super::super::block::{BLOCK_LEN, BlockRange, BlockSum};
use super::super::chunk::{ChunkState, Life, Slot};
use super::super::error::StoreError;
use super::super::home::{Home, HomeKey};
use super::super::log::{Appended, Change, Create, Lsn};
use super::{Cell, Disk};

/// Fewer blocks than this that fill holes of a large chunk go to the log: one sync makes them durable, not two.
const IN_PLACE_MIN_BLOCKS: usize = 8;

/// A run this long goes on its way to the disk at once: a large file's sync then finds little left to do.
const LONG_RUN_BLOCKS: u32 = 64;

/// What a write may expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// The chunk is there.
    Existing,
    /// It is made if it is not there.
    Create,
    /// A copy from another server begins: a staged chunk is made. Refused where the chunk is there.
    CopyFirst,
    /// A copy goes on: the staged chunk is there.
    Copy,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// When it is in the page cache.
    Cached,
    /// When the caller has synced it.
    Synced,
}

/// Whether a writer may still write. Asked when the chunk is locked, for which it may have waited long.
pub type MayWrite<'a> = &'a dyn Fn() -> bool;

/// Bytes to write.
#[derive(Clone, Copy)]
pub struct Data<'a> {
    offset: u32,
    bytes: &'a [u8],
    /// Of the whole blocks from the start on; empty where it is not that of a block, or they are not known.
    sums: &'a [BlockSum],
}

impl<'a> Data<'a> {
    /// `sums`: checksums of whole blocks from `offset` on, which mean nothing where no block begins there.
    pub fn new(offset: u32, bytes: &'a [u8], sums: &'a [BlockSum]) -> Data<'a> {
        let aligned = (offset as usize).is_multiple_of(BLOCK_LEN);
        let known = if aligned { sums.len().min(bytes.len() / BLOCK_LEN) } else { 0 };
        Data { offset, bytes, sums: &sums[..known] }
    }

    /// The first `len` bytes, and the rest.
    fn split_at(self, len: usize) -> (Data<'a>, Data<'a>) {
        let (now, rest) = self.bytes.split_at(len);
        let (now_sums, rest_sums) = self.sums.split_at(self.sums.len().min(len.div_ceil(BLOCK_LEN)));
        (Data::new(self.offset, now, now_sums), Data::new(self.offset + len as u32, rest, rest_sums))
    }
}

/// Bytes of a write laid out in whole blocks: edges completed from what was there.
struct Blocks<'a> {
    range: BlockRange,
    /// Bytes before the middle in the first block; 0 where there is no first edge.
    middle: &'a [u8],
    first_edge: Option<Vec<u8>>,
    last_edge: Option<Vec<u8>>,
}

impl<'a> Blocks<'a> {
    fn block(&self, i: usize) -> &[u8] {
        let edge = usize::from(self.first_edge.is_some());
        match (&self.first_edge, &self.last_edge) {
            (Some(first), _) if i == 0 => first,
            (_, Some(last)) if i == self.range.count as usize - 1 => last,
            _ => &self.middle[(i - edge) * BLOCK_LEN..(i - edge + 1) * BLOCK_LEN],
        }
    }

    /// A run of blocks in as few pieces as memory allows.
    fn pieces(&self, run: std::ops::Range<usize>) -> Vec<&[u8]> {
        let edge = usize::from(self.first_edge.is_some());
        let inner_end = edge + self.middle.len() / BLOCK_LEN;
        let (start, end) = (run.start.clamp(edge, inner_end), run.end.clamp(edge, inner_end));
        let mut pieces = Vec::with_capacity(3);
        if run.start < edge && !run.is_empty() {
            pieces.push(self.block(0));
        }
        if start < end {
            pieces.push(&self.middle[(start - edge) * BLOCK_LEN..(end - edge) * BLOCK_LEN]);
        }
        if run.end > inner_end && !run.is_empty() {
            pieces.push(self.block(run.end - 1));
        }
        pieces
    }
}

/// What has to be durable before a write is acknowledged.
#[must_use]
pub struct BeforeAck {
    disk: Arc<Disk>,
    upto: Lsn,
}

impl BeforeAck {
    /// Waits for the disk.
    pub fn wait(self) -> Result<(), StoreError> {
        self.disk.sync_log(self.upto)
    }
}

impl Disk {
    /// Writes bytes and returns the blocks that the chunk then has. In the page cache when this returns; where there is
    /// something to wait for before it is acknowledged, that is returned too.
    pub fn write(
        self: &Arc<Self>,
        chunk: ChunkId,
        version: ChunkVersion,
        data: Data<'_>,
        mode: WriteMode,
        ack: Ack,
        may_write: MayWrite<'_>,
    ) -> Result<(u32, Option<BeforeAck>), StoreError> {
        let len = u32::try_from(data.bytes.len()).ok();
        if len.and_then(|len| BlockRange::covering(data.offset, len)).is_none() {
            return Err(StoreError::Invalid(format!(
                "{} bytes at {} are past the largest chunk",
                data.bytes.len(),
                data.offset
            )));
        }
        let (blocks, upto) = self.with_state(chunk, version, mode, may_write, |cell, state, create| {
            // All of it is let in or nothing.
            self.admit((data.bytes.len() + 2 * BLOCK_LEN) as u64)?;
            let made_here = create.is_some();
            let written = self.write_pieces(chunk, cell, state, data, create);
            if written.is_err() && made_here && state.life != Life::Unborn {
                // The log itself had no room after all: what is half-written must not be seen.
                self.bury(chunk, cell, state)?;
            }
            Ok((written?, self.before_ack(chunk, state, ack)?))
        })?;
        let pending = self.log.durable() < upto;
        Ok((blocks, pending.then(|| BeforeAck { disk: self.clone(), upto })))
    }

    /// What must be durable before the write that was just done is acknowledged.
    fn before_ack(&self, chunk: ChunkId, state: &mut ChunkState, ack: Ack) -> Result<Lsn, StoreError> {
        match ack {
            Ack::Synced => Ok(Lsn(0)),
            // A copy is nobody's before it is published, and that syncs.
            Ack::Cached if state.life == Life::Staged => Ok(Lsn(0)),
            Ack::Cached => self.make_dirty(chunk, state),
        }
    }

    fn write_pieces(
        &self,
        chunk: ChunkId,
        cell: &Cell,
        state: &mut ChunkState,
        mut data: Data<'_>,
        mut create: Option<Create>,
    ) -> Result<u32, StoreError> {
        while !data.bytes.is_empty() || create.is_some() {
            let piece = self.log.data_max() - data.offset as usize % BLOCK_LEN;
            let (now, rest) = data.split_at(piece.min(data.bytes.len()));
            self.write_piece(chunk, cell, state, now, create.take())?;
            data = rest;
        }
        Ok(state.blocks)
    }

    /// Makes a range read as zeros and returns the blocks that the chunk then has.
    pub fn punch(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u32,
        len: u32,
        ack: Ack,
        may_write: MayWrite<'_>,
    ) -> Result<u32, StoreError> {
        let Some(range) = BlockRange::covering(offset, len) else {
            return Err(StoreError::Invalid(format!("{len} bytes at {offset} are past the largest chunk")));
        };
        let (blocks, before_ack) =
            self.with_state(chunk, version, WriteMode::Existing, may_write, |cell, state, _| {
                if len == 0 {
                    return Ok((state.blocks, Lsn(0)));
                }
                let block = BLOCK_LEN as u32;
                let end = offset + len;
                let (whole_first, whole_end) = (offset.div_ceil(block), end / block);
                // Edges that were written get zeros; edges in holes are zeros already.
                let written = |at: u32, state: &ChunkState| {
                    let places = self.places(chunk, cell, state, BlockRange { first: at, count: 1 })?;
                    Ok::<bool, StoreError>(places[0].is_some())
                };
                let first_edge =
                    (!offset.is_multiple_of(block)).then(|| (offset, end.min(whole_first * block)));
                let last_edge = (!end.is_multiple_of(block) && whole_end >= whole_first)
                    .then(|| (whole_end * block, end));
                for (from, to) in [first_edge, last_edge].into_iter().flatten() {
                    if written(from / block, state)? {
                        let zeros = vec![0; (to - from) as usize];
                        self.write_piece(chunk, cell, state, Data::new(from, &zeros, &[]), None)?;
                    }
                }
                let whole = BlockRange {
                    first: whole_first,
                    count: whole_end.min(state.end).saturating_sub(whole_first),
                };
                if whole.count > 0 {
                    let places = self.places(chunk, cell, state, whole)?;
                    let gone = places.iter().filter(|place| place.is_some()).count() as u32;
                    if gone > 0 {
                        let blocks = state.blocks - gone.min(state.blocks);
                        let lsn = self.append(chunk, &Change::Punch { range: whole, blocks }, &[])?.lsn;
                        state.punch(lsn, whole, blocks);
                        self.blocks_since_index.fetch_add(u64::from(whole.count), Ordering::Relaxed);
                    }
                }
                debug_assert!(range.count > 0);
                Ok((state.blocks, self.before_ack(chunk, state, ack)?))
            })?;
        self.sync_log(before_ack)?;
        Ok(blocks)
    }

    /// Runs `then` on the state of a chunk that fits, or on that of a fresh one where `mode` allows.
    fn with_state<T>(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        mode: WriteMode,
        may_write: MayWrite<'_>,
        then: impl FnOnce(&Cell, &mut ChunkState, Option<Create>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let _gate = self.gate.read();
        self.check_up()?;
        loop {
            let cell = match (self.cell(chunk), mode) {
                (Some(cell), _) => cell,
                (None, WriteMode::Existing | WriteMode::Copy) => return Err(StoreError::NoChunk { chunk }),
                (None, _) => self.chunks.write().entry(chunk).or_default().clone(),
            };
            let mut state = cell.state.write();
            let staged = matches!(mode, WriteMode::CopyFirst | WriteMode::Copy);
            let create = match state.life {
                // Deleted between the look-up and the lock: look again.
                Life::Gone => continue,
                Life::Unborn if matches!(mode, WriteMode::Existing | WriteMode::Copy) => {
                    return Err(StoreError::NoChunk { chunk });
                }
                Life::Staged if mode == WriteMode::CopyFirst => {
                    return Err(StoreError::Invalid(format!("{chunk} is being copied already")));
                }
                Life::Unborn => Some(Create { version, staged }),
                Life::Live if staged => {
                    return Err(StoreError::Invalid(format!("{chunk} exists and cannot be copied over")));
                }
                Life::Staged if !staged => return Err(StoreError::NoChunk { chunk }),
                Life::Live | Life::Staged if state.version != version => {
                    return Err(StoreError::Stale { chunk, stored: state.version, asked: version });
                }
                Life::Live | Life::Staged => None,
            };
            let result = match may_write() {
                true => then(&cell, &mut state, create),
                false => Err(StoreError::TooLate { chunk }),
            };
            if state.life == Life::Unborn {
                state.life = Life::Gone;
                self.chunks.write().remove(&chunk);
            }
            return result;
        }
    }

    /// Writes at most what one record carries.
    fn write_piece(
        &self,
        chunk: ChunkId,
        cell: &Cell,
        state: &mut ChunkState,
        Data { offset, bytes, sums }: Data<'_>,
        create: Option<Create>,
    ) -> Result<(), StoreError> {
        if bytes.is_empty() {
            return self.create_empty(chunk, cell, state, create);
        }
        let range = BlockRange::covering(offset, bytes.len() as u32).expect("checked by the callers");
        let before = self.places(chunk, cell, state, range)?;
        let fresh = before.iter().filter(|place| place.is_none()).count();
        let blocks = self.lay_out(chunk, cell, state, range, offset, bytes)?;
        let home = match state.home {
            0 if state.blocks as usize + fresh > self.options.small_blocks as usize => {
                Some(self.make_home(chunk)?)
            }
            0 => None,
            generation => Some((generation, self.home_of(chunk, cell, state)?)),
        };
        let in_home = self.choose_in_place(state, range, &before, home.is_some());
        if let Some((_, home)) = &home {
            for run in runs(&in_home) {
                let whole = BlockRange { first: range.first + run.start as u32, count: run.len() as u32 };
                let mut first = whole.first;
                for piece in blocks.pieces(run) {
                    home.write_blocks(first, piece).map_err(self.change_error("writing", home.path()))?;
                    first += (piece.len() / BLOCK_LEN) as u32;
                }
                if whole.count >= LONG_RUN_BLOCKS {
                    home.begin_writing(whole);
                }
            }
        }
        let written: Vec<(BlockSum, bool)> = in_home
            .iter()
            .enumerate()
            .map(|(i, in_home)| {
                let known = sums.get(i).copied();
                (known.unwrap_or_else(|| BlockSum::of(blocks.block(i))), *in_home)
            })
            .collect();
        let to_log: Vec<bool> = in_home.iter().map(|in_home| !in_home).collect();
        let data: Vec<&[u8]> = runs(&to_log).flat_map(|run| blocks.pieces(run)).collect();
        let generation = home.map_or(0, |(generation, _)| generation);
        let change = Change::Write {
            create,
            blocks: state.blocks + fresh as u32,
            home: generation,
            first: range.first,
            written: written.clone(),
        };
        let appended = self.append(chunk, &change, &data)?;
        state.home = generation;
        state.write(
            appended.lsn,
            range.first,
            slots(range.first, &written, appended),
            state.blocks + fresh as u32,
        );
        self.blocks_since_index.fetch_add(u64::from(range.count), Ordering::Relaxed);
        self.born(chunk, cell, state, create);
        Ok(())
    }

    fn create_empty(
        &self,
        chunk: ChunkId,
        cell: &Cell,
        state: &mut ChunkState,
        create: Option<Create>,
    ) -> Result<(), StoreError> {
        let Some(create) = create else { return Ok(()) };
        state.last = self.append(chunk, &Change::Create(create), &[])?.lsn;
        self.born(chunk, cell, state, Some(create));
        Ok(())
    }

    fn born(&self, chunk: ChunkId, cell: &Cell, state: &mut ChunkState, create: Option<Create>) {
        if let Some(create) = create {
            state.version = create.version;
            state.dirty = true;
            state.life = if create.staged { Life::Staged } else { Life::Live };
            if !create.staged {
                // To be cleaned, though its first write may be synced at once.
                self.dirty.lock().insert(chunk, Instant::now());
            }
            self.tell(chunk, cell, state);
        }
    }

    fn make_home(&self, chunk: ChunkId) -> Result<(u64, Arc<Home>), StoreError> {
        let key = HomeKey { chunk, generation: self.log.tail().next.0 };
        let root = self.home_root();
        let path = key.path(&root);
        // Left by an attempt that failed before its record, with the log not moved since.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(self.change_error("removing", &path)(error));
            }
            _ => {}
        }
        self.homes.lock().pop(&key);
        let home =
            Home::create(&root, key, &self.options.watch).map_err(self.change_error("making", &path))?;
        let home = Arc::new(home);
        self.new_homes.lock().insert(key);
        self.homes.lock().put(key, home.clone());
        Ok((key.generation, home))
    }

    /// Completes the edge blocks from what is there, verified.
    fn lay_out<'a>(
        &self,
        chunk: ChunkId,
        cell: &Cell,
        state: &ChunkState,
        range: BlockRange,
        offset: u32,
        bytes: &'a [u8],
    ) -> Result<Blocks<'a>, StoreError> {
        let edge = |block: u32| -> Result<Vec<u8>, StoreError> {
            let mut out = vec![0; BLOCK_LEN];
            self.read_range(chunk, cell, state, BlockRange { first: block, count: 1 }, &mut out)?;
            Ok(out)
        };
        let start = offset as usize % BLOCK_LEN;
        let in_first = (BLOCK_LEN - start).min(bytes.len());
        let mut blocks = Blocks { range, middle: bytes, first_edge: None, last_edge: None };
        if start != 0 || in_first < BLOCK_LEN {
            let mut first = edge(range.first)?;
            first[start..start + in_first].copy_from_slice(&bytes[..in_first]);
            blocks.first_edge = Some(first);
            blocks.middle = &bytes[in_first..];
        }
        let in_last = blocks.middle.len() % BLOCK_LEN;
        if in_last != 0 {
            let mut last = edge(range.end() - 1)?;
            let (middle, tail) = blocks.middle.split_at(blocks.middle.len() - in_last);
            last[..in_last].copy_from_slice(tail);
            blocks.last_edge = Some(last);
            blocks.middle = middle;
        }
        Ok(blocks)
    }

    /// Which blocks go in place: only those that fill holes which no record tells anything about, so
    /// that nothing that is or was durable is overwritten.
    fn choose_in_place(
        &self,
        state: &ChunkState,
        range: BlockRange,
        before: &[Option<(BlockSum, super::super::chunk::Place)>],
        has_home: bool,
    ) -> Vec<bool> {
        let mut in_place: Vec<bool> = before.iter().map(|place| has_home && place.is_none()).collect();
        for slot in state.slots.of(range) {
            in_place[(slot.block - range.first) as usize] = false;
        }
        if in_place.iter().filter(|yes| **yes).count() < IN_PLACE_MIN_BLOCKS {
            in_place.fill(false);
        }
        in_place
    }
}

/// The slots that a write makes; `appended` is its record.
pub(super) fn slots(first: u32, written: &[(BlockSum, bool)], appended: Appended) -> Vec<Slot> {
    let mut at = appended.data;
    let mut slots = Vec::with_capacity(written.len());
    for (i, (sum, in_home)) in written.iter().enumerate() {
        let block = first + i as u32;
        if *in_home {
            slots.push(Slot::in_home(block, *sum, appended.lsn));
        } else {
            slots.push(Slot::in_log(block, *sum, at));
            at.offset += BLOCK_LEN as u32;
        }
    }
    slots
}

/// The runs of `true`.
fn runs(flags: &[bool]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + flags[at..].iter().position(|flag| *flag)?;
        let end = start + flags[start..].iter().position(|flag| !flag).unwrap_or(flags.len() - start);
        at = end;
        Some(start..end)
    })
}

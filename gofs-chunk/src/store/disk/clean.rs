//! Reclaims log segments that hold little: what still counts in them is written again at the log's end.

use std::collections::{HashMap, HashSet};

use gofs_tree::ChunkId;

use super::super::block::{BLOCK_LEN, BlockRange, BlockSum};
use super::super::chunk::{Life, Place};
use super::super::error::StoreError;
use super::super::index::Index;
use super::super::log::Change;
use super::Disk;
use super::write::slots;

/// Segments below which cleaning is not worth its writes.
const SEGMENTS_MIN: usize = 4;
/// Most bytes moved at once.
const MOVE_MAX_BYTES: u64 = 256 << 20;

impl Disk {
    /// Empties segments of which less than half still counts, where less than half of all does or space
    /// is short. The index after the next removes them.
    pub(super) fn clean(&self, index: &Index) -> Result<(), StoreError> {
        let mut live: HashMap<u32, u64> = HashMap::new();
        for (_, state) in &index.chunks {
            for slot in state.slots.all() {
                if let Place::Log(at) = slot.place() {
                    *live.entry(at.segment).or_default() += BLOCK_LEN as u64;
                }
            }
        }
        let segment_bytes = u64::from(self.options.segment_bytes);
        let mut full: Vec<u32> = self.log.segments();
        full.retain(|segment| *segment < index.tail.at.segment);
        let live_bytes: u64 = full.iter().filter_map(|segment| live.get(segment)).sum();
        let mostly_dead = full.len() >= SEGMENTS_MIN && live_bytes * 2 < full.len() as u64 * segment_bytes;
        if !mostly_dead && !self.is_short_of_space() {
            return Ok(());
        }
        full.retain(|segment| live.get(segment).is_some_and(|bytes| bytes * 2 < segment_bytes));
        full.sort_by_key(|segment| live[segment]);
        let mut budget = MOVE_MAX_BYTES;
        let victims: HashSet<u32> = full
            .into_iter()
            .take_while(|segment| budget.checked_sub(live[segment]).map(|left| budget = left).is_some())
            .collect();
        if victims.is_empty() {
            return Ok(());
        }
        for (chunk, state) in &index.chunks {
            let concerned = state.slots.all().iter().any(|slot| is_in(&victims, slot.place()));
            if concerned {
                match self.move_blocks(*chunk, &victims) {
                    // Damaged blocks stay where they are, and their segment with them.
                    Err(StoreError::Corrupt { .. } | StoreError::NoSpace { .. }) | Ok(()) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        tracing::debug!(disk = %self.path.display(), segments = victims.len(), "log segments emptied");
        Ok(())
    }

    fn move_blocks(&self, chunk: ChunkId, victims: &HashSet<u32>) -> Result<(), StoreError> {
        let Some(cell) = self.cell(chunk) else { return Ok(()) };
        let _gate = self.gate.read();
        let mut state = cell.state.write();
        if !matches!(state.life, Life::Live | Life::Staged) || state.damaged {
            return Ok(());
        }
        let most = self.log.data_max() / BLOCK_LEN;
        loop {
            let all = state.slots.all();
            let Some(start) = all.iter().position(|slot| is_in(victims, slot.place())) else { return Ok(()) };
            let run = all[start..]
                .iter()
                .enumerate()
                .take(most)
                .take_while(|(i, slot)| {
                    slot.block == all[start].block + *i as u32 && is_in(victims, slot.place())
                })
                .count();
            let range = BlockRange { first: all[start].block, count: run as u32 };
            let mut bytes = vec![0; range.bytes()];
            self.read_range(chunk, &cell, &state, range, &mut bytes)?;
            let written: Vec<(BlockSum, bool)> =
                bytes.chunks_exact(BLOCK_LEN).map(|block| (BlockSum::of(block), false)).collect();
            let change = Change::Write {
                create: None,
                blocks: state.blocks,
                home: state.home,
                first: range.first,
                written: written.clone(),
            };
            let appended = self.append(chunk, &change, &[&bytes])?;
            let blocks = state.blocks;
            state.write(appended.lsn, range.first, slots(range.first, &written, appended), blocks);
        }
    }
}

fn is_in(victims: &HashSet<u32>, place: Place) -> bool {
    matches!(place, Place::Log(at) if victims.contains(&at.segment))
}

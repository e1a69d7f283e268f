//! Keeps the log short: carries what it holds of large chunks into their own files, and writes the index.
//!
//! A chunk's own file is changed in an order that a crash may cut anywhere: its in-place data are
//! synced, the new tables are durable in the log, then data and tables are written and synced, then the log
//! says so. Until that last record the slots stand for the blocks, whatever the file holds.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;

use gofs_tree::ChunkId;

use super::super::block::{BLOCK_LEN, BlockRange};
use super::super::chunk::{ChunkState, Life, Place};
use super::super::error::StoreError;
use super::super::home::{GROUP_BLOCKS, Home, HomeKey, Table, group_of, groups_of};
use super::super::index::{Index, index_path, list_indexes};
use super::super::log::{Change, Lsn};
use super::{Cell, Disk};

/// Bytes in the log since the last index after which the next is due.
const INDEX_EVERY_BYTES: u64 = 128 << 20;
/// Blocks written since the last index after which the next is due: 1 GiB, 16 bytes of memory each.
const INDEX_EVERY_BLOCKS: u64 = 256 << 10;
/// Blocks carried into a file at once.
const CARRY_BLOCKS: u32 = 256;

impl Disk {
    pub(super) fn index_is_due(&self) -> bool {
        let bytes = self.bytes_since_index.load(Ordering::Relaxed);
        bytes >= INDEX_EVERY_BYTES
            || self.scrub_untold.load(Ordering::Relaxed)
            || self.blocks_since_index.load(Ordering::Relaxed) >= INDEX_EVERY_BLOCKS
            || (bytes > 0 && self.is_short_of_space())
    }

    pub(super) fn is_short_of_space(&self) -> bool {
        self.free_bytes() < self.reserve_bytes
    }

    /// Carries overwritten blocks home, writes the index, removes what it makes needless.
    /// After it nothing that was written before has to be read from the log's records at a start.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.check_up()?;
        let mut indexes = self.indexes.lock();
        let told = !self.scrub_untold.swap(false, Ordering::Relaxed);
        if told && indexes.last().is_some_and(|(_, tail)| tail.next == self.log.tail().next) {
            return Ok(());
        }
        for chunk in self.chunk_ids() {
            match self.carry_home(chunk) {
                // Its slots stay, and so do the segments that hold its other blocks.
                Err(StoreError::Corrupt { .. }) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        let number = indexes.last().map_or(1, |(number, _)| number + 1);
        let index = {
            let _gate = self.gate.write();
            self.bytes_since_index.store(0, Ordering::Relaxed);
            self.blocks_since_index.store(0, Ordering::Relaxed);
            let chunks = self.chunks.read();
            Index {
                disk: self.id,
                boot: self.options.boot,
                number,
                tail: self.log.tail(),
                last_scrub_unix_s: self.last_scrub_unix_s.load(Ordering::Relaxed),
                chunks: chunks.iter().map(|(chunk, cell)| (*chunk, cell.state.read().clone())).collect(),
            }
        };
        // What the index refers to in the log must be durable before the index is.
        self.sync_log(Lsn(index.tail.next.0 - 1))?;
        index
            .save(&self.path, &self.options.watch)
            .map_err(self.change_error("writing the index in", &self.path))?;
        indexes.push((number, index.tail));
        if indexes.len() > 2 {
            indexes.remove(0);
        }
        self.remove_condemned();
        self.prune(&indexes, &index)
            .map_err(self.change_error("removing old log segments in", &self.path))?;
        self.clean(&index)
    }

    /// Removes index files before the last two, and segments that neither these nor the log after them need.
    fn prune(&self, indexes: &[(u64, super::super::log::Tail)], newest: &Index) -> std::io::Result<()> {
        let [(oldest, tail), _] = indexes else { return Ok(()) };
        for number in list_indexes(&self.path)?.into_iter().filter(|number| number < oldest) {
            std::fs::remove_file(index_path(&self.path, number))?;
        }
        let mut needed = HashSet::new();
        for (_, state) in &newest.chunks {
            for slot in state.slots.all() {
                if let Place::Log(at) = slot.place() {
                    needed.insert(at.segment);
                }
            }
        }
        for segment in self.log.segments() {
            if segment < tail.at.segment && !needed.contains(&segment) {
                self.log.remove(segment)?;
            }
        }
        Ok(())
    }

    /// Brings everything that slots tell of a large chunk into its own file.
    pub(super) fn carry_home(&self, chunk: ChunkId) -> Result<(), StoreError> {
        let Some(cell) = self.cell(chunk) else { return Ok(()) };
        {
            let state = cell.state.read();
            if state.home == 0 || state.slots.all().is_empty() || state.damaged {
                return Ok(());
            }
        }
        let _gate = self.gate.read();
        let mut state = cell.state.write();
        let Some(last) = state.slots.all().last().copied() else { return Ok(()) };
        if !matches!(state.life, Life::Live | Life::Staged) {
            return Ok(());
        }
        let key = HomeKey { chunk, generation: state.home };
        let home = self.home_of(chunk, &cell, &state)?;
        if state.home_written > state.home_synced {
            self.sync_home(&home, key)?;
            let upto = state.home_written;
            self.home_synced(chunk, &mut state, upto)?;
        }
        let tables = self.new_tables(chunk, &cell, &state, last.block)?;
        let encoded: Vec<(u32, Vec<u8>)> =
            tables.iter().map(|(group, table)| (*group, table.encode(chunk, *group))).collect();
        for batch in encoded.chunks(self.log.data_max() / BLOCK_LEN) {
            let change = Change::Tables {
                home: key.generation,
                groups: batch.iter().map(|(group, _)| *group).collect(),
            };
            let data: Vec<&[u8]> = batch.iter().map(|(_, bytes)| bytes.as_slice()).collect();
            state.last = self.append(chunk, &change, &data)?.lsn;
        }
        self.sync_log(state.last)?;
        self.carry_blocks(chunk, &cell, &state, &home)?;
        // Where it was closed to make place for others it has been opened again, and the tables as they were are kept
        // with that. From now on there is this one, which forgets them.
        self.homes.lock().put(key, home.clone());
        for (group, bytes) in &encoded {
            // Half a table would hide blocks that were whole; the next start has it whole in the log.
            home.write_table(*group, bytes).map_err(self.final_error("writing", home.path()))?;
        }
        self.sync_home(&home, key)?;
        let lsn = self.append(chunk, &Change::Applied, &[])?.lsn;
        state.applied(lsn);
        Ok(())
    }

    /// The tables as they are with the slots. There is one for every group up to the last, so that a
    /// missing table is always damage.
    fn new_tables(
        &self,
        chunk: ChunkId,
        cell: &Cell,
        state: &ChunkState,
        last: u32,
    ) -> Result<BTreeMap<u32, Table>, StoreError> {
        let had = groups_of(state.table_end);
        let mut tables: BTreeMap<u32, Table> =
            (had..=group_of(last).0).map(|group| (group, Table::empty())).collect();
        for slot in state.slots.all() {
            let (group, index) = group_of(slot.block);
            let table = match tables.entry(group) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(self.listed_table(chunk, cell, state, group)?)
                }
            };
            table.set(index, slot.sum());
        }
        Ok(tables)
    }

    /// A table without entries that an attempt cut short may have left past the end.
    fn listed_table(
        &self,
        chunk: ChunkId,
        cell: &Cell,
        state: &ChunkState,
        group: u32,
    ) -> Result<Table, StoreError> {
        let mut table = Table::clone(&*self.table(chunk, cell, state, group)?);
        for index in state.table_end.saturating_sub(group * GROUP_BLOCKS).min(GROUP_BLOCKS)..GROUP_BLOCKS {
            table.set(index, None);
        }
        Ok(table)
    }

    /// Copies blocks from the log to their places, and gives back the space of punched ones.
    fn carry_blocks(
        &self,
        chunk: ChunkId,
        cell: &Cell,
        state: &ChunkState,
        home: &Home,
    ) -> Result<(), StoreError> {
        let kind = |place| match place {
            Place::Log(_) => 0,
            Place::Home => 1,
            Place::Hole => 2,
        };
        let slots = state.slots.all();
        let mut at = 0;
        while at < slots.len() {
            let first = slots[at];
            let run = slots[at..]
                .iter()
                .enumerate()
                .take(if first.place() == Place::Hole { usize::MAX } else { CARRY_BLOCKS as usize })
                .take_while(|(i, slot)| {
                    slot.block == first.block + *i as u32 && kind(slot.place()) == kind(first.place())
                })
                .count();
            let range = BlockRange { first: first.block, count: run as u32 };
            match first.place() {
                Place::Log(_) => {
                    let mut bytes = vec![0; range.bytes()];
                    self.read_range(chunk, cell, state, range, &mut bytes)?;
                    home.write_blocks(range.first, &bytes)
                        .map_err(self.change_error("writing", home.path()))?;
                }
                Place::Home => {}
                Place::Hole => home.punch(range).map_err(self.change_error("punching", home.path()))?,
            }
            at += run;
        }
        Ok(())
    }
}

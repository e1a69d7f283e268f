//! What is known in memory of one chunk, and how each log record changes it.
//!
//! The live path and recovery change the state by the same functions. Sync, no I/O.

use gofs_tree::{ChunkId, ChunkVersion};

use super::block::{BlockRange, BlockSum};
use super::error::StoreError;
use super::log::{Lsn, Position};

/// Where the newest bytes of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a log segment.
    Log(Position),
    /// In the chunk's own file, at the block's place; its checksum is not in the file's table yet.
    Home,
    /// Nowhere: the block was punched, though the file's table may still list it.
    Hole,
}

/// One block that the table of the chunk's own file does not tell about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index of the block in the chunk.
    pub block: u32,
    sum: u32,
    segment: u32,
    /// In the segment. In the chunk's own file: of the number of the record that wrote it the lower half, where 0 says that it
    /// is not known, as with those that an earlier build has put into the index.
    offset: u32,
}

/// Segments are numbered from 1.
const IN_HOME: u32 = 0;
const IN_HOLE: u32 = u32::MAX;

impl Slot {
    /// A block whose bytes have this checksum and are in the log.
    pub fn in_log(block: u32, sum: BlockSum, at: Position) -> Slot {
        Slot { block, sum: sum.raw(), segment: at.segment, offset: at.offset }
    }

    /// The same in the chunk's own file, by this record.
    pub fn in_home(block: u32, sum: BlockSum, lsn: Lsn) -> Slot {
        Slot { block, sum: sum.raw(), segment: IN_HOME, offset: lsn.0 as u32 }
    }

    /// A block that was punched.
    pub fn hole(block: u32) -> Slot {
        Slot { block, sum: 0, segment: IN_HOLE, offset: 0 }
    }

    /// Where the bytes are.
    pub fn place(self) -> Place {
        match self.segment {
            IN_HOME => Place::Home,
            IN_HOLE => Place::Hole,
            segment => Place::Log(Position { segment, offset: self.offset }),
        }
    }

    /// The checksum; `None` for a hole.
    pub fn sum(self) -> Option<BlockSum> {
        BlockSum::from_raw(self.sum)
    }

    /// As in the index file.
    pub fn to_raw(self) -> [u32; 4] {
        [self.block, self.sum, self.segment, self.offset]
    }

    /// From the index file; `None` where the fields contradict each other.
    pub fn from_raw([block, sum, segment, offset]: [u32; 4]) -> Option<Slot> {
        ((sum == 0) == (segment == IN_HOLE)).then_some(Slot { block, sum, segment, offset })
    }
}

/// Slots in order of their blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots(Vec<Slot>);

impl Slots {
    /// From a sorted list; `None` where it is not sorted.
    pub fn from_sorted(slots: Vec<Slot>) -> Option<Slots> {
        slots.is_sorted_by(|a, b| a.block < b.block).then_some(Slots(slots))
    }

    /// All of them.
    pub fn all(&self) -> &[Slot] {
        &self.0
    }

    fn bounds(&self, range: BlockRange) -> std::ops::Range<usize> {
        let start = self.0.partition_point(|slot| slot.block < range.first);
        let end = start + self.0[start..].partition_point(|slot| slot.block < range.end());
        start..end
    }

    /// Those of a range of blocks.
    pub fn of(&self, range: BlockRange) -> &[Slot] {
        &self.0[self.bounds(range)]
    }

    /// Puts `fresh`, sorted and all within `range`, in the place of what the range held.
    pub fn replace(&mut self, range: BlockRange, fresh: impl IntoIterator<Item = Slot>) {
        let bounds = self.bounds(range);
        self.0.splice(bounds, fresh);
    }

    /// Keeps those for which `keep` says so.
    pub fn retain(&mut self, keep: impl FnMut(&Slot) -> bool) {
        self.0.retain(keep);
    }

    /// Forgets all and gives the memory back.
    pub fn clear(&mut self) {
        self.0 = Vec::new();
    }
}

/// Where a chunk is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Life {
    /// Its first record is not written yet.
    #[default]
    Unborn,
    /// Being copied from another server: exists for the copier only, and not at all after a crash.
    Staged,
    /// Can be read and written.
    Live,
    /// Deleted.
    Gone,
}

/// What becomes of a doubt where the version is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It ends: whoever moves the version knows of it, and has chosen what counts.
    Ends,
    /// A replica in doubt is refused: whoever moves the version knows of none.
    Refused,
}

/// One chunk.
#[derive(Clone, Debug, Default)]
pub struct ChunkState {
    /// Of the bytes held.
    pub version: ChunkVersion,
    /// Where it is in its life.
    pub life: Life,
    /// Blocks that were written.
    pub blocks: u32,
    /// One past the last block that was ever written.
    pub end: u32,
    /// Generation of the chunk's own file; 0 = none, everything is in the log.
    pub home: u64,
    /// Blocks from here on are not in the table of the chunk's own file.
    pub table_end: u32,
    /// What the table does not tell.
    pub slots: Slots,
    /// A record about it was lost to damage: its bytes cannot be told from older ones.
    pub damaged: bool,
    /// Writes may have been acknowledged that are not durable. True on disk before any such write is.
    pub dirty: bool,
    /// The record that made it dirty, where that may not be durable yet. In memory only.
    pub dirtied: Lsn,
    /// It was dirty when the host went down: it may lack such writes.
    pub doubtful: bool,
    /// Last record about it.
    pub last: Lsn,
    /// Last record that wrote blocks in place in the chunk's own file.
    pub home_written: Lsn,
    /// In-place writes up to here are on stable storage.
    pub home_synced: Lsn,
}

impl ChunkState {
    /// A write: one checksum for each block, and for those whose bytes are in the log, in order, `log`
    /// gives the position.
    pub fn write(&mut self, lsn: Lsn, first: u32, slots: Vec<Slot>, blocks: u32) {
        let range = BlockRange { first, count: slots.len() as u32 };
        if slots.iter().any(|slot| slot.place() == Place::Home) {
            self.home_written = lsn;
        }
        self.slots.replace(range, slots);
        self.blocks = blocks;
        self.end = self.end.max(range.end());
        self.last = lsn;
    }

    /// A punch of whole blocks. Where the chunk has a file of its own, blocks that the table may list need a
    /// slot that says otherwise, and so do those that had one: their place in the file may hold what a
    /// crash before the punch is durable leaves, so it must not be filled as if nothing had ever been there.
    pub fn punch(&mut self, lsn: Lsn, range: BlockRange, blocks: u32) {
        let mut holes: Vec<u32> = Vec::new();
        if self.home != 0 {
            let listed = range.end().min(self.table_end);
            holes.extend(range.first..listed.max(range.first));
            holes.extend(self.slots.of(range).iter().map(|slot| slot.block).filter(|block| *block >= listed));
        }
        self.slots.replace(range, holes.into_iter().map(Slot::hole));
        self.blocks = blocks;
        self.last = lsn;
    }

    /// The chunk's own file holds everything that the slots told: they are not needed any more.
    pub fn applied(&mut self, lsn: Lsn) {
        if let Some(slot) = self.slots.all().last() {
            self.table_end = self.table_end.max(slot.block + 1);
        }
        self.slots.clear();
        self.last = lsn;
    }

    /// Whether all that was written in place is on stable storage.
    pub fn is_home_synced(&self) -> bool {
        self.home_written <= self.home_synced
    }

    /// Whether the slot's bytes were written in place and no sync is known to have covered that.
    pub fn is_unsynced(&self, slot: Slot) -> bool {
        let unsynced = self.home_written.0.saturating_sub(self.home_synced.0);
        // No slot is of a later record. Of one so old that the halves of numbers have come round it is not known any more.
        let before_last = (self.home_written.0 as u32).wrapping_sub(slot.offset);
        slot.place() == Place::Home && unsynced > 0 && (slot.offset == 0 || u64::from(before_last) < unsynced)
    }

    /// Whether other than the copier may see it.
    pub fn is_live(&self) -> bool {
        self.life == Life::Live
    }

    /// Whether it may be read at this version. Whoever asks for any (version 0) was told by a MetaServer that there is nothing
    /// better; one that names a version was told before it was in doubt.
    pub fn check(&self, chunk: ChunkId, asked: ChunkVersion) -> Result<(), StoreError> {
        if asked > self.version {
            return Err(StoreError::Stale { chunk, stored: self.version, asked });
        }
        if self.doubtful && asked > ChunkVersion(0) {
            return Err(StoreError::Doubtful { chunk });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(blocks: &[u32]) -> Vec<Slot> {
        blocks.iter().map(|b| Slot::hole(*b)).collect()
    }

    #[test]
    fn replace_touches_its_range_only() {
        let mut all = Slots::from_sorted(slots(&[1, 3, 5, 7])).unwrap();
        all.replace(BlockRange { first: 3, count: 3 }, slots(&[4]));
        assert_eq!(all.all().iter().map(|s| s.block).collect::<Vec<_>>(), [1, 4, 7]);
        assert!(Slots::from_sorted(slots(&[2, 2])).is_none());
    }

    #[test]
    fn a_slot_survives_its_raw_form() {
        let sum = BlockSum::of(&[7; 4096]);
        for slot in [
            Slot::hole(3),
            Slot::in_home(4, sum, Lsn(7)),
            Slot::in_log(5, sum, Position { segment: 9, offset: 64 }),
        ] {
            assert_eq!(Slot::from_raw(slot.to_raw()), Some(slot));
        }
        assert_eq!(Slot::from_raw([1, 0, 5, 5]), None);
    }
    #[test]
    fn blocks_in_place_are_synced_up_to_the_record_that_the_last_sync_covered() {
        let sum = BlockSum::of(&[7; 4096]);
        let half = 1 << 32;
        let state = |synced, written| ChunkState {
            home_synced: Lsn(synced),
            home_written: Lsn(written),
            ..ChunkState::default()
        };
        let unsynced = |state: &ChunkState, lsn| state.is_unsynced(Slot::in_home(0, sum, Lsn(lsn)));
        for round in [0, half] {
            let some = state(round + 5, round + 9);
            assert_eq!([4, 5, 6, 9].map(|lsn| unsynced(&some, round + lsn)), [false, false, true, true]);
            assert!(!unsynced(&state(round + 9, round + 9), round + 9));
        }
        assert!(
            unsynced(&state(half - 2, half + 2), half - 1) && !unsynced(&state(half - 2, half + 2), half - 2)
        );
        assert!(unsynced(&state(3, half + 2), 5), "longer ago than can be told");
        assert!(unsynced(&state(5, 9), 0) && !unsynced(&state(9, 9), 0), "of an earlier build's index");
        assert!(!state(5, 9).is_unsynced(Slot::in_log(0, sum, Position { segment: 9, offset: 64 })));
    }
}

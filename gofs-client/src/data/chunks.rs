//! What is known of the chunks of one file: where they are, what must be synced, what is
//! certainly zero in them.

use std::collections::BTreeMap;

use gofs_tree::{ByteRange, ChunkId, ChunkIndex, ChunkOffset, ChunkSize, ChunkVersion, FileOffset};

use super::ranges::Ranges;
use super::{ChunkLocation, Replica};

/// Chunk indexes of a file are 32 bits.
pub(super) const INDEX_END: u64 = 1 << 32;

/// One chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Where it is.
    pub location: ChunkLocation,
    /// Whether its servers have made it: until then a write may make it.
    pub made: bool,
    /// The newest version at which a write from here was acknowledged; 0: none was.
    pub made_at: ChunkVersion,
    /// The MetaServer is being told that nothing in it was acknowledged: no answer counts that comes now.
    pub claimed: bool,
    /// What was acknowledged at an older version is not there: nothing had been when the chunk was placed anew.
    pub counts_from: ChunkVersion,
    /// From here on it was never written: those bytes are zeros. The chunk size where that is not known.
    pub zero_from: u64,
}

impl Chunk {
    /// The replicas in the order of their chain, which differs from chunk to chunk so that
    /// every server is the first of some; `turn` moves another to the front.
    pub fn chain(&self, turn: usize) -> Vec<Replica> {
        let mut replicas = self.location.replicas.clone();
        if !replicas.is_empty() {
            let first = (self.location.chunk.0 as usize).wrapping_add(turn) % replicas.len();
            replicas.rotate_left(first);
        }
        replicas
    }

    /// Its location as the MetaServer says.
    fn is_at(&mut self, location: ChunkLocation) {
        // All its servers have lost it before anything was committed, and others are to have it: it is to be made again.
        let lost = location.version.losses() > self.made_at.losses();
        self.made &= !(lost && location.blocks_4k == 0 && self.made_at != ChunkVersion(0));
        self.location = location;
    }
}

/// A range within one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkSpan {
    /// Which chunk.
    pub index: ChunkIndex,
    /// Where in it.
    pub offset: ChunkOffset,
    /// Bytes.
    pub len: u32,
}

/// `range` cut at chunk boundaries. Bytes past the last chunk that a file can have are left out.
pub(super) fn spans(range: ByteRange, size: ChunkSize) -> impl Iterator<Item = ChunkSpan> {
    let chunk_bytes = u64::from(size.bytes());
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let (index, offset) = FileOffset(at).split(size)?;
        let len = (chunk_bytes - u64::from(offset.0)).min(range.end - at);
        at += len;
        Some(ChunkSpan { index, offset, len: len as u32 })
    })
}

/// Where the first write went that is not known to be on stable storage. All 0: others wrote it, or that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FirstWrite {
    /// The chunk.
    chunk: ChunkId,
    /// At which version of it that was acknowledged.
    version: ChunkVersion,
}

impl FirstWrite {
    /// Whether it may have gone to this chunk.
    fn may_be(self, chunk: ChunkId) -> bool {
        self == FirstWrite::default() || self.chunk == chunk
    }

    /// The version, if it was to this chunk.
    pub fn version(self, chunk: ChunkId) -> Option<ChunkVersion> {
        (self.chunk == chunk).then_some(self.version)
    }
}

/// Chunks with writes that are not known to be on stable storage.
pub(super) type Unsynced = BTreeMap<ChunkIndex, FirstWrite>;

/// The chunks of one file.
#[derive(Clone, Debug, Default)]
pub(super) struct Chunks {
    /// Indexes of which the server has told every chunk.
    known: Ranges,
    present: BTreeMap<ChunkIndex, Chunk>,
    /// Written, but not known to be on stable storage.
    pub unsynced: Unsynced,
    /// Allocated blocks of these chunks that the server has not been told.
    pub new_blocks: BTreeMap<ChunkIndex, (ChunkId, u32)>,
    /// Chunks that others wrote may be unsynced: everything has to be synced once.
    pub all_unsynced: bool,
    /// A request for chunks was given up and may be carried out yet, whatever the map says.
    pub may_get_more: bool,
}

impl Chunks {
    /// Nothing is known; `all_unsynced`: there may be chunks, with bytes that nobody synced.
    pub fn unknown(all_unsynced: bool) -> Self {
        Chunks { all_unsynced, ..Chunks::default() }
    }

    /// Others may have changed the file: nothing is known any more but what was written here and not synced.
    pub fn forget_all(&mut self, all_unsynced: bool) {
        let unsynced = std::mem::take(&mut self.unsynced);
        *self = Chunks { unsynced, may_get_more: self.may_get_more, ..Chunks::unknown(all_unsynced) };
    }

    /// The chunk, `None` where the file has none; outer `None`: ask the server.
    pub fn get(&self, index: ChunkIndex) -> Option<Option<&Chunk>> {
        match self.present.get(&index) {
            Some(chunk) => Some(Some(chunk)),
            None => self.is_known(u64::from(index.0)).then_some(None),
        }
    }

    fn is_known(&self, index: u64) -> bool {
        self.known.end_at(index).is_some()
    }

    /// The first index range within `[first, end)` of which the server has to be asked.
    pub fn first_unknown(&self, first: u64, end: u64) -> Option<(u64, u64)> {
        let mut at = first;
        while at < end {
            match self.known.end_at(at) {
                Some(known_end) => at = known_end,
                None => return Some((at, self.known.next(at).map_or(end, |start| start.min(end)))),
            }
        }
        None
    }

    /// What the server answered for `[first, end)`.
    pub fn learn(&mut self, first: u64, end: u64, locations: Vec<ChunkLocation>, size: ChunkSize) {
        for location in locations {
            let index = location.index;
            match self.present.get_mut(&index) {
                Some(chunk) if chunk.location.chunk == location.chunk => chunk.is_at(location),
                _ => {
                    let told = location.blocks_4k;
                    let untold = self.new_blocks.get(&index).filter(|(chunk, _)| *chunk == location.chunk);
                    let blocks_4k = untold.map_or(told, |(_, blocks_4k)| *blocks_4k);
                    if untold.is_none() {
                        self.new_blocks.remove(&index);
                    }
                    let location = ChunkLocation { blocks_4k, ..location };
                    let chunk = Chunk {
                        made: location.blocks_4k > 0,
                        made_at: ChunkVersion(0),
                        claimed: false,
                        counts_from: ChunkVersion(0),
                        zero_from: u64::from(size.bytes()),
                        location,
                    };
                    self.present.insert(index, chunk);
                }
            }
        }
        self.known.add(first, end);
    }

    /// A chunk that the server gave the file because it had none there, or one it had already.
    pub fn allocated(&mut self, location: ChunkLocation, size: ChunkSize) {
        let index = location.index;
        let fresh = self.get(index) == Some(None) && location.blocks_4k == 0;
        let at = u64::from(index.0);
        self.learn(at, at + 1, vec![location], size);
        if fresh && let Some(chunk) = self.present.get_mut(&index) {
            chunk.zero_from = 0;
        }
    }

    /// A new location of a chunk that is known.
    pub fn moved(&mut self, location: ChunkLocation) {
        if let Some(chunk) = self.present.get_mut(&location.index)
            && chunk.location.chunk == location.chunk
        {
            let blocks_4k = chunk.location.blocks_4k;
            chunk.is_at(location);
            chunk.location.blocks_4k = blocks_4k;
        }
    }

    /// The chunks in `[first, end)` are asked for again before their next use. Those that are unsynced stay so.
    pub fn forget(&mut self, first: u64, end: u64) {
        self.known.remove(first, end);
        let gone: Vec<ChunkIndex> =
            self.present.keys().filter(|index| (first..end).contains(&u64::from(index.0))).copied().collect();
        for index in gone {
            self.present.remove(&index);
        }
        self.new_blocks.retain(|index, _| !(first..end).contains(&u64::from(index.0)));
    }

    /// After a flush was refused: nothing is known but what was acknowledged before, and is to be told and synced.
    pub fn forget_locations(&mut self) {
        let new_blocks = std::mem::take(&mut self.new_blocks);
        self.forget_all(true);
        self.new_blocks = new_blocks;
    }

    /// The chunks that are present within `[first, end)`.
    pub fn present(&self, first: u64, end: u64) -> impl Iterator<Item = &Chunk> {
        let start = ChunkIndex(u32::try_from(first).unwrap_or(u32::MAX));
        self.present
            .range(start..)
            .map(|(_, chunk)| chunk)
            .take_while(move |chunk| u64::from(chunk.location.index.0) < end)
    }

    /// Bytes of the chunk up to `end` are about to be written.
    pub fn writing(&mut self, index: ChunkIndex, end: u64) {
        if let Some(chunk) = self.present.get_mut(&index) {
            chunk.zero_from = chunk.zero_from.max(end);
        }
    }

    /// Whether nothing in the chunk was ever acknowledged. If so, answers do not count until [`Chunks::unclaim`].
    pub fn claim(&mut self, location: &ChunkLocation) -> bool {
        let chunk = self.present.get_mut(&location.index);
        let Some(chunk) = chunk.filter(|chunk| chunk.location.chunk == location.chunk) else { return false };
        let acknowledged =
            self.unsynced.get(&location.index).is_some_and(|first| first.may_be(location.chunk));
        chunk.claimed = !chunk.made && !acknowledged;
        chunk.claimed
    }

    /// The MetaServer has answered, where it did.
    pub fn unclaim(&mut self, index: ChunkIndex, answer: Option<&ChunkLocation>) {
        if let Some(chunk) = self.present.get_mut(&index).filter(|chunk| chunk.claimed) {
            if let Some(answer) = answer.filter(|answer| answer.version > chunk.location.version) {
                chunk.counts_from = answer.version;
            }
            chunk.claimed = false;
        }
    }

    /// A write was acknowledged by every replica at this version, on stable storage of none. `false`: that does not count.
    #[must_use]
    pub fn written(&mut self, index: ChunkIndex, version: ChunkVersion, blocks_4k: u32) -> bool {
        if let Some(chunk) = self.present.get_mut(&index) {
            if chunk.claimed || version < chunk.counts_from {
                return false;
            }
            chunk.made = true;
            chunk.made_at = chunk.made_at.max(version);
            // Writes only add blocks, and their answers overtake each other.
            if chunk.location.blocks_4k < blocks_4k {
                chunk.location.blocks_4k = blocks_4k;
                self.new_blocks.insert(index, (chunk.location.chunk, blocks_4k));
            }
        }
        self.acknowledged(index, version);
        true
    }

    fn acknowledged(&mut self, index: ChunkIndex, version: ChunkVersion) {
        let first = self.unsynced.entry(index).or_default();
        if let Some(chunk) = self.present.get(&index).map(|chunk| chunk.location.chunk)
            && first.version(chunk).is_none()
        {
            *first = FirstWrite { chunk, version };
        }
    }

    /// A part of the chunk was made zero on every replica at this version; nothing else was under way.
    pub fn punched(&mut self, index: ChunkIndex, version: ChunkVersion, blocks_4k: u32) {
        if let Some(chunk) = self.present.get_mut(&index)
            && chunk.location.blocks_4k != blocks_4k
        {
            chunk.location.blocks_4k = blocks_4k;
            self.new_blocks.insert(index, (chunk.location.chunk, blocks_4k));
        }
        self.acknowledged(index, version);
    }

    /// The parts of `range` that may hold anything but zeros, chunk by chunk.
    pub fn not_zero(&self, range: ByteRange, size: ChunkSize) -> Vec<ChunkSpan> {
        if range.is_empty() {
            return Vec::new();
        }
        let chunk_bytes = u64::from(size.bytes());
        let (first, end) = (range.start / chunk_bytes, range.end.div_ceil(chunk_bytes));
        let mut out = Vec::new();
        for chunk in self.present(first, end) {
            let start = chunk.location.index.start(size).0;
            let from = range.start.max(start) - start;
            let to = (range.end.min(start + chunk_bytes) - start).min(chunk.zero_from);
            if from < to {
                out.push(ChunkSpan {
                    index: chunk.location.index,
                    offset: ChunkOffset(from as u32),
                    len: (to - from) as u32,
                });
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size() -> ChunkSize {
        ChunkSize::new(64 << 10).unwrap()
    }

    fn location(index: u32, blocks_4k: u32) -> ChunkLocation {
        ChunkLocation {
            index: ChunkIndex(index),
            chunk: ChunkId(u64::from(index) + 100),
            version: ChunkVersion(1),
            blocks_4k,
            replicas: Vec::new(),
            lost: false,
        }
    }

    #[test]
    fn what_was_told_is_not_asked_again() {
        let mut chunks = Chunks::default();
        assert_eq!(chunks.first_unknown(0, 10), Some((0, 10)));
        chunks.learn(4, 6, vec![location(5, 1)], size());
        assert_eq!(chunks.first_unknown(0, 10), Some((0, 4)));
        assert_eq!(chunks.first_unknown(4, 10), Some((6, 10)));
        chunks.learn(0, 4, Vec::new(), size());
        chunks.learn(6, 8, Vec::new(), size());
        assert_eq!(chunks.first_unknown(0, 8), None);
        assert_eq!(chunks.get(ChunkIndex(3)), Some(None));
        assert_eq!(chunks.get(ChunkIndex(9)), None);
        chunks.forget(2, 6);
        assert_eq!(chunks.first_unknown(0, 8), Some((2, 6)));
        assert_eq!(chunks.get(ChunkIndex(5)), None);
    }

    #[test]
    fn a_chunk_is_claimed_for_blank_until_something_is_acknowledged_and_what_comes_meanwhile_does_not_count()
    {
        let (index, first, second) = (ChunkIndex(0), ChunkVersion(1), ChunkVersion(2));
        let mut chunks = Chunks::default();
        chunks.learn(0, 2, vec![location(0, 0), location(1, 3)], size());
        assert!(!chunks.claim(&location(1, 3)), "it was committed");
        assert!(!chunks.claim(&location(2, 0)), "it is not known");
        assert!(chunks.claim(&location(0, 0)));
        assert!(!chunks.written(index, first, 1), "the servers are deciding");
        chunks.unclaim(index, None);
        assert!(chunks.claim(&location(0, 0)), "it is blank still");
        let anew = ChunkLocation { version: second, ..location(0, 0) };
        chunks.unclaim(index, Some(&anew));
        chunks.moved(anew.clone());
        assert!(!chunks.written(index, first, 1), "where it is not any more");
        assert!(chunks.written(index, second, 1));
        assert!(!chunks.claim(&anew));
    }

    #[test]
    fn a_chunk_that_was_lost_before_it_was_committed_is_made_again() {
        let (first, raised) = (ChunkVersion(1), ChunkVersion(1 << 30));
        let lost = ChunkVersion(raised.0 | 1 << ChunkVersion::COUNT_BITS);
        assert_eq!((raised.losses(), lost.losses()), (0, 1));
        let is_made = |blocks_4k, version| {
            let mut chunks = Chunks::default();
            chunks.learn(0, 1, vec![location(0, 0)], size());
            assert!(chunks.written(ChunkIndex(0), first, 1));
            chunks.moved(ChunkLocation { version: ChunkVersion(0), ..location(0, blocks_4k) });
            chunks.moved(ChunkLocation { version, ..location(0, blocks_4k) });
            let chunk = chunks.get(ChunkIndex(0)).flatten().unwrap();
            (chunk.made, chunk.location.blocks_4k)
        };
        assert_eq!(is_made(0, raised), (true, 1), "it is there");
        assert_eq!(is_made(0, lost), (false, 1), "it was placed anew");
        assert_eq!(is_made(1, lost), (true, 1), "some of it is there, or nothing can be written to it");
    }

    #[test]
    fn the_first_write_counts_until_the_chunk_is_another() {
        let index = ChunkIndex(0);
        let mut chunks = Chunks::default();
        chunks.learn(0, 1, vec![location(0, 3)], size());
        let first = |chunks: &Chunks, id| chunks.unsynced[&index].version(ChunkId(id));
        chunks.unsynced.entry(index).or_default();
        assert_eq!(first(&chunks, 100), None, "others wrote it");
        assert!(chunks.written(index, ChunkVersion(1), 3));
        chunks.punched(index, ChunkVersion(2), 2);
        assert_eq!(first(&chunks, 100), Some(ChunkVersion(1)));
        chunks.forget_all(true);
        assert_eq!(
            first(&chunks, 100),
            Some(ChunkVersion(1)),
            "others may have cut the file, and written it anew"
        );
        chunks.learn(0, 1, vec![ChunkLocation { chunk: ChunkId(7), ..location(0, 1) }], size());
        assert_eq!(first(&chunks, 7), None);
        assert!(chunks.written(index, ChunkVersion(1), 1));
        assert_eq!(first(&chunks, 7), Some(ChunkVersion(1)));
    }

    #[test]
    fn a_fresh_chunk_needs_no_zeroing_until_it_was_written() {
        let mut chunks = Chunks::default();
        chunks.learn(0, 4, vec![location(0, 3)], size());
        chunks.allocated(location(1, 0), size());
        let both = ByteRange { start: 60 << 10, end: 80 << 10 };
        let old = ChunkSpan { index: ChunkIndex(0), offset: ChunkOffset(60 << 10), len: 4 << 10 };
        assert_eq!(chunks.not_zero(both, size()), vec![old]);
        chunks.writing(ChunkIndex(1), 8 << 10);
        let new = ChunkSpan { index: ChunkIndex(1), offset: ChunkOffset(0), len: 8 << 10 };
        assert_eq!(chunks.not_zero(both, size()), vec![old, new]);
    }
}

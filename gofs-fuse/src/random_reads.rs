//! Which regions of files that are read at random are worth reading whole.
//!
//! The kernel reads ahead of programs that read on, and gives those that do not exactly the page they ask for, a request
//! each. Where such reads come back to the same regions of a file, the rest of the region is worth one large read. Files
//! that turn out to be larger than memory, so that pages of regions that were read whole are asked for again, are left
//! alone for a while.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use gofs_tree::Ino;

/// What a region has, bytes.
pub const REGION_BYTES: u64 = 1 << 20;
/// The kernel asks for more in one request where it reads ahead.
pub const SMALL_BYTES: u32 = 16 << 10;
/// Small reads in one region after which the rest of it is wanted.
const READS: u8 = 4;
/// Regions of one file that are read before that: a small file needs no help.
const REGIONS_MIN: usize = 8;
/// Regions remembered, of all files.
const REGIONS_MAX: usize = 65_536;
/// How long a region that was asked for may be on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(10);
/// One part in this many asked for once more means that the file does not fit; counted from that many on.
const AGAIN_PART: u32 = 4;
const AGAIN_MIN: u32 = 32;
/// How long a file that does not fit is left alone.
const REST: Duration = Duration::from_secs(60);

/// Decides which regions are worth reading whole.
#[derive(Default)]
pub struct RandomReads {
    files: HashMap<Ino, ReadFile>,
    /// Of all files.
    regions: usize,
}

#[derive(Default)]
struct ReadFile {
    regions: HashMap<u64, Region>,
    /// Regions that were read whole, and those of them that were asked for again.
    whole: u32,
    again: u32,
    rests_until: Option<Instant>,
}

#[derive(Clone, Copy, Default)]
struct Region {
    reads: u8,
    whole_since: Option<Instant>,
}

impl RandomReads {
    /// The kernel has asked for `len` bytes at `offset`: where the region begins that is to be read whole now, bytes.
    pub fn read(&mut self, ino: Ino, offset: u64, len: u32, now: Instant) -> Option<u64> {
        let index = offset / REGION_BYTES;
        // Most files are small, and of no interest.
        if len > SMALL_BYTES || (index == 0 && !self.files.contains_key(&ino)) {
            return None;
        }
        if self.regions >= REGIONS_MAX {
            *self = RandomReads::default();
        }
        let file = self.files.entry(ino).or_default();
        if file.rests_until.is_some_and(|until| now < until) {
            return None;
        }
        let before = file.regions.len();
        let region = file.regions.entry(index).or_default();
        region.reads = region.reads.saturating_add(1);
        match region.whole_since {
            Some(since) if now.duration_since(since) < ON_ITS_WAY => return None,
            Some(_) => {
                file.again += 1;
                if file.again * AGAIN_PART > file.whole.max(AGAIN_MIN) {
                    self.regions -= before;
                    *file = ReadFile { rests_until: Some(now + REST), ..ReadFile::default() };
                    return None;
                }
                region.whole_since = Some(now);
            }
            None if region.reads >= READS && before >= REGIONS_MIN => {
                file.whole += 1;
                region.whole_since = Some(now);
            }
            None => {
                self.regions += file.regions.len() - before;
                return None;
            }
        }
        Some(index * REGION_BYTES)
    }

    /// The kernel has dropped its pages of the file.
    pub fn forget(&mut self, ino: Ino) {
        if let Some(file) = self.files.remove(&ino) {
            self.regions -= file.regions.len();
        }
    }

    /// It could not be asked for.
    pub fn not_read(&mut self, ino: Ino, start: u64) {
        let file = self.files.get_mut(&ino);
        if let Some(region) = file.and_then(|file| file.regions.get_mut(&(start / REGION_BYTES))) {
            region.whole_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: Ino = Ino(7);

    /// Reads a page of each of these regions; the regions that are wanted.
    fn pages(reads: &mut RandomReads, regions: impl Iterator<Item = u64>, now: Instant) -> Vec<u64> {
        regions.filter_map(|n| reads.read(INO, n * REGION_BYTES + 8192, 4096, now)).collect()
    }

    #[test]
    fn a_region_that_is_read_again_and_again_is_wanted_once() {
        let (mut reads, now) = (RandomReads::default(), Instant::now());
        for _ in 1..READS {
            assert!(pages(&mut reads, 1..101, now).is_empty());
        }
        let wanted: Vec<u64> = (1..101).map(|n| n * REGION_BYTES).collect();
        assert_eq!(pages(&mut reads, 1..101, now), wanted);
        assert!(pages(&mut reads, 1..101, now).is_empty());
        reads.not_read(INO, 5 * REGION_BYTES);
        assert_eq!(pages(&mut reads, 1..101, now), [5 * REGION_BYTES]);
        assert_eq!(reads.regions, 100);
        reads.forget(INO);
        assert_eq!(reads.regions, 0);
        assert!(pages(&mut reads, 1..101, now).is_empty());
    }

    #[test]
    fn large_reads_and_small_files_are_left_to_the_kernel() {
        let (mut reads, now) = (RandomReads::default(), Instant::now());
        for _ in 1..101 {
            assert_eq!(reads.read(INO, 0, SMALL_BYTES + 1, now), None);
            assert!(pages(&mut reads, 0..REGIONS_MIN as u64 - 1, now).is_empty());
        }
        pages(&mut reads, 1..=REGIONS_MIN as u64, now);
        assert!(!pages(&mut reads, 1..=REGIONS_MIN as u64, now).is_empty());
    }

    #[test]
    fn a_file_that_does_not_fit_into_memory_is_left_alone_for_a_while() {
        let (mut reads, now) = (RandomReads::default(), Instant::now());
        for _ in 0..READS {
            pages(&mut reads, 1..101, now);
        }
        let later = now + ON_ITS_WAY;
        let again = pages(&mut reads, 1..101, later).len();
        assert!((8..=25).contains(&again), "{again}");
        for _ in 0..=READS {
            assert!(pages(&mut reads, 1..101, later).is_empty());
        }
        for _ in 1..READS {
            assert!(pages(&mut reads, 1..101, later + REST).is_empty());
        }
        assert_eq!(pages(&mut reads, 1..101, later + REST).len(), 100);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut reads, now) = (RandomReads::default(), Instant::now());
        for n in 0..3 * REGIONS_MAX as u64 {
            reads.read(Ino(n % 5), n * REGION_BYTES, 4096, now);
            assert!(reads.regions <= REGIONS_MAX);
            assert_eq!(reads.regions, reads.files.values().map(|file| file.regions.len()).sum::<usize>());
        }
    }
}

//! Writes of the kernel that meet a recall of a lease under which they cannot be taken in (Read): the kernel forgets a
//! page only when its lock, or its write-back, has ended, and the recall waits for that.
//!
//! A page of a memory map that is written back is *parked*: answered at once, written when the recall is over, and then only
//! those bytes of it that were changed here. Until then nothing else reads or writes the file here. What a program writes
//! must not be answered before it can be seen everywhere; but the one page that the kernel keeps locked meanwhile holds
//! nothing that could be read, so the recall need not wait for that page. Nor need it for those of a read that waits for a
//! server: what it was to bring is fetched anew when the lease is gone.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use gofs_tree::{Ino, LeaseMode};

use super::recall::Phase;
use super::table::LeaseTable;

/// Bytes of a page of the kernel, at least: what it locks.
pub const PAGE_BYTES: u64 = 4096;

/// Pages that the kernel keeps locked for a request that waits, and that hold nothing which could be read meanwhile.
#[derive(Debug)]
pub struct LockedPages {
    /// The first, and the one behind the last.
    pub pages: Range<u64>,
    /// An attempt to have the kernel forget them waits for the request.
    pub is_tried: AtomicBool,
}

impl LockedPages {
    /// Those of a request for `len` bytes.
    pub fn of(offset: u64, len: u64) -> Arc<Self> {
        let pages = offset / PAGE_BYTES..offset.saturating_add(len.max(1)).div_ceil(PAGE_BYTES);
        Arc::new(LockedPages { pages, is_tried: AtomicBool::new(false) })
    }
}

/// The runs of these bytes that are not as they were, as far as there was anything.
fn differing(offset: u64, bytes: &Bytes, held: &[u8]) -> Vec<(u64, Bytes)> {
    let len = bytes.len().min(held.len());
    let mut runs = Vec::new();
    let mut at = 0;
    while at < len {
        let differs = bytes[at] != held[at];
        let run = (at..len).take_while(|&at| (bytes[at] != held[at]) == differs).count();
        if differs {
            runs.push((offset + at as u64, bytes.slice(at..at + run)));
        }
        at += run;
    }
    runs
}

impl LeaseTable {
    /// A request waits with these: a read, or a write with its last page.
    pub fn begin_page_wait(&mut self, ino: Ino, pages: Arc<LockedPages>) {
        self.inodes.entry(ino).or_default().waiting_pages.push(pages);
        self.settle(ino);
    }

    /// It waits no longer.
    pub fn end_page_wait(&mut self, ino: Ino, pages: &Arc<LockedPages>) {
        if let Some(entry) = self.inodes.get_mut(&ino) {
            entry.waiting_pages.retain(|waiting| !Arc::ptr_eq(waiting, pages));
        }
        self.settle(ino);
    }

    /// The pages that requests wait with, in order.
    pub fn waiting_pages(&self, ino: Ino) -> Vec<Arc<LockedPages>> {
        let mut all = self.inodes.get(&ino).map(|entry| entry.waiting_pages.clone()).unwrap_or_default();
        all.sort_unstable_by_key(|waiting| waiting.pages.start);
        all
    }

    /// Whether that request waits still.
    pub fn waits_with(&self, ino: Ino, pages: &Arc<LockedPages>) -> bool {
        let entry = self.inodes.get(&ino);
        entry.is_some_and(|entry| entry.waiting_pages.iter().any(|waiting| Arc::ptr_eq(waiting, pages)))
    }

    /// Leases on these are lost, and others may have changed them since: what the kernel writes back of their pages is refused
    /// until it has forgotten them.
    pub fn begin_void(&mut self, inos: &[Ino]) {
        for ino in inos {
            *self.void_pages.entry(*ino).or_default() += 1;
        }
    }

    /// The kernel has forgotten the pages.
    pub fn end_void(&mut self, ino: Ino) {
        if let Some(passes) = self.void_pages.get_mut(&ino) {
            *passes -= 1;
            if *passes == 0 {
                self.void_pages.remove(&ino);
            }
        }
    }

    /// Whether what the kernel writes back of the inode may be of a lease that was lost.
    pub fn is_void(&self, ino: Ino) -> bool {
        self.void_pages.contains_key(&ino)
    }

    /// Whether a page that is written back must not wait: a recall waits for it, or others are parked before it.
    pub fn must_park(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_some_and(|entry| {
            let forgets = matches!(entry.recall, Some(Phase::Drain | Phase::Invalidate { .. }));
            let writable = entry.lease.is_some_and(|lease| lease.mode == LeaseMode::Write);
            !entry.parked.is_empty() || (forgets && !writable)
        })
    }

    /// Parks a page. True: it is the first, and somebody must see to it.
    pub fn park(&mut self, ino: Ino, offset: u64, bytes: Bytes) -> bool {
        let parked = &mut self.inodes.entry(ino).or_default().parked;
        parked.push_back((offset, bytes));
        let first = parked.len() == 1;
        self.settle(ino);
        first
    }

    /// The page parked first.
    pub fn next_parked(&self, ino: Ino) -> Option<(u64, Bytes)> {
        self.inodes.get(&ino)?.parked.front().cloned()
    }

    /// That page is written. True: there are more.
    pub fn unpark(&mut self, ino: Ino) -> bool {
        let Some(entry) = self.inodes.get_mut(&ino) else { return false };
        entry.parked.pop_front();
        let more = !entry.parked.is_empty();
        self.settle(ino);
        more
    }

    /// All parked pages, in the order in which they came.
    pub fn parked_pages(&self, ino: Ino) -> Vec<(u64, Bytes)> {
        self.inodes.get(&ino).map_or_else(Vec::new, |entry| entry.parked.iter().cloned().collect())
    }

    /// Leaves of the first parked pages only what is not as the file `held` it, one after the other: the rest was not changed
    /// here, and is for others to change from now on.
    pub fn trim_parked(&mut self, ino: Ino, held: &[Vec<u8>]) {
        let Some(entry) = self.inodes.get_mut(&ino) else { return };
        let whole = std::mem::take(&mut entry.parked);
        let mut seen = HashSet::new();
        for (at, (offset, bytes)) in whole.iter().enumerate() {
            let mut is_first = true;
            for page in offset / PAGE_BYTES..(offset + bytes.len() as u64).div_ceil(PAGE_BYTES) {
                is_first &= seen.insert(page);
            }
            match held.get(at) {
                Some(held) if is_first => entry.parked.extend(differing(*offset, bytes, held)),
                // What the file held is not what was there before a page that comes again.
                _ => entry.parked.push_back((*offset, bytes.clone())),
            }
        }
        if entry.parked.is_empty() {
            // Whoever sees to the pages has to find that there were some.
            entry.parked.extend(whole.front().map(|(offset, _)| (*offset, Bytes::new())));
        }
        self.settle(ino);
    }

    /// What is parked of the inode is lost; whether there was anything.
    pub fn drop_parked(&mut self, ino: Ino) -> bool {
        let Some(entry) = self.inodes.get_mut(&ino) else { return false };
        let lost = !entry.parked.is_empty();
        entry.parked.clear();
        self.settle(ino);
        lost
    }

    /// Inodes with parked pages.
    pub fn parked(&self) -> Vec<Ino> {
        let parked = self.inodes.iter().filter(|(_, entry)| !entry.parked.is_empty());
        parked.map(|(ino, _)| *ino).collect()
    }

    /// Whether pages of the inode are parked.
    pub fn is_parked(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_some_and(|entry| !entry.parked.is_empty())
    }

    /// Bytes from `offset` as they are with what is parked.
    pub fn with_parked(&self, ino: Ino, offset: u64, bytes: Vec<Bytes>) -> Vec<Bytes> {
        let Some(entry) = self.inodes.get(&ino).filter(|entry| !entry.parked.is_empty()) else {
            return bytes;
        };
        let mut whole = bytes.concat();
        let end = offset + whole.len() as u64;
        for (start, page) in &entry.parked {
            let from = (*start).max(offset);
            let to = (start + page.len() as u64).min(end);
            if from < to {
                whole[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&page[(from - start) as usize..(to - start) as usize]);
            }
        }
        vec![whole.into()]
    }
}

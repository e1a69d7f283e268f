//! Reading the tree ahead: what a mount that walks through it will ask for next.
//!
//! Two signs are looked for. *Names that are not known, one after the other in one directory*: it is worth having whole, page
//! by page, in proportion to what is looked up in it. *Directories that are not known, one soon after the other*: a walk.
//! What comes next in the tree's order is fetched before it is asked for, in windows that grow while what they bring is
//! used. Who looks names up here and there in a large tree shows neither.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use gofs_tree::{DirEntry, FileType, Ino, Name};

use super::names::Listing;
use super::table::LeaseTable;
use crate::clock::BootTime;

/// Entries of one page of a directory that is fetched for its names.
const PAGE_ENTRIES: u32 = 512;
/// Entries fetched ahead of a walk at once: at first, and at most.
const WINDOW: (u32, u32) = (128, 1024);
/// Directories further apart in time are no walk.
const PAUSE: Duration = Duration::from_millis(500);
/// Entries that are fetched for each look-up, at most.
const PER_LOOKUP: u32 = 16;
/// Names that are not known come together, and bring their directory, where so many of the last ones are of it: the one
/// just asked for is not counted.
const TOGETHER: (usize, usize) = (2, 8);
/// Directories remembered as next.
const NEXT_MAX: usize = 4096;
/// Of these looked through for one that has come.
const NEAR: usize = 256;
/// Directories that one request names.
const NAMED_MAX: usize = 64;

/// Whole directories to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkRequest {
    /// In the order in which they will be needed.
    pub named: Vec<Ino>,
    /// The first is needed now.
    pub now: bool,
    /// Also what is below them.
    pub below: bool,
    /// Entries at most.
    pub entries: u32,
}

/// The next page of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Which.
    pub dir: Ino,
    /// The name after which it begins.
    pub after: Name,
    /// What it belongs to.
    pub listing: Listing,
    /// Entries at most.
    pub entries: u32,
}

/// What to ask for ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// Directories.
    Walk(WalkRequest),
    /// More of one.
    Page(PageRequest),
}

/// What somebody who wants a directory's entries has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Ask for its pages.
    Pages,
    /// They are on their way: wait for the end of [`LeaseTable::is_asked`].
    Wait,
    /// Ask for this, which may bring it.
    Walk(WalkRequest),
}

/// How far one directory was fetched ahead.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    /// Fetched ahead, with as many entries, and not looked at since.
    pub unseen: Option<u32>,
    /// Look-ups while it is not known whole.
    pub lookups: u32,
    /// As many must come before it is asked for (again).
    ask_at: u32,
    /// Entries fetched.
    entries: u32,
    /// Where the next page begins.
    next: Option<(Name, Listing)>,
}

/// The mount's walk.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// The directory that came up last, and when.
    last: Option<(Ino, BootTime)>,
    /// Directories that came up without a pause between.
    steps: u32,
    window: u32,
    /// Entries fetched ahead and not looked at.
    unseen: u64,
    /// A request is under way.
    under_way: bool,
    /// Directories asked for.
    asked: HashSet<Ino>,
    /// Directories that are not known, those needed first at the end.
    next: Vec<Ino>,
    /// The directories of the last names that were not known, the last first.
    missing: VecDeque<Ino>,
    /// A name in this directory was looked up in vain.
    pub missed: Option<Ino>,
    /// This directory was fetched ahead and is used for the first time.
    pub seen: Option<Ino>,
}

impl Walk {
    /// A name of the directory is not known: whether others were not shortly before.
    fn comes_together(&mut self, dir: Ino) -> bool {
        let before = self.missing.iter().filter(|&&other| other == dir).count();
        self.missing.push_front(dir);
        self.missing.truncate(TOGETHER.1);
        before >= TOGETHER.0
    }

    /// A directory comes up.
    fn note(&mut self, dir: Ino, now: BootTime) {
        match self.last {
            Some((_, at)) if now.since(at) > PAUSE => {
                self.steps = 0;
                self.window = WINDOW.0;
                self.unseen = 0;
                self.next.clear();
            }
            Some((last, _)) if last == dir => {
                self.last = Some((dir, now));
                return;
            }
            _ => {}
        }
        self.last = Some((dir, now));
        self.steps = self.steps.saturating_add(1);
    }

    fn is_walking(&self) -> bool {
        self.steps >= 2
    }

    /// Twice as much as the last time.
    fn grow(&mut self) -> u32 {
        let window = self.window.clamp(WINDOW.0, WINDOW.1);
        self.window = (window * 2).min(WINDOW.1);
        window
    }

    /// A directory is known whole: what is in it takes its place.
    fn expand(&mut self, dir: Ino, below: impl DoubleEndedIterator<Item = Ino>) {
        let near = self.next.len().saturating_sub(NEAR);
        let found = self.next[near..].iter().rposition(|&other| other == dir).map(|at| near + at);
        let below = below.rev();
        match found {
            Some(at) => drop(self.next.splice(at..=at, below)),
            None => self.next.extend(below),
        }
        let over = self.next.len().saturating_sub(NEXT_MAX);
        self.next.drain(..over);
    }
}

impl LeaseTable {
    /// What to ask for after the answers that were just given.
    pub fn ahead(&mut self, now: BootTime) -> Option<Ahead> {
        let (missed, seen) = (self.walk.missed.take(), self.walk.seen.take());
        let for_missed = missed.and_then(|dir| self.missed(dir, now));
        for_missed.or_else(|| seen.and_then(|dir| self.seen(dir, now)))
    }

    /// A name of the directory is not known.
    fn missed(&mut self, dir: Ino, now: BootTime) -> Option<Ahead> {
        if self.walk.asked.contains(&dir) || self.last_edit(dir).is_some() {
            return None;
        }
        if !self.walk.comes_together(dir) {
            return None;
        }
        let directory = self.inodes.get_mut(&dir)?.directory();
        let begun =
            directory.fetched.next.as_ref().is_some_and(|(_, listing)| directory.is_current(*listing));
        if begun {
            let page = self.next_page(dir)?;
            self.walk.asked.insert(dir);
            return Some(Ahead::Page(page));
        }
        let complete = directory.is_complete();
        let fetched = &mut directory.fetched;
        if complete || fetched.lookups < fetched.ask_at {
            return None;
        }
        fetched.ask_at = fetched.lookups.saturating_mul(2);
        self.walk.note(dir, now);
        Some(Ahead::Walk(self.request(Some(dir), PAGE_ENTRIES)))
    }

    /// A directory that was fetched ahead is used.
    fn seen(&mut self, dir: Ino, now: BootTime) -> Option<Ahead> {
        let entries = self.inodes.get_mut(&dir)?.cached.directory.as_mut()?.fetched.unseen.take()?;
        self.walk.note(dir, now);
        self.walk.unseen = self.walk.unseen.saturating_sub(u64::from(entries));
        let low = self.walk.unseen < u64::from(self.walk.window / 2);
        if !low || self.walk.under_way || !self.walk.is_walking() {
            return None;
        }
        let request = self.request(None, WINDOW.1);
        (!request.named.is_empty()).then_some(Ahead::Walk(request))
    }

    /// Somebody wants the entries of a directory that is not known whole.
    pub fn want_entries(&mut self, dir: Ino, now: BootTime) -> Wanted {
        if self.walk.asked.contains(&dir) {
            return Wanted::Wait;
        }
        self.walk.note(dir, now);
        // A request names what is settled only: for the rest somebody has to wait.
        if !self.walk.is_walking() || self.last_edit(dir).is_some() {
            return Wanted::Pages;
        }
        Wanted::Walk(self.request(Some(dir), WINDOW.1))
    }

    /// Whether the directory is on its way.
    pub fn is_asked(&self, dir: Ino) -> bool {
        self.walk.asked.contains(&dir)
    }

    /// A request for this directory and, on a walk, for those after it.
    fn request(&mut self, first: Option<Ino>, most: u32) -> WalkRequest {
        let walking = self.walk.is_walking();
        let mut named: Vec<Ino> = first.into_iter().collect();
        if walking {
            let settled = |dir: &&Ino| {
                let entry = self.inodes.get(dir);
                let known = entry.and_then(|entry| entry.cached.directory.as_ref());
                let in_use = entry.is_some_and(|entry| entry.pending > 0 || entry.recall.is_some());
                !in_use && !known.is_some_and(|directory| directory.is_complete())
            };
            let near = self.walk.next.iter().rev().take(NEAR).filter(|dir| Some(**dir) != first);
            let free = near.filter(|dir| !self.walk.asked.contains(dir)).filter(settled);
            named.extend(free.take(NAMED_MAX - named.len()));
            self.walk.under_way = true;
        }
        self.walk.asked.extend(named.iter().copied());
        let entries = if walking { self.walk.grow().min(most) } else { most };
        WalkRequest { named, now: first.is_some(), below: walking, entries }
    }

    /// A whole directory, or its beginning, has come with a reply to a [`WalkRequest`] or as a page, and its names are learned.
    /// `next`: where the rest begins. `ahead`: nobody waits for it.
    pub fn fetched(&mut self, dir: Ino, entries: u32, next: Option<(Name, Listing)>, ahead: bool) {
        let directory = self.inodes.get_mut(&dir).and_then(|entry| entry.cached.directory.as_mut());
        let Some(directory) = directory else { return };
        directory.fetched.entries += entries;
        directory.fetched.next = next;
        if ahead && directory.is_complete() && directory.fetched.unseen.is_none() {
            directory.fetched.unseen = Some(entries);
            self.walk.unseen += u64::from(entries);
        }
    }

    /// The next page of a directory, if what is looked up in it is worth one.
    pub fn next_page(&self, dir: Ino) -> Option<PageRequest> {
        let directory = self.inodes.get(&dir)?.cached.directory.as_ref()?;
        let fetched = &directory.fetched;
        let (after, listing) = fetched.next.clone()?;
        let worth = PAGE_ENTRIES.saturating_add(fetched.lookups.saturating_mul(PER_LOOKUP));
        let goes_on = directory.is_current(listing) && fetched.entries < worth;
        goes_on.then_some(PageRequest { dir, after, listing, entries: PAGE_ENTRIES })
    }

    /// A request has ended: what it brought is learned. `last`: the last directory, of those it named, that came.
    pub fn walked(&mut self, request: &WalkRequest, last: Option<Ino>) {
        for dir in &request.named {
            self.walk.asked.remove(dir);
        }
        if request.below {
            self.walk.under_way = false;
        }
        // What was named before one that came could not be had; what was named after it did not fit, and is still next.
        let gone = last.and_then(|last| request.named.iter().position(|&dir| dir == last));
        let gone: HashSet<Ino> =
            request.named[..gone.unwrap_or(request.named.len())].iter().copied().collect();
        self.walk.next.retain(|dir| !gone.contains(dir));
    }

    /// Pages of this directory are not asked for any more.
    pub fn paged(&mut self, dir: Ino) {
        self.walk.asked.remove(&dir);
    }

    /// The directory is known whole: those in it come next.
    pub(super) fn expand_walk(&mut self, dir: Ino) {
        let directory = self.inodes.get(&dir).and_then(|entry| entry.cached.directory.as_ref());
        let Some(all) = directory.and_then(|directory| directory.all()) else { return };
        let is_dir = |entry: &DirEntry| entry.file_type == FileType::Directory;
        let below: Vec<Ino> = all.map(|(_, entry)| entry).filter(is_dir).map(|entry| entry.ino).collect();
        self.walk.expand(dir, below.into_iter());
    }
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;

//! What is known of one inode.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use gofs_tree::{Attr, FileType, Ino, LeaseEpoch, LeaseMode, XattrName};

use super::Uses;
use super::edits::Position;
use super::names::Directory;
use super::pages::LockedPages;
use super::recall::Phase;
use crate::clock::BootTime;

/// Bytes that an inode takes by itself, roughly, for the budget: its entry, its file's state, its place in their tables
/// and in the one of the kernel's look-ups, and what an allocator adds.
const ENTRY_BYTES: u64 = 1200;
/// What a directory takes besides its names.
const DIRECTORY_BYTES: u64 = 160;

/// A lease that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What it allows.
    pub mode: LeaseMode,
    /// The grant's number.
    pub epoch: LeaseEpoch,
}

/// One inode.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub lease: Option<Lease>,
    /// A recall, or an eviction, of the whole lease is on its way.
    pub recall: Option<Phase>,
    /// Replies in flight since the last recall began, and those of before that are still counted.
    pub uses: Arc<Uses>,
    pub draining: Vec<Arc<Uses>>,
    /// Operations that need the lease until they end.
    pub holds: u32,
    pub opens: u32,
    /// Open handles of the directory for which the kernel keeps listings.
    pub listers: u32,
    /// It was opened through the kernel's page cache, which may have pages of it since.
    pub paged: bool,
    /// When a name of it was last told to the kernel, which may be about to open it.
    pub looked_up: Option<BootTime>,
    /// The server is being told that it is closed.
    pub closing: bool,
    /// The server counts this session among those that have it open.
    pub registered: bool,
    /// Removals of a name of this inode that are not answered yet.
    pub removing: u32,
    /// It has no name any more.
    pub removed: bool,
    /// Pages that the kernel keeps locked for requests that wait.
    pub waiting_pages: Vec<Arc<LockedPages>>,
    /// Offsets and bytes of pages that the kernel wrote back when they could not be taken in.
    pub parked: VecDeque<(u64, Bytes)>,
    /// Edits of it that were applied here and that the servers do not have yet; the last of them.
    pub pending: u32,
    pub edited: Position,
    /// When the servers changed it last for this mount, in the table's count of such changes.
    pub changed: u64,
    pub last_used: u64,
    /// Its place in the table's clock, while it has a lease.
    pub clocked: u64,
    pub cached: Cached,
    /// Of `cached`, as counted in the table's budget.
    pub counted_bytes: u64,
}

/// What the lease lets be kept.
#[derive(Debug, Default)]
pub(super) struct Cached {
    pub attr: Option<Attr>,
    pub has_xattrs: bool,
    pub target: Option<Bytes>,
    pub xattrs: Option<BTreeMap<XattrName, Bytes>>,
    pub directory: Option<Box<Directory>>,
}

impl Cached {
    fn bytes(&self, inline_max: u32) -> u64 {
        let is_inline = |attr: &&Attr| attr.file_type == FileType::File && attr.size <= u64::from(inline_max);
        let inline = self.attr.as_ref().filter(is_inline).map_or(0, |attr| attr.size);
        let target = self.target.as_ref().map_or(0, Bytes::len) as u64;
        let xattrs =
            self.xattrs.iter().flatten().map(|(name, value)| 64 + name.as_bytes().len() + value.len());
        let names = self.directory.as_ref().map_or(0, |directory| DIRECTORY_BYTES + directory.bytes());
        inline + target + xattrs.sum::<usize>() as u64 + names
    }
}

impl Entry {
    /// Whether nothing depends on the entry any more.
    pub fn is_idle(&self) -> bool {
        self.lease.is_none()
            && self.recall.is_none()
            && self.holds == 0
            && self.opens == 0
            && self.removing == 0
            && !self.closing
            && self.waiting_pages.is_empty()
            && self.parked.is_empty()
            && self.pending == 0
    }

    /// Whether that is its place in the clock.
    pub fn is_clocked(&self, at: u64) -> bool {
        self.clocked == at && self.lease.is_some()
    }

    /// Bytes that it takes, with those of a small file.
    pub fn bytes(&self, inline_max: u32) -> u64 {
        ENTRY_BYTES + self.cached.bytes(inline_max)
    }

    /// Everything cached goes; the lease stays what it is.
    pub fn forget(&mut self) {
        self.cached = Cached::default();
    }

    /// A recall, or an eviction, of the whole lease begins: the replies in flight, which it waits for.
    pub fn begin_recall(&mut self) -> Vec<Arc<Uses>> {
        self.recall = Some(Phase::Drain);
        if let Some(directory) = &mut self.cached.directory {
            directory.telling = None;
        }
        self.split_uses()
    }

    /// Splits off the replies in flight, so that later ones are counted apart: those to be waited for.
    pub fn split_uses(&mut self) -> Vec<Arc<Uses>> {
        self.draining.retain(|uses| !uses.is_drained());
        let current = std::mem::take(&mut self.uses);
        if !current.is_drained() {
            self.draining.push(current);
        }
        self.draining.clone()
    }

    /// The directory's names, made where there are none yet. Only with a lease.
    pub fn directory(&mut self) -> &mut Directory {
        self.cached.directory.get_or_insert_default()
    }

    /// Whether the inode is the directory `child`'s parent as far as is known.
    pub fn set_parent(&mut self, parent: Ino) {
        if let Some(directory) = &mut self.cached.directory {
            directory.parent = Some(parent);
        }
    }
}

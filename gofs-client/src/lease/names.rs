//! The names of one directory as far as they are known, their absence included.

use std::collections::BTreeMap;

use gofs_tree::{DirEntry, Ino, Name};

use super::listings::Telling;
use super::walk::Fetched;

/// Bytes that a name takes beside its own, roughly.
const NAME_BYTES: u64 = 96;

/// What is known of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It names this inode.
    Entry(DirEntry),
    /// There is no such name.
    Absent,
    /// Somebody is changing it.
    Unknown,
}

/// A listing that is being fetched page by page: the tick of the table when it began. No other has the same, of whatever
/// lease on whatever directory: an open directory keeps it for longer than a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing(pub(super) u64);

/// Names under a lease on their directory.
#[derive(Debug, Default)]
pub(super) struct Directory {
    names: BTreeMap<Name, Known>,
    /// A name that is not in `names` does not exist.
    complete: bool,
    /// Of `names`.
    unknown: usize,
    name_bytes: u64,
    listing: Option<Listing>,
    /// As long as nothing is recalled, once the kernel was told to keep a listing.
    pub telling: Option<Telling>,
    pub parent: Option<Ino>,
    pub fetched: Fetched,
}

impl Directory {
    /// One that was just made: it has no names.
    pub fn new_empty(parent: Ino) -> Self {
        Directory { complete: true, parent: Some(parent), ..Directory::default() }
    }

    pub fn bytes(&self) -> u64 {
        self.name_bytes
    }

    /// Whether a name that is not known does not exist.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether this is the listing that will make it complete.
    pub fn is_current(&self, listing: Listing) -> bool {
        self.listing == Some(listing)
    }

    pub fn get(&self, name: &Name) -> Known {
        match self.names.get(name) {
            Some(known) => *known,
            None if self.complete => Known::Absent,
            None => Known::Unknown,
        }
    }

    pub fn set(&mut self, name: &Name, known: Known) {
        if known == Known::Unknown {
            self.telling = None;
        }
        let implied = match known {
            Known::Entry(_) => false,
            Known::Absent => self.complete,
            // While a listing is fetched, what is recalled behind it must not count as absent at its end.
            Known::Unknown => !self.complete && self.listing.is_none(),
        };
        let cost = NAME_BYTES + name.as_bytes().len() as u64;
        let old = if implied {
            let old = self.names.remove(name);
            self.name_bytes -= if old.is_some() { cost } else { 0 };
            old
        } else {
            let old = self.names.insert(name.clone(), known);
            self.name_bytes += if old.is_none() { cost } else { 0 };
            self.unknown += usize::from(known == Known::Unknown);
            old
        };
        self.unknown -= usize::from(old == Some(Known::Unknown));
    }

    /// A new listing begins, whose pages carry the token. It tells what became of names that were recalled before.
    pub fn begin_listing(&mut self, listing: Listing) {
        if self.unknown > 0 {
            self.complete = false;
            self.drop_names(Known::Unknown);
            self.unknown = 0;
        }
        self.listing = Some(listing);
    }

    /// A page of the listing that began with this token has come, `end` with the last.
    pub fn listed(&mut self, listing: Listing, end: bool) {
        if end && self.listing == Some(listing) {
            self.listing = None;
            self.complete = true;
            // What was known to be absent is now implied.
            self.drop_names(Known::Absent);
        }
    }

    /// Those of which only this is known.
    fn drop_names(&mut self, dropped: Known) {
        let mut freed = 0;
        self.names.retain(|name, known| {
            let keep = *known != dropped;
            freed += if keep { 0 } else { NAME_BYTES + name.as_bytes().len() as u64 };
            keep
        });
        self.name_bytes -= freed;
    }

    /// A page came without permission to keep it: the listing cannot make the directory complete.
    pub fn break_listing(&mut self) {
        self.listing = None;
        self.telling = None;
    }

    /// Whether every entry is known.
    pub fn is_whole(&self) -> bool {
        self.complete && self.unknown == 0
    }

    /// Every entry, or `None` where not all are known.
    pub fn all(&self) -> Option<impl Iterator<Item = (&Name, DirEntry)>> {
        self.is_whole().then(|| {
            self.names.iter().filter_map(|(name, known)| match known {
                Known::Entry(entry) => Some((name, *entry)),
                Known::Absent | Known::Unknown => None,
            })
        })
    }
}

//! Which listings of a directory the kernel may keep.
//!
//! The kernel fills its copy of a listing from the replies that a program asks for, takes it for whole when a reply is
//! empty, and answers later programs from it. It drops the copy when it is told to, and when a change goes through this
//! very mount. What it cannot know is that a reply it is still reading became old meanwhile, so these are the rules:
//!
//! - A copy belongs to one *telling*: a time in which nothing of the directory was recalled. Handles that are opened in it
//!   read and fill the copy; the first has the kernel drop what is left of an earlier one.
//! - While a handle of an earlier telling is open, a reply to it may still be on its way into the copy: new handles leave
//!   the copy alone until it is closed.
//! - The end of a listing that is not of the present telling, or not known whole under the lease, is only told after the
//!   kernel has dropped its copy once more: what came before it was read by then.

use gofs_tree::Ino;

use super::table::LeaseTable;
use crate::clock::BootTime;

/// A time in which nothing of a directory was recalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Telling(u64);

/// What the kernel may do with its copy of a listing on behalf of a handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelListing {
    /// Leave it alone.
    #[default]
    Unused,
    /// Drop what it has and fill it.
    Fill(Telling),
    /// Use and fill it.
    Keep(Telling),
}

impl KernelListing {
    fn telling(self) -> Option<Telling> {
        match self {
            KernelListing::Unused => None,
            KernelListing::Fill(telling) | KernelListing::Keep(telling) => Some(telling),
        }
    }
}

impl LeaseTable {
    /// For a handle of a directory that was just counted as open. Where it is not [`KernelListing::Unused`],
    /// [`LeaseTable::close_listing`] must follow.
    pub fn open_listing(&mut self, ino: Ino, now: BootTime) -> KernelListing {
        let telling = Telling(self.tick);
        let Some(entry) = self.usable(ino, now) else { return KernelListing::Unused };
        let none_is_older = entry.listers == 0;
        let present = &mut entry.directory().telling;
        let listing = match *present {
            Some(telling) => KernelListing::Keep(telling),
            None if none_is_older => {
                *present = Some(telling);
                KernelListing::Fill(telling)
            }
            None => return KernelListing::Unused,
        };
        entry.listers += 1;
        listing
    }

    /// The handle is closed, and the kernel has read every reply to it.
    pub fn close_listing(&mut self, ino: Ino, listing: KernelListing) {
        if let (Some(_), Some(entry)) = (listing.telling(), self.inodes.get_mut(&ino)) {
            debug_assert!(entry.listers > 0, "closed more often than opened");
            entry.listers = entry.listers.saturating_sub(1);
        }
    }

    /// Whether the kernel must drop its copy before this handle is told that a listing ends.
    pub fn is_copy_old(&mut self, ino: Ino, listing: KernelListing, now: BootTime) -> bool {
        let Some(telling) = listing.telling() else { return false };
        let directory = self.usable(ino, now).and_then(|entry| entry.cached.directory.as_ref());
        !directory.is_some_and(|directory| directory.telling == Some(telling) && directory.is_whole())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gofs_proto::convert::Grant;
    use gofs_tree::{LeaseEpoch, LeaseMode, Name};

    use super::*;
    use crate::lease::Recalled;

    const DIR: Ino = Ino(7);

    fn at(seconds: u64) -> BootTime {
        BootTime::default().after(Duration::from_secs(seconds))
    }

    /// With a lease on the directory, which has no names.
    fn table() -> LeaseTable {
        let mut table = LeaseTable::new(0);
        table.renew(at(100));
        grant(&mut table, 1);
        list(&mut table);
        table
    }

    fn grant(table: &mut LeaseTable, epoch: u64) {
        assert!(table.grant(Grant { ino: DIR, mode: LeaseMode::Read, epoch: LeaseEpoch(epoch) }));
    }

    fn list(table: &mut LeaseTable) {
        table.learn_page(DIR, DIR, std::iter::empty(), true, None, true, true);
    }

    fn open(table: &mut LeaseTable) -> KernelListing {
        table.open(DIR, at(1));
        table.open_listing(DIR, at(1))
    }

    fn close(table: &mut LeaseTable, listing: KernelListing) {
        table.close_listing(DIR, listing);
        table.close(DIR, at(1));
    }

    fn recall(table: &mut LeaseTable, epoch: u64) {
        assert!(matches!(table.recall(DIR, LeaseEpoch(epoch), None, &[]), Recalled::Begun(_)));
        table.end_recall(DIR, None);
    }

    fn recall_name(table: &mut LeaseTable) {
        let name = Name::new(b"name").unwrap();
        assert!(matches!(table.recall(DIR, LeaseEpoch(1), None, &[name]), Recalled::Names(_)));
    }

    #[test]
    fn the_first_handle_fills_and_the_others_keep_also_when_it_is_closed() {
        let mut table = table();
        let first = open(&mut table);
        let KernelListing::Fill(telling) = first else { panic!("{first:?}") };
        assert_eq!(open(&mut table), KernelListing::Keep(telling));
        close(&mut table, first);
        close(&mut table, KernelListing::Keep(telling));
        assert_eq!(open(&mut table), KernelListing::Keep(telling));
        assert!(!table.is_copy_old(DIR, first, at(1)));
    }

    #[test]
    fn a_recall_makes_copies_old_until_every_handle_of_before_is_closed() {
        for recall in [|table: &mut LeaseTable| recall(table, 1), recall_name] {
            let mut table = table();
            let before = open(&mut table);
            recall(&mut table);
            grant(&mut table, 2);
            list(&mut table);
            assert!(table.is_copy_old(DIR, before, at(1)));
            let meanwhile = open(&mut table);
            assert_eq!(meanwhile, KernelListing::Unused);
            assert!(!table.is_copy_old(DIR, meanwhile, at(1)), "it has no part in it");
            close(&mut table, before);
            let after = open(&mut table);
            assert!(matches!(after, KernelListing::Fill(_)), "{after:?}");
            assert_ne!(after.telling(), before.telling());
            assert!(!table.is_copy_old(DIR, after, at(1)));
        }
    }

    #[test]
    fn nothing_is_kept_while_a_recall_is_on_its_way_or_without_a_lease() {
        let mut table = table();
        let before = open(&mut table);
        assert!(matches!(table.recall(DIR, LeaseEpoch(1), None, &[]), Recalled::Begun(_)));
        assert!(table.is_copy_old(DIR, before, at(1)));
        close(&mut table, before);
        assert_eq!(open(&mut table), KernelListing::Unused);
        table.end_recall(DIR, None);
        assert_eq!(open(&mut table), KernelListing::Unused);
        table.lose_all();
        assert_eq!(open(&mut table), KernelListing::Unused);
    }

    #[test]
    fn what_the_lease_does_not_cover_is_not_kept() {
        let mut table = LeaseTable::new(0);
        table.renew(at(100));
        grant(&mut table, 1);
        let handle = open(&mut table);
        assert!(matches!(handle, KernelListing::Fill(_)));
        assert!(table.is_copy_old(DIR, handle, at(1)), "not all of it is known");
        table.learn_page(DIR, DIR, std::iter::empty(), true, None, true, false);
        assert_eq!(
            open(&mut table),
            KernelListing::Unused,
            "a page of it was told without permission to keep it"
        );
        list(&mut table);
        assert!(table.is_copy_old(DIR, handle, at(1)));
    }

    #[test]
    fn nothing_is_kept_when_the_session_has_expired() {
        let mut table = table();
        let handle = open(&mut table);
        let late = at(101);
        assert!(table.is_copy_old(DIR, handle, late));
        assert_eq!(table.open_listing(DIR, late), KernelListing::Unused);
    }
}

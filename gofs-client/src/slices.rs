//! The session's slice of the namespace's quota, as this side counts it. Sync; who asks for more is `core/slices.rs`.
//!
//! What is made here out of the slice cannot be refused later. Bytes are promised when a file grows in memory and are spent when
//! its new size is committed; an inode is spent when it is made. Where the slice does not suffice it is given
//! back, after all that was promised is committed; from then on the servers decide about each change (*through*).

use std::sync::Arc;

use gofs_proto::session::{Amount, DelegateReply, Metered};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Asked for at once: what may be unwritten by default, and a second of creates.
const WANT: Amount = Amount { bytes: 256 << 20, inodes: 16_384 };

#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    metered: bool,
    left: u64,
    /// All that the servers have said that they gave.
    known: u64,
}

impl Kind {
    fn given(&mut self, given: u64) {
        if !self.metered {
            self.left = 0;
        }
        // Less than before: what was left is void.
        self.left = given.checked_sub(self.known).map_or(0, |more| self.left.saturating_add(more));
        self.known = given;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    /// Out of the slice.
    #[default]
    Sliced,
    /// What was promised is being committed.
    Closing,
    /// Nothing is promised: each change that needs quota is the servers' to refuse.
    Through,
}

#[derive(Debug, Default)]
struct Inner {
    bytes: Kind,
    inodes: Kind,
    mode: Mode,
    /// For growth that is being taken in.
    reserved: u64,
    /// Changes under way that the servers decide about.
    through: u64,
    /// The servers gave nothing when they were asked last.
    dry: bool,
    /// Counts how often the slice was given up.
    era: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Slices {
    inner: Mutex<Inner>,
    changed: Notify,
}

/// An inode out of the slice, until it is made.
#[derive(Debug)]
pub struct TakenInode {
    era: u64,
}

/// Leave to let a file grow. Kept until the growth is counted, or committed.
#[derive(Debug)]
pub struct Room {
    slices: Arc<Slices>,
    /// `None`: not out of the slice.
    reserved: Option<u64>,
}

impl Room {
    /// Whether the growth must be committed before its author is answered.
    pub fn is_through(&self) -> bool {
        self.reserved.is_none()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut inner = self.slices.inner.lock();
        match self.reserved {
            Some(bytes) => inner.reserved -= bytes,
            None => inner.through -= 1,
        }
        drop(inner);
        self.slices.changed.notify_waiters();
    }
}

impl Slices {
    /// What needs a slice from now on.
    pub fn meter(&self, metered: Metered) {
        let mut inner = self.inner.lock();
        inner.bytes.metered = metered.bytes;
        inner.inodes.metered = metered.inodes;
    }

    /// A new session: nothing is given yet, and what is metered is not known.
    pub fn reset(&self) {
        let mut inner = self.inner.lock();
        let kind = Kind { metered: true, ..Kind::default() };
        let (reserved, through, era) = (inner.reserved, inner.through, inner.era + 1);
        *inner = Inner { bytes: kind, inodes: kind, reserved, through, era, ..Inner::default() };
    }

    /// One inode, if there is one. Given up with the slice unless it is in the log by then.
    pub fn take_inode(&self) -> Option<TakenInode> {
        let mut inner = self.inner.lock();
        let taken = TakenInode { era: inner.era };
        if inner.inodes.metered {
            if inner.mode != Mode::Sliced || inner.inodes.left == 0 {
                return None;
            }
            inner.inodes.left -= 1;
        }
        Some(taken)
    }

    /// It was not made after all.
    pub fn return_inode(&self, taken: &TakenInode) {
        let mut inner = self.inner.lock();
        if inner.inodes.metered && inner.mode == Mode::Sliced && inner.era == taken.era {
            inner.inodes.left += 1;
        }
    }

    /// Leave to grow by so many bytes out of the slice. `growth`: what all files have grown by and not committed.
    pub fn reserve(self: &Arc<Self>, bytes: u64, growth: impl FnOnce() -> u64) -> Option<Room> {
        let mut inner = self.inner.lock();
        let promised = inner.reserved.saturating_add(bytes);
        if inner.mode == Mode::Closing
            || inner.bytes.metered
                && (inner.mode == Mode::Through || growth().saturating_add(promised) > inner.bytes.left)
        {
            return None;
        }
        inner.reserved = promised;
        Some(Room { slices: self.clone(), reserved: Some(bytes) })
    }

    /// Leave to ask the servers for each change, where the slice was given back.
    pub fn through(self: &Arc<Self>) -> Option<Room> {
        let mut inner = self.inner.lock();
        if inner.mode != Mode::Through {
            return None;
        }
        inner.through += 1;
        Some(Room { slices: self.clone(), reserved: None })
    }

    /// A file's growth was committed.
    pub fn spend(&self, bytes: u64) {
        let mut inner = self.inner.lock();
        inner.bytes.left = inner.bytes.left.saturating_sub(bytes);
    }

    /// What to ask for, and what is known: where less than half of what is usual is left, or less than `needed` bytes.
    pub fn wish(&self, needed: u64, growth: u64) -> Option<(Amount, Amount)> {
        let inner = self.inner.lock();
        let free = inner.bytes.left.saturating_sub(growth).saturating_sub(inner.reserved);
        let (bytes, inodes) = (inner.bytes.metered, inner.inodes.metered);
        let want = Amount {
            bytes: if bytes && free < (WANT.bytes / 2).max(needed) { WANT.bytes.max(needed) } else { 0 },
            inodes: if inodes && inner.inodes.left < WANT.inodes / 2 { WANT.inodes } else { 0 },
        };
        let known = Amount { bytes: inner.bytes.known, inodes: inner.inodes.known };
        (!inner.dry && inner.mode == Mode::Sliced && want != Amount::default()).then_some((want, known))
    }

    /// What the servers answered to a wish. Whether anything was given, or is not metered.
    pub fn given(&self, reply: &DelegateReply) -> bool {
        let mut inner = self.inner.lock();
        let before = inner.bytes.left.saturating_add(inner.inodes.left);
        let given = reply.given.unwrap_or_default();
        inner.bytes.given(given.bytes);
        inner.inodes.given(given.inodes);
        let metered = reply.metered.unwrap_or(Metered { bytes: true, inodes: true });
        inner.bytes.metered = metered.bytes;
        inner.inodes.metered = metered.inodes;
        let more = inner.bytes.left.saturating_add(inner.inodes.left) > before;
        inner.dry = !more;
        more || !metered.bytes
    }

    /// Asking may bring something again.
    pub fn hope(&self) {
        self.inner.lock().dry = false;
    }

    /// Nothing more is promised. False where nothing is, because the slice was given back.
    pub fn close(&self) -> bool {
        let mut inner = self.inner.lock();
        if inner.mode == Mode::Through {
            return false;
        }
        inner.mode = Mode::Closing;
        inner.era += 1;
        true
    }

    /// Waits until growth that is being taken in is counted.
    pub async fn counted(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.inner.lock().reserved == 0 {
                return;
            }
            changed.await;
        }
    }

    /// The slice was given back, all that was ever given.
    pub fn closed(&self, reply: &DelegateReply) {
        let mut inner = self.inner.lock();
        if inner.mode == Mode::Closing {
            let given = reply.given.unwrap_or_default();
            inner.mode = Mode::Through;
            inner.bytes = Kind { left: 0, known: given.bytes, ..inner.bytes };
            inner.inodes = Kind { left: 0, known: given.inodes, ..inner.inodes };
        }
    }

    /// Ends asking for each change, if none is under way. Nothing is left then: a slice has to be asked for.
    pub fn reopen(&self) -> bool {
        let mut inner = self.inner.lock();
        if inner.mode != Mode::Through {
            return true;
        }
        if inner.through == 0 {
            inner.mode = Mode::Sliced;
            inner.dry = false;
        }
        inner.through == 0
    }

    /// Whether the slice was given back.
    #[cfg(test)]
    pub fn is_through(&self) -> bool {
        self.inner.lock().mode == Mode::Through
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sliced(bytes: u64, inodes: u64) -> Arc<Slices> {
        let slices = Arc::new(Slices::default());
        slices.reset();
        give(&slices, bytes, inodes);
        slices
    }

    fn given(bytes: u64, inodes: u64) -> DelegateReply {
        let metered = Some(Metered { bytes: true, inodes: true });
        DelegateReply { given: Some(Amount { bytes, inodes }), metered }
    }

    fn give(slices: &Slices, bytes: u64, inodes: u64) -> bool {
        slices.given(&given(bytes, inodes))
    }

    #[test]
    fn growth_is_promised_once() {
        let slices = sliced(100, 0);
        let first = slices.reserve(60, || 0).unwrap();
        assert!(slices.reserve(41, || 0).is_none());
        let second = slices.reserve(40, || 0).unwrap();
        drop(second);
        assert!(slices.reserve(1, || 60).is_none(), "counted, and still reserved");
        drop(first);
        drop(slices.reserve(40, || 60).unwrap());
        slices.spend(60);
        drop(slices.reserve(40, || 0).unwrap());
        assert!(slices.reserve(41, || 0).is_none());
    }

    #[test]
    fn without_a_quota_nothing_is_counted_but_what_is_under_way() {
        let slices = Arc::new(Slices::default());
        let room = slices.reserve(u64::MAX / 2, || u64::MAX).unwrap();
        assert!(slices.take_inode().is_some() && slices.wish(1, 0).is_none());
        assert!(slices.close());
        assert!(slices.reserve(1, || 0).is_none(), "it is about to be metered");
        drop(room);
    }

    #[test]
    fn an_inode_that_was_not_made_comes_back_unless_the_slice_is_gone() {
        let slices = sliced(0, 2);
        let (a, b) = (slices.take_inode().unwrap(), slices.take_inode().unwrap());
        assert!(slices.take_inode().is_none());
        slices.return_inode(&a);
        let a = slices.take_inode().unwrap();
        assert!(slices.close());
        slices.return_inode(&a);
        slices.closed(&given(0, 2));
        assert!(slices.take_inode().is_none());
        assert!(slices.reopen());
        slices.return_inode(&b);
        assert!(slices.take_inode().is_none(), "nothing was given since");
        give(&slices, 0, 3);
        assert!(slices.take_inode().is_some() && slices.take_inode().is_none());
    }

    #[test]
    fn the_slice_comes_back_only_when_nothing_is_under_way_without_it() {
        let slices = sliced(10, 0);
        assert!(slices.through().is_none());
        slices.close();
        assert!(slices.through().is_none() && slices.reserve(1, || 0).is_none());
        slices.closed(&given(10, 0));
        let through = slices.through().unwrap();
        assert!(through.is_through() && slices.reserve(1, || 0).is_none() && !slices.reopen());
        drop(through);
        assert!(slices.reopen() && !slices.is_through());
        assert!(slices.reserve(1, || 0).is_none(), "what was left was given back");
    }

    #[test]
    fn what_is_asked_for_is_what_is_missing_until_nothing_is_given() {
        let slices = sliced(WANT.bytes, WANT.inodes);
        assert_eq!(slices.wish(0, 0), None);
        let (want, known) = slices.wish(0, WANT.bytes / 2 + 1).unwrap();
        assert_eq!((want, known), (Amount { inodes: 0, ..WANT }, WANT));
        assert_eq!(slices.wish(WANT.bytes * 2, 0).unwrap().0.bytes, WANT.bytes * 2);
        assert!(!give(&slices, WANT.bytes, WANT.inodes));
        assert_eq!(slices.wish(u64::MAX, 0), None);
        slices.hope();
        assert!(slices.wish(u64::MAX, 0).is_some());
    }

    #[test]
    fn a_slice_that_the_servers_do_not_know_is_void() {
        let slices = sliced(100, 100);
        give(&slices, 30, 0);
        assert!(slices.take_inode().is_none() && slices.reserve(1, || 0).is_none());
        give(&slices, 40, 0);
        assert!(slices.reserve(10, || 0).is_some() && slices.reserve(11, || 0).is_none());
    }
}

//! Which inodes are open here, and who needs their lease for a while.

use std::time::Duration;

use gofs_tree::{FsError, Ino, LeaseMode};

use super::entry::Entry;
use super::recall::Phase;
use super::table::LeaseTable;
use crate::clock::BootTime;

/// What an open has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It is open and counted.
    Opened,
    /// Its last name is being removed from here, or the server is being told that it is closed: wait for a change,
    /// then see.
    Wait,
    /// No lease: fetch one first.
    NeedLease,
}

/// What a close has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Others have it open still, or the server never knew.
    Nothing,
    /// Tell the server.
    TellServer,
    /// It stays counted: close it once more after [`LINGER`].
    Later,
}

/// Whether an operation that needs a lease until its end may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// It may, and [`LeaseTable::end_hold`] must follow.
    Held,
    /// Wait for a change.
    Wait,
    /// Fetch the lease first.
    NeedLease,
}

/// How long after a look-up a file can still be opened though its last name has gone: until the program that asked
/// has run again.
pub const LINGER: Duration = Duration::from_secs(1);

impl Entry {
    /// Whether the kernel may be about to open it, asked once.
    fn take_look_up(&mut self, now: BootTime) -> bool {
        self.looked_up.take().is_some_and(|then| now.since(then) < LINGER)
    }
}

impl LeaseTable {
    /// Counts an open. Under a lease the server need not know; while one is being recalled the
    /// acknowledgement will tell it.
    pub fn open(&mut self, ino: Ino, now: BootTime) -> Opening {
        let valid = self.is_valid(now);
        match self.inodes.get_mut(&ino) {
            Some(entry) if entry.removing > 0 || entry.closing => Opening::Wait,
            Some(entry)
                if (entry.lease.is_some() && valid)
                    || (entry.opens > 0 && (entry.registered || entry.lease.is_some())) =>
            {
                entry.opens += 1;
                self.open_count += 1;
                Opening::Opened
            }
            _ => Opening::NeedLease,
        }
    }

    /// Counts the open that came with a create. `granted`: with a lease.
    pub fn open_created(&mut self, ino: Ino, granted: bool) {
        let entry = self.inodes.entry(ino).or_default();
        entry.opens += 1;
        entry.registered |= !granted;
        self.open_count += 1;
        self.settle(ino);
    }

    /// That open goes through the kernel's page cache.
    pub fn opened_through_pages(&mut self, ino: Ino) {
        if let Some(entry) = self.inodes.get_mut(&ino) {
            entry.paged = true;
        }
    }

    /// Whether the kernel may have pages of the inode.
    pub fn may_have_pages(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_some_and(|entry| entry.paged)
    }

    /// Uncounts an open.
    pub fn close(&mut self, ino: Ino, now: BootTime) -> Closing {
        let Some(entry) = self.inodes.get_mut(&ino) else { return Closing::Nothing };
        if entry.opens == 1 && entry.registered && entry.take_look_up(now) {
            return Closing::Later;
        }
        debug_assert!(entry.opens > 0, "closed more often than opened");
        entry.opens = entry.opens.saturating_sub(1);
        self.open_count = self.open_count.saturating_sub(1);
        let tell = entry.opens == 0 && std::mem::take(&mut entry.registered);
        self.settle(ino);
        if tell { Closing::TellServer } else { Closing::Nothing }
    }

    /// Whether the server may be told that it is closed. Where it was opened again the server counts it still,
    /// so the next close is told instead. True: nobody opens it until [`LeaseTable::end_closing`], which must follow;
    /// the server would take a word on its way for the newer open, too.
    pub fn still_closed(&mut self, ino: Ino) -> bool {
        let entry = self.inodes.entry(ino).or_default();
        let closed = entry.opens == 0;
        entry.registered |= !closed;
        entry.closing = closed;
        self.settle(ino);
        closed
    }

    /// The server knows that it is closed. True: that was all that kept the inode, and its lease is gone.
    pub fn end_closing(&mut self, ino: Ino) -> bool {
        let Some(entry) = self.inodes.get_mut(&ino) else { return false };
        entry.closing = false;
        let nameless = entry.removed || entry.cached.attr.as_ref().is_some_and(|attr| attr.nlink == 0);
        let gone = nameless && entry.opens == 0;
        if gone {
            self.lose(ino);
        } else {
            self.settle(ino);
        }
        gone
    }

    /// The kernel is being told a name of the inode, and may open it next. False where no lease is held, under which
    /// the inode is kept for that.
    pub fn looked_up(&mut self, ino: Ino, now: BootTime) -> bool {
        match self.inodes.get_mut(&ino).filter(|entry| entry.lease.is_some()) {
            Some(entry) => {
                entry.looked_up = Some(now);
                true
            }
            None => false,
        }
    }

    /// Counts an open for the kernel's sake where a lease is about to go that a look-up has just used: the open that
    /// may follow shall find the file, also where its name is given to another meanwhile. It counts beside those that
    /// there are, which may be about to end. True: a close must follow after [`LINGER`].
    pub fn linger(&mut self, ino: Ino, now: BootTime) -> bool {
        let Some(entry) = self.inodes.get_mut(&ino) else { return false };
        if !entry.take_look_up(now) || entry.lease.is_none() || entry.removing > 0 {
            return false;
        }
        entry.opens += 1;
        self.open_count += 1;
        true
    }

    /// Whether it is open here.
    pub fn is_open(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_some_and(|entry| entry.opens > 0)
    }

    /// How many opens there are.
    pub fn opens(&self) -> usize {
        self.open_count
    }

    /// Open inodes of which the server knows, or must be told because no lease covers them.
    pub fn registered_opens(&self) -> Vec<Ino> {
        let uncovered = |entry: &Entry| entry.registered || entry.lease.is_none();
        let open = self.inodes.iter().filter(|(_, entry)| entry.opens > 0 && uncovered(entry));
        let mut inos: Vec<Ino> = open.map(|(ino, _)| *ino).collect();
        inos.sort_unstable();
        inos
    }

    /// All open inodes.
    pub fn open_inodes(&self) -> Vec<Ino> {
        self.inodes.iter().filter(|(_, entry)| entry.opens > 0).map(|(ino, _)| *ino).collect()
    }

    /// The server knows by now that these are open, because a Hello listed them.
    pub fn opens_registered(&mut self, inos: &[Ino]) {
        for ino in inos {
            if let Some(entry) = self.inodes.get_mut(ino).filter(|entry| entry.opens > 0) {
                entry.registered = true;
            }
        }
    }

    /// A name of the inode is being removed from here: opens wait for the outcome, so that none comes
    /// between the question whether it is open and the answer.
    pub fn begin_removal(&mut self, ino: Ino) {
        self.inodes.entry(ino).or_default().removing += 1;
        self.settle(ino);
    }

    /// The removal of one name was answered.
    pub fn end_removal(&mut self, ino: Ino) {
        if let Some(entry) = self.inodes.get_mut(&ino) {
            entry.removing = entry.removing.saturating_sub(1);
        }
        self.settle(ino);
    }

    /// Whether it is a directory of which a name is being removed, which was its last one then.
    pub fn is_directory_going(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_some_and(|entry| entry.removing > 0 && entry.cached.directory.is_some())
    }

    /// The inode has lost its last name. True: it is open here, and the server keeps it for us. False: it is gone.
    pub fn removed(&mut self, ino: Ino) -> bool {
        match self.inodes.get_mut(&ino) {
            Some(entry) if entry.opens > 0 => {
                entry.registered = true;
                entry.removed = true;
                if let Some(attr) = &mut entry.cached.attr {
                    attr.nlink = 0;
                }
                true
            }
            _ => {
                self.lose(ino);
                false
            }
        }
    }

    /// Whether it lost its last name while open here.
    pub fn is_removed(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_some_and(|entry| entry.removed)
    }

    /// Whether it is gone, where it is asked of an inode of which an edit was on its way: its lease is held until then, or
    /// it is open and has no name.
    pub fn is_gone(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_none_or(|entry| entry.removed || entry.lease.is_none())
    }

    /// Begins an operation that needs at least `mode` on the inode until it ends: a recall waits for it.
    pub fn hold(&mut self, ino: Ino, mode: LeaseMode, now: BootTime) -> Holding {
        if self.is_parked(ino) { Holding::Wait } else { self.hold_before_parked(ino, mode, now) }
    }

    /// As [`LeaseTable::hold`] but without waiting for parked pages: to write these.
    pub fn hold_before_parked(&mut self, ino: Ino, mode: LeaseMode, now: BootTime) -> Holding {
        let valid = self.is_valid(now);
        let Some(entry) = self.inodes.get_mut(&ino) else { return Holding::NeedLease };
        match (entry.lease, entry.recall) {
            // What the kernel writes back while it forgets must pass.
            (Some(lease), None | Some(Phase::Drain | Phase::Invalidate { .. }))
                if lease.mode >= mode && valid =>
            {
                entry.holds += 1;
                Holding::Held
            }
            (Some(lease), _) if lease.mode >= mode => Holding::Wait,
            (_, Some(_)) => Holding::Wait,
            (_, None) => Holding::NeedLease,
        }
    }

    /// The operation is over.
    pub fn end_hold(&mut self, ino: Ino) {
        if let Some(entry) = self.inodes.get_mut(&ino) {
            entry.holds = entry.holds.saturating_sub(1);
        }
        self.settle(ino);
    }

    /// Whether operations hold the lease.
    pub fn is_held(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_some_and(|entry| entry.holds > 0)
    }

    /// Whether a change of this file may be committed: only as the holder of its Write lease, so that nothing of
    /// a session that was ended is written under the next.
    pub fn may_commit(&self, ino: Ino) -> Result<(), FsError> {
        if self.mode(ino) == Some(LeaseMode::Write) { Ok(()) } else { Err(FsError::Stale) }
    }

    /// Begins two operations at once or none, so that neither waits with the other held.
    pub fn hold_both(&mut self, one: (Ino, LeaseMode), two: (Ino, LeaseMode), now: BootTime) -> [Holding; 2] {
        let first = self.hold(one.0, one.1, now);
        let second = self.hold(two.0, two.1, now);
        if first != Holding::Held && second == Holding::Held {
            self.end_hold(two.0);
        }
        if first == Holding::Held && second != Holding::Held {
            self.end_hold(one.0);
        }
        [first, second]
    }
}

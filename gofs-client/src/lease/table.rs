//! Grants, and answers from what is cached under them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use gofs_proto::convert::{Grant, Node};
use gofs_tree::{Attr, DirEntry, FileType, Ino, LeaseMode, Name, XattrName};

use super::edits::Changing;
use super::entry::{Entry, Lease};
use super::names::{Directory, Known, Listing};
use super::uses::UseGuard;
use super::walk::Walk;
use crate::clock::BootTime;

/// How long the kernel may keep an answer, and what a recall has to wait for.
#[derive(Debug, Default)]
pub struct Permit {
    /// What is left of the session; zero = use once.
    pub ttl: Duration,
    /// Of the leases that the answer used.
    pub guard: UseGuard,
}

/// What the cache says of a name.
#[derive(Debug)]
pub enum NameAnswer {
    /// It names an inode with these attributes.
    Found(Attr, Permit),
    /// It does not exist.
    Absent(Permit),
    /// Ask the server.
    Unknown,
}

/// All leases of the mount.
#[derive(Debug, Default)]
pub struct LeaseTable {
    /// On the heap each: a table that grows must not move, nor have room for, whole entries.
    pub(super) inodes: HashMap<Ino, Box<Entry>>,
    pub(super) valid_until: BootTime,
    /// Bytes of all entries.
    pub(super) bytes: u64,
    inline_max: u32,
    pub(super) leases: usize,
    pub(super) open_count: usize,
    /// Given back, but the server has not said that it knows: a grant that arrives now was
    /// made before. With the number of messages that say so.
    pub(super) releasing: HashMap<Ino, u32>,
    pub(super) walk: Walk,
    /// Inodes of which the kernel may have pages of a lease that was lost, and how often it is being made to forget them.
    pub(super) void_pages: HashMap<Ino, u32>,
    /// Which inodes the servers are asked to change at the moment, by how many requests.
    pub(super) changing: HashMap<Ino, Changing>,
    pub(super) changes: u64,
    /// Leases in the order in which they may be given back, with the tick at which each took its place; an entry with
    /// another tick has another place.
    pub(super) clock: VecDeque<(Ino, u64)>,
    pub(super) tick: u64,
}

impl LeaseTable {
    /// Knows nothing. Files of up to `inline_max` bytes have them with their inode.
    pub fn new(inline_max: u32) -> Self {
        LeaseTable { inline_max, ..LeaseTable::default() }
    }

    // ---- the session ----------------------------------------------------------------

    /// The session was renewed: what is cached may be used until then. Never moves backwards.
    pub fn renew(&mut self, until: BootTime) {
        self.valid_until = self.valid_until.max(until);
    }

    /// The session is over or in doubt: nothing is answered until it is renewed.
    pub fn expire(&mut self) {
        self.valid_until = BootTime::default();
    }

    /// What is left of the session.
    pub fn validity(&self, now: BootTime) -> Duration {
        self.valid_until.since(now)
    }

    /// Whether the cache may be used.
    pub fn is_valid(&self, now: BootTime) -> bool {
        now < self.valid_until
    }

    /// Leases held, to be claimed back after a reconnection.
    pub fn held(&self) -> Vec<Grant> {
        let mut held: Vec<Grant> = self
            .inodes
            .iter()
            // What was made here the servers do not know yet, or will grant when they answer.
            .filter(|(ino, _)| !self.is_own(**ino))
            .filter_map(|(ino, entry)| {
                entry.lease.map(|Lease { mode, epoch }| Grant { ino: *ino, mode, epoch })
            })
            .collect();
        held.sort_unstable_by_key(|grant| grant.ino);
        held
    }

    /// Inodes known at all.
    pub fn known(&self) -> Vec<Ino> {
        self.inodes.keys().copied().collect()
    }

    /// The session is lost with all its leases, and parked pages with it. Opens stay.
    pub fn lose_all(&mut self) {
        for entry in self.inodes.values_mut() {
            entry.lease = None;
            entry.registered = false;
            entry.parked.clear();
            entry.pending = 0;
            entry.forget();
        }
        self.releasing.clear();
        self.walk = Walk::default();
        self.leases = 0;
        self.expire();
        self.inodes.retain(|_, entry| !entry.is_idle());
        self.recount();
    }

    fn recount(&mut self) {
        self.bytes = 0;
        for entry in self.inodes.values_mut() {
            entry.counted_bytes = entry.bytes(self.inline_max);
            self.bytes += entry.counted_bytes;
        }
    }

    /// The lease on one inode is gone (refused at reclaim, or its inode was removed).
    pub fn lose(&mut self, ino: Ino) {
        let Some(entry) = self.inodes.get_mut(&ino) else { return };
        if entry.lease.take().is_some() {
            self.leases -= 1;
        }
        entry.forget();
        self.settle(ino);
    }

    /// Leases held and bytes cached.
    pub fn size(&self) -> (usize, u64) {
        (self.leases, self.bytes)
    }

    /// Counts an entry anew after a change and removes it where nothing depends on it.
    pub(super) fn settle(&mut self, ino: Ino) {
        let Some(entry) = self.inodes.get_mut(&ino) else { return };
        if entry.is_idle() {
            self.bytes -= entry.counted_bytes;
            self.inodes.remove(&ino);
            return;
        }
        let bytes = entry.bytes(self.inline_max);
        self.bytes = self.bytes - entry.counted_bytes + bytes;
        entry.counted_bytes = bytes;
    }

    // ---- grants ---------------------------------------------------------------------

    /// The mode held, whatever the session's state.
    pub fn mode(&self, ino: Ino) -> Option<LeaseMode> {
        Some(self.inodes.get(&ino)?.lease?.mode)
    }

    /// Takes a grant in. False where it must not be used: it was given back meanwhile, or is older than
    /// what is held, or the inode is being recalled.
    pub fn grant(&mut self, grant: Grant) -> bool {
        if self.releasing.contains_key(&grant.ino) {
            return false;
        }
        self.tick += 1;
        let entry = self.inodes.entry(grant.ino).or_default();
        entry.last_used = self.tick;
        let usable = match &mut entry.lease {
            Some(held) if grant.epoch < held.epoch => false,
            Some(held) => {
                // A confirmation may name less than is held; only giving back makes it less.
                *held = Lease { mode: held.mode.max(grant.mode), epoch: grant.epoch };
                entry.recall.is_none()
            }
            None => {
                entry.lease = Some(Lease { mode: grant.mode, epoch: grant.epoch });
                entry.clocked = self.tick;
                self.clock.push_back((grant.ino, self.tick));
                self.leases += 1;
                entry.recall.is_none()
            }
        };
        self.tidy_clock();
        self.settle(grant.ino);
        usable
    }

    /// Takes an inode in as the server told it. True where it is cached now: not a directory that the servers change for this
    /// mount, because the answer to a question may be older than that change, and be handled after it.
    pub fn learn(&mut self, node: &Node) -> bool {
        if node.attr.file_type == FileType::Directory && self.is_changing([&node.attr.ino]) {
            if let Some(grant) = node.grant {
                self.grant(grant);
            }
            return false;
        }
        self.take_in(node)
    }

    pub(super) fn take_in(&mut self, node: &Node) -> bool {
        let ino = node.attr.ino;
        let Some(grant) = node.grant else { return false };
        if !self.grant(grant) {
            return false;
        }
        // What was changed here since is newer than any reply.
        let known = |entry: &&mut Box<Entry>| entry.pending == 0 || entry.cached.attr.is_none();
        if let Some(entry) = self.inodes.get_mut(&ino).filter(known) {
            entry.cached.has_xattrs = node.has_xattrs;
            if !node.has_xattrs {
                entry.cached.xattrs = None;
            }
            if node.attr.file_type == FileType::Symlink {
                entry.cached.target = Some(Bytes::copy_from_slice(&node.inline));
            }
            entry.cached.attr = Some(node.attr.clone());
        }
        self.settle(ino);
        true
    }

    /// Takes an inode in after an own edit of it: where it may not be cached, what was cached is wrong now.
    pub fn learn_changed(&mut self, node: &Node) -> bool {
        // Where edits follow, neither what is here nor what the reply says is all.
        let pending = self.last_edit(node.attr.ino).is_some();
        let learned = self.take_in(node) && !pending && !self.is_order_unknown(node.attr.ino);
        if !learned {
            self.forget_attr(node.attr.ino);
        }
        learned
    }

    /// The attributes are not what they were.
    pub fn forget_attr(&mut self, ino: Ino) {
        if let Some(entry) = self.inodes.get_mut(&ino) {
            entry.cached.attr = None;
            entry.cached.xattrs = None;
        }
        self.settle(ino);
    }

    /// The extended attributes are not what they were.
    pub fn forget_xattrs(&mut self, ino: Ino) {
        if let Some(entry) = self.inodes.get_mut(&ino) {
            entry.cached.xattrs = None;
        }
        self.settle(ino);
    }

    /// A name, as the answer to an edit told it. `granted`: with permission to keep it.
    pub fn learn_name(&mut self, parent: Ino, name: &Name, entry: Option<DirEntry>, granted: bool) {
        let granted = granted && !self.is_order_unknown(parent);
        let Some(dir) = self.inodes.get_mut(&parent).filter(|dir| dir.lease.is_some()) else { return };
        let known = match entry {
            _ if !granted || dir.recall.is_some() => Known::Unknown,
            Some(entry) => Known::Entry(entry),
            None => Known::Absent,
        };
        dir.directory().set(name, known);
        self.settle(parent);
    }

    /// As `learn_name`, from the answer to a question: edits that were made here since are newer, and those that are under way
    /// may be.
    pub fn learn_answer(&mut self, parent: Ino, name: &Name, entry: Option<DirEntry>, granted: bool) {
        let granted = granted && !self.is_changing([&parent]);
        let own = self.inodes.get_mut(&parent).filter(|dir| dir.pending > 0);
        if own.is_none_or(|dir| dir.directory().get(name) == Known::Unknown) {
            self.learn_name(parent, name, entry, granted);
        }
    }

    /// A directory that this session has just made and may cache: it is known to be empty.
    pub fn learn_new_directory(&mut self, ino: Ino, parent: Ino) {
        if let Some(dir) = self.inodes.get_mut(&ino).filter(|dir| dir.lease.is_some() && dir.recall.is_none())
        {
            dir.cached.directory = Some(Box::new(Directory::new_empty(parent)));
        }
        self.settle(ino);
    }

    /// A directory has moved.
    pub fn learn_parent(&mut self, ino: Ino, parent: Ino) {
        if let Some(dir) = self.inodes.get_mut(&ino) {
            dir.set_parent(parent);
        }
    }

    /// A page of a listing. `first`: it starts at the beginning. Returns the token for the next page, `None` where
    /// something came between, so that the listing will not tell which names are absent.
    #[allow(clippy::too_many_arguments, reason = "each is one field of the reply")]
    pub fn learn_page(
        &mut self,
        ino: Ino,
        parent: Ino,
        items: impl Iterator<Item = (Name, DirEntry)>,
        first: bool,
        listing: Option<Listing>,
        end: bool,
        granted: bool,
    ) -> Option<Listing> {
        let granted = granted && !self.is_changing([&ino]);
        let dir = self.inodes.get_mut(&ino).filter(|dir| dir.lease.is_some())?;
        if !granted || dir.recall.is_some() {
            dir.directory().break_listing();
            return None;
        }
        let pending = dir.pending > 0;
        let directory = dir.directory();
        directory.parent = Some(parent);
        let listing = if first {
            self.tick += 1;
            let listing = Listing(self.tick);
            directory.begin_listing(listing);
            Some(listing)
        } else {
            listing
        };
        for (name, entry) in items {
            // Edits that were made here since the page was read are newer.
            if !pending || directory.get(&name) == Known::Unknown {
                directory.set(&name, Known::Entry(entry));
            }
        }
        if let Some(listing) = listing {
            directory.listed(listing, end);
        }
        self.settle(ino);
        if end {
            self.expand_walk(ino);
        }
        listing
    }

    /// All extended attributes, with permission to keep them.
    pub fn learn_xattrs(&mut self, ino: Ino, xattrs: BTreeMap<XattrName, Bytes>) {
        let changing = self.is_changing([&ino]);
        let usable = |e: &&mut Box<Entry>| e.lease.is_some() && e.recall.is_none() && !changing;
        if let Some(entry) = self.inodes.get_mut(&ino).filter(usable) {
            entry.cached.has_xattrs = !xattrs.is_empty();
            entry.cached.xattrs = Some(xattrs);
        }
        self.settle(ino);
    }

    // ---- answers --------------------------------------------------------------------

    /// The inode, where answers about it may come from here.
    pub(super) fn usable(&mut self, ino: Ino, now: BootTime) -> Option<&mut Entry> {
        if !self.is_valid(now) {
            return None;
        }
        self.tick += 1;
        let tick = self.tick;
        let entry = self.inodes.get_mut(&ino)?;
        if entry.lease.is_none() || entry.recall.is_some() {
            return None;
        }
        entry.last_used = tick;
        Some(entry)
    }

    /// The same, and not while the servers change it for this mount: others may have seen the change before its answer is here.
    fn settled(&mut self, ino: Ino, now: BootTime) -> Option<&mut Entry> {
        if self.is_changing([&ino]) {
            return None;
        }
        self.usable(ino, now)
    }

    /// Permission for the kernel to keep what was learned of an inode; none at all where it is not cached.
    pub fn permit(&mut self, ino: Ino, now: BootTime) -> Permit {
        let ttl = self.validity(now);
        match self.usable(ino, now) {
            Some(entry) => Permit { ttl, guard: entry.uses.enter() },
            None => Permit::default(),
        }
    }

    /// Permission for a name in a directory to be kept.
    pub fn name_permit(&mut self, parent: Ino, name: &Name, now: BootTime) -> Permit {
        let known = |entry: &mut Entry| entry.directory().get(name) != Known::Unknown;
        match self.usable(parent, now).map(known) {
            Some(true) => self.permit(parent, now),
            Some(false) | None => Permit::default(),
        }
    }

    /// Attributes.
    pub fn attr(&mut self, ino: Ino, now: BootTime) -> Option<(Attr, Permit)> {
        let ttl = self.validity(now);
        let entry = self.settled(ino, now)?;
        let attr = entry.cached.attr.clone()?;
        Some((attr, Permit { ttl, guard: entry.uses.enter() }))
    }

    /// What a name is.
    pub fn lookup(&mut self, parent: Ino, name: &Name, now: BootTime) -> NameAnswer {
        let ttl = self.validity(now);
        let Some(dir) = self.settled(parent, now) else { return NameAnswer::Unknown };
        let directory = dir.directory();
        let known = directory.get(name);
        let fetched = &mut directory.fetched;
        fetched.lookups = fetched.lookups.saturating_add(1);
        let unseen = fetched.unseen.is_some();
        let uses = dir.uses.clone();
        if unseen {
            self.walk.seen = Some(parent);
        }
        let entry = match known {
            Known::Unknown => {
                self.walk.missed = Some(parent);
                return NameAnswer::Unknown;
            }
            Known::Absent => return NameAnswer::Absent(Permit { ttl, guard: uses.enter() }),
            Known::Entry(entry) => entry,
        };
        match self.attr(entry.ino, now) {
            Some((attr, permit)) => {
                NameAnswer::Found(attr, Permit { ttl, guard: permit.guard.and(uses.enter()) })
            }
            None => NameAnswer::Unknown,
        }
    }

    /// The entry of that name where it is known, whatever is known of its inode.
    pub fn entry(&mut self, parent: Ino, name: &Name, now: BootTime) -> Option<DirEntry> {
        match self.usable(parent, now)?.cached.directory.as_ref()?.get(name) {
            Known::Entry(entry) => Some(entry),
            Known::Absent | Known::Unknown => None,
        }
    }

    /// Whether the name is known not to exist.
    pub fn is_absent(&mut self, parent: Ino, name: &Name, now: BootTime) -> bool {
        let dir = self.usable(parent, now).and_then(|dir| dir.cached.directory.as_ref());
        dir.is_some_and(|dir| dir.get(name) == Known::Absent)
    }

    /// A symlink's target.
    pub fn target(&mut self, ino: Ino, now: BootTime) -> Option<(Bytes, Permit)> {
        let ttl = self.validity(now);
        let entry = self.usable(ino, now)?;
        let target = entry.cached.target.clone()?;
        Some((target, Permit { ttl, guard: entry.uses.enter() }))
    }

    /// Looks into all extended attributes.
    pub fn xattrs<T>(
        &mut self,
        ino: Ino,
        now: BootTime,
        look: impl FnOnce(&BTreeMap<XattrName, Bytes>) -> T,
    ) -> Option<(T, Permit)> {
        let ttl = self.validity(now);
        let entry = self.settled(ino, now)?;
        let none = BTreeMap::new();
        let known_empty = entry.cached.attr.is_some() && !entry.cached.has_xattrs;
        let xattrs = entry.cached.xattrs.as_ref().or(known_empty.then_some(&none))?;
        Some((look(xattrs), Permit { ttl, guard: entry.uses.enter() }))
    }

    /// Whether names of this directory may have been given out.
    pub fn has_names(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_some_and(|entry| entry.cached.directory.is_some())
    }

    /// Every entry of a directory that is known whole, and the directory above it.
    pub fn list(&mut self, ino: Ino, now: BootTime) -> Option<(Ino, Vec<(Name, DirEntry)>)> {
        let directory = self.settled(ino, now)?.cached.directory.as_ref()?;
        let parent = directory.parent?;
        let all = directory.all()?.map(|(name, entry)| (name.clone(), entry)).collect();
        if directory.fetched.unseen.is_some() {
            self.walk.seen = Some(ino);
        }
        Some((parent, all))
    }
}

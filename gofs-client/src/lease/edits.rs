//! Edits that were applied here and that the servers do not have yet, as the inodes that they touch see them.
//!
//! What such an inode's entry says is newer than any reply, so replies do not change it, it is not given
//! back, and what asks the servers about it waits until they have its last edit.

use gofs_proto::convert::{Grant, Node};
use gofs_tree::{
    Attr, Edit, EditOp, FileType, FsError, Ino, LeaseEpoch, LeaseMode, NamespaceLimits, Outcome,
};

use super::store::{Changed, LocalStore};
use super::table::LeaseTable;

/// A place in the log of edits: counted from 1 since the mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(pub u64);

/// The epoch of a lease on an inode that was made here: the servers name another when they know the inode.
const OWN_EPOCH: LeaseEpoch = LeaseEpoch(0);

/// The inode that an edit makes.
pub fn made_by(edit: &Edit) -> Option<Ino> {
    if let EditOp::Create { ino, .. } = &edit.op { Some(*ino) } else { None }
}

/// The inodes of which it is known beforehand that an edit changes them; those that names stand for are not among them.
pub fn concerned(op: &EditOp) -> Vec<Ino> {
    match op {
        EditOp::Create { parent, .. } | EditOp::Unlink { parent, .. } | EditOp::Rmdir { parent, .. } => {
            vec![*parent]
        }
        EditOp::Link { ino, parent, .. } => vec![*ino, *parent],
        EditOp::Rename { parent, new_parent, .. } if parent == new_parent => vec![*parent],
        EditOp::Rename { parent, new_parent, .. } => vec![*parent, *new_parent],
        EditOp::SetAttr { ino, .. }
        | EditOp::SetXattr { ino, .. }
        | EditOp::RemoveXattr { ino, .. }
        | EditOp::WriteInline { ino, .. }
        | EditOp::AddChunk { ino, .. }
        | EditOp::Extend { ino, .. }
        | EditOp::Allocate { ino, .. }
        | EditOp::Punch { ino, .. }
        | EditOp::ReleaseOrphan { ino, .. } => vec![*ino],
    }
}

/// The inode that the edit changes by its number: of parents it changes the times only.
pub fn changed_itself(op: &EditOp) -> Option<Ino> {
    match op {
        EditOp::SetAttr { ino, .. }
        | EditOp::SetXattr { ino, .. }
        | EditOp::RemoveXattr { ino, .. }
        | EditOp::Link { ino, .. } => Some(*ino),
        _ => None,
    }
}

/// Changes of an inode that the servers are asked for, and that they have not all answered.
#[derive(Debug, Default)]
pub(super) struct Changing {
    count: u32,
    /// There were several at a time: in which order they were made the answers do not tell.
    several: bool,
}

impl LeaseTable {
    /// The servers are asked to change these: what they are after that is not known here before the answer.
    pub fn begin_change(&mut self, inos: &[Ino]) {
        for ino in inos {
            let changing = self.changing.entry(*ino).or_default();
            changing.count += 1;
            changing.several |= changing.count > 1;
        }
    }

    /// The answer came, or nobody waits for it any more.
    pub fn end_change(&mut self, inos: &[Ino]) {
        self.changes += 1;
        for ino in inos {
            if let Some(changing) = self.changing.get_mut(ino) {
                changing.count -= 1;
                if changing.count == 0 {
                    self.changing.remove(ino);
                }
            }
            if let Some(entry) = self.inodes.get_mut(ino) {
                entry.changed = self.changes;
            }
        }
    }

    /// Changes by the servers that have ended: what a question remembers, for [`LeaseTable::has_changed`].
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether the servers may have changed the inode for this mount since then: the answer to a question that was asked then may
    /// not know of it.
    pub fn has_changed(&self, ino: Ino, since: u64) -> bool {
        self.is_changing([&ino]) || self.inodes.get(&ino).map_or(self.changes, |entry| entry.changed) > since
    }

    /// Whether the servers may be changing one of these for this mount at the moment.
    pub fn is_changing<'a>(&self, inos: impl IntoIterator<Item = &'a Ino>) -> bool {
        !self.changing.is_empty() && inos.into_iter().any(|ino| self.changing.contains_key(ino))
    }

    /// Whether the answer to one change of it may be older than what the answer to another has told.
    pub(super) fn is_order_unknown(&self, ino: Ino) -> bool {
        self.changing.get(&ino).is_some_and(|changing| changing.several)
    }

    /// What the edit does to what is held here under Write; nothing is changed yet. NotCached where the servers
    /// have to be asked.
    pub fn try_apply(&self, edit: &Edit, limits: NamespaceLimits) -> Result<(Outcome, Changed), FsError> {
        let mut store = LocalStore::new(self, limits, made_by(edit));
        let outcome = gofs_tree::apply(&mut store, edit)?;
        Ok((outcome, store.into_changed()))
    }

    /// Takes in what `try_apply` found: the inodes after the edit, each with the lease it is held under.
    pub fn take_in_own(&mut self, edit: &Edit, changed: &Changed) -> Vec<Node> {
        let made = made_by(edit);
        let mut nodes = Vec::with_capacity(changed.inodes.len());
        for (&ino, inode) in &changed.inodes {
            let Some(inode) = inode else { continue };
            let is_new = made == Some(ino);
            let held = self.inodes.get(&ino).and_then(|entry| entry.lease);
            let (mode, epoch) = held.map_or((LeaseMode::Write, OWN_EPOCH), |lease| (lease.mode, lease.epoch));
            let node = Node {
                attr: inode.attr(ino),
                grant: Some(Grant { ino, mode, epoch }),
                inline: inode.inline.clone(),
                has_chunks: false,
                has_xattrs: inode.has_xattrs,
            };
            if is_new {
                self.take_in(&node);
            } else if let Some(entry) = self.inodes.get_mut(&ino) {
                entry.cached.attr = Some(node.attr.clone());
                entry.cached.has_xattrs = inode.has_xattrs;
            }
            if let Some(entry) = self.inodes.get_mut(&ino) {
                let own = changed.xattrs.iter().filter(|((at, _), _)| *at == ino);
                for ((_, name), value) in own {
                    let xattrs = entry.cached.xattrs.get_or_insert_default();
                    match value {
                        Some(value) => xattrs.insert(name.clone(), value.clone()),
                        None => xattrs.remove(name),
                    };
                }
            }
            self.settle(ino);
            nodes.push(node);
        }
        nodes
    }

    /// An edit that touches these inodes went into the log.
    pub fn edited(&mut self, inos: &[Ino], at: Position) {
        for ino in inos {
            let entry = self.inodes.entry(*ino).or_default();
            entry.pending += 1;
            entry.edited = at;
            self.settle(*ino);
        }
    }

    /// The servers have answered an edit that touched these.
    pub fn edit_answered(&mut self, inos: &[Ino]) {
        for ino in inos {
            if let Some(entry) = self.inodes.get_mut(ino) {
                entry.pending = entry.pending.saturating_sub(1);
            }
            self.settle(*ino);
        }
    }

    /// The last edit of the inode that the servers do not have.
    pub fn last_edit(&self, ino: Ino) -> Option<Position> {
        self.inodes.get(&ino).filter(|entry| entry.pending > 0).map(|entry| entry.edited)
    }

    /// Attributes that no reply can know of yet.
    pub fn pending_attr(&self, ino: Ino) -> Option<&Attr> {
        self.inodes.get(&ino).filter(|entry| entry.pending > 0)?.cached.attr.as_ref()
    }

    /// A change of a file's contents was committed; these are its attributes at the servers.
    pub fn learn_content(&mut self, attr: &Attr) {
        let Some(entry) = self.inodes.get_mut(&attr.ino).filter(|entry| entry.lease.is_some()) else {
            return;
        };
        let pending = entry.pending > 0;
        match &mut entry.cached.attr {
            // Edits that follow are in these already. A directory has no contents that only the servers know of.
            Some(own) if pending && own.file_type == FileType::Directory => {}
            Some(own) if pending => {
                own.size = attr.size;
                own.blocks = attr.blocks;
                own.mtime = attr.mtime;
                own.ctime = own.ctime.max(attr.ctime);
            }
            None if pending => {}
            cached => *cached = Some(attr.clone()),
        }
    }

    /// What is known of an inode is wrong, because an edit of it was refused: forgets it, and the lease too where that was
    /// only of its maker.
    pub fn lose_made(&mut self, ino: Ino) {
        if self.is_own(ino) {
            self.lose(ino);
        } else if let Some(entry) = self.inodes.get_mut(&ino) {
            entry.forget();
            self.settle(ino);
        }
    }

    /// The lease on an inode that is held only because it was made here.
    pub fn held_own(&self, ino: Ino) -> Option<Grant> {
        let mode = self.mode(ino).filter(|_| self.is_own(ino))?;
        Some(Grant { ino, mode, epoch: OWN_EPOCH })
    }

    /// Whether the inode is held only because it was made here.
    pub fn is_own(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).and_then(|entry| entry.lease).is_some_and(|lease| lease.epoch == OWN_EPOCH)
    }
}

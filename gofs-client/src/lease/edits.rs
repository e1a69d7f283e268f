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

impl LeaseTable {
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
                self.learn(&node);
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

    /// Whether the inode is held only because it was made here.
    pub fn is_own(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).and_then(|entry| entry.lease).is_some_and(|lease| lease.epoch == OWN_EPOCH)
    }
}

//! Which inodes an edit needs, and which it may take the last name from.

use gofs_tree::{EditOp, FsError, Ino, Name, Store};

use crate::lease::Need;
use crate::state::TreeView;

/// What must be known about an edit before it may run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// What it changes.
    pub needs: Vec<Need>,
    /// The inode that may lose its last name.
    pub removes: Option<Ino>,
    /// What is shown after it, besides what its outcome names: the directories it changed, the inodes it was about.
    pub directories: Vec<Ino>,
    pub inodes: Vec<Ino>,
}

impl Plan {
    /// The plan for the tree as it is now; `None` for edits that only a server makes.
    pub fn of(tree: &TreeView, op: &EditOp) -> Result<Option<Plan>, FsError> {
        let named =
            |parent: Ino, name: &Name| tree.entry(parent, name).map(|entry| entry.map(|entry| entry.ino));
        let entry = |parent: Ino, name: &Name| Need::entries(parent, vec![name.clone()]);
        let mut plan = Plan::default();
        match op {
            EditOp::Create { parent, name, .. } => {
                plan.needs.push(entry(*parent, name));
                plan.directories.push(*parent);
            }
            EditOp::Link { ino, parent, name } => {
                plan.needs.push(entry(*parent, name));
                plan.directories.push(*parent);
                plan.inodes.push(*ino);
            }
            EditOp::Unlink { parent, name, .. } | EditOp::Rmdir { parent, name, .. } => {
                plan.needs.push(entry(*parent, name));
                plan.directories.push(*parent);
                plan.removes = named(*parent, name)?;
                plan.inodes.extend(plan.removes);
            }
            EditOp::Rename { parent, name, new_parent, new_name, flags, .. } => {
                plan.needs.extend([entry(*parent, name), entry(*new_parent, new_name)]);
                plan.directories.extend([*parent, *new_parent]);
                let (moved, replaced) = (named(*parent, name)?, named(*new_parent, new_name)?);
                plan.inodes.extend(moved.into_iter().chain(replaced));
                plan.removes = replaced.filter(|_| !flags.exchange);
            }
            EditOp::SetAttr { ino, .. }
            | EditOp::SetXattr { ino, .. }
            | EditOp::RemoveXattr { ino, .. }
            | EditOp::WriteInline { ino, .. }
            | EditOp::Extend { ino, .. }
            | EditOp::Allocate { ino, .. }
            | EditOp::Punch { ino, .. } => plan.inodes.push(*ino),
            EditOp::AddChunk { .. } | EditOp::ReleaseOrphan { .. } => return Ok(None),
        }
        plan.directories.dedup();
        plan.inodes.dedup();
        plan.needs.extend(plan.inodes.iter().copied().map(Need::change));
        Ok(Some(plan))
    }
}

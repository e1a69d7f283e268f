//! Names that move.

use gofs_tree::{DirEntry, EditOp, FileType, FsError, Ino, Name, RenameFlags};

use crate::client::Client;
use crate::clock::BootTime;
use crate::core::Core;
use crate::core::learn::EditHints;

use super::is_granted;
use super::remove::Gone;

impl Client {
    /// rename(2), renameat2(2).
    pub async fn rename(
        &self,
        parent: Ino,
        name: &Name,
        new_parent: Ino,
        new_name: &Name,
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        let removal = self.begin_removal(new_parent, new_name, !flags.exchange).await?;
        let op = EditOp::Rename {
            parent,
            name: name.clone(),
            new_parent,
            new_name: new_name.clone(),
            flags,
            holders: Vec::new(),
        };
        let hints = EditHints { open_here: removal.open_here, ..EditHints::default() };
        let (name, new_name) = (name.clone(), new_name.clone());
        let asked = removal.clone();
        let gone = self
            .core
            .edit(op, hints, move |core, table, outcome, nodes| {
                let _asked = &asked;
                // As it is at the answer: what others change before that is recalled.
                let now = BootTime::now();
                let moved = table.entry(parent, &name, now);
                let absent = table.is_absent(new_parent, &new_name, now);
                let replaced = table.entry(new_parent, &new_name, now);
                let replaced = if absent { Some(None) } else { replaced.map(Some) };
                let node = Core::node_of(nodes, outcome.ino);
                let entry = node.map(|node| DirEntry { ino: outcome.ino, file_type: node.attr.file_type });
                // Two names of one inode both stay where they are; so what the new name named must be known.
                let sure = match (moved, replaced) {
                    (Some(moved), Some(Some(replaced))) => moved.ino != replaced.ino,
                    (_, Some(None)) => true,
                    _ => flags.no_replace,
                };
                let old = if flags.exchange { replaced.flatten() } else { None };
                let granted = |dir| sure && is_granted(nodes, dir);
                table.learn_name(parent, &name, old, granted(parent) && old.is_some() == flags.exchange);
                table.learn_name(new_parent, &new_name, entry, granted(new_parent) && entry.is_some());
                for (entry, dir) in [(entry, new_parent), (old, parent)] {
                    if let Some(entry) = entry.filter(|entry| entry.file_type == FileType::Directory) {
                        table.learn_parent(entry.ino, dir);
                    }
                }
                Gone::of(core, table, outcome)
            })
            .await?;
        self.end_removal(&removal, gone);
        Ok(())
    }
}

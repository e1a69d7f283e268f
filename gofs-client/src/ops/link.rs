//! A further name for an inode.

use std::time::Duration;

use gofs_tree::{Attr, DirEntry, EditOp, FsError, Ino, LeaseMode, Name};

use crate::cached::Cached;
use crate::client::Client;
use crate::clock::BootTime;
use crate::core::Core;
use crate::core::learn::EditHints;

use super::is_granted;

impl Client {
    /// Gives `ino` the name too. The attributes are not to be kept: the kernel takes those of this reply in
    /// without a look at what has been invalidated meanwhile.
    pub async fn link(&self, ino: Ino, parent: Ino, name: &Name) -> Result<Cached<Attr>, FsError> {
        let op = EditOp::Link { ino, parent, name: name.clone() };
        let name = name.clone();
        let answer = self
            .core
            .edit(op, EditHints::default(), move |core, table, _, nodes| {
                let node = Core::node_of(nodes, ino);
                let entry = node.map(|node| DirEntry { ino, file_type: node.attr.file_type });
                table.learn_name(parent, &name, entry, entry.is_some() && is_granted(nodes, parent));
                let permit = table.name_permit(parent, &name, BootTime::now());
                node.map(|node| core.named(core.answer(table, node.attr.clone(), false), permit))
            })
            .await?;
        match answer {
            Some(answer) => Ok(answer),
            None => {
                let answer = self.core.fetch(ino, LeaseMode::Read).await?;
                Ok(Cached { ttl: Duration::ZERO, ..answer })
            }
        }
    }
}

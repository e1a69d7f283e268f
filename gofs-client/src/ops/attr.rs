//! Attributes: what they are, and changes of them.

use gofs_tree::{Attr, AttrChange, EditOp, FsError, Ino, LeaseMode};

use crate::cached::Cached;
use crate::client::Client;
use crate::clock::{BootTime, wall_time};
use crate::core::Core;
use crate::core::learn::{EditHints, cached, overlaid};

impl Client {
    /// The inode's attributes. NotFound or Stale where it is gone.
    pub async fn getattr(&self, ino: Ino) -> Result<Cached<Attr>, FsError> {
        match self.cached_attr(ino) {
            Some(answer) => Ok(answer),
            None => self.core.fetch(ino, LeaseMode::Read).await,
        }
    }

    fn cached_attr(&self, ino: Ino) -> Option<Cached<Attr>> {
        // First: it may be committed and cleared at any time, and then the table has it.
        let local = self.core.data.overlay(ino);
        let (attr, permit) = self.core.table.lock().attr(ino, BootTime::now())?;
        Some(cached(overlaid(attr, local), permit))
    }

    /// chmod, chown, truncate, utimens. A new size goes through the file's contents, and so do changes of a file
    /// that has unwritten bytes, whose times they must come after.
    pub async fn setattr(&self, ino: Ino, change: AttrChange) -> Result<Cached<Attr>, FsError> {
        if change.size.is_some() || self.core.data.overlay(ino).is_some() {
            let _hold = self.core.hold_loaded(ino).await?;
            let attr = self.core.data.set_attr(ino, change, wall_time()).await?;
            self.core.table.lock().forget_xattrs(ino);
            return Ok(self.cached_attr(ino).unwrap_or_else(|| Cached::once(attr)));
        }
        let op = EditOp::SetAttr { ino, change };
        let answer = self
            .core
            .edit(op, EditHints::default(), move |core, table, _, nodes| {
                // A mode is part of the access ACL.
                table.forget_xattrs(ino);
                let node = Core::node_of(nodes, ino)?;
                Some(core.answer(table, node.attr.clone(), node.grant.is_some()))
            })
            .await?;
        match answer {
            Some(answer) => Ok(answer),
            None => self.core.fetch(ino, LeaseMode::Read).await,
        }
    }
}

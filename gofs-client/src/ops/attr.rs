//! Attributes: what they are, and changes of them.

use gofs_proto::convert::Node;
use gofs_tree::{Attr, AttrChange, Edit, EditOp, FsError, Ino, LeaseMode, Outcome};

use crate::cached::Cached;
use crate::client::Client;
use crate::clock::{BootTime, wall_time};
use crate::core::Core;
use crate::core::learn::{EditHints, cached, overlaid};
use crate::lease::LeaseTable;

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
        let op = EditOp::SetAttr { ino, change: change.clone() };
        let edit = Edit { time: wall_time(), op };
        let changed = move |core: &Core, table: &mut LeaseTable, _: Outcome, nodes: &[Node]| {
            // A mode is part of the access ACL.
            table.forget_xattrs(ino);
            let node = Core::node_of(nodes, ino)?;
            Some(core.answer(table, node.attr.clone(), node.grant.is_some()))
        };
        if let Some(done) = self.core.edit_here(&edit, EditHints::default(), changed)
            && let Some(answer) = done?
        {
            return Ok(answer);
        }
        if change.size.is_some() || self.core.data.overlay(ino).is_some() {
            let _hold = self.core.hold_loaded(ino).await?;
            let attr = self.core.data.set_attr(ino, change, wall_time()).await?;
            self.core.table.lock().forget_xattrs(ino);
            return Ok(self.cached_attr(ino).unwrap_or_else(|| Cached::once(attr)));
        }
        let answer = self.core.edit_at(edit, EditHints::default(), changed).await?;
        match answer {
            Some(answer) => Ok(answer),
            None => self.core.fetch(ino, LeaseMode::Read).await,
        }
    }
}

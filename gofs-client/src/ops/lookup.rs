//! A name to its inode.

use gofs_proto::convert::{Grant, Node};
use gofs_proto::session::Lookup;
use gofs_tree::{Attr, DirEntry, FileType, FsError, Ino, LeaseMode, Name};

use crate::cached::Cached;
use crate::client::Client;
use crate::clock::BootTime;
use crate::core::learn::{cached, garbled, overlaid};
use crate::core::lease::Again;
use crate::lease::NameAnswer;

/// Times that a name is looked up again because what it named was gone before it could be kept.
const AGAIN_MAX: u32 = 16;

impl Client {
    /// The inode that `name` names in `parent`; `None` = there is none, which may be kept for `entry_ttl`.
    /// What is not a directory can be opened for [`LINGER`](crate::lease::LINGER), whatever others do to its name.
    /// NotDirectory, NotFound (the parent is gone).
    pub async fn lookup(&self, parent: Ino, name: &Name) -> Result<Cached<Option<Attr>>, FsError> {
        if let Some(answer) = self.known_name(parent, name) {
            return Ok(answer);
        }
        let mut again = Again::default();
        let mut found = self.ask_name(parent, name).await?;
        for _ in 0..AGAIN_MAX {
            let Some(attr) = found.value.as_ref().filter(|attr| attr.file_type != FileType::Directory) else {
                break;
            };
            let ino = attr.ino;
            if self.core.table.lock().looked_up(ino, BootTime::now()) {
                break;
            }
            // No grant came with the answer, because somebody waits to change what was asked for: by the time it
            // is opened it may be gone.
            again.turn(&self.core).await;
            found = match self.core.fetch(ino, LeaseMode::Read).await {
                Ok(fetched) if fetched.value.nlink > 0 => fetched.map(Some),
                Ok(_) | Err(FsError::NotFound | FsError::Stale) => self.ask_name(parent, name).await?,
                Err(error) => return Err(error),
            };
        }
        Ok(found)
    }

    fn known_name(&self, parent: Ino, name: &Name) -> Option<Cached<Option<Attr>>> {
        let core = &self.core;
        let now = BootTime::now();
        let mut table = core.table.lock();
        // Before the attributes, so that what is newer here cannot have been committed and cleared in between.
        let local = table.entry(parent, name, now).and_then(|entry| core.data.overlay(entry.ino));
        let answer = table.lookup(parent, name, now);
        let ahead = table.ahead(now);
        if ahead.is_some() {
            core.ask_ahead(ahead);
        }
        match answer {
            NameAnswer::Found(attr, permit) => {
                if attr.file_type != FileType::Directory {
                    table.looked_up(attr.ino, now);
                }
                let entry_ttl = core.entry_ttl(permit.ttl);
                let answer = cached(Some(overlaid(attr, local)), permit);
                Some(Cached { entry_ttl, ..answer })
            }
            NameAnswer::Absent(permit) => {
                let entry_ttl = core.entry_ttl(permit.ttl);
                Some(Cached { entry_ttl, ..cached(None, permit) })
            }
            NameAnswer::Unknown => None,
        }
    }

    async fn ask_name(&self, parent: Ino, name: &Name) -> Result<Cached<Option<Attr>>, FsError> {
        self.core.settled(parent).await?;
        let core = self.core.clone();
        let request = Lookup { parent: parent.0, name: name.as_bytes().to_vec().into() };
        let name = name.clone();
        let asked = self.core.table.lock().changes();
        self.core
            .session
            .call(request, move |reply| {
                let node = reply.node.as_ref().map(Node::try_from).transpose().map_err(|e| garbled(&e))?;
                let dir = reply.dir.as_ref().map(Grant::try_from).transpose().map_err(|e| garbled(&e))?;
                let mut table = core.table.lock();
                // Before the grant, which makes an inode known that was not.
                let has_changed = table.has_changed(parent, asked);
                let granted = dir.is_some_and(|grant| table.grant(grant)) && !has_changed;
                let answer = match node {
                    Some(node) => {
                        let learned =
                            !table.has_changed(node.attr.ino, asked) && core.take_in(&mut table, &node);
                        let entry = DirEntry { ino: node.attr.ino, file_type: node.attr.file_type };
                        table.learn_answer(parent, &name, Some(entry), granted);
                        core.answer(&mut table, node.attr, learned).map(Some)
                    }
                    None => {
                        table.learn_answer(parent, &name, None, granted);
                        Cached::once(None)
                    }
                };
                let permit = table.name_permit(parent, &name, BootTime::now());
                let answer = core.named(answer, permit);
                core.after_learning(table);
                Ok(answer)
            })
            .await
    }
}

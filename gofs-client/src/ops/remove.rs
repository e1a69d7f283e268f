//! Names that go: unlink, rmdir.

use std::sync::Arc;

use gofs_proto::session::Closed;
use gofs_tree::{EditOp, FsError, Ino, Name, Outcome};

use crate::client::Client;
use crate::clock::BootTime;
use crate::core::Core;
use crate::core::learn::EditHints;
use crate::lease::LeaseTable;

use super::is_granted;

/// A removal that is asked for: opens of the inode wait for its outcome, also where the caller has given up.
pub(super) struct Removal {
    core: Arc<Core>,
    ino: Option<Ino>,
    /// What is told the server: the inode is open here.
    pub open_here: bool,
}

impl Drop for Removal {
    fn drop(&mut self) {
        if let Some(ino) = self.ino {
            self.core.table.lock().end_removal(ino);
            self.core.changed.notify_waiters();
        }
    }
}

/// An inode that lost its last name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    ino: Ino,
    open: bool,
}

impl Gone {
    /// With the table locked, on the reply's task.
    pub fn of(core: &Core, table: &mut LeaseTable, outcome: Outcome) -> Option<Gone> {
        let ino = outcome.removed?;
        let open = table.removed(ino);
        if !open {
            core.data.forget(ino);
        }
        Some(Gone { ino, open })
    }
}

impl Client {
    /// Removes a name that is not a directory's. An open file lives on until its last close.
    pub async fn unlink(&self, parent: Ino, name: &Name) -> Result<(), FsError> {
        let op = EditOp::Unlink { parent, name: name.clone(), holders: Vec::new() };
        self.remove(parent, name, op).await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: Ino, name: &Name) -> Result<(), FsError> {
        let op = EditOp::Rmdir { parent, name: name.clone(), holders: Vec::new() };
        self.remove(parent, name, op).await
    }

    async fn remove(&self, parent: Ino, name: &Name, op: EditOp) -> Result<(), FsError> {
        let removal = self.begin_removal(parent, name, false).await?;
        let hints = EditHints { open_here: removal.open_here, ..EditHints::default() };
        let name = name.clone();
        let asked = removal.clone();
        let gone = self
            .core
            .edit(op, hints, move |core, table, outcome, nodes| {
                let _asked = &asked;
                table.learn_name(parent, &name, None, is_granted(nodes, parent));
                Gone::of(core, table, outcome)
            })
            .await?;
        self.end_removal(&removal, gone);
        Ok(())
    }

    /// Finds out whether what the name names is open here. From then on it cannot become so unnoticed. `replaced`: the
    /// name will be another inode's, and whoever has just looked it up may open what it was.
    pub(super) async fn begin_removal(
        &self,
        parent: Ino,
        name: &Name,
        replaced: bool,
    ) -> Result<Arc<Removal>, FsError> {
        let core = &self.core;
        let (entry, unsure) = {
            let mut table = core.table.lock();
            (table.entry(parent, name, BootTime::now()), table.opens() > 0)
        };
        let known = match entry {
            Some(entry) => Some(entry.ino),
            None if unsure => Box::pin(self.lookup(parent, name)).await?.value.map(|attr| attr.ino),
            None => None,
        };
        let mut table = core.table.lock();
        if let Some(ino) = known {
            if replaced && table.linger(ino, BootTime::now()) {
                core.close_later(ino);
            }
            table.begin_removal(ino);
        }
        // Not sure: then the server keeps it for us, and is told when it turns out that nobody has it open.
        let open_here = known.map_or(table.opens() > 0, |ino| table.is_open(ino));
        Ok(Arc::new(Removal { core: core.clone(), ino: known, open_here }))
    }

    /// Tells the server where it keeps an inode for us that nobody has open.
    pub(super) fn end_removal(&self, removal: &Removal, gone: Option<Gone>) {
        if let Some(gone) = gone.filter(|gone| removal.open_here && !gone.open) {
            self.core.tell_closed(gone.ino);
        }
    }
}

impl Core {
    /// The last handle on an inode of which the server knows has gone.
    pub fn tell_closed(self: &Arc<Self>, ino: Ino) {
        let core = self.clone();
        self.runtime.spawn(async move {
            core.settled_hard(ino).await;
            // After a reconnection it may be open again, and then the server must not be told otherwise.
            let still_closed = || core.table.lock().still_closed(ino);
            if let Err(error) = core.session.tell(Closed { ino: ino.0 }, still_closed).await {
                tracing::debug!(%ino, %error, "a close was not told");
            }
            {
                let mut table = core.table.lock();
                if table.end_closing(ino) {
                    core.data.forget(ino);
                }
            }
            core.changed.notify_waiters();
        });
    }
}

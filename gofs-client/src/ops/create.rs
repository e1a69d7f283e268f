//! New inodes: files, directories, symlinks, devices.

use gofs_tree::{Attr, DirEntry, EditOp, FileType, FsError, Ino, Mode, Name, NewNode};

use crate::cached::Cached;
use crate::client::Client;
use crate::clock::BootTime;
use crate::core::Core;
use crate::core::learn::EditHints;
use crate::handle::{FileHandle, OpenFlags};

use super::is_granted;

impl Client {
    /// Makes an inode of any type. Exists where the name does; never opens what is there.
    #[allow(clippy::too_many_arguments, reason = "all that a new inode takes from its maker")]
    pub async fn create(
        &self,
        parent: Ino,
        name: &Name,
        node: NewNode,
        mode: Mode,
        umask: Mode,
        uid: u32,
        gid: u32,
    ) -> Result<Cached<Attr>, FsError> {
        let op = EditOp::Create { parent, name: name.clone(), ino: Ino(0), node, mode, umask, uid, gid };
        self.make(parent, name, op, false).await
    }

    /// Makes a regular file and opens it. Exists where the name does.
    #[allow(clippy::too_many_arguments, reason = "all that a new inode takes from its maker")]
    pub async fn create_open(
        &self,
        parent: Ino,
        name: &Name,
        mode: Mode,
        umask: Mode,
        uid: u32,
        gid: u32,
        flags: OpenFlags,
    ) -> Result<(Cached<Attr>, FileHandle), FsError> {
        let node = NewNode::File;
        let op = EditOp::Create { parent, name: name.clone(), ino: Ino(0), node, mode, umask, uid, gid };
        let attr = self.make(parent, name, op, true).await?;
        let handle = self.handle(attr.value.ino, flags);
        Ok((attr, handle))
    }

    async fn make(
        &self,
        parent: Ino,
        name: &Name,
        op: EditOp,
        keep_open: bool,
    ) -> Result<Cached<Attr>, FsError> {
        let name = name.clone();
        let hints = EditHints { keep_open, ..EditHints::default() };
        let made = self
            .core
            .edit(op, hints, move |core, table, outcome, nodes| {
                let node = Core::node_of(nodes, outcome.ino);
                let learned = is_granted(nodes, outcome.ino);
                if keep_open {
                    // Counted before any recall of the new inode is looked at.
                    table.open_created(outcome.ino, learned);
                }
                let entry = node.map(|node| DirEntry { ino: node.attr.ino, file_type: node.attr.file_type });
                table.learn_name(parent, &name, entry, entry.is_some() && is_granted(nodes, parent));
                if learned && entry.is_some_and(|entry| entry.file_type == FileType::Directory) {
                    table.learn_new_directory(outcome.ino, parent);
                }
                let permit = table.name_permit(parent, &name, BootTime::now());
                let answer = node.map(|node| {
                    let attr = core.answer(table, node.attr.clone(), learned);
                    core.named(attr, permit)
                });
                (outcome.ino, answer)
            })
            .await?;
        match made {
            (_, Some(answer)) => Ok(answer),
            (ino, None) => self.getattr(ino).await,
        }
    }
}

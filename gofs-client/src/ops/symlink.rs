//! Where a symlink leads.

use bytes::Bytes;
use gofs_proto::convert::{ConvertError, Node};
use gofs_proto::session::{Fetch, Mode};
use gofs_tree::{FileType, FsError, Ino};

use crate::cached::Cached;
use crate::client::Client;
use crate::clock::BootTime;
use crate::core::learn::{cached, garbled};

impl Client {
    /// The target's bytes. Invalid where it is no symlink.
    pub async fn readlink(&self, ino: Ino) -> Result<Cached<Bytes>, FsError> {
        if let Some((target, permit)) = self.core.table.lock().target(ino, BootTime::now()) {
            return Ok(cached(target, permit));
        }
        let core = self.core.clone();
        let request = Fetch { ino: ino.0, want: Mode::Read.into() };
        self.core
            .session
            .call(request, move |reply| {
                let node = reply.node.as_ref().ok_or(ConvertError::Missing("node"));
                let node = node.and_then(Node::try_from).map_err(|e| garbled(&e))?;
                if node.attr.file_type != FileType::Symlink {
                    return Err(FsError::Invalid);
                }
                let mut table = core.table.lock();
                core.take_in(&mut table, &node);
                let answer = match table.target(ino, BootTime::now()) {
                    Some((target, permit)) => cached(target, permit),
                    None => Cached::once(node.inline),
                };
                core.after_learning(table);
                Ok(answer)
            })
            .await
    }
}

//! Extended attributes. All of an inode's are fetched at once: few inodes have any, and those have few.

use std::collections::BTreeMap;

use bytes::Bytes;
use gofs_proto::convert::{self, ConvertError, Grant};
use gofs_proto::session::Xattrs;
use gofs_tree::{Edit, EditOp, FsError, Ino, XattrName, XattrSetMode};

use crate::cached::Cached;
use crate::client::Client;
use crate::clock::{BootTime, wall_time};
use crate::core::learn::{EditHints, cached, garbled};

type All = BTreeMap<XattrName, Bytes>;

impl Client {
    /// `None` = no such attribute.
    pub async fn getxattr(&self, ino: Ino, name: &XattrName) -> Result<Cached<Option<Bytes>>, FsError> {
        let name = name.clone();
        self.look(ino, move |xattrs| xattrs.get(&name).cloned()).await
    }

    /// All names.
    pub async fn listxattr(&self, ino: Ino) -> Result<Cached<Vec<XattrName>>, FsError> {
        self.look(ino, |xattrs| xattrs.keys().cloned().collect()).await
    }

    /// Sets one. Setting an access ACL also sets the mode.
    pub async fn setxattr(
        &self,
        ino: Ino,
        name: &XattrName,
        value: Bytes,
        mode: XattrSetMode,
    ) -> Result<(), FsError> {
        self.change(ino, EditOp::SetXattr { ino, name: name.clone(), value, mode }).await
    }

    /// Removes one. NoAttribute where it does not exist.
    pub async fn removexattr(&self, ino: Ino, name: &XattrName) -> Result<(), FsError> {
        self.change(ino, EditOp::RemoveXattr { ino, name: name.clone() }).await
    }

    async fn change(&self, ino: Ino, op: EditOp) -> Result<(), FsError> {
        let edit = Edit { time: wall_time(), op };
        // What was changed here is known.
        if let Some(done) = self.core.edit_here(&edit, EditHints::default(), |_, _, _, _| ()) {
            return done;
        }
        self.core.edit_at(edit, EditHints::default(), move |_, table, _, _| table.forget_xattrs(ino)).await
    }

    async fn look<T: Send + 'static>(
        &self,
        ino: Ino,
        look: impl Fn(&All) -> T + Clone + Send + 'static,
    ) -> Result<Cached<T>, FsError> {
        if let Some((found, permit)) = self.core.table.lock().xattrs(ino, BootTime::now(), &look) {
            return Ok(cached(found, permit));
        }
        self.core.settled(ino).await?;
        let core = self.core.clone();
        self.core
            .session
            .call(Xattrs { ino: ino.0 }, move |reply| {
                let parse = || -> Result<(All, Option<Grant>), ConvertError> {
                    let xattrs = reply.xattrs.iter();
                    let all = xattrs.map(|x| Ok((convert::xattr_name(&x.name)?, x.value.clone())));
                    Ok((
                        all.collect::<Result<All, ConvertError>>()?,
                        reply.grant.as_ref().map(Grant::try_from).transpose()?,
                    ))
                };
                let (all, grant) = parse().map_err(|e| garbled(&e))?;
                let mut table = core.table.lock();
                let found = look(&all);
                let answer = if grant.is_some_and(|grant| table.grant(grant)) {
                    table.learn_xattrs(ino, all);
                    cached(found, table.permit(ino, BootTime::now()))
                } else {
                    Cached::once(found)
                };
                core.after_learning(table);
                Ok(answer)
            })
            .await
    }
}

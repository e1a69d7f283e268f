//! How full the namespace is.

use std::sync::Arc;

use gofs_proto::session::Statfs;
use gofs_tree::FsError;

use crate::client::Client;
use crate::core::Core;
use crate::handle::StatFs;

impl Client {
    /// By the namespace's quota where there is one, else by the cluster's space.
    pub async fn statfs(&self) -> Result<StatFs, FsError> {
        self.core.statfs().await
    }
}

impl Core {
    /// See [`Client::statfs`].
    pub async fn statfs(self: &Arc<Self>) -> Result<StatFs, FsError> {
        self.session
            .call(Statfs {}, |reply| {
                Ok(StatFs {
                    total_bytes: reply.total_bytes,
                    free_bytes: reply.free_bytes,
                    total_inodes: reply.total_inodes,
                    free_inodes: reply.free_inodes,
                })
            })
            .await
    }
}

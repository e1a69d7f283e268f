//! How full the namespace is.

use std::sync::Arc;
use std::time::Duration;

use gofs_proto::session::Statfs;
use gofs_tree::FsError;

use crate::client::Client;
use crate::core::Core;
use crate::handle::StatFs;

/// How long a server may take to say how full it is.
const PATIENCE: Duration = Duration::from_secs(1);

impl Client {
    /// By the namespace's quota where there is one, else by the cluster's space. What was last known
    /// where no server answers within [`PATIENCE`]: umount(8) asks, and must not hang on a dead server.
    pub async fn statfs(&self) -> Result<StatFs, FsError> {
        match tokio::time::timeout(PATIENCE, self.core.statfs()).await {
            Ok(answer) => answer,
            Err(_) => Ok(*self.core.space.lock()),
        }
    }
}

impl Core {
    /// See [`Client::statfs`].
    pub async fn statfs(self: &Arc<Self>) -> Result<StatFs, FsError> {
        let space = self
            .session
            .call(Statfs {}, |reply| {
                Ok(StatFs {
                    total_bytes: reply.total_bytes,
                    free_bytes: reply.free_bytes,
                    total_inodes: reply.total_inodes,
                    free_inodes: reply.free_inodes,
                })
            })
            .await?;
        *self.space.lock() = space;
        Ok(space)
    }
}

//! A mounted namespace: the door of this crate.

use std::sync::Arc;
use std::time::Duration;

use gofs_tree::{Ino, ROOT_INO};

use crate::{ClientConfig, KernelCache, MountError};

/// A mount. Operations are in `ops/`, one a file.
///
/// Every operation that the cache can answer completes at its first poll. What needs a server
/// has sent its request when the first poll returns.
pub struct Client {
    root: Ino,
}

/// What a mount does and waits for, for people.
#[derive(Clone, Debug, Default)]
pub struct ClientStats {
    /// Address of the MetaServer in use, empty while there is none.
    pub server: String,
    /// Session number, 0 while there is none.
    pub session: u64,
    /// Inodes under a lease.
    pub leases: usize,
    /// Bytes of names and attributes cached.
    pub cache_bytes: u64,
    /// Written bytes that no server has yet.
    pub dirty_bytes: u64,
    /// Open files.
    pub opens: usize,
    /// Files of which written bytes were lost (fenced session, or storage that failed) since the mount.
    pub lost_files: u64,
    /// What is being waited for: what, at which server, since when. Oldest first.
    pub waiting: Vec<Waiting>,
}

/// One wait.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The request or transfer.
    pub what: String,
    /// The server asked; empty while none is connected.
    pub server: String,
    /// For how long.
    pub since: Duration,
}

impl Client {
    /// Opens a session with the cluster's leader.
    pub async fn mount(
        config: ClientConfig,
        kernel: Arc<dyn KernelCache>,
    ) -> Result<Arc<Client>, MountError> {
        let _ = kernel;
        if config.metas.is_empty() {
            return Err(MountError::NoAddress);
        }
        Ok(Arc::new(Client { root: ROOT_INO }))
    }

    /// The mounted directory.
    pub fn root(&self) -> Ino {
        self.root
    }

    /// Sends everything that waits and ends the session, within `timeout`; says what was lost.
    pub async fn unmount(&self, timeout: Duration) -> Unmounted {
        let _ = timeout;
        Unmounted::default()
    }

    /// What goes on.
    pub fn stats(&self) -> ClientStats {
        ClientStats::default()
    }
}

/// How an unmount ended.
#[derive(Clone, Debug, Default)]
pub struct Unmounted {
    /// Files with written bytes that no server took.
    pub lost_files: Vec<Ino>,
    /// Whether the server knows that the session is over; else it finds out by itself.
    pub said_goodbye: bool,
}

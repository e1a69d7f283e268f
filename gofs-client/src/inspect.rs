//! What a mount believes at this moment, for simulations that compare it with what others believe.

use std::sync::atomic::Ordering;

use gofs_tree::{Ino, LeaseMode, SessionId};

use crate::client::Client;
use crate::clock::BootTime;

impl Client {
    /// The session that changes are made in; another one after this was ended by the servers.
    pub fn session(&self) -> SessionId {
        self.core.identity.lock().session
    }

    /// Edits, files and bytes that it has lost, together: whether there are new ones, for less than all statistics cost.
    pub fn lost(&self) -> u64 {
        let core = &self.core;
        let (edits, files) = (&core.lost_edits, &core.lost_files);
        edits.load(Ordering::Relaxed) + files.load(Ordering::Relaxed) + core.data.dirty().lost_bytes
    }

    /// What may be answered from memory now, and how; nothing once the session's validity is over. Inodes that were made here
    /// and that no server knows are left out. `None`: somebody changes it at this moment.
    pub fn valid_leases(&self) -> Option<Vec<(Ino, LeaseMode)>> {
        let table = self.core.table.try_lock()?;
        if !table.is_valid(BootTime::now()) {
            return Some(Vec::new());
        }
        Some(table.held().into_iter().map(|grant| (grant.ino, grant.mode)).collect())
    }
}

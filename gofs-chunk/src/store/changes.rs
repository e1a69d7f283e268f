//! What changed about which chunk since it was last told: for the heartbeat.

use std::collections::BTreeMap;

use gofs_tree::{ChunkId, ChunkVersion};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// A chunk as the MetaServer is to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkInfo {
    /// Which.
    pub chunk: ChunkId,
    /// Of the bytes held.
    pub version: ChunkVersion,
    /// It is not here any more.
    pub gone: bool,
    /// Some of its bytes failed their checksum.
    pub corrupt: bool,
    /// Writes that were acknowledged without sync may be missing since the host went down.
    pub doubtful: bool,
}

#[derive(Default)]
struct Pending {
    chunks: BTreeMap<ChunkId, ChunkInfo>,
    all: bool,
}

/// Collects changes, the newest of each chunk, until they are taken.
#[derive(Default)]
pub struct Changes {
    pending: Mutex<Pending>,
    notify: Notify,
}

/// What is to be told.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// These chunks changed.
    Some(Vec<ChunkInfo>),
    /// So many at once (a disk went) that everything is to be told again.
    Everything,
}

impl Changes {
    /// Remembers a change.
    pub fn push(&self, info: ChunkInfo) {
        self.pending.lock().chunks.insert(info.chunk, info);
        self.notify.notify_one();
    }

    /// From here on nothing told before counts.
    pub fn push_all(&self) {
        *self.pending.lock() = Pending { chunks: BTreeMap::new(), all: true };
        self.notify.notify_one();
    }

    /// Takes what there is.
    pub fn take(&self) -> Taken {
        let pending = std::mem::take(&mut *self.pending.lock());
        if pending.all { Taken::Everything } else { Taken::Some(pending.chunks.into_values().collect()) }
    }

    /// Waits until there is something to take.
    pub async fn changed(&self) {
        loop {
            let notified = self.notify.notified();
            {
                let pending = self.pending.lock();
                if pending.all || !pending.chunks.is_empty() {
                    return;
                }
            }
            notified.await;
        }
    }
}

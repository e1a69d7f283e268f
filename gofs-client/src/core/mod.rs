//! What the operations share: session, lease table, file contents, the kernel.
//!
//! The table is locked for moments only, never across an await. Replies are taken in on the link's
//! task; an acknowledgement of a recall is queued while the table is locked, so that nothing this session says
//! later about the inode can overtake it.

pub mod ahead;
mod chunk_pool;
mod evict;
mod fence;
mod file_meta;
pub mod learn;
pub mod lease;
mod log;
mod recall;
mod slices;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use gofs_proto::session::{Hello, KeepAlive, Lock, Welcome};
use gofs_proto::{OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION};
use gofs_tree::{FsError, Ino, NamespaceId, NamespaceLimits, SessionId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::BootTime;
use crate::config::{ClientConfig, Wait};
use crate::data::FileData;
use crate::handle::StatFs;
use crate::kernel::KernelCache;
use crate::latencies::Latencies;
use crate::lease::LeaseTable;
use crate::locks::HeldLocks;
use crate::session::{EditLog, Generation, Session};
use crate::slices::Slices;

pub use chunk_pool::ChunkPool;
pub use file_meta::Meta;
pub use lease::Hold;
pub use log::InoPool;

/// Part of the session's validity that is not used, for clocks that run apart.
const MARGIN_PART: u32 = 20;

/// Who this mount is to the servers.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The session.
    pub session: SessionId,
    /// Its count.
    pub generation: Generation,
    /// Proof that the session is ours.
    pub token: Bytes,
    /// From the send time of a renewal.
    pub validity: Duration,
}

/// What a Welcome says that never changes for a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The cluster.
    pub cluster: Bytes,
    /// The namespace.
    pub namespace: NamespaceId,
}

impl Place {
    /// Of this Welcome.
    pub fn of(welcome: &Welcome) -> Self {
        Place { cluster: welcome.cluster.clone(), namespace: NamespaceId(welcome.namespace_id) }
    }
}

/// See the module.
pub struct Core {
    pub config: ClientConfig,
    pub kernel: Arc<dyn KernelCache>,
    pub table: Mutex<LeaseTable>,
    /// Something in the table has changed that somebody may wait for.
    pub changed: Notify,
    pub session: Arc<Session>,
    pub data: Arc<FileData>,
    /// Edits that were applied here. Locked after the table, where both are.
    pub log: Mutex<EditLog>,
    pub log_wake: Arc<Notify>,
    pub inos: Mutex<InoPool>,
    /// Locked after the table, where both are.
    pub chunks: Mutex<ChunkPool>,
    /// What the namespace sets, without its quota.
    pub limits: NamespaceLimits,
    pub slices: Arc<Slices>,
    /// Held by whoever asks for a slice or gives it back.
    pub slices_asked: tokio::sync::Mutex<()>,
    /// Edits that were applied here and that the servers refused, or that went with their session.
    pub lost_edits: AtomicU64,
    /// Of these, those that an fsync of a directory has told.
    pub lost_edits_told: AtomicU64,
    pub locks: Mutex<HeldLocks>,
    /// An owner of locks is leaving no more.
    pub locks_left: Notify,
    pub identity: Arc<Mutex<Identity>>,
    pub place: Place,
    /// Requests that servers answered, by kind.
    pub round_trips: Arc<Latencies>,
    /// The mounted directory, once it is found.
    pub root: OnceLock<Ino>,
    pub runtime: tokio::runtime::Handle,
    pub evicting: AtomicBool,
    /// Too much was cached since the last eviction began.
    pub evict_wanted: AtomicBool,
    pub lost_files: AtomicU64,
    pub lock_waits: AtomicU64,
    /// What `statfs` last showed.
    pub space: Mutex<StatFs>,
}

/// The part of a Hello that names the mount.
pub fn hello_of(config: &ClientConfig) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        oldest_version: OLDEST_PROTOCOL_VERSION,
        namespace: config.namespace.clone(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        mount_point: config.mount_point.clone(),
        pid: std::process::id(),
        ..Hello::default()
    }
}

/// How long a session is to be used after its last renewal was sent.
pub fn usable_validity(welcome: &Welcome) -> Duration {
    let validity = Duration::from_millis(u64::from(welcome.validity_ms));
    validity - validity / MARGIN_PART
}

impl Core {
    /// The session's count.
    pub fn generation(&self) -> Generation {
        self.identity.lock().generation
    }

    /// How long the session lasts from a renewal.
    pub fn validity(&self) -> Duration {
        self.identity.lock().validity
    }

    /// The server in use.
    pub fn session_address(&self) -> String {
        self.session.current().map(|connection| connection.address.to_string()).unwrap_or_default()
    }

    /// A greeting that goes on with the session and claims back all that it holds.
    pub fn hello(&self) -> Hello {
        let identity = self.identity.lock().clone();
        let table = self.table.lock();
        // What was made here is held here from then on, also where the answer that says so was lost.
        let made = self.log.lock().making().filter_map(|ino| table.held_own(ino)).collect::<Vec<_>>();
        Hello {
            session: identity.session.0,
            token: identity.token,
            leases: table.held().into_iter().chain(made).map(Into::into).collect(),
            opens: table.registered_opens().into_iter().map(|ino| ino.0).collect(),
            locks: self
                .locks
                .lock()
                .all()
                .map(|(ino, lock)| Lock {
                    ino: ino.0,
                    owner: lock.owner,
                    start: lock.start,
                    end: lock.end,
                    exclusive: lock.exclusive,
                    pid: lock.pid,
                })
                .collect(),
            ..hello_of(&self.config)
        }
    }

    /// What the servers are told of what is unsent, and lost.
    pub fn keep_alive(&self) -> KeepAlive {
        let dirty = self.data.dirty();
        KeepAlive {
            unsent_edits: self.log.lock().len() as u64,
            unsent_bytes: dirty.bytes,
            lost_edits: self.lost_edits.load(Ordering::Relaxed),
            lost_files: self.lost_files.load(Ordering::Relaxed),
            lost_bytes: dirty.lost_bytes,
        }
    }

    /// A keep-alive that was sent at that time was answered.
    pub fn renewed(self: &Arc<Self>, sent: BootTime) {
        let until = sent.after(self.validity());
        self.table.lock().renew(until);
        self.changed.notify_waiters();
        self.slices.hope();
        // What is left tells the write-back cache when a write must be refused at once.
        let core = self.clone();
        self.runtime.spawn(async move {
            if let Ok(space) = core.statfs().await {
                core.data.set_space_left(space.free_bytes);
            }
        });
    }

    /// Looks into the table until `check` finds what it looks for; at once where it does.
    pub async fn wait_for<T>(
        &self,
        mut check: impl FnMut(&mut LeaseTable) -> Option<T>,
    ) -> Result<T, FsError> {
        if let Some(found) = check(&mut self.table.lock()) {
            return Ok(found);
        }
        // On the heap, so that whoever need not wait does not carry it.
        let waiting = Box::pin(async {
            let _waiting = self.session.waits.begin("lease");
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if self.session.is_stopped() {
                    return Err(FsError::Io);
                }
                if let Some(found) = check(&mut self.table.lock()) {
                    return Ok(found);
                }
                changed.await;
            }
        });
        match self.config.wait {
            Wait::Hard => waiting.await,
            Wait::Soft(time) => {
                let bounded = {
                    let _inside = self.runtime.enter();
                    tokio::time::timeout(time, waiting)
                };
                bounded.await.unwrap_or(Err(FsError::Io))
            }
        }
    }

    /// Sleeps also where the caller polls from a thread outside of the runtime.
    pub fn pause(&self, time: Duration) -> tokio::time::Sleep {
        let _inside = self.runtime.enter();
        tokio::time::sleep(time)
    }
}

//! A mounted namespace: the door of this crate.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use gofs_proto::session::failure::Code;
use gofs_proto::session::{Failure, Goodbye};
use gofs_tree::{ChunkSize, FileType, FsError, Ino, LeaseMode, Name, NamespaceLimits, ROOT_INO, SessionId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::BootTime;
use crate::config::{ClientConfig, Wait};
use crate::core::{Core, Identity, Meta, Place, hello_of, usable_validity};
use crate::data::{DataConfig, FileData};
use crate::error::MountError;
use crate::kernel::KernelCache;
use crate::latencies::{Latencies, LatencyCounts};
use crate::lease::LeaseTable;
use crate::session::{self, Addresses, Connection, Generation, Session};
use crate::slices::Slices;

/// A mount. Operations are in `ops/`, one a file.
///
/// Every operation that the cache can answer completes at its first poll. What needs a server
/// has sent its request when the first poll returns. Futures are to be polled inside of the tokio runtime that the mount
/// was made in (its `Handle` entered), from any thread, and to their end: what an operation has begun is not undone
/// by dropping it.
pub struct Client {
    pub(crate) core: Arc<Core>,
}

/// What a mount does and waits for, for people.
#[derive(Clone, Debug, Default)]
pub struct ClientStats {
    /// Address of the MetaServer in use, empty while there is none.
    pub server: String,
    /// Session number, 0 while there is none.
    pub session: u64,
    /// What is left of the session before nothing may be answered from the cache.
    pub validity: Duration,
    /// Inodes under a lease.
    pub leases: usize,
    /// Bytes of names and attributes cached.
    pub cache_bytes: u64,
    /// Written bytes that no server has yet.
    pub dirty_bytes: u64,
    /// Changes of the tree that no server has yet.
    pub unsent_edits: usize,
    /// Changes of the tree that were lost, since the mount.
    pub lost_edits: u64,
    /// Open files and directories.
    pub opens: usize,
    /// Files of which written bytes were lost with their lease or session since the mount.
    pub lost_files: u64,
    /// Bytes that could not be written, since the mount.
    pub lost_bytes: u64,
    /// What is being waited for: what, at which server, since when. Oldest first.
    pub waiting: Vec<Waiting>,
    /// Requests that servers answered since the mount, by kind, from when they were sent.
    pub round_trips: BTreeMap<&'static str, LatencyCounts>,
}

/// One wait.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The kind of request, or `lease`.
    pub what: String,
    /// The server asked; empty while none is connected.
    pub server: String,
    /// For how long.
    pub since: Duration,
}

/// How an unmount ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unmounted {
    /// Files with changes that no server took.
    pub lost_files: u64,
    /// Written bytes of these.
    pub lost_bytes: u64,
    /// Changes of the tree that no server took.
    pub lost_edits: u64,
    /// Whether all that was written or changed, and that no program was told to be lost, is on stable storage.
    pub durable: bool,
    /// Whether the server knows that the session is over; else it finds out by itself.
    pub said_goodbye: bool,
}

/// Part of the time for an unmount that is kept for saying goodbye.
const GOODBYE_PART: u32 = 10;

impl Client {
    /// Opens a session with the cluster's leader, within `config.mount_timeout`.
    pub async fn mount(
        config: ClientConfig,
        kernel: Arc<dyn KernelCache>,
    ) -> Result<Arc<Client>, MountError> {
        if config.metas.is_empty() {
            return Err(MountError::NoAddress);
        }
        let mut addresses = Addresses::new(config.metas.clone());
        let hello = hello_of(&config);
        let greeted =
            session::find_leader(&mut addresses, &hello, config.connect_timeout, config.mount_timeout)
                .await
                .map_err(|error| match error {
                    Ok(failure) => refused(&config, &failure),
                    Err(tried) => MountError::Unreachable { waited_s: config.mount_timeout.as_secs(), tried },
                })?;
        let welcome = &greeted.welcome;
        let chunk_size = ChunkSize::new(welcome.chunk_size).ok_or_else(|| MountError::Refused {
            server: greeted.address.clone(),
            text: format!("its chunk size of {} bytes cannot be", welcome.chunk_size),
        })?;
        let identity = Identity {
            session: SessionId(welcome.session),
            generation: Generation(1),
            token: welcome.token.clone(),
            validity: usable_validity(welcome),
        };
        let connection = Connection {
            link: greeted.link.clone(),
            address: greeted.address.as_str().into(),
            generation: identity.generation,
        };
        let place = Place::of(welcome);
        let runtime = tokio::runtime::Handle::current();
        let round_trips = Arc::new(Latencies::of_requests());
        let until = greeted.sent.after(identity.validity);
        let inline_max = welcome.inline_max;
        let slices = Arc::new(Slices::default());
        slices.reset();
        let core = Arc::new_cyclic(|core| {
            let identity = Arc::new(Mutex::new(identity));
            let writer = identity.clone();
            let data = DataConfig {
                dirty_bytes: config.dirty_bytes,
                dirty_age: config.dirty_age,
                cache_bytes: config.read_cache_bytes,
                readahead_bytes: config.readahead_bytes,
                soft_timeout: match config.wait {
                    Wait::Hard => None,
                    Wait::Soft(time) => Some(time),
                },
                round_trips: round_trips.clone(),
                slices: slices.clone(),
                ..DataConfig::new(
                    place.namespace,
                    Arc::new(move || writer.lock().session),
                    place.cluster.clone(),
                    chunk_size,
                    inline_max,
                )
            };
            let mut table = LeaseTable::new(inline_max);
            table.renew(until);
            Core {
                kernel,
                table: Mutex::new(table),
                changed: Notify::new(),
                session: Arc::new(Session::new(
                    connection,
                    config.wait,
                    runtime.clone(),
                    round_trips.clone(),
                )),
                data: FileData::new(data, Arc::new(Meta(core.clone()))),
                log: Mutex::default(),
                log_wake: Arc::default(),
                inos: Mutex::default(),
                chunks: Mutex::default(),
                limits: NamespaceLimits { quota_bytes: 0, quota_inodes: 0, inline_max, chunk_size },
                slices: slices.clone(),
                slices_asked: Default::default(),
                lost_edits: Default::default(),
                lost_edits_told: Default::default(),
                locks: Mutex::default(),
                locks_left: Notify::new(),
                identity,
                place,
                round_trips,
                root: OnceLock::new(),
                runtime,
                evicting: Default::default(),
                evict_wanted: Default::default(),
                lost_files: Default::default(),
                lock_waits: Default::default(),
                space: Default::default(),
                config,
            }
        });
        greeted.door.core.get_or_init(|| Arc::downgrade(&core));
        tokio::spawn(session::supervise(Arc::downgrade(&core), addresses, greeted.link, greeted.door));
        tokio::spawn(Core::watch_validity(Arc::downgrade(&core)));
        tokio::spawn(Core::send_edits(Arc::downgrade(&core)));
        let client = Client { core };
        if let Err(error) = client.find_root(&greeted.address).await {
            client.unmount(client.core.config.mount_timeout).await;
            return Err(error);
        }
        client.core.begin_slices().await;
        Ok(Arc::new(client))
    }

    /// Walks to the directory that is to be mounted, as any program would: another mount may just have made it.
    async fn find_root(&self, server: &str) -> Result<(), MountError> {
        let config = &self.core.config;
        let found = tokio::time::timeout(config.mount_timeout, self.walk(&config.subdir)).await;
        let root = found.unwrap_or(Err(FsError::Io)).map_err(|error| MountError::Refused {
            server: server.to_owned(),
            text: format!(
                "/{} in namespace {:?}: {error}",
                String::from_utf8_lossy(&config.subdir),
                config.namespace
            ),
        })?;
        // Set once, here.
        let _ = self.core.root.set(root);
        if let Ok(space) = self.core.statfs().await {
            self.core.data.set_space_left(space.free_bytes);
        }
        Ok(())
    }

    async fn walk(&self, path: &[u8]) -> Result<Ino, FsError> {
        let mut at = self.core.fetch(ROOT_INO, LeaseMode::Read).await?.value;
        for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
            let name = Name::new(part).map_err(|_| FsError::NotFound)?;
            at = self.lookup(at.ino, &name).await?.value.ok_or(FsError::NotFound)?;
        }
        if at.file_type == FileType::Directory { Ok(at.ino) } else { Err(FsError::NotDirectory) }
    }

    /// The mounted directory.
    pub fn root(&self) -> Ino {
        self.core.root.get().copied().unwrap_or(ROOT_INO)
    }

    /// Sends everything unwritten and ends the session, within `timeout` also when no server answers; says what was
    /// lost. No operation is answered afterwards.
    pub async fn unmount(&self, timeout: Duration) -> Unmounted {
        let core = &self.core;
        let started = Instant::now();
        let flush = tokio::time::timeout(timeout - timeout / GOODBYE_PART, self.sync_all()).await;
        match &flush {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "unmount: something could not be written"),
            Err(_) => tracing::error!(?timeout, "unmount: servers did not take everything in time"),
        }
        let left = core.data.dirty();
        let parked = core.table.lock().parked().len() as u64;
        let lost_edits = core.log.lock().len() as u64;
        let is_all_there = left.files + parked + lost_edits == 0 && !core.data.has_untold_errors();
        let rest = timeout.saturating_sub(started.elapsed());
        core.session.leave();
        let session = core.session.clone();
        // The server ends the connection after its reply: nobody may take that for a loss.
        let heard = move |_| {
            session.has_ended();
            Ok(())
        };
        // Whether it was heard is asked below.
        let _ = tokio::time::timeout(rest, core.session.call_long(Goodbye {}, heard)).await;
        core.session.stop();
        core.table.lock().expire();
        core.changed.notify_waiters();
        Unmounted {
            lost_files: left.files + parked,
            lost_bytes: left.bytes,
            lost_edits,
            durable: is_all_there && matches!(flush, Ok(Ok(()))),
            said_goodbye: core.session.has_left(),
        }
    }

    /// What goes on.
    pub fn stats(&self) -> ClientStats {
        let core = &self.core;
        let server = core.session_address();
        let dirty = core.data.dirty();
        let session = core.identity.lock().session.0;
        let (validity, (leases, cache_bytes), opens) = {
            let table = core.table.lock();
            (table.validity(BootTime::now()), table.size(), table.opens())
        };
        let waits = core.session.waits.list().into_iter();
        ClientStats {
            session,
            validity,
            leases,
            cache_bytes,
            dirty_bytes: dirty.bytes,
            unsent_edits: core.log.lock().len(),
            lost_edits: core.lost_edits.load(Ordering::Relaxed),
            opens,
            lost_files: core.lost_files.load(Ordering::Relaxed),
            lost_bytes: dirty.lost_bytes,
            waiting: waits
                .map(|wait| Waiting {
                    what: wait.what.to_owned(),
                    server: server.clone(),
                    since: wait.since.elapsed(),
                })
                .collect(),
            server,
            round_trips: core.round_trips.requests(),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.core.session.stop();
        self.core.log_wake.notify_one();
    }
}

fn refused(config: &ClientConfig, failure: &Failure) -> MountError {
    let server = config.metas.join(",");
    let text = failure.text.clone();
    match failure.code() {
        Code::NoNamespace => MountError::NoNamespace { server, text },
        Code::BadVersion => MountError::Version { server, text },
        _ => MountError::Refused { server, text },
    }
}

//! Kernel requests to operations of the backend, and their results to replies.
//!
//! A request's work is a future. It is polled once on the session thread that read the request:
//! what the backend answers from memory is replied there, without another thread. What has to wait goes on
//! in the runtime, on the thread that reads the answer it waits for, and the session thread reads the next request
//! (`parked`). Session threads never block: a recall needs them free to write the kernel's dirty pages back.

mod attrs;
mod dirs;
mod files;
mod handler;
mod locks;
mod names;
mod regions;
mod xattrs;

pub(crate) use regions::RegionReader;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use dashmap::DashMap;
use fuser::{Errno, Request};
use gofs_client::{Cached, KernelCache, parked};
use gofs_tree::{Attr, AttrChange, FileType, FsError, Ino, Mode, Name};
use gofs_wakeful::Wakeful;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tracing::debug;

use crate::backend::{Backend, BackendFile};
use crate::capabilities::Capabilities;
use crate::convert::InoMap;
use crate::errno::{errno, name_error};
use crate::kernel_cache::KernelNotifier;
use crate::lookups::Lookups;
use crate::requester;
use crate::stats::{MountStats, Operation, ProcessorTime, Stats};

/// One mount as fuser calls it.
pub struct Gofs<B: Backend> {
    shared: Arc<Shared<B>>,
    runtime: Handle,
    capabilities: Arc<Mutex<Option<Capabilities>>>,
}

/// What the operations of a mount share.
struct Shared<B: Backend> {
    backend: Arc<B>,
    kernel: Arc<KernelNotifier>,
    map: InoMap,
    files: DashMap<u64, B::File>,
    dirs: DashMap<u64, B::Dir>,
    /// Numbers of open files and directories, never used twice.
    next_handle: AtomicU64,
    /// What replies to READDIR and READDIRPLUS hold.
    pages: dirs::PageSize,
    pages_plus: dirs::PageSize,
    wanted_regions: OnceLock<regions::Queue>,
    wakeful: Wakeful,
    stats: Stats,
}

impl<B: Backend> Gofs<B> {
    /// Serves `backend` from within `runtime`. What the kernel can do is told in `capabilities` at its first request.
    pub fn new(
        backend: Arc<B>,
        kernel: Arc<KernelNotifier>,
        runtime: Handle,
        wakeful: Wakeful,
        capabilities: Arc<Mutex<Option<Capabilities>>>,
    ) -> Self {
        let map = InoMap::new(backend.root());
        let shared = Shared {
            backend,
            kernel,
            map,
            files: DashMap::new(),
            dirs: DashMap::new(),
            next_handle: AtomicU64::new(1),
            pages: dirs::PageSize::default(),
            pages_plus: dirs::PageSize::default(),
            wanted_regions: OnceLock::new(),
            wakeful,
            stats: Stats::default(),
        };
        Gofs { shared: Arc::new(shared), runtime, capabilities }
    }

    /// What reads regions of files ahead of programs that read at random.
    pub(crate) fn region_reader(&self) -> RegionReader<B> {
        RegionReader(Arc::downgrade(&self.shared))
    }

    /// Runs `work` and gives its result to `deliver`, which replies.
    fn serve<A, T, W, D>(&self, operation: Operation, request: &Request, answer: A, work: W, deliver: D)
    where
        A: Answer,
        T: Send + 'static,
        W: Future<Output = Result<T, FsError>> + Send + 'static,
        D: FnOnce(&Shared<B>, A, T) + Send + 'static,
    {
        self.serve_or_else(operation, request, answer, work, deliver, |_, _| {});
    }

    /// As `serve`; `unheard` gets what was done after the program was killed and the kernel had given up.
    fn serve_or_else<A, T, W, D, U>(
        &self,
        operation: Operation,
        request: &Request,
        answer: A,
        work: W,
        deliver: D,
        unheard: U,
    ) where
        A: Answer,
        T: Send + 'static,
        W: Future<Output = Result<T, FsError>> + Send + 'static,
        D: FnOnce(&Shared<B>, A, T) + Send + 'static,
        U: FnOnce(&Shared<B>, T) + Send + 'static,
    {
        let began = Instant::now();
        self.shared.wakeful.touch_at(began);
        let _runtime = self.runtime.enter();
        let shared = self.shared.clone();
        let task = request.pid();
        // By itself: moved into another future it would be there twice.
        let mut work = Box::pin(work);
        let ended = parked::begin(&self.runtime, async move {
            tokio::select! {
                biased;
                result = &mut work => {
                    finish(&shared, answer, result, deliver);
                    shared.stats.answered(operation, began);
                }
                () = requester::killed(task) => {
                    // The program is freed; the operation ends as it would have.
                    answer.fail(Errno::EINTR);
                    shared.stats.answered(operation, began);
                    if let Ok(value) = work.await {
                        unheard(&shared, value);
                    }
                }
            }
        });
        if !ended {
            self.shared.stats.waited(operation);
        }
    }
}

fn finish<B: Backend, A: Answer, T>(
    shared: &Shared<B>,
    answer: A,
    result: Result<T, FsError>,
    deliver: impl FnOnce(&Shared<B>, A, T),
) {
    match result {
        Ok(value) => deliver(shared, answer, value),
        Err(error) => {
            debug!(operation = std::any::type_name_of_val(&deliver), %error, "refused");
            answer.fail(errno(error));
        }
    }
}

impl<B: Backend> Shared<B> {
    fn lookups(&self) -> &Lookups {
        self.kernel.lookups()
    }

    /// What `gofsctl profile` shows.
    fn mount_stats(&self) -> MountStats {
        let client = self.backend.stats();
        MountStats {
            age: self.stats.age(),
            server: client.server,
            cpu_latency: self.wakeful.state().to_string(),
            dirty_bytes: client.dirty_bytes,
            unsent_edits: client.unsent_edits as u64,
            leases: client.leases as u64,
            opens: client.opens as u64,
            waiting: client.waiting.len() as u64,
            lost_files: client.lost_files,
            lost_edits: client.lost_edits,
            processor: ProcessorTime::now(),
            operations: self.stats.operations(),
            round_trips: client
                .round_trips
                .into_iter()
                .map(|(name, counts)| (name.to_owned(), counts))
                .collect(),
        }
    }

    fn new_handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    /// The open file of a handle that the kernel was given.
    fn file(&self, handle: fuser::FileHandle) -> Result<B::File, FsError> {
        self.files.get(&handle.0).map(|file| file.clone()).ok_or_else(|| {
            debug!(handle = handle.0, "the kernel used a handle that is not open");
            FsError::Stale
        })
    }

    fn dir(&self, handle: fuser::FileHandle) -> Result<B::Dir, FsError> {
        self.dirs.get(&handle.0).map(|dir| dir.clone()).ok_or(FsError::Stale)
    }

    /// Replies with an entry, which the kernel counts, and lets recalls go on after that.
    fn entry(&self, answer: fuser::ReplyEntry, cached: Cached<Attr>) {
        let attr = self.map.attr(&cached.value);
        self.lookups().sent(attr.ino);
        answer.entry_with_ttls(&cached.ttl, &cached.entry_ttl, &attr, GENERATION);
    }

    /// Clears suid, and sgid where the group may execute, before a change of the contents by a program
    /// that may not keep them, and has the kernel see it.
    async fn kill_privileges(&self, ino: Ino) -> Result<(), FsError> {
        let cached = self.backend.getattr(ino).await?;
        let loses = loses_privileges(&cached.value);
        drop(cached);
        if loses {
            let change = AttrChange { kill_suid_sgid: true, ..AttrChange::default() };
            self.backend.setattr(ino, change).await?;
            self.kernel.forget_attributes(ino);
        }
        Ok(())
    }

    /// These inodes, and names in them where they are directories, have changed by an operation of which the kernel does
    /// not know the outcome.
    fn changed_unheard(&self, inos: impl IntoIterator<Item = Ino> + Send + 'static) {
        let kernel = self.kernel.clone();
        tokio::task::spawn_blocking(move || {
            kernel.invalidate_entries();
            inos.into_iter().for_each(|ino| kernel.invalidate_inode(ino));
        });
    }

    /// The same of an open file.
    fn file_changed_unheard(&self, handle: fuser::FileHandle) {
        if let Ok(file) = self.file(handle) {
            self.changed_unheard([file.ino()]);
        }
    }
}

/// Inode numbers are never reused, so there is one generation.
const GENERATION: fuser::Generation = fuser::Generation(0);

/// Whether a write by an ordinary user takes bits from the file's mode.
fn loses_privileges(attr: &Attr) -> bool {
    const GROUP_EXECUTE: u16 = 0o010;
    attr.file_type == FileType::File
        && (attr.mode.has(Mode::SUID) || attr.mode.has(Mode::SGID | GROUP_EXECUTE))
}

/// Whether a program's user keeps suid and sgid bits of files that it changes. FUSE tells capabilities
/// with writes only, so for other changes it is root who has CAP_FSETID.
fn keeps_privileges(request: &Request) -> bool {
    request.uid() == 0
}

fn name(bytes: &std::ffi::OsStr) -> Result<Name, FsError> {
    Name::new(std::os::unix::ffi::OsStrExt::as_bytes(bytes)).map_err(name_error)
}

/// A reply that can be an error.
trait Answer: Send + 'static {
    fn fail(self, errno: Errno);
}

macro_rules! answers {
    ($($reply:ident),*) => {
        $(impl Answer for fuser::$reply {
            fn fail(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

answers!(
    ReplyEmpty,
    ReplyData,
    ReplyEntry,
    ReplyAttr,
    ReplyOpen,
    ReplyWrite,
    ReplyStatfs,
    ReplyCreate,
    ReplyLock,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyXattr,
    ReplyLseek
);

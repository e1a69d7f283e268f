//! Kernel requests to client operations, and their results to replies.
//!
//! A request's work is a future. It is polled once on the session thread that read the request:
//! what the client answers from memory is replied there, without another thread. What has to wait goes on
//! in the runtime, and the session thread reads the next request. Session threads never block: a recall needs
//! them free to write the kernel's dirty pages back.

mod attrs;
mod dirs;
mod files;
mod handler;
mod locks;
mod names;
mod xattrs;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use dashmap::DashMap;
use fuser::{Errno, Request};
use gofs_client::{Cached, Client, DirHandle, FileHandle};
use gofs_tree::{Attr, AttrChange, FileType, FsError, Ino, Mode, Name};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tracing::debug;

use crate::capabilities::Capabilities;
use crate::convert::InoMap;
use crate::errno::{errno, name_error};
use crate::kernel_cache::KernelNotifier;
use crate::lookups::Lookups;
use crate::requester;
use crate::wakeful::Wakeful;

/// One mount as fuser calls it.
pub struct Gofs {
    shared: Arc<Shared>,
    runtime: Handle,
    wakeful: Wakeful,
    capabilities: Arc<Mutex<Option<Capabilities>>>,
}

/// What the operations of a mount share.
struct Shared {
    client: Arc<Client>,
    kernel: Arc<KernelNotifier>,
    map: InoMap,
    files: DashMap<u64, FileHandle>,
    dirs: DashMap<u64, DirHandle>,
    /// Numbers of open files and directories, never used twice.
    next_handle: AtomicU64,
    /// What replies to READDIR and READDIRPLUS hold.
    pages: dirs::PageSize,
    pages_plus: dirs::PageSize,
}

impl Gofs {
    /// Serves `client` from within `runtime`. What the kernel can do is told in `capabilities` at its first request.
    pub fn new(
        client: Arc<Client>,
        kernel: Arc<KernelNotifier>,
        runtime: Handle,
        wakeful: Wakeful,
        capabilities: Arc<Mutex<Option<Capabilities>>>,
    ) -> Self {
        let map = InoMap::new(client.root());
        let shared = Shared {
            client,
            kernel,
            map,
            files: DashMap::new(),
            dirs: DashMap::new(),
            next_handle: AtomicU64::new(1),
            pages: dirs::PageSize::default(),
            pages_plus: dirs::PageSize::default(),
        };
        Gofs { shared: Arc::new(shared), runtime, wakeful, capabilities }
    }

    /// Runs `work` and gives its result to `deliver`, which replies.
    fn serve<A, T, W, D>(&self, request: &Request, answer: A, work: W, deliver: D)
    where
        A: Answer,
        T: Send + 'static,
        W: Future<Output = Result<T, FsError>> + Send + 'static,
        D: FnOnce(&Shared, A, T) + Send + 'static,
    {
        self.serve_or_undo(request, answer, work, deliver, |_, _| {});
    }

    /// As `serve`; `undo` gets the result if the program was killed before it came.
    fn serve_or_undo<A, T, W, D, U>(&self, request: &Request, answer: A, work: W, deliver: D, undo: U)
    where
        A: Answer,
        T: Send + 'static,
        W: Future<Output = Result<T, FsError>> + Send + 'static,
        D: FnOnce(&Shared, A, T) + Send + 'static,
        U: FnOnce(&Shared, T) + Send + 'static,
    {
        self.wakeful.touch();
        let _runtime = self.runtime.enter();
        let mut work: Pin<Box<W>> = Box::pin(work);
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => finish(&self.shared, answer, result, deliver),
            Poll::Pending => {
                let shared = self.shared.clone();
                let task = request.pid();
                self.runtime.spawn(async move {
                    tokio::select! {
                        biased;
                        result = &mut work => finish(&shared, answer, result, deliver),
                        () = requester::killed(task) => {
                            // The program is freed; the operation ends as it would have.
                            answer.fail(Errno::EINTR);
                            if let Ok(value) = work.await {
                                undo(&shared, value);
                            }
                        }
                    }
                });
            }
        }
    }
}

fn finish<A: Answer, T>(
    shared: &Shared,
    answer: A,
    result: Result<T, FsError>,
    deliver: impl FnOnce(&Shared, A, T),
) {
    match result {
        Ok(value) => deliver(shared, answer, value),
        Err(error) => {
            debug!(operation = std::any::type_name_of_val(&deliver), %error, "refused");
            answer.fail(errno(error));
        }
    }
}

impl Shared {
    fn lookups(&self) -> &Lookups {
        self.kernel.lookups()
    }

    fn new_handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    /// The open file of a handle that the kernel was given.
    fn file(&self, handle: fuser::FileHandle) -> Result<FileHandle, FsError> {
        self.files.get(&handle.0).map(|file| file.clone()).ok_or_else(|| {
            debug!(handle = handle.0, "the kernel used a handle that is not open");
            FsError::Stale
        })
    }

    fn dir(&self, handle: fuser::FileHandle) -> Result<DirHandle, FsError> {
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
        let cached = self.client.getattr(ino).await?;
        let loses = loses_privileges(&cached.value);
        drop(cached);
        if loses {
            let change = AttrChange { kill_suid_sgid: true, ..AttrChange::default() };
            self.client.setattr(ino, change).await?;
            self.forget_attributes(ino).await;
        }
        Ok(())
    }

    async fn forget_attributes(&self, ino: Ino) {
        let kernel = self.kernel.clone();
        // It can only fail if the runtime is going down, and the mount with it.
        tokio::task::spawn_blocking(move || kernel.invalidate_attributes(ino)).await.ok();
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

//! Takes the kernel's copies back: inodes (attributes and pages) one by one, names all at once.
//!
//! Notifications are written raw, because what the kernel answers matters: an inode that it does not
//! know *yet* (the reply that brings it is still on its way) must be tried again.
//! Called from blocking threads only: invalidating pages waits for the kernel to write dirty ones
//! back, and those are requests to this very daemon.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use gofs_client::KernelCache;
use gofs_tree::Ino;
use parking_lot::Mutex;
use tracing::{debug, error, warn};

use crate::convert::InoMap;
use crate::lookups::Lookups;
use crate::random_reads::RandomReads;
use crate::sys;

/// How long an inode may stay on its way between a reply and the kernel's table. The thread that
/// asked for it has to run in between; a stopped one keeps it there.
const INSTANTIATION_LIMIT: Duration = Duration::from_secs(10);
/// First and longest pause between tries.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(10));

/// The kernel's side of one mount.
struct Connection {
    device: OwnedFd,
    map: InoMap,
    names: bool,
}

/// [`KernelCache`] over `/dev/fuse`. Before [`connect`](KernelNotifier::connect) the kernel has no copies.
#[derive(Default)]
pub struct KernelNotifier {
    connection: OnceLock<Connection>,
    ended: AtomicBool,
    lookups: Arc<Lookups>,
    random_reads: Mutex<RandomReads>,
}

impl KernelNotifier {
    /// Takes a duplicate of the mount's `/dev/fuse` after the handshake and before the first request,
    /// and finds out whether the kernel can drop all names at once.
    pub(crate) fn connect(&self, device: OwnedFd, map: InoMap) {
        let names = match sys::notify_inc_epoch(&device) {
            Ok(()) => true,
            Err(error) => {
                debug!(%error, "the kernel does not take FUSE_NOTIFY_INC_EPOCH");
                false
            }
        };
        if self.connection.set(Connection { device, map, names }).is_err() {
            error!("a second connection for one mount was ignored");
        }
    }

    /// The mount is gone: the kernel has no copies any more, though it did not give its entries back.
    pub(crate) fn disconnect(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// The mount in the kernel while it is there.
    fn connection(&self) -> Option<&Connection> {
        self.connection.get().filter(|_| !self.ended.load(Ordering::Acquire))
    }

    /// The counts of entries that the kernel was given.
    pub(crate) fn lookups(&self) -> &Arc<Lookups> {
        &self.lookups
    }

    /// What the kernel was asked for at random of the pages that it has not.
    pub(crate) fn random_reads(&self) -> &Mutex<RandomReads> {
        &self.random_reads
    }

    /// Whether the kernel has the inode, or a reply that brings it is on its way. It has none before the mount.
    pub fn knows(&self, ino: Ino) -> bool {
        self.connection().is_some_and(|connection| self.lookups.known(connection.map.node(ino)))
    }

    /// Whether the kernel drops pages that a write around its cache is to overwrite, and with them what maps it: older ones did not,
    /// those that can drop names do. What is read while the write is under way the backend has it drop.
    pub(crate) fn drops_overwritten_pages(&self) -> bool {
        self.can_cache_entries()
    }

    fn invalidate(&self, ino: Ino, what: sys::Invalidate) {
        let known =
            || self.connection().is_some_and(|connection| self.lookups.known(connection.map.node(ino)));
        until_taken(ino, known, || match self.connection() {
            Some(connection) => sys::notify_inval_inode(&connection.device, connection.map.node(ino).0, what),
            None => Ok(()),
        });
    }
}

/// Notifies until the kernel took it. `known`: the kernel was sent the inode and has not given it back, so that one
/// which it does not find is still on its way.
fn until_taken(ino: Ino, known: impl Fn() -> bool, mut notify: impl FnMut() -> io::Result<()>) {
    let started = Instant::now();
    let mut pause = RETRY_PAUSE.0;
    while let Err(error) = notify() {
        if disconnected(&error) {
            return;
        }
        if error.kind() != io::ErrorKind::NotFound {
            warn!(%ino, %error, "the kernel refused to drop its copy of an inode; it expires by time");
            return;
        }
        if !known() {
            return;
        }
        if started.elapsed() > INSTANTIATION_LIMIT {
            warn!(%ino, "the kernel has not taken an inode that it was sent; its copy expires by time");
            return;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(RETRY_PAUSE.1);
    }
}

/// Whether the mount is gone, and its copies with it.
fn disconnected(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOTCONN | libc::EPERM | libc::EBADF))
}

impl KernelCache for KernelNotifier {
    fn invalidate_inode(&self, ino: Ino) {
        self.invalidate(ino, sys::Invalidate::AttributesAndPages);
        self.random_reads.lock().forget(ino);
    }

    fn invalidate_pages(&self, ino: Ino, offset: u64, len: u64) {
        self.invalidate(ino, sys::Invalidate::AttributesAndSome { offset, len });
    }

    fn forget_attributes(&self, ino: Ino) {
        let Some(connection) = self.connection() else { return };
        let node = connection.map.node(ino).0;
        match sys::notify_inval_inode(&connection.device, node, sys::Invalidate::Attributes) {
            Ok(()) => {}
            Err(error) if disconnected(&error) || error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!(%ino, %error, "the kernel refused to drop attributes; they expire by time"),
        }
    }

    fn invalidate_entries(&self) {
        let Some(connection) = self.connection().filter(|connection| connection.names) else { return };
        match sys::notify_inc_epoch(&connection.device) {
            Ok(()) => {}
            Err(error) if disconnected(&error) => {}
            Err(error) => error!(%error, "the kernel refused to drop its names; they expire by time"),
        }
    }

    fn can_cache_entries(&self) -> bool {
        self.connection.get().is_some_and(|connection| connection.names)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn nothing_is_cached_before_the_mount() {
        let kernel = KernelNotifier::default();
        assert!(!kernel.can_cache_entries());
        kernel.invalidate_inode(Ino(5));
        kernel.invalidate_entries();
    }

    /// How often the kernel is notified where it answers so, the inode being on its way or not, time after time.
    fn notified(answers: &[(i32, bool)]) -> usize {
        let calls = Cell::new(0);
        let known = || answers[calls.get() - 1].1;
        until_taken(Ino(5), known, || {
            let (errno, _) = answers[calls.replace(calls.get() + 1)];
            if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
        });
        calls.get()
    }

    #[test]
    fn an_inode_on_its_way_is_invalidated_again_until_the_kernel_has_it() {
        let on_its_way = (libc::ENOENT, true);
        assert_eq!(notified(&[on_its_way, on_its_way, on_its_way, (0, true), (0, true)]), 4);
        assert_eq!(notified(&[on_its_way, (libc::ENOENT, false), (0, true)]), 2, "the kernel gave it back");
        assert_eq!(notified(&[on_its_way, (libc::ENODEV, true), (0, true)]), 2, "the mount is gone");
        assert_eq!(notified(&[(libc::EINVAL, true), (0, true)]), 1);
    }
}

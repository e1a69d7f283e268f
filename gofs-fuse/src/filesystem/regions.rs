//! Reads regions of files ahead of programs that read at random.
//!
//! The kernel is told that a region will be needed (posix_fadvise on an open of our own) and reads it by its own rules, so
//! what holds for pages that a program has read (leases, recalls, truncation) holds for these.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Weak;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use gofs_tree::Ino;
use tracing::{debug, info, warn};

use super::Shared;
use crate::backend::{Backend, BackendFile};
use crate::random_reads::{REGION_BYTES, SMALL_BYTES};
use crate::sys;

/// Regions that wait for the thread that asks for them.
const QUEUE: usize = 1024;

/// A region to be read whole for a program that has the file open.
pub(super) struct Wanted {
    handle: u64,
    ino: Ino,
    start: u64,
}

/// Starts the thread that asks the kernel for regions, once the mount is there.
pub(crate) struct RegionReader<B: Backend>(pub(super) Weak<Shared<B>>);

impl<B: Backend> RegionReader<B> {
    /// Returns at once. The thread ends with the mount.
    pub fn start(self, mount_point: &Path) {
        let Some(shared) = self.0.upgrade() else { return };
        let Ok(mount_point) = CString::new(mount_point.as_os_str().as_bytes()) else { return };
        let (queue, wanted) = sync_channel(QUEUE);
        let work = move || self.run(&mount_point, &wanted);
        match std::thread::Builder::new().name("gofs-regions".to_owned()).spawn(work) {
            Ok(_) => drop(shared.wanted_regions.set(queue)),
            Err(error) => warn!(%error, "no thread to read regions with: random reads are slower"),
        }
    }

    fn run(&self, mount_point: &CString, wanted: &Receiver<Wanted>) {
        while let Ok(Wanted { handle, ino, start }) = wanted.recv() {
            let Some(shared) = self.0.upgrade() else { return };
            // A file that the program has closed must not keep the mount busy.
            if !shared.files.contains_key(&handle) {
                shared.kernel.random_reads().lock().not_read(ino, start);
                continue;
            }
            let node = shared.map.node(ino);
            drop(shared);
            match sys::will_need(mount_point, node.0, start, REGION_BYTES) {
                Ok(()) => {}
                // The kernel has given the inode up, or the mount is being taken off.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::StaleNetworkFileHandle | io::ErrorKind::NotConnected
                    ) =>
                {
                    debug!(%ino, start, %error, "a region was not read whole");
                }
                Err(error) => {
                    info!(%error, "regions of files cannot be read whole: random reads are slower");
                    return;
                }
            }
        }
    }
}

impl<B: Backend> Shared<B> {
    /// The kernel has asked for bytes that it did not have.
    pub(super) fn missed(&self, handle: fuser::FileHandle, file: &B::File, offset: u64, len: u32) {
        if len > SMALL_BYTES || file.flags().direct {
            return;
        }
        let Some(queue) = self.wanted_regions.get() else { return };
        let ino = file.ino();
        let Some(start) = self.kernel.random_reads().lock().read(ino, offset, len, Instant::now()) else {
            return;
        };
        if queue.try_send(Wanted { handle: handle.0, ino, start }).is_err() {
            self.kernel.random_reads().lock().not_read(ino, start);
        }
    }
}

/// Where regions are asked for.
pub(super) type Queue = SyncSender<Wanted>;

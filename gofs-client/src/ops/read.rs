//! Reading files.

use std::task::Poll;

use bytes::Bytes;
use gofs_tree::{FsError, LeaseMode};

use crate::cached::Cached;
use crate::client::Client;
use crate::clock::BootTime;
use crate::core::learn::cached;
use crate::core::lease::Again;
use crate::handle::FileHandle;
use crate::lease::{LockedPages, ReadEnd, ReadStart};

impl Client {
    /// `len` bytes from `offset`, in pieces; fewer only at the end of the file. What is read goes into the
    /// kernel's page cache, so it is answered only while the lease is held under which it was read.
    pub async fn read(
        &self,
        file: &FileHandle,
        offset: u64,
        len: u32,
    ) -> Result<Cached<Vec<Bytes>>, FsError> {
        let mut reading = std::pin::pin!(self.read_under_lease(file, offset, len));
        let begun = std::future::poll_fn(|context| Poll::Ready(reading.as_mut().poll(context))).await;
        if let Poll::Ready(read) = begun {
            return read;
        }
        // What goes around the kernel's cache keeps none of its pages locked.
        let pages = (!file.flags().direct).then(|| LockedPages::of(offset, u64::from(len)));
        let _waiting = pages.map(|pages| self.core.wait_with(file.ino(), pages));
        reading.await
    }

    async fn read_under_lease(
        &self,
        file: &FileHandle,
        offset: u64,
        len: u32,
    ) -> Result<Cached<Vec<Bytes>>, FsError> {
        let (core, ino) = (&self.core, file.ino());
        let mut again = Again::default();
        loop {
            let start = core
                .wait_for(|table| match table.begin_read(ino, BootTime::now()) {
                    ReadStart::Wait => None,
                    start => Some(start),
                })
                .await?;
            if let ReadStart::Go(epoch) = start {
                match core.data.read(ino, offset, len).await {
                    Ok(bytes) => {
                        let end = core.wait_for(|table| match table.end_read(ino, epoch, BootTime::now()) {
                            ReadEnd::Wait => None,
                            end => Some(end),
                        });
                        match end.await? {
                            ReadEnd::Answer(permit) => {
                                let bytes = core.table.lock().with_parked(ino, offset, bytes);
                                return Ok(cached(bytes, permit));
                            }
                            ReadEnd::Again | ReadEnd::Wait => continue,
                        }
                    }
                    // The lease went, and with it what was loaded.
                    Err(FsError::NotCached) => {}
                    Err(error) => return Err(error),
                }
            }
            again.turn(core).await;
            drop(core.fetch(ino, LeaseMode::Read).await?);
        }
    }
}

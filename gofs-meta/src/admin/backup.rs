//! `Backup`: an image of the state for people to keep, streamed while writes go on.
//!
//! A thread of its own reads a view of the state; a client that takes nothing for a minute is given up, so that it does not
//! keep the store from clearing away what the view still shows.

use std::io::{self, Write};
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use gofs_proto::cluster::BackupPart;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Admin, wall_clock};
use std::sync::Arc;

/// Bytes in a part.
const PART_BYTES: usize = 1 << 20;
/// Parts that wait for the client.
const PARTS_AHEAD: usize = 4;
/// How long a client may take for a part.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) type Parts = Pin<Box<dyn Stream<Item = Result<BackupPart, Status>> + Send>>;

pub(super) fn stream(admin: &Arc<Admin>) -> Parts {
    let (sender, parts) = mpsc::channel(PARTS_AHEAD);
    let (admin, runtime) = (admin.clone(), Handle::current());
    tokio::task::spawn_blocking(move || {
        let mut out = Out { runtime, sender, part: BytesMut::new(), records: 0, expected: 0 };
        if let Err(status) = write(&admin, &mut out) {
            tracing::warn!(error = status.message(), "a backup was not finished");
            // Whoever went does not listen.
            let _ = out.send(Err(status));
        }
    });
    Box::pin(ReceiverStream::new(parts))
}

fn write(admin: &Admin, out: &mut Out) -> Result<(), Status> {
    let state = admin.group.state();
    let failed = |error: &dyn std::fmt::Display| Status::internal(format!("the backup failed: {error}"));
    out.expected = state.approximate_records().map_err(|error| failed(&error))?;
    let written = std::cell::Cell::new(0);
    let step = |records| {
        written.set(records);
        if admin.group.is_stopping() { Err(io::Error::other("this MetaServer is stopping")) } else { Ok(()) }
    };
    let counted = Counting { out, written: &written };
    let (head, records) = state.write_backup(counted, wall_clock(), step).map_err(|error| failed(&error))?;
    out.records = records;
    let body = out.part.split().freeze();
    out.send(Ok(BackupPart { last: true, ..out.part_of(body) })).map_err(|error| failed(&error))?;
    tracing::info!(index = head.position.index, records, "a backup was taken");
    Ok(())
}

/// Where the bytes of a backup go.
struct Out {
    runtime: Handle,
    sender: mpsc::Sender<Result<BackupPart, Status>>,
    part: BytesMut,
    records: u64,
    expected: u64,
}

impl Out {
    fn part_of(&self, body: Bytes) -> BackupPart {
        BackupPart {
            crc32c: crc32c::crc32c(&body),
            body,
            records: self.records,
            records_expected: self.expected,
            last: false,
        }
    }

    fn send(&self, part: Result<BackupPart, Status>) -> io::Result<()> {
        match self.runtime.block_on(tokio::time::timeout(PATIENCE, self.sender.send(part))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::other("the client went before the end")),
            Err(_) => Err(io::Error::other(format!("the client took nothing for {PATIENCE:?}"))),
        }
    }
}

/// Tells each part how many records were written before it.
struct Counting<'a> {
    out: &'a mut Out,
    written: &'a std::cell::Cell<u64>,
}

impl Write for Counting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.part.extend_from_slice(bytes);
        if self.out.part.len() >= PART_BYTES {
            self.out.records = self.written.get();
            let body = self.out.part.split().freeze();
            self.out.send(Ok(self.out.part_of(body)))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

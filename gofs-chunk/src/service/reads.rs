//! Small reads that have arrived together.
//!
//! What the page cache holds is read on the thread that took the requests off the connection, without waiting, and answered
//! with one system call. For what has to come from a disk one task waits, after the disk was told of all of it.

use std::sync::Arc;

use bytes::Bytes;
use gofs_proto::chunk::{Read, ReadReply};
use gofs_proto::session::Failure;
use gofs_proto::{Link, Replies};
use gofs_tree::{ChunkId, ChunkVersion};

use super::failure::failure;
use super::{Counted, Service, blocking};
use crate::store::Verified;

/// Longer reads are tasks of their own, so that several processors share them.
pub const SMALL_READ_BYTES: u32 = 64 << 10;

/// A request that waits for its answer.
pub struct SmallRead {
    /// Of the frame.
    pub id: u64,
    /// What is asked for.
    pub read: Read,
    /// That it is under way.
    pub _counted: Counted,
}

impl SmallRead {
    fn answer(&self, replies: &mut Replies, result: Result<(ReadReply, Bytes), Failure>) {
        match result {
            Ok((reply, payload)) => replies.reply::<Read>(self.id, &reply, payload),
            Err(failure) => replies.refuse(self.id, &failure),
        }
    }
}

/// Answers all of them. Does not wait.
pub fn serve(service: &Arc<Service>, link: &Arc<Link>, mut reads: Vec<SmallRead>) {
    let mut replies = Replies::default();
    reads.retain(|small| match service.read_at_once(&small.read) {
        Some(found) => {
            small.answer(&mut replies, Ok(found));
            false
        }
        None => true,
    });
    link.reply_all(replies);
    if reads.is_empty() {
        return;
    }
    let (service, link) = (service.clone(), link.clone());
    tokio::spawn(async move {
        let mut replies = Replies::default();
        blocking(|| {
            if let [_, _, ..] = reads[..] {
                for SmallRead { read, .. } in &reads {
                    service.store.will_read(ChunkId(read.chunk), read.offset, read.len);
                }
            }
            for small in &reads {
                small.answer(&mut replies, service.read_here(&small.read));
            }
        });
        // A reader that does not take its replies is not worked for further.
        link.ready().await;
        link.reply_all(replies);
    });
}

impl Service {
    /// `None` where it would have to wait.
    fn read_at_once(&self, read: &Read) -> Option<(ReadReply, Bytes)> {
        let (chunk, version) = (ChunkId(read.chunk), ChunkVersion(read.version));
        self.store.read_at_once(chunk, version, read.offset, read.len).map(answer)
    }

    /// The verified bytes, from wherever they are.
    pub(super) fn read_here(&self, read: &Read) -> Result<(ReadReply, Bytes), Failure> {
        let (chunk, version) = (ChunkId(read.chunk), ChunkVersion(read.version));
        let read = self.store.read_summed(chunk, version, read.offset, read.len);
        read.map(answer).map_err(|error| failure(&error))
    }
}

fn answer(read: Verified) -> (ReadReply, Bytes) {
    (ReadReply { crc32c: read.crc32c }, Bytes::from(read.bytes))
}

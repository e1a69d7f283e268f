//! What each request does.

use bytes::Bytes;
use gofs_proto::chunk::{
    self, Extents, ExtentsReply, Failed, ItemDone, Punch, PunchReply, Read, ReadReply, Stat, StatReply, Sync,
    SyncReply, Write, WriteItem, WriteReply, Writer,
};
use gofs_proto::frame::PAYLOAD_MAX_BYTES;
use gofs_proto::session::Failure;
use gofs_tree::{ChunkId, ChunkVersion, SessionId};

use super::chain::Passing;
use super::failure::{bad_request, failure};
use super::order::Turn;
use super::{Service, blocking};
use crate::clock::BootTime;
use crate::store::{Ack, BLOCK_LEN, BeforeAck, BlockSum, WriteMode, append_crc};

/// Servers that a chain may have behind the receiver.
const CHAIN_MAX: usize = 16;
/// Payloads up to so long are verified, and written to memory, at once: that takes a few microseconds, less than making
/// place for it.
const SHORT_BYTES: usize = 64 << 10;

fn session(writer: &Option<Writer>) -> SessionId {
    SessionId(writer.as_ref().map_or(0, |writer| writer.session))
}

fn ack(sync: bool) -> Ack {
    if sync { Ack::Synced } else { Ack::Cached }
}

/// The bytes of one item, verified.
struct Part {
    bytes: Bytes,
    /// Of its whole blocks, where it begins with one.
    sums: Vec<BlockSum>,
}

impl Part {
    /// Takes the checksum of each block on the way to that of all, so that the bytes are gone through once.
    fn verify(bytes: Bytes, item: &WriteItem) -> Option<Part> {
        if !(item.offset as usize).is_multiple_of(BLOCK_LEN) {
            return (crc32c::crc32c(&bytes) == item.crc32c).then(|| Part { bytes, sums: Vec::new() });
        }
        let (blocks, rest) = bytes.split_at(bytes.len() - bytes.len() % BLOCK_LEN);
        let mut sums = Vec::with_capacity(blocks.len() / BLOCK_LEN);
        let mut whole = 0;
        for block in blocks.chunks_exact(BLOCK_LEN) {
            let crc = crc32c::crc32c(block);
            whole = append_crc(whole, crc);
            sums.push(BlockSum::from_crc(crc));
        }
        (crc32c::crc32c_append(whole, rest) == item.crc32c).then(|| Part { bytes, sums })
    }
}

/// The payload of each item, verified.
fn split(write: &Write, payload: &Bytes) -> Result<Vec<Part>, Failure> {
    let mut at = 0usize;
    let mut parts = Vec::with_capacity(write.items.len());
    for item in &write.items {
        let end = at + item.len as usize;
        if end > payload.len() {
            return Err(bad_request(format!("a write of {} bytes came with {}", end, payload.len())));
        }
        let Some(part) = Part::verify(payload.slice(at..end), item) else {
            return Err(bad_request(format!("bytes for {} were damaged on their way", ChunkId(item.chunk))));
        };
        parts.push(part);
        at = end;
    }
    if at != payload.len() {
        return Err(bad_request(format!("a write of {at} bytes came with {}", payload.len())));
    }
    Ok(parts)
}

/// Whether the local part of a write needs no disk: nothing is read for the block it begins in.
fn is_short(write: &Write, parts: &[Part]) -> bool {
    let bytes: usize = parts.iter().map(|part| part.bytes.len()).sum();
    bytes <= SHORT_BYTES && write.items.iter().all(|item| (item.offset as usize).is_multiple_of(BLOCK_LEN))
}

fn check_chain(chain: &[chunk::Hop]) -> Result<(), Failure> {
    if chain.len() > CHAIN_MAX {
        return Err(bad_request(format!("a chain of more than {CHAIN_MAX} servers")));
    }
    Ok(())
}

impl Service {
    /// Refuses in words what would be refused by the store, before any server has seen it.
    fn admit(
        &self,
        session: SessionId,
        chunk: ChunkId,
        version: ChunkVersion,
        create: bool,
    ) -> Result<(), Failure> {
        drop(self.fences.pass(session, BootTime::now())?);
        self.store.check(chunk, version, create).map_err(|error| failure(&error))
    }

    pub(super) async fn write(
        &self,
        write: Write,
        payload: Bytes,
        mut turn: Turn,
    ) -> Result<WriteReply, Failure> {
        let session = session(&write.writer);
        let parts = check_chain(&write.chain).and_then(|()| match payload.len() <= SHORT_BYTES {
            true => split(&write, &payload),
            false => blocking(|| split(&write, &payload)),
        });
        let mut before = turn.come().await;
        let admitted = parts.and_then(|parts| {
            for item in &write.items {
                self.admit(session, ChunkId(item.chunk), ChunkVersion(item.version), item.create)?;
            }
            Ok(parts)
        });
        let parts = match admitted {
            Ok(parts) => parts,
            Err(failure) => {
                // Those behind must not overtake those before.
                before.settled().await;
                return Err(failure);
            }
        };
        let passing = Passing::start(self, write.clone(), payload, &mut before).await;
        let local = match is_short(&write, &parts) {
            true => self.write_here(&write, &parts, session),
            false => blocking(|| self.write_here(&write, &parts, session)),
        };
        turn.sent(passing.via());
        let local = local.and_then(|(done, before_ack)| {
            if !before_ack.is_empty() {
                let waited = blocking(|| before_ack.into_iter().try_for_each(BeforeAck::wait));
                waited.map_err(|error| failure(&error))?;
            }
            Ok(done)
        });
        // Not behind those after it in the chain: all sync at the same time.
        let local = local.and_then(|done| match write.sync {
            true => blocking(|| self.sync_chunks(write.items.iter().map(|item| item.chunk))).map(|()| done),
            false => Ok(done),
        });
        let downstream = passing.finish(self, before).await;
        let (done, failed) = self.join(&write.chain, local, downstream)?;
        Ok(WriteReply { done, failed })
    }

    fn write_here(
        &self,
        write: &Write,
        parts: &[Part],
        session: SessionId,
    ) -> Result<(Vec<ItemDone>, Vec<BeforeAck>), Failure> {
        let passed = self.fences.pass(session, BootTime::now())?;
        let may_write = || passed.may_write(BootTime::now());
        let mut done = Vec::with_capacity(parts.len());
        let mut before_ack = Vec::new();
        for (item, part) in write.items.iter().zip(parts) {
            let mode = if item.create { WriteMode::Create } else { WriteMode::Existing };
            let (chunk, version) = (ChunkId(item.chunk), ChunkVersion(item.version));
            let Part { bytes, sums } = part;
            let ack = ack(write.sync);
            let written =
                self.store.write_summed(chunk, version, item.offset, bytes, sums, mode, ack, &may_write);
            let (blocks_4k, wait_for) = written.map_err(|error| failure(&error))?;
            done.push(ItemDone { blocks_4k });
            before_ack.extend(wait_for);
        }
        Ok((done, before_ack))
    }

    fn sync_chunks(&self, chunks: impl Iterator<Item = u64>) -> Result<(), Failure> {
        let chunks: Vec<ChunkId> = chunks.map(ChunkId).collect();
        self.store.sync(&chunks).map_err(|error| failure(&error))
    }

    /// The answer of this server and those behind. Where this one failed and others did not, it is one of
    /// those named.
    fn join(
        &self,
        chain: &[chunk::Hop],
        local: Result<Vec<ItemDone>, Failure>,
        downstream: super::chain::Downstream,
    ) -> Result<(Vec<ItemDone>, Vec<Failed>), Failure> {
        match (local, downstream.busy) {
            (_, Some(busy)) => Err(busy),
            (Ok(done), None) => Ok((done, downstream.failed)),
            (Err(failure), None) if chain.is_empty() || downstream.done.is_empty() => Err(failure),
            (Err(failure), None) => {
                tracing::warn!(error = failure.text, "a write failed here and not behind");
                let no_space = failure.fs_error == gofs_tree::FsError::NoSpace.code();
                let own = Failed { server: self.store.server().0, text: failure.text, no_space };
                Ok((downstream.done, [vec![own], downstream.failed].concat()))
            }
        }
    }

    pub(super) async fn punch(&self, punch: Punch, mut turn: Turn) -> Result<PunchReply, Failure> {
        let session = session(&punch.writer);
        let (chunk, version) = (ChunkId(punch.chunk), ChunkVersion(punch.version));
        let mut before = turn.come().await;
        if let Err(failure) =
            check_chain(&punch.chain).and_then(|()| self.admit(session, chunk, version, false))
        {
            before.settled().await;
            return Err(failure);
        }
        let passing = Passing::start(self, punch.clone(), Bytes::new(), &mut before).await;
        let local = blocking(|| {
            let passed = self.fences.pass(session, BootTime::now())?;
            let may_write = || passed.may_write(BootTime::now());
            let ack = ack(punch.sync);
            let blocks = self.store.punch_if(chunk, version, punch.offset, punch.len, ack, &may_write);
            Ok(vec![ItemDone { blocks_4k: blocks.map_err(|error| failure(&error))? }])
        });
        turn.sent(passing.via());
        let local = local.and_then(|done| match punch.sync {
            true => blocking(|| self.sync_chunks([punch.chunk].into_iter())).map(|()| done),
            false => Ok(done),
        });
        let downstream = passing.finish(self, before).await;
        let (done, failed) = self.join(&punch.chain, local, downstream)?;
        Ok(PunchReply { blocks_4k: done.first().map_or(0, |done| done.blocks_4k), failed })
    }

    pub(super) fn read(&self, read: &Read) -> Result<(ReadReply, Bytes), Failure> {
        if read.len as usize > PAYLOAD_MAX_BYTES {
            return Err(bad_request(format!(
                "a read of {} bytes; at most {PAYLOAD_MAX_BYTES} fit",
                read.len
            )));
        }
        blocking(|| self.read_here(read))
    }

    pub(super) fn sync(&self, sync: &Sync) -> Result<SyncReply, Failure> {
        blocking(|| {
            for item in &sync.items {
                let (chunk, asked) = (ChunkId(item.chunk), ChunkVersion(item.version));
                let written = ChunkVersion(item.written);
                let checked = self.store.check_sync(chunk, asked, written);
                checked.map_err(|error| failure(&error))?;
            }
            self.sync_chunks(sync.items.iter().map(|item| item.chunk))?;
            Ok(SyncReply {})
        })
    }

    pub(super) fn extents(&self, extents: &Extents) -> Result<ExtentsReply, Failure> {
        let found = blocking(|| self.store.extents(ChunkId(extents.chunk), ChunkVersion(extents.version)));
        let extents = found.map_err(|error| failure(&error))?;
        let extents = extents
            .iter()
            .map(|range| chunk::Extent { start_4k: range.first, blocks_4k: range.count })
            .collect();
        Ok(ExtentsReply { extents })
    }

    pub(super) fn stat(&self, stat: &Stat) -> Result<StatReply, Failure> {
        let stat = blocking(|| self.store.stat(ChunkId(stat.chunk))).map_err(|error| failure(&error))?;
        Ok(StatReply { version: stat.version.0, len: stat.len_bytes, blocks_4k: stat.blocks })
    }
}

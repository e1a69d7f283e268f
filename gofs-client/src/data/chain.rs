//! Writes to chunks: down the chain of replicas, again and elsewhere until every current replica has them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gofs_proto::chunk::{Failed, Hop, ItemDone, Punch, PunchReply, Write, WriteItem, WriteReply, Writer};
use gofs_proto::kind::Request;
use gofs_proto::session::failure::Code;
use gofs_tree::{ChunkIndex, ChunkServerId, ChunkVersion, FsError, SessionId};

use super::FileData;
use super::chunks::{Chunk, ChunkSpan};
use super::file::File;
use super::gather::Way;
use super::links::{ChunkCallError, Trouble};
use super::locate::READ_ONLY;
use super::retry::Retry;

/// A first hop that takes connections and breaks them is left out after so long: others' trouble may be the reason.
const BROKEN_PATIENCE: Duration = Duration::from_secs(1);

/// Servers that cannot take a write yet are asked so often, in a second and a half, before the MetaServer is.
const BUSY_TRIES: u32 = 7;

/// A write of so many bytes at most, and items, shares a frame with those of other files.
const SMALL_WRITE_BYTES: usize = 64 << 10;
const SMALL_WRITE_ITEMS: usize = 64;

/// A request that is passed on from replica to replica.
pub(super) trait ChainRequest: Request {
    /// The servers that did not take it.
    fn failed(reply: &Self::Reply) -> &[Failed];
}

impl ChainRequest for Write {
    fn failed(reply: &WriteReply) -> &[Failed] {
        &reply.failed
    }
}

impl ChainRequest for Punch {
    fn failed(reply: &PunchReply) -> &[Failed] {
        &reply.failed
    }
}

/// Bytes for one place in a chunk.
pub(super) struct Item {
    pub offset: u32,
    pub pieces: Vec<Bytes>,
}

impl Item {
    pub fn len(&self) -> u32 {
        self.pieces.iter().map(|piece| piece.len() as u32).sum()
    }
}

/// Bytes for one chunk that travel in one frame.
pub(super) struct ChunkWrite {
    pub index: ChunkIndex,
    pub items: Vec<Item>,
}

impl FileData {
    fn writer(&self, session: SessionId) -> Option<Writer> {
        Some(Writer { namespace: self.config.namespace.0, session: session.0 })
    }

    /// Writes until all current replicas have the bytes. `epoch`: see [`FileData::on_chain`].
    pub(super) async fn write_chunk(
        &self,
        file: &File,
        write: &ChunkWrite,
        epoch: u64,
    ) -> Result<(), FsError> {
        let end = write.items.iter().map(|item| u64::from(item.offset) + u64::from(item.len())).max();
        self.totals.change(file, |state| state.chunks.writing(write.index, end.unwrap_or(0)));
        let payload: Vec<Bytes> = write.items.iter().flat_map(|item| item.pieces.iter().cloned()).collect();
        let checksums: Vec<u32> = write
            .items
            .iter()
            .map(|item| item.pieces.iter().fold(0, |crc, piece| crc32c::crc32c_append(crc, piece)))
            .collect();
        let items = |chunk: &Chunk| -> Vec<WriteItem> {
            let items = write.items.iter().zip(&checksums);
            items
                .map(|(item, crc)| WriteItem {
                    chunk: chunk.location.chunk.0,
                    version: chunk.location.version.0,
                    offset: item.offset,
                    len: item.len(),
                    crc32c: *crc,
                    create: !chunk.made,
                })
                .collect()
        };
        let build = |session: SessionId, chunk: &Chunk, chain: Vec<Hop>| Write {
            writer: self.writer(session),
            items: items(chunk),
            chain,
            // By Sync requests, while the edit that shows the bytes is committed.
            sync: false,
        };
        let mut early = self.write_with_others(file, write, &payload, items, epoch).await?;
        loop {
            let (version, done) = match early.take() {
                Some(done) => done,
                None => {
                    let (version, reply) =
                        self.on_chain(file, write.index, epoch, payload.clone(), build).await?;
                    (version, reply.done)
                }
            };
            // Writes to one chunk may be answered in any order: the largest count is the newest while nothing is punched.
            let Some(blocks_4k) = done.iter().map(|done| done.blocks_4k).max() else {
                tracing::error!(ino = %file.ino, index = write.index.0, "a chunk server's WriteReply lacks its items");
                return Err(FsError::Io);
            };
            if self.totals.change(file, |state| state.chunks.written(write.index, version, blocks_4k)) {
                return Ok(());
            }
            // The chunk was placed anew meanwhile, or may be: it is written where it is then.
            self.placed_anew(file).await;
        }
    }

    /// Tries a small write once, in a frame with those of other files. `None`: it was not taken, or not by all.
    async fn write_with_others(
        &self,
        file: &File,
        write: &ChunkWrite,
        payload: &[Bytes],
        items: impl FnOnce(&Chunk) -> Vec<WriteItem>,
        epoch: u64,
    ) -> Result<Option<(ChunkVersion, Vec<ItemDone>)>, FsError> {
        let bytes: usize = payload.iter().map(Bytes::len).sum();
        if bytes > SMALL_WRITE_BYTES || write.items.len() > SMALL_WRITE_ITEMS {
            return Ok(None);
        }
        let Some(chunk) = self.chunk(file, write.index).await? else { return Ok(None) };
        let session = self.session_of(file, epoch)?;
        if chunk.location.version == READ_ONLY || chunk.location.replicas.is_empty() {
            return Ok(None);
        }
        let way = Way { session, servers: chunk.chain(0) };
        let done = self.writes.send(way, items(&chunk), payload.to_vec()).await;
        Ok(done.map(|done| (chunk.location.version, done)))
    }

    /// Makes bytes of a chunk zero on all current replicas.
    pub(super) async fn punch_chunk(&self, file: &File, span: ChunkSpan, epoch: u64) -> Result<(), FsError> {
        let Some(chunk) = self.chunk(file, span.index).await? else { return Ok(()) };
        if !chunk.made {
            // Some replicas may have the chunk and some may not: a zero makes it everywhere.
            let zero = Item { offset: span.offset.0, pieces: vec![Bytes::from_static(&[0])] };
            let write = ChunkWrite { index: span.index, items: vec![zero] };
            self.write_chunk(file, &write, epoch).await?;
        }
        let build = |session: SessionId, chunk: &Chunk, chain: Vec<Hop>| Punch {
            writer: self.writer(session),
            chunk: chunk.location.chunk.0,
            version: chunk.location.version.0,
            offset: span.offset.0,
            len: span.len,
            chain,
            sync: false,
        };
        let (version, reply) = self.on_chain(file, span.index, epoch, Vec::new(), build).await?;
        self.totals.change(file, |state| state.chunks.punched(span.index, version, reply.blocks_4k));
        Ok(())
    }

    /// Sends a request to a chunk's chain until every current replica has taken it, and answers at which version: replicas that
    /// fail are left out, a location that has changed is asked for again. Ends early (`Io`) when the
    /// file was discarded, since `epoch` or before.
    async fn on_chain<R: ChainRequest>(
        &self,
        file: &File,
        index: ChunkIndex,
        epoch: u64,
        payload: Vec<Bytes>,
        build: impl Fn(SessionId, &Chunk, Vec<Hop>) -> R,
    ) -> Result<(ChunkVersion, R::Reply), FsError> {
        let mut retry = Retry::new(self.config.soft_timeout);
        let mut full: BTreeSet<ChunkServerId> = BTreeSet::new();
        let mut turn = 0;
        let mut broken_since = None;
        let mut busy = 0;
        let mut asked = false;
        loop {
            let session = self.session_of(file, epoch)?;
            let Some(chunk) = self.chunk(file, index).await? else {
                tracing::error!(ino = %file.ino, index = index.0, "the chunk of a write is gone");
                return Err(FsError::Io);
            };
            let chain = chunk.chain(turn);
            let Some((first, rest)) = chain.split_first().filter(|_| chunk.location.version != READ_ONLY)
            else {
                // The first time just ask; then wait before each time.
                if chunk.location.lost {
                    retry.lost(&chunk.location).await?;
                } else if std::mem::replace(&mut asked, true) {
                    let why = format!("no replica of chunk {} takes writes", chunk.location.chunk);
                    retry.unreachable(&why).await?;
                }
                self.relocate_to_write(file, epoch, &chunk.location).await?;
                continue;
            };
            let hops = rest.iter().map(|r| Hop { server: r.server.0, address: r.address.clone() }).collect();
            let request = build(session, &chunk, hops);
            let gone = self.links.gone(first, rest).await;
            if let Some((_, error)) = gone.first() {
                let failed = gone.iter().map(|(server, _)| *server).collect();
                self.leave_out(file, epoch, &chunk, failed, &error.to_string(), &mut retry).await?;
                continue;
            }
            let (failed, why) = match self.links.call(first, &request, payload.clone()).await {
                Ok((reply, _)) if R::failed(&reply).is_empty() => return Ok((chunk.location.version, reply)),
                Ok((reply, _)) => {
                    let failed = R::failed(&reply);
                    full.extend(failed.iter().filter(|f| f.no_space).map(|f| ChunkServerId(f.server)));
                    let why = failed.first().map(|f| f.text.clone()).unwrap_or_default();
                    (failed.iter().map(|f| ChunkServerId(f.server)).collect(), why)
                }
                Err(error @ ChunkCallError::Unreachable { trouble, .. }) => {
                    let since = *broken_since.get_or_insert_with(Instant::now);
                    if trouble == Trouble::Broken && since.elapsed() < BROKEN_PATIENCE {
                        retry.unreachable(&error.to_string()).await?;
                        continue;
                    }
                    broken_since = None;
                    (vec![first.server], error.to_string())
                }
                Err(ChunkCallError::Refused { address, failure }) => {
                    let why = format!("{address}: {}", failure.text);
                    match failure.code() {
                        Code::Fs if FsError::from_code(failure.fs_error) == Some(FsError::NoSpace) => {
                            full.insert(first.server);
                            if chain.iter().all(|replica| full.contains(&replica.server)) {
                                return Err(FsError::NoSpace);
                            }
                            // Behind another replica it is one that failed, and can be left out.
                            turn += 1;
                            continue;
                        }
                        Code::StaleChunk => {
                            retry.contradicted(&why).await?;
                            self.relocate_to_write(file, epoch, &chunk.location).await?;
                            continue;
                        }
                        Code::Retry => {
                            retry.unreachable(&why).await?;
                            busy += 1;
                            if busy % BUSY_TRIES == 0 {
                                // A server that has lost the MetaServers takes none for long: they know who is there.
                                self.relocate_to_write(file, epoch, &chunk.location).await?;
                            }
                            continue;
                        }
                        Code::Corrupt | Code::BadRequest => {
                            retry.contradicted(&why).await?;
                            continue;
                        }
                        Code::NoChunk => self.meta.bad_replica(chunk.location.chunk, first.server, false),
                        _ => {}
                    }
                    (vec![first.server], why)
                }
            };
            if chain.iter().all(|replica| full.contains(&replica.server)) {
                return Err(FsError::NoSpace);
            }
            self.leave_out(file, epoch, &chunk, failed, &why, &mut retry).await?;
        }
    }

    /// Has the write go on without the servers that failed; where that is all of them, or the others are away as well, after a
    /// pause and where the MetaServer says then.
    async fn leave_out(
        &self,
        file: &File,
        epoch: u64,
        chunk: &Chunk,
        failed: Vec<ChunkServerId>,
        why: &str,
        retry: &mut Retry,
    ) -> Result<(), FsError> {
        let location = &chunk.location;
        if !location.replicas.iter().all(|replica| failed.contains(&replica.server)) {
            tracing::warn!(ino = %file.ino, chunk = %location.chunk, ?failed, error = %why, "replicas left out");
            match self.replica_failed(file, epoch, location, failed).await {
                Ok(()) => return Ok(()),
                Err(FsError::Io | FsError::Busy) => {}
                Err(error) => return Err(error),
            }
        }
        retry.unreachable(&format!("no replica of chunk {} took a write: {why}", location.chunk)).await?;
        self.relocate_to_write(file, epoch, location).await
    }
}

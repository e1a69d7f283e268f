//! Reads from ChunkServers: verified, from another replica where one fails.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use gofs_proto::chunk::{Extents, ExtentsReply, Read};
use gofs_proto::kind::Request;
use gofs_proto::session::failure::Code;
use gofs_tree::{ByteRange, ChunkOffset, FsError};

use super::chunks::{Chunk, ChunkSpan, spans};
use super::file::File;
use super::links::ChunkCallError;
use super::retry::Retry;
use super::{FileData, Replica};

/// A replica that takes longer is raced by the next one: a dead host is not noticed faster, a disk seldom slower.
const HEDGE_AFTER: Duration = Duration::from_millis(300);
/// Consecutive bytes that are read from one replica while all are well: long enough for its disk to read ahead.
const REPLICA_STRIPE_BYTES: u32 = 4 << 20;
/// Zeros to hand out without allocating.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// `len` zeros in as few pieces as possible.
pub(super) fn push_zeros(mut len: u64, out: &mut Vec<Bytes>) {
    while len > 0 {
        let piece = len.min(ZEROS.len() as u64);
        out.push(Bytes::from_static(&ZEROS[..piece as usize]));
        len -= piece;
    }
}

/// What a replica said.
enum Answer<T> {
    Good(T),
    /// It does not have the chunk.
    Missing,
    /// Its bytes, or what arrived of them, are damaged.
    Corrupt,
}

impl FileData {
    /// The bytes of `range`, which lies within one chunk and has at most 1 MiB.
    pub(super) async fn fetch(&self, file: &File, range: ByteRange) -> Result<Bytes, FsError> {
        let Some(span) = spans(range, self.config.chunk_size).next() else { return Err(FsError::Io) };
        debug_assert_eq!(u64::from(span.len), range.len());
        let read = self.fetch_span(file, span).await?;
        Ok(read.unwrap_or_else(|| {
            let mut zeros = Vec::new();
            push_zeros(range.len(), &mut zeros);
            match <[Bytes; 1]>::try_from(zeros) {
                Ok([one]) => one,
                Err(many) => Bytes::from(many.concat()),
            }
        }))
    }

    async fn fetch_span(&self, file: &File, span: ChunkSpan) -> Result<Option<Bytes>, FsError> {
        self.on_any(
            file,
            span,
            |chunk| Read {
                chunk: chunk.location.chunk.0,
                version: chunk.location.version.0,
                offset: span.offset.0,
                len: span.len,
                copy: false,
            },
            |reply, payload| {
                let whole = payload.len() == span.len as usize && crc32c::crc32c(&payload) == reply.crc32c;
                if whole { Answer::Good(payload) } else { Answer::Corrupt }
            },
        )
        .await
    }

    /// Which bytes of the chunk were written; `None` where it has none.
    pub(super) async fn extents(
        &self,
        file: &File,
        span: ChunkSpan,
    ) -> Result<Option<ExtentsReply>, FsError> {
        self.on_any(
            file,
            span,
            |chunk| Extents { chunk: chunk.location.chunk.0, version: chunk.location.version.0 },
            |reply, _| Answer::Good(reply),
        )
        .await
    }

    /// Asks one replica after the other until one has the answer. `None`: the file has no chunk there, or
    /// it was never written.
    async fn on_any<R: Request, T>(
        &self,
        file: &File,
        span: ChunkSpan,
        build: impl Fn(&Chunk) -> R,
        check: impl Fn(R::Reply, Bytes) -> Answer<T>,
    ) -> Result<Option<T>, FsError> {
        let mut retry = Retry::new(self.config.soft_timeout);
        loop {
            let Some(chunk) = self.chunk(file, span.index).await? else { return Ok(None) };
            let order = self.read_order(&chunk, span.offset);
            // Nothing of it was ever committed, and nobody has it.
            if order.is_empty() && !chunk.made {
                return Ok(None);
            }
            let mut missing = 0;
            let mut bad = 0;
            let mut why = format!("no replica of chunk {} is known", chunk.location.chunk);
            let request = &build(&chunk);
            let mut untried = order.iter();
            let mut asked = FuturesUnordered::new();
            loop {
                if asked.is_empty() {
                    let Some(replica) = untried.next() else { break };
                    asked.push(self.ask(replica, request));
                }
                let hedge = if untried.len() > 0 { HEDGE_AFTER } else { Duration::MAX };
                let (replica, result) = match tokio::time::timeout(hedge, asked.next()).await {
                    Ok(Some(answered)) => answered,
                    Ok(None) => continue,
                    Err(_) => {
                        asked.extend(untried.next().map(|replica| self.ask(replica, request)));
                        continue;
                    }
                };
                let answer = match result {
                    Ok((reply, payload)) => check(reply, payload),
                    Err(ChunkCallError::Refused { failure, .. }) if failure.code() == Code::NoChunk => {
                        Answer::Missing
                    }
                    Err(ChunkCallError::Refused { failure, .. }) if failure.code() == Code::Corrupt => {
                        Answer::Corrupt
                    }
                    Err(error) => {
                        bad += u32::from(matches!(error, ChunkCallError::Refused { .. }));
                        why = error.to_string();
                        continue;
                    }
                };
                let corrupt = matches!(answer, Answer::Corrupt);
                match answer {
                    Answer::Good(value) => return Ok(Some(value)),
                    Answer::Missing if !chunk.made => missing += 1,
                    Answer::Missing | Answer::Corrupt => {
                        bad += 1;
                        why = format!(
                            "chunk {} on {}: {}",
                            chunk.location.chunk,
                            replica.address,
                            if corrupt { "bytes fail their checksum" } else { "not there" }
                        );
                        tracing::warn!(ino = %file.ino, chunk = %chunk.location.chunk, server = %replica.server, error = %why, "bad replica");
                        self.meta.bad_replica(chunk.location.chunk, replica.server, corrupt);
                    }
                }
            }
            drop(asked);
            if missing > 0 && missing == order.len() {
                return Ok(None);
            }
            if order.is_empty() && chunk.location.lost {
                retry.lost(&chunk.location).await?;
            } else if bad > 0 {
                retry.contradicted(&why).await?;
            } else {
                retry.unreachable(&why).await?;
            }
            self.relocate(file, &chunk.location).await?;
        }
    }

    async fn ask<'a, R: Request>(
        &self,
        replica: &'a Replica,
        request: &R,
    ) -> (&'a Replica, Result<(R::Reply, Bytes), ChunkCallError>) {
        (replica, self.links.call(replica, request, Vec::new()).await)
    }

    /// Replicas in the order in which they are read: spread over the chunk, so that a sequential reader has all of
    /// them work for it and each keeps its own part in memory; servers that failed a moment ago last.
    fn read_order(&self, chunk: &Chunk, offset: ChunkOffset) -> Vec<Replica> {
        let mut order = chunk.chain((offset.0 / REPLICA_STRIPE_BYTES) as usize);
        order.sort_by_key(|replica| self.links.is_suspect(replica));
        order
    }
}

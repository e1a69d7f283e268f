//! Replicas that failed whoever used them: left out, probed or verified, and what that means for the chunk.
//!
//! A session is believed that it could not use a replica, never that bytes are bad or gone: that is for the
//! ChunkServer to say. What a writer could not write to leaves the replicas ([`Changing`]), or the write fails.

use std::{sync::Arc, time::Instant};

use gofs_tree::{ChunkId, ChunkServerId, ChunkVersion, FsError};

use super::{
    ChunkService,
    changing::{Changed, Changing},
};
use crate::{
    chunks::{Location, Replica, Servers, Wanted},
    state::ChunkRecord,
};

impl ChunkService {
    /// A writer says that these replicas did not take its bytes. They are left out: the others move to a new
    /// version, which is committed and answered. A call with an old version gets the
    /// present location. A chunk that nobody has is placed anew where it is `blank`: nothing in it was ever acknowledged to the one
    /// session that may write it. `Io` where every replica is said to have failed, `Busy` where it cannot be said now: answer
    /// RETRY; `NotFound` where the chunk is not there.
    pub async fn replica_failed(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        failed: &[ChunkServerId],
        blank: bool,
    ) -> Result<(ChunkVersion, Servers), FsError> {
        let live = || self.record(chunk).filter(|record| !record.deleted).ok_or(FsError::NotFound);
        if live()?.version == version {
            let changing = Changing::wait_to_begin(self, chunk).await?;
            let record = live()?;
            if record.version == version {
                return self.leave_out(&changing, &record, failed, blank).await;
            }
        }
        match self.for_writing(chunk, blank).await {
            Location::At { version, servers } => Ok((version, servers)),
            Location::Wait | Location::Unwritten | Location::Absent { may_return: true } => {
                Err(FsError::Busy)
            }
            Location::Absent { may_return: false } => Err(FsError::Io),
            Location::NoChunk => Err(FsError::NotFound),
        }
    }

    async fn leave_out(
        &self,
        changing: &Changing<'_>,
        record: &ChunkRecord,
        failed: &[ChunkServerId],
        blank: bool,
    ) -> Result<(ChunkVersion, Servers), FsError> {
        let chunk = changing.chunk();
        tracing::warn!(chunk = chunk.0, version = record.version.0, ?failed, "replicas failed in a write");
        match changing.replicas(Wanted { without: failed, ..Wanted::default() }).await {
            Changed::Committed { version, holders, .. } => Ok((version, self.addresses(&holders))),
            Changed::NoSurvivor if blank && self.is_to_be_placed(chunk, record, failed) => {
                changing.place_anew(record, failed).await
            }
            // Servers have not had the time to say what they have.
            Changed::NoSurvivor if !self.is_settled() => Err(FsError::Busy),
            Changed::NoSurvivor if self.others_exist(chunk, record.version, failed) => Err(FsError::Busy),
            Changed::NoSurvivor => {
                tracing::error!(chunk = chunk.0, ?failed, "no replica of a chunk is left to write to");
                Err(FsError::Io)
            }
            Changed::Lost => Err(FsError::Busy),
        }
    }

    /// A client found bad bytes on a server (`corrupt`), or no chunk where it knows of one. A replica with bad bytes is not
    /// read from until its server has verified it; found bad, it is replaced and then deleted. One that
    /// is really not there is left out, and replaced; one that its server never told of is no longer expected.
    pub fn bad_replica(&self, chunk: ChunkId, server: ChunkServerId, corrupt: bool) {
        let mut leader = self.leader.lock();
        let known = leader.directory.entry(chunk).and_then(|entry| entry.on(server));
        let Some(replica) = known.filter(|replica| replica.confirmed || !corrupt) else { return };
        let confirmed = replica.confirmed;
        if !leader.directory.suspect(server, chunk, Instant::now()) {
            return;
        }
        tracing::warn!(chunk = chunk.0, server = server.0, corrupt, "a client could not read a replica");
        if corrupt {
            leader.verify(server, chunk);
        } else {
            drop(leader);
            if let Some(service) = self.own.upgrade() {
                if confirmed {
                    tokio::spawn(service.probe(chunk, server));
                } else {
                    tokio::spawn(service.probe_promises(chunk));
                }
            }
        }
    }

    /// Asks all servers that were promised a chunk and never told of it: they had it and lost it with their power before they did.
    /// Those that say that they do not have it are not expected to any more.
    pub(super) async fn probe_promises(self: Arc<Self>, chunk: ChunkId) {
        // Whoever asks is about to ask for another place, too.
        let Ok(changing) = Changing::wait_to_begin(&self, chunk).await else { return };
        let promised: Vec<(ChunkServerId, ChunkVersion)> = {
            let leader = self.leader.lock();
            let replicas = leader.directory.entry(chunk).map_or(&[][..], |entry| &entry.replicas);
            let promised = replicas.iter().filter(|it| !it.confirmed && leader.servers.is_alive(it.server));
            promised.map(|replica| (replica.server, replica.version)).collect()
        };
        for (server, version) in promised {
            let answer = changing.is_there(server, version).await;
            let mut leader = self.leader.lock();
            // It may have been made since, and told.
            let is_promise = |it: &Replica| !it.confirmed;
            if leader.directory.entry(chunk).and_then(|entry| entry.on(server)).is_some_and(is_promise)
                && let Some(Err(error)) = answer
            {
                tracing::warn!(
                    chunk = chunk.0,
                    server = server.0,
                    error,
                    "a replica was lost before it was told of"
                );
                leader.directory.remove(server, chunk);
            } else {
                // Where there is no answer it is asked again when a client says so again.
                leader.directory.cleared(server, chunk);
            }
        }
    }

    /// Asks a server whether it has the chunk as it has told; if not, the chunk goes on without it.
    async fn probe(self: Arc<Self>, chunk: ChunkId, server: ChunkServerId) {
        if let Ok(changing) = Changing::wait_to_begin(&self, chunk).await {
            let known = self.leader.lock().directory.entry(chunk).and_then(|entry| entry.on(server).cloned());
            let Some(Replica { version, .. }) = known else { return };
            if let Some(Err(error)) = changing.is_there(server, version).await {
                tracing::warn!(chunk = chunk.0, server = server.0, error, "a replica is not where it was");
                if self.record(chunk).is_some_and(|record| record.version == version) {
                    changing.replicas(Wanted { without: &[server], ..Wanted::default() }).await;
                }
                return;
            }
        }
        // Where there is no answer it is asked again when a client says so again. The end of its connection, or its
        // silence, is dealt with as such.
        self.leader.lock().directory.cleared(server, chunk);
    }

    /// Whether a blank chunk of which no replica could be raised gets another place: nobody ever had it, and a live server outside
    /// `failed` that was promised it still has not got it, after it was asked, so nothing was ever acknowledged on all of them.
    /// To be asked while nobody else changes the chunk and right before that is done: servers tell of it, and flushes are committed,
    /// while others are asked.
    pub(super) fn is_to_be_placed(
        &self,
        chunk: ChunkId,
        record: &ChunkRecord,
        failed: &[ChunkServerId],
    ) -> bool {
        self.never_seen(chunk, record) && self.someone_lacks(chunk, record, failed)
    }

    /// Whether the chunk was placed in this term, is as it was placed, and neither a server nor a
    /// flush ever said that there are bytes in it. What is older than where it was placed last does not count.
    fn never_seen(&self, chunk: ChunkId, record: &ChunkRecord) -> bool {
        let leader = self.leader.lock();
        let new = leader.directory.entry(chunk).is_some_and(|entry| {
            entry.placed.is_some_and(|(version, _)| version == record.version)
                && entry
                    .replicas
                    .iter()
                    .filter(|replica| replica.version >= record.version)
                    .all(|replica| !replica.confirmed && replica.version == record.version)
        });
        drop(leader);
        new && self.is_unwritten(record)
    }

    /// Whether a live server outside `failed` was promised the chunk and has not told that it has it.
    fn someone_lacks(&self, chunk: ChunkId, record: &ChunkRecord, failed: &[ChunkServerId]) -> bool {
        let leader = self.leader.lock();
        leader.directory.entry(chunk).is_some_and(|entry| {
            entry.replicas.iter().any(|replica| {
                !replica.confirmed
                    && replica.version == record.version
                    && !failed.contains(&replica.server)
                    && leader.servers.is_alive(replica.server)
            })
        })
    }

    /// Whether another server has the chunk, or may have it and had no time to say so, which is dead or did not answer and may do so
    /// later.
    fn others_exist(&self, chunk: ChunkId, version: ChunkVersion, failed: &[ChunkServerId]) -> bool {
        let (leader, now) = (self.leader.lock(), Instant::now());
        let is_fresh = |since| now.saturating_duration_since(since) < self.config.promise;
        leader.directory.entry(chunk).is_some_and(|entry| {
            entry.replicas.iter().any(|replica| {
                (replica.confirmed || is_fresh(replica.since))
                    && replica.version >= version
                    && !replica.corrupt
                    && !failed.contains(&replica.server)
            })
        })
    }
}

//! What a state that was restored from a backup must not take for granted.
//!
//! After the backup the cluster went on: it gave out inode numbers, chunks, sessions and versions that the image does not
//! know, and ChunkServers and mounts may still have them. So a restore moves every counter far past what can
//! have been given out, ends the sessions of the image, begins a later term, and leaves this record, which tells
//! those who decide about chunks what is not certain any more: which unknown chunks may be all that is left of a file, and
//! which committed versions were perhaps followed by others.

use gofs_tree::{ChunkId, ChunkVersion, CodecError, EditIndex, Ino, NamespaceId, SessionId, Timestamp};

use super::apply::Batch;
use super::backup::{Backup, read_backup};
use super::image::BLOCK_BYTES;
use super::key::{self, kind};
use super::record::{LogPosition, Record};
use super::view::Changes;
use super::{StateError, StateStore};
use crate::chunks::first_version_of;
use crate::codec::{Reader, Writer};

/// Terms that the cluster may have gone through since the backup. Epochs of leases have 24 bits for terms, so this can be
/// done a thousand times.
const TERMS: u64 = 1 << 14;
/// Ids that it may have given out: of inodes in each namespace, of chunks and of sessions.
const IDS: u64 = 1 << 40;
/// Namespaces that it may have made.
const NAMESPACES: u32 = 1 << 12;

/// Left by a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// How often this cluster was restored.
    pub times: u32,
    /// Last entry of the EditLog that the backup held.
    pub index: EditIndex,
    /// Checksum of the backup's records. MetaServers restored from different backups are different clusters.
    pub digest: u32,
    /// When the backup was made.
    pub time: Timestamp,
    /// Chunks below were made before the restore.
    pub chunks_below: ChunkId,
    /// Unknown ones from here to `chunks_below` are kept.
    pub kept_from: ChunkId,
    /// Versions below were chosen before the restore.
    pub versions_below: ChunkVersion,
    /// ChunkServers have reported since, or had their time to.
    pub settled: bool,
}

impl Restored {
    /// Whether an unknown chunk of that id may belong to a file that the backup does not know, or knows without it.
    pub fn keeps(&self, chunk: ChunkId) -> bool {
        (self.kept_from..self.chunks_below).contains(&chunk)
    }

    /// Whether a replica of a later version may have been committed after the backup.
    pub fn is_uncertain(&self, chunk: ChunkId, version: ChunkVersion) -> bool {
        chunk < self.chunks_below && version < self.versions_below
    }

    /// What tells clusters apart that were restored from different backups.
    pub fn tag(&self) -> [u8; 8] {
        let mut tag = [0; 8];
        tag[..4].copy_from_slice(&self.digest.to_le_bytes());
        tag[4..].copy_from_slice(&(self.index.0 as u32).to_le_bytes());
        tag
    }

    pub(super) fn write(&self, out: &mut Writer<'_>) {
        out.u32(self.times);
        out.u64(self.index.0);
        out.u32(self.digest);
        out.i64(self.time.secs);
        out.u32(self.time.nanos);
        out.u64(self.chunks_below.0);
        out.u64(self.kept_from.0);
        out.u64(self.versions_below.0);
        out.bool(self.settled);
    }

    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Restored {
            times: from.u32()?,
            index: EditIndex(from.u64()?),
            digest: from.u32()?,
            time: Timestamp::new(from.i64()?, from.u32()?),
            chunks_below: ChunkId(from.u64()?),
            kept_from: ChunkId(from.u64()?),
            versions_below: ChunkVersion(from.u64()?),
            settled: from.bool()?,
        })
    }
}

impl StateStore {
    /// Replaces the state, which must be empty, by that of a backup, made fit to go on. `membership` encodes who the
    /// MetaServers are from the position on that it is given. The same backup gives the same state everywhere. On error
    /// the store is of no use.
    pub(crate) fn restore(
        &self,
        path: &std::path::Path,
        membership: impl FnOnce(LogPosition) -> Result<bytes::Bytes, String>,
    ) -> Result<(Backup, LogPosition), StateError> {
        let failed = |reason: String| StateError::storage(path, reason);
        let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
        let from = std::io::BufReader::with_capacity(BLOCK_BYTES, file);
        let backup = self.replace(path, |put| read_backup(from, put))?;
        let at =
            LogPosition { term: backup.head.position.term + TERMS, index: backup.head.position.index + 1 };
        let membership = membership(at).map_err(failed)?;
        let _writer = self.shared.writer.lock();
        let mut batch = Batch::new(self);
        let Some(()) = batch.go_on_after_restore(&backup, at)? else {
            return Err(failed("this cluster was restored too often: its ids are used up".into()));
        };
        batch.set(key::MEMBERSHIP.to_vec(), Record::Membership(membership));
        batch.set(key::APPLIED.to_vec(), Record::Applied(at));
        self.commit(batch.into_changes())?;
        self.shared.applied.store(at.index, std::sync::atomic::Ordering::Release);
        Ok((backup, at))
    }
}

impl Batch<'_> {
    /// `None`: an id would overflow.
    fn go_on_after_restore(&mut self, backup: &Backup, at: LogPosition) -> Result<Option<()>, StateError> {
        let before = self.restored()?;
        let mut counters = self.counters()?;
        // Numbers that sessions had reserved may have become chunks of files since.
        let mut unknown_from = counters.next_chunk;
        for (key, record) in self.scan(&[kind::RESERVED], usize::MAX)? {
            let Record::Reserved(reserved) = record else { return Err(self.shared.misplaced(&key)) };
            unknown_from =
                reserved.chunks.first().map_or(unknown_from, |first| unknown_from.min(ChunkId(first)));
        }
        for (key, record) in self.scan(&[kind::SESSION], usize::MAX)? {
            let Record::Session(session) = record else { return Err(self.shared.misplaced(&key)) };
            // Its namespace may be gone.
            let _ = self.end_session(session.id, false)?;
        }
        let ids = [counters.next_chunk.0, counters.next_session.0].map(|next| next.checked_add(IDS));
        let [Some(next_chunk), Some(next_session)] = ids else { return Ok(None) };
        let Some(next_namespace) = counters.next_namespace.0.checked_add(NAMESPACES) else { return Ok(None) };
        counters.next_chunk = ChunkId(next_chunk);
        counters.next_session = SessionId(next_session);
        counters.next_namespace = NamespaceId(next_namespace);
        self.set_counters(counters);
        for (key, record) in self.scan(&[kind::USAGE], usize::MAX)? {
            let Record::Usage { usage, next_ino } = record else { return Err(self.shared.misplaced(&key)) };
            let Some(next_ino) = next_ino.0.checked_add(IDS).map(Ino) else { return Ok(None) };
            self.set(key, Record::Usage { usage, next_ino });
        }
        let kept_before = before.filter(|before| before.kept_from < before.chunks_below);
        let restored = Restored {
            times: before.map_or(0, |before| before.times) + 1,
            index: EditIndex(backup.head.position.index),
            digest: backup.digest,
            time: backup.head.time,
            chunks_below: counters.next_chunk,
            kept_from: kept_before.map_or(unknown_from, |before| before.kept_from.min(unknown_from)),
            versions_below: first_version_of(at.term),
            settled: false,
        };
        self.set(key::RESTORED.to_vec(), Record::Restored(restored));
        Ok(Some(()))
    }

    /// What a restore left.
    pub(super) fn restored(&self) -> Result<Option<Restored>, StateError> {
        match self.get(key::RESTORED)? {
            Some(Record::Restored(restored)) => Ok(Some(restored)),
            Some(_) => Err(self.shared.misplaced(key::RESTORED)),
            None => Ok(None),
        }
    }

    /// ChunkServers have had their time to report to the restored cluster.
    pub(super) fn settle_restored(&mut self) -> Result<(), StateError> {
        if let Some(restored) = self.restored()? {
            self.set(key::RESTORED.to_vec(), Record::Restored(Restored { settled: true, ..restored }));
        }
        Ok(())
    }

    /// Unknown chunks of before the restore are kept no more.
    pub(super) fn discard_unknown(&mut self) -> Result<(), StateError> {
        if let Some(restored) = self.restored()? {
            let restored = Restored { kept_from: restored.chunks_below, ..restored };
            self.set(key::RESTORED.to_vec(), Record::Restored(restored));
        }
        Ok(())
    }
}

impl<'a> Batch<'a> {
    fn new(store: &'a StateStore) -> Self {
        Batch { store, shared: &store.shared, changes: Changes::new() }
    }

    fn into_changes(self) -> Changes {
        self.changes
    }
}

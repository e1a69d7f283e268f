//! The chunk store: chunks on one or several data directories, every block checksummed.
//!
//! Sync code that may be called from many threads. Reads never return bytes whose checksum does not fit.
//! What a write did is in the page cache when it returns, so it outlives the process; [`Store::sync`] makes it outlive
//! the machine. A directory that fails is taken out and the others go on; its chunks are then not here.

mod block;
mod boot;
mod changes;
mod chunk;
mod disk;
mod distrust;
mod error;
mod file;
mod home;
pub mod identity;
mod index;
mod log;
#[allow(unsafe_code, reason = "system calls that std lacks")]
mod sys;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gofs_tree::{ChunkId, ChunkServerId, ChunkVersion};
use parking_lot::{Mutex, RwLock};
use rand::RngExt;

pub use block::{BLOCK_LEN, BLOCKS_MAX, BlockRange, BlockSum, append_crc};
pub use boot::BootId;
pub use changes::{Changes, ChunkInfo, Taken};
pub use chunk::Doubt;
pub use disk::{Ack, BeforeAck, ChunkStat, Data, Disk, DiskStatus, MayWrite, OpenError, Verified, WriteMode};
pub use error::StoreError;
pub use file::{FileWatch, Watch};
use identity::{ClusterId, Identity, IdentityError};

/// Locks that keep a chunk from being made on two disks at once.
const CREATE_LOCKS: usize = 64;

/// How a store is to work.
#[derive(Clone)]
pub struct StoreOptions {
    /// Bytes of a log segment, at most; small disks get smaller ones.
    pub segment_bytes: u32,
    /// A chunk of more blocks than this gets a file of its own.
    pub small_blocks: u32,
    /// Bytes of each file system that chunks leave free; `None`: 1 %, at most 1 GiB.
    pub reserve_bytes: Option<u64>,
    /// The boot of the host; tests make their own.
    pub boot: BootId,
    /// Sees all file accesses; for tests.
    pub watch: Watch,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            segment_bytes: 64 << 20,
            small_blocks: 16,
            reserve_bytes: None,
            boot: BootId::current(),
            watch: None,
        }
    }
}

impl StoreOptions {
    fn reserve(&self, capacity_bytes: u64) -> u64 {
        let segments = 4 * u64::from(self.segment_bytes);
        self.reserve_bytes
            .unwrap_or_else(|| (capacity_bytes / 100).clamp(segments.min(capacity_bytes / 8), 1 << 30))
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreOpenError {
    /// A directory is not this server's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Directories of different servers or clusters were given together.
    #[error(
        "{} belongs to {here}, {} to {there}: give each server its own directories", path.display(), other.display()
    )]
    Mixed {
        /// One directory.
        path: PathBuf,
        /// Whose it is.
        here: String,
        /// Another.
        other: PathBuf,
        /// Whose that is.
        there: String,
    },
    /// None of the directories can be used.
    #[error("no data directory can be used; {0}")]
    NoDisk(String),
}

enum Slot {
    Up { disk: Arc<Disk>, identity: Mutex<Identity> },
    Down { path: PathBuf, why: String },
}

/// All data directories of a server.
pub struct Store {
    server: ChunkServerId,
    cluster: RwLock<Option<ClusterId>>,
    slots: Vec<Slot>,
    changes: Arc<Changes>,
    creating: Vec<Mutex<()>>,
    boot: BootId,
}

impl Store {
    /// Opens the directories, making those that are empty. Some may fail, as long as one works.
    pub fn open(dirs: &[PathBuf], options: &StoreOptions) -> Result<Store, StoreOpenError> {
        let changes = Arc::new(Changes::default());
        let mut claims = Vec::new();
        let mut slots = Vec::new();
        for dir in dirs {
            match identity::claim(dir) {
                Ok(claim) => claims.push((dir, claim)),
                Err(error @ (IdentityError::Io { .. } | IdentityError::Damaged { .. })) => {
                    slots.push(down(dir, &error))
                }
                Err(error) => return Err(error.into()),
            }
        }
        let known: Vec<(&PathBuf, Identity)> = claims
            .iter()
            .filter_map(|(dir, claim)| claim.identity.map(|identity| (*dir, identity)))
            .collect();
        let (server, cluster) = agree(&known)?;
        let server = server.unwrap_or_else(|| ChunkServerId(rand::rng().random_range(1..u64::MAX)));
        let starts = known.iter().map(|(_, identity)| identity.starts).max().unwrap_or(0) + 1;
        let mut used = Vec::new();
        for (dir, claim) in claims {
            let wanted = Identity {
                cluster,
                server,
                disk: claim.identity.map_or_else(|| rand::rng().random(), |id| id.disk),
                starts,
            };
            let used_until = claim.identity.map_or(starts, |identity| identity.starts);
            let opened = identity::write(dir, &wanted).map_err(|error| error.to_string()).and_then(|()| {
                Disk::open(dir, wanted.disk, claim, options, changes.clone())
                    .map_err(|error| error.to_string())
            });
            slots.push(match opened {
                Ok(disk) => {
                    let disk = Arc::new(disk);
                    used.push((disk.clone(), used_until));
                    Slot::Up { disk, identity: Mutex::new(wanted) }
                }
                Err(error) => down(dir, &error),
            });
        }
        if !slots.iter().any(|slot| matches!(slot, Slot::Up { .. })) {
            let whys = slots.iter().filter_map(|slot| match slot {
                Slot::Down { path, why } => Some(format!("{}: {why}", path.display())),
                Slot::Up { .. } => None,
            });
            return Err(StoreOpenError::NoDisk(whys.collect::<Vec<_>>().join("; ")));
        }
        let creating = (0..CREATE_LOCKS).map(|_| Mutex::default()).collect();
        let store =
            Store { server, cluster: RwLock::new(cluster), slots, changes, creating, boot: options.boot };
        drop_doubles(&used);
        Ok(store)
    }

    /// The server whose directories these are.
    pub fn server(&self) -> ChunkServerId {
        self.server
    }

    /// As long as it stays the same, every write that was acknowledged is there, synced or not.
    pub fn incarnation(&self) -> u64 {
        self.boot.incarnation()
    }

    /// The cluster that adopted it.
    pub fn cluster(&self) -> Option<ClusterId> {
        *self.cluster.read()
    }

    /// Remembers, for good, the cluster that adopted the server.
    pub fn adopt(&self, cluster: ClusterId) -> Result<(), IdentityError> {
        for slot in &self.slots {
            if let Slot::Up { disk, identity } = slot {
                let mut identity = identity.lock();
                let adopted = Identity { cluster: Some(cluster), ..*identity };
                identity::write(disk.path(), &adopted)?;
                *identity = adopted;
            }
        }
        *self.cluster.write() = Some(cluster);
        Ok(())
    }

    /// What changed, for the heartbeat.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// The directories in service.
    pub fn disks(&self) -> impl Iterator<Item = &Arc<Disk>> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Up { disk, .. } if disk.is_up() => Some(disk),
            _ => None,
        })
    }

    /// All directories, those out of service too.
    pub fn status(&self) -> Vec<DiskStatus> {
        let status = |slot: &Slot| match slot {
            Slot::Up { disk, .. } => disk.status(),
            Slot::Down { path, why } => DiskStatus {
                path: path.clone(),
                capacity_bytes: 0,
                free_bytes: 0,
                error: Some(why.clone()),
                last_scrub_unix_s: 0,
            },
        };
        self.slots.iter().map(status).collect()
    }

    /// Damaged blocks found since the start.
    pub fn corrupt_blocks(&self) -> u64 {
        self.slots
            .iter()
            .map(|slot| if let Slot::Up { disk, .. } = slot { disk.corrupt_blocks() } else { 0 })
            .sum()
    }

    /// How many chunks are here.
    pub fn chunk_count(&self) -> u64 {
        self.disks().map(|disk| disk.chunk_count() as u64).sum()
    }

    /// Every live chunk.
    pub fn list(&self) -> Vec<ChunkInfo> {
        self.disks()
            .flat_map(|disk| disk.chunk_ids().into_iter().filter_map(|chunk| disk.info(chunk)))
            .collect()
    }

    /// The directories that were in service at the start.
    fn opened(&self) -> impl Iterator<Item = &Arc<Disk>> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Up { disk, .. } => Some(disk),
            Slot::Down { .. } => None,
        })
    }

    /// The directory that has the chunk. One that has failed is found too, and refuses: the chunk must not be made anew
    /// elsewhere, unless by a copy, which is newer.
    fn find(&self, chunk: ChunkId) -> Result<&Arc<Disk>, StoreError> {
        self.find_up(chunk).or_else(|error| self.opened().find(|disk| disk.holds(chunk)).ok_or(error))
    }

    /// The same where only those in service count.
    fn find_up(&self, chunk: ChunkId) -> Result<&Arc<Disk>, StoreError> {
        self.disks().find(|disk| disk.holds(chunk)).ok_or(StoreError::NoChunk { chunk })
    }

    /// The directory that a write in this mode finds the chunk in.
    fn find_for(&self, chunk: ChunkId, mode: WriteMode) -> Result<&Arc<Disk>, StoreError> {
        match mode {
            WriteMode::Existing | WriteMode::Create => self.find(chunk),
            WriteMode::CopyFirst | WriteMode::Copy => self.find_up(chunk),
        }
    }

    /// Writes bytes and returns the blocks that the chunk then has. In the page cache when this returns. With
    /// [`Ack::Synced`] nobody may be told before [`Store::sync`] has returned.
    pub fn write(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u32,
        bytes: &[u8],
        mode: WriteMode,
        ack: Ack,
    ) -> Result<u32, StoreError> {
        let (blocks, before_ack) =
            self.write_summed(chunk, version, offset, bytes, &[], mode, ack, &|| true)?;
        before_ack.map_or(Ok(()), BeforeAck::wait)?;
        Ok(blocks)
    }

    /// As [`Store::write`], but waits for no sync: the caller does, before it tells anybody. `sums` are the checksums of the whole blocks from `offset` on, as far as they are known,
    /// where that is the start of a block.
    #[allow(clippy::too_many_arguments, reason = "they are the request's")]
    pub fn write_summed(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u32,
        bytes: &[u8],
        sums: &[BlockSum],
        mode: WriteMode,
        ack: Ack,
        may_write: MayWrite<'_>,
    ) -> Result<(u32, Option<BeforeAck>), StoreError> {
        let data = Data::new(offset, bytes, sums);
        if matches!(mode, WriteMode::Existing | WriteMode::Copy) {
            return self.find_for(chunk, mode)?.write(chunk, version, data, mode, ack, may_write);
        }
        let _creating = match self.find_for(chunk, mode) {
            Ok(disk) => return disk.write(chunk, version, data, mode, ack, may_write),
            Err(_) => self.creating[chunk.0 as usize % CREATE_LOCKS].lock(),
        };
        let disk = match self.find_for(chunk, mode) {
            Ok(disk) => disk,
            Err(_) => self.choose()?,
        };
        disk.write(chunk, version, data, mode, ack, may_write)
    }

    /// The disk of a new chunk: by chance, in proportion to the space that each has.
    fn choose(&self) -> Result<&Arc<Disk>, StoreError> {
        let free: Vec<_> = self.disks().map(|disk| (disk, disk.free_bytes())).collect();
        let total: u64 = free.iter().map(|(_, bytes)| bytes).sum();
        let Some(mut pick) = (total > 0).then(|| rand::rng().random_range(0..total)) else {
            let disk = free.first().map(|(disk, _)| disk.path().to_owned()).unwrap_or_default();
            return Err(StoreError::NoSpace { disk });
        };
        for (disk, bytes) in free {
            if pick < bytes {
                return Ok(disk);
            }
            pick -= bytes;
        }
        unreachable!("pick is less than the sum")
    }

    /// Makes a range read as zeros and returns the blocks that the chunk then has.
    pub fn punch(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u32,
        len: u32,
        ack: Ack,
    ) -> Result<u32, StoreError> {
        self.punch_if(chunk, version, offset, len, ack, &|| true)
    }

    /// As [`Store::punch`], where the writer may still write when the chunk is locked.
    pub fn punch_if(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u32,
        len: u32,
        ack: Ack,
        may_write: MayWrite<'_>,
    ) -> Result<u32, StoreError> {
        self.find(chunk)?.punch(chunk, version, offset, len, ack, may_write)
    }

    /// Reads verified bytes; those never written are zeros.
    pub fn read(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u32,
        len: u32,
    ) -> Result<Vec<u8>, StoreError> {
        Ok(self.read_summed(chunk, version, offset, len)?.bytes)
    }

    /// As [`Store::read`], with the checksum of all of it.
    pub fn read_summed(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u32,
        len: u32,
    ) -> Result<Verified, StoreError> {
        self.find(chunk)?.read(chunk, version, offset, len)
    }

    /// As [`Store::read_summed`], if memory has all of it; `None` says nothing.
    pub fn read_at_once(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u32,
        len: u32,
    ) -> Option<Verified> {
        self.find(chunk).ok()?.read_at_once(chunk, version, offset, len)
    }

    /// The range is going to be read: has the disk begin.
    pub fn will_read(&self, chunk: ChunkId, offset: u32, len: u32) {
        if let Ok(disk) = self.find(chunk) {
            disk.will_read(chunk, offset, len);
        }
    }

    /// Which blocks were written: sorted, disjoint, not touching.
    pub fn extents(&self, chunk: ChunkId, version: ChunkVersion) -> Result<Vec<BlockRange>, StoreError> {
        self.find(chunk)?.extents(chunk, version)
    }

    /// Version, length, blocks.
    pub fn stat(&self, chunk: ChunkId) -> Result<ChunkStat, StoreError> {
        self.find(chunk)?.stat(chunk)
    }

    /// As [`Store::stat`] for who is going to copy the chunk to here: what a directory that has failed holds of it is in
    /// nobody's way.
    pub fn stat_before_copy(&self, chunk: ChunkId) -> Result<ChunkStat, StoreError> {
        self.find_up(chunk)?.stat(chunk)
    }

    /// Whether a write at this version would be let in, without doing it.
    pub fn check(&self, chunk: ChunkId, version: ChunkVersion, create: bool) -> Result<(), StoreError> {
        match self.stat(chunk) {
            Ok(stat) if stat.version == version => Ok(()),
            Ok(stat) => Err(StoreError::Stale { chunk, stored: stat.version, asked: version }),
            Err(StoreError::NoChunk { .. }) if create => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether a sync of the chunk at this version would keep all that was acknowledged: `written` is the version at which the
    /// first write was that is to be synced, 0 where that is not known.
    pub fn check_sync(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        written: ChunkVersion,
    ) -> Result<(), StoreError> {
        self.find(chunk)?.check_sync(chunk, version, written)
    }

    /// Brings what was written to these chunks so far onto stable storage.
    pub fn sync(&self, chunks: &[ChunkId]) -> Result<(), StoreError> {
        // Those that have failed too: they refuse.
        for disk in self.opened() {
            let is_here = |chunk: &ChunkId| self.find(*chunk).is_ok_and(|found| Arc::ptr_eq(found, disk));
            let here: Vec<ChunkId> = chunks.iter().copied().filter(is_here).collect();
            if !here.is_empty() {
                disk.sync(&here)?;
            }
        }
        Ok(())
    }

    /// Moves the version; durable when this returns. Nothing happens where it is `to` already.
    pub fn set_version(
        &self,
        chunk: ChunkId,
        from: ChunkVersion,
        to: ChunkVersion,
        doubt: Doubt,
    ) -> Result<(), StoreError> {
        self.find(chunk)?.set_version(chunk, from, to, doubt)
    }

    /// Deletes the chunk where its version is at most `version`. One that is not here is deleted already.
    pub fn delete(&self, chunk: ChunkId, version: Option<ChunkVersion>) -> Result<(), StoreError> {
        match self.find(chunk) {
            Ok(disk) => disk.delete(chunk, version),
            Err(_) => Ok(()),
        }
    }

    /// Removes a copy that is not complete.
    pub fn discard(&self, chunk: ChunkId) -> Result<(), StoreError> {
        match self.find_up(chunk) {
            Ok(disk) => disk.discard(chunk),
            Err(_) => Ok(()),
        }
    }

    /// Makes a chunk that was copied visible; durable when this returns.
    pub fn publish(&self, chunk: ChunkId) -> Result<(), StoreError> {
        self.find_up(chunk)?.publish(chunk)
    }

    /// Reads everything of a chunk; see [`Disk::verify`].
    pub fn verify(&self, chunk: ChunkId) -> Result<(), StoreError> {
        self.find(chunk)?.verify(chunk, |_| true)
    }

    /// Refuses everything from now on, and lets another process have the directories.
    pub fn retire(&self) {
        self.opened().for_each(|disk| disk.retire());
    }

    /// Brings everything onto stable storage and shortens the next start.
    pub fn close(&self) -> Result<(), StoreError> {
        let mut result = Ok(());
        for disk in self.disks() {
            let closed = disk.close();
            if result.is_ok() {
                result = closed;
            }
        }
        result
    }
}

/// A chunk is on two disks when one of them was away for a while: the newer stays, and of two that have the same
/// version the one on the disk that was used last.
fn drop_doubles(used: &[(Arc<Disk>, u64)]) {
    for (i, (disk, starts)) in used.iter().enumerate() {
        for chunk in disk.chunk_ids() {
            for (other, other_starts) in &used[i + 1..] {
                let (Some(a), Some(b)) = (disk.info(chunk), other.info(chunk)) else { continue };
                let rank = |info: ChunkInfo, starts: u64| (info.version, starts, !info.corrupt);
                let worse = if rank(a, *starts) <= rank(b, *other_starts) { disk } else { other };
                tracing::warn!(%chunk, disk = %worse.path().display(), "on two data directories: the older goes");
                if let Err(error) = worse.delete(chunk, None) {
                    tracing::error!(%chunk, %error, "chunk stays on two data directories");
                }
            }
        }
    }
}

fn down(path: &Path, error: &dyn std::fmt::Display) -> Slot {
    tracing::error!(disk = %path.display(), %error, "data directory is not used");
    Slot::Down { path: path.to_owned(), why: error.to_string() }
}

/// The server and cluster that all directories name; a directory without cluster fits any.
fn agree(
    known: &[(&PathBuf, Identity)],
) -> Result<(Option<ChunkServerId>, Option<ClusterId>), StoreOpenError> {
    let Some((first_dir, first)) = known.first() else { return Ok((None, None)) };
    let mixed = |dir: &Path, here: String, there: String| StoreOpenError::Mixed {
        path: dir.to_owned(),
        here,
        other: (*first_dir).clone(),
        there,
    };
    let mut cluster: Option<ClusterId> = None;
    for (dir, identity) in known {
        if identity.server != first.server {
            return Err(mixed(
                dir,
                format!("server {}", identity.server),
                format!("server {}", first.server),
            ));
        }
        match (cluster, identity.cluster) {
            (Some(a), Some(b)) if a != b => {
                return Err(mixed(
                    dir,
                    format!("cluster {}", identity::hex(&b)),
                    format!("cluster {}", identity::hex(&a)),
                ));
            }
            (None, found) => cluster = found,
            _ => {}
        }
    }
    Ok((Some(first.server), cluster))
}

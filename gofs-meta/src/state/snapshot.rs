//! Snapshots: the whole state in one file, and the store's directory made from one.
//!
//! File: magic, then blocks ([`image`](super::image)): the head, which has the version, the records, and after the block that
//! ends them their count. A Snapshot is written under another name and renamed when it is whole and durable; one that is
//! cut is never used.
//!
//! Installing builds a new store directory beside the old one, makes it durable and then moves
//! `CURRENT`; a crash leaves either the old state or the new one.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::disk::Disk;
use super::image::{BLOCK_BYTES, Records, invalid, read_block, read_records, write_block};
use super::record::{LogPosition, Record};
use super::{Shared, StateConfig, StateError, StateStore, key};
use crate::codec::{Reader, Writer};

const MAGIC: &[u8; 8] = b"gofssnap";
const VERSION: u8 = 1;
const CURRENT: &str = "CURRENT";

/// What a Snapshot holds, up to which entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotHead {
    /// Last entry applied; `None` where none was.
    pub position: Option<LogPosition>,
    /// Who the MetaServers were, as raft wrote it.
    pub membership: Option<Bytes>,
    /// The cluster's identity.
    pub cluster: Option<[u8; 16]>,
}

/// A whole Snapshot on disk.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    pub path: PathBuf,
}

/// Opens the valid generation in `dir`, or makes the first; clears what a crash left behind.
pub(super) fn open_current(dir: &Path, config: StateConfig) -> Result<Disk, StateError> {
    let failed = |error: io::Error| StateError::storage(dir, error);
    fs::create_dir_all(dir).map_err(failed)?;
    let name = match fs::read_to_string(dir.join(CURRENT)) {
        Ok(name) => name.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = generation_name(1);
            set_current(dir, &name).map_err(failed)?;
            name
        }
        Err(error) => return Err(failed(error)),
    };
    if generation_of(&name).is_none() {
        return Err(StateError::storage(dir, format!("{CURRENT} names {name:?}, which is no generation")));
    }
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let other = entry.file_name().to_string_lossy().into_owned();
        if other != name && generation_of(&other).is_some() {
            fs::remove_dir_all(entry.path()).map_err(failed)?;
        }
    }
    Disk::open(&dir.join(name), config.block_cache_bytes)
}

/// Makes the generation after the present one, which is left as it is, and has `CURRENT` name it. See
/// [`StateStore::make_anew`].
pub(super) fn make_anew(
    dir: &Path,
    config: StateConfig,
    snapshot: Option<&SnapshotFile>,
) -> Result<(), StateError> {
    let failed = |error: io::Error| StateError::storage(dir, error);
    let present = fs::read_to_string(dir.join(CURRENT)).map_err(failed)?;
    let (name, path) = next_generation(dir, Some(present.trim())).map_err(failed)?;
    let disk = Disk::open(&path, config.block_cache_bytes)?;
    if let Some(snapshot) = snapshot {
        let from = |error: io::Error| StateError::storage(&snapshot.path, error);
        disk.fill(|put| snapshot.records(put).map_err(from))?;
    }
    disk.persist()?;
    set_current(dir, &name).map_err(failed)
}

/// Name and directory of the generation after that one; there is nothing there yet.
fn next_generation(dir: &Path, present: Option<&str>) -> io::Result<(String, PathBuf)> {
    let name = generation_name(present.and_then(generation_of).unwrap_or(0) + 1);
    let path = dir.join(&name);
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    Ok((name, path))
}

fn generation_name(generation: u64) -> String {
    format!("state-{generation}")
}

fn generation_of(name: &str) -> Option<u64> {
    name.strip_prefix("state-")?.parse().ok()
}

fn set_current(dir: &Path, name: &str) -> io::Result<()> {
    let temporary = dir.join("CURRENT.new");
    let mut file = File::create(&temporary)?;
    file.write_all(name.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(CURRENT))?;
    File::open(dir)?.sync_all()
}

impl SnapshotHead {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = Writer(&mut bytes);
        out.u8(VERSION);
        out.bool(self.position.is_some());
        let at = self.position.unwrap_or_default();
        out.u64(at.term);
        out.u64(at.index);
        out.bool(self.membership.is_some());
        out.bytes(self.membership.as_deref().unwrap_or_default());
        out.bool(self.cluster.is_some());
        out.raw(&self.cluster.unwrap_or_default());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, gofs_tree::CodecError> {
        let mut from = Reader::new("head of a Snapshot", bytes);
        from.version(VERSION)?;
        let has_position = from.bool()?;
        let position = LogPosition { term: from.u64()?, index: from.u64()? };
        let has_membership = from.bool()?;
        let membership = Bytes::copy_from_slice(from.bytes()?);
        let has_cluster = from.bool()?;
        let cluster = from.array()?;
        from.end()?;
        Ok(SnapshotHead {
            position: has_position.then_some(position),
            membership: has_membership.then_some(membership),
            cluster: has_cluster.then_some(cluster),
        })
    }
}

impl SnapshotFile {
    /// Opens the file and reads its head.
    pub fn head(&self) -> io::Result<SnapshotHead> {
        Ok(self.open()?.0)
    }

    fn open(&self) -> io::Result<(SnapshotHead, BufReader<File>)> {
        let mut from = BufReader::with_capacity(BLOCK_BYTES, File::open(&self.path)?);
        let mut magic = [0; MAGIC.len()];
        from.read_exact(&mut magic)?;
        if &magic != MAGIC {
            return Err(invalid("not a Snapshot"));
        }
        let head = SnapshotHead::decode(&read_block(&mut from)?)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok((head, from))
    }

    /// Gives every record, in order, to `take`; fails unless the file is whole to its last byte.
    fn records(&self, take: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<SnapshotHead> {
        let (head, mut from) = self.open()?;
        let sum = read_records(&mut from, take)?;
        let end = read_block(&mut from)?;
        if end != sum.records.to_le_bytes() || from.read(&mut [0])? != 0 {
            return Err(invalid("the count of records does not match"));
        }
        Ok(head)
    }
}

impl StateStore {
    /// Writes a Snapshot of the newest state to `path` without stopping writes. When it returns, file and
    /// state are durable up to the head's position at least.
    pub(crate) fn write_snapshot(&self, path: &Path) -> Result<SnapshotHead, StateError> {
        let disk = self.shared.disk()?;
        let view = disk.view();
        disk.persist()?;
        let head = self.shared.head_at(&disk, &view)?;
        let failed = |error: io::Error| StateError::storage(path, error);
        let temporary = path.with_extension("new");
        let mut out = BufWriter::with_capacity(BLOCK_BYTES, File::create(&temporary).map_err(failed)?);
        out.write_all(MAGIC).map_err(failed)?;
        write_block(&mut out, &head.encode()).map_err(failed)?;
        let mut records = Records::new(out);
        for pair in disk.range(Some(&view), &[], &[]) {
            let (key, value) = pair?;
            // A damaged record must not spread to another MetaServer.
            self.shared.decode(&key, &value)?;
            records.put(&key, &value).map_err(failed)?;
        }
        let finish = || -> io::Result<()> {
            let (mut out, sum) = records.finish()?;
            write_block(&mut out, &sum.records.to_le_bytes())?;
            out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&temporary, path)?;
            match path.parent() {
                Some(dir) => File::open(dir)?.sync_all(),
                None => Ok(()),
            }
        };
        finish().map_err(failed)?;
        Ok(head)
    }

    /// Replaces the whole state by a Snapshot's. On error the state is what it was.
    pub(crate) fn install_snapshot(&self, snapshot: &SnapshotFile) -> Result<SnapshotHead, StateError> {
        self.replace(&snapshot.path, |put| snapshot.records(put))
    }

    /// Replaces the whole state by the records that `records` gives in order, which come from the file `from`.
    pub(super) fn replace<T>(
        &self,
        from: &Path,
        records: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<T>,
    ) -> Result<T, StateError> {
        let shared = &self.shared;
        let _writer = shared.writer.lock();
        let present = shared.disk()?;
        let present_name = present.path().file_name().map(|name| name.to_string_lossy().into_owned());
        let failed = |error: io::Error| StateError::storage(from, error);
        let (name, path) = next_generation(&shared.dir, present_name.as_deref()).map_err(failed)?;
        let disk = Disk::open(&path, shared.config.block_cache_bytes)?;
        let given = disk.fill(|put| records(put).map_err(failed))?;
        disk.persist()?;
        let applied = match disk.get(None, key::APPLIED)? {
            Some(value) => match shared.decode(key::APPLIED, &value)? {
                Record::Applied(at) => at.index,
                _ => return Err(shared.misplaced(key::APPLIED)),
            },
            None => 0,
        };
        set_current(&shared.dir, &name).map_err(failed)?;
        *shared.disk.write() = Some(Arc::new(disk));
        shared.cache.clear();
        shared.applied.store(applied, Ordering::Release);
        let old = present.path().to_owned();
        drop(present);
        // Readers may still look at the old files, which stay as long as they are open.
        if let Err(error) = fs::remove_dir_all(&old) {
            tracing::warn!(path = %old.display(), %error, "the replaced state is removed at the next start");
        }
        Ok(given)
    }
}

impl Shared {
    /// What a view of the store holds, and up to which entry.
    pub(super) fn head_at(&self, disk: &Disk, view: &fjall::Snapshot) -> Result<SnapshotHead, StateError> {
        let fetch = |key: &[u8]| match disk.get(Some(view), key)? {
            Some(value) => self.decode(key, &value).map(Some),
            None => Ok(None),
        };
        let position = match fetch(key::APPLIED)? {
            Some(Record::Applied(position)) => Some(position),
            _ => None,
        };
        let membership = match fetch(key::MEMBERSHIP)? {
            Some(Record::Membership(bytes)) => Some(bytes),
            _ => None,
        };
        let cluster = match fetch(key::CLUSTER)? {
            Some(Record::Cluster(cluster)) => Some(cluster),
            _ => None,
        };
        Ok(SnapshotHead { position, membership, cluster })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_of_a_head() {
        let head = SnapshotHead {
            position: Some(LogPosition { term: 2, index: 0x0103 }),
            membership: Some(Bytes::from_static(b"us")),
            cluster: None,
        };
        let golden =
            [&b"\x01\x01\x02\0\0\0\0\0\0\0\x03\x01\0\0\0\0\0\0"[..], b"\x01\x02\0\0\0us", &[0; 17]].concat();
        assert_eq!(head.encode(), golden);
        assert_eq!(SnapshotHead::decode(&golden), Ok(head));
        let newer = [&[VERSION + 1][..], &golden[1..]].concat();
        assert!(SnapshotHead::decode(&newer).unwrap_err().to_string().contains('2'));
    }
}

//! Backups: an image of the whole state at one entry of the EditLog, for people to keep.
//!
//! File: magic, then blocks ([`image`](super::image)): the head, the records, and after the block that ends them the number of
//! records and a checksum over all of them. The head says of which cluster, namespaces and moment it is, so that a
//! file can be told from another without its records. What is cut or changed anywhere is refused as a whole.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use bytes::Bytes;
use gofs_tree::{CodecError, Encode, NamespaceId, Timestamp, Usage};

use super::disk::Disk;
use super::image::{BLOCK_BYTES, Records, Sum, invalid, read_block, read_records, write_block};
use super::key::{self, kind};
use super::record::{LogPosition, Record};
use super::{StateError, StateStore};
use crate::codec::{Reader, Writer};

const MAGIC: &[u8; 8] = b"gofsback";
const VERSION: u8 = 1;
/// Records between two looks at whether the backup is still wanted.
const RECORDS_A_STEP: u64 = 4096;

/// A namespace in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupNamespace {
    /// Its id.
    pub id: NamespaceId,
    /// Its name.
    pub name: String,
    /// What it used.
    pub usage: Usage,
}

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupHead {
    /// The cluster's identity.
    pub cluster: [u8; 16],
    /// The last entry of the EditLog that is in it.
    pub position: LogPosition,
    /// When it was begun, by the clock of the MetaServer.
    pub time: Timestamp,
    /// Version of gofs-meta that wrote it.
    pub written_by: String,
    /// Who the MetaServers were, as raft wrote it.
    pub(crate) membership: Bytes,
    /// The namespaces.
    pub namespaces: Vec<BackupNamespace>,
}

/// A backup as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// What it is of.
    pub head: BackupHead,
    /// Records in it.
    pub records: u64,
    /// CRC32C of all records.
    pub digest: u32,
    /// Bytes of the file.
    pub bytes: u64,
}

impl BackupHead {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = Writer(&mut bytes);
        out.u8(VERSION);
        out.raw(&self.cluster);
        out.u64(self.position.term);
        out.u64(self.position.index);
        out.i64(self.time.secs);
        out.u32(self.time.nanos);
        out.str(&self.written_by);
        out.bytes(&self.membership);
        out.u32(u32::try_from(self.namespaces.len()).expect("ids of namespaces have 32 bits"));
        for namespace in &self.namespaces {
            out.u32(namespace.id.0);
            out.str(&namespace.name);
            out.nested(|buffer| namespace.usage.encode(buffer));
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut from = Reader::new("head of a backup", bytes);
        from.version(VERSION)?;
        let cluster = from.array()?;
        let position = LogPosition { term: from.u64()?, index: from.u64()? };
        let time = Timestamp::new(from.i64()?, from.u32()?);
        let written_by = from.str()?;
        let membership = Bytes::copy_from_slice(from.bytes()?);
        let mut namespaces = Vec::with_capacity(from.count(12)?);
        for _ in 0..namespaces.capacity() {
            let (id, name) = (NamespaceId(from.u32()?), from.str()?);
            namespaces.push(BackupNamespace { id, name, usage: Usage::decode(from.bytes()?)? });
        }
        from.end()?;
        Ok(BackupHead { cluster, position, time, written_by, membership, namespaces })
    }
}

/// Counts what passes.
struct Counted<T> {
    inner: T,
    bytes: u64,
}

impl<T: Read> Read for Counted<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

/// Reads a backup from its first to its last byte and gives its records, in order, to `take`. Fails unless it is whole.
pub(super) fn read_backup(
    from: impl Read,
    take: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
) -> io::Result<Backup> {
    let mut from = Counted { inner: from, bytes: 0 };
    let cut = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => invalid("it ends too early: the backup was cut"),
        _ => error,
    };
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic).map_err(cut)?;
    if &magic != MAGIC {
        return Err(invalid("it is no backup of gofs"));
    }
    let head = read_block(&mut from).map_err(cut)?;
    let head =
        BackupHead::decode(&head).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let sum = read_records(&mut from, take).map_err(cut)?;
    let end = read_block(&mut from).map_err(cut)?;
    if end != end_block(sum) || from.read(&mut [0])? != 0 {
        return Err(invalid("its records are not those that were written"));
    }
    Ok(Backup { head, records: sum.records, digest: sum.digest, bytes: from.bytes })
}

fn end_block(sum: Sum) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut out = Writer(&mut bytes);
    out.u64(sum.records);
    out.u32(sum.digest);
    bytes
}

/// Reads a backup's file from its first to its last byte; fails unless it is whole.
pub fn verify_backup(path: &Path) -> io::Result<Backup> {
    read_backup(BufReader::with_capacity(BLOCK_BYTES, File::open(path)?), |_, _| Ok(()))
}

impl StateStore {
    /// Roughly how many records there are.
    pub(crate) fn approximate_records(&self) -> Result<u64, StateError> {
        Ok(self.shared.disk()?.approximate_records())
    }

    /// Writes a backup of the newest state to `out` without stopping writes. `step` is told how many records were written,
    /// now and then, and ends it by an error. Takes long.
    pub(crate) fn write_backup(
        &self,
        out: impl Write,
        time: Timestamp,
        mut step: impl FnMut(u64) -> io::Result<()>,
    ) -> Result<(BackupHead, u64), StateError> {
        let disk = self.shared.disk()?;
        let view = disk.view();
        let failed = |error: io::Error| StateError::storage(disk.path(), error);
        let head = self.backup_head(&disk, &view, time)?;
        let mut out = out;
        out.write_all(MAGIC).map_err(failed)?;
        write_block(&mut out, &head.encode()).map_err(failed)?;
        let mut records = Records::new(out);
        for pair in disk.range(Some(&view), &[], &[]) {
            let (key, value) = pair?;
            // A backup with a damaged record would be found out when it is needed.
            self.shared.decode(&key, &value)?;
            records.put(&key, &value).map_err(failed)?;
            if records.count().is_multiple_of(RECORDS_A_STEP) {
                step(records.count()).map_err(failed)?;
            }
        }
        let (mut out, sum) = records.finish().map_err(failed)?;
        write_block(&mut out, &end_block(sum)).map_err(failed)?;
        out.flush().map_err(failed)?;
        Ok((head, sum.records))
    }

    fn backup_head(
        &self,
        disk: &Disk,
        view: &fjall::Snapshot,
        time: Timestamp,
    ) -> Result<BackupHead, StateError> {
        let head = self.shared.head_at(disk, view)?;
        let (Some(cluster), Some(position), Some(membership)) =
            (head.cluster, head.position, head.membership)
        else {
            return Err(StateError::storage(disk.path(), "the cluster is being made: try again"));
        };
        let mut namespaces = Vec::new();
        for pair in disk.range(Some(view), &[kind::NAMESPACE], &[kind::NAMESPACE + 1]) {
            let (key, value) = pair?;
            let (Record::Namespace { name, .. }, Some(id)) =
                (self.shared.decode(&key, &value)?, key::namespace_of(&key))
            else {
                return Err(self.shared.misplaced(&key));
            };
            let usage_key = key::usage(id);
            let usage = match disk.get(Some(view), &usage_key)? {
                Some(value) => self.shared.decode(&usage_key, &value)?,
                None => return Err(self.shared.misplaced(&usage_key)),
            };
            let Record::Usage { usage, .. } = usage else { return Err(self.shared.misplaced(&usage_key)) };
            namespaces.push(BackupNamespace { id, name, usage });
        }
        let written_by = env!("CARGO_PKG_VERSION").to_owned();
        Ok(BackupHead { cluster, position, time, written_by, membership, namespaces })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_of_a_backup() {
        let head = BackupHead {
            cluster: [7; 16],
            position: LogPosition { term: 3, index: 0x0102 },
            time: Timestamp { secs: 5, nanos: 6 },
            written_by: "0.1".into(),
            membership: Bytes::from_static(b"us"),
            namespaces: vec![BackupNamespace {
                id: NamespaceId(2),
                name: "ns".into(),
                usage: Usage { bytes: 8, inodes: 9 },
            }],
        };
        let golden = [
            &b"\x01"[..],
            &[7; 16],
            b"\x03\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0",
            b"\x05\0\0\0\0\0\0\0\x06\0\0\0",
            b"\x03\0\0\x000.1",
            b"\x02\0\0\0us",
            b"\x01\0\0\0",
            b"\x02\0\0\0\x02\0\0\0ns\x11\0\0\0\x01\x08\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0",
        ]
        .concat();
        assert_eq!(head.encode(), golden);
        assert_eq!(BackupHead::decode(&golden), Ok(head));
        let newer = [&[VERSION + 1][..], &golden[1..]].concat();
        assert!(matches!(BackupHead::decode(&newer), Err(CodecError::Version { version: 2, .. })));
        assert_eq!(end_block(Sum { records: 1, digest: 0x0203 }), b"\x01\0\0\0\0\0\0\0\x03\x02\0\0");

        let mut records = Records::new(Vec::new());
        records.put(b"k", b"v").unwrap();
        let (bytes, sum) = records.finish().unwrap();
        let block = b"\x01\0\0\0k\x01\0\0\0v";
        let crc = crc32c::crc32c(block).to_le_bytes();
        assert_eq!(bytes, [&b"\x0a\0\0\0"[..], &crc, block, &[0; 8]].concat());
        assert_eq!((sum.records, sum.digest.to_le_bytes()), (1, crc));
    }
}

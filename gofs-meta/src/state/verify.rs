//! Walks every record and checks its bytes.

use super::{StateError, StateStore, key, record};

/// What a walk over all records found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Records read.
    pub records: u64,
    /// Keys of damaged records, for people, with what is wrong. At most [`DAMAGED_MAX`] are listed.
    pub damaged: Vec<String>,
    /// Damaged records, listed or not.
    pub damaged_records: u64,
}

/// Most damaged records listed.
pub const DAMAGED_MAX: usize = 1000;

impl StateStore {
    /// Reads every record of one consistent view past the caches and checks it. Takes long; runs beside writes.
    pub fn verify(&self) -> Result<Verified, StateError> {
        let disk = self.shared.disk()?;
        let view = disk.view();
        let mut verified = Verified::default();
        for pair in disk.range(Some(&view), &[], &[]) {
            let (key, value) = pair?;
            verified.records += 1;
            if let Err(damage) = record::open(&key, &value) {
                verified.damaged_records += 1;
                if verified.damaged.len() < DAMAGED_MAX {
                    verified.damaged.push(format!("{}: {damage}", key::show(&key)));
                }
            }
        }
        Ok(verified)
    }
}

/// What all records come to. MetaServers that applied the same entries have the same digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Last entry applied.
    pub applied: gofs_tree::EditIndex,
    /// Records.
    pub records: u64,
    /// CRC32C of all keys and values in order.
    pub crc32c: u32,
}

impl StateStore {
    /// Reads every record of one consistent view. Takes long; runs beside writes.
    pub fn digest(&self) -> Result<Digest, StateError> {
        let disk = self.shared.disk()?;
        let view = disk.view();
        let mut digest = Digest { applied: gofs_tree::EditIndex(0), records: 0, crc32c: 0 };
        if let Some(value) = disk.get(Some(&view), key::APPLIED)?
            && let record::Record::Applied(at) = self.shared.decode(key::APPLIED, &value)?
        {
            digest.applied = gofs_tree::EditIndex(at.index);
        }
        for pair in disk.range(Some(&view), &[], &[]) {
            let (key, value) = pair?;
            digest.records += 1;
            for part in [&key, &value] {
                digest.crc32c = crc32c::crc32c_append(digest.crc32c, &(part.len() as u64).to_le_bytes());
                digest.crc32c = crc32c::crc32c_append(digest.crc32c, part);
            }
        }
        Ok(digest)
    }
}

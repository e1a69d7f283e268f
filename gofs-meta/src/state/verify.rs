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
        let disk = self.shared.disk();
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

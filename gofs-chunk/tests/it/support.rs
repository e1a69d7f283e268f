//! What several tests share.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use gofs_chunk::store::{BLOCK_LEN, FileWatch, StoreOptions};
use gofs_tree::ChunkId;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// Seeds to run: `GOFS_SEED` alone if it is set, else the first `count`.
pub fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("GOFS_SEED") {
        Ok(seed) => vec![seed.parse().expect("GOFS_SEED is a number")],
        Err(_) => (1..=count).collect(),
    }
}

/// Says how to repeat a failure when a test panics.
pub struct Seed(pub u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with GOFS_SEED={}", self.0);
        }
    }
}

/// Small segments and small chunks, so that everything the store does happens soon.
pub fn options() -> StoreOptions {
    StoreOptions {
        segment_bytes: 1 << 20,
        small_blocks: 4,
        reserve_bytes: Some(16 << 20),
        ..StoreOptions::default()
    }
}

type Once = Box<dyn FnOnce() + Send>;

/// Does something else, once, when a chunk's own file is about to be synced.
#[derive(Default)]
pub struct AtSync(Mutex<Option<(ChunkId, Once)>>);

impl AtSync {
    pub fn of(&self, chunk: ChunkId, then: impl FnOnce() + Send + 'static) {
        *self.0.lock() = Some((chunk, Box::new(then)));
    }

    pub fn is_done(&self) -> bool {
        self.0.lock().is_none()
    }
}

impl FileWatch for AtSync {
    fn will_sync(&self, path: &Path) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let due = self.0.lock().take_if(|(chunk, _)| name.starts_with(&format!("{:016x}-", chunk.0)));
        due.into_iter().for_each(|(_, then)| then());
        Ok(())
    }
}

/// Incompressible bytes.
pub fn bytes(rng: &mut StdRng, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    rng.fill_bytes(&mut out);
    out
}

/// A deterministic generator.
pub fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// A chunk as it should be.
#[derive(Clone, Default, Debug, PartialEq)]
pub struct Model {
    pub version: u64,
    pub bytes: Vec<u8>,
    pub blocks: BTreeSet<u32>,
}

impl Model {
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.blocks.extend((offset / BLOCK_LEN) as u32..end.div_ceil(BLOCK_LEN) as u32);
        }
    }

    pub fn punch(&mut self, offset: usize, len: usize) {
        let end = (offset + len).min(self.bytes.len());
        if offset < end {
            self.bytes[offset..end].fill(0);
        }
        for block in offset.div_ceil(BLOCK_LEN)..(offset + len) / BLOCK_LEN {
            self.blocks.remove(&(block as u32));
        }
    }

    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        let end = (offset + len).min(self.bytes.len());
        if offset < end {
            out[..end - offset].copy_from_slice(&self.bytes[offset..end]);
        }
        out
    }

    pub fn extents(&self) -> Vec<(u32, u32)> {
        let mut extents: Vec<(u32, u32)> = Vec::new();
        for block in &self.blocks {
            match extents.last_mut() {
                Some((first, count)) if *first + *count == *block => *count += 1,
                _ => extents.push((*block, 1)),
            }
        }
        extents
    }
}

/// All chunks as they should be.
pub type Models = BTreeMap<u64, Model>;

/// A place and a length for a write: small and large, aligned and not.
pub fn range(rng: &mut StdRng, chunk_bytes: usize) -> (usize, usize) {
    let len = match rng.random_range(0..5) {
        0 => rng.random_range(1..200),
        1 => rng.random_range(1..20_000),
        2 => BLOCK_LEN * rng.random_range(1..8),
        3 => BLOCK_LEN * rng.random_range(8..80),
        _ => rng.random_range(1..600_000),
    };
    let offset = rng.random_range(0..chunk_bytes);
    let offset = if rng.random_bool(0.5) { offset / BLOCK_LEN * BLOCK_LEN } else { offset };
    (offset, len.min(chunk_bytes - offset))
}

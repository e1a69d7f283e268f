//! The store against a plain model, through checkpoints, clean restarts and kills.

use std::path::PathBuf;

use super::support::{Model, Models, Seed, bytes, options, range, rng, seeds};
use gofs_chunk::store::{Ack, Doubt, Store, StoreError, StoreOptions, WriteMode};
use gofs_tree::{ChunkId, ChunkVersion};
use rand::RngExt;
use rand::rngs::StdRng;

const CHUNK_BYTES: usize = 6 << 20;

fn open(dirs: &[PathBuf], options: &StoreOptions) -> Store {
    Store::open(dirs, options).unwrap()
}

fn check(store: &Store, models: &Models) {
    let mut here: Vec<(u64, u64)> = store.list().iter().map(|info| (info.chunk.0, info.version.0)).collect();
    here.sort_unstable();
    let expected: Vec<(u64, u64)> = models.iter().map(|(chunk, model)| (*chunk, model.version)).collect();
    assert_eq!(here, expected);
    for (chunk, model) in models {
        let (id, version) = (ChunkId(*chunk), ChunkVersion(model.version));
        let read = store.read(id, version, 0, CHUNK_BYTES as u32).unwrap();
        assert!(read == model.read(0, CHUNK_BYTES), "bytes of chunk {chunk}");
        let extents: Vec<(u32, u32)> =
            store.extents(id, version).unwrap().iter().map(|range| (range.first, range.count)).collect();
        assert_eq!(extents, model.extents(), "extents of chunk {chunk}");
        assert_eq!(store.stat(id).unwrap().blocks as usize, model.blocks.len(), "blocks of chunk {chunk}");
        store.verify(id).unwrap();
    }
}

fn step(rng: &mut StdRng, store: &Store, models: &mut Models) {
    let chunk = rng.random_range(1..8u64);
    let id = ChunkId(chunk);
    let version = models.get(&chunk).map_or(ChunkVersion(1), |model| ChunkVersion(model.version));
    let (offset, len) = range(rng, CHUNK_BYTES);
    let count = |models: &Models| models.get(&chunk).map(|model| model.blocks.len() as u32);
    match rng.random_range(0..20) {
        0..=9 => {
            let data = bytes(rng, len);
            let written =
                store.write(id, version, offset as u32, &data, WriteMode::Create, Ack::Cached).unwrap();
            let model = models.entry(chunk).or_insert_with(|| Model { version: 1, ..Model::default() });
            model.write(offset, &data);
            assert_eq!(Some(written), count(models), "blocks after a write");
        }
        10..=12 => match store.punch(id, version, offset as u32, len as u32, Ack::Cached) {
            Ok(blocks) => {
                models.get_mut(&chunk).unwrap().punch(offset, len);
                assert_eq!(Some(blocks), count(models), "blocks after a punch");
            }
            Err(StoreError::NoChunk { .. }) => assert!(!models.contains_key(&chunk)),
            Err(error) => panic!("{error}"),
        },
        13..=16 => match store.read(id, version, offset as u32, len as u32) {
            Ok(read) => assert!(read == models[&chunk].read(offset, len)),
            Err(StoreError::NoChunk { .. }) => assert!(!models.contains_key(&chunk)),
            Err(error) => panic!("{error}"),
        },
        17 => {
            store.sync(&[id]).unwrap();
        }
        18 => {
            if let Some(model) = models.get_mut(&chunk) {
                store.set_version(id, version, version.next(), Doubt::Refused).unwrap();
                model.version += 1;
                let stale = store.write(id, version, 0, b"old", WriteMode::Create, Ack::Cached);
                assert!(matches!(stale, Err(StoreError::Stale { .. })));
            }
        }
        _ => {
            store.delete(id, Some(version)).unwrap();
            models.remove(&chunk);
        }
    }
}

fn run(seed: u64, dirs: usize) {
    let _seed = Seed(seed);
    let mut rng = rng(seed);
    let dir = tempfile::tempdir().unwrap();
    let dirs: Vec<PathBuf> = (0..dirs).map(|i| dir.path().join(format!("disk{i}"))).collect();
    let options = options();
    let mut store = open(&dirs, &options);
    let mut models = Models::new();
    for _ in 0..8 {
        for _ in 0..rng.random_range(1..40) {
            step(&mut rng, &store, &mut models);
        }
        match rng.random_range(0..4) {
            // A checkpoint in the middle.
            0 => store.close().unwrap(),
            // A clean restart.
            1 => {
                store.close().unwrap();
                drop(store);
                store = open(&dirs, &options);
            }
            // Killed: nothing but the page cache is there.
            2 => {
                drop(store);
                store = open(&dirs, &options);
            }
            _ => {}
        }
        check(&store, &models);
    }
}

#[test]
fn the_store_does_what_the_model_does() {
    for seed in seeds(12) {
        run(seed, 1);
    }
}

#[test]
fn several_directories_do_what_the_model_does() {
    for seed in seeds(4) {
        run(seed, 3);
    }
}

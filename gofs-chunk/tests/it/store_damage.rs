//! Flipped bits, anywhere in a data directory, never come back as wrong bytes.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gofs_chunk::store::{Ack, BootId, Store, StoreError, StoreOptions, Taken, WriteMode};
use gofs_tree::{ChunkId, ChunkVersion};
use rand::RngExt;
use rand::rngs::StdRng;

use super::power::copy_tree;
use super::support::{AtSync, Model, Models, Seed, bytes, options, range, rng, seeds};

const CHUNK_BYTES: usize = 5 << 20;

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

fn fill(rng: &mut StdRng, store: &Store) -> Models {
    let mut models = Models::new();
    for round in 0..3 {
        for chunk in 1..8u64 {
            for _ in 0..3 {
                let (offset, len) = range(rng, CHUNK_BYTES);
                // Some chunks stay small.
                let len = if chunk < 4 { len.min(3000) } else { len };
                let offset = if chunk < 4 { offset % 8192 } else { offset };
                let data = bytes(rng, len);
                store
                    .write(
                        ChunkId(chunk),
                        ChunkVersion(1),
                        offset as u32,
                        &data,
                        WriteMode::Create,
                        Ack::Cached,
                    )
                    .unwrap();
                models
                    .entry(chunk)
                    .or_insert_with(|| Model { version: 1, ..Model::default() })
                    .write(offset, &data);
            }
            let (offset, len) = range(rng, CHUNK_BYTES);
            store.punch(ChunkId(chunk), ChunkVersion(1), offset as u32, len as u32, Ack::Cached).unwrap();
            models.get_mut(&chunk).unwrap().punch(offset, len);
        }
        if round == 1 {
            store.close().unwrap();
        }
    }
    models
}

/// Bytes or an error; never other bytes. True where something was found damaged.
fn check(dir: &Path, models: &Models) -> bool {
    let Ok(store) = Store::open(&[dir.to_owned()], &options()) else { return true };
    let mut noticed = false;
    for (chunk, model) in models {
        for offset in (0..CHUNK_BYTES).step_by(64 << 10) {
            match store.read(ChunkId(*chunk), ChunkVersion(1), offset as u32, 64 << 10) {
                Ok(read) => {
                    assert!(read == model.read(offset, 64 << 10), "wrong bytes of chunk {chunk} at {offset}")
                }
                Err(_) => noticed = true,
            }
        }
        if let Ok(extents) = store.extents(ChunkId(*chunk), ChunkVersion(1)) {
            let extents: Vec<(u32, u32)> = extents.iter().map(|range| (range.first, range.count)).collect();
            assert_eq!(extents, model.extents(), "wrong extents of chunk {chunk}");
        }
    }
    noticed
}

fn run(seed: u64, clean: bool) {
    let _seed = Seed(seed);
    let mut rng = rng(seed);
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("whole");
    let store = Store::open(std::slice::from_ref(&dir), &options()).unwrap();
    let models = fill(&mut rng, &store);
    store.sync(&models.keys().map(|chunk| ChunkId(*chunk)).collect::<Vec<_>>()).unwrap();
    if clean {
        store.close().unwrap();
    } else {
        store.disks().for_each(|disk| disk.maintain().unwrap());
    }
    drop(store);
    assert!(!check(
        &{
            let copy = root.path().join("unharmed");
            copy_tree(&dir, &copy);
            copy
        },
        &models
    ));
    let mut all = Vec::new();
    files(&dir, &mut all);
    all.sort();
    let mut noticed = 0;
    for round in 0..25 {
        let damaged = root.path().join(format!("damaged{round}"));
        copy_tree(&dir, &damaged);
        let victim = &all[rng.random_range(0..all.len())];
        let len = std::fs::metadata(victim).unwrap().len();
        let path = damaged.join(victim.strip_prefix(&dir).unwrap());
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // A flipped bit, or a whole sector of garbage, mostly near the start, where heads and tables are.
        let at = if rng.random_bool(0.5) {
            rng.random_range(0..len)
        } else {
            rng.random_range(0..len.min(16 << 10))
        };
        if rng.random_bool(0.5) {
            let mut byte = [0];
            file.read_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << rng.random_range(0..8))], at).unwrap();
        } else {
            file.write_all_at(&bytes(&mut rng, 512.min((len - at) as usize)), at).unwrap();
        }
        noticed += u32::from(check(&damaged, &models));
        std::fs::remove_dir_all(&damaged).unwrap();
    }
    assert!(noticed > 0, "no damage was ever noticed: the test does not look where it damages");
}

#[test]
fn damage_after_a_clean_stop_is_never_read_as_bytes() {
    for seed in seeds(4) {
        run(seed, true);
    }
}

#[test]
fn damage_after_a_kill_is_never_read_as_bytes() {
    for seed in seeds(4) {
        run(seed, false);
    }
}

#[test]
fn a_damaged_block_is_named_counted_reported_and_healed_by_an_overwrite() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("disk");
    let store = Store::open(std::slice::from_ref(&dir), &options()).unwrap();
    let (chunk, version) = (ChunkId(7), ChunkVersion(1));
    store.write(chunk, version, 0, &bytes(&mut rng(1), 256 << 10), WriteMode::Create, Ack::Cached).unwrap();
    store.close().unwrap();
    let mut all = Vec::new();
    files(&dir, &mut all);
    let home =
        all.iter().find(|path| path.extension().is_some_and(|e| e == "chunk")).expect("a file of its own");
    // Header block, table block, then the data.
    let file = OpenOptions::new().write(true).open(home).unwrap();
    file.write_all_at(b"!", 2 * 4096 + 5 * 4096 + 17).unwrap();
    store.changes().take();

    let error = store.read(chunk, version, 0, 256 << 10).unwrap_err();
    assert!(
        matches!(&error, StoreError::Corrupt { chunk: c, block: 5, disk, .. } if *c == chunk && *disk == dir),
        "{error}"
    );
    let again = store.read(chunk, version, 5 * 4096, 1);
    assert!(again.is_err());
    assert_eq!(store.corrupt_blocks(), 1);
    let Taken::Some(changes) = store.changes().take() else { panic!("not everything") };
    assert!(changes.len() == 1 && changes[0].chunk == chunk && changes[0].corrupt);
    // Others stay readable, an edge of the damaged block cannot be written, the whole of it can.
    store.read(chunk, version, 0, 5 * 4096).unwrap();
    assert!(matches!(
        store.write(chunk, version, 5 * 4096 + 1, b"x", WriteMode::Existing, Ack::Cached),
        Err(StoreError::Corrupt { .. })
    ));
    assert!(matches!(store.verify(chunk), Err(StoreError::Corrupt { block: 5, .. })));
    store.write(chunk, version, 5 * 4096, &[1; 4096], WriteMode::Existing, Ack::Cached).unwrap();
    store.verify(chunk).unwrap();
    assert_eq!(store.read(chunk, version, 5 * 4096, 4096).unwrap(), [1; 4096]);
    assert!(!store.list()[0].corrupt);
}

#[test]
fn a_damaged_table_is_found_though_memory_has_it_whole() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("disk");
    let store = Store::open(std::slice::from_ref(&dir), &options()).unwrap();
    let (chunk, version) = (ChunkId(7), ChunkVersion(1));
    let data = bytes(&mut rng(1), 256 << 10);
    store.write(chunk, version, 0, &data, WriteMode::Create, Ack::Cached).unwrap();
    store.close().unwrap();
    assert_eq!(store.read(chunk, version, 0, 4096).unwrap(), &data[..4096]);
    let mut all = Vec::new();
    files(&dir, &mut all);
    let home =
        all.iter().find(|path| path.extension().is_some_and(|e| e == "chunk")).expect("a file of its own");
    let file = OpenOptions::new().write(true).open(home).unwrap();
    file.write_all_at(b"!", 4096 + 99).unwrap();
    assert_eq!(store.read(chunk, version, 0, 4096).unwrap(), &data[..4096]);
    assert!(matches!(store.verify(chunk), Err(StoreError::Corrupt { .. })));
    assert!(store.read(chunk, version, 0, 4096).is_err());
}

#[test]
fn a_verification_that_had_passed_a_block_when_its_damage_was_found_does_not_call_the_chunk_whole() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("disk");
    let store = Store::open(std::slice::from_ref(&dir), &options()).unwrap();
    let (chunk, version) = (ChunkId(7), ChunkVersion(1));
    store.write(chunk, version, 0, &bytes(&mut rng(1), 4 << 20), WriteMode::Create, Ack::Synced).unwrap();
    let mut all = Vec::new();
    files(&dir, &mut all);
    let home =
        all.iter().find(|path| path.extension().is_some_and(|e| e == "chunk")).expect("a file of its own");
    let file = OpenOptions::new().write(true).open(home).unwrap();
    let disk = store.disks().next().unwrap();
    let mut steps = 0;
    let verified = disk.verify(chunk, |_| {
        steps += 1;
        if steps == 2 {
            // In a block that it has seen.
            file.write_all_at(b"!", 2 * 4096 + 5 * 4096 + 17).unwrap();
            assert!(store.read(chunk, version, 5 * 4096, 4096).is_err());
        }
        true
    });
    assert!(verified.is_ok() && steps > 2, "{verified:?}, {steps} steps");
    assert!(store.list()[0].corrupt);
    assert!(store.verify(chunk).is_err());
}

#[test]
fn what_was_not_synced_may_be_lost_with_the_power_and_is_damaged_where_only_the_process_was_killed() {
    let (chunk, version, blocks) = (ChunkId(7), ChunkVersion(1), 100);
    let zeros = [0; 4096];
    // A block, and what the file begins with.
    for (at, first_lost) in [(2 * 4096 + 50 * 4096, 50), (17, 0)] {
        for boot in [BootId(1), BootId(2)] {
            let root = tempfile::tempdir().unwrap();
            let dir = [root.path().join("disk")];
            let store = Store::open(&dir, &StoreOptions { boot: BootId(1), ..options() }).unwrap();
            let data = bytes(&mut rng(1), blocks * 4096);
            store.write(chunk, version, 0, &data, WriteMode::Create, Ack::Cached).unwrap();
            drop(store);
            let mut all = Vec::new();
            files(&dir[0].join("chunks"), &mut all);
            OpenOptions::new().write(true).open(&all[0]).unwrap().write_all_at(b"!", at).unwrap();
            let store = Store::open(&dir, &StoreOptions { boot, ..options() }).unwrap();
            let read = store.read(chunk, ChunkVersion(0), first_lost * 4096, 4096);
            match boot {
                BootId(1) => assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{at}"),
                _ => assert!(read.unwrap() == zeros && store.list()[0].doubtful, "{at}"),
            }
        }
    }
}

#[test]
fn of_blocks_that_were_synced_and_others_that_were_not_only_the_latter_may_be_lost_with_the_power() {
    let root = tempfile::tempdir().unwrap();
    let dir = [root.path().join("disk")];
    let at_sync = Arc::new(AtSync::default());
    let options = |boot| StoreOptions { boot: BootId(boot), watch: Some(at_sync.clone()), ..options() };
    let store = Arc::new(Store::open(&dir, &options(1)).unwrap());
    let (chunk, version, run) = (ChunkId(1), ChunkVersion(1), 16);
    let write = move |store: &Store, chunk, first: u32| {
        let data = bytes(&mut rng(1), run * 4096);
        store.write(chunk, version, first * 4096, &data, WriteMode::Create, Ack::Cached).unwrap();
    };
    write(&store, ChunkId(2), 0);
    let writer = store.clone();
    // When the checkpoint has passed the chunk: the index has both.
    at_sync.of(ChunkId(2), move || {
        write(&writer, chunk, 0);
        writer.sync(&[chunk]).unwrap();
        write(&writer, chunk, 16);
    });
    store.disks().for_each(|disk| disk.checkpoint().unwrap());
    assert!(at_sync.is_done());
    drop(store);
    let mut all = Vec::new();
    files(&dir[0].join("chunks/01"), &mut all);
    let file = OpenOptions::new().write(true).open(&all[0]).unwrap();
    for block in [3, 16 + 3] {
        file.write_all_at(b"!", (2 + block) * 4096).unwrap();
    }
    let store = Store::open(&dir, &options(2)).unwrap();
    let read = |block: u32| store.read(chunk, ChunkVersion(0), block * 4096, 4096);
    assert!(matches!(read(3), Err(StoreError::Corrupt { block: 3, .. })));
    assert_eq!(read(16 + 3).unwrap(), [0; 4096]);
}

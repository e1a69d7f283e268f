//! Full disks: refused cleanly, nothing half-written stays, and deleting helps. Needs root, for a small tmpfs.

use std::path::{Path, PathBuf};
use std::process::Command;

use gofs_chunk::store::{Ack, Store, StoreError, StoreOptions, WriteMode};
use gofs_tree::{ChunkId, ChunkVersion};
use rand::RngExt;

use super::support::{Model, Models, bytes, rng};

const VERSION: ChunkVersion = ChunkVersion(1);
const CHUNK_BYTES: usize = 1 << 20;

/// A small file system, unmounted in the end.
struct Small {
    dir: tempfile::TempDir,
}

impl Small {
    fn mount(size: &str) -> Option<Small> {
        let dir = tempfile::tempdir().unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .status();
        if status.is_ok_and(|status| status.success()) {
            return Some(Small { dir });
        }
        eprintln!("not run: a small tmpfs cannot be mounted without root");
        None
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.dir.path()).status();
        assert!(status.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn check(store: &Store, models: &Models) {
    assert_eq!(store.list().len(), models.len(), "chunks that were refused are there");
    for (chunk, model) in models {
        let read = store.read(ChunkId(*chunk), VERSION, 0, CHUNK_BYTES as u32).unwrap();
        assert!(read == model.read(0, CHUNK_BYTES), "chunk {chunk}");
        assert_eq!(store.stat(ChunkId(*chunk)).unwrap().blocks as usize, model.blocks.len());
    }
}

#[test]
fn a_full_disk_refuses_cleanly_and_recovers_when_chunks_go() {
    let Some(small) = Small::mount("48m") else { return };
    let dirs: [PathBuf; 1] = [small.path().join("disk")];
    let options = StoreOptions { reserve_bytes: None, ..StoreOptions::default() };
    let mut store = Store::open(&dirs, &options).unwrap();
    let mut models = Models::new();
    let mut rng = rng(1);
    let mut chunk = 0;
    for round in 0..4 {
        let mut refused = 0;
        while refused < 20 {
            chunk += 1;
            let len = if rng.random_bool(0.5) { rng.random_range(1..20_000) } else { CHUNK_BYTES };
            let data = bytes(&mut rng, len);
            match store.write(ChunkId(chunk), VERSION, 0, &data, WriteMode::Create, Ack::Cached) {
                Ok(_) => {
                    models
                        .entry(chunk)
                        .or_insert_with(|| Model { version: 1, ..Model::default() })
                        .write(0, &data);
                }
                Err(StoreError::NoSpace { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        check(&store, &models);
        assert!(store.status()[0].error.is_none(), "a full disk is not a broken one");
        if round % 2 == 0 {
            drop(store);
            store = Store::open(&dirs, &options).unwrap();
            check(&store, &models);
        }
        // Half of all goes.
        for chunk in models.keys().copied().filter(|chunk| chunk % 2 == round % 2).collect::<Vec<_>>() {
            store.delete(ChunkId(chunk), None).unwrap();
            models.remove(&chunk);
        }
        for _ in 0..4 {
            store.disks().for_each(|disk| disk.maintain().unwrap());
        }
        check(&store, &models);
        assert!(store.status()[0].free_bytes > 4 << 20, "space came back: {:?}", store.status()[0]);
    }
    drop(store);
}

//! Files of large chunks: not all of them are open at the same time.

use std::sync::Arc;

use gofs_chunk::store::{Ack, BLOCK_LEN, Store, WriteMode};
use gofs_tree::{ChunkId, ChunkVersion};

use super::support::{AtSync, options};

const VERSION: ChunkVersion = ChunkVersion(1);
/// More than a disk keeps open.
const CHUNKS: u64 = 600;
/// So many that the chunk gets a file, and that they go straight to it.
const BLOCKS: usize = 16;

fn write(store: &Store, chunk: u64, first_block: usize) {
    let offset = (first_block * BLOCK_LEN) as u32;
    let bytes = [7; BLOCKS * BLOCK_LEN];
    store.write(ChunkId(chunk), VERSION, offset, &bytes, WriteMode::Create, Ack::Cached).unwrap();
}

fn read(store: &Store, chunk: u64) -> Vec<u8> {
    store.read(ChunkId(chunk), VERSION, 0, (2 * BLOCKS * BLOCK_LEN) as u32).unwrap()
}

#[test]
fn a_file_that_is_opened_again_while_blocks_are_carried_into_it_hides_none_of_them() {
    let root = tempfile::tempdir().unwrap();
    let at_sync = Arc::new(AtSync::default());
    let mut options = options();
    options.watch = Some(at_sync.clone());
    let store = Arc::new(Store::open(&[root.path().join("disk")], &options).unwrap());
    (1..=CHUNKS).for_each(|chunk| write(&store, chunk, 0));
    store.close().unwrap();
    write(&store, 1, BLOCKS);
    let others = store.clone();
    at_sync.of(ChunkId(1), move || (2..=CHUNKS).for_each(|chunk| drop(read(&others, chunk))));
    store.disks().for_each(|disk| disk.checkpoint().unwrap());
    assert!(at_sync.is_done());
    assert!(read(&store, 1).iter().all(|byte| *byte == 7));
}

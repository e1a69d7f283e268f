//! What waits for a chunk that is locked for long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use gofs_chunk::store::{Ack, BLOCK_LEN, Store, StoreError, WriteMode};
use gofs_tree::{ChunkId, ChunkVersion};

use super::support::{AtSync, options};

const CHUNK: ChunkId = ChunkId(1);
const VERSION: ChunkVersion = ChunkVersion(1);

#[test]
fn what_waited_for_a_chunk_until_its_writer_may_not_write_any_more_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let at_sync = Arc::new(AtSync::default());
    let mut options = options();
    options.watch = Some(at_sync.clone());
    let store = Arc::new(Store::open(&[root.path().join("disk")], &options).unwrap());
    let written = [7; 16 * BLOCK_LEN];
    store.write(CHUNK, VERSION, 0, &written, WriteMode::Create, Ack::Cached).unwrap();

    let may_write = Arc::new(AtomicBool::new(true));
    let (waiting, waited) = mpsc::channel();
    let late = store.clone();
    // The checkpoint has the chunk locked.
    at_sync.of(CHUNK, move || {
        let known = may_write.clone();
        let writer = std::thread::spawn(move || {
            let may_write = || known.load(Ordering::Relaxed);
            let (mode, ack) = (WriteMode::Create, Ack::Cached);
            let write = late.write_summed(CHUNK, VERSION, 0, b"late", &[], mode, ack, &may_write).map(drop);
            let punch = late.punch_if(CHUNK, VERSION, 0, BLOCK_LEN as u32, ack, &may_write).map(drop);
            let new = ChunkId(2);
            let create = late.write_summed(new, VERSION, 0, b"late", &[], mode, ack, &may_write).map(drop);
            [write, punch, create]
        });
        may_write.store(false, Ordering::Relaxed);
        waiting.send(writer).unwrap();
    });
    store.disks().for_each(|disk| disk.checkpoint().unwrap());
    for result in waited.recv().unwrap().join().unwrap() {
        assert!(matches!(result, Err(StoreError::TooLate { .. })), "{result:?}");
    }
    assert!(store.read(CHUNK, VERSION, 0, written.len() as u32).unwrap() == written);
    assert_eq!(
        store.disks().map(|disk| disk.chunk_count()).sum::<usize>(),
        1,
        "nothing is left of the new one"
    );
}

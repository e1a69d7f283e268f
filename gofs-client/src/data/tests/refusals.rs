//! A flush is refused: what else becomes of the file.

use std::sync::atomic::Ordering;
use std::time::Duration;

use gofs_tree::{ChunkIndex, FsError};

use super::{CHUNK, Mount, pattern};
use crate::data::FileMeta;
use crate::data::fake::INO;

#[tokio::test]
async fn a_flush_that_is_refused_ends_when_all_that_it_sent_has_ended() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(2 * CHUNK as usize, 1)).await;
    mount.flush().await;
    let full = mount.cluster.chunk_id(INO, 1).0;
    for server in &mount.cluster.servers {
        server.no_room_for.lock().insert(full);
        server.holding.store(true, Ordering::Relaxed);
    }
    mount.write(0, &pattern(2 * CHUNK as usize, 2)).await;
    let mut flush = tokio::spawn(mount.data.flush(INO, false));
    // Whoever has the file next may write to the other chunk: nothing may come after that.
    let early = tokio::time::timeout(Duration::from_millis(500), &mut flush).await;
    assert!(early.is_err(), "a write is under way: {early:?}");
    mount.cluster.servers.iter().for_each(|server| server.holding.store(false, Ordering::Relaxed));
    assert_eq!(flush.await.unwrap(), Err(FsError::NoSpace));
}

#[tokio::test]
async fn what_was_written_before_a_refused_flush_is_told_with_the_next() {
    for refusal in [FsError::NoSpace, FsError::QuotaExceeded] {
        let mount = Mount::new(|config| config.dirty_bytes = 256 << 10).await;
        mount.truncate(4 * CHUNK).await;
        // A run so long leaves at once, and is told of with the next flush.
        mount.write(0, &pattern(CHUNK as usize, 1)).await;
        while mount.data.dirty().bytes > 0 {
            tokio::task::yield_now().await;
        }
        let is_quota = refusal == FsError::QuotaExceeded;
        *mount.cluster.refuse_commits.lock() = is_quota.then_some(refusal);
        mount.cluster.servers.iter().for_each(|server| server.full.store(!is_quota, Ordering::Relaxed));
        mount.write(4 * CHUNK - 10, &pattern(20, 2)).await;
        assert_eq!(mount.data.flush(INO, false).await, Err(refusal));
        *mount.cluster.refuse_commits.lock() = None;
        mount.cluster.servers.iter().for_each(|server| server.full.store(false, Ordering::Relaxed));

        mount.data.flush(INO, true).await.unwrap();
        let map = mount.cluster.chunk_map(INO, ChunkIndex(0), 1).await.unwrap();
        assert_eq!(map.iter().map(|chunk| chunk.blocks_4k).collect::<Vec<_>>(), [16], "{refusal}");
        mount.reload().await;
        assert_eq!(mount.read(0, CHUNK as u32).await, pattern(CHUNK as usize, 1));
    }
}

#[tokio::test]
async fn what_is_refused_again_and_again_of_a_file_that_is_gone_is_given_up() {
    let mount = Mount::new(|config| config.dirty_bytes = 256 << 10).await;
    mount.truncate(4 * CHUNK).await;
    mount.write(0, &pattern(CHUNK as usize, 1)).await;
    *mount.cluster.refuse_commits.lock() = Some(FsError::Stale);
    assert_eq!(mount.data.flush(INO, false).await, Err(FsError::Stale));
    let _ = mount.data.flush(INO, false).await;
    assert_eq!(mount.data.flush(INO, false).await, Ok(()));
    assert_eq!(mount.data.dirty().files, 0);
}

#[tokio::test]
async fn a_chunk_that_was_asked_for_in_vain_may_be_there_when_the_file_outgrows_its_inode_again() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(1_000, 1)).await;
    mount.data.flush(INO, true).await.unwrap();
    // Chunks are taken from the reserved ones in turn with asking for them.
    for seed in 2..6 {
        mount.cluster.allocations_given_up.store(1, Ordering::Relaxed);
        mount.write(1_000, &pattern(9_000, seed)).await;
        if mount.data.flush(INO, false).await.is_ok() {
            mount.truncate(0).await;
            mount.write(0, &pattern(1_000, 1)).await;
            mount.data.flush(INO, true).await.unwrap();
            continue;
        }
        mount.write(1_000, &pattern(9_000, seed)).await;
        mount.reload().await;
        assert_eq!(mount.read(0, 1_000).await, pattern(1_000, 1));
        assert_eq!(mount.read(1_000, 9_000).await, pattern(9_000, seed));
        return;
    }
    panic!("no request for chunks was given up");
}

//! The session ends while something is under way, or a request was given up.

use std::sync::atomic::Ordering;
use std::time::Duration;

use gofs_tree::{ChunkIndex, FsError, SessionId};

use super::{CHUNK, Mount, pattern};
use crate::data::FileMeta;
use crate::data::fake::{INO, SESSION};

#[tokio::test]
async fn a_fenced_session_loses_its_changes_and_says_so() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(10_000, 1)).await;
    mount.flush().await;
    let cursor = mount.data.error_cursor(INO);
    mount.write(0, &pattern(10_000, 2)).await;
    mount.cluster.servers.iter().for_each(|server| server.fenced.store(true, Ordering::Relaxed));
    let data = mount.data.clone();
    let flush = tokio::spawn(async move { data.flush(INO, false).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(mount.data.discard(INO));
    assert_eq!(flush.await.unwrap(), Err(FsError::Io));
    assert_eq!(mount.data.take_error(INO, &cursor), Err(FsError::Io));
    assert_eq!(mount.data.dirty().files, 0);
    assert_eq!(mount.data.dirty().bytes, 0);
    mount.cluster.servers.iter().for_each(|server| server.fenced.store(false, Ordering::Relaxed));
    mount.data.load(INO, mount.cluster.content(INO));
    assert_eq!(mount.read(0, 10_000).await, pattern(10_000, 1));
}

#[tokio::test]
async fn what_is_under_way_when_the_session_ends_is_not_done_in_the_next() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(10_000, 1)).await;
    mount.truncate(CHUNK + 10_000).await;
    mount.reload().await;
    let writes = || mount.cluster.servers.iter().map(|s| s.writes.load(Ordering::Relaxed)).sum::<u64>();
    for (round, offset) in [0, CHUNK].into_iter().enumerate() {
        let (maps, written) = (mount.cluster.maps.load(Ordering::Relaxed), writes());
        mount.cluster.maps_held.store(true, Ordering::Relaxed);
        mount.write(offset, &pattern(10_000, 2)).await;
        let flush = tokio::spawn(mount.data.flush(INO, false));
        while mount.cluster.maps.load(Ordering::Relaxed) == maps {
            tokio::task::yield_now().await;
        }
        // It goes on when the next session has loaded the file, and may change it.
        assert!(mount.data.discard(INO));
        *mount.cluster.session.lock() = SessionId(SESSION.0 + 1 + round as u64);
        mount.data.load(INO, mount.cluster.content(INO));
        mount.cluster.maps_held.store(false, Ordering::Relaxed);
        assert_eq!(flush.await.unwrap(), Err(FsError::Io));
        assert_eq!(writes(), written);
    }
    assert_eq!(mount.cluster.chunk_map(INO, ChunkIndex(1), 1).await, Ok(Vec::new()), "nor is a chunk made");
    mount.write(CHUNK, &pattern(10_000, 3)).await;
    mount.reload().await;
    assert_eq!(mount.read(0, 10_000).await, pattern(10_000, 1));
    assert_eq!(mount.read(CHUNK, 10_000).await, pattern(10_000, 3));
}

#[tokio::test]
async fn chunks_that_were_asked_for_in_vain_may_come_later_and_are_written_to_then() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(10_000, 1)).await;
    mount.flush().await;
    // Chunks are taken from the reserved ones in turn with asking for them.
    for index in 1..4 {
        let offset = index * CHUNK;
        mount.cluster.allocations_given_up.store(1, Ordering::Relaxed);
        mount.write(offset, &pattern(10_000, 2)).await;
        let _ = mount.data.flush(INO, false).await;
        mount.write(offset, &pattern(10_000, 3)).await;
        mount.reload().await;
        assert_eq!(mount.read(offset, 10_000).await, pattern(10_000, 3), "chunk {index}");
    }
}

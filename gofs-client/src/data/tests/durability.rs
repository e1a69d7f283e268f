//! What a sync keeps, and what it says where it cannot.

use std::sync::atomic::Ordering;
use std::time::Duration;

use gofs_tree::{ChunkIndex, FsError};

use super::{CHUNK, Mount, pattern};
use crate::data::FileMeta;
use crate::data::fake::{CHUNK_BYTES, INO, SESSION};

#[tokio::test]
async fn a_sync_does_not_wait_for_a_chunk_that_somebody_allocated_and_nobody_wrote() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(10_000, 1)).await;
    mount.truncate(CHUNK + 10_000).await;
    mount.flush().await;
    mount.cluster.allocate(INO, SESSION, vec![ChunkIndex(1)], Vec::new()).await.unwrap();
    mount.cluster.map_read_only.store(true, Ordering::Relaxed);
    mount.reload().await;
    let synced = tokio::time::timeout(Duration::from_secs(20), mount.data.flush(INO, true)).await;
    synced.expect("there is nothing to wait for").unwrap();
}

#[tokio::test]
async fn a_chunk_that_no_server_has_is_an_error_and_not_waited_for() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(150_000, 1)).await;
    mount.reload().await;
    mount.cluster.lose_chunk(INO, 1);
    let read = mount.data.read(INO, 70_000, 100);
    let read = tokio::time::timeout(Duration::from_secs(60), read).await.expect("no waiting for ever");
    assert_eq!(read, Err(FsError::Io));
    assert_eq!(mount.read(0, 1000).await, pattern(150_000, 1)[..1000], "the rest of the file is there");
    let synced = tokio::time::timeout(Duration::from_secs(60), mount.data.flush(INO, true)).await;
    assert_eq!(synced.expect("no waiting for ever"), Err(FsError::Io), "what cannot be had is not durable");
    mount.write(70_000, b"more").await;
    let written = tokio::time::timeout(Duration::from_secs(60), mount.data.flush(INO, false)).await;
    assert_eq!(written.expect("no waiting for ever"), Err(FsError::Io), "nor is there a place for more");
}

#[tokio::test]
async fn fsync_covers_bytes_that_were_flushed_before() {
    let mount = Mount::new(|_| {}).await;
    let bytes = pattern(3 * CHUNK as usize, 4);
    mount.write(0, &bytes[..100_000]).await;
    mount.flush().await;
    mount.write(100_000, &bytes[100_000..]).await;
    mount.data.flush(INO, true).await.unwrap();
    mount.cluster.servers.iter().for_each(|server| server.lose_power());
    mount.reload().await;
    assert_eq!(mount.read(0, 3 * CHUNK_BYTES).await, bytes);

    // And those of a lease before this one.
    mount.write(0, &pattern(9_000, 5)).await;
    mount.reload().await;
    mount.data.flush(INO, true).await.unwrap();
    mount.cluster.servers.iter().for_each(|server| server.lose_power());
    mount.reload().await;
    assert_eq!(mount.read(0, 9_000).await, pattern(9_000, 5));

    // The checker can fail: without fsync the bytes are gone.
    mount.write(0, &pattern(9_000, 6)).await;
    mount.flush().await;
    mount.cluster.servers.iter().for_each(|server| server.lose_power());
    mount.reload().await;
    assert_ne!(mount.read(0, 9_000).await, pattern(9_000, 6));
}

#[tokio::test]
async fn fsync_says_once_that_all_servers_lost_what_it_was_to_keep() {
    let mount = Mount::new(|_| {}).await;
    let (kept, lost) = (pattern(9_000, 1), pattern(9_000, 2));
    for between in ["nothing", "another lease", "another session"] {
        mount.write(0, &kept).await;
        mount.data.flush(INO, true).await.unwrap();
        mount.write(0, &lost).await;
        mount.flush().await;
        match between {
            "another lease" => mount.reload().await,
            "another session" => {
                assert!(!mount.data.discard(INO));
                mount.data.load(INO, mount.cluster.content(INO));
            }
            _ => {}
        }
        mount.cluster.lose_power();
        let cursor = mount.data.error_cursor(INO);
        assert_eq!(mount.data.flush(INO, true).await, Err(FsError::Io), "{between}");
        assert_eq!(mount.data.take_error(INO, &cursor), Err(FsError::Io));
        mount.data.flush(INO, true).await.unwrap();
        assert_eq!(mount.data.take_error(INO, &cursor), Ok(()));
        mount.reload().await;
        assert_eq!(mount.read(0, 9_000).await, kept);
    }

    // What comes after the power did is kept as ever.
    mount.cluster.lose_power();
    mount.write(0, &lost).await;
    mount.data.flush(INO, true).await.unwrap();
    mount.cluster.lose_power();
    mount.reload().await;
    mount.data.flush(INO, true).await.unwrap();
    assert_eq!(mount.read(0, 9_000).await, lost);
}

#[tokio::test]
async fn a_sync_whose_file_is_given_back_before_it_begins_syncs_all_the_same() {
    let mount = Mount::new(|_| {}).await;
    let bytes = pattern(9_000, 1);
    for is_session_over in [false, true] {
        mount.write(0, &bytes).await;
        mount.flush().await;
        let syncing = mount.data.flush(INO, true);
        match is_session_over {
            false => mount.data.drop_clean(INO),
            true => assert!(!mount.data.discard(INO)),
        }
        syncing.await.unwrap();
        assert_eq!(mount.data.unsynced_and_not_loaded(), [], "session over: {is_session_over}");
        mount.cluster.lose_power();
        mount.data.load(INO, mount.cluster.content(INO));
        assert_eq!(mount.read(0, 9_000).await, bytes);
        mount.truncate(0).await;
    }
}

#[tokio::test]
async fn what_was_synced_in_the_inode_stays_durable_when_the_file_outgrows_it() {
    let mount = Mount::new(|_| {}).await;
    let bytes = pattern(9_000, 1);
    mount.write(0, &bytes[..1_000]).await;
    mount.data.flush(INO, true).await.unwrap();
    assert!(mount.cluster.content(INO).inline.is_some_and(|inline| inline.len() == 1_000));
    mount.write(1_000, &bytes[1_000..]).await;
    mount.flush().await;
    assert!(mount.cluster.content(INO).inline.is_none());
    mount.cluster.lose_power();
    mount.reload().await;
    assert_eq!(mount.read(0, 1_000).await, bytes[..1_000]);
}

#[tokio::test]
async fn a_file_whose_new_chunk_is_lost_before_it_has_outgrown_its_inode_is_as_it_was_and_says_so() {
    let mount = Mount::new(|config| config.dirty_bytes = 256 << 10).await;
    let bytes = pattern(150_000, 1);
    mount.write(0, &bytes[..1_000]).await;
    mount.data.flush(INO, true).await.unwrap();
    mount.write(1_000, &bytes[1_000..]).await;
    // A run so long leaves at once, without a commit.
    let is_out = |mount: &Mount| mount.data.dirty().bytes < CHUNK;
    while !is_out(&mount) {
        tokio::task::yield_now().await;
    }
    mount.cluster.lose_unwritten(INO, 0);
    let flush = tokio::time::timeout(Duration::from_secs(60), mount.data.flush(INO, false)).await;
    assert_eq!(flush.expect("no waiting for ever"), Err(FsError::Io));
    assert_eq!(mount.read(0, 2_000).await, bytes[..1_000]);
    mount.write(1_000, &bytes[1_000..]).await;
    mount.reload().await;
    assert_eq!(mount.read(0, 150_000).await, bytes);
}

#[tokio::test]
async fn a_sync_settles_nothing_that_was_written_after_its_lease_was_gone() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(9_000, 1)).await;
    mount.flush().await;
    mount.cluster.syncs_held.store(true, Ordering::Relaxed);
    let syncing = tokio::spawn(mount.data.flush(INO, true));
    while mount.cluster.servers.iter().map(|server| server.syncs.load(Ordering::Relaxed)).sum::<u64>() < 2 {
        tokio::task::yield_now().await;
    }
    mount.reload().await;
    mount.write(0, &pattern(9_000, 2)).await;
    mount.flush().await;
    mount.data.drop_clean(INO);
    assert!(mount.data.sync(INO).is_none(), "nothing is known of it");
    mount.cluster.syncs_held.store(false, Ordering::Relaxed);
    syncing.await.unwrap().unwrap();
    assert_eq!(mount.data.unsynced_and_not_loaded(), [INO]);
    mount.cluster.lose_power();
    mount.data.load(INO, mount.cluster.content(INO));
    assert_eq!(mount.data.flush(INO, true).await, Err(FsError::Io));
}

#[tokio::test]
async fn a_refused_write_does_not_make_fsync_forget_what_was_written_before_it() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(9_000, 1)).await;
    mount.data.flush(INO, true).await.unwrap();
    mount.write(0, &pattern(9_000, 2)).await;
    mount.flush().await;
    mount.cluster.servers.iter().for_each(|server| server.full.store(true, Ordering::Relaxed));
    mount.write(20_000, &pattern(5_000, 3)).await;
    assert_eq!(mount.data.flush(INO, false).await, Err(FsError::NoSpace));
    mount.cluster.servers.iter().for_each(|server| server.full.store(false, Ordering::Relaxed));
    mount.cluster.lose_power();
    assert_eq!(mount.data.flush(INO, true).await, Err(FsError::Io));
    mount.data.flush(INO, true).await.unwrap();
}

#[tokio::test]
async fn fsync_waits_for_disks_and_for_the_size_at_the_same_time() {
    let mount = Mount::new(|_| {}).await;
    mount.cluster.meeting.store(true, Ordering::Relaxed);
    mount.write(0, &pattern(10_000, 1)).await;
    let synced = mount.data.flush(INO, true);
    tokio::time::timeout(Duration::from_secs(20), synced)
        .await
        .expect("neither waits for the other")
        .unwrap();
    mount.cluster.replicas(INO, 0).iter().for_each(|server| server.lose_power());
    mount.reload().await;
    assert_eq!(mount.read(0, 10_000).await, pattern(10_000, 1));
}

#[tokio::test]
async fn a_commit_that_is_refused_during_a_sync_is_told_and_takes_the_size_back() {
    let mount = Mount::new(|_| {}).await;
    mount.cluster.meeting.store(true, Ordering::Relaxed);
    mount.write(0, &pattern(10_000, 1)).await;
    *mount.cluster.refuse_commits.lock() = Some(FsError::QuotaExceeded);
    assert_eq!(mount.data.flush(INO, true).await, Err(FsError::QuotaExceeded));
    assert_eq!(mount.read(0, 100).await, b"");
}

#[tokio::test]
async fn fsync_leaves_out_a_replica_that_died() {
    let mount = Mount::new(|_| {}).await;
    mount.write(0, &pattern(50_000, 1)).await;
    mount.flush().await;
    let replicas = mount.cluster.replicas(INO, 0);
    replicas[1].down.store(true, Ordering::Relaxed);
    mount.data.flush(INO, true).await.unwrap();
    assert_eq!(mount.cluster.replicas(INO, 0).len(), 1);
    replicas[0].lose_power();
    mount.reload().await;
    assert_eq!(mount.read(0, 50_000).await, pattern(50_000, 1));
}

#[tokio::test]
async fn a_sync_that_a_replica_in_doubt_refuses_leaves_it_behind() {
    // Also where another mount has the lease by then.
    for is_given_back in [false, true] {
        let mount = Mount::new(|_| {}).await;
        mount.write(0, &pattern(50_000, 1)).await;
        mount.flush().await;
        let replicas = mount.cluster.replicas(INO, 0);
        *mount.cluster.in_doubt.lock() = Some(replicas[1].id);
        let syncing = mount.data.flush(INO, true);
        if is_given_back {
            mount.data.drop_clean(INO);
        }
        syncing.await.unwrap();
        let sure: Vec<_> = mount.cluster.replicas(INO, 0).iter().map(|server| server.id).collect();
        assert_eq!(sure, [replicas[0].id], "given back: {is_given_back}");
    }
}

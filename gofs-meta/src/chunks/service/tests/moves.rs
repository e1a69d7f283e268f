//! Servers that are drained and removed, replicas in doubt, and the first moments of a cluster.

use super::*;
use crate::chunks::StandingError;

/// Servers at which the chunk is current.
fn where_it_is(meta: &Meta, servers: &[Fake], chunk: ChunkId) -> Vec<ChunkServerId> {
    let version = committed(meta, chunk);
    servers.iter().filter(|it| it.version(chunk) == Some(version)).map(|it| it.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_server_is_emptied_without_a_replica_less_and_then_removed() {
    let mut meta = Meta::start().await;
    let mut servers = fakes(&meta, 1..=3).await;
    meta.make_file(2).await;
    let mut chunks = Vec::new();
    for index in 0..20 {
        chunks.push(meta.write_chunk(index, 2, &servers).await);
    }
    let leaving = servers[0].id;
    until("it can be said what it holds", || meta.chunks.is_settled()).await;
    let in_service = meta.chunks.remove_server(leaving, false).await;
    assert!(matches!(in_service, Err(StandingError::Needed(_))), "{in_service:?}");

    meta.chunks.set_draining(leaving, true).await.unwrap();
    until("the two others alone are given new chunks", || {
        meta.chunks
            .place(3)
            .is_ok_and(|placed| placed.len() == 2 && placed.iter().all(|(id, _)| *id != leaving))
    })
    .await;
    // No chunk is at fewer servers than two at any time, its committed version and what is raised after it together.
    until("nothing is left on it", || {
        for &chunk in &chunks {
            let least = committed(&meta, chunk);
            let have = servers.iter().filter(|it| it.version(chunk).is_some_and(|it| it >= least)).count();
            assert!(have >= 2, "{chunk} is on {have} servers");
        }
        meta.chunks.left_on(leaving).unwrap() == Left::default() && servers[0].held.lock().chunks.is_empty()
    })
    .await;
    for &chunk in &chunks {
        assert_eq!(where_it_is(&meta, &servers, chunk).len(), 2);
    }

    // A new leader knows of it, too.
    let held: Vec<_> = servers.drain(..).map(|server| (server.id, server.held.clone())).collect();
    meta.restart().await;
    for (id, held) in held {
        servers.push(Fake::start(&meta, id.0, held, meta.cluster()).await.unwrap());
    }
    until("all have listed their chunks", || meta.chunks.is_settled()).await;
    assert!(meta.chunks.servers().iter().any(|server| server.id == leaving && server.draining));
    assert_eq!(meta.chunks.remove_server(leaving, false).await.unwrap(), Left::default());
    assert!(meta.chunks.servers().iter().all(|server| server.id != leaving));
    let Err(refused) = Fake::start(&meta, leaving.0, Arc::default(), meta.cluster()).await else { panic!() };
    assert!(refused.message().contains("was removed"), "{}", refused.message());
    assert!(refused.metadata().contains_key(gofs_proto::OTHER_CLUSTER_METADATA), "it stops");
    meta.chunks.set_draining(leaving, false).await.unwrap();
    Fake::start(&meta, leaving.0, Arc::default(), meta.cluster()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_the_only_replica_is_removed_by_force_only_and_brings_it_back() {
    let mut meta = Meta::start().await;
    let mut servers = fakes(&meta, 1..=1).await;
    meta.make_file(1).await;
    let chunk = meta.write_chunk(0, 1, &servers).await;
    servers.push(Fake::start(&meta, 2, Arc::default(), Vec::new()).await.unwrap());
    let holder = servers.remove(0);
    let (id, held) = (holder.id, holder.held.clone());
    drop(holder);
    until("it is dead", || meta.chunks.servers().iter().any(|server| server.id == id && !server.alive)).await;
    until("servers had their time", || meta.chunks.is_settled()).await;
    let Err(StandingError::Needed(why)) = meta.chunks.remove_server(id, false).await else { panic!() };
    assert!(why.contains("only replica of 1 chunks"), "{why}");
    let lost = meta.chunks.remove_server(id, true).await.unwrap();
    assert_eq!((lost.only, lost.needed), (1, 1));
    until("it is lost", || meta.chunks.for_reading(chunk) == Location::Absent { may_return: false }).await;

    meta.chunks.set_draining(id, false).await.unwrap();
    let _back = Fake::start(&meta, id.0, held, meta.cluster()).await.unwrap();
    until("it is there again", || matches!(meta.chunks.for_reading(chunk), Location::At { .. })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_server_in_service_cannot_be_drained() {
    let meta = Meta::start().await;
    let servers = fakes(&meta, 1..=2).await;
    meta.chunks.set_draining(servers[0].id, true).await.unwrap();
    let refused = meta.chunks.set_draining(servers[1].id, true).await;
    assert!(matches!(refused, Err(StandingError::Needed(_))), "{refused:?}");
    let unknown = meta.chunks.set_draining(ChunkServerId(99), true).await;
    assert!(matches!(unknown, Err(StandingError::Unknown(_))), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_in_doubt_are_made_anew_from_one_that_is_not() {
    doubt(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_are_in_doubt_one_wins() {
    doubt(2).await;
}

/// So many of a chunk's two replicas come to be in doubt.
async fn doubt(count: usize) {
    let mut meta = Meta::start().await;
    let servers = fakes(&meta, 1..=2).await;
    meta.make_file(2).await;
    let chunk = meta.write_chunk(0, 2, &servers).await;
    until(
        "both are known",
        || matches!(meta.chunks.for_reading(chunk), Location::At { servers, .. } if servers.len() == 2),
    )
    .await;
    for server in &servers[..count] {
        server.held.lock().chunks.insert(chunk, (ChunkVersion(1), false, true));
    }
    for server in &servers[..count] {
        server.tell(chunk).await;
    }
    // The one that wins, and no other, is read before the other was made anew.
    let mut readers = std::collections::BTreeSet::new();
    until("the other was made anew", || {
        if let Location::At { version: READ_ONLY, servers } = meta.chunks.for_reading(chunk) {
            readers.extend(servers.into_iter().map(|(id, _)| id));
        }
        let copied = servers.iter().any(|server| server.held.lock().copied.contains(&chunk));
        let whole = where_it_is(&meta, &servers, chunk).len() == 2;
        copied && whole && meta.chunks.status().unwrap().doubtful_replicas == 0
    })
    .await;
    assert!(committed(&meta, chunk) > ChunkVersion(1));
    assert_eq!(committed(&meta, chunk).losses(), u64::from(count == 2), "an fsync has to tell");
    let copied = |server: &Fake| server.held.lock().copied.contains(&chunk);
    let copies: Vec<_> = servers.iter().filter(|server| copied(server)).map(|server| server.id).collect();
    assert_eq!(copies.len(), 1, "one of them wins");
    if count == 1 {
        assert_eq!(copies, [servers[0].id], "the one without a doubt wins");
        assert!(!readers.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_waits_a_moment_for_servers_that_are_just_coming() {
    let meta = Meta::start().await;
    let _first = Fake::start(&meta, 1, Arc::default(), Vec::new()).await.unwrap();
    until("the first is described", || meta.chunks.place(1).is_ok()).await;
    assert_eq!(meta.chunks.place(2), Err(gofs_tree::FsError::Busy), "others may come");
    let _second = Fake::start(&meta, 2, Arc::default(), Vec::new()).await.unwrap();
    until("both are taken", || {
        let placed = meta.chunks.place(2);
        assert!(placed.as_ref().is_ok_and(|it| it.len() == 2) || placed == Err(gofs_tree::FsError::Busy));
        placed.is_ok()
    })
    .await;
    // Nobody comes any more: after the patience there are two.
    until("it does not wait for ever", || meta.chunks.place(3).is_ok_and(|placed| placed.len() == 2)).await;
}

/// Written on both servers, and lost there with their power before they told of it. What nothing is committed of only its writer misses.
async fn lost_untold(is_committed: bool) -> Location {
    let mut meta = Meta::start().await;
    let servers = fakes(&meta, 1..=2).await;
    meta.make_file(2).await;
    let (chunk, version) = (ChunkId(1), ChunkVersion(1));
    meta.one.edit(EditOp::AddChunk { ino: FILE, index: ChunkIndex(0), chunk }).await;
    meta.chunks.assigned(chunk, version, &[servers[0].id, servers[1].id]);
    if is_committed {
        let (blocks_4k, mtime) = (vec![(ChunkIndex(0), 1)], Timestamp::new(1, 0));
        let extend = EditOp::Extend { ino: FILE, size: 4096, mtime, blocks_4k, clear_inline: false };
        meta.one.edit(extend).await;
    }
    until("all have listed their chunks", || meta.chunks.is_settled()).await;
    if !is_committed {
        assert!(matches!(meta.chunks.for_writing(chunk, false).await, Location::At { .. }));
        meta.chunks.bad_replica(chunk, servers[0].id, false);
    }
    until("nobody is expected to have it", || meta.chunks.is_gone(chunk)).await;
    meta.chunks.for_writing(chunk, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_was_lost_before_its_servers_told_of_it_is_placed_anew_as_one_that_lost_writes() {
    let Location::At { version, servers } = lost_untold(false).await else { panic!("it has no place") };
    assert!(version.losses() != ChunkVersion(1).losses() && servers.len() == 2, "{version:?} {servers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_with_bytes_that_was_lost_before_its_servers_told_of_it_is_lost() {
    assert_eq!(lost_untold(true).await, Location::Absent { may_return: false });
}

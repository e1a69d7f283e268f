//! Whole servers on loopback.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gofs_chunk::Server;
use gofs_proto::chunk::{Hello, Hop, Punch, Read, Stat, Sync, SyncItem, Welcome, Write, Writer};
use gofs_proto::cluster::{DeleteChunk, Fence, SetVersion, VerifyChunk, instruction::Body};
use gofs_proto::frame::Frame;
use gofs_proto::kind::Request;
use gofs_proto::session::Failure;
use gofs_proto::session::failure::Code;
use gofs_proto::{CallError, Link, LinkHandler};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fake_meta::{CLUSTER, FakeMeta};
use super::node::{NoRequests, code, config, connect, connect_as, node, put, refusal, write};
use super::support::{bytes, rng};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_adopted_and_stays_itself() {
    let dir = tempfile::tempdir().unwrap();
    let first = node(dir.path()).await;
    let id = first.id;
    put(&first.link, &write(5, 3, 0, b"kept", vec![]), b"kept").await.unwrap();
    let news = first.meta.chunk(5, |state| !state.gone).await;
    assert_eq!(news.version, 3);
    first.meta.status(|status| status.chunks == 1 && status.disks[0].free_bytes > 0).await;
    first.server.shutdown().await;
    assert!(first.link.is_closed());

    let again = node(dir.path()).await;
    assert_eq!(again.id, id);
    let register = again.meta.registered().await;
    assert_eq!(&register.cluster[..], CLUSTER);
    again.meta.chunk(5, |state| state.version == 3).await;
    assert_eq!(&again.read(5, 3, 0, 4).await.unwrap()[..], b"kept");
    again.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_found_through_a_follower_and_a_dead_server() {
    let dir = tempfile::tempdir().unwrap();
    let leader = FakeMeta::start().await;
    let follower = FakeMeta::follower(leader.address).await;
    let mut config = config(dir.path(), &follower);
    config.meta = vec!["127.0.0.1:1".to_owned(), follower.address.to_string()];
    let server = Server::start(config).await.unwrap();
    leader.registered().await;
    assert_eq!(follower.registrations().await, 0);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_for_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path()).await;
    put(&node.link, &write(5, 3, 0, b"bytes", vec![]), b"bytes").await.unwrap();
    for version in [2, 4] {
        assert_eq!(code(put(&node.link, &write(5, version, 0, b"x", vec![]), b"x").await), Code::StaleChunk);
    }
    assert_eq!(code(node.read(5, 4, 0, 1).await), Code::StaleChunk);
    assert_eq!(&node.read(5, 2, 0, 5).await.unwrap()[..], b"bytes");
    assert_eq!(code(node.read(6, 1, 0, 1).await), Code::NoChunk);
    let mut absent = write(6, 1, 0, b"x", vec![]);
    absent.items[0].create = false;
    assert_eq!(code(put(&node.link, &absent, b"x").await), Code::NoChunk);
    assert_eq!(code(put(&node.link, &write(5, 3, 0, b"x", vec![]), b"y").await), Code::BadRequest);
    assert_eq!(code(put(&node.link, &write(5, 3, 0, b"xy", vec![]), b"x").await), Code::BadRequest);
    assert_eq!(code(put(&node.link, &write(5, 3, u32::MAX, b"x", vec![]), b"x").await), Code::BadRequest);
    let sync = Sync {
        items: vec![
            SyncItem { chunk: 5, version: 3, written: 0 },
            SyncItem { chunk: 6, version: 1, written: 0 },
        ],
    };
    assert_eq!(code(node.link.call(&sync, Vec::new()).await), Code::NoChunk);
    let sync = Sync { items: vec![SyncItem { chunk: 5, version: 4, written: 0 }] };
    assert_eq!(code(node.link.call(&sync, Vec::new()).await), Code::StaleChunk);

    node.meta.instruct(Body::Fence(Fence { session: 9 })).await.unwrap();
    let fenced = refusal(put(&node.link, &write(5, 3, 0, b"x", vec![]), b"x").await);
    assert!(fenced.code() == Code::StaleChunk && fenced.text.contains("fenced"), "{}", fenced.text);
    let punch = Punch {
        writer: Some(Writer { namespace: 1, session: 9 }),
        chunk: 5,
        version: 3,
        len: 1,
        ..Punch::default()
    };
    assert_eq!(code(node.link.call(&punch, Vec::new()).await), Code::StaleChunk);
    assert_eq!(&node.read(5, 3, 0, 5).await.unwrap()[..], b"bytes");
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_fenced_before_the_registration_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let meta = FakeMeta::with(None, vec![9]).await;
    let server = Server::start(config(dir.path(), &meta)).await.unwrap();
    meta.registered().await;
    let link = connect(&server).await;
    assert_eq!(code(put(&link, &write(5, 1, 0, b"x", vec![]), b"x").await), Code::StaleChunk);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_write_only_while_a_metaserver_hears_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let meta = FakeMeta::with_lease(400).await;
    let server = Server::start(config(dir.path(), &meta)).await.unwrap();
    meta.registered().await;
    let link = connect(&server).await;
    // Four times as long as the lease, which the answers renew.
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_millis(1600) {
        match put(&link, &write(5, 1, 0, b"x", vec![]), b"x").await {
            Ok(_) => {}
            // This machine was busy for as long as the lease.
            Err(CallError::Refused(failure)) => assert_eq!(failure.code(), Code::Retry, "{}", failure.text),
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    meta.answer(false);
    let refused = until_refused(&link).await;
    assert!(refused.code() == Code::Retry && refused.text.contains("MetaServer"), "{}", refused.text);
    // Reads go on.
    link.call(&Read { chunk: 5, version: 1, offset: 0, len: 1, copy: false }, Vec::new()).await.unwrap();
    meta.answer(true);
    let accepted = async {
        while put(&link, &write(5, 1, 0, b"y", vec![]), b"y").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), accepted).await.expect("writes are taken again");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_behind_that_does_not_know_who_may_write_is_not_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(&dir.path().join("a")).await;
    let meta = FakeMeta::with_lease(400).await;
    let b = Server::start(config(&dir.path().join("b"), &meta)).await.unwrap();
    meta.registered().await;
    meta.answer(false);
    let link = connect(&b).await;
    until_refused(&link).await;
    let hop = Hop { server: b.id().0, address: b.address().to_string() };
    let behind = write(5, 1, 0, b"x", vec![hop]);
    assert_eq!(code(put(&a.link, &behind, b"x").await), Code::Retry);
    meta.answer(true);
    let taken = async {
        loop {
            match put(&a.link, &behind, b"x").await {
                Ok(reply) => return reply,
                Err(error) => assert_eq!(code::<()>(Err(error)), Code::Retry),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let reply = tokio::time::timeout(Duration::from_secs(30), taken).await.expect("it is taken again");
    assert!(reply.failed.is_empty() && reply.done.len() == 1, "{reply:?}");
    a.server.shutdown().await;
    b.shutdown().await;
}

/// Writes until that is refused.
async fn until_refused(link: &Link) -> Failure {
    let refused = async {
        loop {
            if let Err(CallError::Refused(failure)) = put(link, &write(5, 1, 0, b"x", vec![]), b"x").await {
                return failure;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), refused).await.expect("writes are refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_restarted_takes_no_writes_before_it_knows_who_may() {
    let dir = tempfile::tempdir().unwrap();
    let first = node(dir.path()).await;
    put(&first.link, &write(5, 1, 0, b"kept", vec![]), b"kept").await.unwrap();
    first.server.shutdown().await;
    // Nobody there to register with.
    let mut config = config(dir.path(), &first.meta);
    config.meta = vec!["127.0.0.1:1".to_owned()];
    let server = Server::start(config).await.unwrap();
    let link = connect(&server).await;
    assert_eq!(code(put(&link, &write(5, 1, 0, b"lost", vec![]), b"lost").await), Code::Retry);
    let (_, bytes) =
        link.call(&Read { chunk: 5, version: 1, offset: 0, len: 4, copy: false }, Vec::new()).await.unwrap();
    assert_eq!(&bytes[..], b"kept");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_reaches_all_of_a_chain_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(&dir.path().join("a")).await;
    let b = node(&dir.path().join("b")).await;
    let c = node(&dir.path().join("c")).await;
    let chain = vec![b.hop(), c.hop()];
    let mut rng = rng(3);
    // Overlapping writes, all on their way at once: the last of each byte counts on every server.
    let mut expected = vec![0; 300_000];
    let mut calls = Vec::new();
    for i in 0..200usize {
        let offset = (i * 7919) % 250_000;
        let data = bytes(&mut rng, 1 + (i * 613) % 40_000);
        expected[offset..offset + data.len()].copy_from_slice(&data);
        calls.push(a.link.call(&write(1, 1, offset as u32, &data, chain.clone()), vec![Bytes::from(data)]));
    }
    for call in calls {
        let (reply, _) = call.await.unwrap();
        assert!(reply.failed.is_empty() && reply.done.len() == 1, "{reply:?}");
    }
    let punch = Punch {
        writer: None,
        chunk: 1,
        version: 1,
        offset: 8192,
        len: 10_000,
        chain: chain.clone(),
        sync: true,
    };
    let (reply, _) = a.link.call(&punch, Vec::new()).await.unwrap();
    assert!(reply.failed.is_empty());
    expected[8192..18_192].fill(0);
    for node in [&a, &b, &c] {
        assert!(node.read(1, 1, 0, 300_000).await.unwrap()[..] == expected[..]);
        let (stat, _) = node.link.call(&Stat { chunk: 1 }, Vec::new()).await.unwrap();
        assert_eq!((stat.version, stat.blocks_4k), (1, reply.blocks_4k));
        let sync = Sync { items: vec![SyncItem { chunk: 1, version: 1, written: 0 }] };
        node.link.call(&sync, Vec::new()).await.unwrap();
    }
    for node in [a, b, c] {
        node.server.shutdown().await;
    }
}

/// One frame with bytes for several chunks.
fn write_all(items: &[(u64, u64, u32, &[u8])], chain: Vec<Hop>) -> (Write, Vec<Bytes>) {
    let parts =
        items.iter().map(|&(chunk, version, offset, bytes)| write(chunk, version, offset, bytes, vec![]));
    let items_of_all = parts.flat_map(|write| write.items).collect();
    let payload = items.iter().map(|(.., bytes)| Bytes::copy_from_slice(bytes)).collect();
    (Write { items: items_of_all, ..write(0, 0, 0, b"", chain) }, payload)
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_for_several_chunks_share_a_frame_and_keep_the_order_of_each() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(&dir.path().join("a")).await;
    let b = node(&dir.path().join("b")).await;
    let mut rng = rng(5);
    let mut expected = vec![vec![0; 60_000]; 5];
    let mut calls = Vec::new();
    for i in 0..200usize {
        let mut items: Vec<(u64, u64, u32, Vec<u8>)> = Vec::new();
        for k in 0..1 + i % 4 {
            let (chunk, offset) = ((i * 7 + k * 3) % 5, (i * 7919 + k * 4096) % 50_000);
            let data = bytes(&mut rng, 1 + (i * 613 + k) % 9_000);
            expected[chunk][offset..offset + data.len()].copy_from_slice(&data);
            items.push((chunk as u64 + 1, 1, offset as u32, data));
        }
        let items: Vec<_> = items.iter().map(|(c, v, o, data)| (*c, *v, *o, &data[..])).collect();
        let (frame, payload) = write_all(&items, vec![b.hop()]);
        calls.push((items.len(), a.link.call(&frame, payload)));
    }
    for (items, call) in calls {
        let (reply, _) = call.await.unwrap();
        assert!(reply.failed.is_empty() && reply.done.len() == items, "{reply:?}");
    }
    for node in [&a, &b] {
        for (chunk, bytes) in expected.iter().enumerate() {
            assert!(node.read(chunk as u64 + 1, 1, 0, 60_000).await.unwrap()[..] == bytes[..], "{chunk}");
        }
    }
    a.server.shutdown().await;
    b.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_for_several_chunks_is_refused_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(&dir.path().join("a")).await;
    let b = node(&dir.path().join("b")).await;
    put(&a.link, &write(2, 5, 0, b"newer", vec![]), b"newer").await.unwrap();
    // Refused by the first server: neither it nor those behind have any of it.
    let (frame, payload) = write_all(&[(1, 1, 0, b"one"), (2, 1, 0, b"two")], vec![b.hop()]);
    assert_eq!(code(a.link.call(&frame, payload).await), Code::StaleChunk);
    assert_eq!(code(a.read(1, 1, 0, 1).await), Code::NoChunk);
    assert_eq!(code(b.read(1, 1, 0, 1).await), Code::NoChunk);
    // Refused by the one behind: that one is named for all of it, and the first has all of it.
    put(&b.link, &write(4, 5, 0, b"newer", vec![]), b"newer").await.unwrap();
    let (frame, payload) = write_all(&[(3, 1, 0, b"three"), (4, 1, 0, b"four")], vec![b.hop()]);
    let (reply, _) = a.link.call(&frame, payload).await.unwrap();
    assert_eq!((reply.done.len(), reply.failed.len(), reply.failed[0].server), (2, 1, b.id));
    assert_eq!(&a.read(3, 1, 0, 5).await.unwrap()[..], b"three");
    assert_eq!(&a.read(4, 1, 0, 4).await.unwrap()[..], b"four");
    assert_eq!(code(b.read(3, 1, 0, 1).await), Code::NoChunk);
    a.server.shutdown().await;
    b.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_write_lets_none_behind_it_overtake() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(&dir.path().join("a")).await;
    let b = node(&dir.path().join("b")).await;
    let mut calls = Vec::new();
    let mut refused = Vec::new();
    for i in 0..100u8 {
        let data = vec![i; 300_000];
        calls.push(a.link.call(&write(1, 1, 0, &data, vec![b.hop()]), vec![Bytes::from(data)]));
        // Bytes that are not those of the checksum, and a version that is not there.
        refused.push(a.link.call(&write(1, 1, 0, b"x", vec![b.hop()]), vec![Bytes::from_static(b"y")]));
        refused.push(a.link.call(&write(1, 2, 0, b"x", vec![b.hop()]), vec![Bytes::from_static(b"x")]));
    }
    for call in calls {
        assert!(call.await.unwrap().0.failed.is_empty());
    }
    for call in refused {
        assert!(matches!(call.await, Err(CallError::Refused(_))));
    }
    for node in [&a, &b] {
        assert!(node.read(1, 1, 0, 300_000).await.unwrap().iter().all(|byte| *byte == 99));
    }
    a.server.shutdown().await;
    b.server.shutdown().await;
}

/// A server that takes requests and answers nothing but Hello, until it is let go.
struct Deaf {
    server: u64,
    heard: tokio::sync::Semaphore,
}

impl LinkHandler for Deaf {
    fn on_request(&self, link: &Arc<Link>, frame: Frame) {
        if frame.kind == Hello::KIND {
            let welcome = Welcome { version: 1, server: self.server, incarnation: 1 };
            return link.reply::<Hello>(frame.id, &welcome, Vec::new());
        }
        self.heard.add_permits(1);
    }

    fn on_close(&self, _: &Arc<Link>) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writers_next_connection_begins_when_nothing_of_the_one_before_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(dir.path()).await;
    let writer = Bytes::from_static(b"a writer");
    let before = connect_as(&a.server, writer.clone()).await;
    // Under way until the server behind it is given up.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hop = Hop { server: 77, address: listener.local_addr().unwrap().to_string() };
    let deaf = Arc::new(Deaf { server: 77, heard: tokio::sync::Semaphore::new(0) });
    let slow = tokio::spawn({
        let before = before.clone();
        async move { put(&before, &write(1, 1, 0, b"older", vec![hop]), b"older").await }
    });
    let behind = Link::accept(listener.accept().await.unwrap().0, deaf.clone()).unwrap();
    deaf.heard.acquire().await.unwrap().forget();

    let mut next = Box::pin(connect_as(&a.server, writer));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut next).await.is_err(), "greeted too early");
    // Nobody else waits.
    put(&a.link, &write(2, 1, 0, b"other", vec![]), b"other").await.unwrap();
    behind.close();
    let next = next.await;
    put(&next, &write(1, 1, 0, b"newer", vec![]), b"newer").await.unwrap();
    // What comes over the old one now was sent before, and is late.
    assert!(put(&before, &write(1, 1, 0, b"late!", vec![]), b"late!").await.is_err());
    assert!(before.is_closed());
    assert_eq!(slow.await.unwrap().unwrap().failed[0].server, 77, "it was answered while the other waited");
    assert_eq!(&a.read(1, 1, 0, 5).await.unwrap()[..], b"newer");
    a.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_reads_that_come_together_are_each_answered() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path()).await;
    let data = bytes(&mut rng(3), 2 << 20);
    for (at, piece) in data.chunks(1 << 20).enumerate() {
        put(&node.link, &write(1, 1, (at << 20) as u32, piece, vec![]), piece).await.unwrap();
    }
    put(&node.link, &write(2, 1, 0, &data[..5000], vec![]), &data[..5000]).await.unwrap();
    // The second round has everything in memory.
    for _ in 0..2 {
        let call = |chunk, version, offset, len| {
            node.link.call(&Read { chunk, version, offset, len, copy: false }, Vec::new())
        };
        let calls: Vec<_> = (0..300u32)
            .map(|n| {
                let (offset, len) = (n * 6151 % (1 << 20), 1 + n * 37 % 9000);
                let found = call(1, 1, offset, len);
                (offset, len, found, call(2, 1, n * 16, 200), call(3, 1, 0, 10), call(1, 2, 0, 10))
            })
            .collect();
        for (n, (offset, len, large, small, none, stale)) in calls.into_iter().enumerate() {
            let (reply, found) = large.await.unwrap();
            assert_eq!(found, data[offset as usize..][..len as usize]);
            assert_eq!(reply.crc32c, crc32c::crc32c(&found));
            let (reply, found) = small.await.unwrap();
            let mut expected: Vec<u8> = data[..5000].iter().skip(n * 16).take(200).copied().collect();
            expected.resize(200, 0);
            assert_eq!(found, expected);
            assert_eq!(reply.crc32c, crc32c::crc32c(&found));
            assert_eq!(code(none.await), Code::NoChunk);
            assert_eq!(code(stale.await), Code::StaleChunk);
        }
    }
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_free_when_its_server_has_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut id = None;
    for round in 0..5u8 {
        let node = node(dir.path()).await;
        assert_eq!(*id.get_or_insert(node.id), node.id);
        // On its way while the server stops.
        let bytes = vec![round; 9];
        let _unanswered =
            node.link.call(&write(1, 1, round.into(), &bytes, vec![]), vec![Bytes::from(bytes)]);
        node.server.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_server_in_the_middle_is_named_and_the_others_hold_the_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(&dir.path().join("a")).await;
    let b = node(&dir.path().join("b")).await;
    let c = node(&dir.path().join("c")).await;
    let chain = vec![b.hop(), c.hop()];
    put(&a.link, &write(1, 1, 0, b"before", chain.clone()), b"before").await.unwrap();
    let dead = b.id;
    b.server.shutdown().await;
    // Both with the connection that has just ended and without any.
    for text in [b"first!", b"second"] {
        let mut write = write(1, 1, 0, text, chain.clone());
        write.sync = true;
        let reply = put(&a.link, &write, text).await.unwrap();
        assert_eq!(reply.failed.iter().map(|failed| failed.server).collect::<Vec<_>>(), [dead], "{reply:?}");
        assert_eq!(reply.done.len(), 1);
        for node in [&a, &c] {
            assert_eq!(&node.read(1, 1, 0, 6).await.unwrap()[..], text);
        }
    }
    // A server that never was there, at the end.
    let nobody = Hop { server: 77, address: "127.0.0.1:1".to_owned() };
    let reply = put(&a.link, &write(1, 1, 0, b"third!", vec![c.hop(), nobody]), b"third!").await.unwrap();
    assert_eq!(reply.failed.iter().map(|failed| failed.server).collect::<Vec<_>>(), [77]);
    assert_eq!(&c.read(1, 1, 0, 6).await.unwrap()[..], b"third!");
    // Another server at the address than the one that is meant.
    let wrong = Hop { server: 78, address: c.server.address().to_string() };
    let reply = put(&a.link, &write(2, 1, 0, b"x", vec![wrong]), b"x").await.unwrap();
    assert_eq!(reply.failed[0].server, 78);
    assert_eq!(code(c.read(2, 1, 0, 1).await), Code::NoChunk);
    a.server.shutdown().await;
    c.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_behind_that_refuses_is_named_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(&dir.path().join("a")).await;
    let b = node(&dir.path().join("b")).await;
    put(&b.link, &write(1, 5, 0, b"other", vec![]), b"other").await.unwrap();
    let reply = put(&a.link, &write(1, 1, 0, b"bytes", vec![b.hop()]), b"bytes").await.unwrap();
    assert_eq!(reply.failed[0].server, b.id);
    assert!(reply.failed[0].text.contains("v5"), "{reply:?}");
    assert_eq!(&a.read(1, 1, 0, 5).await.unwrap()[..], b"bytes");
    a.server.shutdown().await;
    b.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_move_and_chunks_go_as_instructed() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path()).await;
    put(&node.link, &write(1, 1, 0, b"bytes", vec![]), b"bytes").await.unwrap();
    node.meta.instruct(Body::SetVersion(SetVersion { chunk: 1, from: 1, to: 4, sure: true })).await.unwrap();
    node.meta.instruct(Body::SetVersion(SetVersion { chunk: 1, from: 1, to: 4, sure: true })).await.unwrap();
    assert!(
        node.meta
            .instruct(Body::SetVersion(SetVersion { chunk: 1, from: 1, to: 5, sure: true }))
            .await
            .is_err()
    );
    assert!(
        node.meta
            .instruct(Body::SetVersion(SetVersion { chunk: 2, from: 1, to: 5, sure: true }))
            .await
            .is_err()
    );
    assert_eq!(code(put(&node.link, &write(1, 1, 0, b"x", vec![]), b"x").await), Code::StaleChunk);
    node.meta.chunk(1, |state| state.version == 4).await;
    node.meta.instruct(Body::Verify(VerifyChunk { chunk: 1 })).await.unwrap();
    assert!(node.meta.instruct(Body::Verify(VerifyChunk { chunk: 2 })).await.is_err());
    assert!(node.meta.instruct(Body::Delete(DeleteChunk { chunk: 1, version: 3 })).await.is_err());
    node.meta.instruct(Body::Delete(DeleteChunk { chunk: 1, version: 4 })).await.unwrap();
    node.meta.instruct(Body::Delete(DeleteChunk { chunk: 1, version: 4 })).await.unwrap();
    node.meta.chunk(1, |state| state.gone).await;
    assert_eq!(code(node.read(1, 4, 0, 1).await), Code::NoChunk);
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_at_the_door_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path()).await;
    let mut rng = rng(6);
    let connect_raw = || tokio::net::TcpStream::connect(node.server.address());
    let mut half = connect_raw().await.unwrap();
    half.write_all(b"gofs").await.unwrap();
    for kind in 0..20 {
        let mut stream = connect_raw().await.unwrap();
        if kind % 2 == 0 {
            stream.write_all(b"gofsfr1\n").await.unwrap();
        }
        if kind % 5 == 0 {
            // A frame that announces more than is allowed.
            stream.write_all(&[0xff; 24]).await.ok();
        }
        stream.write_all(&bytes(&mut rng, 10_000)).await.ok();
        // The server ends it.
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "garbage of kind {kind} was not let go");
    }
    // A request before the Hello, and a request of another door.
    let link =
        Link::connect(node.server.address(), Arc::new(NoRequests), Duration::from_secs(5)).await.unwrap();
    assert_eq!(code(link.call(&Stat { chunk: 1 }, Vec::new()).await), Code::BadRequest);
    let link =
        Link::connect(node.server.address(), Arc::new(NoRequests), Duration::from_secs(5)).await.unwrap();
    let other = Hello { version: 1, oldest_version: 1, cluster: vec![7; 16].into(), writer: Bytes::new() };
    assert_eq!(code(link.call(&other, Vec::new()).await), Code::WrongCluster);
    let newer =
        Hello { version: 9, oldest_version: 8, cluster: CLUSTER.to_vec().into(), writer: Bytes::new() };
    assert_eq!(code(link.call(&newer, Vec::new()).await), Code::BadVersion);
    let ahead = Hello { version: 2, oldest_version: 1, ..newer };
    assert_eq!(link.call(&ahead, Vec::new()).await.unwrap().0.version, 1, "one that is a version ahead");
    assert_eq!(
        code(node.link.call(&gofs_proto::session::KeepAlive::default(), Vec::new()).await),
        Code::BadRequest
    );
    put(&node.link, &write(5, 1, 0, b"still here", vec![]), b"still here").await.unwrap();
    assert_eq!(&node.read(5, 1, 0, 10).await.unwrap()[..], b"still here");
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_not_ours_is_refused_in_words() {
    let root = tempfile::tempdir().unwrap();
    let meta = FakeMeta::start().await;
    let foreign = root.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.tex"), "precious").unwrap();
    let error = format!("{:#}", Server::start(config(&foreign, &meta)).await.err().unwrap());
    assert!(error.contains("thesis.tex") && error.contains("empty"), "{error}");
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1);

    let ours = root.path().join("ours");
    let server = Server::start(config(&ours, &meta)).await.unwrap();
    let error = format!("{:#}", Server::start(config(&ours, &meta)).await.err().unwrap());
    assert!(error.contains("in use"), "{error}");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_change_clusters() {
    let dir = tempfile::tempdir().unwrap();
    let other = gofs_chunk::store::identity::Identity {
        cluster: Some([0x33; 16]),
        server: gofs_tree::ChunkServerId(5),
        disk: 6,
        starts: 1,
    };
    gofs_chunk::store::identity::write(dir.path(), &other).unwrap();
    let meta = FakeMeta::start().await;
    let server = Server::start(config(dir.path(), &meta)).await.unwrap();
    // It is let in by the fake, which checks nothing, and leaves of itself.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(meta.registrations().await > 0);
    assert!(!meta.has_report().await);
    server.shutdown().await;
    let kept = gofs_chunk::store::identity::Identity { starts: 2, ..other };
    assert_eq!(gofs_chunk::store::identity::claim(dir.path()).unwrap().identity, Some(kept));
}

#[tokio::test]
async fn a_runtime_of_one_thread_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path()).await;
    let mut write = write(1, 1, 0, b"bytes", vec![]);
    write.sync = true;
    put(&node.link, &write, b"bytes").await.unwrap();
    assert_eq!(&node.read(1, 1, 0, 5).await.unwrap()[..], b"bytes");
    node.server.shutdown().await;
}

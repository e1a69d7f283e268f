//! Replicas that are made of other servers' ones.

use std::time::{Duration, Instant};

use gofs_proto::chunk::{Extents, Stat, Sync, SyncItem};
use gofs_proto::cluster::{CopyChunk, VerifyChunk, instruction::Body};
use gofs_proto::session::failure::Code;

use super::node::{Node, code, node, node_of, put, write};
use super::support::{bytes, rng};

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_is_copied_with_its_holes_and_shows_when_complete() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(&dir.path().join("a")).await;
    let b = node(&dir.path().join("b")).await;
    let mut rng = rng(4);
    for (offset, len) in [(0u32, 100), (500_000, 1_500_000), (5_000_000, 4096)] {
        let data = bytes(&mut rng, len);
        put(&a.link, &write(1, 7, offset, &data, vec![]), &data).await.unwrap();
    }
    let from =
        |nodes: &[&Node]| nodes.iter().map(|node| node.server.address().to_string()).collect::<Vec<_>>();
    // From a server that is not there, then from the right one.
    let sources = [vec!["127.0.0.1:1".to_owned()], from(&[&a])].concat();
    b.meta
        .instruct(Body::Copy(CopyChunk { chunk: 1, version: 7, from: sources, bytes_s: 0, busy_bytes_s: 0 }))
        .await
        .unwrap();
    assert_eq!(b.meta.chunk(1, |state| !state.gone).await.version, 7);
    assert!(a.read(1, 7, 0, 5_004_096).await.unwrap() == b.read(1, 7, 0, 5_004_096).await.unwrap());
    let extents =
        async |node: &Node| node.link.call(&Extents { chunk: 1, version: 7 }, Vec::new()).await.unwrap().0;
    assert_eq!(extents(&a).await, extents(&b).await);
    // Again: it is there.
    b.meta
        .instruct(Body::Copy(CopyChunk { chunk: 1, version: 7, from: vec![], bytes_s: 0, busy_bytes_s: 0 }))
        .await
        .unwrap();

    // What cannot be copied leaves nothing.
    let wrong = CopyChunk { chunk: 1, version: 8, from: from(&[&a]), bytes_s: 0, busy_bytes_s: 0 };
    let error = b.meta.instruct(Body::Copy(wrong)).await.unwrap_err();
    assert!(error.contains("v7"), "{error}");
    let absent = CopyChunk { chunk: 99, version: 1, from: from(&[&a]), bytes_s: 0, busy_bytes_s: 0 };
    assert!(b.meta.instruct(Body::Copy(absent)).await.is_err());
    assert_eq!(code(b.link.call(&Stat { chunk: 99 }, Vec::new()).await), Code::NoChunk);
    a.server.shutdown().await;
    b.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_asked_for_again_disturbs_the_first_one_not() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(&dir.path().join("a")).await;
    let b = node(&dir.path().join("b")).await;
    let data = bytes(&mut rng(5), 4 << 20);
    for chunk in 1..=6 {
        put(&a.link, &write(chunk, 1, 0, &data, vec![]), &data).await.unwrap();
        let order = |from: String| {
            b.meta.instruct(Body::Copy(CopyChunk {
                chunk,
                version: 1,
                from: vec![from],
                bytes_s: 0,
                busy_bytes_s: 0,
            }))
        };
        let right = async {
            loop {
                match order(a.server.address().to_string()).await {
                    // The other was first.
                    Err(error) if error.contains("already") => {}
                    result => return result.unwrap(),
                }
            }
        };
        let again = async {
            // It cannot succeed before the first has, and removes what it has staged.
            while order("127.0.0.1:1".to_owned()).await.is_err() {}
        };
        tokio::join!(right, again);
        assert!(b.read(chunk, 1, 0, 4 << 20).await.unwrap() == data);
        let (extents, _) = b.link.call(&Extents { chunk, version: 1 }, Vec::new()).await.unwrap();
        assert_eq!(extents.extents.iter().map(|extent| extent.blocks_4k).sum::<u32>(), 1024);
    }
    a.server.shutdown().await;
    b.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_replica_is_replaced_by_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(&dir.path().join("a")).await;
    let b = node(&dir.path().join("b")).await;
    put(&a.link, &write(1, 2, 0, b"new", vec![]), b"new").await.unwrap();
    put(&b.link, &write(1, 1, 0, b"older and longer", vec![]), b"older and longer").await.unwrap();
    let order = CopyChunk {
        chunk: 1,
        version: 2,
        from: vec![a.server.address().to_string()],
        bytes_s: 0,
        busy_bytes_s: 0,
    };
    b.meta.instruct(Body::Copy(order)).await.unwrap();
    assert_eq!(&b.read(1, 2, 0, 16).await.unwrap()[..], b"new\0\0\0\0\0\0\0\0\0\0\0\0\0");
    a.server.shutdown().await;
    b.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_refused_reported_and_repaired_by_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(&dir.path().join("a")).await;
    let b = node(&dir.path().join("b")).await;
    let data = bytes(&mut rng(5), 200_000);
    put(&a.link, &write(1, 1, 0, &data, vec![b.hop()]), &data).await.unwrap();
    let log = dir.path().join("a/log");
    for entry in std::fs::read_dir(dir.path().join("a/chunks/01")).unwrap() {
        let file = std::fs::File::options().write(true).open(entry.unwrap().path()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0x55; 4096], 20 * 4096).unwrap();
    }
    assert!(log.exists());
    assert_eq!(code(a.read(1, 1, 0, 200_000).await), Code::Corrupt);
    a.meta.chunk(1, |state| state.corrupt).await;
    a.meta.status(|status| status.corrupt_blocks_total == 1).await;
    assert!(a.meta.instruct(Body::Verify(VerifyChunk { chunk: 1 })).await.is_err());
    let order = CopyChunk {
        chunk: 1,
        version: 1,
        from: vec![b.server.address().to_string()],
        bytes_s: 0,
        busy_bytes_s: 0,
    };
    a.meta.instruct(Body::Copy(order)).await.unwrap();
    assert!(a.read(1, 1, 0, 200_000).await.unwrap()[..] == data[..]);
    a.meta.chunk(1, |state| !state.corrupt && !state.gone).await;
    a.server.shutdown().await;
    b.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_of_a_disk_that_failed_is_copied_to_another_of_the_same_server() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(&dir.path().join("a")).await;
    let disks = [dir.path().join("b1"), dir.path().join("b2")];
    let b = node_of(disks.to_vec()).await;
    let data = bytes(&mut rng(8), 200_000);
    put(&a.link, &write(1, 2, 0, &data, vec![]), &data).await.unwrap();
    put(&b.link, &write(1, 1, 0, &data, vec![]), &data).await.unwrap();
    // Without a place for the next segment of its log the disk fails.
    let failing = disks.iter().find(|disk| disk.join("chunks/01").exists()).unwrap();
    std::fs::remove_dir_all(failing.join("log")).unwrap();
    while put(&b.link, &write(1, 1, 0, &data, vec![]), &data).await.is_ok() {}
    b.meta.status(|status| status.disks.iter().any(|disk| !disk.error.is_empty())).await;

    let from = vec![a.server.address().to_string()];
    let order = CopyChunk { chunk: 1, version: 2, from, bytes_s: 0, busy_bytes_s: 0 };
    b.meta.instruct(Body::Copy(order)).await.unwrap();
    assert!(b.read(1, 2, 0, 200_000).await.unwrap()[..] == data[..]);
    put(&b.link, &write(1, 2, 0, b"new", vec![]), b"new").await.unwrap();
    let items = vec![SyncItem { chunk: 1, version: 2, written: 2 }];
    b.link.call(&Sync { items }, Vec::new()).await.unwrap();
    a.server.shutdown().await;
    b.server.shutdown().await;
}

/// Copies chunks at 1 MiB a second while the target works for clients, else at any speed.
async fn copy_all(to: &Node, from: &Node, chunks: std::ops::Range<u64>) {
    for chunk in chunks {
        let from = vec![from.server.address().to_string()];
        let order = CopyChunk { chunk, version: 1, from, bytes_s: 0, busy_bytes_s: 1 << 20 };
        to.meta.instruct(Body::Copy(order)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_make_way_for_clients_and_not_for_one_another() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(&dir.path().join("a")).await;
    let b = node(&dir.path().join("b")).await;
    let c = node(&dir.path().join("c")).await;
    let data = bytes(&mut rng(7), 2 << 20);
    for chunk in 1..=8 {
        put(&a.link, &write(chunk, 1, 0, &data, vec![]), &data).await.unwrap();
    }
    // B is target and source, and no client wants anything of it: at 1 MiB a second it would be 20 s.
    let begun = Instant::now();
    copy_all(&b, &a, 1..5).await;
    copy_all(&c, &b, 1..5).await;
    copy_all(&b, &a, 5..7).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());

    let reads = async {
        loop {
            b.read(1, 1, 0, 4096).await.unwrap();
        }
    };
    let begun = Instant::now();
    tokio::select! {
        () = copy_all(&b, &a, 7..9) => {}
        () = reads => {}
    }
    assert!(begun.elapsed() > Duration::from_secs(2), "{:?}", begun.elapsed());
    for node in [a, b, c] {
        node.server.shutdown().await;
    }
}

//! Leases between two mounts.

use std::sync::atomic::Ordering;
use std::time::Duration;

use gofs_proto::session as wire;
use gofs_tree::{EditOp, FsError, Ino, NewNode, RenameFlags};

use crate::client::*;

const PAUSE: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread")]
async fn what_one_mount_creates_the_other_finds_once_it_is_given_back() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let made = a.create(ROOT, "f").await.unwrap();
    let ino = Ino(made.ino);
    assert_eq!(node_of(&made, ino).grant.as_ref().unwrap().mode(), wire::Mode::Write);
    let look = async { b.lookup(ROOT, "f").await };
    let recall = async {
        let asked = a.asked_for(ino).await;
        assert_eq!(asked.recall.keep(), wire::Mode::Read);
        // Its own requests pass while it is asked.
        let own = a.fetch(ino, wire::Mode::Read).await.unwrap();
        assert_eq!(own.grant, None);
        asked.answer(true);
    };
    let (found, ()) = tokio::join!(look, recall);
    assert_eq!(found.node.as_ref().unwrap().grant.as_ref().unwrap().mode(), wire::Mode::Read);
    assert_eq!(found.dir.unwrap().mode(), wire::Mode::Read);
    // And back: A wants to write, B and its lease are asked.
    let write = async { a.fetch(ino, wire::Mode::Write).await.unwrap() };
    let recall = async {
        let asked = b.asked().await;
        assert_eq!((asked.recall.ino, asked.recall.keep()), (ino.0, wire::Mode::None));
        asked.answer(false);
    };
    let (node, ()) = tokio::join!(write, recall);
    assert_eq!(node.grant.unwrap().mode(), wire::Mode::Write);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_known_to_be_missing_is_forgotten_before_it_is_made() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let missing = a.lookup(ROOT, "x").await;
    assert!(missing.node.is_none() && missing.dir.is_some());
    let mut making = Box::pin(b.create(ROOT, "x"));
    let asked = tokio::select! {
        asked = a.asked() => asked,
        result = &mut making => panic!("made before the other mount forgot: {result:?}"),
    };
    assert_eq!(asked.recall.names, [&b"x"[..]]);
    assert!(tokio::time::timeout(PAUSE, &mut making).await.is_err(), "it waits for the answer");
    asked.answer(false);
    making.await.unwrap();
    a.willing.store(true, Ordering::Relaxed);
    let (found, _) = tokio::join!(a.lookup(ROOT, "x"), async { b.asked().await.answer(false) });
    assert!(found.node.is_some());
    server.shutdown().await;
}

/// Acknowledges the first recall only when the own create was answered, if only with ESTALE: then it is asked again,
/// as the kernel does.
async fn create_then_answer(mount: &Mount, text: &str) -> Ino {
    let first = mount.create(ROOT, text).await;
    mount.willing.store(true, Ordering::Relaxed);
    mount.asked().await.answer(false);
    match first {
        Ok(result) => Ino(result.ino),
        Err(error) => {
            assert_eq!(error, FsError::Stale);
            Ino(mount.create(ROOT, text).await.unwrap().ino)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crossing_creates_end_though_each_mount_answers_only_after_its_own() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    a.lookup(ROOT, "a").await;
    b.lookup(ROOT, "b").await;
    let both = async { tokio::join!(create_then_answer(&a, "a"), create_then_answer(&b, "b")) };
    let (made_a, made_b) = tokio::time::timeout(Duration::from_secs(10), both).await.expect("a deadlock");
    assert_ne!(made_a, made_b);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_file_that_another_mount_unlinks_stays_until_it_is_closed() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let op = create(ROOT, "f", NewNode::File);
    let ino = Ino(a.edit_as(a.new_seq(), op, false, true).await.unwrap().ino);
    let remove = async { b.edit(unlink(ROOT, "f")).await.unwrap() };
    let recall = async {
        let asked = a.asked_for(ino).await;
        assert_eq!(asked.recall.keep(), wire::Mode::None);
        asked.answer(true);
    };
    let (removed, ()) = tokio::join!(remove, recall);
    assert_eq!(removed.removed, ino.0);
    b.willing.store(true, Ordering::Relaxed);
    let node = a.fetch(ino, wire::Mode::Write).await.unwrap();
    assert_eq!(node.attr.unwrap().nlink, 0);
    a.call(wire::Closed { ino: ino.0 }).await.unwrap();
    assert_eq!(a.fetch(ino, wire::Mode::Read).await, Err(FsError::Stale));
    // The same with the remover's own handle, and with no handle at all.
    let ino = Ino(a.create(ROOT, "g").await.unwrap().ino);
    let removed = a.edit_as(a.new_seq(), unlink(ROOT, "g"), true, false).await.unwrap();
    assert_eq!(removed.removed, ino.0);
    assert!(a.fetch(ino, wire::Mode::Read).await.is_ok());
    a.call(wire::Closed { ino: ino.0 }).await.unwrap();
    assert_eq!(a.fetch(ino, wire::Mode::Read).await, Err(FsError::Stale));
    let ino = Ino(a.create(ROOT, "h").await.unwrap().ino);
    a.edit(unlink(ROOT, "h")).await.unwrap();
    assert_eq!(a.fetch(ino, wire::Mode::Read).await, Err(FsError::Stale));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_comes_in_pages_and_makes_no_writer_flush() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let dir = a.mkdir(ROOT, "dir").await;
    for at in 0..10 {
        a.create(dir, &format!("n{at}")).await.unwrap();
    }
    a.call(wire::Release { inos: (dir.0..=dir.0 + 5).collect() }).await.unwrap();
    let mut names = Vec::new();
    let mut with_node = 0;
    loop {
        let after = names.last().cloned().unwrap_or_default();
        let page = b.call(wire::ReadDir { ino: dir.0, after, max_entries: 3, plus: true }).await.unwrap();
        assert!(page.items.len() <= 3 && page.parent == ROOT.0 && page.dir.is_some());
        with_node +=
            page.items.iter().filter(|item| item.node.as_ref().is_some_and(|n| n.grant.is_some())).count();
        names.extend(page.items.into_iter().map(|item| item.name));
        if page.end {
            break;
        }
    }
    assert_eq!((names.len(), with_node), (10, 5), "those that A may be writing come without their inode");
    a.not_asked(PAUSE).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renames_recall_what_they_move_and_what_they_replace() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let from = Ino(a.create(ROOT, "from").await.unwrap().ino);
    let to = Ino(a.create(ROOT, "to").await.unwrap().ino);
    let op = EditOp::Rename {
        parent: ROOT,
        name: name("from"),
        new_parent: ROOT,
        new_name: name("to"),
        flags: RenameFlags::default(),
        holders: Vec::new(),
    };
    let recalls = async {
        let mut inos = [a.asked().await, a.asked().await, a.asked().await].map(|asked| {
            let ino = asked.recall.ino;
            asked.answer(false);
            ino
        });
        inos.sort_unstable();
        assert_eq!(inos, [ROOT.0, from.0, to.0]);
    };
    let (result, ()) = tokio::join!(b.edit(op), recalls);
    let result = result.unwrap();
    assert_eq!((result.ino, result.removed), (from.0, to.0));
    assert_eq!(b.lookup(ROOT, "to").await.node.unwrap().attr.unwrap().ino, from.0);
    assert!(b.lookup(ROOT, "from").await.node.is_none());
    server.shutdown().await;
}

//! Sessions: how they begin, go on over connections and servers, and end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gofs_proto::frame::Frame;
use gofs_proto::kind::Request;
use gofs_proto::session as wire;
use gofs_proto::session::failure::Code;
use gofs_proto::{CallError, Link, LinkHandler, PROTOCOL_VERSION};
use gofs_tree::{FsError, Ino, NewNode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::client::*;

fn code(error: CallError) -> Code {
    refused(error).code()
}

#[tokio::test(flavor = "multi_thread")]
async fn hellos_that_cannot_be_are_refused_with_why() {
    let server = serve().await;
    let say = |hello| Mount::say(server.address(), hello);
    assert_eq!(
        code(say(wire::Hello { namespace: "none".into(), ..hello() }).await.unwrap_err()),
        Code::NoNamespace
    );
    let newer = wire::Hello { version: 99, oldest_version: 98, ..hello() };
    assert_eq!(code(say(newer).await.unwrap_err()), Code::BadVersion);
    // One that is a version ahead speaks ours with us.
    let ahead = wire::Hello { version: PROTOCOL_VERSION + 1, oldest_version: PROTOCOL_VERSION, ..hello() };
    assert_eq!(say(ahead).await.unwrap().welcome.version, PROTOCOL_VERSION);
    let a = server.mount().await;
    let forged = wire::Hello { session: a.welcome.session, token: vec![0; 16].into(), ..hello() };
    assert_eq!(code(say(forged).await.unwrap_err()), Code::NoSession);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_repeated_over_a_new_connection_happens_once() {
    let server = serve().await;
    let a = server.mount().await;
    let seq = a.new_seq();
    let op = create(ROOT, "once", NewNode::File);
    let first = a.edit_as(seq, op.clone(), false, true).await.unwrap();
    // The reply was lost, as far as the client knows.
    a.link.close();
    let a = a.again(server.address(), Vec::new(), Vec::new()).await.unwrap();
    let second = a.edit_as(seq, op.clone(), false, true).await.unwrap();
    assert_eq!(first.ino, second.ino);
    assert!(second.nodes.iter().all(|node| node.grant.is_none()), "that was then");
    assert_eq!(a.edit(op).await, Err(FsError::Exists), "a new one does not");
    // A removal that was done is done, although nothing is left of what it removed.
    let seq = a.new_seq();
    assert_eq!(a.edit_as(seq, unlink(ROOT, "once"), false, false).await.unwrap().removed, first.ino);
    assert_eq!(a.edit_as(seq, unlink(ROOT, "once"), false, false).await.unwrap().removed, first.ino);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_circle_an_edit_that_is_done_and_comes_again_is_not_the_one_that_is_refused() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let (seq, op) = (a.new_seq(), create(ROOT, "once", NewNode::File));
    let first = a.edit_as(seq, op.clone(), false, false).await.unwrap();
    a.willing.store(true, Ordering::Relaxed);
    b.fetch(ROOT, wire::Mode::Read).await.unwrap();
    a.willing.store(false, Ordering::Relaxed);
    a.fetch(ROOT, wire::Mode::Read).await.unwrap();
    // Each keeps its acknowledgement back until its own edit, of which A's is the younger one, is answered.
    let mut other = Box::pin(b.create(ROOT, "other"));
    let of_a = tokio::select! {
        asked = a.asked_for(ROOT) => asked,
        early = &mut other => panic!("A has the root: {early:?}"),
    };
    let mut again = Box::pin(a.edit_as(seq, op, false, false));
    tokio::select! {
        refused = &mut other => assert_eq!(refused, Err(FsError::Stale)),
        answer = &mut again => panic!("B has not forgotten the name: {answer:?}"),
    }
    b.asked_for(ROOT).await.answer(false);
    assert_eq!(again.await.unwrap().ino, first.ino);
    of_a.answer(false);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_edit_that_comes_again_did_may_have_been_undone_and_is_not_to_be_kept() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let root = held(&a.fetch(ROOT, wire::Mode::Read).await.unwrap());
    let (made, gone) = (a.new_seq(), a.new_seq());
    a.edit(create(ROOT, "was", NewNode::File)).await.unwrap();
    a.edit_as(made, create(ROOT, "sub", NewNode::Directory), false, false).await.unwrap();
    a.edit_as(gone, unlink(ROOT, "was"), false, false).await.unwrap();
    // Neither answer arrived, and others go on.
    a.link.close();
    a.willing.store(true, Ordering::Relaxed);
    let a = a.again(server.address(), vec![root], Vec::new()).await.unwrap();
    a.willing.store(true, Ordering::Relaxed);
    let sub = Ino(b.lookup(ROOT, "sub").await.node.unwrap().attr.unwrap().ino);
    b.create(sub, "inside").await.unwrap();
    b.create(ROOT, "was").await.unwrap();
    b.willing.store(true, Ordering::Relaxed);
    let op = |seq, op| edits(seq, op, false, false);
    for again in [op(made, create(ROOT, "sub", NewNode::Directory)), op(gone, unlink(ROOT, "was"))] {
        let result = a.call(again).await.unwrap().results.remove(0);
        assert_eq!(FsError::from_code(result.fs_error), None);
        assert!(result.nodes.iter().any(|node| node.attr.as_ref().unwrap().ino == ROOT.0));
        assert!(result.nodes.iter().all(|node| node.grant.is_none()), "{result:?}");
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_keeps_leases_and_recalls_are_asked_again() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let made = a.create(ROOT, "f").await.unwrap();
    let ino = Ino(made.ino);
    let lease = held(node_of(&made, ino));
    a.link.close();
    let mut look = Box::pin(b.fetch(ino, wire::Mode::Read));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut look).await.is_err(), "its lease stands");
    let back = a.again(server.address(), vec![lease], Vec::new()).await.unwrap();
    assert_eq!(back.welcome.refused_leases, []);
    back.asked().await.answer(false);
    assert!(look.await.unwrap().grant.is_some());
    // What a mount does not list it does not have: nobody waits for it.
    back.call(wire::Fetch { ino: ROOT.0, want: wire::Mode::Read.into() }).await.unwrap();
    back.link.close();
    let bare = back.again(server.address(), Vec::new(), Vec::new()).await.unwrap();
    b.create(ROOT, "g").await.unwrap();
    bare.not_asked(Duration::from_millis(50)).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_mount_is_fenced_and_the_others_go_on() {
    let server = serve_with(SHORT).await;
    let (a, b) = (server.mount().await, server.mount().await);
    let ino = Ino(a.create(ROOT, "f").await.unwrap().ino);
    a.fall_silent();
    let silent_since = Instant::now();
    assert!(b.fetch(ino, wire::Mode::Write).await.unwrap().grant.is_some());
    assert!(silent_since.elapsed() >= SHORT.validity, "not before A has stopped answering from its cache");
    assert_eq!(code(a.again(server.address(), Vec::new(), Vec::new()).await.unwrap_err()), Code::NoSession);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_lives_is_not_fenced() {
    let server = serve_with(SHORT).await;
    let a = server.mount().await;
    a.create(ROOT, "f").await.unwrap();
    tokio::time::sleep((SHORT.validity + SHORT.margin) * 2).await;
    a.create(ROOT, "g").await.unwrap();
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn goodbye_frees_at_once() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let op = create(ROOT, "f", NewNode::File);
    let ino = Ino(a.edit_as(a.new_seq(), op, false, true).await.unwrap().ino);
    a.edit_as(a.new_seq(), unlink(ROOT, "f"), true, false).await.unwrap();
    a.call(wire::Goodbye {}).await.unwrap();
    assert_eq!(b.fetch(ino, wire::Mode::Read).await, Err(FsError::Stale), "its orphan went with it");
    assert_eq!(code(a.call(wire::Statfs {}).await.unwrap_err()), Code::NoSession);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_waits_for_leases_to_be_reclaimed() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let made = a.create(ROOT, "f").await.unwrap();
    let ino = Ino(made.ino);
    let lease = held(node_of(&made, ino));
    let lock = wire::Lock { ino: ino.0, owner: 9, start: 0, end: 99, exclusive: true, pid: 4 };
    a.call(wire::SetLock { lock: Some(lock), wait: false, wait_id: 1 }).await.unwrap();
    let server = server.restart().await;
    let b = b.again(server.address(), Vec::new(), Vec::new()).await.unwrap();
    let mut look = Box::pin(b.fetch(ino, wire::Mode::Read));
    assert!(
        tokio::time::timeout(Duration::from_millis(300), &mut look).await.is_err(),
        "A may hold anything"
    );
    let test = wire::GetLock { lock: Some(wire::Lock { owner: 8, ..lock }) };
    assert_eq!(code(b.call(test).await.unwrap_err()), Code::Retry);
    let a = a.again(server.address(), vec![lease], vec![lock]).await.unwrap();
    assert_eq!(a.welcome.refused_leases, []);
    a.asked().await.answer(true);
    assert!(look.await.unwrap().grant.is_some());
    assert_eq!(b.call(test).await.unwrap().conflict.unwrap().owner, 9);
    // After grace nobody claims what the server does not know.
    b.willing.store(true, Ordering::Relaxed);
    b.link.close();
    let claim = wire::HeldLease { ino: 77, mode: wire::Mode::Write.into(), epoch: 1 };
    let b = b.again(server.address(), vec![claim], Vec::new()).await.unwrap();
    assert_eq!(b.welcome.refused_leases, [77]);
    server.shutdown().await;
}

/// A client that takes what it is asked, and answers when it is told to.
struct Slow(mpsc::UnboundedSender<(Arc<Link>, Frame)>);

impl LinkHandler for Slow {
    fn on_request(&self, link: &Arc<Link>, request: Frame) {
        self.0.send((link.clone(), request)).unwrap();
    }
    fn on_close(&self, _: &Arc<Link>) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_comes_late_changes_nothing() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    // Said before anything was held, and given up since.
    let (sender, mut asked) = mpsc::unbounded_channel();
    let link = Link::connect(server.address(), Arc::new(Slow(sender)), LONG).await.unwrap();
    let late = wire::Hello { session: a.welcome.session, token: a.welcome.token.clone(), ..hello() };
    let late = tokio::spawn(link.call(&late, Vec::new()));
    let (link, question) = tokio::time::timeout(LONG, asked.recv()).await.unwrap().unwrap();
    assert_eq!(question.kind, wire::Members::KIND);
    // The session's connection is the one that it had, with all that it is given.
    let made = a.create(ROOT, "f").await.unwrap();
    let ino = Ino(made.ino);
    // It goes on over a newer one, and holds on to that; then somebody answers after all.
    let a = a.again(server.address(), vec![held(node_of(&made, ino))], Vec::new()).await.unwrap();
    assert_eq!(a.welcome.refused_leases, []);
    link.reply::<wire::Members>(question.id, &wire::MembersReply {}, Vec::new());
    assert_eq!(code(late.await.unwrap().unwrap_err()), Code::Retry);
    let mut look = Box::pin(b.fetch(ino, wire::Mode::Write));
    assert!(
        tokio::time::timeout(Duration::from_millis(100), &mut look).await.is_err(),
        "A has the lease, and is asked for it"
    );
    a.asked().await.answer(false);
    assert!(look.await.unwrap().grant.is_some());
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_does_not_come_back_after_a_restart_is_fenced() {
    let server = serve_with(SHORT).await;
    let a = server.mount().await;
    let ino = Ino(a.create(ROOT, "f").await.unwrap().ino);
    let server = server.restart().await;
    let started = Instant::now();
    let b = server.mount().await;
    assert!(b.fetch(ino, wire::Mode::Write).await.is_ok());
    assert!(started.elapsed() + Duration::from_millis(300) >= SHORT.validity + SHORT.margin);
    assert_eq!(code(a.again(server.address(), Vec::new(), Vec::new()).await.unwrap_err()), Code::NoSession);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bytes_and_bad_requests_hurt_nobody_else() {
    let server = serve().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"gofsfr1\n\xff\xff\xff\xff\xff\xff\xff\xff and so on and on",
        &[0; 100],
    ] {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut rest = Vec::new();
        // Reset or end: either is a closed door.
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest))
            .await
            .expect("left open");
    }
    let a = server.mount().await;
    let bad = [
        a.call(wire::Lookup { parent: 0, name: "x".into() }).await.map(|_| ()),
        a.call(wire::Lookup { parent: 1, name: "a/b".into() }).await.map(|_| ()),
        a.call(wire::Fetch { ino: 1, want: 77 }).await.map(|_| ()),
        a.call(wire::Edits { first_seq: 1, edits: vec!["nonsense".into()], ..Default::default() })
            .await
            .map(|_| ()),
        a.call(wire::Edits { first_seq: 0, ..Default::default() }).await.map(|_| ()),
        a.call(wire::SetLock::default()).await.map(|_| ()),
        a.call(hello()).await.map(|_| ()),
    ];
    for result in bad {
        assert_eq!(code(result.unwrap_err()), Code::BadRequest);
    }
    assert_eq!(a.fetch(Ino(4711), wire::Mode::Read).await, Err(FsError::Stale));
    assert_eq!(a.fetch(ROOT, wire::Mode::Write).await, Err(FsError::Invalid));
    a.create(ROOT, "fine").await.unwrap();
    server.shutdown().await;
}

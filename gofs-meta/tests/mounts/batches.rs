//! Edits that a mount has applied by itself: what it is granted for that, and how they are committed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use gofs_proto::session as wire;
use gofs_proto::session::failure::Code;
use gofs_proto::{CallError, convert};
use gofs_tree::{Edit, EditOp, FsError, Ino, NewNode, RenameFlags, SessionId, Timestamp};

use crate::client::*;

const PAUSE: Duration = Duration::from_millis(100);

impl Mount {
    async fn reserve(&self, count: u32) -> std::ops::Range<u64> {
        let reply = self.call(wire::Reserve { count }).await.unwrap();
        reply.first..reply.first + u64::from(reply.count)
    }

    async fn batch(&self, seq: u64, ops: &[EditOp]) -> Result<wire::BatchReply, CallError> {
        let edits = ops
            .iter()
            .map(|op| convert::edit_to_wire(&Edit { time: Timestamp::new(1000, 0), op: op.clone() }));
        let edits = edits.collect();
        self.call(wire::Batch { first_seq: seq, answered_seq: seq - 1, edits, placed: Vec::new() }).await
    }

    fn me(&self) -> SessionId {
        SessionId(self.welcome.session)
    }
}

fn make(parent: Ino, text: &str, ino: u64, node: NewNode) -> EditOp {
    let mut op = create(parent, text, node);
    if let EditOp::Create { ino: number, .. } = &mut op {
        *number = Ino(ino);
    }
    op
}

fn unlink_open(parent: Ino, text: &str, holder: SessionId) -> EditOp {
    EditOp::Unlink { parent, name: name(text), holders: vec![holder] }
}

fn rename(from: &str, to: &str) -> EditOp {
    EditOp::Rename {
        parent: ROOT,
        name: name(from),
        new_parent: ROOT,
        new_name: name(to),
        flags: RenameFlags::default(),
        holders: Vec::new(),
    }
}

fn write(ino: u64, text: &'static str) -> EditOp {
    let mtime = Timestamp::new(2000, 0);
    EditOp::WriteInline { ino: Ino(ino), data: Bytes::from(text), size: text.len() as u64, mtime }
}

fn errors(reply: &wire::BatchReply) -> Vec<Option<FsError>> {
    reply.results.iter().map(|result| FsError::from_code(result.fs_error)).collect()
}

fn granted(reply: &wire::BatchReply) -> Vec<u64> {
    assert!(reply.grants.iter().all(|grant| grant.mode() == wire::Mode::Write));
    reply.grants.iter().map(|grant| grant.ino).collect()
}

fn mode(grant: Option<&wire::Grant>) -> Option<wire::Mode> {
    grant.map(|grant| grant.mode())
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_that_build_on_each_other_are_committed_together() {
    let server = serve().await;
    let a = server.mount().await;
    let n = a.reserve(10).await.start;
    let before = server.group().state().applied();
    let ops = [
        make(ROOT, "dir", n, NewNode::Directory),
        make(Ino(n), "tmp", n + 1, NewNode::File),
        write(n + 1, "hello"),
        EditOp::Rename {
            parent: Ino(n),
            name: name("tmp"),
            new_parent: ROOT,
            new_name: name("f"),
            flags: RenameFlags::default(),
            holders: Vec::new(),
        },
        make(ROOT, "gone", n + 2, NewNode::File),
        unlink(ROOT, "gone"),
        EditOp::SetAttr {
            ino: Ino(n + 1),
            change: gofs_tree::AttrChange { uid: Some(7), ..Default::default() },
        },
    ];
    let reply = a.batch(a.new_seq(), &ops).await.unwrap();
    assert_eq!(errors(&reply), [None; 7]);
    assert_eq!(reply.results[5].removed, n + 2);
    assert_eq!(granted(&reply), [n, n + 1], "what is still there");
    let attrs: Vec<_> =
        reply.results.iter().map(|result| result.attr.as_ref().map(|a| (a.ino, a.size, a.uid))).collect();
    let last = Some((n + 1, 5, 7));
    assert_eq!(attrs, [None, None, last, None, None, None, last], "as it is after all of them");
    assert_eq!(server.group().state().applied().0, before.0 + 1, "one entry");
    let b = server.mount().await;
    a.willing.store(true, Ordering::Relaxed);
    assert_eq!(b.lookup(ROOT, "f").await.node.unwrap().inline, "hello");
    assert!(b.lookup(Ino(n), "tmp").await.node.is_none());
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_in_the_middle_does_not_stop_the_rest() {
    let server = serve().await;
    let a = server.mount().await;
    let old = a.create(ROOT, "old").await.unwrap().ino;
    let n = a.reserve(4).await.start;
    let ops = [
        make(ROOT, "old", n, NewNode::File),
        write(n, "lost"),
        unlink(ROOT, "none"),
        make(ROOT, "foreign", n + 4, NewNode::File),
        make(ROOT, "zero", 0, NewNode::File),
        make(ROOT, "living", old, NewNode::File),
        make(ROOT, "new", n + 1, NewNode::File),
        // The name is still what it was, because the first edit failed.
        unlink(ROOT, "old"),
    ];
    let reply = a.batch(a.new_seq(), &ops).await.unwrap();
    let invalid = Some(FsError::Invalid);
    let expected = [
        Some(FsError::Exists),
        Some(FsError::Stale),
        Some(FsError::NotFound),
        invalid,
        invalid,
        invalid,
        None,
        None,
    ];
    assert_eq!(errors(&reply), expected);
    assert_eq!((granted(&reply), reply.results[7].removed), (vec![n + 1], old));
    // A number that was used is not to be used again.
    let reply =
        a.batch(a.new_seq() + 7, &[unlink(ROOT, "new"), make(ROOT, "again", n + 1, NewNode::File)]).await;
    assert_eq!(errors(&reply.unwrap()), [None, invalid]);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_comes_again_is_answered_again_and_changes_nothing() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let n = a.reserve(10).await.start;
    let ops = [
        make(ROOT, "f", n, NewNode::File),
        write(n, "once"),
        make(ROOT, "g", n + 1, NewNode::File),
        unlink(ROOT, "g"),
        unlink(ROOT, "none"),
    ];
    let seq = a.new_seq();
    let first = a.batch(seq, &ops).await.unwrap();
    // The answer was lost: the mount knows of no grant, and says what it has made.
    let own = vec![wire::HeldLease { ino: n, mode: wire::Mode::Write.into(), epoch: 0 }];
    a.link.close();
    let mut look = Box::pin(b.lookup(ROOT, "f"));
    assert!(tokio::time::timeout(PAUSE, &mut look).await.is_err(), "it is its maker's");
    let a = a.again(server.address(), own.clone(), Vec::new()).await.unwrap();
    assert_eq!(a.welcome.refused_leases, []);
    let asked = a.asked_for(Ino(n)).await;
    let second = a.batch(seq, &ops).await.unwrap();
    assert_eq!(
        (&second.results, granted(&second)),
        (&first.results, vec![n]),
        "also while it is wanted back"
    );
    asked.answer(false);
    assert_eq!(look.await.node.unwrap().inline, "once");
    b.willing.store(true, Ordering::Relaxed);
    // What others have had meanwhile may be what they have made of it.
    assert_eq!(granted(&a.batch(seq, &ops).await.unwrap()), []);
    assert_eq!(a.again(server.address(), own.clone(), Vec::new()).await.unwrap().welcome.refused_leases, [n]);
    // Also by the next leader.
    let server = server.restart().await;
    let a = a.again(server.address(), own, Vec::new()).await.unwrap();
    assert_eq!(a.welcome.refused_leases, []);
    let b = b.again(server.address(), Vec::new(), Vec::new()).await.unwrap();
    b.willing.store(true, Ordering::Relaxed);
    a.willing.store(true, Ordering::Relaxed);
    let third = a.batch(seq, &ops).await.unwrap();
    assert_eq!((errors(&third), granted(&third)), (errors(&first), vec![n]));
    b.edit(rename("f", "moved")).await.unwrap();
    assert_eq!(b.lookup(ROOT, "moved").await.node.unwrap().attr.unwrap().ino, n);
    assert!(b.lookup(ROOT, "f").await.node.is_none(), "it was not made again");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_batch_makes_that_never_arrived_is_its_makers() {
    let server = serve().await;
    let a = server.mount().await;
    let n = a.reserve(10).await.start;
    a.link.close();
    let own = |ino| wire::HeldLease { ino, mode: wire::Mode::Write.into(), epoch: 0 };
    let a = a.again(server.address(), vec![own(n), own(n + 1)], Vec::new()).await.unwrap();
    assert_eq!(a.welcome.refused_leases, []);
    let ops = [make(ROOT, "f", n, NewNode::File), make(ROOT, "f", n + 1, NewNode::File)];
    let reply = a.batch(a.new_seq(), &ops).await.unwrap();
    assert_eq!((errors(&reply), granted(&reply)), (vec![None, Some(FsError::Exists)], vec![n]));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_files_that_a_batch_removes_stay_with_those_who_have_them_open() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let n = a.reserve(10).await.start;
    let ops = [make(ROOT, "mine", n, NewNode::File), unlink_open(ROOT, "mine", a.me())];
    let reply = a.batch(1, &ops).await.unwrap();
    assert_eq!((errors(&reply), reply.results[1].removed, granted(&reply)), (vec![None; 2], n, vec![n]));
    a.willing.store(true, Ordering::Relaxed);
    assert_eq!(b.fetch(Ino(n), wire::Mode::Read).await, Err(FsError::Stale), "not its own");
    a.call(wire::Closed { ino: n }).await.unwrap();
    assert_eq!(a.fetch(Ino(n), wire::Mode::Read).await, Err(FsError::Stale));
    // Another mount's file, and then two more of that name which nobody has open.
    let theirs = b.edit_as(1, create(ROOT, "f", NewNode::File), false, true).await.unwrap().ino;
    let ops = [
        unlink(ROOT, "f"),
        make(ROOT, "f", n + 1, NewNode::File),
        make(ROOT, "tmp", n + 2, NewNode::File),
        rename("tmp", "f"),
        unlink(ROOT, "f"),
    ];
    let (reply, ()) = tokio::join!(a.batch(3, &ops), async { b.asked_for(Ino(theirs)).await.answer(true) });
    b.willing.store(true, Ordering::Relaxed);
    let reply = reply.unwrap();
    assert_eq!(errors(&reply), [None; 5]);
    let removed: Vec<u64> = reply.results.iter().map(|result| result.removed).collect();
    assert_eq!(removed, [theirs, 0, 0, n + 1, n + 2]);
    let orphans = server.group().state().orphans(gofs_tree::NamespaceId(b.welcome.namespace_id)).unwrap();
    let orphans: Vec<_> = orphans.into_iter().map(|(ino, orphan)| (ino.0, orphan.holders)).collect();
    assert_eq!(orphans, [(theirs, vec![b.me()])], "nobody is said to have what it never saw");
    assert_eq!(b.fetch(Ino(theirs), wire::Mode::Read).await.unwrap().attr.unwrap().nlink, 0);
    b.call(wire::Closed { ino: theirs }).await.unwrap();
    assert_eq!(b.fetch(Ino(theirs), wire::Mode::Read).await, Err(FsError::Stale));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_no_mount_may_send_are_refused_whole() {
    let server = serve().await;
    let a = server.mount().await;
    let n = a.reserve(1).await.start;
    let good = make(ROOT, "f", n, NewNode::File);
    let foreign = SessionId(a.welcome.session + 1);
    let bad = [
        vec![],
        vec![good.clone(), unlink_open(ROOT, "f", foreign)],
        vec![good.clone(), EditOp::ReleaseOrphan { ino: Ino(n), session: a.me() }],
        vec![unlink(ROOT, "f"); 513],
    ];
    for ops in bad {
        assert_eq!(refused(a.batch(1, &ops).await.unwrap_err()).code(), Code::BadRequest);
    }
    assert!(a.lookup(ROOT, "f").await.node.is_none(), "nothing of it was done");
    assert_eq!(
        errors(&a.batch(1, &vec![unlink(ROOT, "f"); 512]).await.unwrap()),
        [Some(FsError::NotFound); 512]
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reserved_numbers_are_never_given_twice() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let mut given = vec![a.reserve(10).await, b.reserve(0).await];
    assert_eq!(given[1].clone().count(), 1, "at least one");
    let made = a.create(ROOT, "between").await.unwrap().ino;
    given.push(made..made + 1);
    given.push(b.reserve(u32::MAX).await);
    assert_eq!(given[3].clone().count(), 65_536, "at most so many");
    let server = server.restart().await;
    let a = a.again(server.address(), Vec::new(), Vec::new()).await.unwrap();
    let b = b.again(server.address(), Vec::new(), Vec::new()).await.unwrap();
    given.push(b.reserve(5).await);
    let made = b.create(ROOT, "after").await.unwrap().ino;
    given.push(made..made + 1);
    // What a mount had before the leader changed it uses after that, and nobody else does.
    let late = make(ROOT, "late", given[0].start, NewNode::File);
    b.willing.store(true, Ordering::Relaxed);
    assert_eq!(errors(&b.batch(100, std::slice::from_ref(&late)).await.unwrap()), [Some(FsError::Invalid)]);
    assert_eq!(errors(&a.batch(100, &[late]).await.unwrap()), [None]);
    given.sort_by_key(|range| range.start);
    assert!(given.windows(2).all(|pair| pair[0].end <= pair[1].start), "{given:?}");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_is_alone_holds_everything_for_itself_until_another_comes() {
    let server = serve().await;
    let a = server.mount().await;
    let dir = a.mkdir(ROOT, "dir").await;
    a.create(dir, "f").await.unwrap();
    a.call(wire::Release { inos: (1..10).collect() }).await.unwrap();
    let write = Some(wire::Mode::Write);
    assert_eq!(mode(a.fetch(ROOT, wire::Mode::Read).await.unwrap().grant.as_ref()), write);
    let found = a.lookup(ROOT, "dir").await;
    assert_eq!((mode(found.dir.as_ref()), mode(found.node.unwrap().grant.as_ref())), (write, write));
    let page = wire::ReadDir { ino: dir.0, after: Bytes::new(), max_entries: 9, plus: true };
    let page = a.call(page).await.unwrap();
    let file = page.items[0].node.as_ref().unwrap();
    assert_eq!((mode(page.dir.as_ref()), mode(file.grant.as_ref())), (write, write));
    // A second one asks for what it looks at, and both may look from then on.
    let b = server.mount().await;
    let asked = async {
        let asked = a.asked().await;
        assert_eq!((asked.recall.ino, asked.recall.keep()), (dir.0, wire::Mode::Read));
        asked.answer(false);
    };
    let (node, ()) = tokio::join!(b.fetch(dir, wire::Mode::Read), asked);
    assert_eq!(mode(node.unwrap().grant.as_ref()), Some(wire::Mode::Read));
    assert_eq!(mode(a.fetch(dir, wire::Mode::Read).await.unwrap().grant.as_ref()), Some(wire::Mode::Read));
    a.not_asked(PAUSE).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_two_mounts_work_in_does_not_go_to_and_fro() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let root = |made: &wire::EditResult| mode(node_of(made, ROOT).grant.as_ref());
    assert_eq!(root(&a.create(ROOT, "a0").await.unwrap()), Some(wire::Mode::Write));
    let (made, ()) = tokio::join!(b.create(ROOT, "b0"), async {
        let asked = a.asked().await;
        assert_eq!((asked.recall.ino, asked.recall.keep()), (ROOT.0, wire::Mode::None));
        asked.answer(false);
    });
    assert_eq!(root(&made.unwrap()), None);
    for at in 1..5 {
        a.create(ROOT, &format!("a{at}")).await.unwrap();
        b.create(ROOT, &format!("b{at}")).await.unwrap();
    }
    a.not_asked(PAUSE).await;
    b.not_asked(PAUSE).await;
    // A new directory is its maker's, and so is one that was left alone for a while.
    let made = a.edit(create(ROOT, "dir", NewNode::Directory)).await.unwrap();
    assert_eq!(mode(node_of(&made, Ino(made.ino)).grant.as_ref()), Some(wire::Mode::Write));
    tokio::time::sleep(gofs_meta::CONTENDED_FOR).await;
    assert_eq!(root(&b.create(ROOT, "b5").await.unwrap()), Some(wire::Mode::Write));
    server.shutdown().await;
}

//! What a mount does with its session: against a MetaServer that drops, refuses and recalls.
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fake::{Act, Fake, Kernel, name};
use bytes::Bytes;
use futures_util::FutureExt;
use gofs_client::{Client, ClientConfig, FileHandle, FileLock, MountError, OpenFlags, Wait};
use gofs_proto::kind::Request as _;
use gofs_proto::session as wire;
use gofs_proto::session::Failure;
use gofs_proto::session::failure::Code;
use gofs_tree::{Attr, AttrChange, FsError, Ino, LeaseMode, Mode, NewNode, ROOT_INO, RenameFlags};

pub const RW: OpenFlags =
    OpenFlags { read: true, write: true, append: false, truncate: false, direct: false, sync: false };

pub async fn make(client: &Client, text: &str) -> (Attr, FileHandle) {
    let name = name(text);
    let made = client.create_open(ROOT_INO, &name, Mode::new(0o644), Mode::new(0), 1, 1, RW);
    let (attr, file) = made.await.unwrap();
    (attr.value, file)
}

pub async fn content(client: &Client, file: &FileHandle) -> Vec<u8> {
    client.read(file, 0, 4096).await.unwrap().value.concat()
}

pub async fn write(client: &Client, file: &FileHandle, bytes: &'static [u8]) {
    assert_eq!(
        client.write(file, 0, file.flags().append, Bytes::from_static(bytes)).await,
        Ok(bytes.len() as u32)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_made_written_synced_and_read_back() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    assert_eq!(client.lookup(ROOT_INO, &name("a")).await.unwrap().value, None);
    let (attr, file) = make(&client, "a").await;
    write(&client, &file, b"hello").await;
    assert_eq!(content(&client, &file).await, b"hello");
    assert_eq!(client.getattr(attr.ino).await.unwrap().value.size, 5);
    assert_eq!(fake.bytes_of(attr.ino), b"", "written back later");
    client.fsync(&file, false).await.unwrap();
    assert_eq!(fake.bytes_of(attr.ino), b"hello");
    client.release(file).await;
    let end = client.unmount(Duration::from_secs(5)).await;
    assert!(end.said_goodbye && end.durable && end.lost_files == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cached_is_answered_at_the_first_poll() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"abc");
    let (client, _) = fake.mount().await;
    let found = client.lookup(ROOT_INO, &name("a")).await.unwrap();
    assert!(found.ttl > Duration::from_secs(10) && found.entry_ttl > Duration::from_secs(10));
    drop(found);
    assert_eq!(client.lookup(ROOT_INO, &name("b")).await.unwrap().value, None);
    let asked = fake.requests().len();
    let file = client.open(ino, RW).now_or_never().unwrap().unwrap();
    assert!(client.lookup(ROOT_INO, &name("a")).now_or_never().unwrap().unwrap().value.is_some());
    assert!(client.lookup(ROOT_INO, &name("b")).now_or_never().unwrap().unwrap().value.is_none());
    assert!(client.getattr(ino).now_or_never().is_some());
    let read = client.read(&file, 0, 100).now_or_never().unwrap().unwrap();
    assert_eq!(read.value.concat(), b"abc");
    assert!(client.getxattr(ino, &gofs_tree::XattrName::new(b"user.x").unwrap()).now_or_never().is_some());
    assert!(client.flush(&file).now_or_never().is_some());
    assert_eq!(fake.requests().len(), asked, "no request for what is cached: {:?}", fake.requests());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_get_no_time_to_live_where_the_kernel_cannot_forget_them() {
    let fake = Fake::start().await;
    fake.put_file("a", b"abc");
    let (client, kernel) = fake.mount().await;
    kernel.cannot_forget_names.store(true, std::sync::atomic::Ordering::Relaxed);
    for _ in 0..2 {
        let found = client.lookup(ROOT_INO, &name("a")).await.unwrap();
        assert!(found.ttl > Duration::ZERO && found.entry_ttl == Duration::ZERO);
        assert_eq!(client.lookup(ROOT_INO, &name("b")).await.unwrap().entry_ttl, Duration::ZERO);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_whose_reply_is_lost_happens_once() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    fake.next::<wire::Edits>(Act::ServeThenDrop);
    fake.next::<wire::Edits>(Act::Drop);
    let (attr, _) = make(&client, "a").await;
    assert_eq!(fake.applied(), ["create a"]);
    assert_eq!(client.lookup(ROOT_INO, &name("a")).await.unwrap().value.unwrap().ino, attr.ino);
    let again =
        client.create(ROOT_INO, &name("a"), NewNode::File, Mode::new(0o644), Mode::new(0), 1, 1).await;
    assert_eq!(again.map(|a| a.value), Err(FsError::Exists));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_on_after_refusals_that_pass() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"abc");
    let (client, _) = fake.mount().await;
    fake.next::<wire::Fetch>(Act::Refuse(Failure::new(Code::Retry, "in grace")));
    fake.next::<wire::Fetch>(Act::Refuse(Failure::not_leader(None)));
    fake.next::<wire::Fetch>(Act::Drop);
    assert_eq!(client.getattr(ino).await.unwrap().value.size, 3);
    assert_eq!(fake.hellos().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_found_through_a_server_that_does_not_lead() {
    let (follower, leader) = (Fake::start().await, Fake::start().await);
    follower.not_leader(&leader.address.to_string());
    let client = Client::mount(follower.config(), Arc::new(Kernel::default())).await.unwrap();
    assert_eq!(client.stats().server, leader.address.to_string());
    leader.put_file("a", b"");
    assert!(client.lookup(ROOT_INO, &name("a")).await.unwrap().value.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_were_told_of_are_asked_when_all_known_before_are_gone() {
    let (first, second) = (Fake::start().await, Fake::start().await);
    let (_client, _) = first.mount().await;
    first.tell_members(&[&second.address.to_string()]).await;
    first.stop();
    second.until(|second| second.requests().contains(&"Hello".to_owned())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_says_why_it_failed() {
    let fake = Fake::start().await;
    let kernel = Arc::new(Kernel::default());
    let config = ClientConfig { namespace: "other".to_owned(), ..fake.config() };
    let refused = Client::mount(config, kernel.clone()).await.err().unwrap();
    assert!(matches!(refused, MountError::NoNamespace { .. }), "{refused}");
    let config = ClientConfig { metas: Vec::new(), ..fake.config() };
    assert!(matches!(Client::mount(config, kernel.clone()).await.err().unwrap(), MountError::NoAddress));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let config = ClientConfig {
        metas: vec![nobody.clone()],
        mount_timeout: Duration::from_millis(200),
        ..fake.config()
    };
    let unreachable = Client::mount(config, kernel).await.err().unwrap().to_string();
    assert!(unreachable.contains(&nobody), "{unreachable}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconnection_claims_back_leases_opens_and_locks() {
    let fake = Fake::start().await;
    let kept = fake.put_file("kept", b"1");
    let bare = fake.put_file("bare", b"2");
    let (client, _) = fake.mount().await;
    client.lookup(ROOT_INO, &name("kept")).await.unwrap();
    client.lookup(ROOT_INO, &name("bare")).await.unwrap();
    let _kept = client.open(kept, RW).await.unwrap();
    let _bare = client.open(bare, RW).await.unwrap();
    assert!(fake.recall_all(bare).await, "it is open");
    let lock = FileLock { owner: 9, start: 0, end: 99, exclusive: true, pid: 7 };
    client.set_lock(kept, lock, false).await.unwrap();
    fake.drop_connection();
    fake.until(|fake| fake.hellos().len() == 2).await;
    let hello = fake.hellos().pop().unwrap();
    assert_eq!((hello.session, &hello.token[..]), (100, &b"token"[..]));
    let inos: Vec<u64> = hello.leases.iter().map(|lease| lease.ino).collect();
    assert_eq!(inos, [ROOT_INO.0, kept.0]);
    assert_eq!(hello.opens, [bare.0]);
    assert_eq!((hello.locks.len(), hello.locks[0].owner, hello.locks[0].end), (1, 9, 99));
    // And the cache is used on.
    assert!(client.getattr(kept).now_or_never().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recall_behind_its_grant_waits_for_the_reply_to_the_kernel() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"abc");
    let (client, kernel) = fake.mount().await;
    fake.next::<wire::Lookup>(Act::ThenRecall(ino));
    let found = client.lookup(ROOT_INO, &name("a")).await.unwrap();
    assert_eq!(found.value.as_ref().unwrap().ino, ino);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(fake.recalled(), [None], "the reply is not out yet");
    assert_eq!(kernel.forgotten(), Vec::<String>::new());
    drop(found);
    // As open, because the kernel may be about to do that.
    fake.until(|fake| fake.recalled() == [Some(true)]).await;
    assert_eq!(kernel.forgotten(), [ino.to_string()]);
    let asked = fake.requests().len();
    client.getattr(ino).await.unwrap();
    assert_eq!(fake.requests().len(), asked + 1, "it is not cached any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recall_of_write_is_acknowledged_after_the_flush() {
    let fake = Fake::start().await;
    let (client, kernel) = fake.mount().await;
    let (attr, file) = make(&client, "a").await;
    write(&client, &file, b"new").await;
    assert!(fake.recall_all(attr.ino).await, "it is open");
    assert_eq!(fake.bytes_of(attr.ino), b"new");
    assert!(kernel.forgotten().contains(&attr.ino.to_string()));
    // Written by another mount meanwhile.
    assert_eq!(content(&client, &file).await, b"new");
    client.release(file).await;
    fake.until(|fake| fake.requests().contains(&"Closed".to_owned())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reduced_lease_still_reads_from_the_cache_and_asks_for_write_again() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    let (attr, file) = make(&client, "a").await;
    write(&client, &file, b"one").await;
    let epoch = fake.lease(attr.ino).unwrap().epoch.0;
    fake.recall(attr.ino, epoch, Some(LeaseMode::Read), &[]).await;
    assert_eq!(fake.bytes_of(attr.ino), b"one");
    let asked = fake.requests().len();
    assert_eq!(content(&client, &file).await, b"one");
    assert_eq!(fake.requests().len(), asked);
    // The answer to the flush told the attributes.
    assert_eq!(client.getattr(attr.ino).await.unwrap().value.size, 3);
    assert_eq!(fake.requests().len(), asked);
    write(&client, &file, b"two").await;
    assert_eq!(fake.requests()[asked..], ["Fetch"]);
    assert_eq!(content(&client, &file).await, b"two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_a_grant_is_used_once() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"abc");
    let (client, _) = fake.mount().await;
    fake.next::<wire::Fetch>(Act::NoGrant);
    assert_eq!(client.getattr(ino).await.unwrap().ttl, Duration::ZERO);
    // An open needs a lease, because the server is not told of it.
    fake.next::<wire::Fetch>(Act::NoGrant);
    fake.next::<wire::Fetch>(Act::NoGrant);
    let asked = fake.requests().len();
    let file = client.open(ino, RW).await.unwrap();
    assert_eq!(fake.requests()[asked..], ["Fetch", "Fetch", "Fetch"]);
    assert_eq!(content(&client, &file).await, b"abc");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_recall_drops_nothing() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"abc");
    let (client, kernel) = fake.mount().await;
    drop(client.lookup(ROOT_INO, &name("a")).await.unwrap());
    let epoch = fake.lease(ino).unwrap().epoch.0;
    assert!(!fake.recall(ino, epoch - 1, None, &[]).await);
    assert!(!fake.recall(Ino(999), 5, None, &[]).await, "nothing is held of it");
    assert!(client.getattr(ino).now_or_never().is_some());
    assert!(kernel.forgotten().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recalled_names_are_asked_for_again_and_others_are_not() {
    let fake = Fake::start().await;
    fake.put_file("a", b"");
    let (client, kernel) = fake.mount().await;
    drop(client.lookup(ROOT_INO, &name("a")).await.unwrap());
    drop(client.lookup(ROOT_INO, &name("b")).await.unwrap());
    let epoch = fake.lease(ROOT_INO).unwrap().epoch.0;
    fake.recall(ROOT_INO, epoch, None, &["b"]).await;
    assert_eq!(kernel.forgotten(), ["names", "i1"]);
    let made = fake.put_file("b", b"");
    let asked = fake.requests().len();
    assert!(client.lookup(ROOT_INO, &name("a")).now_or_never().unwrap().unwrap().value.is_some());
    assert_eq!(fake.requests().len(), asked);
    assert_eq!(client.lookup(ROOT_INO, &name("b")).await.unwrap().value.unwrap().ino, made);
}

/// The kernel locks a page while it reads it, and forgets it only when that read was answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_read_that_the_kernel_waits_for_passes_and_the_kernel_forgets_again() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"abc");
    let (client, kernel) = fake.mount().await;
    let file = client.open(ino, RW).await.unwrap();
    let runtime = tokio::runtime::Handle::current();
    kernel.meanwhile.lock().push(Box::new(move |client| {
        let read = runtime.block_on(client.read(&file, 0, 10)).unwrap();
        assert_eq!((read.value.concat().as_slice(), read.ttl), (&b"abc"[..], Duration::ZERO));
    }));
    let recalled = tokio::time::timeout(Duration::from_secs(10), fake.recall_all(ino));
    recalled.await.expect("must not wait for itself");
    assert_eq!(kernel.forgotten(), [ino.to_string(), ino.to_string()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pages_that_the_kernel_writes_back_at_a_recall_are_flushed_too() {
    let fake = Fake::start().await;
    let (client, kernel) = fake.mount().await;
    let (attr, file) = make(&client, "a").await;
    write(&client, &file, b"before").await;
    let runtime = tokio::runtime::Handle::current();
    kernel.meanwhile.lock().push(Box::new(move |client| {
        let written = client.write_page(&file, 0, Bytes::from_static(b"mapped"));
        assert_eq!(runtime.block_on(written), Ok(6));
    }));
    let recalled = tokio::time::timeout(Duration::from_secs(10), fake.recall_all(attr.ino));
    recalled.await.expect("must not wait for itself");
    assert_eq!(fake.bytes_of(attr.ino), b"mapped");
}

/// A memory map's page is dirty though only Read is held: the kernel asks nobody before it is written to.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_page_written_back_at_a_recall_of_read_is_parked_and_written_after_it() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"before");
    let (client, kernel) = fake.mount().await;
    let file = client.open(ino, RW).await.unwrap();
    let (runtime, writing) = (tokio::runtime::Handle::current(), file.clone());
    kernel.meanwhile.lock().push(Box::new(move |client| {
        let written = client.write_page(&writing, 0, Bytes::from_static(b"mapped"));
        assert_eq!(runtime.block_on(written), Ok(6));
    }));
    let recalled = tokio::time::timeout(Duration::from_secs(10), fake.recall_all(ino));
    assert!(recalled.await.expect("must not wait for itself"));
    assert_eq!(content(&client, &file).await, b"mapped", "seen here at once");
    client.fsync(&file, false).await.unwrap();
    assert_eq!(fake.bytes_of(ino), b"mapped");
}

/// What the file holds where a program has put `mapped` into a memory map, and another mount has written `others` before the
/// page could be.
async fn written_around(mapped: &'static [u8], others: &[u8]) -> Vec<u8> {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"before");
    let (client, kernel) = fake.mount().await;
    let file = client.open(ino, RW).await.unwrap();
    let (runtime, writing) = (tokio::runtime::Handle::current(), file.clone());
    kernel.meanwhile.lock().push(Box::new(move |client| {
        let written = client.write_page(&writing, 0, Bytes::from_static(mapped));
        assert_eq!(runtime.block_on(written), Ok(mapped.len() as u32));
    }));
    let asked = fake.count("Fetch");
    fake.next::<wire::Fetch>(Act::Before(wire::Lookup::KIND));
    assert!(fake.recall_all(ino).await);
    fake.until(|fake| fake.count("Fetch") > asked).await;
    fake.put_bytes(ino, others);
    drop(client.lookup(ROOT_INO, &name("b")).await.unwrap());
    client.fsync(&file, false).await.unwrap();
    fake.bytes_of(ino)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_parked_page_only_what_was_changed_here_is_written_and_no_file_gets_longer() {
    assert_eq!(written_around(b"bEfoRe", b"beforE").await, b"bEfoRE");
    assert_eq!(written_around(b"bEfoRe", b"be").await, b"bE");
    assert_eq!(written_around(b"before", b"others").await, b"others");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_looked_up_can_be_opened_after_another_mount_has_taken_its_name() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"old");
    let (client, _) = fake.mount().await;
    drop(client.lookup(ROOT_INO, &name("a")).await.unwrap());
    assert!(fake.recall_all(ino).await, "counted as open");
    let file = client.open(ino, RW).now_or_never().expect("asks nobody").unwrap();
    assert_eq!(content(&client, &file).await, b"old");
    client.release(file).await;
    assert!(!fake.requests().contains(&"Closed".to_owned()));
    fake.until(|fake| fake.requests().contains(&"Closed".to_owned())).await;
    assert_eq!(client.stats().opens, 0);
}

/// While an operation waits for this mount the server answers without a grant; then it does not ask this mount
/// before the name goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_up_is_answered_only_with_what_can_be_opened_then() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"old");
    let (client, _) = fake.mount().await;
    fake.next::<wire::Lookup>(Act::NoGrant);
    let found = client.lookup(ROOT_INO, &name("a")).await.unwrap();
    assert_eq!(found.value.as_ref().map(|attr| attr.ino), Some(ino));
    drop(found);
    assert!(fake.recall_all(ino).await, "granted by a fetch, and counted as open");
    // Gone between the look-up and the fetch.
    let other = fake.put_file("b", b"old");
    fake.next::<wire::Lookup>(Act::NoGrant);
    fake.next::<wire::Fetch>(Act::Refuse(Failure::fs(FsError::Stale)));
    let found = client.lookup(ROOT_INO, &name("b")).await.unwrap();
    assert_eq!(found.value.as_ref().map(|attr| attr.ino), Some(other));
    let lookups = fake.requests().iter().filter(|kind| *kind == "Lookup").count();
    assert_eq!(lookups, 3, "one for a, two for b");
}

/// fcntl(2) sets O_APPEND when the file is open, and the kernel may know an older end of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_appends_if_it_says_so_and_the_kernel_forgets_where_it_had_put_it() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"head");
    let (client, kernel) = fake.mount().await;
    let file = client.open(ino, RW).await.unwrap();
    assert_eq!(client.write(&file, 4, true, Bytes::from_static(b"1")).await, Ok(1));
    assert!(!kernel.forgotten().contains(&format!("{ino} 4+1")), "it was right");
    assert_eq!(client.write(&file, 4, true, Bytes::from_static(b"2")).await, Ok(1));
    assert!(kernel.forgotten().contains(&format!("{ino} 4+1")));
    assert_eq!(client.write(&file, 0, false, Bytes::from_static(b"H")).await, Ok(1));
    assert_eq!(content(&client, &file).await, b"Head12");
}

/// The kernel drops, before the write, the pages that it takes to be overwritten; others, and what a program reads meanwhile, it
/// would keep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_forgotten_where_bytes_went_around_the_page_cache() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"head");
    let (client, kernel) = fake.mount().await;
    let around = OpenFlags { direct: true, ..RW };
    let log = client.open(ino, OpenFlags { append: true, ..around }).await.unwrap();
    assert_eq!(client.write(&log, 4, true, Bytes::from_static(b"1")).await, Ok(1));
    assert_eq!(kernel.forgotten(), Vec::<String>::new(), "nobody has read it here");
    let _reader = client.open(ino, OpenFlags { write: false, ..RW }).await.unwrap();
    assert_eq!(client.write(&log, 3, true, Bytes::from_static(b"2")).await, Ok(1));
    let file = client.open(ino, around).await.unwrap();
    assert_eq!(client.write(&file, 0, false, Bytes::from_static(b"H")).await, Ok(1));
    assert_eq!(kernel.forgotten(), [format!("{ino} 5+1"), format!("{ino} 0+1")]);
    assert_eq!(content(&client, &file).await, b"Head12");
}

/// The kernel locks the last page of a write that it does not have; two hosts that write to one file would wait
/// for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_recall_does_not_wait_for_a_page_of_a_write_that_waits_for_it() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"abcdef");
    let (client, kernel) = fake.mount().await;
    let file = client.open(ino, RW).await.unwrap();
    kernel.lock_page(0);
    fake.next::<wire::Fetch>(Act::RecallThenServe(ino));
    let writing = client.write(&file, 2, false, Bytes::from_static(b"XY"));
    let written = tokio::time::timeout(Duration::from_secs(10), writing).await;
    assert_eq!(written.expect("must not wait for itself"), Ok(2));
    assert!(kernel.forgotten().contains(&format!("{ino} 4096+0")), "{:?}", kernel.forgotten());
    kernel.unlock_page();
    assert_eq!(content(&client, &file).await, b"abXYef");
}

/// The kernel locks the pages that it reads, and on a hard mount that takes as long as their ChunkServers are away.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_recall_does_not_wait_for_a_page_that_is_being_read_from_servers_that_do_not_answer() {
    let fake = Fake::start().await;
    let ino = fake.put_chunked("a", 10_000);
    let (client, kernel) = fake.mount().await;
    fake.always::<wire::ChunkMap>(Act::Ignore);
    let file = client.open(ino, RW).await.unwrap();
    let mut reading = Box::pin(client.read(&file, 4096, 4096));
    assert!(reading.as_mut().now_or_never().is_none());
    kernel.lock_page(1);
    for _ in 0..3 {
        drop(client.getattr(ino).await.unwrap());
        let before = kernel.forgotten().len();
        let recalled = tokio::time::timeout(Duration::from_secs(10), fake.recall_all(ino));
        assert!(recalled.await.expect("must not wait for the read"));
        let forgotten = kernel.forgotten().split_off(before);
        assert!(forgotten.contains(&format!("{ino} 0+4096")), "{forgotten:?}");
        assert!(forgotten.contains(&format!("{ino} 8192+0")), "{forgotten:?}");
    }
    fake.cut(ino);
    let asked = fake.count("Fetch");
    fake.well_behaved();
    fake.drop_connection();
    // Read anew, under another lease: what came of the first is not what is there any more.
    assert!(reading.await.unwrap().value.concat().is_empty());
    assert!(fake.count("Fetch") > asked);
    kernel.unlock_page();
    fake.until(|_| kernel.forgotten().contains(&format!("{ino} 4096+4096"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_soft_mount_gives_up_and_a_hard_one_says_what_it_waits_for() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"abc");
    let config = ClientConfig { wait: Wait::Soft(Duration::from_millis(300)), ..fake.config() };
    let soft = Client::mount(config, Arc::new(Kernel::default())).await.unwrap();
    let (hard, _) = fake.mount().await;
    fake.always::<wire::Fetch>(Act::Ignore);
    assert_eq!(soft.getattr(ino).await.map(|a| a.value), Err(FsError::Io));
    let waiting = {
        let hard = hard.clone();
        tokio::spawn(async move { hard.getattr(ino).await.map(|a| a.value.size) })
    };
    tokio::time::sleep(Duration::from_millis(600)).await;
    let waits = hard.stats().waiting;
    assert!(waits.iter().any(|wait| wait.what == "session.Fetch" && wait.since > Duration::from_millis(300)));
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmount_ends_in_time_without_servers_and_says_what_is_lost() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    let (_, file) = make(&client, "a").await;
    write(&client, &file, b"never").await;
    fake.stop();
    let started = Instant::now();
    let end = client.unmount(Duration::from_millis(500)).await;
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!((end.lost_files, end.lost_bytes, end.said_goodbye), (1, 5, false));
    assert!(!end.durable);
    assert_eq!(client.getattr(Ino(77)).await.map(|a| a.value), Err(FsError::Io));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_file_outlives_its_name_and_its_close_is_told() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    let (attr, file) = make(&client, "a").await;
    write(&client, &file, b"still").await;
    client.unlink(ROOT_INO, &name("a")).await.unwrap();
    assert_eq!(fake.applied(), ["create a", "unlink a holders 1"]);
    assert_eq!(client.lookup(ROOT_INO, &name("a")).await.unwrap().value, None);
    assert_eq!(content(&client, &file).await, b"still");
    assert_eq!(client.getattr(attr.ino).await.unwrap().value.nlink, 0);
    assert!(!fake.requests().contains(&"Closed".to_owned()));
    client.release(file).await;
    fake.until(|fake| fake.requests().contains(&"Closed".to_owned())).await;
    assert_eq!(client.stats().dirty_bytes, 0, "nobody will read what was not written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_file_goes_with_its_name() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    let (_, other) = make(&client, "other").await;
    let (attr, file) = make(&client, "a").await;
    client.release(file).await;
    client.unlink(ROOT_INO, &name("a")).await.unwrap();
    assert_eq!(fake.applied().last().unwrap(), "unlink a holders 0");
    assert_eq!(client.open(attr.ino, RW).await.map(|f| f.ino()), Err(FsError::NotFound));
    drop(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renames_move_names_in_the_cache() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    let (a, _) = make(&client, "a").await;
    make(&client, "b").await;
    client.rename(ROOT_INO, &name("a"), ROOT_INO, &name("b"), Default::default()).await.unwrap();
    let asked = fake.requests().len();
    assert_eq!(client.lookup(ROOT_INO, &name("b")).await.unwrap().value.unwrap().ino, a.ino);
    assert_eq!(client.lookup(ROOT_INO, &name("a")).await.unwrap().value, None);
    assert_eq!(fake.requests().len(), asked);
    // Two names of one inode: renaming one over the other leaves both.
    client.link(a.ino, ROOT_INO, &name("c")).await.unwrap();
    client.rename(ROOT_INO, &name("b"), ROOT_INO, &name("c"), Default::default()).await.unwrap();
    for text in ["b", "c"] {
        assert_eq!(client.lookup(ROOT_INO, &name(text)).await.unwrap().value.unwrap().ino, a.ino, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_exchanged_as_they_are_then_and_not_as_they_were_known_before() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    make(&client, "a").await;
    make(&client, "b").await;
    let asked = fake.count("Edits");
    fake.next::<wire::Edits>(Act::Ignore);
    let mover = client.clone();
    let exchange = RenameFlags { exchange: true, ..RenameFlags::default() };
    let moving =
        tokio::spawn(async move { mover.rename(ROOT_INO, &name("a"), ROOT_INO, &name("b"), exchange).await });
    fake.until(|fake| fake.count("Edits") > asked).await;
    let epoch = fake.lease(ROOT_INO).unwrap().epoch.0;
    fake.recall(ROOT_INO, epoch, None, &["b"]).await;
    fake.remove_file("b");
    let other = fake.put_file("b", b"");
    fake.drop_connection();
    moving.await.unwrap().unwrap();
    assert_eq!(client.lookup(ROOT_INO, &name("a")).await.unwrap().value.unwrap().ino, other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listed_directory_is_known_whole() {
    let fake = Fake::start().await;
    for text in ["a", "b", "c", "d", "e", "f", "g"] {
        fake.put_file(text, text.as_bytes());
    }
    let (client, _) = fake.mount().await;
    let dir = client.opendir(ROOT_INO).await.unwrap();
    let mut names = Vec::new();
    let mut index = 0;
    loop {
        let items = client.readdir(&dir, index, 2, true).await.unwrap();
        let Some(last) = items.last() else { break };
        index = last.next;
        for item in &items {
            names.push(String::from_utf8(item.name.clone()).unwrap());
            assert_eq!(item.attr.is_some(), !item.name.starts_with(b"."), "{item:?}");
        }
    }
    assert_eq!(names, [".", "..", "a", "b", "c", "d", "e", "f", "g"]);
    let asked = fake.requests().len();
    assert_eq!(client.lookup(ROOT_INO, &name("zzz")).await.unwrap().value, None);
    assert!(client.lookup(ROOT_INO, &name("e")).await.unwrap().value.is_some());
    assert_eq!(client.readdir(&dir, 0, 100, false).await.unwrap().len(), 9);
    assert_eq!(fake.requests().len(), asked, "all of it from the cache");
    make(&client, "bb").await;
    let listed = client.readdir(&dir, 0, 100, false).await.unwrap();
    assert_eq!(listed[4].name, b"bb");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_cache_gives_leases_back() {
    let fake = Fake::start().await;
    for n in 0..200 {
        fake.put_file(&format!("f{n}"), b"");
    }
    let config = ClientConfig { cache_bytes: 40_000, ..fake.config() };
    let client = Client::mount(config, Arc::new(Kernel::default())).await.unwrap();
    for n in 0..200 {
        drop(client.lookup(ROOT_INO, &name(&format!("f{n}"))).await.unwrap());
    }
    fake.until(|_| client.stats().cache_bytes <= 40_000).await;
    assert!(fake.requests().contains(&"Release".to_owned()));
    for n in 0..200 {
        assert!(client.lookup(ROOT_INO, &name(&format!("f{n}"))).await.unwrap().value.is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_set_by_hand_win_over_those_of_earlier_writes() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    let (attr, file) = make(&client, "a").await;
    write(&client, &file, b"x").await;
    let time = gofs_tree::Timestamp::new(1000, 5);
    let change = AttrChange { mtime: Some(gofs_tree::TimeChange::To(time)), ..AttrChange::default() };
    assert_eq!(client.setattr(attr.ino, change).await.unwrap().value.mtime, time);
    client.fsync(&file, false).await.unwrap();
    assert_eq!(client.getattr(attr.ino).await.unwrap().value.mtime, time);
    let cut = AttrChange { size: Some(0), ..AttrChange::default() };
    assert_eq!(client.setattr(attr.ino, cut).await.unwrap().value.size, 0);
    assert_eq!(content(&client, &file).await, b"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_go_to_the_end_and_written_pages_to_their_place() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"head");
    let (client, _) = fake.mount().await;
    let file = client.open(ino, OpenFlags { append: true, ..RW }).await.unwrap();
    assert_eq!(client.write(&file, 0, true, Bytes::from_static(b"tail")).await, Ok(4));
    assert_eq!(content(&client, &file).await, b"headtail");
    assert_eq!(client.write_page(&file, 0, Bytes::from_static(b"HEAD")).await, Ok(4));
    assert_eq!(content(&client, &file).await, b"HEADtail");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_a_lock_that_is_dropped_is_cancelled() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"");
    let (client, _) = fake.mount().await;
    let lock = FileLock { owner: 1, start: 0, end: u64::MAX, exclusive: true, pid: 1 };
    fake.next::<wire::SetLock>(Act::Ignore);
    let wait = tokio::time::timeout(Duration::from_millis(100), client.set_lock(ino, lock, true)).await;
    assert!(wait.is_err());
    fake.until(|fake| fake.requests().contains(&"CancelLock".to_owned())).await;
    let asked = fake.requests().len();
    client.release_locks(ino, 1).await.unwrap();
    assert_eq!(fake.requests().len(), asked, "nothing to give back");
    client.set_lock(ino, lock, false).await.unwrap();
    client.release_locks(ino, 1).await.unwrap();
    assert_eq!(fake.requests()[asked..], ["SetLock", "Unlock"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_came_too_late_is_given_back_before_its_owner_asks_again() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"");
    let (client, _) = fake.mount().await;
    let lock = |start, end, exclusive| FileLock { owner: 1, start, end, exclusive, pid: 1 };
    client.set_lock(ino, lock(10, 19, false), false).await.unwrap();
    let asked = fake.requests().len();
    // Granted when the wait was over, but before the servers had heard of that.
    fake.next::<wire::SetLock>(Act::Before(wire::CancelLock::KIND));
    let whole = lock(0, u64::MAX, true);
    let wait = tokio::time::timeout(Duration::from_millis(100), client.set_lock(ino, whole, true)).await;
    assert!(wait.is_err());
    client.set_lock(ino, lock(0, 9, true), false).await.unwrap();
    let expected = ["SetLock", "CancelLock", "Unlock", "SetLock", "Unlock", "SetLock"];
    assert_eq!(fake.requests()[asked..], expected, "what it had before is kept");
    fake.drop_connection();
    fake.until(|fake| fake.hellos().len() == 2).await;
    let held = fake.hellos().pop().unwrap().locks;
    let held: Vec<_> = held.iter().map(|lock| (lock.start, lock.end, lock.exclusive)).collect();
    assert_eq!(held, [(0, 9, true), (10, 19, false)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lock_is_made_weaker_by_is_not_claimed_any_more() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"");
    let (client, _) = fake.mount().await;
    let lock = |start, end, exclusive| FileLock { owner: 1, start, end, exclusive, pid: 1 };
    client.set_lock(ino, lock(0, 19, true), false).await.unwrap();
    // Whether it was done nobody knows; others may have had the lock since.
    fake.next::<wire::SetLock>(Act::ServeThenDrop);
    client.set_lock(ino, lock(0, 9, false), false).await.unwrap();
    let held = fake.hellos().pop().unwrap().locks;
    let held: Vec<_> = held.iter().map(|lock| (lock.start, lock.end, lock.exclusive)).collect();
    assert_eq!(held, [(0, 9, false), (10, 19, true)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extended_attributes_are_fetched_once() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    // Under Read: what is changed here is known without.
    let ino = fake.put_file("a", b"");
    let attr = client.lookup(ROOT_INO, &name("a")).await.unwrap().value.unwrap();
    assert_eq!(attr.ino, ino);
    let key = gofs_tree::XattrName::new(b"user.k").unwrap();
    assert_eq!(client.getxattr(attr.ino, &key).await.unwrap().value, None);
    client.setxattr(attr.ino, &key, Bytes::from_static(b"v"), gofs_tree::XattrSetMode::Either).await.unwrap();
    let asked = fake.requests().len();
    for _ in 0..3 {
        let got = client.getxattr(attr.ino, &key).await.unwrap();
        assert_eq!(got.value.as_deref(), Some(&b"v"[..]));
        assert_eq!(client.listxattr(attr.ino).await.unwrap().value.len(), 1);
    }
    assert_eq!(fake.requests()[asked..], ["Xattrs"]);
    client.removexattr(attr.ino, &key).await.unwrap();
    assert_eq!(client.getxattr(attr.ino, &key).await.unwrap().value, None);
}

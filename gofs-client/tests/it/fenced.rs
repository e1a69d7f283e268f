//! The session ends: what is lost, what is said of it, and what is not done in the next one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use gofs_client::{Client, ClientConfig, FileHandle, OpenFlags};
use gofs_proto::session as wire;
use gofs_tree::{FsError, Ino, Mode, NewNode, ROOT_INO};

use crate::fake::{Act, Fake, Kernel, name};
use crate::session::{RW, content, make, write};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_session_loses_unwritten_bytes_says_so_once_and_goes_on() {
    let fake = Fake::start().await;
    let (client, kernel) = fake.mount().await;
    let (attr, file) = make(&client, "a").await;
    write(&client, &file, b"kept").await;
    client.fsync(&file, false).await.unwrap();
    write(&client, &file, b"lost").await;
    fake.fence();
    fake.drop_connection();
    fake.until(|fake| fake.hellos().len() >= 3).await;
    let last = fake.hellos().pop().unwrap();
    assert_eq!((last.session, last.leases.len(), last.opens), (0, 0, vec![attr.ino.0]));
    // Still open, as the servers have it.
    assert_eq!(content(&client, &file).await, b"kept");
    assert_eq!(client.flush(&file).await, Err(FsError::Io));
    assert_eq!(client.flush(&file).await, Ok(()));
    assert_eq!(client.stats().lost_files, 1);
    fake.until(|_| kernel.forgotten().contains(&attr.ino.to_string())).await;
    write(&client, &file, b"more").await;
    client.fsync(&file, false).await.unwrap();
    assert_eq!(fake.bytes_of(attr.ino), b"more");
    assert!(!fake.applied().contains(&"write lost".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_in_flight_when_the_session_is_fenced_fails_and_is_not_repeated() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    fake.next::<wire::Edits>(Act::Ignore);
    let making = {
        let client = client.clone();
        tokio::spawn(async move {
            client
                .create(ROOT_INO, &name("a"), NewNode::File, Mode::new(0o644), Mode::new(0), 1, 1)
                .await
                .err()
        })
    };
    fake.until(|fake| fake.requests().contains(&"Edits".to_owned())).await;
    fake.fence();
    fake.drop_connection();
    assert_eq!(making.await.unwrap(), Some(FsError::Io));
    assert!(fake.applied().is_empty());
    assert!(client.lookup(ROOT_INO, &name("a")).await.unwrap().value.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_write_whose_bytes_the_fence_took_fails() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    let (attr, file) = make(&client, "a").await;
    write(&client, &file, b"some").await;
    fake.next::<wire::Batch>(Act::Ignore);
    let syncing = {
        let client = client.clone();
        tokio::spawn(async move { client.fsync(&file, false).await })
    };
    fake.until(|fake| fake.requests().contains(&"Batch".to_owned())).await;
    // It waits for the flush that is under way.
    let synchronous = OpenFlags { write: true, sync: true, ..OpenFlags::default() };
    let file = client.open(attr.ino, synchronous).await.unwrap();
    let writing = {
        let client = client.clone();
        tokio::spawn(async move { client.write(&file, 4, false, Bytes::from_static(b"more")).await })
    };
    fake.until(|_| client.stats().dirty_bytes == 8).await;
    fake.fence();
    fake.drop_connection();
    assert_eq!(syncing.await.unwrap(), Err(FsError::Io));
    assert_eq!(writing.await.unwrap(), Err(FsError::Io));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_whose_goodbye_was_heard_does_not_come_back() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    fake.next::<wire::Goodbye>(Act::Ignore);
    let leaving = tokio::spawn(async move { client.unmount(Duration::from_secs(10)).await });
    fake.until(|fake| fake.requests().contains(&"Goodbye".to_owned())).await;
    // It was carried out, and the answer is lost.
    fake.fence();
    fake.drop_connection();
    assert!(leaving.await.unwrap().said_goodbye);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let new = fake.hellos().iter().filter(|hello| hello.session == 0).count();
    assert_eq!(new, 1, "only the mount itself opens a session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_answered_from_the_cache_after_the_sessions_end() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"abc");
    fake.set_validity(Duration::from_millis(400));
    let (client, kernel) = fake.mount().await;
    drop(client.lookup(ROOT_INO, &name("a")).await.unwrap());
    // Kept alive for longer than it lasts.
    tokio::time::sleep(Duration::from_millis(900)).await;
    let found = client.getattr(ino).now_or_never().expect("kept alive").unwrap();
    assert!(found.ttl <= Duration::from_millis(400));
    drop(found);
    assert!(kernel.forgotten().is_empty());
    fake.always::<wire::KeepAlive>(Act::Ignore);
    fake.always::<wire::Hello>(Act::Ignore);
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(client.getattr(ino).now_or_never().is_none(), "the session may have ended by now");
    fake.until(|_| kernel.forgotten().contains(&ino.to_string())).await;
    assert_eq!(client.stats().validity, Duration::ZERO);
    let getting = client.getattr(ino);
    fake.well_behaved();
    fake.drop_connection();
    let got = tokio::time::timeout(Duration::from_secs(20), getting).await;
    assert_eq!(got.expect("answers again").unwrap().value.ino, ino);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_were_asked_for_in_a_session_that_ended_are_not_asked_for_in_the_next() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    let (_, file) = make(&client, "a").await;
    fake.next::<wire::Allocate>(Act::Ignore);
    // More than an inode holds.
    let written = client.write(&file, 0, false, Bytes::from(vec![7; 10_000])).await;
    assert_eq!(written, Ok(10_000));
    let syncing = {
        let (client, file) = (client.clone(), file.clone());
        tokio::spawn(async move { client.fsync(&file, false).await })
    };
    let asked = |fake: &Fake| fake.requests().iter().filter(|request| *request == "Allocate").count();
    fake.until(|fake| asked(fake) == 1).await;
    fake.fence();
    fake.drop_connection();
    assert_eq!(syncing.await.unwrap(), Err(FsError::Io));
    write(&client, &file, b"next").await;
    client.fsync(&file, false).await.unwrap();
    assert_eq!(content(&client, &file).await, b"next");
    assert_eq!(asked(&fake), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_of_a_session_that_ended_are_not_given_back_in_the_next() {
    let fake = Fake::start().await;
    for n in 0..200 {
        fake.put_file(&format!("f{n}"), b"");
    }
    let config = ClientConfig { cache_bytes: 40_000, ..fake.config() };
    let client = Client::mount(config, Arc::new(Kernel::default())).await.unwrap();
    fake.always::<wire::Release>(Act::Ignore);
    for n in 0..200 {
        drop(client.lookup(ROOT_INO, &name(&format!("f{n}"))).await.unwrap());
    }
    let released = |fake: &Fake| fake.requests().iter().filter(|request| *request == "Release").count();
    fake.until(|fake| released(fake) == 1).await;
    fake.fence();
    fake.drop_connection();
    // The next session may have the same leases again.
    assert!(client.lookup(ROOT_INO, &name("f0")).await.unwrap().value.is_some());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((fake.hellos().len(), released(&fake)), (3, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_kernel_cannot_forget_keeps_nothing_else_from_being_forgotten_at_the_sessions_end() {
    let fake = Fake::start().await;
    let inos: Vec<Ino> = (0..20).map(|n| fake.put_file(&format!("f{n}"), b"abc")).collect();
    fake.set_validity(Duration::from_millis(400));
    let (client, kernel) = fake.mount().await;
    for n in 0..20 {
        drop(client.lookup(ROOT_INO, &name(&format!("f{n}"))).await.unwrap());
    }
    kernel.keep(&inos[..10]);
    fake.always::<wire::KeepAlive>(Act::Ignore);
    fake.always::<wire::Hello>(Act::Ignore);
    let is_forgotten = |inos: &[Ino]| {
        let forgotten = kernel.forgotten();
        inos.iter().all(|ino| forgotten.contains(&ino.to_string()))
    };
    fake.until(|_| is_forgotten(&inos[10..])).await;
    kernel.let_go();
    fake.until(|_| is_forgotten(&inos)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_map_that_waited_while_its_session_ended_is_lost_and_told() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"before");
    fake.set_validity(Duration::from_millis(400));
    let (client, _) = fake.mount().await;
    let file = client.open(ino, RW).await.unwrap();
    fake.always::<wire::KeepAlive>(Act::Ignore);
    fake.always::<wire::Hello>(Act::Ignore);
    fake.until(|_| client.stats().validity.is_zero()).await;
    let mut writing = std::pin::pin!(client.write_page(&file, 0, Bytes::from_static(b"mapped")));
    assert!(writing.as_mut().now_or_never().is_none(), "nobody renews the session");
    fake.fence();
    fake.put_bytes(ino, b"others");
    fake.well_behaved();
    fake.drop_connection();
    assert_eq!(writing.await, Err(FsError::Io));
    assert_eq!(client.fsync(&file, false).await, Err(FsError::Io));
    assert_eq!(client.fsync(&file, false).await, Ok(()));
    assert_eq!(fake.bytes_of(ino), b"others");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_kernel_writes_back_of_a_session_that_ended_is_lost_and_told() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"before");
    let (client, kernel) = fake.mount().await;
    let file = client.open(ino, RW).await.unwrap();
    kernel.keep(&[ino]);
    fake.fence();
    fake.drop_connection();
    fake.until(|fake| fake.hellos().len() == 3).await;
    refuses_pages_until_the_kernel_has_forgotten(&fake, &client, &kernel, &file).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_kernel_writes_back_under_a_lease_that_was_not_given_again_is_lost_and_told() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"before");
    let (client, kernel) = fake.mount().await;
    let file = client.open(ino, RW).await.unwrap();
    let asked = fake.count("Fetch");
    kernel.keep(&[ino]);
    fake.refuse_lease(ino);
    fake.drop_connection();
    // What is open is covered by a lease again.
    fake.until(|fake| fake.count("Fetch") > asked).await;
    refuses_pages_until_the_kernel_has_forgotten(&fake, &client, &kernel, &file).await;
}

async fn refuses_pages_until_the_kernel_has_forgotten(
    fake: &Fake,
    client: &Client,
    kernel: &Kernel,
    file: &FileHandle,
) {
    let page = || client.write_page(file, 0, Bytes::from_static(b"mapped"));
    assert_eq!(page().await, Err(FsError::Io));
    assert_eq!(client.fsync(file, false).await, Err(FsError::Io));
    assert_eq!(fake.bytes_of(file.ino()), b"before");
    kernel.let_go();
    while page().await.is_err() {
        tokio::task::yield_now().await;
    }
    // The kernel may have tried in vain since.
    let _ = client.fsync(file, false).await;
    assert_eq!(client.fsync(file, false).await, Ok(()));
    assert_eq!(fake.bytes_of(file.ino()), b"mapped");
}

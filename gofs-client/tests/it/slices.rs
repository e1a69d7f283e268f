//! A namespace with a quota: what is made out of a slice of it waits for nobody, and what is not is the servers' to refuse.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use gofs_client::{Client, FileHandle, OpenFlags};
use gofs_proto::kind::Request as _;
use gofs_proto::session as wire;
use gofs_proto::session::Failure;
use gofs_tree::{FsError, Ino, Mode, NewNode, ROOT_INO};

use crate::fake::{Act, Fake, name};

fn flags() -> OpenFlags {
    OpenFlags { read: true, write: true, ..OpenFlags::default() }
}

/// A mount that is alone in a namespace with a quota, and a directory of its own.
async fn sliced(bytes: u64, inodes: u64) -> (Fake, Arc<Client>, Ino) {
    let fake = Fake::start().await;
    fake.meter(bytes, inodes);
    let (client, dir) = alone(&fake).await;
    (fake, client, dir)
}

/// A mount that is alone, with inode numbers, and a directory of its own.
async fn alone(fake: &Fake) -> (Arc<Client>, Ino) {
    fake.alone();
    let (client, _) = fake.mount().await;
    // The first wish was answered; others bring nothing.
    fake.meter(0, 0);
    let dir = name("dir");
    let dir = client.create(ROOT_INO, &dir, NewNode::Directory, Mode::new(0o755), Mode::new(0), 1, 1);
    let dir = dir.await.unwrap().value.ino;
    fake.until(|fake| fake.requests().contains(&"Reserve".to_owned())).await;
    // The numbers are there when the next request is answered.
    drop(client.lookup(ROOT_INO, &name("nothing")).await.unwrap());
    (client, dir)
}

async fn create(client: &Client, dir: Ino, text: &str) -> Result<(Ino, FileHandle), FsError> {
    let text = name(text);
    let made = client.create_open(dir, &text, Mode::new(0o644), Mode::new(0), 1, 1, flags());
    made.await.map(|(attr, file)| (attr.value.ino, file))
}

fn write(client: &Client, file: &FileHandle, bytes: usize) -> Option<Result<u32, FsError>> {
    client.write(file, 0, false, Bytes::from(vec![7; bytes])).now_or_never()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn within_the_slice_nothing_waits_and_beyond_it_the_servers_are_asked() {
    let (fake, client, dir) = sliced(1000, 10).await;
    fake.always::<wire::Batch>(Act::Ignore);
    fake.always::<wire::Delegate>(Act::Ignore);
    let mut files = Vec::new();
    for n in 0..10 {
        let (_, file) = create(&client, dir, &format!("f{n}")).now_or_never().expect("no wait").unwrap();
        files.push(file);
    }
    assert_eq!(write(&client, &files[0], 600), Some(Ok(600)));
    assert_eq!(write(&client, &files[0], 500), Some(Ok(500)), "the file does not grow");
    assert_eq!(write(&client, &files[1], 400), Some(Ok(400)));
    assert!(write(&client, &files[2], 1).is_none());
    let edits = |fake: &Fake| fake.requests().iter().filter(|kind| *kind == "Edits").count();
    let before = edits(&fake);
    fake.well_behaved();
    fake.meter(0, 0);
    fake.drop_connection();
    let (_, _eleventh) = create(&client, dir, "f10").await.unwrap();
    assert_eq!(edits(&fake), before + 1, "without an inode of the slice it is the servers' to decide");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slice_is_given_back_after_what_was_promised_is_committed() {
    let (fake, client, dir) = sliced(100_000, 100).await;
    let (ino, file) = create(&client, dir, "f").await.unwrap();
    assert_eq!(write(&client, &file, 700), Some(Ok(700)));
    fake.meter(0, 0);
    fake.recall_slice().await;
    assert_eq!(fake.bytes_of(ino).len(), 700);
    assert!(fake.applied().contains(&"create f".to_owned()));
    assert!(fake.delegated().last().unwrap().give_back);
    // Now each is asked for, and refused at once.
    fake.next::<wire::Edits>(Act::Refuse(Failure::fs(FsError::QuotaExceeded)));
    assert_eq!(create(&client, dir, "g").await.err(), Some(FsError::QuotaExceeded));
    let whole = [&[7; 700][..], b"more"].concat();
    fake.refuse(&format!("write {}", whole.escape_ascii()));
    let grown = client.write(&file, 700, false, Bytes::from_static(b"more")).await;
    assert_eq!(grown, Err(FsError::NoSpace));
    assert_eq!(fake.bytes_of(ino).len(), 700);
    client.fsync(&file, false).await.unwrap();
    assert_eq!(client.stats().lost_edits, 0);
    // A slice is asked for again after a while.
    fake.meter(100_000, 100);
    let before = fake.delegated().len();
    let again = async {
        loop {
            drop(create(&client, dir, &format!("h{}", fake.delegated().len())).await);
            if fake.delegated()[before..].iter().any(|wish| !wish.give_back) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_of_inodes_that_is_about_to_be_set_finds_everything_committed_where_bytes_were_used_up_before()
 {
    let fake = Fake::start().await;
    fake.meter_bytes(0);
    let (client, dir) = alone(&fake).await;
    let (_, file) = create(&client, dir, "f").await.unwrap();
    client.write(&file, 0, false, Bytes::from(vec![7; 100])).await.unwrap();
    assert!(fake.delegated().last().unwrap().give_back);
    client.sync_all().await.unwrap();
    fake.next::<wire::Batch>(Act::Before(wire::Lookup::KIND));
    let batches = fake.count("Batch");
    let (_, _other) = create(&client, dir, "g").now_or_never().expect("inodes are not metered").unwrap();
    let recalled = async {
        fake.recall_slice().await;
        assert!(fake.applied().contains(&"create g".to_owned()));
    };
    let committed = async {
        fake.until(|fake| fake.count("Batch") > batches).await;
        drop(client.lookup(ROOT_INO, &name("asked for")).await.unwrap());
    };
    tokio::join!(recalled, committed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_that_is_about_to_be_set_finds_everything_committed() {
    let fake = Fake::start().await;
    fake.alone();
    let (client, _) = fake.mount().await;
    let (ino, file) = create(&client, ROOT_INO, "f").await.unwrap();
    assert_eq!(write(&client, &file, 3000), Some(Ok(3000)), "nothing is metered");
    fake.meter(0, 0);
    fake.recall_slice().await;
    assert_eq!(fake.bytes_of(ino).len(), 3000);
    let before = fake.requests().len();
    let (_, _other) = create(&client, ROOT_INO, "g").await.unwrap();
    assert!(fake.requests()[before..].contains(&"Edits".to_owned()));
}

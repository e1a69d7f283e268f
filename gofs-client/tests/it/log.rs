//! Edits that are applied here first: what waits for no server, what does, and what goes wrong later.

use std::sync::Arc;
use std::time::Duration;

use crate::fake::{Act, Fake, Kernel, name};
use bytes::Bytes;
use futures_util::FutureExt;
use gofs_client::{Client, ClientConfig, FileHandle, OpenFlags, Wait};
use gofs_proto::kind::Request as _;
use gofs_proto::session as wire;
use gofs_tree::{
    Attr, AttrChange, FsError, Ino, LeaseMode, Mode, NewNode, ROOT_INO, RenameFlags, XattrName, XattrSetMode,
};

fn flags() -> OpenFlags {
    OpenFlags { read: true, write: true, ..OpenFlags::default() }
}

/// A mount that is alone, with inode numbers, and a directory of its own.
async fn alone() -> (Fake, Arc<Client>, Arc<Kernel>, Ino) {
    let fake = Fake::start().await;
    fake.alone();
    let (client, kernel) = fake.mount().await;
    let dir = mkdir(&client, ROOT_INO, "dir").await;
    fake.until(|fake| fake.requests().contains(&"Reserve".to_owned())).await;
    // The numbers are there when the next request is answered.
    drop(client.lookup(ROOT_INO, &name("nothing")).await.unwrap());
    (fake, client, kernel, dir)
}

async fn mkdir(client: &Client, parent: Ino, text: &str) -> Ino {
    let text = name(text);
    let made = client.create(parent, &text, NewNode::Directory, Mode::new(0o755), Mode::new(0), 1, 1);
    made.await.unwrap().value.ino
}

fn create(client: &Client, parent: Ino, text: &str) -> Option<Result<(Attr, FileHandle), FsError>> {
    let text = name(text);
    let made = client.create_open(parent, &text, Mode::new(0o644), Mode::new(0), 1, 1, flags());
    made.now_or_never().map(|made| made.map(|(attr, file)| (attr.value, file)))
}

fn made(client: &Client, parent: Ino, text: &str) -> (Attr, FileHandle) {
    create(client, parent, text).expect("no server is waited for").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_write_leases_nothing_waits_for_a_server() {
    let (fake, client, _, dir) = alone().await;
    fake.always::<wire::Batch>(Act::Ignore);
    let before = fake.applied();
    let (a, file) = made(&client, dir, "a");
    let now = |done: Option<Result<(), FsError>>| done.expect("no server is waited for").unwrap();
    client.write(&file, 0, false, Bytes::from_static(b"abc")).now_or_never().unwrap().unwrap();
    let mode = AttrChange { mode: Some(Mode::new(0o600)), ..AttrChange::default() };
    let changed = client.setattr(a.ino, mode).now_or_never().unwrap().unwrap().value;
    assert_eq!((changed.mode, changed.size), (Mode::new(0o600), 3));
    now(client.rename(dir, &name("a"), dir, &name("b"), RenameFlags::default()).now_or_never());
    let sub = mkdir(&client, dir, "sub").now_or_never().unwrap();
    drop(made(&client, sub, "deep"));
    let linked = client.link(a.ino, sub, &name("link")).now_or_never().unwrap().unwrap().value;
    assert_eq!(linked.nlink, 2);
    now(client.unlink(sub, &name("deep")).now_or_never());
    assert_eq!(client.rmdir(dir, &name("sub")).now_or_never().unwrap(), Err(FsError::NotEmpty));
    now(client.unlink(sub, &name("link")).now_or_never());
    now(client.rmdir(dir, &name("sub")).now_or_never());
    assert_eq!(create(&client, dir, "b").unwrap().err(), Some(FsError::Exists));
    let found = client.lookup(dir, &name("b")).now_or_never().unwrap().unwrap().value.unwrap();
    assert_eq!((found.ino, found.nlink, found.size), (a.ino, 1, 3));
    assert!(client.lookup(dir, &name("a")).now_or_never().unwrap().unwrap().value.is_none());
    assert_eq!(fake.applied(), before, "no server knows of it yet");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_servers_change_a_directory_for_this_mount_nothing_is_changed_in_it_here() {
    let (fake, client, _, dir) = alone().await;
    let other = mkdir(&client, dir, "other").await;
    mkdir(&client, dir, "sub").await;
    let asked = fake.count("Edits");
    fake.always::<wire::Edits>(Act::Ignore);
    // Moving a directory is always the servers' to do.
    let mover = client.clone();
    let moving = tokio::spawn(async move {
        mover.rename(dir, &name("sub"), dir, &name("moved"), RenameFlags::default()).await
    });
    fake.until(|fake| fake.count("Edits") > asked).await;
    // What the answer says of the directory does not know of this, nor this of what is being done.
    // (Another name than the new one: once asked for, it may be made before the move or after it.)
    assert!(create(&client, dir, "beside").is_none(), "it is made before the answer");
    drop(made(&client, other, "file"));
    fake.well_behaved();
    fake.drop_connection();
    moving.await.unwrap().unwrap();
    // In which order the two were made is not known here: the servers are asked.
    let found = async |text| client.lookup(dir, &name(text)).await.unwrap().value.is_some();
    assert!(found("moved").await && !found("sub").await);
    let text = name("moved");
    let again = client.create_open(dir, &text, Mode::new(0o644), Mode::new(0), 1, 1, flags());
    assert_eq!(again.await.err(), Some(FsError::Exists));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extended_attributes_are_changed_here_where_all_of_them_are_known() {
    let (fake, client, _, dir) = alone().await;
    fake.always::<wire::Batch>(Act::Ignore);
    let (attr, file) = made(&client, dir, "a");
    client.write(&file, 0, false, Bytes::from_static(b"abc")).now_or_never().unwrap().unwrap();
    let xattr = |text: &str| XattrName::new(text.as_bytes()).unwrap();
    let set = |name: &str, value: &'static str, mode| {
        let set = client.setxattr(attr.ino, &xattr(name), Bytes::from(value), mode).now_or_never();
        set.expect("no server is waited for")
    };
    let get = |name: &str| {
        let got = client.getxattr(attr.ino, &xattr(name)).now_or_never();
        got.expect("no server is waited for").unwrap().value
    };
    set("user.a", "1", XattrSetMode::Either).unwrap();
    set("user.b", "2", XattrSetMode::Create).unwrap();
    assert_eq!(set("user.b", "3", XattrSetMode::Create), Err(FsError::Exists));
    assert_eq!(set("user.c", "3", XattrSetMode::Replace), Err(FsError::NoAttribute));
    client.removexattr(attr.ino, &xattr("user.a")).now_or_never().unwrap().unwrap();
    assert_eq!((get("user.a"), get("user.b")), (None, Some(Bytes::from("2"))));
    assert_eq!(client.getattr(attr.ino).now_or_never().unwrap().unwrap().value.size, 3);
    fake.well_behaved();
    fake.drop_connection();
    client.fsync(&file, false).await.unwrap();
    let all = fake.xattrs_of(attr.ino);
    assert_eq!(all, [("user.b".to_owned(), Bytes::from("2"))]);
    assert_eq!(client.stats().lost_edits, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_arrive_in_order_many_at_once_and_the_servers_agree() {
    let (fake, client, _, dir) = alone().await;
    let sent = fake.requests().len();
    for n in 0..100 {
        let (_, file) = made(&client, dir, &format!("f{n}"));
        client.write(&file, 0, false, Bytes::from(format!("{n}"))).await.unwrap();
        client.release(file).await;
    }
    for n in 0..50 {
        client.unlink(dir, &name(&format!("f{n}"))).await.unwrap();
    }
    client.sync_all().await.unwrap();
    let batches = fake.requests()[sent..].iter().filter(|kind| *kind == "Batch").count();
    assert!(batches < 100, "{batches} batches");
    assert_eq!(client.stats().unsent_edits, 0);
    for n in 0..100 {
        let found = client.lookup(dir, &name(&format!("f{n}"))).await.unwrap().value;
        assert_eq!(found.is_some(), n >= 50, "f{n}");
        if let Some(attr) = found {
            assert_eq!(fake.bytes_of(attr.ino), format!("{n}").as_bytes());
            assert_eq!(fake.lease(attr.ino).map(|grant| grant.mode), Some(LeaseMode::Write));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_come_and_go_before_they_are_sent_are_not_sent() {
    let (fake, client, _, dir) = alone().await;
    for n in 0..500 {
        let (_, file) = made(&client, dir, &format!("tmp{n}"));
        client.write(&file, 0, false, Bytes::from_static(b"abc")).await.unwrap();
        client.release(file).await;
        client.unlink(dir, &name(&format!("tmp{n}"))).await.unwrap();
    }
    let here = client.getattr(dir).await.unwrap().value;
    // Open when it loses its name: the servers hear of it.
    let (open, file) = made(&client, dir, "open");
    client.unlink(dir, &name("open")).await.unwrap();
    client.fsync(&file, false).await.unwrap();
    assert!(fake.applied().contains(&"create open".to_owned()));
    assert_eq!(client.getattr(open.ino).await.unwrap().value.nlink, 0);
    client.release(file).await;
    client.fsync_dir(dir).await.unwrap();
    let sent = fake.applied().iter().filter(|edit| edit.starts_with("create tmp")).count();
    // A batch may leave between a create and its unlink, which is then sent too.
    assert!(sent < 250, "{sent} of 500 were sent");
    assert_eq!((client.stats().lost_edits, client.stats().unsent_edits), (0, 0));
    // What is left to be seen of them.
    let there = fake.attr_of(dir);
    assert!(there.mtime >= here.mtime && there.ctime >= here.ctime, "{there:?}, {here:?}");
    assert_eq!(there.size, here.size);
    assert!(client.lookup(dir, &name("tmp499")).await.unwrap().value.is_none());
    mkdir(&client, dir, "sub").await;
    client.fsync_dir(dir).await.unwrap();
    assert_eq!(client.stats().lost_edits, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_an_older_edit_of_a_directory_does_not_take_its_times_back() {
    let (fake, client, _, dir) = alone().await;
    fake.next::<wire::Batch>(Act::Ignore);
    let mode = AttrChange { mode: Some(Mode::new(0o700)), ..AttrChange::default() };
    client.setattr(dir, mode).await.unwrap();
    // It is on its way, unanswered, while the directory changes.
    fake.until(|fake| fake.requests().last().is_some_and(|kind| kind == "Batch")).await;
    drop(made(&client, dir, "a"));
    let newest = client.getattr(dir).await.unwrap().value.mtime;
    fake.drop_connection();
    let batches = |fake: &Fake| fake.requests().iter().filter(|kind| *kind == "Batch").count();
    let before = batches(&fake);
    fake.until(|fake| batches(fake) > before).await;
    for _ in 0..50 {
        assert_eq!(client.getattr(dir).await.unwrap().value.mtime, newest);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.fsync_dir(dir).await.unwrap();
    assert_eq!(client.getattr(dir).await.unwrap().value.mtime, newest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recall_of_a_directory_waits_until_the_servers_have_its_edits() {
    let (fake, client, kernel, dir) = alone().await;
    drop(made(&client, dir, "a"));
    fake.recall(dir, fake.lease(dir).unwrap().epoch.0, Some(LeaseMode::Read), &[]).await;
    assert!(fake.applied().contains(&"create a".to_owned()));
    assert!(kernel.forgotten().contains(&dir.to_string()));
    // With Read only, it asks; on a busy machine the answer may be there by the time it is looked for.
    let created = create(&client, dir, "b");
    assert!(created.is_none() || fake.applied().contains(&"create b".to_owned()));
    assert!(client.lookup(dir, &name("a")).await.unwrap().value.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_sent_again_over_a_new_connection_and_happens_once() {
    let (fake, client, _, dir) = alone().await;
    fake.next::<wire::Batch>(Act::ServeThenDrop);
    let (attr, file) = made(&client, dir, "a");
    client.write(&file, 0, false, Bytes::from_static(b"abc")).await.unwrap();
    client.fsync(&file, false).await.unwrap();
    let applied = fake.applied();
    assert_eq!(applied.iter().filter(|edit| *edit == "create a").count(), 1, "{applied:?}");
    let hello = fake.hellos().pop().unwrap();
    assert!(hello.leases.iter().any(|lease| lease.ino == dir.0));
    let own = hello.leases.iter().find(|lease| lease.ino == attr.ino.0).unwrap();
    assert_eq!((own.mode(), own.epoch), (wire::Mode::Write, 0), "nothing was heard of its lease");
    assert_eq!(fake.bytes_of(attr.ino), b"abc");
    assert!(client.getattr(attr.ino).now_or_never().is_some(), "held under the lease of the second answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wanted_back_before_its_maker_was_told_that_it_was_made_has_all_that_was_written() {
    let (fake, client, kernel, dir) = alone().await;
    fake.next::<wire::Batch>(Act::ServeThenDrop);
    fake.next::<wire::Batch>(Act::Before(wire::Lookup::KIND));
    let (attr, file) = made(&client, dir, "a");
    fake.until(|fake| fake.count("Batch") == 2).await;
    client.write(&file, 0, false, Bytes::from_static(b"abc")).await.unwrap();
    let epoch = fake.lease(attr.ino).unwrap().epoch.0;
    let recall = fake.recall(attr.ino, epoch, None, &[]);
    let answered = async {
        fake.until(|_| kernel.forgotten().contains(&format!("i{}", attr.ino.0))).await;
        drop(client.lookup(ROOT_INO, &name("other")).await.unwrap());
    };
    let (open, ()) = tokio::join!(recall, answered);
    assert!(open);
    assert_eq!(fake.bytes_of(attr.ino), b"abc");
    let stats = client.stats();
    assert_eq!((stats.lost_edits, stats.lost_files), (0, 0));
}

/// The kernel's lock on a directory that is being removed ends when the program that removes it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_servers_remove_a_directory_for_this_mount_nothing_is_made_in_it_here() {
    let (fake, client, _, dir) = alone().await;
    mkdir(&client, dir, "sub").await;
    let going = mkdir(&client, dir, "going").await;
    client.sync_all().await.unwrap();
    let asked = fake.count("Edits");
    fake.always::<wire::Edits>(Act::Ignore);
    // Moving a directory is the servers' to do, and then what else is done beside it.
    let (mover, remover) = (client.clone(), client.clone());
    let moving = tokio::spawn(async move {
        mover.rename(dir, &name("sub"), dir, &name("moved"), RenameFlags::default()).await
    });
    fake.until(|fake| fake.count("Edits") > asked).await;
    let removing = tokio::spawn(async move { remover.rmdir(dir, &name("going")).await });
    fake.until(|fake| fake.count("Edits") > asked + 1).await;
    let late = name("late");
    let mut making =
        Box::pin(client.create_open(going, &late, Mode::new(0o644), Mode::new(0), 1, 1, flags()));
    assert!(making.as_mut().now_or_never().is_none(), "the servers say whether it comes too late");
    fake.well_behaved();
    fake.drop_connection();
    moving.await.unwrap().unwrap();
    removing.await.unwrap().unwrap();
    assert_eq!(making.await.map(|(attr, _)| attr.value), Err(FsError::Stale));
    client.sync_all().await.unwrap();
    assert_eq!(client.stats().lost_edits, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_a_soft_mount_has_given_up_is_under_way_until_its_answer() {
    let fake = Fake::start().await;
    let ino = fake.put_file("a", b"");
    let config = ClientConfig { wait: Wait::Soft(Duration::from_millis(200)), ..fake.config() };
    let client = Client::mount(config, Arc::new(Kernel::default())).await.unwrap();
    let text = name("d");
    assert_eq!(client.lookup(ROOT_INO, &text).await.unwrap().value, None);
    drop(client.lookup(ROOT_INO, &name("a")).await.unwrap());
    fake.always::<wire::Edits>(Act::Ignore);
    let making = client.create(ROOT_INO, &text, NewNode::Directory, Mode::new(0o755), Mode::new(0), 1, 1);
    assert_eq!(making.await.err(), Some(FsError::Io));
    assert_eq!(client.unlink(ROOT_INO, &name("a")).await, Err(FsError::Io));
    // Both may be done by now, or be done soon.
    let asked = fake.count("Lookup");
    assert_eq!(client.lookup(ROOT_INO, &text).await.unwrap().value, None);
    assert_eq!(fake.count("Lookup"), asked + 1, "not answered from the cache");
    assert_eq!(client.open(ino, flags()).await.err(), Some(FsError::Io));
    assert_eq!(client.fsync_dir(ROOT_INO).await, Err(FsError::Io), "not for ever");
    fake.well_behaved();
    fake.drop_connection();
    client.fsync_dir(ROOT_INO).await.unwrap();
    assert!(client.lookup(ROOT_INO, &text).await.unwrap().value.is_some());
    assert_eq!(client.open(ino, flags()).await.err(), Some(FsError::NotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_edit_is_told_by_fsync_once_and_what_was_believed_is_forgotten() {
    let (fake, client, kernel, dir) = alone().await;
    fake.refuse("create a");
    let (attr, file) = made(&client, dir, "a");
    assert_eq!(client.fsync(&file, false).await, Err(FsError::Io));
    assert_eq!(client.fsync(&file, false).await, Ok(()));
    assert_eq!(client.fsync_dir(dir).await, Err(FsError::Io));
    assert_eq!(client.fsync_dir(dir).await, Ok(()));
    assert_eq!(client.stats().lost_edits, 1);
    assert!(client.lookup(dir, &name("a")).await.unwrap().value.is_none());
    fake.until(|_| kernel.forgotten().contains(&attr.ino.to_string())).await;
    // What the servers have is learned anew.
    mkdir(&client, dir, "b").await;
    client.fsync_dir(dir).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_edit_is_told_by_close_once_to_each_writer() {
    let (fake, client, _, dir) = alone().await;
    let (other, reader) = (made(&client, dir, "other"), made(&client, dir, "read").0.ino);
    let reader = client.open(reader, OpenFlags { read: true, ..OpenFlags::default() }).await.unwrap();
    fake.refuse("create a");
    let (_, file) = made(&client, dir, "a");
    fake.until(|_| client.stats().lost_edits == 1).await;
    for writer in [&file, &other.1] {
        assert_eq!(client.flush(writer).await, Err(FsError::Io));
        assert_eq!(client.flush(writer).await, Ok(()));
        assert_eq!(client.fsync(writer, false).await, Ok(()), "it was told");
    }
    assert_eq!(client.flush(&reader).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_what_the_servers_removed_for_this_mount_meanwhile_is_no_loss() {
    let (fake, client, _, dir) = alone().await;
    let other = made(&client, dir, "other").1;
    mkdir(&client, dir, "sub").await;
    let (attr, file) = made(&client, dir, "a");
    client.release(file).await;
    client.sync_all().await.unwrap();
    let (asked, batches) = (fake.count("Edits"), fake.count("Batch"));
    fake.always::<wire::Edits>(Act::Ignore);
    fake.always::<wire::Batch>(Act::Ignore);
    // Moving a directory is the servers' to do, and then what else is done beside it.
    let mover = client.clone();
    let moving = tokio::spawn(async move {
        mover.rename(dir, &name("sub"), dir, &name("moved"), RenameFlags::default()).await
    });
    fake.until(|fake| fake.count("Edits") > asked).await;
    let remover = client.clone();
    let removing = tokio::spawn(async move { remover.unlink(dir, &name("a")).await });
    fake.until(|fake| fake.count("Edits") > asked + 1).await;
    let change = AttrChange { mode: Some(Mode::new(0o600)), ..AttrChange::default() };
    client.setattr(attr.ino, change).await.unwrap();
    fake.until(|fake| fake.count("Batch") > batches).await;
    fake.well_behaved();
    fake.always::<wire::Batch>(Act::Ignore);
    fake.drop_connection();
    moving.await.unwrap().unwrap();
    removing.await.unwrap().unwrap();
    fake.well_behaved();
    fake.drop_connection();
    assert_eq!(client.fsync(&other, false).await, Ok(()));
    assert_eq!(client.fsync_dir(dir).await, Ok(()));
    assert_eq!(client.stats().lost_edits, 0);
    assert!(client.lookup(dir, &name("a")).await.unwrap().value.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_of_a_fenced_session_are_lost_counted_and_told() {
    let (fake, client, _, dir) = alone().await;
    fake.always::<wire::Batch>(Act::Ignore);
    let (_, file) = made(&client, dir, "a");
    drop(made(&client, dir, "b"));
    let hellos = fake.hellos().len();
    fake.fence();
    fake.well_behaved();
    fake.drop_connection();
    fake.until(|fake| fake.hellos().len() >= hellos + 2).await;
    fake.until(|_| client.stats().lost_edits == 2).await;
    assert_eq!(client.fsync(&file, false).await, Err(FsError::Io));
    assert!(client.lookup(dir, &name("a")).await.unwrap().value.is_none());
    assert!(!fake.applied().contains(&"create a".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_sync_every_edit_asks() {
    let fake = Fake::start().await;
    fake.alone();
    let config = gofs_client::ClientConfig { sync: true, ..fake.config() };
    let client = Client::mount(config, Arc::new(Kernel::default())).await.unwrap();
    let dir = mkdir(&client, ROOT_INO, "dir").await;
    fake.always::<wire::Edits>(Act::Ignore);
    assert!(create(&client, dir, "a").is_none());
    assert!(!fake.requests().contains(&"Reserve".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_file_that_is_removed_here_stays_readable_until_its_close() {
    let (fake, client, _, dir) = alone().await;
    let (attr, file) = made(&client, dir, "a");
    client.write(&file, 0, false, Bytes::from_static(b"still")).await.unwrap();
    client.unlink(dir, &name("a")).now_or_never().unwrap().unwrap();
    let read = client.read(&file, 0, 10).await.unwrap();
    assert_eq!(read.value.concat(), b"still");
    drop(read);
    client.sync_all().await.unwrap();
    assert!(fake.applied().contains(&"unlink a holders 1".to_owned()));
    assert_eq!(client.getattr(attr.ino).await.unwrap().value.nlink, 0);
    client.release(file).await;
    fake.until(|fake| fake.requests().contains(&"Closed".to_owned())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gone_server_stops_nobody_until_the_log_is_full() {
    let (fake, client, _, dir) = alone().await;
    fake.always::<wire::Batch>(Act::Ignore);
    for n in 0..1000 {
        drop(made(&client, dir, &format!("f{n}")));
    }
    let asks = client.getattr(ROOT_INO);
    assert!(tokio::time::timeout(Duration::from_secs(5), asks).await.is_ok(), "cached");
    fake.well_behaved();
    fake.drop_connection();
    client.sync_all().await.unwrap();
    assert_eq!(fake.applied().iter().filter(|edit| edit.starts_with("create f")).count(), 1000);
}

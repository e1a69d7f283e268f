//! What an operation that is answered from memory costs before it begins: its future is made, moved to the heap and freed
//! for every request of the kernel.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use gofs_client::OpenFlags;
use gofs_tree::{AttrChange, Mode, NewNode, ROOT_INO, RenameFlags, XattrName};

use crate::fake::{Fake, name};

/// Up to 1032 bytes glibc's malloc keeps for the thread that frees them, and takes no lock. The kernel glue adds some to what the
/// client's operation has.
const LIMIT_BYTES: usize = 896;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_are_small_enough_for_the_threads_own_free_lists() {
    let fake = Fake::start().await;
    let (client, _) = fake.mount().await;
    let (a, b, mode) = (name("a"), name("b"), Mode::new(0o644));
    let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
    let (_, file) = client.create_open(ROOT_INO, &a, mode, mode, 0, 0, flags).await.unwrap();
    let dir = client.opendir(ROOT_INO).await.unwrap();
    let attribute = XattrName::new(b"user.a").unwrap();
    let ino = file.ino();
    let sizes: BTreeMap<&str, usize> = [
        ("lookup", size_of_val(&client.lookup(ROOT_INO, &a))),
        ("getattr", size_of_val(&client.getattr(ino))),
        ("setattr", size_of_val(&client.setattr(ino, AttrChange::default()))),
        ("create", size_of_val(&client.create(ROOT_INO, &b, NewNode::Directory, mode, mode, 0, 0))),
        ("create_open", size_of_val(&client.create_open(ROOT_INO, &b, mode, mode, 0, 0, flags))),
        ("unlink", size_of_val(&client.unlink(ROOT_INO, &a))),
        ("rename", size_of_val(&client.rename(ROOT_INO, &a, ROOT_INO, &b, RenameFlags::default()))),
        ("open", size_of_val(&client.open(ino, flags))),
        ("read", size_of_val(&client.read(&file, 0, 4096))),
        ("write", size_of_val(&client.write(&file, 0, false, Bytes::new()))),
        ("flush", size_of_val(&client.flush(&file))),
        ("release_locks", size_of_val(&client.release_locks(ino, 1))),
        ("opendir", size_of_val(&client.opendir(ROOT_INO))),
        ("readdir", size_of_val(&client.readdir(&dir, 0, 100, true))),
        ("getxattr", size_of_val(&client.getxattr(ino, &attribute))),
    ]
    .into();
    println!("{sizes:?}");
    let large: Vec<_> = sizes.iter().filter(|(_, size)| **size > LIMIT_BYTES).collect();
    assert!(large.is_empty(), "more than {LIMIT_BYTES} bytes: {large:?} of {sizes:?}");
    client.release(file).await;
    client.unmount(Duration::from_secs(5)).await;
}

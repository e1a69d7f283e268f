//! Listings that the kernel keeps.

use gofs_client::{Client, DirHandle, KernelListing};
use gofs_tree::ROOT_INO;

use crate::fake::{Fake, name};

/// Reads to the end, from the beginning.
async fn list(client: &Client, dir: &DirHandle) {
    let mut index = 0;
    while let Some(last) = client.readdir(dir, index, 100, false).await.unwrap().last() {
        index = last.next;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernel_drops_what_it_kept_before_it_hears_the_end_of_a_listing_that_was_recalled() {
    let fake = Fake::start().await;
    fake.put_file("a", b"abc");
    let (client, kernel) = fake.mount().await;
    let root = ROOT_INO.to_string();
    let dropped = || kernel.forgotten().iter().filter(|ino| **ino == root).count();
    let dir = client.opendir(ROOT_INO).await.unwrap();
    assert!(matches!(dir.kernel_listing(), KernelListing::Fill(_)));
    list(&client, &dir).await;
    list(&client, &dir).await;
    assert_eq!(dropped(), 0);
    let second = client.opendir(ROOT_INO).await.unwrap();
    assert!(matches!(second.kernel_listing(), KernelListing::Keep(_)));

    // A recall between two replies of one listing: it has dropped what came before it, and what comes after it is old.
    let first_reply = client.readdir(&dir, 0, 1, false).await.unwrap();
    let epoch = fake.lease(ROOT_INO).unwrap().epoch.0;
    fake.recall(ROOT_INO, epoch, None, &["a"]).await;
    assert_eq!(dropped(), 1);
    let mut index = first_reply.last().unwrap().next;
    while let Some(last) = client.readdir(&dir, index, 100, false).await.unwrap().last() {
        assert_eq!(dropped(), 1);
        index = last.next;
    }
    assert_eq!(dropped(), 2, "before the end is told");

    let beside = client.opendir(ROOT_INO).await.unwrap();
    assert_eq!(beside.kernel_listing(), KernelListing::Unused);
    drop((dir, second));
    let after = client.opendir(ROOT_INO).await.unwrap();
    assert!(matches!(after.kernel_listing(), KernelListing::Fill(_)));
    client.lookup(ROOT_INO, &name("a")).await.unwrap();
    list(&client, &after).await;
    assert_eq!(dropped(), 2);
}

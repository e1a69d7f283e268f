//! Directories that are fetched before they are asked for.

use std::time::Duration;

use futures_util::FutureExt;
use gofs_client::Client;
use gofs_tree::{FsError, Ino, ROOT_INO};

use crate::fake::{Fake, name};

async fn list(client: &Client, dir: Ino) -> Result<usize, FsError> {
    let handle = client.opendir(dir).await?;
    let (mut index, mut entries) = (0, 0);
    loop {
        let items = client.readdir(&handle, index, 100, true).await?;
        let Some(last) = items.last() else { return Ok(entries) };
        (index, entries) = (last.next, entries + items.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_in_which_names_are_looked_up_comes_whole() {
    let fake = Fake::start().await;
    fake.walks();
    for text in ["a", "b", "c", "d"] {
        fake.put_file(text, b"abc");
    }
    let (client, _) = fake.mount().await;
    for text in ["none", "a", "b", "c"] {
        client.lookup(ROOT_INO, &name(text)).await.unwrap();
    }
    fake.until(|fake| fake.count("Walk") == 1).await;
    // As soon as it is there everything is answered from it, what is not there too.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while client.lookup(ROOT_INO, &name("nothing")).now_or_never().is_none() {
        assert!(std::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    assert!(client.lookup(ROOT_INO, &name("d")).now_or_never().unwrap().unwrap().value.is_some());
    assert_eq!(fake.count("Walk"), 1);
    client.unmount(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walk_through_the_tree_needs_few_requests() {
    let fake = Fake::start().await;
    fake.walks();
    let dirs: Vec<Ino> = (0..20).map(|i| fake.put_dir(ROOT_INO, &format!("d{i:02}"))).collect();
    for &dir in &dirs {
        fake.put_dir(dir, "below");
    }
    let (client, _) = fake.mount().await;
    assert_eq!(list(&client, ROOT_INO).await.unwrap(), 22);
    for &dir in &dirs {
        assert_eq!(list(&client, dir).await.unwrap(), 3);
        let below = client.lookup(dir, &name("below")).await.unwrap().value.unwrap().ino;
        assert_eq!(list(&client, below).await.unwrap(), 2);
    }
    let pages = fake.count("ReadDir");
    let root_pages = 20_usize.div_ceil(3);
    assert_eq!(pages, root_pages, "{:?}", fake.requests());
    assert!(fake.count("Walk") <= 3, "{:?}", fake.requests());
    client.unmount(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_walks_everything_is_found_all_the_same() {
    let fake = Fake::start().await;
    let dirs: Vec<Ino> = (0..5).map(|i| fake.put_dir(ROOT_INO, &format!("d{i}"))).collect();
    let (client, _) = fake.mount().await;
    assert_eq!(list(&client, ROOT_INO).await.unwrap(), 7);
    for &dir in &dirs {
        assert_eq!(list(&client, dir).await.unwrap(), 2);
        assert_eq!(client.lookup(dir, &name("x")).await.unwrap().value, None);
        assert_eq!(client.lookup(dir, &name("y")).await.unwrap().value, None);
    }
    client.unmount(Duration::from_secs(5)).await;
}

//! Walk: whole directories for a session that is about to ask for them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use gofs_proto::session as wire;
use gofs_tree::Ino;

use crate::client::*;

const PAUSE: Duration = Duration::from_millis(100);

async fn walk(mount: &Mount, inos: &[Ino], below: bool, max_entries: u32) -> Vec<wire::Listing> {
    let inos = inos.iter().map(|ino| ino.0).collect();
    mount.call(wire::Walk { inos, max_entries, below }).await.unwrap().listings
}

fn dir_of(listing: &wire::Listing) -> u64 {
    listing.node.as_ref().unwrap().attr.as_ref().unwrap().ino
}

fn names(listing: &wire::Listing) -> Vec<&[u8]> {
    listing.items.iter().map(|item| &item.name[..]).collect()
}

fn granted(listing: &wire::Listing) -> usize {
    let nodes = listing.items.iter().filter_map(|item| item.node.as_ref());
    nodes.filter(|node| node.grant.is_some()).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_comes_in_its_order_with_its_inodes() {
    let server = serve().await;
    let mount = server.mount().await;
    let a = mount.mkdir(ROOT, "a").await;
    let b = mount.mkdir(a, "b").await;
    let c = mount.mkdir(ROOT, "c").await;
    for (dir, text) in [(ROOT, "f"), (a, "z"), (b, "deep"), (c, "x"), (c, "y")] {
        mount.create(dir, text).await.unwrap();
    }
    let listings = walk(&mount, &[ROOT], true, 1000).await;
    assert_eq!(listings.iter().map(dir_of).collect::<Vec<_>>(), [ROOT.0, a.0, b.0, c.0]);
    assert_eq!(names(&listings[0]), [b"a", b"c", b"f"]);
    assert_eq!((names(&listings[2]), listings[2].parent), (vec![&b"deep"[..]], a.0));
    assert!(listings.iter().all(|listing| listing.end && listing.node.as_ref().unwrap().grant.is_some()));
    assert!(listings.iter().all(|listing| granted(listing) == listing.items.len()));
    // Not what is below, where that is not asked for; what is no directory is left out.
    let file = Ino(listings[0].items[2].ino);
    let listings = walk(&mount, &[a, file, c], false, 1000).await;
    assert_eq!(listings.iter().map(dir_of).collect::<Vec<_>>(), [a.0, c.0]);
    // What does not fit is left out, except that the first is cut.
    let listings = walk(&mount, &[ROOT], true, 5).await;
    assert_eq!(listings.iter().map(dir_of).collect::<Vec<_>>(), [ROOT.0, a.0], "three and two");
    let listings = walk(&mount, &[ROOT, a], true, 2).await;
    assert_eq!((listings.len(), names(&listings[0]), listings[0].end), (1, vec![&b"a"[..], b"c"], false));
    let rest = mount.call(wire::ReadDir { ino: ROOT.0, after: "c".into(), max_entries: 9, plus: true }).await;
    assert_eq!(rest.unwrap().items.len(), 1);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_asked_to_give_anything_back_for_a_walk() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    let dir = a.mkdir(ROOT, "d").await;
    let written = Ino(a.create(dir, "f").await.unwrap().ino);
    a.create(dir, "g").await.unwrap();
    a.call(wire::Release { inos: vec![ROOT.0, dir.0, written.0 + 1] }).await.unwrap();
    let listings = walk(&b, &[ROOT], true, 1000).await;
    a.not_asked(PAUSE).await;
    assert_eq!(listings.iter().map(dir_of).collect::<Vec<_>>(), [ROOT.0, dir.0]);
    let of_dir = &listings[1];
    assert_eq!((names(of_dir), granted(of_dir)), (vec![&b"f"[..], b"g"], 1), "what A may be writing is bare");
    // A directory that A may be changing does not come at all.
    b.willing.store(true, Ordering::Relaxed);
    let held = a.mkdir(ROOT, "held").await;
    a.call(wire::Release { inos: vec![ROOT.0] }).await.unwrap();
    assert_eq!(walk(&b, &[held], true, 1000).await, []);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walk_of_too_many_directories_is_refused() {
    let server = serve().await;
    let mount = server.mount().await;
    let request = wire::Walk { inos: vec![1; 65], max_entries: 10, below: false };
    let failure = refused(mount.call(request).await.unwrap_err());
    assert!(failure.text.contains("64"), "{failure:?}");
    server.shutdown().await;
}

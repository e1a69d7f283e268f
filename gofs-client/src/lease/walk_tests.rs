//! When a mount reads ahead, and how far.

use std::time::Duration;

use gofs_proto::convert::Node;
use gofs_tree::{DirEntry, FileType, Ino, LeaseMode, Name};

use super::*;
use crate::lease::NameAnswer;
use crate::lease::tests::typed_node;

const ROOT: Ino = Ino(1);

fn at(ms: u64) -> BootTime {
    BootTime::default().after(Duration::from_millis(ms))
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn node(ino: Ino, file_type: FileType) -> Node {
    typed_node(ino, file_type, Some(LeaseMode::Read), ino.0)
}

/// Takes a whole directory in: names that begin with `d` are directories.
fn list(table: &mut LeaseTable, dir: Ino, entries: &[(&str, u64)], ahead: bool) {
    table.learn(&node(dir, FileType::Directory));
    let entry = |&(text, ino): &(&str, u64)| {
        let file_type = if text.starts_with('d') { FileType::Directory } else { FileType::File };
        (name(text), DirEntry { ino: Ino(ino), file_type })
    };
    let entries: Vec<_> = entries.iter().map(entry).collect();
    for (_, entry) in &entries {
        table.learn(&node(entry.ino, entry.file_type));
    }
    let count = entries.len() as u32;
    table.learn_page(dir, ROOT, entries.into_iter(), true, None, true, true);
    table.fetched(dir, count, None, ahead);
}

fn table() -> LeaseTable {
    let mut table = LeaseTable::default();
    table.renew(at(20_000));
    table.learn(&node(ROOT, FileType::Directory));
    table
}

fn miss(table: &mut LeaseTable, dir: Ino, text: &str, now: BootTime) -> Option<Ahead> {
    assert!(matches!(table.lookup(dir, &name(text), now), NameAnswer::Unknown));
    table.ahead(now)
}

fn walk_of(ahead: Option<Ahead>) -> WalkRequest {
    match ahead {
        Some(Ahead::Walk(request)) => request,
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_names_ask_for_nothing_ahead_the_third_for_its_directory() {
    let mut table = table();
    assert_eq!(miss(&mut table, ROOT, "a", at(0)), None);
    assert_eq!(miss(&mut table, ROOT, "z", at(0)), None);
    let request = walk_of(miss(&mut table, ROOT, "b", at(1)));
    assert_eq!(request, WalkRequest { named: vec![ROOT], now: true, below: false, entries: PAGE_ENTRIES });
    assert!(table.is_asked(ROOT));
    assert_eq!(miss(&mut table, ROOT, "c", at(2)), None, "it is on its way");
    list(&mut table, ROOT, &[("a", 2), ("b", 3)], false);
    table.walked(&request, Some(ROOT));
    assert!(!table.is_asked(ROOT));
    assert!(matches!(table.lookup(ROOT, &name("a"), at(3)), NameAnswer::Found(..)));
    assert!(matches!(table.lookup(ROOT, &name("c"), at(3)), NameAnswer::Absent(_)));
    assert_eq!(table.ahead(at(3)), None);
}

#[test]
fn a_directory_that_cannot_be_had_is_asked_for_ever_less_often() {
    let mut table = table();
    let mut asked = 0;
    for i in 0..1000 {
        if let Some(Ahead::Walk(request)) = miss(&mut table, ROOT, &format!("f{i}"), at(i)) {
            table.walked(&request, None);
            asked += 1;
        }
    }
    assert!((5..=10).contains(&asked), "asked {asked} times");
}

#[test]
fn a_large_directory_is_fetched_in_proportion_to_its_use() {
    let mut table = table();
    miss(&mut table, ROOT, "a", at(0));
    miss(&mut table, ROOT, "z", at(0));
    let request = walk_of(miss(&mut table, ROOT, "b", at(1)));
    let mut fetched = PAGE_ENTRIES;
    let page = [(name("m"), DirEntry { ino: Ino(9), file_type: FileType::File })];
    let listing = table.learn_page(ROOT, ROOT, page.into_iter(), true, None, false, true).unwrap();
    table.fetched(ROOT, PAGE_ENTRIES, Some((name("m"), listing)), false);
    table.walked(&request, Some(ROOT));
    // A few look-ups are worth one more page, and that is all.
    let mut page = table.next_page(ROOT);
    while let Some(next) = page {
        assert_eq!((next.dir, next.after.as_bytes()), (ROOT, &b"m"[..]));
        fetched += next.entries;
        table.fetched(ROOT, next.entries, Some((name("m"), listing)), false);
        page = table.next_page(ROOT);
    }
    assert_eq!(fetched, 2 * PAGE_ENTRIES);
    // More of them are worth more.
    let more = (0..100).filter_map(|i| miss(&mut table, ROOT, &format!("x{i}"), at(i))).next();
    assert!(matches!(more, Some(Ahead::Page(ref page)) if page.dir == ROOT), "{more:?}");
    table.paged(ROOT);
    assert!(!table.is_asked(ROOT));
}

#[test]
fn names_here_and_there_in_a_tree_bring_nothing_ahead() {
    const DIRS: u64 = 20;
    let mut table = table();
    let dirs: Vec<(String, u64)> = (0..DIRS).map(|i| (format!("d{i:02}"), 100 + i)).collect();
    let dirs: Vec<(&str, u64)> = dirs.iter().map(|(text, ino)| (text.as_str(), *ino)).collect();
    list(&mut table, ROOT, &dirs, false);
    for round in 0..10 {
        for ino in 100..100 + DIRS {
            let now = at(round * DIRS + ino);
            assert_eq!(miss(&mut table, Ino(ino), &format!("x{round}"), now), None);
        }
    }
    // Programs that take turns are no such thing.
    let mut table = self::table();
    list(&mut table, ROOT, &dirs, false);
    for (turn, ino) in [100, 101, 102, 100, 101, 102].into_iter().enumerate() {
        assert_eq!(miss(&mut table, Ino(ino), &format!("x{turn}"), at(200)), None);
    }
    let request = walk_of(miss(&mut table, Ino(100), "y", at(200)));
    assert_eq!((request.named[0], request.entries), (Ino(100), PAGE_ENTRIES));
}

#[test]
fn a_listing_that_somebody_else_began_ends_the_one_that_was_fetched_ahead() {
    let mut table = table();
    let page = [(name("m"), DirEntry { ino: Ino(9), file_type: FileType::File })];
    let listing = table.learn_page(ROOT, ROOT, page.clone().into_iter(), true, None, false, true).unwrap();
    table.fetched(ROOT, 1, Some((name("m"), listing)), false);
    assert!(table.next_page(ROOT).is_some());
    table.learn_page(ROOT, ROOT, page.into_iter(), true, None, false, true);
    assert_eq!(table.next_page(ROOT), None);
}

#[test]
fn a_walk_is_fetched_ahead_in_the_order_of_the_tree() {
    let mut table = table();
    assert_eq!(table.want_entries(ROOT, at(0)), Wanted::Pages, "one directory is no walk");
    list(&mut table, ROOT, &[("d1", 10), ("d2", 20), ("d3", 30)], false);
    let Wanted::Walk(request) = table.want_entries(Ino(10), at(10)) else { panic!("no walk") };
    let named = vec![Ino(10), Ino(20), Ino(30)];
    assert_eq!(request, WalkRequest { named, now: true, below: true, entries: WINDOW.0 });
    assert_eq!(table.want_entries(Ino(20), at(11)), Wanted::Wait);
    // The first comes with what is below it, and what is named last does not fit.
    list(&mut table, Ino(10), &[("d11", 11)], false);
    list(&mut table, Ino(11), &[("d111", 12), ("f", 13)], true);
    list(&mut table, Ino(20), &[("f", 21)], true);
    table.walked(&request, Some(Ino(20)));
    // Used: the next request begins with what is next in the tree, and is for more.
    assert!(table.list(Ino(11), at(12)).is_some());
    let request = walk_of(table.ahead(at(12)));
    let named = vec![Ino(12), Ino(30)];
    assert_eq!(request, WalkRequest { named, now: false, below: true, entries: 2 * WINDOW.0 });
    // One at a time.
    assert!(table.list(Ino(20), at(13)).is_some());
    assert_eq!(table.ahead(at(13)), None);
}

#[test]
fn nothing_is_fetched_while_enough_is_there_that_was_not_looked_at() {
    let mut table = table();
    table.want_entries(ROOT, at(0));
    list(&mut table, ROOT, &[("d1", 10), ("d2", 20), ("d3", 30)], false);
    let Wanted::Walk(request) = table.want_entries(Ino(10), at(10)) else { panic!("no walk") };
    list(&mut table, Ino(10), &[("f", 11)], false);
    let many: Vec<(String, u64)> = (0..400).map(|i| (format!("f{i:03}"), 1000 + i)).collect();
    let many: Vec<(&str, u64)> = many.iter().map(|(text, ino)| (text.as_str(), *ino)).collect();
    list(&mut table, Ino(20), &many, true);
    list(&mut table, Ino(30), &[("f", 31)], true);
    table.walked(&request, Some(Ino(30)));
    assert!(table.list(Ino(30), at(20)).is_some());
    assert_eq!(table.ahead(at(20)), None);
    assert!(table.list(Ino(20), at(21)).is_some());
    assert_eq!(table.ahead(at(21)), None, "nothing is next");
}

#[test]
fn directories_far_apart_in_time_are_no_walk() {
    let mut table = table();
    table.want_entries(ROOT, at(0));
    list(&mut table, ROOT, &[("d1", 10), ("d2", 20)], false);
    assert_eq!(table.want_entries(Ino(10), at(600)), Wanted::Pages);
    assert_eq!(table.want_entries(Ino(20), at(1_200)), Wanted::Pages);
}

#[test]
fn what_has_edits_that_the_servers_lack_is_not_named() {
    let mut table = table();
    table.want_entries(ROOT, at(0));
    list(&mut table, ROOT, &[("d1", 10), ("d2", 20)], false);
    table.inodes.get_mut(&Ino(20)).unwrap().pending = 1;
    let Wanted::Walk(request) = table.want_entries(Ino(10), at(1)) else { panic!("no walk") };
    assert_eq!(request.named, [Ino(10)]);
    table.inodes.get_mut(&Ino(10)).unwrap().pending = 1;
    table.walked(&request, None);
    assert_eq!(table.want_entries(Ino(10), at(2)), Wanted::Pages);
}

#[test]
fn a_lost_session_forgets_what_was_asked() {
    let mut table = table();
    miss(&mut table, ROOT, "a", at(0));
    miss(&mut table, ROOT, "z", at(0));
    miss(&mut table, ROOT, "b", at(1));
    assert!(table.is_asked(ROOT));
    table.lose_all();
    assert!(!table.is_asked(ROOT));
}

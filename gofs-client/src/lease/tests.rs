//! The table's claims, without a clock and without a connection.

use std::time::Duration;

use bytes::Bytes;
use gofs_proto::convert::{Grant, Node};
use gofs_tree::{Attr, DirEntry, FileType, Ino, LeaseEpoch, LeaseMode, Mode, Name, Timestamp};

use super::evict::Victim;
use super::recall::Phase;
use super::*;
use crate::clock::BootTime;

const DIR: Ino = Ino(1);
const FILE: Ino = Ino(7);
const OTHER: Ino = Ino(8);

fn at(seconds: u64) -> BootTime {
    BootTime::default().after(Duration::from_secs(seconds))
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn node(ino: Ino, mode: Option<LeaseMode>, epoch: u64) -> Node {
    let file_type = if ino == DIR { FileType::Directory } else { FileType::File };
    typed_node(ino, file_type, mode, epoch)
}

pub(super) fn typed_node(ino: Ino, file_type: FileType, mode: Option<LeaseMode>, epoch: u64) -> Node {
    let time = Timestamp::new(1, 0);
    let attr = Attr {
        ino,
        file_type,
        mode: Mode::new(0o644),
        uid: 0,
        gid: 0,
        nlink: 1,
        size: 0,
        blocks: 0,
        rdev: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
    };
    let grant = mode.map(|mode| Grant { ino, mode, epoch: LeaseEpoch(epoch) });
    Node { attr, grant, inline: Bytes::new(), has_chunks: false, has_xattrs: false }
}

fn entry(ino: Ino) -> DirEntry {
    DirEntry { ino, file_type: FileType::File }
}

/// Valid for 20 s, Read on the directory and on the file in it.
fn table() -> LeaseTable {
    let mut table = LeaseTable::default();
    table.renew(at(20));
    table.learn(&node(DIR, Some(LeaseMode::Read), 1));
    table.learn(&node(FILE, Some(LeaseMode::Read), 2));
    table.learn_name(DIR, &name("file"), Some(entry(FILE)), true);
    table.learn_name(DIR, &name("none"), None, true);
    table
}

fn whole(table: &mut LeaseTable, ino: Ino, epoch: u64, keep: Option<LeaseMode>) -> Recalled {
    table.recall(ino, LeaseEpoch(epoch), keep, &[])
}

#[test]
fn names_and_absence_are_answered_for_what_is_left_of_the_session() {
    let mut table = table();
    let NameAnswer::Found(attr, permit) = table.lookup(DIR, &name("file"), at(5)) else {
        panic!("not found")
    };
    assert_eq!((attr.ino, permit.ttl), (FILE, Duration::from_secs(15)));
    assert!(matches!(table.lookup(DIR, &name("none"), at(5)), NameAnswer::Absent(_)));
    assert!(matches!(table.lookup(DIR, &name("other"), at(5)), NameAnswer::Unknown));
}

#[test]
fn nothing_is_answered_when_the_session_is_not_valid() {
    let mut table = table();
    assert!(matches!(table.lookup(DIR, &name("file"), at(20)), NameAnswer::Unknown));
    assert!(table.attr(FILE, at(21)).is_none());
    assert_eq!(table.begin_read(FILE, at(21)), ReadStart::Wait);
    assert_eq!(table.hold(FILE, LeaseMode::Read, at(21)), Holding::Wait);
    table.renew(at(40));
    assert!(table.attr(FILE, at(21)).is_some());
}

#[test]
fn a_reply_without_a_grant_is_not_cached() {
    let mut table = table();
    assert!(!table.learn(&node(OTHER, None, 0)));
    assert!(table.attr(OTHER, at(1)).is_none());
    table.learn_name(DIR, &name("file"), Some(entry(OTHER)), false);
    assert!(matches!(table.lookup(DIR, &name("file"), at(1)), NameAnswer::Unknown));
}

#[test]
fn a_recall_ends_answers_at_once_and_the_lease_at_its_end() {
    let mut table = table();
    assert!(matches!(whole(&mut table, FILE, 2, None), Recalled::Begun(_)));
    assert!(table.attr(FILE, at(1)).is_none());
    assert!(matches!(table.lookup(DIR, &name("file"), at(1)), NameAnswer::Unknown));
    assert_eq!(table.mode(FILE), Some(LeaseMode::Read));
    // Nothing new is cached while it goes.
    assert!(!table.learn(&node(FILE, Some(LeaseMode::Read), 2)));
    assert!(!table.end_recall(FILE, None));
    assert_eq!(table.mode(FILE), None);
    assert!(table.learn(&node(FILE, Some(LeaseMode::Read), 3)));
    assert!(table.attr(FILE, at(1)).is_some());
}

#[test]
fn replies_in_flight_are_waited_for_and_later_ones_are_not() {
    let mut table = table();
    let (_, before) = table.attr(FILE, at(1)).unwrap();
    let Recalled::Begun(taken) = whole(&mut table, FILE, 2, None) else { panic!("not begun") };
    assert!(taken.uses.iter().any(|uses| !uses.is_drained()));
    drop(before);
    assert!(taken.uses.iter().all(|uses| uses.is_drained()));
}

#[test]
fn a_second_recall_waits_for_replies_that_the_first_still_waits_for() {
    let mut table = table();
    let NameAnswer::Found(_, guard) = table.lookup(DIR, &name("file"), at(1)) else { panic!("not found") };
    let Recalled::Names(first) = table.recall(DIR, LeaseEpoch(1), None, &[name("file")]) else { panic!() };
    let Recalled::Begun(second) = whole(&mut table, DIR, 1, None) else { panic!() };
    for uses in [&first, &second.uses] {
        assert!(uses.iter().any(|uses| !uses.is_drained()));
    }
    drop(guard);
    assert!(first.iter().chain(&second.uses).all(|uses| uses.is_drained()));
}

#[test]
fn a_recall_of_names_keeps_the_lease_and_the_other_names() {
    let mut table = table();
    let recalled = table.recall(DIR, LeaseEpoch(1), Some(LeaseMode::Read), &[name("none")]);
    assert!(matches!(recalled, Recalled::Names(_)));
    assert!(matches!(table.lookup(DIR, &name("none"), at(1)), NameAnswer::Unknown));
    assert!(matches!(table.lookup(DIR, &name("file"), at(1)), NameAnswer::Found(..)));
    assert!(table.attr(DIR, at(1)).is_none(), "size and times of the directory change too");
    assert_eq!(table.mode(DIR), Some(LeaseMode::Read));
}

#[test]
fn a_recall_of_an_older_grant_is_acknowledged_and_drops_nothing() {
    let mut table = table();
    assert!(matches!(whole(&mut table, FILE, 1, None), Recalled::Acknowledge { open: false }));
    assert!(table.attr(FILE, at(1)).is_some());
    assert!(matches!(whole(&mut table, OTHER, 1, None), Recalled::Acknowledge { open: false }));
}

#[test]
fn a_write_lease_is_reduced_to_read_and_stays_cached() {
    let mut table = table();
    table.learn(&node(FILE, Some(LeaseMode::Write), 3));
    assert!(matches!(whole(&mut table, FILE, 3, Some(LeaseMode::Read)), Recalled::Begun(_)));
    table.end_recall(FILE, Some(LeaseMode::Read));
    assert_eq!(table.mode(FILE), Some(LeaseMode::Read));
    assert!(table.attr(FILE, at(1)).is_some());
    // Asked again for what is not held any more.
    let again = whole(&mut table, FILE, 3, Some(LeaseMode::Read));
    assert!(matches!(again, Recalled::Acknowledge { open: false }));
}

#[test]
fn a_confirmation_of_read_does_not_lower_write() {
    let mut table = table();
    table.learn(&node(FILE, Some(LeaseMode::Write), 3));
    table.learn(&node(FILE, Some(LeaseMode::Read), 3));
    assert_eq!(table.mode(FILE), Some(LeaseMode::Write));
}

#[test]
fn writes_of_the_kernel_pass_while_it_forgets_and_wait_while_they_are_flushed() {
    let mut table = table();
    table.learn(&node(FILE, Some(LeaseMode::Write), 3));
    whole(&mut table, FILE, 3, None);
    table.begin_invalidation(FILE, false);
    assert_eq!(table.hold(FILE, LeaseMode::Write, at(1)), Holding::Held);
    assert!(table.end_invalidation(FILE).is_none());
    assert_eq!(table.hold(FILE, LeaseMode::Write, at(1)), Holding::Wait);
    assert!(table.is_held(FILE));
    table.end_hold(FILE);
    assert!(!table.is_held(FILE));
}

#[test]
fn a_read_during_invalidation_waits_first_then_passes_and_is_noticed() {
    let mut table = table();
    let ReadStart::Go(epoch) = table.begin_read(FILE, at(1)) else { panic!("not held") };
    whole(&mut table, FILE, 2, None);
    assert_eq!(table.begin_read(FILE, at(1)), ReadStart::Wait);
    table.begin_invalidation(FILE, false);
    assert!(matches!(table.end_read(FILE, epoch, at(1)), ReadEnd::Wait));
    table.let_reads_pass(FILE);
    let ReadEnd::Answer(permit) = table.end_read(FILE, epoch, at(1)) else { panic!("must pass") };
    assert_eq!(permit.ttl, Duration::ZERO);
    let uses = table.end_invalidation(FILE).expect("the kernel must forget again");
    assert!(uses.iter().any(|uses| !uses.is_drained()), "and only after the reply is out");
    drop(permit);
    table.begin_invalidation(FILE, false);
    table.let_reads_pass(FILE);
    assert!(table.end_invalidation(FILE).is_none());
    assert!(matches!(table.end_read(FILE, epoch, at(1)), ReadEnd::Wait), "nobody would notice it");
    table.end_recall(FILE, None);
    assert!(matches!(table.end_read(FILE, epoch, at(1)), ReadEnd::Again));
}

#[test]
fn a_page_is_parked_only_where_a_recall_waits_for_it_and_holds_back_the_rest() {
    let mut table = table();
    assert!(!table.must_park(FILE));
    whole(&mut table, FILE, 2, None);
    assert!(table.must_park(FILE));
    assert!(table.park(FILE, 0, Bytes::from_static(b"one")));
    assert!(!table.park(FILE, 2, Bytes::from_static(b"two")));
    table.begin_invalidation(FILE, true);
    let read = |table: &LeaseTable| table.with_parked(FILE, 1, vec![Bytes::from_static(b"....")]).concat();
    assert_eq!(read(&table), b"ntwo");
    table.end_recall(FILE, None);
    table.learn(&node(FILE, Some(LeaseMode::Write), 5));
    assert_eq!(table.hold(FILE, LeaseMode::Write, at(1)), Holding::Wait);
    assert_eq!(table.begin_read(FILE, at(1)), ReadStart::Wait);
    assert!(table.must_park(FILE), "in order behind the others");
    assert_eq!(table.hold_before_parked(FILE, LeaseMode::Write, at(1)), Holding::Held);
    assert_eq!(table.next_parked(FILE).unwrap().0, 0);
    assert!(table.unpark(FILE) && !table.unpark(FILE));
    table.end_hold(FILE);
    assert_eq!(table.hold(FILE, LeaseMode::Write, at(1)), Holding::Held);
    table.end_hold(FILE);
    // Under Write the page is just taken in.
    whole(&mut table, FILE, 5, None);
    assert!(!table.must_park(FILE));
}

#[test]
fn of_parked_pages_only_what_was_changed_is_kept_and_of_those_that_come_again_all() {
    let mut table = table();
    let mut park = |offset, bytes| table.park(FILE, offset, Bytes::from_static(bytes));
    assert!(park(0, b"aXcdYY"));
    park(2 * PAGE_BYTES, b"same");
    park(0, b"abcdYY");
    park(PAGE_BYTES, b"longer");
    park(3 * PAGE_BYTES, b"not read");
    let held = [&b"abcdef"[..], b"same", b"abcdef", b"long"].map(<[u8]>::to_vec);
    table.trim_parked(FILE, &held);
    let left: Vec<_> = table.parked_pages(FILE);
    let left: Vec<(u64, &[u8])> = left.iter().map(|(offset, bytes)| (*offset, &bytes[..])).collect();
    assert_eq!(left, [(1, &b"X"[..]), (4, b"YY"), (0, b"abcdYY"), (3 * PAGE_BYTES, b"not read")]);
    table.drop_parked(FILE);
    table.park(FILE, 0, Bytes::from_static(b"same"));
    table.trim_parked(FILE, &[b"same".to_vec()]);
    assert_eq!(table.next_parked(FILE), Some((0, Bytes::new())), "whoever writes them finds that it is done");
}

#[test]
fn bytes_read_under_an_earlier_grant_are_read_again() {
    let mut table = table();
    whole(&mut table, FILE, 2, None);
    table.end_recall(FILE, None);
    table.learn(&node(FILE, Some(LeaseMode::Read), 9));
    assert!(matches!(table.end_read(FILE, LeaseEpoch(2), at(1)), ReadEnd::Again));
    assert!(matches!(table.end_read(FILE, LeaseEpoch(9), at(1)), ReadEnd::Answer(_)));
}

#[test]
fn an_open_file_is_registered_by_the_acknowledgement_and_its_last_close_is_told() {
    let mut table = table();
    assert_eq!(table.open(FILE, at(1)), Opening::Opened);
    assert_eq!(table.open(FILE, at(1)), Opening::Opened);
    assert!(table.registered_opens().is_empty());
    whole(&mut table, FILE, 2, None);
    assert!(table.end_recall(FILE, None));
    assert_eq!(table.registered_opens(), [FILE]);
    assert_eq!(table.close(FILE, at(1)), Closing::Nothing);
    assert_eq!(table.close(FILE, at(1)), Closing::TellServer);
    assert_eq!(table.opens(), 0);
}

#[test]
fn a_close_under_a_lease_is_told_nobody() {
    let mut table = table();
    table.open(FILE, at(1));
    assert_eq!(table.close(FILE, at(1)), Closing::Nothing);
}

#[test]
fn a_file_that_was_just_looked_up_can_be_opened_after_its_lease_is_gone() {
    let mut table = table();
    assert!(table.looked_up(FILE, at(1)));
    whole(&mut table, FILE, 2, None);
    assert!(table.linger(FILE, at(1)));
    assert!(table.end_recall(FILE, None), "the server is told that it is open");
    assert_eq!(table.open(FILE, at(1)), Opening::Opened);
    assert_eq!(table.close(FILE, at(1)), Closing::Nothing);
    assert_eq!(table.close(FILE, at(2)), Closing::TellServer);
}

#[test]
fn a_look_up_long_ago_or_of_what_is_not_held_keeps_nothing() {
    let mut table = table();
    assert!(table.looked_up(FILE, at(1)));
    whole(&mut table, FILE, 2, None);
    assert!(!table.linger(FILE, at(2)));
    assert!(!table.end_recall(FILE, None));
    assert!(!table.looked_up(FILE, at(2)));
    assert!(!table.looked_up(Ino(99), at(2)));
}

/// The kernel tells of a close late, maybe between a look-up and its open.
#[test]
fn a_close_does_not_end_what_a_look_up_has_just_found() {
    let mut table = table();
    assert_eq!(table.open(FILE, at(1)), Opening::Opened);
    assert!(table.looked_up(FILE, at(1)));
    whole(&mut table, FILE, 2, None);
    assert!(table.linger(FILE, at(1)), "though it is open");
    assert!(table.end_recall(FILE, None));
    assert_eq!(table.close(FILE, at(1)), Closing::Nothing);
    assert_eq!(table.open(FILE, at(1)), Opening::Opened);
    assert_eq!(table.close(FILE, at(1)), Closing::Nothing);
    // As an orphan, with a new lease.
    table.learn(&node(FILE, Some(LeaseMode::Read), 5));
    assert!(table.looked_up(FILE, at(2)));
    assert_eq!(table.close(FILE, at(2)), Closing::Later);
    assert_eq!(table.close(FILE, at(3)), Closing::TellServer);
}

#[test]
fn an_open_waits_for_a_close_that_is_on_its_way() {
    let mut table = table();
    assert_eq!(table.open(FILE, at(1)), Opening::Opened);
    whole(&mut table, FILE, 2, None);
    table.end_recall(FILE, None);
    assert_eq!(table.close(FILE, at(1)), Closing::TellServer);
    table.learn(&node(FILE, Some(LeaseMode::Read), 5));
    assert!(table.still_closed(FILE));
    assert_eq!(table.open(FILE, at(1)), Opening::Wait, "the server would count it as closed, too");
    assert!(!table.end_closing(FILE));
    assert_eq!(table.open(FILE, at(1)), Opening::Opened);
    assert!(!table.still_closed(FILE), "open again before the close was told");
}

#[test]
fn what_has_no_name_is_gone_with_its_close() {
    let mut table = table();
    assert_eq!(table.open(FILE, at(1)), Opening::Opened);
    whole(&mut table, FILE, 2, None);
    table.end_recall(FILE, None);
    let mut orphan = node(FILE, Some(LeaseMode::Read), 5);
    orphan.attr.nlink = 0;
    table.learn(&orphan);
    assert_eq!(table.close(FILE, at(1)), Closing::TellServer);
    assert!(table.still_closed(FILE));
    assert!(table.end_closing(FILE));
    assert_eq!(table.open(FILE, at(1)), Opening::NeedLease, "not under the lease of a file that is gone");
}

#[test]
fn an_open_waits_for_a_removal_and_finds_nothing_after_it() {
    let mut table = table();
    table.begin_removal(FILE);
    assert_eq!(table.open(FILE, at(1)), Opening::Wait);
    assert!(!table.removed(FILE));
    table.end_removal(FILE);
    assert_eq!(table.open(FILE, at(1)), Opening::NeedLease);
    assert!(!table.known().contains(&FILE));
}

#[test]
fn a_removed_file_that_is_open_is_the_servers_to_keep_until_the_close() {
    let mut table = table();
    table.open(FILE, at(1));
    assert!(table.removed(FILE));
    assert!(table.is_removed(FILE));
    assert_eq!(table.attr(FILE, at(1)).unwrap().0.nlink, 0);
    assert_eq!(table.close(FILE, at(1)), Closing::TellServer);
}

#[test]
fn a_listing_tells_what_is_absent_only_if_nothing_came_between() {
    let mut table = table();
    let page = [(name("a"), entry(Ino(10)))];
    let listing = table.learn_page(DIR, DIR, page.clone().into_iter(), true, None, false, true);
    assert!(listing.is_some());
    assert!(table.list(DIR, at(1)).is_none());
    table.learn_page(DIR, DIR, [(name("file"), entry(FILE))].into_iter(), false, listing, true, true);
    let (_, names) = table.list(DIR, at(1)).unwrap();
    assert_eq!(names.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>(), ["a", "file"]);
    assert!(matches!(table.lookup(DIR, &name("zzz"), at(1)), NameAnswer::Absent(_)));

    // A name that is recalled behind the page that would have shown it.
    let listing = table.learn_page(DIR, DIR, page.into_iter(), true, None, false, true);
    table.recall(DIR, LeaseEpoch(1), None, &[name("aa")]);
    table.learn_page(DIR, DIR, std::iter::empty(), false, listing, true, true);
    assert!(table.list(DIR, at(1)).is_none());
    assert!(matches!(table.lookup(DIR, &name("aa"), at(1)), NameAnswer::Unknown));
    assert!(matches!(table.lookup(DIR, &name("zzz"), at(1)), NameAnswer::Absent(_)));

    // The next listing tells what became of it.
    let listing = table.learn_page(DIR, DIR, std::iter::empty(), true, None, false, true);
    assert!(matches!(table.lookup(DIR, &name("aa"), at(1)), NameAnswer::Unknown));
    table.learn_page(DIR, DIR, std::iter::empty(), false, listing, true, true);
    assert!(table.list(DIR, at(1)).is_some());
    assert!(matches!(table.lookup(DIR, &name("aa"), at(1)), NameAnswer::Absent(_)));
}

#[test]
fn a_name_recalled_in_an_incomplete_listing_is_unknown_after_its_end() {
    let mut table = LeaseTable::default();
    table.renew(at(20));
    table.learn(&node(DIR, Some(LeaseMode::Read), 1));
    let listing = table.learn_page(DIR, DIR, std::iter::empty(), true, None, false, true);
    table.recall(DIR, LeaseEpoch(1), None, &[name("aa")]);
    table.learn_page(DIR, DIR, std::iter::empty(), false, listing, true, true);
    assert!(matches!(table.lookup(DIR, &name("aa"), at(1)), NameAnswer::Unknown));
    assert!(matches!(table.lookup(DIR, &name("bb"), at(1)), NameAnswer::Absent(_)));
}

#[test]
fn while_the_servers_change_a_directory_for_this_mount_answers_to_questions_are_used_once() {
    let mut table = table();
    table.begin_change(&[DIR]);
    // Another mount may have seen it already.
    assert!(matches!(table.lookup(DIR, &name("file"), at(1)), NameAnswer::Unknown));
    assert!(table.attr(DIR, at(1)).is_none());
    assert!(!table.learn(&node(DIR, Some(LeaseMode::Read), 1)));
    table.learn_answer(DIR, &name("a"), None, true);
    assert!(matches!(table.lookup(DIR, &name("a"), at(1)), NameAnswer::Unknown));
    assert!(table.learn_page(DIR, DIR, std::iter::empty(), true, None, true, true).is_none());
    // The answer to the change itself is not.
    assert!(table.learn_changed(&node(DIR, Some(LeaseMode::Read), 1)));
    table.learn_name(DIR, &name("a"), None, true);
    table.end_change(&[DIR]);
    assert!(matches!(table.lookup(DIR, &name("a"), at(1)), NameAnswer::Absent(_)));
    assert!(table.learn(&node(DIR, Some(LeaseMode::Read), 1)));
}

#[test]
fn an_answer_that_was_asked_for_before_a_change_ended_may_not_know_of_it() {
    let mut table = table();
    let before = table.changes();
    table.begin_change(&[DIR]);
    assert!(table.has_changed(DIR, before) && !table.has_changed(FILE, before));
    table.end_change(&[DIR]);
    assert!(table.has_changed(DIR, before) && !table.has_changed(FILE, before));
    assert!(table.has_changed(OTHER, before), "nothing is known of it");
    assert!(!table.has_changed(DIR, table.changes()));
}

#[test]
fn of_changes_that_were_under_way_at_the_same_time_nothing_is_believed() {
    let mut table = table();
    table.begin_change(&[DIR]);
    table.begin_change(&[DIR]);
    // A name was removed and then made again; the second answer comes first.
    table.learn_name(DIR, &name("a"), Some(entry(FILE)), true);
    assert!(!table.learn_changed(&node(DIR, Some(LeaseMode::Read), 1)));
    table.end_change(&[DIR]);
    table.learn_name(DIR, &name("a"), None, true);
    assert!(!table.learn_changed(&node(DIR, Some(LeaseMode::Read), 1)));
    table.end_change(&[DIR]);
    assert!(matches!(table.lookup(DIR, &name("a"), at(1)), NameAnswer::Unknown));
    assert!(table.attr(DIR, at(1)).is_none());
}

#[test]
fn a_page_without_a_grant_breaks_the_listing() {
    let mut table = table();
    let listing = table.learn_page(DIR, DIR, std::iter::empty(), true, None, false, true);
    assert!(table.learn_page(DIR, DIR, std::iter::empty(), false, listing, false, false).is_none());
    table.learn_page(DIR, DIR, std::iter::empty(), false, listing, true, true);
    assert!(table.list(DIR, at(1)).is_none());
}

#[test]
fn a_listing_that_began_under_a_lease_that_is_gone_does_not_end_one_that_began_since() {
    let mut table = table();
    let page = [(name("a"), entry(Ino(10)))];
    let old = table.learn_page(DIR, DIR, page.clone().into_iter(), true, None, false, true);
    whole(&mut table, DIR, 1, None);
    table.end_recall(DIR, None);
    table.learn(&node(DIR, Some(LeaseMode::Read), 3));
    let new = table.learn_page(DIR, DIR, page.into_iter(), true, None, false, true);
    assert!(old.is_some() && new.is_some());

    // What the old one's pages told since is forgotten: its last page is not all that there is besides.
    table.learn_page(DIR, DIR, [(name("z"), entry(Ino(11)))].into_iter(), false, old, true, true);
    assert!(table.list(DIR, at(1)).is_none());
    assert!(matches!(table.lookup(DIR, &name("m"), at(1)), NameAnswer::Unknown));
    table.learn_page(DIR, DIR, std::iter::empty(), false, new, true, true);
    assert!(matches!(table.lookup(DIR, &name("m"), at(1)), NameAnswer::Absent(_)));
}

#[test]
fn a_directory_just_made_is_known_to_be_empty() {
    let mut table = table();
    let made = Node {
        attr: Attr { ino: OTHER, ..node(DIR, None, 0).attr },
        ..node(OTHER, Some(LeaseMode::Read), 5)
    };
    table.learn(&made);
    table.learn_new_directory(OTHER, DIR);
    assert!(matches!(table.lookup(OTHER, &name("x"), at(1)), NameAnswer::Absent(_)));
    assert_eq!(table.list(OTHER, at(1)).unwrap(), (DIR, Vec::new()));
}

#[test]
fn the_cache_keeps_to_its_budget_and_spares_what_is_open_dirty_or_recent() {
    let mut table = LeaseTable::default();
    table.renew(at(20));
    for ino in 100..200 {
        table.learn(&node(Ino(ino), Some(LeaseMode::Read), ino));
    }
    let (_, bytes) = table.size();
    table.open(Ino(100), at(1));
    let budget = bytes / 2;
    let victims = table.evict(budget, |ino| ino == Ino(101)).victims;
    let inos: Vec<Ino> = victims.iter().map(|victim| victim.ino).collect();
    assert!(!inos.contains(&Ino(100)) && !inos.contains(&Ino(101)) && !inos.contains(&Ino(199)));
    assert_eq!(inos.first(), Some(&Ino(102)));
    for ino in &inos {
        table.begin_invalidation(*ino, true);
        assert!(table.end_eviction(*ino, |_| false));
    }
    assert!(table.size().1 <= budget - budget / 8 + 1000 && !table.is_over(budget));
    // A grant that was on its way when the lease was given back is not believed.
    assert!(!table.learn(&node(inos[0], Some(LeaseMode::Read), inos[0].0)));
    table.released(&inos);
    assert!(table.learn(&node(inos[0], Some(LeaseMode::Read), 999)));
}

#[test]
fn what_was_used_since_it_came_goes_after_what_was_not() {
    let mut table = LeaseTable::default();
    table.renew(at(20));
    for ino in 100..200 {
        table.learn(&node(Ino(ino), Some(LeaseMode::Read), ino));
    }
    let used = |table: &mut LeaseTable| {
        for ino in (100..200).step_by(2) {
            table.attr(Ino(ino), at(1)).unwrap();
        }
    };
    used(&mut table);
    let (_, bytes) = table.size();
    let eviction = table.evict(bytes * 3 / 4, |_| false);
    assert!(eviction.victims.iter().all(|victim| victim.ino.0 % 2 == 1) && !eviction.again);
    let end = |table: &mut LeaseTable, victims: &[Victim]| {
        for victim in victims {
            table.begin_invalidation(victim.ino, true);
            assert!(table.end_eviction(victim.ino, |_| false));
        }
    };
    end(&mut table, &eviction.victims);
    // Where all were used, the first look passes them over and says so.
    used(&mut table);
    (101..200).step_by(2).for_each(|ino| drop(table.attr(Ino(ino), at(1))));
    let eviction = table.evict(bytes / 4, |_| false);
    assert!(eviction.victims.is_empty() && eviction.again);
    let eviction = table.evict(bytes / 4, |_| false);
    assert!(!eviction.victims.is_empty() && !eviction.again);
    end(&mut table, &eviction.victims);
    assert!(!table.is_over(bytes / 4));
    // Leases that come and go leave nothing behind.
    for epoch in 0..100_000 {
        table.learn(&node(FILE, Some(LeaseMode::Read), 1000 + epoch));
        table.lose(FILE);
    }
    assert!(table.clock.len() < 20_000);
}

#[test]
fn a_victim_that_is_used_meanwhile_stays() {
    let mut table = table();
    let victims = table.evict(0, |_| false).victims;
    assert_eq!(victims.iter().map(|victim| victim.ino).collect::<Vec<_>>(), [FILE], "the root always stays");
    table.open(FILE, at(1));
    assert!(!table.end_eviction(FILE, |_| false));
    assert!(table.attr(FILE, at(1)).is_some());
}

#[test]
fn a_lost_session_leaves_opens_only_and_they_are_told_the_next_server() {
    let mut table = table();
    table.open(FILE, at(1));
    table.lose_all();
    assert_eq!(table.known(), [FILE]);
    assert_eq!((table.size().0, table.registered_opens()), (0, vec![FILE]));
    assert!(!table.is_valid(at(1)));
}

#[test]
fn bytes_are_counted_exactly_through_any_change() {
    let mut table = table();
    for round in 0..50u64 {
        let name = name(&format!("n{}", round % 7));
        let known = match round % 3 {
            0 => Some(entry(Ino(50 + round))),
            _ => None,
        };
        table.learn_name(DIR, &name, known, round % 5 != 0);
        if round % 11 == 0 {
            table.learn_page(DIR, DIR, std::iter::empty(), true, None, true, true);
        }
    }
    whole(&mut table, DIR, 1, None);
    assert_eq!(table.inodes[&DIR].recall, Some(Phase::Drain));
    table.end_recall(DIR, None);
    table.lose(FILE);
    assert_eq!((table.size(), table.known().len()), ((0, 0), 0));
}

//! Grace and silence.

use std::time::Duration;

use gofs_tree::{NamespaceId, SessionId};

use super::*;

const NS: NamespaceId = NamespaceId(1);
const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);

fn at(secs: u64) -> Now {
    Duration::from_secs(secs)
}

fn table(known: &[SessionId]) -> SessionTable {
    SessionTable::new(at(100), SessionTimes::default(), known.iter().map(|&id| (id, NS)))
}

#[test]
fn without_sessions_there_is_no_grace() {
    assert!(!table(&[]).in_grace());
}

#[test]
fn grace_ends_when_all_are_back() {
    let mut table = table(&[A, B]);
    assert!(table.in_grace());
    assert!(table.hello(at(101), A));
    assert!(table.in_grace());
    assert!(table.hello(at(102), B));
    assert!(!table.in_grace());
}

#[test]
fn an_absent_session_has_its_whole_time_from_the_start_of_the_term() {
    let mut table = table(&[A, B]);
    table.hello(at(101), A);
    assert_eq!(table.overdue(at(125)), []);
    assert_eq!(table.overdue(at(126)), [B]);
    assert!(table.begin_end(B));
    assert!(!table.begin_end(B) && !table.hello(at(126), B), "too late");
    assert!(table.in_grace(), "until its end is committed and its locks are free");
    table.ended(B);
    assert!(!table.in_grace());
}

#[test]
fn a_new_session_does_not_bring_grace_back() {
    let mut table = table(&[]);
    table.opened(at(101), A, NS);
    assert!(!table.in_grace() && table.is_live(A));
    assert!(table.begin_end(A));
    assert!(!table.in_grace());
}

#[test]
fn whoever_is_heard_of_lives() {
    let mut table = table(&[]);
    table.opened(at(100), A, NS);
    for secs in (110..400).step_by(20) {
        assert_eq!(table.overdue(at(secs)), []);
        assert!(table.heard(at(secs), A));
    }
    assert_eq!(table.overdue(at(390 + 26)), [A]);
}

#[test]
fn who_could_not_be_heard_has_its_whole_time_when_that_is_over() {
    let mut table = table(&[B]);
    table.opened(at(100), A, NS);
    assert_eq!(table.look(at(101), true), Hearing::Good);
    for secs in 102..160 {
        assert_eq!(table.look(at(secs), false), Hearing::Deaf);
    }
    assert_eq!(table.look(at(160), true), Hearing::Back);
    assert_eq!(table.overdue(at(185)), []);
    assert_eq!(table.look(at(161), true), Hearing::Good);
    assert!(table.heard(at(170), A));
    assert_eq!(table.overdue(at(186)), [B], "it has had its time to come back");
    // A server that was stopped has heard nobody.
    for secs in 162..=190 {
        assert_eq!(table.look(at(secs), true), Hearing::Good);
    }
    assert_eq!(table.look(at(250), true), Hearing::Back);
    assert_eq!(table.overdue(at(275)), []);
    assert_eq!(table.overdue(at(276)), [A, B]);
}

#[test]
fn a_session_that_was_refused_before_nobody_could_be_heard_gets_no_time_by_that() {
    let mut table = table(&[]);
    table.opened(at(101), A, NS);
    assert!(table.refuse(A));
    assert_eq!(table.look(at(120), false), Hearing::Deaf);
    assert_eq!(table.look(at(130), true), Hearing::Back);
    assert_eq!(table.overdue(at(130)), [A], "it was over before it could be told otherwise");
}

#[test]
fn a_session_that_is_refused_is_over_when_it_cannot_believe_in_its_caches_any_more() {
    let mut table = table(&[]);
    table.opened(at(101), A, NS);
    assert!(table.heard(at(110), A));
    assert!(table.refuse(A) && !table.refuse(A));
    assert!(
        !table.heard(at(111), A) && !table.hello(at(111), A) && !table.is_live(A),
        "it hears that it is over"
    );
    assert_eq!(table.overdue(at(135)), [], "its KeepAlive of 110 may be all that it knows");
    assert_eq!(table.overdue(at(136)), [A]);
    assert!(table.begin_end(A));
}

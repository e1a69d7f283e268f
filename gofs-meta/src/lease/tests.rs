//! The rules of ARCHITECTURE "Leases", one at a time.

use std::time::Duration;

use gofs_tree::{Ino, LeaseEpoch, LeaseMode, Name, SessionId};

use super::crossing::Overdue;
use super::*;

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);
const C: SessionId = SessionId(3);
const DIR: Ino = Ino(1);
const FILE: Ino = Ino(10);
const T0: Now = Duration::ZERO;

fn table() -> LeaseTable {
    let mut table = LeaseTable::new(LeaseEpoch(1));
    for session in [A, B, C] {
        table.open_session(session);
    }
    table
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn begin(table: &mut LeaseTable, session: SessionId, needs: Vec<Need>) -> (OpId, Vec<Effect>) {
    table.begin(T0, session, needs).unwrap()
}

/// Runs an operation that finds nothing in its way and takes the lease.
fn hold(table: &mut LeaseTable, session: SessionId, ino: Ino, mode: LeaseMode) -> Grant {
    let need = if mode == LeaseMode::Write { Need::change(ino) } else { Need::read(ino) };
    let (op, effects) = begin(table, session, vec![need]);
    assert_eq!(effects, [Effect::Run(op)]);
    let grant = table.grant(op, ino, mode).unwrap();
    assert_eq!(table.end(T0, op), []);
    grant
}

fn recalls(effects: &[Effect]) -> Vec<Recall> {
    let recall =
        |effect: &Effect| if let Effect::Recall(recall) = effect { Some(recall.clone()) } else { None };
    effects.iter().filter_map(recall).collect()
}

#[test]
fn readers_share_and_keep_their_leases() {
    let mut table = table();
    let first = hold(&mut table, A, FILE, LeaseMode::Read);
    let second = hold(&mut table, B, FILE, LeaseMode::Read);
    assert!(second.epoch > first.epoch);
    assert_eq!(hold(&mut table, A, FILE, LeaseMode::Read), first, "confirmed, not granted anew");
}

#[test]
fn a_reader_makes_a_writer_keep_read() {
    let mut table = table();
    let grant = hold(&mut table, A, FILE, LeaseMode::Write);
    let (op, effects) = begin(&mut table, B, vec![Need::read(FILE)]);
    let asked = recalls(&effects);
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].session, asked[0].epoch, asked[0].keep), (A, grant.epoch, Some(LeaseMode::Read)));
    assert_eq!(table.acknowledge(T0, asked[0].id, true), [Effect::Run(op)]);
    assert_eq!(table.holders(FILE), [], "the lease that stays tells of the open");
    assert_eq!(table.leases_on(FILE)[0].mode, Some(LeaseMode::Read));
}

#[test]
fn a_change_takes_every_other_lease_and_registers_opens() {
    let mut table = table();
    hold(&mut table, A, FILE, LeaseMode::Read);
    hold(&mut table, B, FILE, LeaseMode::Read);
    let (op, effects) = begin(&mut table, C, vec![Need::change(FILE)]);
    let asked = recalls(&effects);
    assert_eq!(asked.iter().map(|r| (r.session, r.keep)).collect::<Vec<_>>(), [(A, None), (B, None)]);
    assert_eq!(table.acknowledge(T0, asked[0].id, true), []);
    assert_eq!(table.acknowledge(T0, asked[1].id, false), [Effect::Run(op)]);
    assert_eq!(table.holders(FILE), [A]);
    assert_eq!(table.grant(op, FILE, LeaseMode::Write).map(|g| g.mode), Some(LeaseMode::Write));
}

#[test]
fn a_directory_lease_survives_the_change_of_a_name() {
    let mut table = table();
    let grant = hold(&mut table, A, DIR, LeaseMode::Read);
    hold(&mut table, B, DIR, LeaseMode::Read);
    let (op, effects) = begin(&mut table, B, vec![Need::entries(DIR, vec![name("x")])]);
    let asked = recalls(&effects);
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].session, &asked[0].names[..]), (A, &[name("x")][..]));
    assert_eq!(table.acknowledge(T0, asked[0].id, false), [Effect::Run(op)]);
    assert_eq!(
        table.confirm(op, DIR).map(|g| g.mode),
        Some(LeaseMode::Read),
        "the changing session keeps its own"
    );
    table.end(T0, op);
    assert_eq!(hold(&mut table, A, DIR, LeaseMode::Read), grant);
}

#[test]
fn requests_of_the_recalled_session_pass_without_a_grant_and_others_do_not() {
    let mut table = table();
    hold(&mut table, A, FILE, LeaseMode::Write);
    let (first, effects) = begin(&mut table, B, vec![Need::change(FILE)]);
    let asked = recalls(&effects);
    let (other, effects) = begin(&mut table, C, vec![Need::read(FILE)]);
    assert_eq!(effects, [], "behind the first");
    let (own, effects) = begin(&mut table, A, vec![Need::change(FILE)]);
    assert_eq!(effects, [Effect::Run(own)], "passes both");
    assert_eq!(table.grant(own, FILE, LeaseMode::Write), None);
    assert_eq!(table.acknowledge(T0, asked[0].id, false), [], "its request still runs");
    assert_eq!(table.end(T0, own), [Effect::Run(first)]);
    assert_eq!(table.end(T0, first), [Effect::Run(other)]);
}

#[test]
fn a_request_that_waited_before_its_session_was_recalled_passes_then() {
    let mut table = table();
    hold(&mut table, A, DIR, LeaseMode::Read);
    let (settling, _) = begin(&mut table, C, vec![Need::settle(DIR)]);
    let (_, effects) = begin(&mut table, B, vec![Need::change(DIR)]);
    assert_eq!(effects, []);
    let (own, effects) = begin(&mut table, A, vec![Need::read(DIR)]);
    assert_eq!(effects, [], "nothing is recalled yet, so it waits for its turn");
    let effects = table.end(T0, settling);
    assert_eq!(recalls(&effects).len(), 1);
    assert_eq!(effects[1..], [Effect::Run(own)]);
    assert_eq!(table.grant(own, DIR, LeaseMode::Read), None);
}

#[test]
fn crossing_changes_of_one_directory_do_not_wait_for_ever() {
    let mut table = table();
    hold(&mut table, A, DIR, LeaseMode::Read);
    hold(&mut table, B, DIR, LeaseMode::Read);
    let (first, effects) = begin(&mut table, A, vec![Need::entries(DIR, vec![name("a")])]);
    let to_b = recalls(&effects);
    let (second, effects) = begin(&mut table, B, vec![Need::entries(DIR, vec![name("b")])]);
    let to_a = recalls(&effects);
    assert_eq!((to_b[0].session, to_a[0].session), (B, A));
    // Each acknowledges only after its own is answered.
    assert_eq!(table.tick(CROSSING_PATIENCE).effects, [], "not at once");
    assert_eq!(table.tick(CROSSING_PATIENCE * 2).effects, [Effect::Refuse(second)]);
    assert_eq!(table.acknowledge(T0, to_b[0].id, false), [Effect::Run(first)]);
    assert_eq!(table.end(T0, first), []);
}

#[test]
fn crossing_changes_run_both_where_acknowledgements_come() {
    let mut table = table();
    hold(&mut table, A, DIR, LeaseMode::Read);
    hold(&mut table, B, DIR, LeaseMode::Read);
    let (first, effects) = begin(&mut table, A, vec![Need::entries(DIR, vec![name("a")])]);
    let to_b = recalls(&effects);
    let (second, effects) = begin(&mut table, B, vec![Need::entries(DIR, vec![name("b")])]);
    let to_a = recalls(&effects);
    assert_eq!(table.acknowledge(T0, to_a[0].id, false), [Effect::Run(second)]);
    assert_eq!(table.acknowledge(T0, to_b[0].id, false), []);
    assert_eq!(table.end(T0, second), [Effect::Run(first)]);
}

#[test]
fn one_that_waits_long_without_a_circle_is_not_refused() {
    let mut table = table();
    hold(&mut table, A, FILE, LeaseMode::Write);
    let (_, effects) = begin(&mut table, B, vec![Need::read(FILE)]);
    assert_eq!(recalls(&effects).len(), 1);
    assert_eq!(table.tick(RECALL_PATIENCE), Overdue::default());
    let overdue = table.tick(RECALL_PATIENCE + Duration::from_millis(1));
    assert_eq!(overdue.sessions.into_iter().collect::<Vec<_>>(), [A]);
}

#[test]
fn a_recall_that_could_not_be_answered_for_a_while_has_its_whole_time_again() {
    let mut table = table();
    hold(&mut table, A, FILE, LeaseMode::Write);
    begin(&mut table, B, vec![Need::read(FILE)]);
    let later = RECALL_PATIENCE + Duration::from_secs(60);
    table.wait_anew(later);
    assert_eq!(table.tick(later + RECALL_PATIENCE), Overdue::default());
    let overdue = table.tick(later + RECALL_PATIENCE + Duration::from_millis(1));
    assert_eq!(overdue.sessions.into_iter().collect::<Vec<_>>(), [A]);
}

#[test]
fn the_end_of_a_session_frees_what_it_held() {
    let mut table = table();
    hold(&mut table, A, FILE, LeaseMode::Write);
    table.register_open(A, FILE);
    let (op, _) = begin(&mut table, B, vec![Need::change(FILE)]);
    assert_eq!(table.end_session(T0, A), [Effect::Run(op)]);
    assert_eq!(table.holders(FILE), []);
    assert_eq!(table.begin(T0, A, vec![Need::read(FILE)]), None, "an ended session gets nothing");
}

#[test]
fn reclaim_takes_what_conflicts_with_nothing() {
    let mut table = table();
    let lease = |ino, mode| HeldLease { ino, mode, epoch: LeaseEpoch(70) };
    let (refused, _) = table.resume(T0, A, &[lease(FILE, LeaseMode::Write)], &[Ino(11)].into(), true);
    assert_eq!(refused, []);
    let (refused, _) =
        table.resume(T0, B, &[lease(FILE, LeaseMode::Read), lease(DIR, LeaseMode::Read)], &[].into(), true);
    assert_eq!(refused, [FILE]);
    let (refused, _) = table.resume(T0, C, &[lease(DIR, LeaseMode::Read)], &[].into(), false);
    assert_eq!(refused, [DIR], "after grace nothing unknown is taken in");
    assert_eq!(table.holders(Ino(11)), [A]);
    assert!(hold(&mut table, C, Ino(12), LeaseMode::Read).epoch > LeaseEpoch(70));
}

#[test]
fn a_session_that_is_back_is_asked_again_and_what_it_lost_is_free() {
    let mut table = table();
    let kept = hold(&mut table, A, FILE, LeaseMode::Read);
    hold(&mut table, A, DIR, LeaseMode::Read);
    let (op, effects) = begin(&mut table, B, vec![Need::change(FILE), Need::change(DIR)]);
    let asked = recalls(&effects);
    assert_eq!(asked.len(), 2);
    let held = [HeldLease { ino: FILE, mode: LeaseMode::Read, epoch: kept.epoch }];
    let (refused, effects) = table.resume(T0, A, &held, &[].into(), false);
    assert_eq!(refused, []);
    assert_eq!(recalls(&effects).iter().map(|r| r.ino).collect::<Vec<_>>(), [FILE]);
    assert_eq!(table.acknowledge(T0, recalls(&effects)[0].id, false), [Effect::Run(op)]);
}

#[test]
fn released_leases_are_free_but_not_while_recalled() {
    let mut table = table();
    hold(&mut table, A, FILE, LeaseMode::Read);
    table.release(T0, A, &[FILE]);
    assert_eq!(table.load_of(A), (0, 0));
    hold(&mut table, A, FILE, LeaseMode::Write);
    let (op, effects) = begin(&mut table, B, vec![Need::read(FILE)]);
    assert_eq!(table.release(T0, A, &[FILE]), []);
    assert_eq!(table.acknowledge(T0, recalls(&effects)[0].id, false), [Effect::Run(op)]);
}

#[test]
fn an_optional_need_is_left_out_where_another_session_writes() {
    let mut table = table();
    hold(&mut table, A, FILE, LeaseMode::Write);
    let (op, effects) =
        begin(&mut table, B, vec![Need::read(DIR), Need::maybe_read(FILE), Need::maybe_read(Ino(11))]);
    assert_eq!(effects, [Effect::Run(op)]);
    assert_eq!(table.grant(op, FILE, LeaseMode::Read), None);
    assert!(table.grant(op, Ino(11), LeaseMode::Read).is_some());
}

#[test]
fn settling_recalls_nobody_and_runs_alone() {
    let mut table = table();
    hold(&mut table, A, FILE, LeaseMode::Write);
    let (op, effects) = begin(&mut table, B, vec![Need::settle(FILE)]);
    assert_eq!(effects, [Effect::Run(op)]);
    let (own, effects) = begin(&mut table, A, vec![Need::read(FILE)]);
    assert_eq!(effects, []);
    assert_eq!(table.end(T0, op), [Effect::Run(own)]);
}

fn best(table: &mut LeaseTable, now: Now, session: SessionId, need: Need) -> Option<LeaseMode> {
    let ino = need.ino;
    let (op, effects) = table.begin(now, session, vec![need]).unwrap();
    assert_eq!(effects, [Effect::Run(op)]);
    let grant = table.grant_best(now, op, ino, Some(LeaseMode::Read));
    assert_eq!(table.end(now, op), []);
    grant.map(|grant| grant.mode)
}

#[test]
fn whoever_changes_a_directory_that_nobody_else_holds_gets_it_for_itself() {
    let mut table = table();
    let entry = || Need::entries(DIR, vec![name("x")]);
    assert_eq!(best(&mut table, T0, A, entry()), Some(LeaseMode::Write));
    // Others' looks leave Read to it; while they hold it, changes are served here.
    let (op, effects) = begin(&mut table, B, vec![Need::read(DIR)]);
    let asked = recalls(&effects);
    assert_eq!((asked[0].session, asked[0].keep, &asked[0].names[..]), (A, Some(LeaseMode::Read), &[][..]));
    assert_eq!(table.acknowledge(T0, asked[0].id, false), [Effect::Run(op)]);
    assert_eq!(table.leases_on(DIR)[0].mode, Some(LeaseMode::Read));
    assert_eq!(table.grant_best(T0, op, DIR, Some(LeaseMode::Read)).map(|g| g.mode), Some(LeaseMode::Read));
    table.end(T0, op);
    let later = CONTENDED_FOR * 2;
    let (op, effects) = table.begin(later, A, vec![entry()]).unwrap();
    let asked = recalls(&effects);
    assert_eq!(
        (asked.len(), asked[0].session, asked[0].names.len()),
        (1, B, 1),
        "by name, of the one that reads"
    );
    table.acknowledge(later, asked[0].id, false);
    assert_eq!(table.grant_best(later, op, DIR, None).map(|g| g.mode), Some(LeaseMode::Read));
    table.end(later, op);
    table.release(later, B, &[DIR]);
    assert_eq!(best(&mut table, later, A, entry()), Some(LeaseMode::Write));
}

#[test]
fn a_directory_that_is_fought_over_is_not_handed_out_for_a_while() {
    let mut table = table();
    let entry = || Need::entries(DIR, vec![name("x")]);
    assert_eq!(best(&mut table, T0, A, entry()), Some(LeaseMode::Write));
    let (op, effects) = begin(&mut table, B, vec![entry()]);
    table.acknowledge(T0, recalls(&effects)[0].id, false);
    assert_eq!(table.grant_best(T0, op, DIR, None), None, "nobody else holds it, but it was just asked back");
    table.end(T0, op);
    let soon = CONTENDED_FOR - Duration::from_millis(1);
    assert_eq!(best(&mut table, soon, B, entry()), Some(LeaseMode::Read));
    assert_eq!(best(&mut table, CONTENDED_FOR, B, entry()), Some(LeaseMode::Write));
    // What was asked for is given all the same.
    let (op, effects) = table.begin(CONTENDED_FOR, A, vec![Need::change(DIR)]).unwrap();
    table.acknowledge(CONTENDED_FOR, recalls(&effects)[0].id, false);
    assert_eq!(table.grant(op, DIR, LeaseMode::Write).map(|g| g.mode), Some(LeaseMode::Write));
}

#[test]
fn what_another_session_waits_for_is_not_granted_beyond_what_was_asked() {
    let mut table = table();
    let (op, _) = begin(&mut table, A, vec![Need::entries(DIR, vec![name("x")])]);
    let (other, effects) = begin(&mut table, B, vec![Need::read(DIR)]);
    assert_eq!(effects, []);
    assert_eq!(table.grant_best(T0, op, DIR, None), None);
    assert_eq!(table.end(T0, op), [Effect::Run(other)], "nothing to be asked back");
}

#[test]
fn the_only_session_gets_what_it_looks_at_for_itself() {
    let mut table = LeaseTable::new(LeaseEpoch(1));
    table.open_session(A);
    assert_eq!(best(&mut table, T0, A, Need::read(DIR)), Some(LeaseMode::Write));
    let (op, _) = begin(&mut table, A, vec![Need::settle(FILE)]);
    assert_eq!(table.grant_best(T0, op, FILE, Some(LeaseMode::Read)), None);
    table.end(T0, op);
    table.open_session(B);
    assert_eq!(best(&mut table, T0, A, Need::read(FILE)), Some(LeaseMode::Read));
    table.end_session(T0, B);
    assert_eq!(best(&mut table, T0, A, Need::read(FILE)), Some(LeaseMode::Write));
}

#[test]
fn what_an_operation_makes_is_its_sessions_from_before_its_answer_and_is_confirmed_as_long_as_it_is() {
    let mut table = table();
    let (op, _) = begin(&mut table, A, vec![Need::change(DIR)]);
    let made = table.grant_new(op, FILE);
    assert_eq!(made.map(|g| g.mode), Some(LeaseMode::Write));
    hold(&mut table, B, Ino(11), LeaseMode::Write);
    assert_eq!(table.grant_new(op, Ino(11)), None, "another session's");
    table.end(T0, op);
    // The answer was lost. Others wait, and A learns what it has though that is wanted back.
    let (look, effects) = begin(&mut table, B, vec![Need::read(FILE)]);
    let recall = recalls(&effects).remove(0);
    let (op, _) = begin(&mut table, A, vec![Need::change(DIR)]);
    assert_eq!(table.confirm_new(op, FILE), made);
    assert_eq!(table.acknowledge(T0, recall.id, false), [Effect::Run(look)]);
    assert_eq!(table.confirm_new(op, FILE), None, "B may have changed it");
    table.grant_new(op, Ino(12));
    table.take_back_new(op, Ino(12));
    table.take_back_new(op, Ino(11));
    assert_eq!((table.leases_on(Ino(12)).len(), table.leases_on(Ino(11)).len()), (0, 1));
}

#[test]
fn what_a_session_has_made_without_knowing_its_epoch_is_its_own_when_it_is_back() {
    let mut table = table();
    let own = [HeldLease { ino: FILE, mode: LeaseMode::Write, epoch: LeaseEpoch(0) }];
    let (op, _) = begin(&mut table, A, vec![Need::change(DIR)]);
    let made = table.grant_new(op, FILE);
    assert_eq!(table.resume(T0, A, &own, &[].into(), false).0, []);
    assert_eq!(table.confirm_new(op, FILE), made);
    table.end(T0, op);
    // Another leader gives it an epoch.
    let mut table = self::table();
    assert_eq!(table.resume(T0, A, &own, &[].into(), true).0, []);
    let (op, _) = begin(&mut table, A, vec![Need::change(DIR)]);
    assert!(table.confirm_new(op, FILE).is_some_and(|grant| grant.epoch > LeaseEpoch(0)));
    assert_eq!(table.resume(T0, B, &own, &[].into(), false).0, [FILE]);
}

#[test]
fn a_directory_held_for_changes_is_reclaimed_as_such() {
    let mut table = table();
    let lease = |mode| [HeldLease { ino: DIR, mode, epoch: LeaseEpoch(70) }];
    assert_eq!(table.resume(T0, A, &lease(LeaseMode::Write), &[].into(), true).0, []);
    assert_eq!(table.resume(T0, B, &lease(LeaseMode::Read), &[].into(), true).0, [DIR]);
    let (_, effects) = begin(&mut table, B, vec![Need::entries(DIR, vec![name("x")])]);
    assert_eq!(recalls(&effects)[0].names, []);
}

#[test]
fn a_circle_ends_at_one_whose_refusal_can_end_it() {
    let mut table = table();
    hold(&mut table, A, DIR, LeaseMode::Read);
    hold(&mut table, B, DIR, LeaseMode::Read);
    let (first, _) = begin(&mut table, A, vec![Need::entries(DIR, vec![name("a")])]);
    let (firm, _) = begin(&mut table, B, vec![Need::entries(DIR, vec![name("b")])]);
    table.make_firm(firm);
    assert_eq!(table.tick(CROSSING_PATIENCE * 2).effects[0], Effect::Refuse(first), "although it is older");
}

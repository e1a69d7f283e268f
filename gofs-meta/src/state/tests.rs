use std::path::Path;

use bytes::Bytes;
use gofs_tree::{
    AttrChange, ChunkId, ChunkIndex, ChunkServerId, ChunkSize, ChunkVersion, Edit, EditIndex, EditOp,
    EditSeq, Encode, FsError, Ino, Mode, Name, NamespaceId, NewNode, ROOT_INO, SessionId, Store, Timestamp,
    XattrName, XattrSetMode,
};
use proptest::prelude::*;

use super::record::RECENT_SESSIONS;
use super::{LogEntry, LogPosition, SnapshotFile, StateConfig, StateStore, key};
use crate::command::{Command, CommandOutcome, NamespaceConfig, Refusal, Standing};

pub(super) const NS: NamespaceId = NamespaceId(1);
const SMALL: StateConfig = StateConfig { record_cache_bytes: 16 << 10, block_cache_bytes: 1 << 20 };

pub(super) fn open(dir: &Path) -> StateStore {
    StateStore::open(dir, SMALL).unwrap()
}

/// Applies one command as the next entry of the log.
pub(super) fn run(state: &StateStore, command: &Command) -> CommandOutcome {
    let position = LogPosition { term: 1, index: state.applied().0 + 1 };
    state.apply(&[(position, LogEntry::Command(command.to_bytes().into()))]).unwrap().remove(0)
}

fn config() -> NamespaceConfig {
    NamespaceConfig { chunk_size: ChunkSize::new(64 << 10).unwrap(), ..NamespaceConfig::default() }
}

fn session(id: u64) -> Command {
    Command::OpenSession {
        session: SessionId(id),
        namespace: NS,
        token: [id as u8; 16],
        host: "host".into(),
        mount_point: "/mnt".into(),
        pid: 3,
    }
}

/// A store with a namespace and two sessions.
pub(super) fn prepared(dir: &Path) -> StateStore {
    let state = open(dir);
    let create =
        Command::CreateNamespace { name: "demo".into(), config: config(), time: Timestamp::new(1, 2) };
    assert_eq!(run(&state, &create), CommandOutcome::Namespace(NS));
    for id in [1, 2] {
        assert_eq!(run(&state, &session(id)), CommandOutcome::Session(SessionId(id)));
    }
    state
}

pub(super) fn edits(session: u64, seq: u64, answered: u64, ops: Vec<EditOp>) -> Command {
    let edits = ops.into_iter().map(|op| Edit { time: Timestamp::new(seq as i64, 0), op }).collect();
    Command::Edits {
        session: SessionId(session),
        first_seq: EditSeq(seq),
        answered: EditSeq(answered),
        edits,
    }
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub(super) fn create(text: &str, ino: u64) -> EditOp {
    EditOp::Create {
        parent: ROOT_INO,
        name: name(text),
        ino: Ino(ino),
        node: NewNode::File,
        mode: Mode::new(0o644),
        umask: Mode::default(),
        uid: 1,
        gid: 2,
    }
}

pub(super) fn unlink(text: &str, holders: &[u64]) -> EditOp {
    let holders = holders.iter().copied().map(SessionId).collect();
    EditOp::Unlink { parent: ROOT_INO, name: name(text), holders }
}

fn results(outcome: CommandOutcome) -> Vec<Result<Ino, FsError>> {
    match outcome {
        CommandOutcome::Edits { results, .. } => {
            results.into_iter().map(|result| result.map(|done| done.ino)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_edit_that_comes_twice_is_applied_once_and_answered_twice() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(dir.path());
    let first = edits(1, 1, 0, vec![create("a", 2), create("a", 3)]);
    let outcome = results(run(&state, &first));
    assert_eq!(outcome, [Ok(Ino(2)), Err(FsError::Exists)]);
    assert_eq!(results(run(&state, &first)), outcome);
    // Also after a restart.
    drop(state);
    let state = open(dir.path());
    assert_eq!(results(run(&state, &first)), outcome);
    assert_eq!(state.session(SessionId(1)).unwrap().unwrap().applied, EditSeq(2));
    // Requests of one session overtake each other.
    assert_eq!(results(run(&state, &edits(1, 4, 2, vec![create("d", 5)]))), [Ok(Ino(5))]);
    assert_eq!(results(run(&state, &edits(1, 3, 2, vec![create("c", 4)]))), [Ok(Ino(4))]);
    assert_eq!(results(run(&state, &edits(1, 4, 2, vec![create("d", 5)]))), [Ok(Ino(5))]);
    // What was answered is forgotten, and never applied again.
    assert_eq!(results(run(&state, &edits(1, 5, 4, vec![unlink("a", &[])]))), [Ok(Ino(2))]);
    assert_eq!(results(run(&state, &first)), [Err(FsError::Stale), Err(FsError::Stale)]);
    assert_eq!(state.tree(NS).entry(ROOT_INO, &name("a")).unwrap(), None);
}

#[test]
fn commands_of_unknown_sessions_and_out_of_sequence_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(dir.path());
    let refused = run(&state, &edits(9, 1, 0, vec![create("a", 2)]));
    assert_eq!(refused, CommandOutcome::Refused(Refusal::NoSession(SessionId(9))));
    for (seq, answered) in [(0, 0), (3, 3), (u64::MAX, 0)] {
        let refused = run(&state, &edits(1, seq, answered, vec![create("a", 2)]));
        assert!(matches!(refused, CommandOutcome::Refused(Refusal::Invalid(_))), "{refused:?}");
    }
    assert_eq!(
        run(&state, &session(1)),
        CommandOutcome::Session(SessionId(1)),
        "the same token: the same session"
    );
    let Command::OpenSession { session, namespace, host, mount_point, pid, .. } = session(1) else {
        panic!()
    };
    let other = Command::OpenSession { session, namespace, token: [9; 16], host, mount_point, pid };
    assert_eq!(run(&state, &other), CommandOutcome::Refused(Refusal::SessionExists(SessionId(1))));
    assert_eq!(state.tree(NS).entries(ROOT_INO, None, 9).unwrap(), []);
}

#[test]
fn outcomes_that_nobody_acknowledges_do_not_grow_without_bound() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(dir.path());
    let ops = |count: u64| (0..count).map(|_| unlink("none", &[])).collect::<Vec<_>>();
    assert_eq!(results(run(&state, &edits(1, 1, 0, ops(4000)))).len(), 4000);
    let refused = run(&state, &edits(1, 4001, 0, ops(200)));
    assert_eq!(refused, CommandOutcome::Refused(Refusal::TooManyUnanswered(SessionId(1))));
    assert_eq!(results(run(&state, &edits(1, 4001, 4000, ops(200)))).len(), 200);
}

#[test]
fn an_open_file_that_lost_its_name_lives_until_its_last_session_ends() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(dir.path());
    let ops = vec![
        create("a", 2),
        EditOp::AddChunk { ino: Ino(2), index: ChunkIndex(0), chunk: ChunkId(7) },
        // Session 9 never was: it must not hold the file for ever.
        unlink("a", &[1, 2, 9]),
    ];
    results(run(&state, &edits(1, 1, 0, ops))).into_iter().for_each(|result| {
        result.unwrap();
    });
    assert_eq!(state.orphans(NS).unwrap()[0].1.holders, [SessionId(1), SessionId(2)]);
    assert!(!state.chunk(ChunkId(7)).unwrap().unwrap().deleted);
    let end = |id, fenced| run(&state, &Command::EndSession { session: SessionId(id), fenced });
    assert_eq!(end(1, true), CommandOutcome::Done);
    assert!(state.tree(NS).inode(Ino(2)).unwrap().is_some());
    assert_eq!(end(2, false), CommandOutcome::Done);
    assert_eq!(state.tree(NS).inode(Ino(2)).unwrap(), None);
    assert_eq!(state.orphans(NS).unwrap(), []);
    assert!(state.chunk(ChunkId(7)).unwrap().unwrap().deleted);
    assert_eq!(state.namespace(NS).unwrap().unwrap().usage.inodes, 1);
    assert_eq!(state.ended_sessions().unwrap().fenced, [SessionId(1)]);
    assert_eq!(end(2, false), CommandOutcome::Refused(Refusal::NoSession(SessionId(2))));
    assert_eq!(state.sessions().unwrap(), []);
}

#[test]
fn a_chunk_lives_from_its_file_to_the_last_server() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(dir.path());
    let add = |ino, chunk| EditOp::AddChunk { ino: Ino(ino), index: ChunkIndex(0), chunk: ChunkId(chunk) };
    let ops = vec![create("a", 2), create("b", 3), add(2, 5), add(3, 5), add(3, 0), add(3, u64::MAX)];
    let outcome = results(run(&state, &edits(1, 1, 0, ops)));
    assert_eq!(outcome[3..], [Err(FsError::Invalid); 3], "a chunk is of one file, and new");
    let chunk = state.chunk(ChunkId(5)).unwrap().unwrap();
    assert_eq!((chunk.namespace, chunk.ino, chunk.index), (NS, Ino(2), ChunkIndex(0)));
    assert_eq!((chunk.version, chunk.copies, chunk.goal, chunk.deleted), (ChunkVersion(1), 2, 2, false));
    assert_eq!(state.counters().unwrap().next_chunk, ChunkId(6));

    let version = |from, to| Command::SetChunkVersion {
        chunk: ChunkId(5),
        from: ChunkVersion(from),
        to: ChunkVersion(to),
        copies: 1,
    };
    assert_eq!(run(&state, &version(1, 2)), CommandOutcome::Done);
    let stale = Refusal::ChunkVersion { chunk: ChunkId(5), current: ChunkVersion(2) };
    assert_eq!(run(&state, &version(1, 3)), CommandOutcome::Refused(stale));
    assert!(matches!(run(&state, &version(2, 2)), CommandOutcome::Refused(Refusal::Invalid(_))));

    // The goal follows the namespace.
    let more = NamespaceConfig { replicas: 3, ..config() };
    assert_eq!(run(&state, &Command::SetNamespace { id: NS, config: more }), CommandOutcome::Done);
    let chunk = state.chunks_from(None, 10).unwrap()[0].1;
    assert_eq!((chunk.goal, chunk.copies), (3, 1), "who has it does not change by that");

    let forget = Command::ForgetChunk { chunk: ChunkId(5) };
    assert_eq!(run(&state, &forget), CommandOutcome::Refused(Refusal::ChunkLive(ChunkId(5))));
    results(run(&state, &edits(1, 10, 9, vec![unlink("a", &[])]))).remove(0).unwrap();
    assert!(state.chunk(ChunkId(5)).unwrap().unwrap().deleted);
    assert_eq!(run(&state, &forget), CommandOutcome::Done);
    assert_eq!(run(&state, &forget), CommandOutcome::Refused(Refusal::NoChunk(ChunkId(5))));
    assert_eq!(state.chunks_from(None, 10).unwrap(), []);
}

#[test]
fn of_old_sessions_all_are_over_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(dir.path());
    let end = |id| run(&state, &Command::EndSession { session: SessionId(id), fenced: true });
    assert_eq!(end(1), CommandOutcome::Done);
    let ended = state.ended_sessions().unwrap();
    assert_eq!((ended.floor, ended.live, ended.fenced), (SessionId(0), vec![], vec![SessionId(1)]));
    // So many are opened that those from 1 to 99 are old. Not all of them have come through.
    run(&state, &session(100 + RECENT_SESSIONS - 1));
    run(&state, &session(150));
    assert_eq!(end(150), CommandOutcome::Done);
    let ended = state.ended_sessions().unwrap();
    assert_eq!((ended.floor, ended.live), (SessionId(100), vec![SessionId(2)]));
    assert_eq!(ended.fenced, [SessionId(150)]);
    assert!(matches!(run(&state, &session(99)), CommandOutcome::Refused(Refusal::Invalid(_))), "too late");
    // An old one that ends is told from the others by its absence.
    assert_eq!(end(2), CommandOutcome::Done);
    let ended = state.ended_sessions().unwrap();
    assert_eq!((ended.live, ended.fenced), (vec![], vec![SessionId(150)]));
}

#[test]
fn ids_move_with_what_is_applied_and_cannot_be_used_up_by_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(dir.path());
    let ops = vec![create("b", 12), create("a", 11), create("x", u64::MAX), create("y", 1), create("z", 12)];
    let outcome = results(run(&state, &edits(1, 1, 0, ops)));
    assert_eq!(outcome[..2], [Ok(Ino(12)), Ok(Ino(11))]);
    assert_eq!(outcome[2..], [Err(FsError::Invalid); 3]);
    assert_eq!(state.namespace(NS).unwrap().unwrap().next_ino, Ino(13));
    assert_eq!(state.counters().unwrap().next_session, SessionId(3));
    assert!(matches!(run(&state, &session(u64::MAX)), CommandOutcome::Refused(Refusal::Invalid(_))));
}

#[test]
fn a_view_keeps_its_writes_to_itself_and_pages_through_both() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(dir.path());
    let names: Vec<String> = (0..30).map(|at| format!("n{at:02}")).collect();
    let ops = names.iter().enumerate().map(|(at, text)| create(text, 2 + at as u64)).collect();
    run(&state, &edits(1, 1, 0, ops));
    let mut view = state.tree(NS);
    let entry = view.entry(ROOT_INO, &name("n00")).unwrap().unwrap();
    view.remove_entry(ROOT_INO, &name("n05"));
    view.remove_entry(ROOT_INO, &name("n29"));
    view.set_entry(ROOT_INO, &name("m"), entry);
    view.set_entry(ROOT_INO, &name("n05a"), entry);
    view.set_entry(ROOT_INO, &name("z"), entry);
    let mut expected: Vec<String> =
        names.iter().filter(|text| *text != "n05" && *text != "n29").cloned().collect();
    expected.extend(["m", "n05a", "z"].map(String::from));
    expected.sort();
    for limit in [1, 2, 7, 100] {
        let mut found = Vec::new();
        let mut after: Option<Name> = None;
        loop {
            let page = view.entries(ROOT_INO, after.as_ref(), limit).unwrap();
            let end = page.len() < limit;
            found.extend(page.iter().map(|(name, _)| name.to_string()));
            after = page.last().map(|(name, _)| name.clone()).or(after);
            if end {
                break;
            }
        }
        assert_eq!(found, expected, "pages of {limit}");
    }
    assert_eq!(state.tree(NS).entries(ROOT_INO, None, 100).unwrap().len(), 30);
    assert!(!view.is_empty_dir(ROOT_INO).unwrap());
    assert!(view.is_empty_dir(Ino(2)).unwrap());
}

#[test]
fn a_damaged_record_is_an_error_that_names_it_never_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(dir.path());
    run(&state, &edits(1, 1, 0, vec![create("a", 2), create("b", 3)]));
    let key = key::inode(NS, Ino(2));
    let disk = state.shared.disk().unwrap();
    let stored = disk.get(None, &key).unwrap().unwrap();
    for bit in 0..stored.len() * 8 {
        let mut flipped = stored.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        disk.write([(key.clone(), Some(flipped))].into_iter()).unwrap();
        state.shared.cache.clear();
        assert_eq!(state.tree(NS).inode(Ino(2)), Err(FsError::Io), "bit {bit}");
    }
    // A whole record in another's place.
    let other = disk.get(None, &key::inode(NS, Ino(3))).unwrap().unwrap().to_vec();
    disk.write([(key.clone(), Some(other))].into_iter()).unwrap();
    state.shared.cache.clear();
    assert_eq!(state.tree(NS).inode(Ino(2)), Err(FsError::Io));
    let found = state.verify().unwrap();
    assert_eq!((found.damaged_records, found.damaged.len()), (1, 1));
    assert!(found.damaged[0].starts_with("i/1/2:"), "{:?}", found.damaged);
    assert!(state.write_snapshot(&dir.path().join("snapshot")).is_err(), "damage does not spread");
    // Applying what needs it stops, and changes nothing.
    let op = EditOp::SetAttr { ino: Ino(2), change: AttrChange { uid: Some(5), ..AttrChange::default() } };
    let applied = state.applied();
    let position = LogPosition { term: 1, index: applied.0 + 1 };
    let command = edits(1, 3, 0, vec![create("c", 4), op]).to_bytes().into();
    let error = state.apply(&[(position, LogEntry::Command(command))]).unwrap_err().to_string();
    assert!(error.contains("i/1/2") && error.contains("delete"), "{error}");
    assert_eq!(state.applied(), applied);
    assert_eq!(state.tree(NS).entry(ROOT_INO, &name("c")).unwrap(), None);
}

fn own_edits(session: u64, seq: u64, ops: Vec<EditOp>) -> Command {
    let Command::Edits { session, first_seq, answered, edits } = edits(session, seq, seq - 1, ops) else {
        unreachable!()
    };
    Command::Batch { session, first_seq, answered, edits }
}

fn reserve(session: u64, first: u64, count: u32) -> Command {
    Command::ReserveInos { session: SessionId(session), first: Ino(first), count }
}

#[test]
fn a_session_uses_only_its_own_numbers_and_each_once() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(dir.path());
    assert_eq!(run(&state, &reserve(1, 2, 10)), CommandOutcome::Done);
    assert_eq!(run(&state, &reserve(2, 12, 10)), CommandOutcome::Done);
    assert_eq!(state.namespace(NS).unwrap().unwrap().next_ino, Ino(22));
    let ops =
        vec![create("a", 2), create("foreign", 12), create("beyond", 22), create("a", 3), create("b", 3)];
    let wrong = Err(FsError::Invalid);
    let first = own_edits(1, 1, ops);
    let expected = vec![Ok(Ino(2)), wrong, wrong, Err(FsError::Exists), Ok(Ino(3))];
    assert_eq!(results(run(&state, &first)), expected);
    assert_eq!(results(run(&state, &first)), expected, "answered from the record, not as used up");
    let again = own_edits(1, 6, vec![unlink("a", &[]), create("c", 2), create("c", 4)]);
    assert_eq!(results(run(&state, &again)), [Ok(Ino(2)), wrong, Ok(Ino(4))]);
    // All of it also after a restart, and nothing is left of a session that has ended.
    drop(state);
    let state = open(dir.path());
    let late = own_edits(1, 9, vec![create("d", 3), create("d", 5)]);
    assert_eq!(results(run(&state, &late)), [wrong, Ok(Ino(5))]);
    for session in [1, 2] {
        run(&state, &Command::EndSession { session: SessionId(session), fenced: false });
    }
    assert_eq!(state.shared.scan(b"r", b"s", 9).unwrap(), []);
    assert_eq!(state.namespace(NS).unwrap().unwrap().next_ino, Ino(22), "nobody gets them any more");
}

#[test]
fn reservations_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(dir.path());
    for bad in [reserve(1, 2, 0), reserve(1, 1, 5), reserve(1, 1 << 50, 5), reserve(1, u64::MAX, 5)] {
        assert!(matches!(run(&state, &bad), CommandOutcome::Refused(Refusal::Invalid(_))), "{bad:?}");
    }
    assert!(matches!(run(&state, &reserve(9, 2, 5)), CommandOutcome::Refused(Refusal::NoSession(_))));
}

#[test]
fn a_session_gives_files_only_its_own_chunks_and_each_once() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(dir.path());
    run(&state, &reserve(1, 2, 10));
    run(&state, &own_edits(1, 1, vec![create("f", 2)]));
    let reserve = |session, first, count| Command::ReserveChunks {
        session: SessionId(session),
        first: ChunkId(first),
        count,
    };
    assert_eq!(run(&state, &reserve(1, 1, 10)), CommandOutcome::Done);
    assert_eq!(run(&state, &reserve(2, 11, 10)), CommandOutcome::Done);
    assert_eq!(state.counters().unwrap().next_chunk, ChunkId(21));
    let add =
        |index, chunk| EditOp::AddChunk { ino: Ino(2), index: ChunkIndex(index), chunk: ChunkId(chunk) };
    let ops = vec![add(0, 1), add(1, 11), add(1, 21), add(1, 1), add(0, 2), add(1, 2)];
    let wrong = Err(FsError::Invalid);
    let expected = vec![Ok(Ino(2)), wrong, wrong, wrong, Err(FsError::Exists), Ok(Ino(2))];
    let batch = own_edits(1, 2, ops);
    assert_eq!(results(run(&state, &batch)), expected);
    assert_eq!(results(run(&state, &batch)), expected, "answered from the record");
    // A chunk that its file has lost is not used again either. All of it also after a restart.
    drop(state);
    let state = open(dir.path());
    let shorter =
        EditOp::SetAttr { ino: Ino(2), change: AttrChange { size: Some(0), ..AttrChange::default() } };
    assert_eq!(results(run(&state, &own_edits(1, 8, vec![shorter, add(0, 1), add(0, 3)])))[1], wrong);
    let held = |state: &StateStore| -> Vec<bool> {
        let reserved = state.reserved().unwrap();
        [1, 2, 3, 4, 11].map(|chunk| reserved.iter().any(|held| held.chunks.contains(chunk))).to_vec()
    };
    assert_eq!(held(&state), [false, false, false, true, true]);
    for session in [1, 2] {
        run(&state, &Command::EndSession { session: SessionId(session), fenced: false });
    }
    assert_eq!(held(&state), [false; 5]);
    for bad in [reserve(1, 0, 5), reserve(1, 30, 0), reserve(1, 1 << 50, 5), reserve(1, u64::MAX, 5)] {
        run(&state, &session(1));
        assert!(matches!(run(&state, &bad), CommandOutcome::Refused(Refusal::Invalid(_))), "{bad:?}");
    }
    assert!(matches!(run(&state, &reserve(9, 30, 5)), CommandOutcome::Refused(Refusal::NoSession(_))));
}

#[test]
fn a_snapshot_carries_everything_and_a_damaged_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(&dir.path().join("a"));
    let ops = (0..3000).map(|at| create(&format!("file-{at}"), 2 + at)).collect();
    run(&state, &edits(1, 1, 0, ops));
    state
        .apply(&[(LogPosition { term: 2, index: 50 }, LogEntry::Membership(Bytes::from_static(b"us")))])
        .unwrap();
    let path = dir.path().join("snapshot");
    let head = state.write_snapshot(&path).unwrap();
    assert_eq!(head.position, Some(LogPosition { term: 2, index: 50 }));
    assert_eq!(head.membership.as_deref(), Some(&b"us"[..]));
    // Writes go on.
    run(&state, &edits(1, 3001, 0, vec![unlink("file-1", &[])]));

    let other = prepared(&dir.path().join("b"));
    let before = other.digest().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let broken = dir.path().join("broken");
    for at in (0..whole.len()).step_by(whole.len() / 12 + 1) {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        std::fs::write(&broken, &bytes).unwrap();
        assert!(other.install_snapshot(&SnapshotFile { path: broken.clone() }).is_err(), "byte {at} flipped");
        std::fs::write(&broken, &whole[..at]).unwrap();
        assert!(other.install_snapshot(&SnapshotFile { path: broken.clone() }).is_err(), "cut at {at}");
        assert_eq!(other.digest().unwrap(), before);
    }
    // A view from before the installation answers from the new state after it, or not at all.
    other.tree(NS).inode(ROOT_INO).unwrap();
    assert_eq!(other.install_snapshot(&SnapshotFile { path }).unwrap(), head);
    assert_eq!(other.applied(), EditIndex(50));
    assert_eq!(other.tree(NS).entries(ROOT_INO, None, 9999).unwrap().len(), 3000);
    let digest = other.digest().unwrap();
    other.close().unwrap();
    assert_eq!(other.tree(NS).inode(ROOT_INO), Err(FsError::Io));
    drop(other);
    assert_eq!(open(&dir.path().join("b")).digest().unwrap(), digest);
    let generations = std::fs::read_dir(dir.path().join("b"))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("state-"));
    assert_eq!(generations.count(), 1, "what was replaced is gone");
}

/// Random edits over few names, so that they meet.
fn any_op() -> impl Strategy<Value = EditOp> {
    let text = || (0..6u8).prop_map(|at| format!("n{at}"));
    let ino = || (1..40u64).prop_map(Ino);
    prop_oneof![
        4 => (text(), 2..40u64, any::<bool>()).prop_map(|(text, ino, dir)| match create(&text, ino) {
            EditOp::Create { parent, name, ino, mode, umask, uid, gid, .. } if dir =>
                EditOp::Create { parent, name, ino, node: NewNode::Directory, mode, umask, uid, gid },
            file => file,
        }),
        2 => (text(), 0..4u64).prop_map(|(text, holder)| unlink(&text, &[holder])),
        2 => (text(), ino(), text()).prop_map(|(from, parent, to)| EditOp::Rename {
            parent: ROOT_INO, name: name(&from), new_parent: parent, new_name: name(&to),
            flags: Default::default(), holders: vec![SessionId(2)],
        }),
        2 => (ino(), 0..3u32, 1..60u64).prop_map(|(ino, index, chunk)| EditOp::AddChunk {
            ino, index: ChunkIndex(index), chunk: ChunkId(chunk),
        }),
        1 => (ino(), 0..300_000u64).prop_map(|(ino, size)| EditOp::SetAttr {
            ino, change: AttrChange { size: Some(size), ..AttrChange::default() },
        }),
        1 => (ino(), 0..3u8).prop_map(|(ino, at)| EditOp::SetXattr {
            ino, name: XattrName::new(format!("user.{at}").as_bytes()).unwrap(),
            value: Bytes::from_static(b"value"), mode: XattrSetMode::Either,
        }),
        1 => (ino(), 1..3u64).prop_map(|(ino, session)| EditOp::ReleaseOrphan { ino, session: SessionId(session) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// One batch or many, a cache that holds nothing or everything, a restart between: the same records.
    #[test]
    fn records_depend_on_the_entries_alone(
        ops in proptest::collection::vec(any_op(), 1..120), batch in 1..9usize, restart in any::<u8>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let large = StateConfig { record_cache_bytes: 32 << 20, ..SMALL };
        let none = StateConfig { record_cache_bytes: 0, ..SMALL };
        let mut commands = vec![Command::CreateNamespace {
            name: "demo".into(), config: config(), time: Timestamp::new(1, 2),
        }];
        commands.extend([session(1), session(2)]);
        for (at, op) in ops.into_iter().enumerate() {
            let seq = at as u64 + 1;
            commands.push(edits(1, seq, seq - 1, vec![op]));
        }
        commands.push(reserve(2, 100, 8));
        commands.push(own_edits(1, 1000, vec![create("own", 100), create("own", 101)]));
        commands.push(own_edits(2, 1, vec![create("own", 100), create("other", 101)]));
        commands.push(Command::EndSession { session: SessionId(2), fenced: true });
        let entries: Vec<_> = commands.iter().enumerate().map(|(at, command)| {
            (LogPosition { term: 1, index: at as u64 + 1 }, LogEntry::Command(command.to_bytes().into()))
        }).collect();

        let one = StateStore::open(&dir.path().join("one"), large).unwrap();
        let expected: Vec<_> = entries.iter().map(|entry| one.apply(std::slice::from_ref(entry)).unwrap().remove(0)).collect();

        let path = dir.path().join("two");
        let mut two = StateStore::open(&path, none).unwrap();
        let mut outcomes = Vec::new();
        for (at, batch) in entries.chunks(batch).enumerate() {
            outcomes.extend(two.apply(batch).unwrap());
            if at % 256 == usize::from(restart) {
                two.close().unwrap();
                two = StateStore::open(&path, none).unwrap();
            }
        }
        prop_assert_eq!(outcomes, expected);
        prop_assert_eq!(one.digest().unwrap(), two.digest().unwrap());
        prop_assert_eq!(one.verify().unwrap().damaged_records, 0);
    }
}

#[test]
fn how_a_chunkserver_stands_outlives_restarts_and_new_registrations() {
    let dir = tempfile::tempdir().unwrap();
    let id = ChunkServerId(9);
    let register = |address: &str| Command::RegisterServer {
        server: id,
        address: address.into(),
        labels: Default::default(),
    };
    let stand = |standing| Command::SetServerStanding { server: id, standing };
    {
        let state = open(dir.path());
        let unknown = run(&state, &stand(Standing::Draining));
        assert_eq!(unknown, CommandOutcome::Refused(Refusal::NoServer(id)));
        run(&state, &register("a:1"));
        assert_eq!(state.servers().unwrap()[0].standing, Standing::InService);
        assert_eq!(run(&state, &stand(Standing::Draining)), CommandOutcome::Done);
        run(&state, &register("b:1"));
    }
    let state = open(dir.path());
    let known = state.server(id).unwrap().unwrap();
    assert_eq!((known.standing, known.address.as_str()), (Standing::Draining, "b:1"));
    assert_eq!(run(&state, &stand(Standing::Removed)), CommandOutcome::Done);
    assert_eq!(state.servers().unwrap(), []);
    assert_eq!(state.server(id).unwrap().unwrap().standing, Standing::Removed);
    assert_eq!(run(&state, &stand(Standing::InService)), CommandOutcome::Done);
    assert_eq!(state.servers().unwrap()[0].standing, Standing::InService);
}

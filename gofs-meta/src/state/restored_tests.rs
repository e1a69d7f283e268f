//! Backups, and what a state made from one must not do again.

use std::path::Path;

use bytes::Bytes;
use gofs_tree::{ChunkId, ChunkIndex, ChunkVersion, EditIndex, EditOp, Ino, ROOT_INO, SessionId, Timestamp};

use super::tests::{NS, create, edits, prepared, run, unlink};
use super::{LogEntry, LogPosition, StateConfig, StateStore, verify_backup};
use crate::chunks::first_version_of;
use crate::command::{Command, CommandOutcome, Refusal};

const TERM: u64 = 7;
const TIME: Timestamp = Timestamp { secs: 1_700_000_000, nanos: 5 };

/// A cluster with files, an open unlinked one, and a chunk at a version of its term.
fn cluster(dir: &Path) -> StateStore {
    let state = prepared(dir);
    run(&state, &Command::InitCluster { cluster: [9; 16] });
    run(&state, &Command::ReserveChunks { session: SessionId(1), first: ChunkId(40), count: 8 });
    run(&state, &Command::ReserveInos { session: SessionId(1), first: Ino(100), count: 50 });
    let ops = (0..3000).map(|at| create(&format!("file-{at}"), 1000 + at)).collect();
    run(&state, &edits(1, 1, 0, ops));
    run(&state, &edits(1, 3001, 3000, vec![unlink("file-7", &[2])]));
    let add = EditOp::AddChunk { ino: Ino(1000), index: ChunkIndex(0), chunk: ChunkId(60) };
    run(&state, &edits(2, 1, 0, vec![add]));
    let (from, to) = (ChunkVersion(1), ChunkVersion((3 << 24) + 2));
    run(&state, &Command::SetChunkVersion { chunk: ChunkId(60), from, to, copies: 2 });
    let at = LogPosition { term: TERM, index: 500 };
    state.apply(&[(at, LogEntry::Membership(Bytes::from_static(b"us")))]).unwrap();
    state
}

fn back_up(state: &StateStore, path: &Path) {
    let file = std::fs::File::create(path).unwrap();
    state.write_backup(file, TIME, |_| Ok(())).unwrap();
}

fn restore(path: &Path, dir: &Path) -> StateStore {
    let state = StateStore::open(dir, StateConfig::default()).unwrap();
    state.restore(path, |at| Ok(Bytes::from(format!("them from {}", at.index)))).unwrap();
    state
}

#[test]
fn a_backup_says_what_it_is_of_and_no_flipped_or_cut_one_passes() {
    let dir = tempfile::tempdir().unwrap();
    let state = cluster(&dir.path().join("a"));
    let path = dir.path().join("backup");
    back_up(&state, &path);
    let backup = verify_backup(&path).unwrap();
    assert_eq!(backup.head.position, LogPosition { term: TERM, index: 500 });
    assert_eq!((backup.head.cluster, backup.head.time), ([9; 16], TIME));
    assert_eq!(&backup.head.membership[..], b"us");
    assert_eq!(backup.head.namespaces.len(), 1);
    assert_eq!((&backup.head.namespaces[0].name[..], backup.head.namespaces[0].usage.inodes), ("demo", 3001));
    assert_eq!(backup.records, state.digest().unwrap().records);
    assert_eq!(backup.bytes, std::fs::metadata(&path).unwrap().len());

    let whole = std::fs::read(&path).unwrap();
    let broken = dir.path().join("broken");
    let edges = [0, 7, 8, 20, whole.len() - 1, whole.len() - 13];
    for at in (0..whole.len()).step_by(whole.len() / 40 + 1).chain(edges) {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        std::fs::write(&broken, &bytes).unwrap();
        assert!(verify_backup(&broken).is_err(), "byte {at} flipped");
        std::fs::write(&broken, &whole[..at]).unwrap();
        assert!(verify_backup(&broken).is_err(), "cut at {at}");
    }
    std::fs::write(&broken, [&whole[..], b"x"].concat()).unwrap();
    assert!(verify_backup(&broken).is_err(), "longer than it was");
}

#[test]
fn a_backup_holds_one_moment_however_long_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let state = cluster(&dir.path().join("a"));
    let before = state.digest().unwrap();
    let path = dir.path().join("backup");
    let file = std::fs::File::create(&path).unwrap();
    let mut seq = 3002;
    state
        .write_backup(file, TIME, |_| {
            run(&state, &edits(1, seq, seq - 1, vec![create(&format!("late-{seq}"), 5000 + seq)]));
            seq += 1;
            Ok(())
        })
        .unwrap();
    assert!(seq > 3002, "writes came in between");
    let backup = verify_backup(&path).unwrap();
    assert_eq!((backup.head.position.index, backup.records), (before.applied.0, before.records));
}

#[test]
fn a_restored_state_has_what_was_there_and_never_gives_out_again_what_may_have_been() {
    let dir = tempfile::tempdir().unwrap();
    let state = cluster(&dir.path().join("a"));
    let path = dir.path().join("backup");
    back_up(&state, &path);
    let before = state.counters().unwrap();
    let (_, next_ino) = state.usage(NS).unwrap().unwrap();

    let restored = restore(&path, &dir.path().join("b"));
    assert_eq!(restored.cluster().unwrap(), Some([9; 16]), "ChunkServers know it by that");
    assert_eq!(restored.applied(), EditIndex(501));
    assert!(restored.position().unwrap().unwrap().term > TERM);
    assert_eq!(restored.membership().unwrap().unwrap(), Bytes::from_static(b"them from 501"));
    assert_eq!(restored.tree(NS).entries(ROOT_INO, None, 9999).unwrap().len(), 2999);

    // The sessions are over, and with them what they held and had reserved.
    assert_eq!(restored.sessions().unwrap(), []);
    assert_eq!(restored.orphans(NS).unwrap(), []);
    assert!(restored.reserved().unwrap().is_empty());
    let (usage, restored_next_ino) = restored.usage(NS).unwrap().unwrap();
    assert_eq!(usage.inodes, 3000, "root and files, without the one that was only open");
    let far = 1 << 39;
    let after = restored.counters().unwrap();
    assert!(
        after.next_chunk.0 > before.next_chunk.0 + far && after.next_session.0 > before.next_session.0 + far
    );
    assert!(restored_next_ino.0 > next_ino.0 + far && after.next_namespace > before.next_namespace);

    let left = restored.restored().unwrap().unwrap();
    assert_eq!((left.times, left.index, left.time), (1, EditIndex(500), TIME));
    // ChunkServers are told that all of before are over, those too that the image does not know.
    let ended = restored.ended_sessions().unwrap();
    assert!(ended.live.is_empty() && ended.floor.0 > before.next_session.0 + far);
    // Reserved for a session that may have used it since; made since; and one that is free from now on.
    assert!(left.keeps(ChunkId(40)) && left.keeps(before.next_chunk) && !left.keeps(after.next_chunk));
    assert!(!left.keeps(ChunkId(39)));

    // Somebody may have committed a later version of it.
    let chunk = restored.chunk(ChunkId(60)).unwrap().unwrap();
    assert_eq!(chunk.copies, 0);
    let to = first_version_of(restored.position().unwrap().unwrap().term + 1);
    let (chunk_id, from) = (ChunkId(60), chunk.version);
    let raise = Command::SetChunkVersion { chunk: chunk_id, from, to, copies: 2 };
    let late = |state: &StateStore, command: &Command| {
        let at = LogPosition { term: 1 << 20, index: state.applied().0 + 1 };
        state
            .apply(&[(at, LogEntry::Command(gofs_tree::Encode::to_bytes(command).into()))])
            .unwrap()
            .remove(0)
    };
    assert_eq!(late(&restored, &raise), CommandOutcome::Done);
    assert_eq!(restored.chunk(ChunkId(60)).unwrap().unwrap().copies, 2, "known again");

    let old = edits(1, 3002, 3001, vec![create("from-an-old-mount", 120)]);
    let refused = CommandOutcome::Refused(Refusal::NoSession(SessionId(1)));
    assert_eq!(late(&restored, &old), refused);

    assert!(!restored.restored().unwrap().unwrap().settled);
    late(&restored, &Command::SettleRestore);
    assert!(restored.restored().unwrap().unwrap().settled);
    late(&restored, &Command::DiscardUnknown);
    assert!(!restored.restored().unwrap().unwrap().keeps(ChunkId(40)));
}

#[test]
fn the_same_backup_gives_the_same_state_and_another_one_another_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let state = cluster(&dir.path().join("a"));
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    back_up(&state, &first);
    run(&state, &edits(1, 3002, 3001, vec![create("more", 9000)]));
    back_up(&state, &second);
    let one = restore(&first, &dir.path().join("1"));
    let two = restore(&first, &dir.path().join("2"));
    assert_eq!(one.digest().unwrap(), two.digest().unwrap());
    assert_eq!(one.cluster_tag().unwrap(), two.cluster_tag().unwrap());
    let other = restore(&second, &dir.path().join("3"));
    assert_ne!(one.cluster_tag().unwrap(), other.cluster_tag().unwrap());
    assert_ne!(one.cluster_tag().unwrap(), state.cluster_tag().unwrap());
}

#[test]
fn a_second_restore_keeps_what_the_first_one_kept() {
    let dir = tempfile::tempdir().unwrap();
    let state = cluster(&dir.path().join("a"));
    let path = dir.path().join("backup");
    back_up(&state, &path);
    let once = restore(&path, &dir.path().join("b"));
    let again = dir.path().join("again");
    back_up(&once, &again);
    let twice = restore(&again, &dir.path().join("c"));
    let left = twice.restored().unwrap().unwrap();
    assert_eq!((left.times, left.keeps(ChunkId(40))), (2, true));
    assert!(left.keeps(once.counters().unwrap().next_chunk));
    assert!(left.versions_below > once.restored().unwrap().unwrap().versions_below);
}

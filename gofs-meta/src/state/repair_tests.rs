//! Repairs: each sets right what it found, once, and leaves alone what is not as it found it.

use gofs_tree::{
    ChunkId, ChunkIndex, ChunkRef, DirEntry, EditOp, FileType, Ino, NewNode, Orphan, ROOT_INO, SessionId,
    Store, Usage,
};

use super::StateStore;
use super::key;
use super::record::Record;
use super::tests::{NS, create, edits, name, prepared, run};
use crate::command::{Command, CommandOutcome, Refusal};
use crate::repair::{Count, Repair};

const FILE: Ino = Ino(10);
const DIR: Ino = Ino(11);

/// A file with one chunk and a directory; nobody has it mounted.
fn tree(dir: &std::path::Path) -> StateStore {
    let state = prepared(dir);
    let mkdir = match create("dir", DIR.0) {
        EditOp::Create { parent, name, ino, mode, umask, uid, gid, .. } => {
            EditOp::Create { parent, name, ino, node: NewNode::Directory, mode, umask, uid, gid }
        }
        other => other,
    };
    let add = EditOp::AddChunk { ino: FILE, index: ChunkIndex(0), chunk: ChunkId(5) };
    run(&state, &edits(1, 1, 0, vec![create("file", FILE.0), mkdir, add]));
    for session in [1, 2] {
        run(&state, &Command::EndSession { session: SessionId(session), fenced: false });
    }
    state
}

/// Changes records behind the state's back.
fn spoil(state: &StateStore, work: impl FnOnce(&mut super::TreeView)) {
    let mut view = state.tree(NS);
    work(&mut view);
    let changes = view.finish().unwrap();
    state.commit(changes).unwrap();
}

fn repair(state: &StateStore, repair: &Repair) -> bool {
    let command = Command::Repair { namespace: NS, repairs: vec![repair.clone()] };
    match run(state, &command) {
        CommandOutcome::Repaired(done) => done == 1,
        other => panic!("{other:?}"),
    }
}

/// Done once; the second time nothing is as it was found.
fn once(state: &StateStore, what: &Repair) {
    assert!(repair(state, what), "{what:?}");
    let digest = state.digest().unwrap();
    assert!(!repair(state, what), "{what:?} again");
    assert_eq!(state.digest().unwrap().records, digest.records);
}

#[test]
fn counts_and_usage_become_what_there_is_unless_they_moved() {
    let dir = tempfile::tempdir().unwrap();
    let state = tree(dir.path());
    let inode = state.tree(NS).inode(FILE).unwrap().unwrap();
    for (count, to) in [(Count::Links, 3), (Count::Blocks4k, 9), (Count::Chunks, 4)] {
        let from = match count {
            Count::Links => inode.nlink.into(),
            Count::Blocks4k => inode.blocks_4k,
            _ => inode.chunks.into(),
        };
        assert!(!repair(&state, &Repair::Count { ino: FILE, count, from: from + 100, to }));
        once(&state, &Repair::Count { ino: FILE, count, from, to });
    }
    let repaired = state.tree(NS).inode(FILE).unwrap().unwrap();
    assert_eq!((repaired.nlink, repaired.blocks_4k, repaired.chunks), (3, 9, 4));
    assert!(
        !repair(&state, &Repair::Count { ino: FILE, count: Count::NamesBytes, from: 0, to: 1 }),
        "a file"
    );
    let size = state.tree(NS).inode(ROOT_INO).unwrap().unwrap().size;
    once(&state, &Repair::Count { ino: ROOT_INO, count: Count::NamesBytes, from: size, to: 2 });

    once(&state, &Repair::Usage { from: (0, 3), to: (70, 7) });
    assert_eq!(state.usage(NS).unwrap().unwrap().0, Usage { bytes: 70, inodes: 7 });
    once(&state, &Repair::Sliced { from: (0, 0), to: (1, 2) });
    assert_eq!(state.sliced(NS).unwrap(), Usage { bytes: 1, inodes: 2 });
}

#[test]
fn names_that_lead_nowhere_go_and_inodes_without_one_get_one() {
    let dir = tempfile::tempdir().unwrap();
    let state = tree(dir.path());
    let file = DirEntry { ino: FILE, file_type: FileType::File };
    // It is there, so its name is no problem.
    assert!(!repair(&state, &Repair::DropEntry { parent: ROOT_INO, name: name("file"), ino: FILE }));
    spoil(&state, |view| {
        view.set_entry(ROOT_INO, &name("ghost"), DirEntry { ino: Ino(99), file_type: FileType::File });
        view.set_entry(Ino(98), &name("nowhere"), file);
        view.remove_entry(ROOT_INO, &name("file"));
        view.remove_entry(ROOT_INO, &name("dir"));
    });
    assert!(!repair(&state, &Repair::DropEntry { parent: ROOT_INO, name: name("ghost"), ino: FILE }));
    once(&state, &Repair::DropEntry { parent: ROOT_INO, name: name("ghost"), ino: Ino(99) });
    once(&state, &Repair::DropEntry { parent: Ino(98), name: name("nowhere"), ino: FILE });
    once(&state, &Repair::Adopt { ino: FILE });
    once(&state, &Repair::Adopt { ino: DIR });
    let tree = state.tree(NS);
    assert_eq!(tree.entry(ROOT_INO, &name("lost+found.10")).unwrap(), Some(file));
    assert_eq!(tree.inode(DIR).unwrap().unwrap().parent, ROOT_INO);
    assert!(!repair(&state, &Repair::Adopt { ino: ROOT_INO }));
}

#[test]
fn unlinked_inodes_are_let_go_by_sessions_that_ended_and_by_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(dir.path());
    run(&state, &edits(1, 1, 0, vec![create("file", FILE.0)]));
    run(&state, &edits(1, 2, 0, vec![super::tests::unlink("file", &[1, 2])]));
    spoil(&state, |view| {
        view.set_orphan(FILE, Orphan { holders: vec![SessionId(1), SessionId(77)] });
        view.set_orphan(Ino(55), Orphan { holders: vec![SessionId(1)] });
    });
    assert!(!repair(&state, &Repair::Release { ino: FILE, session: SessionId(1) }), "it lives");
    once(&state, &Repair::Release { ino: FILE, session: SessionId(77) });
    assert!(state.tree(NS).inode(FILE).unwrap().is_some(), "session 1 has it open");
    assert!(!repair(&state, &Repair::DropOrphan { ino: FILE }));
    once(&state, &Repair::DropOrphan { ino: Ino(55) });
}

#[test]
fn a_chunk_belongs_to_the_file_that_refers_to_it_and_goes_where_none_does() {
    let dir = tempfile::tempdir().unwrap();
    let state = tree(dir.path());
    let (chunk, index) = (ChunkId(5), ChunkIndex(0));
    let claim = Repair::ClaimChunk { ino: FILE, index, chunk };
    assert!(!repair(&state, &claim), "it is right as it is");
    assert!(!repair(&state, &Repair::DropChunk { chunk }));
    spoil(&state, |view| view.drop_chunk(chunk));
    once(&state, &claim);
    assert!(!state.chunk(chunk).unwrap().unwrap().deleted);
    spoil(&state, |view| view.remove(key::chunk(chunk)));
    once(&state, &claim);
    assert_eq!(state.chunk(chunk).unwrap().unwrap().copies, 0, "which version is right is not known");

    once(&state, &Repair::DropReference { ino: FILE, index, chunk });
    assert!(state.chunk(chunk).unwrap().unwrap().deleted);
    let inode = state.tree(NS).inode(FILE).unwrap().unwrap();
    assert_eq!((inode.chunks, inode.blocks_4k), (0, 0));

    spoil(&state, |view| {
        view.set_chunk(FILE, index, ChunkRef { chunk: ChunkId(6), blocks_4k: 1 });
        view.remove(key::chunk_ref(NS, FILE, index));
    });
    once(&state, &Repair::DropChunk { chunk: ChunkId(6) });
    assert!(state.chunk(ChunkId(6)).unwrap().unwrap().deleted);
    assert!(matches!(state.shared.get(&key::chunk(ChunkId(6))).unwrap(), Some(Record::Chunk(_))));
}

#[test]
fn what_mounts_may_have_cached_or_are_changing_is_not_repaired_while_there_are_any() {
    let dir = tempfile::tempdir().unwrap();
    let state = prepared(dir.path());
    run(&state, &edits(1, 1, 0, vec![create("file", FILE.0)]));
    spoil(&state, |view| view.set_orphan(Ino(55), Orphan { holders: Vec::new() }));
    let before = state.digest().unwrap();
    let orphan = Repair::DropOrphan { ino: Ino(55) };
    for repair in [
        Repair::Usage { from: (0, 2), to: (9, 9) },
        Repair::Sliced { from: (0, 0), to: (1, 1) },
        Repair::Count { ino: FILE, count: Count::Links, from: 1, to: 2 },
    ] {
        let repairs = vec![orphan.clone(), repair];
        let refused = CommandOutcome::Refused(Refusal::Mounted(NS));
        assert_eq!(
            run(&state, &Command::Repair { namespace: NS, repairs: repairs.clone() }),
            refused,
            "{repairs:?}"
        );
        assert_eq!(state.digest().unwrap().records, before.records, "nor half of it");
    }
    assert_eq!(state.usage(NS).unwrap().unwrap().0, Usage { bytes: 0, inodes: 2 });
    assert_eq!(
        run(&state, &Command::Repair { namespace: NS, repairs: vec![orphan] }),
        CommandOutcome::Repaired(1)
    );
}

use bytes::Bytes;
use gofs_tree::{
    ChunkId, ChunkIndex, ChunkSize, MemoryStore, Mode, NamespaceLimits, NewNode, ROOT_INO, RenameFlags,
    Timestamp,
};
use proptest::prelude::*;

use super::*;
use crate::lease::Access;

const FILES: u64 = 4;

fn name(at: u8) -> Name {
    Name::new(format!("n{at}").as_bytes()).unwrap()
}

fn edit(op: EditOp) -> Edit {
    Edit { time: Timestamp::default(), op }
}

fn create(parent: Ino, at: u8, ino: u64, node: NewNode) -> EditOp {
    let (mode, umask) = (Mode::new(0o700), Mode::default());
    EditOp::Create { parent, name: name(at), ino: Ino(ino), node, mode, umask, uid: 0, gid: 0 }
}

fn unlink(parent: Ino, at: u8) -> EditOp {
    EditOp::Unlink { parent, name: name(at), holders: Vec::new() }
}

fn rename(from: (Ino, u8), to: (Ino, u8), flags: RenameFlags) -> EditOp {
    EditOp::Rename {
        parent: from.0,
        name: name(from.1),
        new_parent: to.0,
        new_name: name(to.1),
        flags,
        holders: Vec::new(),
    }
}

/// Files 100 to 103 with the names `n0` to `n3` in the root, and the directory 50 named `n9`.
fn tree() -> MemoryStore {
    let limits =
        NamespaceLimits { quota_bytes: 0, quota_inodes: 0, inline_max: 4096, chunk_size: ChunkSize::DEFAULT };
    let mut tree = MemoryStore::with_root(limits, Mode::new(0o755), 0, 0, Timestamp::default());
    for at in 0..FILES {
        gofs_tree::apply(&mut tree, &edit(create(ROOT_INO, at as u8, 100 + at, NewNode::File))).unwrap();
    }
    gofs_tree::apply(&mut tree, &edit(create(ROOT_INO, 9, 50, NewNode::Directory))).unwrap();
    tree
}

fn plan(ops: Vec<EditOp>) -> Plan {
    let edits: Vec<Edit> = ops.into_iter().map(edit).collect();
    Plan::of(&tree(), &edits, Numbers::ChosenByAuthor).unwrap().unwrap()
}

fn needed(plan: &Plan) -> Vec<u64> {
    plan.needs.iter().map(|need| need.ino.0).collect()
}

#[test]
fn what_a_batch_makes_itself_it_does_not_need() {
    let plan = plan(vec![
        create(ROOT_INO, 20, 200, NewNode::Directory),
        create(Ino(200), 1, 201, NewNode::File),
        EditOp::WriteInline { ino: Ino(201), data: Bytes::new(), size: 0, mtime: Timestamp::default() },
        unlink(Ino(200), 1),
        EditOp::Rmdir { parent: ROOT_INO, name: name(20), holders: Vec::new() },
    ]);
    assert_eq!(plan.needs, [Need::entries(ROOT_INO, vec![name(20)])]);
    let removed = |at: usize| (plan.removes[at].likely, plan.removes[at].possible.len());
    assert_eq!((removed(3), removed(4)), ((Some(Ino(201)), 1), (Some(Ino(200)), 1)));
}

#[test]
fn names_mean_what_the_edits_before_made_of_them() {
    let none = RenameFlags::default();
    let plan = plan(vec![
        unlink(ROOT_INO, 0),
        create(ROOT_INO, 0, 200, NewNode::File),
        rename((ROOT_INO, 1), (ROOT_INO, 0), none),
        rename((ROOT_INO, 0), (Ino(50), 0), none),
        unlink(Ino(50), 0),
        unlink(ROOT_INO, 1),
    ]);
    let likely: Vec<_> = plan.removes.iter().map(|removed| removed.likely.map(|ino| ino.0)).collect();
    assert_eq!(likely, [Some(100), None, Some(200), None, Some(101), None]);
    // Whatever fails: the last name of n0 may be any of these.
    assert_eq!(plan.removes[4].possible, BTreeSet::from([Ino(100), Ino(101), Ino(200)]));
    assert_eq!(needed(&plan), [1, 50, 100, 101]);
}

#[test]
fn exchanged_names_are_exchanged_and_nothing_is_removed() {
    let exchange = RenameFlags { exchange: true, ..RenameFlags::default() };
    let plan = plan(vec![rename((ROOT_INO, 0), (ROOT_INO, 1), exchange), unlink(ROOT_INO, 0)]);
    assert_eq!(plan.removes[0], Meaning::default());
    assert_eq!(plan.removes[1].likely, Some(Ino(101)));
}

#[test]
fn a_number_that_exists_already_is_needed_where_it_is_edited() {
    // As when the batch comes again after its first part was committed.
    let attr = EditOp::SetAttr { ino: Ino(100), change: Default::default() };
    let plan = plan(vec![create(ROOT_INO, 30, 100, NewNode::File), attr]);
    assert_eq!(needed(&plan), [1, 100]);
}

#[test]
fn edits_of_servers_are_not_planned() {
    let planned = |op: EditOp, numbers| Plan::of(&tree(), &[edit(op)], numbers).unwrap().is_some();
    let release = EditOp::ReleaseOrphan { ino: Ino(100), session: gofs_tree::SessionId(1) };
    assert!(!planned(release, Numbers::ChosenByAuthor));
    let add = EditOp::AddChunk { ino: Ino(100), index: ChunkIndex(0), chunk: ChunkId(1) };
    assert!(planned(add.clone(), Numbers::ChosenByAuthor));
    assert!(!planned(add, Numbers::ChosenHere), "a chunk that no server has placed");
}

#[test]
fn what_a_plan_is_about_are_directories_and_inodes() {
    let about = |op: EditOp| {
        let plan = plan(vec![op]);
        let numbers = |inos: &[Ino]| inos.iter().map(|ino| ino.0).collect::<Vec<u64>>();
        (numbers(&plan.directories), numbers(&plan.inodes))
    };
    assert_eq!(about(create(ROOT_INO, 20, 0, NewNode::File)), (vec![1], vec![]));
    assert_eq!(about(unlink(ROOT_INO, 0)), (vec![1], vec![100]));
    assert_eq!(about(unlink(ROOT_INO, 20)), (vec![1], vec![]));
    let over = rename((ROOT_INO, 0), (Ino(50), 1), RenameFlags::default());
    assert_eq!(about(over), (vec![1, 50], vec![100]));
    assert_eq!(about(EditOp::SetAttr { ino: Ino(101), change: Default::default() }), (vec![], vec![101]));
}

#[test]
fn a_plan_within_another_needs_no_more() {
    let one = plan(vec![unlink(ROOT_INO, 0)]);
    let more = plan(vec![unlink(ROOT_INO, 0), unlink(ROOT_INO, 1)]);
    assert!(one.is_within(&more) && !more.is_within(&one) && one.is_within(&one));
    // Anything about the root, against a name in it.
    let attr = plan(vec![EditOp::SetAttr { ino: ROOT_INO, change: Default::default() }, unlink(ROOT_INO, 0)]);
    assert!(one.is_within(&attr) && !attr.is_within(&one));
}

fn any_op() -> impl Strategy<Value = EditOp> {
    let dir = || prop_oneof![3 => Just(ROOT_INO), 1 => Just(Ino(50))];
    prop_oneof![
        3 => (dir(), 0..6u8, 200..230u64).prop_map(|(dir, at, ino)| create(dir, at, ino, NewNode::File)),
        3 => (dir(), 0..6u8).prop_map(|(dir, at)| unlink(dir, at)),
        1 => (100..104u64, dir(), 0..6u8).prop_map(|(ino, parent, at)| EditOp::Link {
            ino: Ino(ino), parent, name: name(at),
        }),
        4 => (dir(), 0..6u8, dir(), 0..6u8, 0..3u8).prop_map(|(from, a, to, b, kind)| {
            let flags = RenameFlags { no_replace: kind == 1, exchange: kind == 2 };
            rename((from, a), (to, b), flags)
        }),
    ]
}

proptest! {
    /// Edits fail for reasons that a plan does not know (a quota, say): what the rest touch was needed all the same.
    #[test]
    fn whichever_edits_fail_nothing_is_touched_that_was_not_needed(
        ops in proptest::collection::vec((any_op(), 0..5u8), 1..25),
    ) {
        let mut tree = tree();
        let edits: Vec<Edit> = ops.iter().map(|(op, _)| edit(op.clone())).collect();
        let plan = Plan::of(&tree, &edits, Numbers::ChosenByAuthor).unwrap().unwrap();
        let needed: BTreeSet<Ino> = plan.needs.iter().map(|need| need.ino).collect();
        prop_assert!(plan.needs.iter().all(|need| need.access == Access::Change));
        let mut all_went = true;
        for ((edit, (_, luck)), removes) in edits.iter().zip(&ops).zip(&plan.removes) {
            if *luck == 0 {
                all_went = false;
                continue;
            }
            let before: Vec<(Ino, gofs_tree::Inode)> = tree.inodes().map(|(ino, inode)| (ino, inode.clone())).collect();
            let Ok(outcome) = gofs_tree::apply(&mut tree, edit) else {
                all_went = false;
                continue;
            };
            if let Some(removed) = outcome.removed {
                prop_assert!(removes.possible.contains(&removed));
                prop_assert!(!all_went || removes.likely == Some(removed));
            }
            for (ino, inode) in before {
                let touched = tree.inode(ino).unwrap().as_ref() != Some(&inode);
                prop_assert!(!touched || ino.0 >= 200 || needed.contains(&ino), "{ino} was not needed");
            }
        }
    }
}

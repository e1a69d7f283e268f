use super::super::fixture::{Tree, name};
use crate::{EditOp, FsError, Ino, LINK_MAX, NewNode, Orphan, ROOT_INO, RenameFlags, SessionId, Store};

const EXCHANGE: RenameFlags = RenameFlags { no_replace: false, exchange: true };
const NO_REPLACE: RenameFlags = RenameFlags { no_replace: true, exchange: false };

/// /a/f, /a/sub, /b/
struct Sample {
    tree: Tree,
    a: Ino,
    b: Ino,
    file: Ino,
    sub: Ino,
}

fn sample() -> Sample {
    let mut tree = Tree::new();
    let a = tree.dir(ROOT_INO, "a");
    let b = tree.dir(ROOT_INO, "b");
    let file = tree.file(a, "f");
    let sub = tree.dir(a, "sub");
    Sample { tree, a, b, file, sub }
}

#[test]
fn a_file_moves_and_its_times_and_parents_tell() {
    let Sample { mut tree, a, b, file, .. } = sample();
    let before = tree.inode(file);
    let outcome = tree.rename(a, "f", b, "longer").unwrap();
    assert_eq!((outcome.ino, outcome.removed), (file, None));
    let now = tree.now();
    assert_eq!((tree.lookup(a, "f"), tree.lookup(b, "longer")), (None, Some(file)));
    assert_eq!((tree.inode(file).ctime, tree.inode(file).mtime), (now, before.mtime));
    for dir in [a, b] {
        assert_eq!((tree.inode(dir).mtime, tree.inode(dir).ctime), (now, now));
    }
    assert_eq!((tree.inode(a).size, tree.inode(b).size), (3, 6));
}

#[test]
fn a_directory_takes_its_link_along() {
    let Sample { mut tree, a, b, sub, .. } = sample();
    tree.rename(a, "sub", b, "sub").unwrap();
    assert_eq!((tree.inode(a).nlink, tree.inode(b).nlink, tree.inode(sub).parent), (2, 3, b));
    tree.rename(b, "sub", b, "x").unwrap();
    assert_eq!((tree.inode(b).nlink, tree.inode(sub).parent), (3, b));
}

#[test]
fn the_replaced_file_loses_that_name() {
    let Sample { mut tree, a, b, file, .. } = sample();
    let victim = tree.file(b, "v");
    tree.run(EditOp::Link { ino: victim, parent: b, name: name("w") }).unwrap();
    assert_eq!(tree.rename(a, "f", b, "v").unwrap().removed, None);
    assert_eq!((tree.inode(victim).nlink, tree.inode(victim).ctime), (1, tree.now()));
    assert_eq!(tree.rename(b, "v", b, "w").unwrap().removed, Some(victim));
    assert!(!tree.exists(victim));
    assert_eq!(tree.lookup(b, "w"), Some(file));
}

#[test]
fn the_replaced_file_that_is_open_becomes_an_orphan() {
    let Sample { mut tree, a, b, file, .. } = sample();
    let victim = tree.file(b, "v");
    let outcome = tree.run(EditOp::Rename {
        parent: a,
        name: name("f"),
        new_parent: b,
        new_name: name("v"),
        flags: RenameFlags::default(),
        holders: vec![SessionId(3)],
    });
    assert_eq!(outcome.unwrap().removed, Some(victim));
    assert_eq!(tree.store.orphan(victim), Ok(Some(Orphan { holders: vec![SessionId(3)] })));
    assert_eq!(tree.store.orphan(file), Ok(None), "holders are those of the replaced one");
}

#[test]
fn two_names_of_one_inode_stay_as_they_are() {
    let Sample { mut tree, a, b, file, .. } = sample();
    tree.run(EditOp::Link { ino: file, parent: b, name: name("g") }).unwrap();
    let before = tree.store.clone();
    assert_eq!(tree.rename(a, "f", b, "g").unwrap().removed, None);
    assert_eq!(tree.rename(a, "f", a, "f").unwrap().ino, file);
    assert_eq!(tree.rename_with(a, "f", b, "g", EXCHANGE).unwrap().ino, file);
    assert_eq!(tree.store, before);
    assert_eq!(tree.rename_with(a, "f", b, "g", NO_REPLACE), Err(FsError::Exists));
}

#[test]
fn a_directory_replaces_only_an_empty_one() {
    let Sample { mut tree, a, b, sub, .. } = sample();
    let full = tree.dir(b, "full");
    tree.file(full, "x");
    let empty = tree.dir(b, "empty");
    assert_eq!(tree.rename(a, "sub", b, "full"), Err(FsError::NotEmpty));
    let nlink = tree.inode(b).nlink;
    assert_eq!(tree.rename(a, "sub", b, "empty").unwrap().removed, Some(empty));
    assert_eq!((tree.inode(a).nlink, tree.inode(b).nlink), (2, nlink));
    assert_eq!((tree.lookup(b, "empty"), tree.inode(sub).parent), (Some(sub), b));
    let other = tree.dir(b, "other");
    tree.rename(b, "empty", b, "other").unwrap();
    assert!(!tree.exists(other));
    assert_eq!(tree.inode(b).nlink, nlink);
}

#[test]
fn types_must_agree() {
    let Sample { mut tree, a, b, .. } = sample();
    tree.file(b, "file");
    tree.dir(b, "dir");
    assert_eq!(tree.rename(a, "sub", b, "file"), Err(FsError::NotDirectory));
    assert_eq!(tree.rename(a, "f", b, "dir"), Err(FsError::IsDirectory));
}

#[test]
fn a_directory_cannot_move_into_itself() {
    let Sample { mut tree, a, sub, .. } = sample();
    let deep = tree.dir(sub, "deep");
    assert_eq!(tree.rename(ROOT_INO, "a", a, "x"), Err(FsError::Invalid));
    assert_eq!(tree.rename(ROOT_INO, "a", deep, "x"), Err(FsError::Invalid));
    assert_eq!(tree.rename_with(ROOT_INO, "a", sub, "deep", EXCHANGE), Err(FsError::Invalid));
}

#[test]
fn a_directory_above_cannot_be_replaced() {
    let Sample { mut tree, a, sub, .. } = sample();
    tree.dir(sub, "deep");
    tree.file(sub, "file");
    assert_eq!(tree.rename(sub, "deep", ROOT_INO, "a"), Err(FsError::NotEmpty));
    assert_eq!(
        tree.rename(sub, "file", ROOT_INO, "a"),
        Err(FsError::NotEmpty),
        "as Linux, whatever the type"
    );
    assert_eq!(tree.rename_with(sub, "file", ROOT_INO, "a", EXCHANGE), Err(FsError::Invalid));
    assert_eq!(tree.rename(a, "sub", ROOT_INO, "a"), Err(FsError::NotEmpty));
}

#[test]
fn no_replace_refuses_what_exists() {
    let Sample { mut tree, a, b, file, .. } = sample();
    assert_eq!(tree.rename_with(a, "f", a, "sub", NO_REPLACE), Err(FsError::Exists));
    tree.rename_with(a, "f", b, "f", NO_REPLACE).unwrap();
    assert_eq!(tree.lookup(b, "f"), Some(file));
}

#[test]
fn exchange_swaps_a_file_and_a_directory() {
    let Sample { mut tree, a, b, file, sub } = sample();
    let inner = tree.file(sub, "inner");
    tree.rename(a, "f", b, "f").unwrap();
    assert_eq!((tree.inode(a).nlink, tree.inode(b).nlink), (3, 2));
    let outcome = tree.rename_with(a, "sub", b, "f", EXCHANGE).unwrap();
    assert_eq!((outcome.ino, outcome.removed), (sub, None));
    assert_eq!((tree.lookup(a, "sub"), tree.lookup(b, "f")), (Some(file), Some(sub)));
    assert_eq!((tree.inode(a).nlink, tree.inode(b).nlink, tree.inode(sub).parent), (2, 3, b));
    assert_eq!(tree.lookup(b, "f/inner"), Some(inner));
    let now = tree.now();
    for ino in [file, sub, a, b] {
        assert_eq!(tree.inode(ino).ctime, now);
    }
    tree.rename_with(b, "f", a, "sub", EXCHANGE).unwrap();
    assert_eq!((tree.inode(a).nlink, tree.inode(b).nlink, tree.inode(sub).parent), (3, 2, a));
}

#[test]
fn exchange_needs_both_and_bad_flags_are_invalid() {
    let Sample { mut tree, a, b, .. } = sample();
    assert_eq!(tree.rename_with(a, "f", b, "x", EXCHANGE), Err(FsError::NotFound));
    let both = RenameFlags { no_replace: true, exchange: true };
    assert_eq!(tree.rename_with(a, "nothing", b, "x", both), Err(FsError::Invalid));
    let dir = tree.dir(b, "d");
    tree.rename_with(a, "sub", b, "d", EXCHANGE).unwrap();
    assert_eq!(tree.inode(dir).parent, a);
}

#[test]
fn missing_names_and_parents_are_refused() {
    let Sample { mut tree, a, b, file, .. } = sample();
    assert_eq!(tree.rename(a, "x", b, "y"), Err(FsError::NotFound));
    assert_eq!(tree.rename(file, "x", b, "y"), Err(FsError::NotDirectory));
    assert_eq!(tree.rename(a, "f", file, "y"), Err(FsError::NotDirectory));
    assert_eq!(tree.rename(Ino(99), "x", b, "y"), Err(FsError::Stale));
    assert_eq!(tree.rename(a, "f", Ino(99), "y"), Err(FsError::Stale));
}

#[test]
fn directories_do_not_move_where_links_are_used_up() {
    let Sample { mut tree, a, b, .. } = sample();
    tree.make(b, "file", NewNode::File).unwrap();
    tree.change_inode(b, |inode| inode.nlink = LINK_MAX);
    let rename = |flags, to: &str| EditOp::Rename {
        parent: a,
        name: name("sub"),
        new_parent: b,
        new_name: name(to),
        flags,
        holders: vec![],
    };
    assert_eq!(tree.run_unchecked(rename(RenameFlags::default(), "x")), Err(FsError::TooManyLinks));
    assert_eq!(tree.run_unchecked(rename(EXCHANGE, "file")), Err(FsError::TooManyLinks));
}

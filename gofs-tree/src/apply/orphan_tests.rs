use super::super::fixture::{Tree, name};
use crate::{
    AttrChange, ChunkId, ChunkIndex, EditOp, FsError, Ino, Orphan, ROOT_INO, SessionId, Store, Timestamp,
    Usage,
};

fn release(ino: Ino, session: u64) -> EditOp {
    EditOp::ReleaseOrphan { ino, session: SessionId(session) }
}

/// A file with two chunks, 70,000 bytes and an attribute.
fn large_file(tree: &mut Tree) -> Ino {
    let file = tree.file(ROOT_INO, "big");
    for index in [0, 1] {
        let chunk = ChunkId(100 + u64::from(index));
        tree.run(EditOp::AddChunk { ino: file, index: ChunkIndex(index), chunk }).unwrap();
    }
    let blocks_4k = vec![(ChunkIndex(0), 16), (ChunkIndex(1), 2)];
    let mtime = Timestamp::new(1, 1);
    tree.run(EditOp::Extend { ino: file, size: 70_000, mtime, blocks_4k, clear_inline: false }).unwrap();
    tree.set_xattr(file, "user.a", "b").unwrap();
    file
}

#[test]
fn an_open_file_lives_until_its_last_holder_closes() {
    let mut tree = Tree::new();
    let file = large_file(&mut tree);
    let outcome = tree.unlink(ROOT_INO, "big", &[9, 4, 9]).unwrap();
    assert_eq!(outcome.removed, Some(file));
    assert_eq!(tree.store.orphan(file), Ok(Some(Orphan { holders: vec![SessionId(4), SessionId(9)] })));
    assert_eq!((tree.inode(file).nlink, tree.inode(file).ctime), (0, tree.now()));
    assert_eq!(tree.usage(), Usage { bytes: 70_000, inodes: 2 }, "open unlinked files count");
    assert!(tree.store.removed_chunks().is_empty());

    tree.set_attr(file, AttrChange { size: Some(65_000), ..AttrChange::default() }).unwrap();
    assert_eq!(tree.run(release(file, 4)).unwrap().removed, None);
    assert_eq!(tree.run(release(file, 4)), Err(FsError::NotFound), "it holds it no longer");
    assert_eq!(tree.run(release(file, 9)).unwrap().removed, Some(file));
    assert!(!tree.exists(file));
    assert_eq!(tree.store.removed_chunks(), [ChunkId(101), ChunkId(100)]);
    assert_eq!(tree.store.all_xattrs().count(), 0);
    assert_eq!(tree.usage(), Usage { bytes: 0, inodes: 1 });
    assert_eq!(tree.run(release(file, 9)), Err(FsError::NotFound));
}

#[test]
fn a_file_that_nobody_holds_goes_with_its_name() {
    let mut tree = Tree::new();
    let file = large_file(&mut tree);
    tree.unlink(ROOT_INO, "big", &[]).unwrap();
    assert!(!tree.exists(file));
    assert_eq!(tree.store.removed_chunks(), [ChunkId(100), ChunkId(101)]);
    assert_eq!(tree.usage(), Usage { bytes: 0, inodes: 1 });
}

#[test]
fn holders_do_not_matter_while_names_are_left() {
    let mut tree = Tree::new();
    let file = large_file(&mut tree);
    tree.run(EditOp::Link { ino: file, parent: ROOT_INO, name: name("b") }).unwrap();
    assert_eq!(tree.unlink(ROOT_INO, "big", &[1]).unwrap().removed, None);
    assert_eq!(tree.store.orphan(file), Ok(None));
}

#[test]
fn a_directory_can_be_an_orphan() {
    let mut tree = Tree::new();
    let dir = tree.dir(ROOT_INO, "d");
    tree.run(EditOp::Rmdir { parent: ROOT_INO, name: name("d"), holders: vec![SessionId(1)] }).unwrap();
    assert!(tree.exists(dir));
    tree.run(release(dir, 1)).unwrap();
    assert!(!tree.exists(dir));
}

#[test]
fn an_inode_with_a_name_is_no_orphan() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    assert_eq!(tree.run(release(file, 1)), Err(FsError::NotFound));
}

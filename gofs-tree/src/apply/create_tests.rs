use super::super::fixture::{LIMITS, Tree, name};
use crate::acl::tests::blob;
use crate::{
    EditOp, FileType, FsError, Ino, LINK_MAX, Mode, NamespaceLimits, NewNode, Outcome, ROOT_INO, Usage,
};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn symlink(target: &str) -> NewNode {
    NewNode::Symlink { target: target.to_string().into() }
}

#[test]
fn each_type_is_made_as_asked() {
    let mut tree = Tree::new();
    let nodes = [
        (NewNode::File, FileType::File, 1, 0, 0),
        (NewNode::Directory, FileType::Directory, 2, 0, 0),
        (symlink("some/where"), FileType::Symlink, 1, 10, 0),
        (NewNode::Fifo, FileType::Fifo, 1, 0, 0),
        (NewNode::Socket, FileType::Socket, 1, 0, 0),
        (NewNode::CharDevice { rdev: 5 }, FileType::CharDevice, 1, 0, 5),
        (NewNode::BlockDevice { rdev: 6 }, FileType::BlockDevice, 1, 0, 6),
    ];
    for (at, (node, file_type, nlink, size, rdev)) in nodes.into_iter().enumerate() {
        let ino = tree.make(ROOT_INO, &format!("n{at}"), node).unwrap();
        let (inode, now) = (tree.inode(ino), tree.now());
        assert_eq!((inode.file_type, inode.nlink, inode.size, inode.rdev), (file_type, nlink, size, rdev));
        assert_eq!((inode.uid, inode.gid), (10, 20));
        assert_eq!([inode.atime, inode.mtime, inode.ctime, inode.btime], [now; 4]);
        let root = tree.inode(ROOT_INO);
        assert_eq!((root.mtime, root.ctime), (now, now));
    }
    assert_eq!(tree.inode(ROOT_INO).nlink, 3);
    assert_eq!(tree.usage(), Usage { bytes: 0, inodes: 8 });
}

#[test]
fn umask_takes_bits_away_and_symlinks_have_all() {
    let mut tree = Tree::new();
    let file = tree.make_with(ROOT_INO, "f", NewNode::File, 0o6777, 0o027).unwrap();
    assert_eq!(tree.inode(file).mode, Mode::new(0o6750));
    let dir = tree.make_with(ROOT_INO, "d", NewNode::Directory, 0o7777, 0o022).unwrap();
    assert_eq!(tree.inode(dir).mode, Mode::new(0o1755), "mkdir keeps only the sticky bit");
    let link = tree.make_with(ROOT_INO, "l", symlink("x"), 0o600, 0o077).unwrap();
    assert_eq!(tree.inode(link).mode, Mode::new(0o777));
}

#[test]
fn a_setgid_directory_gives_its_group_and_to_directories_its_bit() {
    let mut tree = Tree::new();
    let dir = tree.dir(ROOT_INO, "d");
    tree.change_inode(dir, |d| {
        d.mode = Mode::new(0o2775);
        d.gid = 77;
    });
    let file = tree.file(dir, "f");
    let sub = tree.dir(dir, "s");
    let link = tree.make(dir, "l", symlink("x")).unwrap();
    assert_eq!((tree.inode(file).gid, tree.inode(file).mode), (77, Mode::new(0o755)));
    assert_eq!((tree.inode(sub).gid, tree.inode(sub).mode), (77, Mode::new(0o2755)));
    assert_eq!(tree.inode(link).gid, 77);
}

#[test]
fn names_that_exist_and_parents_that_cannot_are_refused() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    assert_eq!(tree.make(ROOT_INO, "f", NewNode::Directory), Err(FsError::Exists));
    assert_eq!(tree.make(ROOT_INO, "f", symlink("")), Err(FsError::Exists), "before the target is looked at");
    assert_eq!(tree.make(file, "x", NewNode::File), Err(FsError::NotDirectory));
    assert_eq!(tree.make(Ino(999), "x", NewNode::File), Err(FsError::Stale));
}

#[test]
fn an_inode_number_is_never_given_twice() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    for ino in [file, ROOT_INO, Ino(0)] {
        let (mode, umask) = (Mode::new(0o644), Mode::new(0));
        let op = EditOp::Create {
            parent: ROOT_INO,
            name: name("g"),
            ino,
            node: NewNode::File,
            mode,
            umask,
            uid: 0,
            gid: 0,
        };
        assert_eq!(tree.run(op), Err(FsError::Invalid));
    }
}

#[test]
fn symlink_targets_are_checked() {
    let mut tree = Tree::new();
    assert_eq!(tree.make(ROOT_INO, "a", symlink("")), Err(FsError::NotFound));
    assert_eq!(tree.make(ROOT_INO, "a", symlink(&"x".repeat(4096))), Err(FsError::NameTooLong));
    assert_eq!(tree.make(ROOT_INO, "a", symlink("a\0b")), Err(FsError::Invalid));
    tree.make(ROOT_INO, "a", symlink(&"x".repeat(4095))).unwrap();
}

#[test]
fn the_inode_quota_is_exact() {
    let mut tree = Tree::with_limits(NamespaceLimits { quota_inodes: 3, ..LIMITS });
    tree.file(ROOT_INO, "a");
    tree.file(ROOT_INO, "b");
    assert_eq!(tree.make(ROOT_INO, "c", NewNode::File), Err(FsError::QuotaExceeded));
    tree.unlink(ROOT_INO, "a", &[]).unwrap();
    tree.file(ROOT_INO, "c");
}

#[test]
fn subdirectories_end_at_link_max() {
    let mut tree = Tree::new();
    tree.change_inode(ROOT_INO, |root| root.nlink = LINK_MAX);
    let new = |node, ino| EditOp::Create {
        parent: ROOT_INO,
        name: name("d"),
        ino: Ino(ino),
        node,
        mode: Mode::new(0o755),
        umask: Mode::new(0),
        uid: 0,
        gid: 0,
    };
    assert_eq!(tree.run_unchecked(new(NewNode::Directory, 50)), Err(FsError::TooManyLinks));
    let outcome = tree.run_unchecked(new(NewNode::File, 51));
    assert_eq!(outcome, Ok(Outcome { ino: Ino(51), removed: None }));
}

/// u::rwx u:7:rwx g::r-x m::rwx o::---
fn default_acl() -> bytes::Bytes {
    let no_id = u32::MAX;
    blob(&[(1, 7, no_id), (2, 7, 7), (4, 5, no_id), (0x10, 7, no_id), (0x20, 0, no_id)])
}

#[test]
fn a_default_acl_is_inherited_and_umask_ignored() {
    let no_id = u32::MAX;
    let mut tree = Tree::new();
    let dir = tree.dir(ROOT_INO, "d");
    tree.set_xattr(dir, DEFAULT, default_acl()).unwrap();
    let file = tree.make_with(dir, "f", NewNode::File, 0o664, 0o077).unwrap();
    let inode = tree.inode(file);
    assert_eq!((inode.mode, inode.has_xattrs), (Mode::new(0o660), true));
    let masked = blob(&[(1, 6, no_id), (2, 7, 7), (4, 5, no_id), (0x10, 6, no_id), (0x20, 0, no_id)]);
    assert_eq!(tree.xattr(file, ACCESS), Some(masked));
    assert_eq!(tree.xattr(file, DEFAULT), None);

    let sub = tree.make_with(dir, "s", NewNode::Directory, 0o755, 0o077).unwrap();
    assert_eq!(tree.inode(sub).mode, Mode::new(0o750));
    assert_eq!(tree.xattr(sub, DEFAULT), Some(default_acl()));
    assert!(tree.xattr(sub, ACCESS).is_some());

    let link = tree.make(dir, "l", symlink("x")).unwrap();
    assert!(!tree.inode(link).has_xattrs);
}

#[test]
fn a_default_acl_of_three_entries_becomes_a_mode() {
    let no_id = u32::MAX;
    let mut tree = Tree::new();
    let dir = tree.dir(ROOT_INO, "d");
    tree.set_xattr(dir, DEFAULT, blob(&[(1, 7, no_id), (4, 5, no_id), (0x20, 1, no_id)])).unwrap();
    let file = tree.make_with(dir, "f", NewNode::File, 0o666, 0o077).unwrap();
    assert_eq!(tree.inode(file).mode, Mode::new(0o640));
    assert!(!tree.inode(file).has_xattrs);
    let sub = tree.make_with(dir, "s", NewNode::Directory, 0o777, 0o077).unwrap();
    assert_eq!(tree.inode(sub).mode, Mode::new(0o751));
    assert_eq!((tree.xattr(sub, ACCESS), tree.xattr(sub, DEFAULT).is_some()), (None, true));
}

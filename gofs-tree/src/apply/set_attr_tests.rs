use bytes::Bytes;

use super::super::fixture::{LIMITS, Tree};
use crate::acl::tests::{EXTENDED, blob};
use crate::{
    AttrChange, FILE_SIZE_MAX, FsError, Ino, Mode, NamespaceLimits, NewNode, ROOT_INO, TimeChange, Timestamp,
    Usage,
};

fn size(bytes: u64) -> AttrChange {
    AttrChange { size: Some(bytes), ..AttrChange::default() }
}

fn mode(bits: u32) -> AttrChange {
    AttrChange { mode: Some(Mode::new(bits)), ..AttrChange::default() }
}

fn owner(uid: Option<u32>, gid: Option<u32>) -> AttrChange {
    AttrChange { uid, gid, ..AttrChange::default() }
}

#[test]
fn chmod_sets_all_twelve_bits_and_ctime_only() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    let before = tree.inode(file);
    tree.set_attr(file, mode(0o7123)).unwrap();
    let after = tree.inode(file);
    assert_eq!((after.mode, after.ctime), (Mode::new(0o7123), tree.now()));
    assert_eq!((after.mtime, after.atime, after.btime), (before.mtime, before.atime, before.btime));
}

#[test]
fn chmod_of_a_symlink_is_not_supported() {
    let mut tree = Tree::new();
    let link = tree.make(ROOT_INO, "l", NewNode::Symlink { target: "x".into() }).unwrap();
    assert_eq!(tree.set_attr(link, mode(0o600)), Err(FsError::NotSupported));
    tree.set_attr(link, owner(Some(5), None)).unwrap();
    assert_eq!(tree.inode(link).uid, 5);
}

#[test]
fn chmod_changes_the_access_acl() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    tree.set_xattr(file, "system.posix_acl_access", blob(&EXTENDED)).unwrap();
    tree.set_attr(file, mode(0o4705)).unwrap();
    let no_id = u32::MAX;
    let changed = blob(&[(1, 7, no_id), (2, 7, 7), (4, 4, no_id), (0x10, 0, no_id), (0x20, 5, no_id)]);
    assert_eq!(tree.xattr(file, "system.posix_acl_access"), Some(changed));
    assert_eq!(tree.inode(file).mode, Mode::new(0o4705));
}

#[test]
fn chown_clears_suid_and_the_sgid_of_programs() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    for (before, after) in [(0o6755, 0o755), (0o6745, 0o2745), (0o4644, 0o644), (0o1777, 0o1777)] {
        tree.set_attr(file, mode(before)).unwrap();
        tree.set_attr(file, owner(None, Some(9))).unwrap();
        assert_eq!(tree.inode(file).mode, Mode::new(after), "{before:o}");
    }
    let dir = tree.dir(ROOT_INO, "d");
    tree.set_attr(dir, mode(0o6777)).unwrap();
    tree.set_attr(dir, owner(Some(1), Some(2))).unwrap();
    let inode = tree.inode(dir);
    assert_eq!((inode.mode, inode.uid, inode.gid), (Mode::new(0o6777), 1, 2));
}

#[test]
fn a_write_without_privilege_clears_what_a_chown_clears() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    tree.set_attr(file, mode(0o6777)).unwrap();
    tree.set_attr(file, AttrChange { kill_suid_sgid: true, ..AttrChange::default() }).unwrap();
    assert_eq!(tree.inode(file).mode, Mode::new(0o777));
}

#[test]
fn capabilities_go_with_owner_and_content() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    for change in
        [owner(Some(4), None), size(3), AttrChange { kill_suid_sgid: true, ..AttrChange::default() }]
    {
        tree.set_xattr(file, "security.capability", "cap").unwrap();
        tree.set_attr(file, mode(0o755)).unwrap();
        assert!(tree.xattr(file, "security.capability").is_some(), "chmod keeps it");
        tree.set_attr(file, change).unwrap();
        assert_eq!(tree.xattr(file, "security.capability"), None);
    }
    tree.set_xattr(file, "user.other", "stays").unwrap();
    tree.set_attr(file, size(4)).unwrap();
    assert!(tree.inode(file).has_xattrs);
}

#[test]
fn times_are_set_as_asked() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    let old = Timestamp::new(-100, 999_999_999);
    let atime = Some(TimeChange::To(old));
    tree.set_attr(file, AttrChange { atime, mtime: Some(TimeChange::Now), ..AttrChange::default() }).unwrap();
    let inode = tree.inode(file);
    assert_eq!((inode.atime, inode.mtime, inode.ctime), (old, tree.now(), tree.now()));
}

#[test]
fn a_new_size_stamps_mtime_unless_another_is_given() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    tree.set_attr(file, size(10)).unwrap();
    assert_eq!((tree.inode(file).mtime, tree.inode(file).ctime), (tree.now(), tree.now()));
    let given = Timestamp::new(5, 6);
    tree.set_attr(file, AttrChange { mtime: Some(TimeChange::To(given)), ..size(20) }).unwrap();
    assert_eq!((tree.inode(file).mtime, tree.inode(file).ctime), (given, tree.now()));
}

#[test]
fn only_regular_files_have_a_size_to_set() {
    let mut tree = Tree::new();
    let fifo = tree.make(ROOT_INO, "p", NewNode::Fifo).unwrap();
    assert_eq!(tree.set_attr(ROOT_INO, size(0)), Err(FsError::IsDirectory));
    assert_eq!(tree.set_attr(fifo, size(0)), Err(FsError::Invalid));
    assert_eq!(tree.set_attr(Ino(99), size(0)), Err(FsError::Stale));
}

#[test]
fn sizes_are_bounded_by_chunks_and_offsets() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    let most = (64 << 10) * (1 << 32);
    assert_eq!(tree.set_attr(file, size(most + 1)), Err(FsError::FileTooLarge));
    assert_eq!(tree.set_attr(file, size(FILE_SIZE_MAX + 1)), Err(FsError::FileTooLarge));
    assert_eq!(tree.set_attr(file, size(u64::MAX)), Err(FsError::FileTooLarge));
    tree.set_attr(file, size(most)).unwrap();
    tree.set_attr(file, size(most - 1)).unwrap();
}

#[test]
fn the_byte_quota_is_exact_and_shrinking_always_works() {
    let mut tree = Tree::with_limits(NamespaceLimits { quota_bytes: 100, ..LIMITS });
    let (a, b) = (tree.file(ROOT_INO, "a"), tree.file(ROOT_INO, "b"));
    tree.set_attr(a, size(60)).unwrap();
    assert_eq!(tree.set_attr(b, size(41)), Err(FsError::QuotaExceeded));
    tree.set_attr(b, size(40)).unwrap();
    tree.store.set_limits(NamespaceLimits { quota_bytes: 10, ..LIMITS });
    tree.set_attr(a, size(50)).unwrap();
    assert_eq!(tree.set_attr(a, size(51)), Err(FsError::QuotaExceeded));
    assert_eq!(tree.usage(), Usage { bytes: 90, inodes: 3 });
}

#[test]
fn truncation_cuts_inline_bytes_and_growth_reads_as_zeros() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    let data = Bytes::from_static(b"hello world");
    let mtime = Timestamp::new(1, 1);
    tree.run(crate::EditOp::WriteInline { ino: file, data, size: 11, mtime }).unwrap();
    tree.set_attr(file, size(5)).unwrap();
    tree.set_attr(file, size(1 << 30)).unwrap();
    let inode = tree.inode(file);
    assert_eq!((&inode.inline[..], inode.size), (&b"hello"[..], 1 << 30), "also past inline_max");
}

#[test]
fn an_empty_change_stamps_ctime() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    tree.set_attr(file, AttrChange::default()).unwrap();
    assert_eq!(tree.inode(file).ctime, tree.now());
}

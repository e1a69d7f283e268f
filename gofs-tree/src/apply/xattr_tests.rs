use bytes::Bytes;

use super::super::fixture::{Tree, xattr_name};
use crate::acl::tests::{EXTENDED, blob};
use crate::{
    EditOp, FsError, Ino, Mode, NewNode, ROOT_INO, Store, XATTR_TOTAL_MAX, XATTR_VALUE_MAX, XattrSetMode,
};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const NO_ID: u32 = u32::MAX;

fn remove(ino: Ino, name: &str) -> EditOp {
    EditOp::RemoveXattr { ino, name: xattr_name(name) }
}

#[test]
fn attributes_are_set_replaced_and_removed() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    let set = |name: &str, value: &'static str, mode| EditOp::SetXattr {
        ino: file,
        name: xattr_name(name),
        value: Bytes::from_static(value.as_bytes()),
        mode,
    };
    assert_eq!(tree.run(set("user.a", "1", XattrSetMode::Replace)), Err(FsError::NoAttribute));
    tree.run(set("user.a", "1", XattrSetMode::Create)).unwrap();
    assert!(tree.inode(file).has_xattrs);
    assert_eq!(tree.inode(file).ctime, tree.now());
    assert_eq!(tree.run(set("user.a", "2", XattrSetMode::Create)), Err(FsError::Exists));
    tree.run(set("user.a", "2", XattrSetMode::Replace)).unwrap();
    tree.run(set("user.b", "", XattrSetMode::Either)).unwrap();
    assert_eq!(tree.xattr(file, "user.a").unwrap(), "2");
    assert_eq!(tree.xattr(file, "user.b").unwrap(), "");
    tree.run(remove(file, "user.a")).unwrap();
    assert!(tree.inode(file).has_xattrs);
    tree.run(remove(file, "user.b")).unwrap();
    assert_eq!((tree.inode(file).has_xattrs, tree.inode(file).ctime), (false, tree.now()));
    assert_eq!(tree.run(remove(file, "user.b")), Err(FsError::NoAttribute));
}

#[test]
fn each_namespace_has_its_rule() {
    let mut tree = Tree::new();
    let fifo = tree.make(ROOT_INO, "p", NewNode::Fifo).unwrap();
    let link = tree.make(ROOT_INO, "l", NewNode::Symlink { target: "x".into() }).unwrap();
    for ino in [fifo, link] {
        assert_eq!(tree.set_xattr(ino, "user.a", "1"), Err(FsError::NotPermitted));
        assert_eq!(tree.run(remove(ino, "user.a")), Err(FsError::NotPermitted));
        tree.set_xattr(ino, "trusted.a", "1").unwrap();
        tree.set_xattr(ino, "security.a", "1").unwrap();
    }
    tree.set_xattr(ROOT_INO, "user.a", "1").unwrap();
    for refused in ["system.other", "nonsense", "users.a", "user", "system.posix_acl_accessx"] {
        assert_eq!(tree.set_xattr(ROOT_INO, refused, "1"), Err(FsError::NotSupported), "{refused}");
        assert_eq!(tree.run(remove(ROOT_INO, refused)), Err(FsError::NotSupported), "{refused}");
    }
    for empty in ["user.", "trusted.", "security."] {
        assert_eq!(tree.set_xattr(ROOT_INO, empty, "1"), Err(FsError::Invalid));
    }
    assert_eq!(tree.set_xattr(Ino(99), "user.a", "1"), Err(FsError::Stale));
}

#[test]
fn values_lists_and_totals_are_bounded() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    let value = vec![7; XATTR_VALUE_MAX];
    assert_eq!(tree.set_xattr(file, "user.a", vec![7; XATTR_VALUE_MAX + 1]), Err(FsError::TooBig));
    let fit = XATTR_TOTAL_MAX / (XATTR_VALUE_MAX + 8);
    for at in 0..fit {
        tree.set_xattr(file, &format!("user.{at:03}"), value.clone()).unwrap();
    }
    assert_eq!(tree.set_xattr(file, "user.last", value.clone()), Err(FsError::NoSpace));
    tree.set_xattr(file, "user.000", "").unwrap();
    tree.set_xattr(file, "user.last", value).unwrap();

    let other = tree.file(ROOT_INO, "g");
    for at in 0..256 {
        tree.store.set_xattr(other, &xattr_name(&format!("user.{at:0>250}")), Bytes::new());
    }
    tree.change_inode(other, |inode| inode.has_xattrs = true);
    assert_eq!(tree.set_xattr(other, "user.b", "1"), Err(FsError::NoSpace), "listxattr could not tell");
    tree.run(remove(other, &format!("user.{:0>250}", 0))).unwrap();
    tree.set_xattr(other, "user.b", "1").unwrap();
}

#[test]
fn an_access_acl_shows_in_the_mode() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    tree.change_inode(file, |inode| inode.mode = Mode::new(0o4777));
    tree.set_xattr(file, ACCESS, blob(&EXTENDED)).unwrap();
    assert_eq!(tree.inode(file).mode, Mode::new(0o4660));
    assert_eq!(tree.xattr(file, ACCESS), Some(blob(&EXTENDED)));
    tree.run(remove(file, ACCESS)).unwrap();
    assert_eq!(tree.inode(file).mode, Mode::new(0o4660), "the mode keeps what the mask allowed");
    assert!(!tree.inode(file).has_xattrs);
}

#[test]
fn an_access_acl_that_a_mode_can_say_is_only_a_mode() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    tree.set_xattr(file, ACCESS, blob(&EXTENDED)).unwrap();
    tree.set_xattr(file, ACCESS, blob(&[(1, 7, NO_ID), (4, 1, NO_ID), (0x20, 2, NO_ID)])).unwrap();
    let inode = tree.inode(file);
    assert_eq!((inode.mode, inode.has_xattrs, inode.ctime), (Mode::new(0o712), false, tree.now()));
}

#[test]
fn an_empty_acl_removes_and_removing_none_is_no_error() {
    let mut tree = Tree::new();
    let dir = tree.dir(ROOT_INO, "d");
    for name in [ACCESS, DEFAULT] {
        tree.set_xattr(dir, name, blob(&EXTENDED)).unwrap();
        tree.set_xattr(dir, name, blob(&[])).unwrap();
        assert_eq!(tree.xattr(dir, name), None);
        let before = tree.store.clone();
        tree.run(remove(dir, name)).unwrap();
        assert_eq!(tree.store, before);
    }
}

#[test]
fn acls_are_refused_where_they_mean_nothing() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    let link = tree.make(ROOT_INO, "l", NewNode::Symlink { target: "x".into() }).unwrap();
    assert_eq!(tree.set_xattr(file, DEFAULT, blob(&EXTENDED)), Err(FsError::AccessDenied));
    tree.run(remove(file, DEFAULT)).unwrap();
    for name in [ACCESS, DEFAULT] {
        assert_eq!(tree.set_xattr(link, name, blob(&EXTENDED)), Err(FsError::NotSupported));
        assert_eq!(tree.set_xattr(ROOT_INO, name, "not an acl"), Err(FsError::NotSupported));
        assert_eq!(tree.set_xattr(ROOT_INO, name, blob(&EXTENDED[1..])), Err(FsError::Invalid));
    }
}

#[test]
fn a_default_acl_of_three_entries_is_kept() {
    let mut tree = Tree::new();
    let minimal = blob(&[(1, 7, NO_ID), (4, 1, NO_ID), (0x20, 2, NO_ID)]);
    let mode = tree.inode(ROOT_INO).mode;
    tree.set_xattr(ROOT_INO, DEFAULT, minimal.clone()).unwrap();
    assert_eq!((tree.xattr(ROOT_INO, DEFAULT), tree.inode(ROOT_INO).mode), (Some(minimal), mode));
}

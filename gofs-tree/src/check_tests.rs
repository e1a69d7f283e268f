//! The checker must be able to fail: each kind of damage is done, and found.

use bytes::Bytes;

use super::*;
use crate::{
    ChunkId, ChunkIndex, ChunkRef, ChunkSize, DirEntry, Edit, EditOp, Mode, Name, NamespaceLimits, NewNode,
    Orphan, SessionId, Timestamp, XattrName, apply,
};

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn sample() -> MemoryStore {
    let limits =
        NamespaceLimits { quota_bytes: 0, quota_inodes: 0, inline_max: 4096, chunk_size: ChunkSize::DEFAULT };
    let mut store = MemoryStore::with_root(limits, Mode::new(0o755), 0, 0, Timestamp::default());
    let nodes = [
        (1, "dir", 2, NewNode::Directory),
        (2, "sub", 3, NewNode::Directory),
        (1, "file", 4, NewNode::File),
        (1, "link", 5, NewNode::Symlink { target: "x".into() }),
        (1, "gone", 6, NewNode::File),
    ];
    let (mode, umask) = (Mode::new(0o755), Mode::new(0));
    let create = nodes.map(|(parent, at, ino, node)| EditOp::Create {
        parent: Ino(parent),
        name: name(at),
        ino: Ino(ino),
        node,
        mode,
        umask,
        uid: 0,
        gid: 0,
    });
    let more = [
        EditOp::AddChunk { ino: Ino(4), index: ChunkIndex(0), chunk: ChunkId(1) },
        EditOp::Unlink { parent: ROOT_INO, name: name("gone"), holders: vec![SessionId(1)] },
    ];
    for op in create.into_iter().chain(more) {
        apply(&mut store, &Edit { time: Timestamp::default(), op }).unwrap();
    }
    assert_eq!(check(&store), Vec::<String>::new());
    store
}

/// The problems after that damage.
fn damaged(damage: impl FnOnce(&mut MemoryStore)) -> String {
    let mut store = sample();
    damage(&mut store);
    check(&store).join("; ")
}

fn change(store: &mut MemoryStore, ino: u64, change: impl FnOnce(&mut Inode)) {
    let mut inode = store.inode(Ino(ino)).unwrap().unwrap();
    change(&mut inode);
    store.set_inode(Ino(ino), inode);
}

#[test]
fn wrong_links_are_found() {
    assert_eq!(damaged(|s| change(s, 2, |i| i.nlink = 2)), "i2: nlink is 2, its names say 3");
    assert_eq!(damaged(|s| change(s, 4, |i| i.nlink = 2)), "i4: nlink is 2, its names say 1");
    assert!(damaged(|s| change(s, 2, |i| i.parent = Ino(3))).contains("i2: does not hang from the root"));
    assert!(damaged(|s| change(s, 4, |i| i.parent = Ino(1))).contains("has a parent but is no directory"));
    assert!(damaged(|s| change(s, 1, |i| i.size = 1)).contains("i1: size 1, its names have"));
}

#[test]
fn dangling_and_misplaced_entries_are_found() {
    let entry = DirEntry { ino: Ino(77), file_type: FileType::File };
    assert!(
        damaged(|s| s.set_entry(ROOT_INO, &name("x"), entry))
            .contains("i1/x: names i77, which does not exist")
    );
    assert!(damaged(|s| s.set_entry(Ino(4), &name("x"), entry)).contains("i4/x: lies in what is not"));
    let dir = DirEntry { ino: Ino(3), file_type: FileType::File };
    let problems = damaged(|s| s.set_entry(ROOT_INO, &name("x"), dir));
    assert!(problems.contains("its type is not that of i3"), "{problems}");
    assert!(problems.contains("a directory with 2 names"), "{problems}");
    assert!(damaged(|s| s.remove_entry(ROOT_INO, &name("file"))).contains("i4: has 0 names"));
}

#[test]
fn a_missing_root_is_found() {
    assert!(damaged(|s| s.remove_inode(ROOT_INO)).contains("there is no root"));
    assert!(damaged(|s| change(s, 1, |i| i.parent = Ino(2))).contains("its own parent"));
}

#[test]
fn bad_orphans_are_found() {
    assert!(damaged(|s| s.remove_orphan(Ino(6))).contains("i6: has 0 names, and an orphan record: false"));
    let orphan = Orphan { holders: vec![SessionId(1)] };
    assert!(damaged(|s| s.set_orphan(Ino(4), orphan.clone())).contains("i4: has 1 names"));
    assert!(
        damaged(|s| s.set_orphan(Ino(99), orphan.clone())).contains("i99: an orphan that does not exist")
    );
    assert!(damaged(|s| s.set_orphan(Ino(6), Orphan::default())).contains("holders are empty"));
}

#[test]
fn bad_contents_are_found() {
    let chunk = ChunkRef { chunk: ChunkId(1), blocks_4k: 0 };
    let at = |s: &mut MemoryStore, ino, index, chunk| s.set_chunk(Ino(ino), ChunkIndex(index), chunk);
    assert!(damaged(|s| at(s, 4, 1, chunk)).contains("c1 at 1 is used twice"));
    assert!(damaged(|s| at(s, 5, 0, chunk)).contains("i5: has c1 but is no regular file"));
    let full = ChunkRef { chunk: ChunkId(1), blocks_4k: 99_999 };
    let problems = damaged(|s| at(s, 4, 0, full));
    assert!(problems.contains("more blocks than a chunk") && problems.contains("i4: 0 blocks"), "{problems}");
    assert!(damaged(|s| change(s, 4, |i| i.chunks = 7)).contains("i4: 7 chunks, there are"));
    assert!(
        damaged(|s| change(s, 4, |i| i.inline = Bytes::from_static(b"x")))
            .contains("i4: 1 inline bytes, size 0")
    );
    assert!(damaged(|s| change(s, 5, |i| i.size = 9)).contains("i5: 1 inline bytes, size 9"));
    assert!(
        damaged(|s| change(s, 4, |i| i.size = u64::MAX))
            .contains("i4: size 18446744073709551615 is too large")
    );
}

#[test]
fn bad_attributes_are_found() {
    let set = |s: &mut MemoryStore, ino, name: &[u8], value: &'static [u8]| {
        s.set_xattr(Ino(ino), &XattrName::new(name).unwrap(), Bytes::from_static(value));
    };
    assert_eq!(damaged(|s| set(s, 4, b"user.a", b"")), "i4: has_xattrs is false");
    assert_eq!(damaged(|s| change(s, 4, |i| i.has_xattrs = true)), "i4: has_xattrs is true");
    assert_eq!(damaged(|s| set(s, 99, b"user.a", b"")), "i99: has attributes but does not exist");
    assert!(damaged(|s| set(s, 4, acl::ACCESS, b"junk")).contains("cannot be read"));
    let extended = acl::tests::blob(&acl::tests::EXTENDED);
    let name = XattrName::new(acl::ACCESS).unwrap();
    assert!(damaged(|s| s.set_xattr(Ino(4), &name, extended)).contains("mode and access ACL disagree"));
}

#[test]
fn wrong_usage_is_found() {
    assert!(damaged(|s| s.set_usage(Usage { bytes: 1, inodes: 6 })).contains("usage is"));
}

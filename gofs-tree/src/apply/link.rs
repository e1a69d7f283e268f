//! link.

use super::{directory, inode};
use crate::{DirEntry, FsError, Ino, LINK_MAX, Name, Outcome, Store, Timestamp};

pub(super) fn link(
    store: &mut impl Store,
    time: Timestamp,
    ino: Ino,
    parent_ino: Ino,
    name: &Name,
) -> Result<Outcome, FsError> {
    let mut parent = directory(store, parent_ino)?;
    if store.entry(parent_ino, name)?.is_some() {
        return Err(FsError::Exists);
    }
    let mut inode = inode(store, ino)?;
    if inode.is_dir() {
        return Err(FsError::NotPermitted);
    }
    // An orphan has no way back to a name.
    if inode.nlink == 0 {
        return Err(FsError::NotFound);
    }
    if inode.nlink >= LINK_MAX {
        return Err(FsError::TooManyLinks);
    }

    store.set_entry(parent_ino, name, DirEntry { ino, file_type: inode.file_type });
    inode.nlink += 1;
    inode.ctime = time;
    store.set_inode(ino, inode);
    parent.gain(name, false);
    parent.modified(time);
    store.set_inode(parent_ino, parent);
    Ok(Outcome { ino, removed: None })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Tree, name};
    use crate::{EditOp, FsError, Ino, LINK_MAX, NewNode, ROOT_INO, SessionId};

    fn link(ino: Ino, parent: Ino, to: &str) -> EditOp {
        EditOp::Link { ino, parent, name: name(to) }
    }

    #[test]
    fn a_link_is_one_more_name_of_the_same_inode() {
        let mut tree = Tree::new();
        let file = tree.file(ROOT_INO, "a");
        let dir = tree.dir(ROOT_INO, "d");
        let before = tree.inode(file);
        assert_eq!(tree.run(link(file, dir, "b")).unwrap().ino, file);
        let (after, now) = (tree.inode(file), tree.now());
        assert_eq!((after.nlink, after.ctime, after.mtime), (2, now, before.mtime));
        let dir = tree.inode(dir);
        assert_eq!((dir.mtime, dir.ctime, dir.size, dir.nlink), (now, now, 1, 2));
        assert_eq!(tree.lookup(ROOT_INO, "d/b"), Some(file));
    }

    #[test]
    fn symlinks_and_fifos_can_be_linked() {
        let mut tree = Tree::new();
        for (from, node) in [("s", NewNode::Symlink { target: "x".into() }), ("f", NewNode::Fifo)] {
            let ino = tree.make(ROOT_INO, from, node).unwrap();
            tree.run(link(ino, ROOT_INO, &format!("{from}2"))).unwrap();
        }
    }

    #[test]
    fn link_refuses_in_linux_order() {
        let mut tree = Tree::new();
        let file = tree.file(ROOT_INO, "a");
        let dir = tree.dir(ROOT_INO, "d");
        assert_eq!(tree.run(link(dir, ROOT_INO, "a")), Err(FsError::Exists), "before the type is looked at");
        assert_eq!(tree.run(link(dir, ROOT_INO, "b")), Err(FsError::NotPermitted));
        assert_eq!(tree.run(link(file, file, "b")), Err(FsError::NotDirectory));
        assert_eq!(tree.run(link(Ino(999), ROOT_INO, "b")), Err(FsError::Stale));
        assert_eq!(tree.run(link(file, Ino(999), "b")), Err(FsError::Stale));
    }

    #[test]
    fn an_unlinked_open_file_gets_no_name_again() {
        let mut tree = Tree::new();
        let file = tree.file(ROOT_INO, "a");
        tree.run(EditOp::Unlink { parent: ROOT_INO, name: name("a"), holders: vec![SessionId(1)] }).unwrap();
        assert_eq!(tree.run(link(file, ROOT_INO, "b")), Err(FsError::NotFound));
    }

    #[test]
    fn links_end_at_link_max() {
        let mut tree = Tree::new();
        let file = tree.file(ROOT_INO, "a");
        tree.change_inode(file, |inode| inode.nlink = LINK_MAX);
        assert_eq!(tree.run_unchecked(link(file, ROOT_INO, "b")), Err(FsError::TooManyLinks));
        tree.change_inode(file, |inode| inode.nlink = LINK_MAX - 1);
        tree.run_unchecked(link(file, ROOT_INO, "b")).unwrap();
    }
}

//! rmdir.

use super::orphan::Unnaming;
use super::{directory, inode_of};
use crate::{FsError, Ino, Name, Outcome, SessionId, Store, Timestamp};

pub(super) fn rmdir(
    store: &mut impl Store,
    time: Timestamp,
    parent_ino: Ino,
    name: &Name,
    holders: &[SessionId],
) -> Result<Outcome, FsError> {
    let mut parent = directory(store, parent_ino)?;
    let entry = store.entry(parent_ino, name)?.ok_or(FsError::NotFound)?;
    let inode = inode_of(store, entry)?;
    if !inode.is_dir() {
        return Err(FsError::NotDirectory);
    }
    if !store.is_empty_dir(entry.ino)? {
        return Err(FsError::NotEmpty);
    }
    let unnaming = Unnaming::plan(store, time, entry.ino, inode, holders)?;

    store.remove_entry(parent_ino, name);
    parent.lose(name, true);
    parent.modified(time);
    store.set_inode(parent_ino, parent);
    Ok(Outcome { ino: entry.ino, removed: unnaming.perform(store) })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Tree, name};
    use crate::{EditOp, FsError, Ino, NewNode, ROOT_INO, SessionId};

    fn rmdir(parent: Ino, from: &str, holders: Vec<SessionId>) -> EditOp {
        EditOp::Rmdir { parent, name: name(from), holders }
    }

    #[test]
    fn an_empty_directory_goes_and_its_parent_loses_a_link() {
        let mut tree = Tree::new();
        let dir = tree.dir(ROOT_INO, "d");
        assert_eq!(tree.inode(ROOT_INO).nlink, 3);
        let outcome = tree.run(rmdir(ROOT_INO, "d", vec![])).unwrap();
        assert_eq!(outcome.removed, Some(dir));
        let (root, now) = (tree.inode(ROOT_INO), tree.now());
        assert_eq!((root.nlink, root.size, root.mtime, root.ctime), (2, 0, now, now));
    }

    #[test]
    fn what_is_not_an_empty_directory_stays() {
        let mut tree = Tree::new();
        let dir = tree.dir(ROOT_INO, "d");
        tree.file(dir, "f");
        assert_eq!(tree.run(rmdir(ROOT_INO, "d", vec![])), Err(FsError::NotEmpty));
        assert_eq!(tree.run(rmdir(dir, "f", vec![])), Err(FsError::NotDirectory));
        assert_eq!(tree.run(rmdir(dir, "x", vec![])), Err(FsError::NotFound));
    }

    #[test]
    fn nothing_can_be_made_in_a_removed_directory_that_is_open() {
        let mut tree = Tree::new();
        let file = tree.file(ROOT_INO, "f");
        let dir = tree.dir(ROOT_INO, "d");
        tree.run(rmdir(ROOT_INO, "d", vec![SessionId(1)])).unwrap();
        assert_eq!(tree.inode(dir).nlink, 0);
        assert_eq!(tree.make(dir, "x", NewNode::File), Err(FsError::NotFound));
        assert_eq!(
            tree.run(EditOp::Link { ino: file, parent: dir, name: name("x") }),
            Err(FsError::NotFound)
        );
        assert_eq!(tree.rename(ROOT_INO, "f", dir, "f"), Err(FsError::NotFound));
    }
}

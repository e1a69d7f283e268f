//! unlink.

use super::orphan::Unnaming;
use super::{directory, inode_of};
use crate::{FsError, Ino, Name, Outcome, SessionId, Store, Timestamp};

pub(super) fn unlink(
    store: &mut impl Store,
    time: Timestamp,
    parent_ino: Ino,
    name: &Name,
    holders: &[SessionId],
) -> Result<Outcome, FsError> {
    let mut parent = directory(store, parent_ino)?;
    let entry = store.entry(parent_ino, name)?.ok_or(FsError::NotFound)?;
    let inode = inode_of(store, entry)?;
    if inode.is_dir() {
        return Err(FsError::IsDirectory);
    }
    let unnaming = Unnaming::plan(store, time, entry.ino, inode, holders)?;

    store.remove_entry(parent_ino, name);
    parent.lose(name, false);
    parent.modified(time);
    store.set_inode(parent_ino, parent);
    Ok(Outcome { ino: entry.ino, removed: unnaming.perform(store) })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Tree, name};
    use crate::{EditOp, FsError, Ino, ROOT_INO};

    fn unlink(parent: Ino, from: &str) -> EditOp {
        EditOp::Unlink { parent, name: name(from), holders: vec![] }
    }

    #[test]
    fn the_last_name_takes_the_inode_with_it() {
        let mut tree = Tree::new();
        let before = tree.store.clone();
        let file = tree.file(ROOT_INO, "a");
        let outcome = tree.run(unlink(ROOT_INO, "a")).unwrap();
        assert_eq!((outcome.ino, outcome.removed), (file, Some(file)));
        tree.change_inode(ROOT_INO, |root| {
            root.mtime = crate::Timestamp::default();
            root.ctime = crate::Timestamp::default();
        });
        assert_eq!(tree.store, before, "nothing is left");
    }

    #[test]
    fn another_name_keeps_it_and_shows_in_ctime() {
        let mut tree = Tree::new();
        let file = tree.file(ROOT_INO, "a");
        tree.run(EditOp::Link { ino: file, parent: ROOT_INO, name: name("b") }).unwrap();
        let mtime = tree.inode(file).mtime;
        let outcome = tree.run(unlink(ROOT_INO, "a")).unwrap();
        assert_eq!((outcome.ino, outcome.removed), (file, None));
        let now = tree.now();
        let left = tree.inode(file);
        assert_eq!((left.nlink, left.ctime, left.mtime), (1, now, mtime));
        let root = tree.inode(ROOT_INO);
        assert_eq!((root.mtime, root.ctime), (now, now));
    }

    #[test]
    fn directories_and_missing_names_are_refused() {
        let mut tree = Tree::new();
        let file = tree.file(ROOT_INO, "a");
        tree.dir(ROOT_INO, "d");
        assert_eq!(tree.run(unlink(ROOT_INO, "d")), Err(FsError::IsDirectory));
        assert_eq!(tree.run(unlink(ROOT_INO, "x")), Err(FsError::NotFound));
        assert_eq!(tree.run(unlink(file, "x")), Err(FsError::NotDirectory));
        assert_eq!(tree.run(unlink(Ino(99), "x")), Err(FsError::Stale));
    }
}

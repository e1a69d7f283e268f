//! rename and renameat2.

use super::orphan::Unnaming;
use super::{directory, inode, inode_of};
use crate::{
    DirEntry, FsError, Ino, Inode, LINK_MAX, Name, Outcome, RenameFlags, SessionId, Store, Timestamp,
};

/// From where to where.
#[derive(Clone, Copy)]
pub(super) struct Paths<'a> {
    pub parent: Ino,
    pub name: &'a Name,
    pub new_parent: Ino,
    pub new_name: &'a Name,
}

pub(super) fn rename(
    store: &mut impl Store,
    time: Timestamp,
    paths: Paths<'_>,
    flags: RenameFlags,
    holders: &[SessionId],
) -> Result<Outcome, FsError> {
    if flags.no_replace && flags.exchange {
        return Err(FsError::Invalid);
    }
    let parents = Parents::read(store, paths)?;
    let from = store.entry(paths.parent, paths.name)?.ok_or(FsError::NotFound)?;
    let to = store.entry(paths.new_parent, paths.new_name)?;
    match to {
        Some(_) if flags.no_replace => return Err(FsError::Exists),
        None if flags.exchange => return Err(FsError::NotFound),
        _ => {}
    }
    let moved = inode_of(store, from)?;
    let replaced = match to {
        Some(entry) if entry.ino == from.ino => return Ok(Outcome { ino: from.ino, removed: None }),
        Some(entry) => Some((entry, inode_of(store, entry)?)),
        None => None,
    };
    if moved.is_dir() && is_inside(store, from.ino, paths)? {
        return Err(FsError::Invalid);
    }
    if let Some((entry, inode)) = &replaced
        && inode.is_dir()
        && is_inside(store, entry.ino, paths.reversed())?
    {
        return Err(if flags.exchange { FsError::Invalid } else { FsError::NotEmpty });
    }
    match replaced {
        Some((entry, inode)) if flags.exchange => {
            exchange(store, time, paths, parents, (from, moved), (entry, inode))
        }
        replaced => move_over(store, time, paths, parents, (from, moved), replaced, holders),
    }
}

impl Paths<'_> {
    fn reversed(self) -> Self {
        Paths { parent: self.new_parent, name: self.new_name, new_parent: self.parent, new_name: self.name }
    }
}

/// Whether the new parent is `dir` or below it. Inside one directory it never is.
fn is_inside(store: &impl Store, dir: Ino, paths: Paths<'_>) -> Result<bool, FsError> {
    if paths.parent == paths.new_parent {
        return Ok(false);
    }
    // A chain longer than there are inodes is a loop in a broken state.
    let mut at = paths.new_parent;
    for _ in 0..=store.usage()?.inodes {
        if at == dir {
            return Ok(true);
        }
        let above = inode(store, at)?.parent;
        if above == at {
            return Ok(false);
        }
        at = above;
    }
    Err(FsError::Io)
}

/// The two parents, which may be one.
struct Parents {
    old: Inode,
    /// `None`: the same as the old one.
    new: Option<Inode>,
}

impl Parents {
    fn read(store: &impl Store, paths: Paths<'_>) -> Result<Parents, FsError> {
        let old = directory(store, paths.parent)?;
        let same = paths.parent == paths.new_parent;
        let new = if same { None } else { Some(directory(store, paths.new_parent)?) };
        Ok(Parents { old, new })
    }

    fn source(&mut self) -> &mut Inode {
        &mut self.old
    }

    fn target(&mut self) -> &mut Inode {
        self.new.as_mut().unwrap_or(&mut self.old)
    }

    /// A directory comes into the old or the new parent and none leaves it: is there a link left?
    fn check_links(parent: &Inode) -> Result<(), FsError> {
        if parent.nlink >= LINK_MAX { Err(FsError::TooManyLinks) } else { Ok(()) }
    }

    fn write(mut self, store: &mut impl Store, time: Timestamp, paths: Paths<'_>) {
        self.old.modified(time);
        store.set_inode(paths.parent, self.old);
        if let Some(mut new) = self.new {
            new.modified(time);
            store.set_inode(paths.new_parent, new);
        }
    }
}

fn move_over(
    store: &mut impl Store,
    time: Timestamp,
    paths: Paths<'_>,
    mut parents: Parents,
    (from, mut moved): (DirEntry, Inode),
    replaced: Option<(DirEntry, Inode)>,
    holders: &[SessionId],
) -> Result<Outcome, FsError> {
    let unnaming = match replaced {
        Some((_, inode)) if moved.is_dir() && !inode.is_dir() => return Err(FsError::NotDirectory),
        Some((_, inode)) if !moved.is_dir() && inode.is_dir() => return Err(FsError::IsDirectory),
        Some((entry, inode)) => {
            if inode.is_dir() && !store.is_empty_dir(entry.ino)? {
                return Err(FsError::NotEmpty);
            }
            let is_dir = inode.is_dir();
            Some((is_dir, Unnaming::plan(store, time, entry.ino, inode, holders)?))
        }
        None => {
            if let Some(new) = &parents.new
                && moved.is_dir()
            {
                Parents::check_links(new)?;
            }
            None
        }
    };

    let removed = unnaming.and_then(|(is_dir, unnaming)| {
        parents.target().lose(paths.new_name, is_dir);
        unnaming.perform(store)
    });
    parents.source().lose(paths.name, moved.is_dir());
    parents.target().gain(paths.new_name, moved.is_dir());
    parents.write(store, time, paths);
    store.remove_entry(paths.parent, paths.name);
    store.set_entry(paths.new_parent, paths.new_name, from);
    arrive(store, time, from.ino, &mut moved, paths.new_parent);
    Ok(Outcome { ino: from.ino, removed })
}

fn exchange(
    store: &mut impl Store,
    time: Timestamp,
    paths: Paths<'_>,
    mut parents: Parents,
    (from, mut moved): (DirEntry, Inode),
    (to, mut other): (DirEntry, Inode),
) -> Result<Outcome, FsError> {
    if let Some(new) = &parents.new {
        match (moved.is_dir(), other.is_dir()) {
            (true, false) => Parents::check_links(new)?,
            (false, true) => Parents::check_links(&parents.old)?,
            _ => {}
        }
    }

    parents.source().lose(paths.name, moved.is_dir());
    parents.target().lose(paths.new_name, other.is_dir());
    parents.source().gain(paths.name, other.is_dir());
    parents.target().gain(paths.new_name, moved.is_dir());
    parents.write(store, time, paths);
    store.set_entry(paths.parent, paths.name, to);
    store.set_entry(paths.new_parent, paths.new_name, from);
    arrive(store, time, from.ino, &mut moved, paths.new_parent);
    arrive(store, time, to.ino, &mut other, paths.parent);
    Ok(Outcome { ino: from.ino, removed: None })
}

/// Writes an inode that was given a new name in `parent`.
fn arrive(store: &mut impl Store, time: Timestamp, ino: Ino, inode: &mut Inode, parent: Ino) {
    inode.ctime = time;
    if inode.is_dir() {
        inode.parent = parent;
    }
    store.set_inode(ino, inode.clone());
}

#[cfg(test)]
#[path = "rename_tests.rs"]
mod tests;

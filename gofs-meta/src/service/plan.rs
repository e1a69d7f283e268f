//! Which inodes edits need, and which they may take the last name from: one edit, or a batch.
//!
//! [`Plan::of`] has the list of all kinds of edits; a kind that it forgets does not compile.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use gofs_tree::{Edit, EditOp, FsError, Ino, Name, Store};

use crate::lease::Need;

/// Who chooses the numbers of what edits make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbers {
    /// The server, when it commits them; a chunk is given by `Allocate`.
    ChosenHere,
    /// Their author, of those that are reserved for its session.
    ChosenByAuthor,
}

/// What a name stands for between the edits of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meaning {
    /// Where every edit before succeeds.
    pub likely: Option<Ino>,
    /// Whichever of them fail.
    pub possible: BTreeSet<Ino>,
}

/// What must be known about edits that are committed together, each seeing what those before it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// What they change, one need for each inode. Inodes that are not in the tree yet need nothing: nobody knows them.
    /// The names of a directory are in order.
    pub needs: Vec<Need>,
    /// For each edit, the inode that may lose its last name.
    pub removes: Vec<Meaning>,
    /// Directories whose entries they change, in order.
    pub directories: Vec<Ino>,
    /// The inodes that they are about, in order: those that they change or give and take names.
    pub inodes: Vec<Ino>,
}

impl Plan {
    /// The plan for the tree as it is now; `None` where an edit is one that only a server makes.
    pub fn of(tree: &impl Store, edits: &[Edit], numbers: Numbers) -> Result<Option<Plan>, FsError> {
        let mut names = Names { tree, known: HashMap::new() };
        let mut entries: BTreeMap<Ino, BTreeSet<Name>> = BTreeMap::new();
        let mut inodes: BTreeSet<Ino> = BTreeSet::new();
        let mut made: HashSet<Ino> = HashSet::new();
        let mut removes = Vec::with_capacity(edits.len());
        for edit in edits {
            let mut entry = |parent: &Ino, name: &Name| {
                entries.entry(*parent).or_default().insert(name.clone());
            };
            let mut removed = Meaning::default();
            match &edit.op {
                EditOp::Create { parent, name, ino, .. } => {
                    entry(parent, name);
                    names.name(*parent, name, *ino)?;
                    made.insert(*ino);
                }
                EditOp::Link { ino, parent, name } => {
                    entry(parent, name);
                    names.name(*parent, name, *ino)?;
                    inodes.insert(*ino);
                }
                EditOp::Unlink { parent, name, .. } | EditOp::Rmdir { parent, name, .. } => {
                    entry(parent, name);
                    let meaning = names.meaning(*parent, name)?;
                    removed = meaning.clone();
                    meaning.likely = None;
                    inodes.extend(&removed.possible);
                }
                EditOp::Rename { parent, name, new_parent, new_name, flags, .. } => {
                    entry(parent, name);
                    entry(new_parent, new_name);
                    let from = names.meaning(*parent, name)?.clone();
                    let to = names.meaning(*new_parent, new_name)?.clone();
                    inodes.extend(from.possible.union(&to.possible));
                    if flags.exchange {
                        names.exchange((*parent, name), &from, (*new_parent, new_name), &to)?;
                    } else {
                        let keeps = flags.no_replace && to.likely.is_some();
                        names.rename((*parent, name), &from, (*new_parent, new_name), keeps)?;
                        // Two names of one inode: nothing happens.
                        let likely = to.likely.filter(|_| from.likely.is_some() && from.likely != to.likely);
                        removed = Meaning { likely, ..to };
                    }
                }
                EditOp::SetAttr { ino, .. }
                | EditOp::SetXattr { ino, .. }
                | EditOp::RemoveXattr { ino, .. }
                | EditOp::WriteInline { ino, .. }
                | EditOp::Extend { ino, .. }
                | EditOp::Allocate { ino, .. }
                | EditOp::Punch { ino, .. } => {
                    inodes.insert(*ino);
                }
                EditOp::AddChunk { ino, .. } if numbers == Numbers::ChosenByAuthor => {
                    inodes.insert(*ino);
                }
                EditOp::AddChunk { .. } | EditOp::ReleaseOrphan { .. } => return Ok(None),
            }
            removes.push(removed);
        }
        let mut needs = Vec::with_capacity(entries.len() + inodes.len());
        let is_new = |ino: &Ino| Ok::<_, FsError>(made.contains(ino) && tree.inode(*ino)?.is_none());
        let directories = entries.keys().copied().collect();
        for (parent, names) in entries {
            if inodes.contains(&parent) || is_new(&parent)? {
                continue;
            }
            needs.push(Need::entries(parent, names.into_iter().collect()));
        }
        for &ino in &inodes {
            if !is_new(&ino)? {
                needs.push(Need::change(ino));
            }
        }
        Ok(Some(Plan { needs, removes, directories, inodes: inodes.into_iter().collect() }))
    }

    /// Whether what this plan needs is among what `other` needs.
    pub fn is_within(&self, other: &Plan) -> bool {
        let theirs: HashMap<Ino, &[Name]> =
            other.needs.iter().map(|need| (need.ino, &need.names[..])).collect();
        self.needs.iter().all(|need| {
            theirs.get(&need.ino).is_some_and(|names| {
                names.is_empty()
                    || (!need.names.is_empty()
                        && need.names.iter().all(|name| names.binary_search(name).is_ok()))
            })
        })
    }
}

/// Names as they are after the edits so far.
struct Names<'a, S> {
    tree: &'a S,
    known: HashMap<(Ino, Name), Meaning>,
}

impl<S: Store> Names<'_, S> {
    fn meaning(&mut self, parent: Ino, name: &Name) -> Result<&mut Meaning, FsError> {
        let key = (parent, name.clone());
        if !self.known.contains_key(&key) {
            let likely = self.tree.entry(parent, name)?.map(|entry| entry.ino);
            self.known.insert(key.clone(), Meaning { likely, possible: likely.into_iter().collect() });
        }
        Ok(self.known.entry(key).or_default())
    }

    /// The inode gets this name, unless the name is taken.
    fn name(&mut self, parent: Ino, name: &Name, ino: Ino) -> Result<(), FsError> {
        let meaning = self.meaning(parent, name)?;
        meaning.likely = meaning.likely.or(Some(ino));
        meaning.possible.insert(ino);
        Ok(())
    }

    fn rename(
        &mut self,
        source: (Ino, &Name),
        from: &Meaning,
        target: (Ino, &Name),
        keeps: bool,
    ) -> Result<(), FsError> {
        if source == target {
            return Ok(());
        }
        let to = self.meaning(target.0, target.1)?;
        to.possible.extend(&from.possible);
        if keeps || from.likely.is_none() || from.likely == to.likely {
            return Ok(());
        }
        to.likely = from.likely;
        self.meaning(source.0, source.1)?.likely = None;
        Ok(())
    }

    fn exchange(
        &mut self,
        source: (Ino, &Name),
        from: &Meaning,
        target: (Ino, &Name),
        to: &Meaning,
    ) -> Result<(), FsError> {
        let both = from.likely.is_some() && to.likely.is_some();
        for (at, own, other) in [(source, from, to), (target, to, from)] {
            let meaning = self.meaning(at.0, at.1)?;
            meaning.likely = if both { other.likely } else { own.likely };
            meaning.possible.extend(&other.possible);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

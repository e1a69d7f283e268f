//! Whether the records of a namespace agree with each other.
//!
//! For tests: `apply` keeps all of this true, so a broken sentence here is a bug, not a
//! state to live with.

use std::collections::{BTreeMap, BTreeSet};

use crate::acl::Acl;
use crate::{
    BLOCK_BYTES, FILE_SIZE_MAX, FileOffset, FileType, Ino, Inode, MemoryStore, ROOT_INO, Store, Usage, acl,
};

/// Every disagreement as a sentence; none in a consistent state.
pub fn check(store: &MemoryStore) -> Vec<String> {
    let mut check = Check { store, inodes: store.inodes().collect(), problems: Vec::new() };
    check.root();
    check.entries();
    check.orphans();
    check.contents();
    check.xattrs();
    check.usage();
    check.problems
}

struct Check<'a> {
    store: &'a MemoryStore,
    inodes: BTreeMap<Ino, &'a Inode>,
    problems: Vec<String>,
}

/// What the entries say of an inode or a directory.
#[derive(Default)]
struct Counted {
    names: u32,
    subdirectories: u32,
    name_bytes: u64,
}

impl Check<'_> {
    fn problem(&mut self, text: String) {
        self.problems.push(text);
    }

    fn root(&mut self) {
        match self.inodes.get(&ROOT_INO) {
            Some(root) if root.is_dir() && root.parent == ROOT_INO => {}
            Some(_) => self.problem("the root is not a directory that is its own parent".into()),
            None => self.problem("there is no root".into()),
        }
    }

    fn entries(&mut self) {
        let mut counted: BTreeMap<Ino, Counted> = BTreeMap::new();
        for (parent, name, entry) in self.store.all_entries() {
            match self.inodes.get(&parent) {
                Some(dir) if dir.is_dir() && dir.nlink > 0 => {}
                _ => self.problem(format!("{parent}/{name}: lies in what is not a live directory")),
            }
            let Some(inode) = self.inodes.get(&entry.ino).copied() else {
                self.problem(format!("{parent}/{name}: names {}, which does not exist", entry.ino));
                continue;
            };
            if inode.file_type != entry.file_type {
                self.problem(format!("{parent}/{name}: its type is not that of {}", entry.ino));
            }
            if inode.is_dir() && inode.parent != parent {
                self.problem(format!("{parent}/{name}: {} says its parent is {}", entry.ino, inode.parent));
            }
            counted.entry(entry.ino).or_default().names += 1;
            let dir = counted.entry(parent).or_default();
            dir.name_bytes += name.as_bytes().len() as u64;
            dir.subdirectories += u32::from(inode.is_dir());
        }
        for (ino, inode) in self.inodes.clone() {
            self.links(ino, inode, &counted.remove(&ino).unwrap_or_default());
        }
    }

    fn links(&mut self, ino: Ino, inode: &Inode, counted: &Counted) {
        let is_orphan = matches!(self.store.orphan(ino), Ok(Some(_)));
        let names = counted.names + u32::from(ino == ROOT_INO);
        if (names == 0) != is_orphan {
            self.problem(format!("{ino}: has {names} names, and an orphan record: {is_orphan}"));
        }
        let expected = match inode.file_type {
            FileType::Directory if is_orphan => 0,
            FileType::Directory => 2 + counted.subdirectories,
            _ => names,
        };
        if inode.nlink != expected {
            self.problem(format!("{ino}: nlink is {}, its names say {expected}", inode.nlink));
        }
        if inode.is_dir() {
            if names > 1 {
                self.problem(format!("{ino}: a directory with {names} names"));
            }
            if inode.size != counted.name_bytes {
                self.problem(format!("{ino}: size {}, its names have {}", inode.size, counted.name_bytes));
            }
            if names == 1 && !self.reaches_root(ino) {
                self.problem(format!("{ino}: does not hang from the root"));
            }
        } else if inode.parent != Ino(0) {
            self.problem(format!("{ino}: has a parent but is no directory"));
        }
    }

    fn reaches_root(&self, mut at: Ino) -> bool {
        let mut seen = BTreeSet::new();
        while at != ROOT_INO && seen.insert(at) {
            let Some(inode) = self.inodes.get(&at) else { return false };
            at = inode.parent;
        }
        at == ROOT_INO
    }

    fn orphans(&mut self) {
        for (ino, orphan) in self.store.orphans() {
            if !self.inodes.contains_key(&ino) {
                self.problem(format!("{ino}: an orphan that does not exist"));
            }
            if orphan.holders.is_empty() || !orphan.holders.is_sorted_by(|a, b| a < b) {
                self.problem(format!("{ino}: an orphan's holders are empty, unsorted or doubled"));
            }
        }
    }

    fn contents(&mut self) {
        let limits = self.store.limits();
        let mut blocks: BTreeMap<Ino, u64> = BTreeMap::new();
        let mut chunks: BTreeMap<Ino, u32> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        let removed: BTreeSet<_> = self.store.removed_chunks().iter().collect();
        for (ino, index, chunk) in self.store.all_chunks() {
            if self.inodes.get(&ino).is_none_or(|inode| inode.file_type != FileType::File) {
                self.problem(format!("{ino}: has {} but is no regular file", chunk.chunk));
            }
            if !ids.insert(chunk.chunk) || removed.contains(&chunk.chunk) {
                self.problem(format!("{ino}: {} at {} is used twice or was removed", chunk.chunk, index.0));
            }
            if u64::from(chunk.blocks_4k) * BLOCK_BYTES > u64::from(limits.chunk_size.bytes()) {
                self.problem(format!("{ino}: {} has more blocks than a chunk", chunk.chunk));
            }
            *blocks.entry(ino).or_default() += u64::from(chunk.blocks_4k);
            *chunks.entry(ino).or_default() += 1;
        }
        for (ino, inode) in self.inodes.clone() {
            let counted = blocks.get(&ino).copied().unwrap_or(0);
            if inode.blocks_4k != counted {
                self.problem(format!("{ino}: {} blocks, its chunks have {counted}", inode.blocks_4k));
            }
            let held = chunks.get(&ino).copied().unwrap_or(0);
            if inode.chunks != held {
                self.problem(format!("{ino}: {} chunks, there are {held}", inode.chunks));
            }
            let inline = inode.inline.len() as u64;
            let fits = match inode.file_type {
                FileType::File => inline <= inode.size && (inline == 0 || counted == 0),
                FileType::Symlink => inline == inode.size && inline > 0,
                FileType::Directory => inline == 0,
                _ => inline == 0 && inode.size == 0,
            };
            if !fits {
                self.problem(format!("{ino}: {inline} inline bytes, size {}, {counted} blocks", inode.size));
            }
            let last = FileOffset(inode.size.saturating_sub(1));
            if inode.size > FILE_SIZE_MAX || last.split(limits.chunk_size).is_none() {
                self.problem(format!("{ino}: size {} is too large", inode.size));
            }
        }
    }

    fn xattrs(&mut self) {
        let having: BTreeSet<Ino> = self.store.all_xattrs().map(|(ino, ..)| ino).collect();
        for ino in having.iter().filter(|ino| !self.inodes.contains_key(ino)).collect::<Vec<_>>() {
            self.problem(format!("{ino}: has attributes but does not exist"));
        }
        for (ino, inode) in self.inodes.clone() {
            if inode.has_xattrs != having.contains(&ino) {
                self.problem(format!("{ino}: has_xattrs is {}", inode.has_xattrs));
            }
        }
        for (ino, name, value) in self.store.all_xattrs() {
            let is_access = name.as_bytes() == acl::ACCESS;
            if !is_access && name.as_bytes() != acl::DEFAULT {
                continue;
            }
            let mode = self.inodes.get(&ino).map(|inode| inode.mode);
            match Acl::parse(value) {
                Ok(Some(acl)) if is_access => {
                    if mode != mode.map(|mode| acl.mode_onto(mode)) || acl.is_minimal() {
                        self.problem(format!("{ino}: mode and access ACL disagree"));
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => self.problem(format!("{ino}: {name} cannot be read")),
            }
        }
    }

    fn usage(&mut self) {
        let files = self.inodes.values().filter(|inode| inode.file_type == FileType::File);
        let counted = Usage { bytes: files.map(|inode| inode.size).sum(), inodes: self.inodes.len() as u64 };
        let kept = self.store.usage();
        if kept != Ok(counted) {
            self.problem(format!("usage is {kept:?}, the inodes say {counted:?}"));
        }
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;

//! The whole tree as a mount shows it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Of each path inode, mode, links, size, times, and the bytes of a file.
pub type Tree = BTreeMap<PathBuf, (Vec<u64>, Vec<u8>)>;

/// Reads everything below `root`.
pub fn read(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let path = dir.join(entry?.file_name());
            let stat = fs::symlink_metadata(root.join(&path))?;
            let mut bytes = Vec::new();
            if stat.is_dir() {
                waiting.push(path.clone());
            } else {
                bytes = fs::read(root.join(&path))?;
            }
            let times =
                [stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec()].map(|time| time as u64);
            let mut facts = vec![stat.ino(), stat.mode().into(), stat.nlink(), stat.len()];
            facts.extend(times);
            tree.insert(path, (facts, bytes));
        }
    }
    Ok(tree)
}

/// Where they differ, in words.
pub fn differences(first: &Tree, other: &Tree) -> Vec<String> {
    let paths = first.keys().chain(other.keys().filter(|path| !first.contains_key(*path)));
    let differ = paths.filter(|path| first.get(*path) != other.get(*path));
    let facts =
        |tree: &Tree, path: &PathBuf| tree.get(path).map(|(facts, bytes)| (facts.clone(), bytes.len()));
    differ
        .map(|path| format!("{}: {:?}, {:?}", path.display(), facts(first, path), facts(other, path)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_path_another_fact_and_another_byte_are_found() {
        let tree = |facts: u64, bytes: &[u8]| Tree::from([("a".into(), (vec![facts], bytes.to_vec()))]);
        assert!(differences(&tree(1, b"x"), &tree(1, b"x")).is_empty());
        for other in [tree(2, b"x"), tree(1, b"y"), Tree::new()] {
            assert_eq!(differences(&tree(1, b"x"), &other).len(), 1);
            assert_eq!(differences(&other, &tree(1, b"x")).len(), 1);
        }
    }
}

//! What one worker has made in directories of its own, and what may be found there.
//!
//! Nobody else changes them, so on every mount exactly that must be found. Only when the session of the worker's mount has
//! ended may something be missing: of the names the end of what was done, of each file any of the bytes since its last
//! fsync.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Names, each with its inode.
pub type Names = BTreeMap<String, u64>;

/// What is there.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// All names.
    pub names: Names,
    /// Of each inode its bytes.
    pub contents: BTreeMap<u64, Vec<u8>>,
    /// Of each inode the number of its links, as stat says.
    pub links: BTreeMap<u64, u64>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Model {
    /// The names as they are known to be with the servers, and after each change since.
    names: Vec<Names>,
    /// An operation about them failed: anything may be there.
    uncertain: BTreeSet<String>,
    /// Of each inode the bytes as they are known to be with the servers, and after each change since.
    contents: BTreeMap<u64, Vec<Arc<Vec<u8>>>>,
}

impl Default for Model {
    fn default() -> Self {
        Model { names: vec![Names::new()], uncertain: BTreeSet::new(), contents: BTreeMap::new() }
    }
}

impl Model {
    /// The names as they should be.
    pub fn names(&self) -> &Names {
        self.names.last().expect("never empty")
    }

    /// The bytes of an inode as they should be.
    pub fn content(&self, inode: u64) -> Arc<Vec<u8>> {
        self.contents.get(&inode).and_then(|versions| versions.last()).cloned().unwrap_or_default()
    }

    /// An operation changed names.
    pub fn change_names<T>(&mut self, change: impl FnOnce(&mut Names) -> T) {
        let mut next = self.names().clone();
        change(&mut next);
        self.names.push(next);
    }

    /// An operation about these names failed.
    pub fn doubt(&mut self, names: &[&str]) {
        self.uncertain.extend(names.iter().map(|name| (*name).to_owned()));
    }

    /// An operation changed bytes, or may have.
    pub fn change_content(&mut self, inode: u64, bytes: Vec<u8>) {
        let versions = self.contents.entry(inode).or_insert_with(|| vec![Arc::default()]);
        versions.push(Arc::new(bytes));
    }

    /// All changes of names so far are with the servers.
    pub fn names_are_safe(&mut self) {
        self.names = vec![self.names().clone()];
        let named: BTreeSet<u64> = self.names().values().copied().collect();
        self.contents.retain(|inode, _| named.contains(inode));
    }

    /// So are the bytes of an inode.
    pub fn content_is_safe(&mut self, inode: u64) {
        if let Some(versions) = self.contents.get_mut(&inode) {
            let last = versions.pop().unwrap_or_default();
            *versions = vec![last];
        }
    }

    /// What differs from what should be there.
    pub fn compare(&self, found: &Found) -> Vec<String> {
        let mut wrong = wrong_links(found);
        if found.names != *self.names() {
            wrong.push(format!("names: {}", difference(self.names(), &found.names)));
        }
        for (inode, bytes) in &found.contents {
            wrong.extend(self.compare_content(*inode, bytes));
        }
        wrong
    }

    /// As [`Model::compare`], of the bytes of one inode.
    pub fn compare_content(&self, inode: u64, bytes: &[u8]) -> Option<String> {
        let wanted = self.content(inode);
        if **wanted == *bytes {
            return None;
        }
        let at = wanted.iter().zip(bytes).position(|(a, b)| a != b).unwrap_or(wanted.len().min(bytes.len()));
        let hex = |bytes: &[u8]| -> String {
            bytes.iter().skip(at).take(8).map(|byte| format!("{byte:02x}")).collect()
        };
        let differing = wanted.iter().zip(bytes).filter(|(a, b)| a != b).count();
        Some(format!(
            "inode {inode}: {} bytes expected, {} found, {differing} differ, the first at {at}: {} expected, {} found",
            wanted.len(),
            bytes.len(),
            hex(&wanted),
            hex(bytes)
        ))
    }

    /// What cannot be explained by the end of the session.
    pub fn compare_after_loss(&self, found: &Found) -> Vec<String> {
        let mut wrong = wrong_links(found);
        let certain = |names: &Names| -> Names {
            names
                .iter()
                .filter(|(name, _)| !self.uncertain.contains(*name))
                .map(|(n, i)| (n.clone(), *i))
                .collect()
        };
        let seen = certain(&found.names);
        if !self.names.iter().any(|names| certain(names) == seen) {
            let (oldest, newest) = (self.names.first().expect("never empty"), self.names());
            wrong.push(format!(
                "names are as after none of the last {} changes: before them {}; after them {}",
                self.names.len() - 1,
                difference(oldest, &found.names),
                difference(newest, &found.names)
            ));
        }
        for (inode, bytes) in &found.contents {
            if let Some(versions) = self.contents.get(inode) {
                wrong.extend(explained(*inode, versions, bytes));
            }
        }
        wrong
    }

    /// Whether names that were acknowledged are not there.
    pub fn names_were_lost(&self, found: &Found) -> bool {
        self.uncertain.is_empty() && found.names != *self.names()
    }

    /// From now on this is what should be there.
    pub fn adopt(&mut self, found: Found) {
        self.names = vec![found.names];
        self.uncertain.clear();
        self.contents =
            found.contents.into_iter().map(|(inode, bytes)| (inode, vec![Arc::new(bytes)])).collect();
    }
}

/// Each byte is as one of the versions has it.
fn explained(inode: u64, versions: &[Arc<Vec<u8>>], bytes: &[u8]) -> Option<String> {
    let lengths = versions.iter().map(|version| version.len());
    let (least, most) = (lengths.clone().min().unwrap_or(0), lengths.max().unwrap_or(0));
    if !(least..=most).contains(&bytes.len()) {
        return Some(format!("inode {inode}: {} bytes, where {least} to {most} were written", bytes.len()));
    }
    let at = (0..bytes.len())
        .find(|&at| !versions.iter().any(|version| version.get(at).is_some_and(|byte| *byte == bytes[at])))?;
    Some(format!(
        "inode {inode}: byte {at} of {} is {:02x}, which none of the versions since the last fsync has, of {:?} bytes",
        bytes.len(),
        bytes[at],
        versions.iter().map(|version| version.len()).collect::<Vec<_>>()
    ))
}

fn wrong_links(found: &Found) -> Vec<String> {
    let mut names: BTreeMap<u64, u64> = BTreeMap::new();
    for inode in found.names.values() {
        *names.entry(*inode).or_default() += 1;
    }
    let differ = found.links.iter().filter(|(inode, links)| names.get(*inode) != Some(links));
    differ
        .map(|(inode, links)| format!("inode {inode}: {links} links, {:?} names", names.get(inode)))
        .collect()
}

fn difference(wanted: &Names, found: &Names) -> String {
    let missing: Vec<String> = wanted
        .iter()
        .filter(|(name, inode)| found.get(*name) != Some(inode))
        .map(|(name, inode)| format!("{name} should be {inode} and is {:?}", found.get(name)))
        .collect();
    let more: Vec<String> = found
        .iter()
        .filter(|(name, _)| !wanted.contains_key(*name))
        .map(|(name, inode)| format!("{name} should not be there and is {inode}"))
        .collect();
    [missing, more].concat().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[(&str, u64)], contents: &[(u64, &str)]) -> Found {
        let mut links = BTreeMap::new();
        for (_, inode) in names {
            *links.entry(*inode).or_default() += 1;
        }
        Found {
            names: names.iter().map(|(name, inode)| ((*name).to_owned(), *inode)).collect(),
            contents: contents.iter().map(|(inode, text)| (*inode, text.as_bytes().to_vec())).collect(),
            links,
        }
    }

    /// `a` is safe, with `old`; then it got `newer`, `b` was made, and `a` removed.
    fn model() -> Model {
        let mut model = Model::default();
        model.adopt(found(&[("a", 1)], &[(1, "old")]));
        model.change_content(1, b"newer".to_vec());
        model.change_names(|names| names.insert("b".into(), 2));
        model.change_names(|names| names.remove("a"));
        model
    }

    #[test]
    fn exactly_what_was_done_is_right() {
        assert_eq!(model().compare(&found(&[("b", 2)], &[(2, "")])), Vec::<String>::new());
        for wrong in [
            found(&[], &[]),
            found(&[("a", 1), ("b", 2)], &[]),
            found(&[("b", 3)], &[]),
            found(&[("b", 2)], &[(2, "x")]),
            found(&[("b", 2), ("c", 2)], &[]),
        ] {
            assert!(!model().compare(&wrong).is_empty(), "{wrong:?}");
        }
    }

    #[test]
    fn after_a_loss_names_are_a_prefix() {
        for right in [&[("a", 1)][..], &[("a", 1), ("b", 2)], &[("b", 2)]] {
            assert_eq!(model().compare_after_loss(&found(right, &[])), Vec::<String>::new(), "{right:?}");
        }
        for wrong in [&[][..], &[("a", 2)], &[("a", 1), ("b", 2), ("c", 3)], &[("a", 1), ("b", 3)]] {
            assert!(!model().compare_after_loss(&found(wrong, &[])).is_empty(), "{wrong:?}");
        }
        let mut safe = model();
        safe.names_are_safe();
        assert!(!safe.compare_after_loss(&found(&[("a", 1)], &[])).is_empty(), "it was fsynced");
    }

    #[test]
    fn after_a_loss_bytes_are_of_some_version() {
        let names = &[("a", 1)];
        for right in ["old", "newer", "olde", "newe", "nld"] {
            let found = found(names, &[(1, right)]);
            assert_eq!(model().compare_after_loss(&found), Vec::<String>::new(), "{right}");
        }
        for wrong in ["ol", "newest", "xld", "old\0", "oldr"] {
            assert!(!model().compare_after_loss(&found(names, &[(1, wrong)])).is_empty(), "{wrong}");
        }
        let mut safe = model();
        safe.content_is_safe(1);
        assert!(!safe.compare_after_loss(&found(names, &[(1, "old")])).is_empty(), "it was fsynced");
    }

    #[test]
    fn what_failed_may_be_there_or_not() {
        let mut model = model();
        model.doubt(&["z"]);
        for right in [&[("b", 2)][..], &[("b", 2), ("z", 9)]] {
            assert_eq!(model.compare_after_loss(&found(right, &[])), Vec::<String>::new(), "{right:?}");
        }
    }

    #[test]
    fn links_are_counted() {
        let mut found = found(&[("b", 2)], &[(2, "")]);
        found.links.insert(2, 2);
        assert!(!model().compare(&found).is_empty());
        assert!(!model().compare_after_loss(&found).is_empty());
    }
}

//! One problem that a check found: its sentence, the file that it is about, and what would set it right.

use std::collections::{HashMap, HashSet};

use gofs_tree::{FsError, Ino, Name, NamespaceId, ROOT_INO, Store};

use crate::repair::Repair;
use crate::state::StateStore;

/// Files named in one check; more are told by their numbers.
const NAMED_MAX: usize = 10_000;
/// Records read at once.
const BATCH: usize = 4096;
/// Deeper than any path can be: a circle.
const DEPTH_MAX: usize = 4096;

pub(super) struct Problem {
    pub text: String,
    file: Option<(NamespaceId, Ino)>,
    /// Sets it right.
    pub repair: Option<(NamespaceId, Repair)>,
    /// Gives up what is lost, so that the rest can be used.
    pub hole: Option<(NamespaceId, Repair)>,
    paths: Vec<String>,
}

impl Problem {
    pub fn new(text: String) -> Self {
        Problem { text, file: None, repair: None, hole: None, paths: Vec::new() }
    }

    /// It is about that file.
    pub fn at(&mut self, ns: NamespaceId, ino: Ino) -> &mut Self {
        self.file = Some((ns, ino));
        self
    }

    /// It is set right by that.
    pub fn by(&mut self, ns: NamespaceId, repair: Repair) -> &mut Self {
        self.repair = Some((ns, repair));
        self
    }

    /// The file has a hole after that.
    pub fn giving_up(&mut self, ns: NamespaceId, repair: Repair) -> &mut Self {
        self.hole = Some((ns, repair));
        self
    }

    /// The sentence, with the names of the file.
    pub fn into_text(self) -> String {
        match self.paths.as_slice() {
            [] => self.text,
            paths => format!("{}: {}", self.text, paths.join(", ")),
        }
    }
}

/// Finds the paths of the files that problems are about. Walks the entries of their namespaces.
pub(super) fn name_files(state: &StateStore, problems: &mut [Problem]) -> Result<(), FsError> {
    let mut wanted: HashMap<NamespaceId, HashSet<Ino>> = HashMap::new();
    for (ns, ino) in problems.iter().filter_map(|problem| problem.file).take(NAMED_MAX) {
        wanted.entry(ns).or_default().insert(ino);
    }
    let mut paths = HashMap::new();
    for (ns, inos) in &wanted {
        let Some(namespace) = state.namespace(*ns)? else { continue };
        let names = names_of(state, *ns, inos)?;
        let above: HashSet<Ino> = names.values().flatten().map(|(parent, _)| *parent).collect();
        let directories = directories(state, *ns, above)?;
        for (ino, names) in names {
            for (parent, name) in names {
                let path = path_of(&namespace.name, &directories, parent, &name);
                paths.entry((*ns, ino)).or_insert_with(Vec::new).push(path);
            }
        }
    }
    for problem in problems {
        if let Some(file) = problem.file
            && let Some(paths) = paths.get(&file)
        {
            problem.paths.clone_from(paths);
        }
    }
    Ok(())
}

/// All names of these inodes.
fn names_of(
    state: &StateStore,
    ns: NamespaceId,
    inos: &HashSet<Ino>,
) -> Result<HashMap<Ino, Vec<(Ino, Name)>>, FsError> {
    let mut names: HashMap<Ino, Vec<(Ino, Name)>> = HashMap::new();
    let mut after: Option<(Ino, Name)> = None;
    loop {
        let from = after.as_ref().map(|(parent, name)| (*parent, name));
        let batch = state.entries_from(ns, from, BATCH)?;
        let last = batch.len() < BATCH;
        after = batch.last().map(|(parent, name, _)| (*parent, name.clone()));
        for (parent, name, entry) in batch {
            if inos.contains(&entry.ino) {
                names.entry(entry.ino).or_default().push((parent, name));
            }
        }
        if last {
            return Ok(names);
        }
    }
}

/// The one name of each of these directories and of those above them.
fn directories(
    state: &StateStore,
    ns: NamespaceId,
    start: HashSet<Ino>,
) -> Result<HashMap<Ino, (Ino, Name)>, FsError> {
    let tree = state.tree(ns);
    let mut known = HashSet::new();
    let mut open: Vec<Ino> = start.into_iter().collect();
    while let Some(ino) = open.pop() {
        if ino != ROOT_INO
            && known.insert(ino)
            && let Some(inode) = tree.inode(ino)?
        {
            open.push(inode.parent);
        }
    }
    let names = names_of(state, ns, &known)?;
    Ok(names.into_iter().filter_map(|(ino, mut names)| Some((ino, names.pop()?))).collect())
}

/// `NAMESPACE:/PATH`, as `gofsctl why` takes it.
fn path_of(namespace: &str, directories: &HashMap<Ino, (Ino, Name)>, parent: Ino, name: &Name) -> String {
    let mut parts = vec![name.as_bytes().escape_ascii().to_string()];
    let mut at = parent;
    while at != ROOT_INO && parts.len() < DEPTH_MAX {
        match directories.get(&at) {
            Some((parent, name)) => {
                parts.push(name.as_bytes().escape_ascii().to_string());
                at = *parent;
            }
            None => {
                parts.push(format!("(inode {})", at.0));
                break;
            }
        }
    }
    parts.reverse();
    format!("{namespace}:/{}", parts.join("/"))
}

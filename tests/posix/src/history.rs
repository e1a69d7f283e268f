//! Random changes of a directory, each state of which is known: what a crash of the client leaves must be one of
//! them, not older than the last fsync.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Names in a directory, so that changes meet.
const NAMES: u32 = 6;
/// Depth of directories below the history's own.
const DEPTH: usize = 3;
/// Largest append, bytes: inline and in chunks.
const APPEND_MAX: usize = 20_000;

/// A file, whatever its names.
type FileId = u64;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Dir,
    File(FileId),
    Symlink(PathBuf),
}

/// A change of the tree.
#[derive(Clone, Debug)]
enum Change {
    Mkdir(PathBuf),
    Create(PathBuf, FileId),
    Symlink(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
    Rmdir(PathBuf),
    Chmod(PathBuf, u32),
}

/// The tree as it should be.
#[derive(Clone, Default)]
struct Model {
    paths: BTreeMap<PathBuf, Kind>,
    modes: BTreeMap<String, u32>,
}

/// What is compared: type, mode, links, target, and the first name of the same inode.
type Shape = BTreeMap<PathBuf, String>;

impl Model {
    fn mode_key(&self, path: &Path) -> String {
        match &self.paths[path] {
            Kind::File(id) => format!("#{id}"),
            _ => path.display().to_string(),
        }
    }

    fn below<'a>(&'a self, dir: &'a Path) -> impl Iterator<Item = &'a PathBuf> {
        self.paths.keys().filter(move |path| path.parent() == Some(dir))
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Mkdir(path) => self.add(path, Kind::Dir, 0o755),
            Change::Create(path, id) => self.add(path, Kind::File(*id), 0o644),
            Change::Symlink(path, target) => self.add(path, Kind::Symlink(target.clone()), 0o777),
            Change::Link(from, to) => {
                let kind = self.paths[from].clone();
                self.paths.insert(to.clone(), kind);
            }
            Change::Rename(from, to) => {
                if self.paths[from] == *self.paths.get(to).unwrap_or(&Kind::Dir)
                    && matches!(self.paths[from], Kind::File(_))
                {
                    // Two names of one file: nothing happens.
                    return;
                }
                let moved: Vec<PathBuf> =
                    self.paths.keys().filter(|path| path.starts_with(from)).cloned().collect();
                for old in moved {
                    let new = to.join(old.strip_prefix(from).expect("below it"));
                    let new = if old == *from { to.clone() } else { new };
                    let mode = self.modes[&self.mode_key(&old)];
                    let kind = self.paths.remove(&old).expect("just listed");
                    self.add(&new, kind, mode);
                }
            }
            Change::Unlink(path) | Change::Rmdir(path) => drop(self.paths.remove(path)),
            Change::Chmod(path, mode) => drop(self.modes.insert(self.mode_key(path), *mode)),
        }
    }

    fn add(&mut self, path: &Path, kind: Kind, mode: u32) {
        self.paths.insert(path.to_owned(), kind);
        self.modes.insert(self.mode_key(path), mode);
    }

    fn shape(&self) -> Shape {
        let names = |id: &FileId| {
            let same = self.paths.iter().filter(move |(_, kind)| **kind == Kind::File(*id));
            same.map(|(path, _)| path).collect::<Vec<_>>()
        };
        let show = |path: &PathBuf| {
            let mode = self.modes[&self.mode_key(path)];
            match &self.paths[path] {
                Kind::Dir => format!("dir {mode:o}"),
                Kind::Symlink(target) => format!("symlink {}", target.display()),
                Kind::File(id) => {
                    let names = names(id);
                    format!("file {mode:o} {} {}", names.len(), names[0].display())
                }
            }
        };
        self.paths.keys().map(|path| (path.clone(), show(path))).collect()
    }
}

fn found(root: &Path) -> io::Result<Shape> {
    let mut seen = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let path = dir.join(entry?.file_name());
            let metadata = fs::symlink_metadata(root.join(&path))?;
            if metadata.is_dir() {
                waiting.push(path.clone());
            }
            seen.insert(path, metadata);
        }
    }
    let mut first: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for (path, metadata) in &seen {
        first.entry(metadata.ino()).or_insert_with(|| path.clone());
    }
    let show = |path: &Path, metadata: &fs::Metadata| -> io::Result<String> {
        let mode = metadata.mode() & 0o7777;
        if metadata.is_dir() {
            Ok(format!("dir {mode:o}"))
        } else if metadata.is_symlink() {
            Ok(format!("symlink {}", fs::read_link(root.join(path))?.display()))
        } else {
            Ok(format!("file {mode:o} {} {}", metadata.nlink(), first[&metadata.ino()].display()))
        }
    };
    seen.iter().map(|(path, metadata)| Ok((path.clone(), show(path, metadata)?))).collect()
}

/// A change, and the moments before and after it.
struct Done {
    change: Change,
    begun: u64,
    /// `u64::MAX`: it did not return.
    ended: u64,
}

/// How much of a file was written, and how much of that is durable, bytes.
#[derive(Clone, Copy, Default)]
struct Length {
    written: usize,
    synced: usize,
}

/// One thread's changes of a directory of its own.
pub struct History {
    seed: u64,
    done: Vec<Done>,
    lengths: BTreeMap<FileId, Length>,
    /// When each fsync that returned had begun.
    fsyncs: Vec<u64>,
    /// What went wrong before anything was to go wrong.
    pub error: Option<String>,
}

/// The byte of a file at an offset.
fn byte(seed: u64, id: FileId, offset: usize) -> u8 {
    let mixed = (seed ^ (id << 24) ^ offset as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

impl History {
    /// Works in `root` until an operation fails. `clock` orders the histories of several threads; an error before `killed` is kept.
    pub fn run(root: &Path, seed: u64, clock: &AtomicU64, killed: &Arc<AtomicBool>) -> History {
        let lengths = BTreeMap::new();
        let mut history = History { seed, done: Vec::new(), lengths, fsyncs: Vec::new(), error: None };
        let mut model = Model::default();
        let mut rng = StdRng::seed_from_u64(seed);
        loop {
            let step = history.step(root, &mut model, &mut rng, clock);
            if let Err(error) = step {
                if !killed.load(Ordering::Acquire) {
                    let last = history.done.last().map(|done| &done.change);
                    history.error = Some(format!("{error} at or after {last:?}"));
                }
                return history;
            }
        }
    }

    /// How many changes were begun.
    pub fn len(&self) -> usize {
        self.done.len()
    }

    /// Whether nothing was begun.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    fn step(
        &mut self,
        root: &Path,
        model: &mut Model,
        rng: &mut StdRng,
        clock: &AtomicU64,
    ) -> io::Result<()> {
        let tick = || clock.fetch_add(1, Ordering::SeqCst);
        let files: Vec<(&PathBuf, FileId)> = model
            .paths
            .iter()
            .filter_map(|(path, kind)| if let Kind::File(id) = kind { Some((path, *id)) } else { None })
            .collect();
        match rng.random_range(0..100) {
            0..25 if !files.is_empty() => {
                let (path, id) = files[rng.random_range(0..files.len())];
                let length = self.lengths.entry(id).or_default();
                let most = if rng.random_bool(0.8) { 600 } else { APPEND_MAX };
                let more = rng.random_range(0..most);
                let bytes: Vec<u8> =
                    (length.written..length.written + more).map(|at| byte(self.seed, id, at)).collect();
                // Some of it may be there even where the write did not return.
                length.written += more;
                OpenOptions::new().append(true).open(root.join(path))?.write_all(&bytes)
            }
            25..28 => {
                let begun = tick();
                match files.get(rng.random_range(0..files.len().max(1))) {
                    Some((path, id)) if rng.random_bool(0.7) => {
                        let written = self.lengths.get(id).copied().unwrap_or_default().written;
                        File::open(root.join(path))?.sync_all()?;
                        self.lengths.entry(*id).or_default().synced = written;
                    }
                    _ => File::open(root)?.sync_all()?,
                }
                self.fsyncs.push(begun);
                Ok(())
            }
            _ => {
                let Some(change) = self.choose(model, rng) else { return Ok(()) };
                self.done.push(Done { change: change.clone(), begun: tick(), ended: u64::MAX });
                perform(root, &change)?;
                self.done.last_mut().expect("just pushed").ended = tick();
                model.apply(&change);
                Ok(())
            }
        }
    }

    /// A change that succeeds.
    fn choose(&mut self, model: &Model, rng: &mut StdRng) -> Option<Change> {
        let mut dirs = vec![PathBuf::new()];
        dirs.extend(model.paths.iter().filter(|(_, kind)| **kind == Kind::Dir).map(|(path, _)| path.clone()));
        let mut any = || {
            let dir = &dirs[rng.random_range(0..dirs.len())];
            dir.join(format!("n{}", rng.random_range(0..NAMES)))
        };
        let (path, other) = (any(), any());
        let kind = model.paths.get(&path);
        let other_kind = model.paths.get(&other);
        let is_empty = model.below(&path).next().is_none();
        match (rng.random_range(0..12), kind) {
            (0..4, None) => {
                let id = self.done.len() as FileId;
                Some(Change::Create(path, id))
            }
            (4..6, None) if path.components().count() < DEPTH => Some(Change::Mkdir(path)),
            (6, None) => Some(Change::Symlink(path, other)),
            (7, Some(Kind::File(_))) if other_kind.is_none() => Some(Change::Link(path, other)),
            (8..10, Some(Kind::Dir)) => {
                let fits = !other.starts_with(&path)
                    && other.components().count() == path.components().count()
                    && other_kind
                        .is_none_or(|kind| *kind == Kind::Dir && model.below(&other).next().is_none());
                fits.then_some(Change::Rename(path, other))
            }
            (8..10, Some(_)) if path != other && other_kind.is_none_or(|kind| *kind != Kind::Dir) => {
                Some(Change::Rename(path, other))
            }
            (10, Some(Kind::Dir)) if is_empty => Some(Change::Rmdir(path)),
            (10, Some(kind)) if *kind != Kind::Dir => Some(Change::Unlink(path)),
            (11, Some(Kind::Dir)) => Some(Change::Chmod(path, 0o700 | rng.random_range(0..0o100))),
            (11, Some(Kind::File(_))) => Some(Change::Chmod(path, 0o600 | rng.random_range(0..0o100))),
            _ => None,
        }
    }

    /// How many changes are durable, because an fsync of any of these histories began after them and returned.
    fn durable(&self, all: &[History]) -> usize {
        let last = all.iter().flat_map(|history| &history.fsyncs).max().copied().unwrap_or(0);
        self.done.iter().take_while(|done| done.ended < last).count()
    }

    /// After how many changes the directory may have been left as it is found: the fewest and the most.
    fn left(&self, root: &Path, durable: usize) -> Result<(usize, usize), String> {
        let found = found(root).map_err(|error| format!("{}: {error}", root.display()))?;
        let mut model = Model::default();
        let mut matching = Vec::new();
        let mut older = None;
        let mut why = String::new();
        for at in 0..=self.done.len() {
            if at > 0 {
                model.apply(&self.done[at - 1].change);
            }
            let shape = model.shape();
            if shape != found {
                if at >= durable && why.is_empty() {
                    why = differences(&shape, &found);
                }
                continue;
            }
            match self.contents(root, &model) {
                Ok(()) if at >= durable => matching.push(at),
                Ok(()) => older = Some(at),
                Err(error) => why = error,
            }
        }
        let range = matching.first().copied().zip(matching.last().copied());
        range.ok_or_else(|| {
            let state = format!("{} changes begun, {durable} of them durable", self.done.len());
            match older {
                Some(at) => format!("{state}: only {at} are there"),
                None => format!("{state}: what is there never was: {why}"),
            }
        })
    }

    fn contents(&self, root: &Path, model: &Model) -> Result<(), String> {
        for (path, kind) in &model.paths {
            let Kind::File(id) = kind else { continue };
            let length = self.lengths.get(id).copied().unwrap_or_default();
            let bytes = fs::read(root.join(path)).map_err(|error| format!("{}: {error}", path.display()))?;
            let show = || {
                format!(
                    "{} has {} bytes, {} written, {} synced",
                    path.display(),
                    bytes.len(),
                    length.written,
                    length.synced
                )
            };
            if bytes.len() < length.synced || bytes.len() > length.written {
                return Err(show());
            }
            if let Some(at) = (0..bytes.len()).find(|&at| bytes[at] != byte(self.seed, *id, at)) {
                return Err(format!("{}; the byte at {at} is wrong", show()));
            }
        }
        Ok(())
    }

    /// Whether what is found in these directories is a prefix, in order, of what was done in all of them, with all that was fsynced.
    pub fn verify(all: &[History], roots: &[PathBuf]) -> Result<(), String> {
        let mut ranges = Vec::new();
        for (history, root) in all.iter().zip(roots) {
            let durable = history.durable(all);
            ranges.push(history.left(root, durable).map_err(|why| format!("{}: {why}", root.display()))?);
        }
        for (history, (fewest, _)) in all.iter().zip(&ranges) {
            let Some(last) = fewest.checked_sub(1) else { continue };
            let survived = &history.done[last];
            for (other, (_, most)) in all.iter().zip(&ranges) {
                let before = other.done.iter().take_while(|done| done.ended < survived.begun).count();
                if *most < before {
                    return Err(format!(
                        "{:?} is there, but not {:?} before it",
                        survived.change, other.done[*most].change
                    ));
                }
            }
        }
        Ok(())
    }
}

fn perform(root: &Path, change: &Change) -> io::Result<()> {
    let at = |path: &Path| root.join(path);
    match change {
        Change::Mkdir(path) => fs::create_dir(at(path)),
        Change::Create(path, _) => File::create_new(at(path)).map(drop),
        Change::Symlink(path, target) => symlink(target, at(path)),
        Change::Link(from, to) => fs::hard_link(at(from), at(to)),
        Change::Rename(from, to) => fs::rename(at(from), at(to)),
        Change::Unlink(path) => fs::remove_file(at(path)),
        Change::Rmdir(path) => fs::remove_dir(at(path)),
        Change::Chmod(path, mode) => fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)),
    }
}

fn differences(expected: &Shape, found: &Shape) -> String {
    let paths = expected.keys().chain(found.keys().filter(|path| !expected.contains_key(*path)));
    let differing = paths.filter(|path| expected.get(*path) != found.get(*path));
    let show = |path: &PathBuf| {
        format!("{}: {:?} expected, {:?} found", path.display(), expected.get(path), found.get(path))
    };
    differing.take(8).map(show).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history on a local file system, and a copy of each state.
    fn local(changes: usize) -> (tempfile::TempDir, History) {
        let dir = tempfile::TempDir::with_prefix("gofs-history-").expect("a directory");
        let (clock, mut model) = (AtomicU64::new(1), Model::default());
        let mut rng = StdRng::seed_from_u64(5);
        let mut history =
            History { seed: 5, done: Vec::new(), lengths: BTreeMap::new(), fsyncs: Vec::new(), error: None };
        while history.len() < changes {
            history.step(dir.path(), &mut model, &mut rng, &clock).expect("it succeeds here");
        }
        (dir, history)
    }

    fn verify(dir: &Path, history: History) -> Result<(), String> {
        History::verify(&[history], &[dir.to_owned()])
    }

    #[test]
    fn what_was_done_is_accepted() {
        let (dir, history) = local(400);
        assert_eq!(verify(dir.path(), history), Ok(()));
    }

    #[test]
    fn a_change_without_the_one_before_it_is_found() {
        let (dir, mut history) = local(60);
        for (path, id) in [("x", 1000), ("y", 1001)] {
            let change = Change::Create(path.into(), id);
            history.done.push(Done { change, begun: u64::MAX - 1, ended: u64::MAX });
        }
        File::create_new(dir.path().join("y")).expect("a file");
        let why = verify(dir.path(), history).expect_err("x is missing");
        assert!(why.contains("never was"), "{why}");
    }

    #[test]
    fn a_lost_fsync_is_found() {
        let (dir, mut history) = local(60);
        let begun = history.done.last().expect("60").ended + 1;
        let (change, ended) = (Change::Create("x".into(), 1000), begun + 1);
        history.done.push(Done { change, begun, ended });
        history.fsyncs.push(ended + 1);
        let why = verify(dir.path(), history).expect_err("x is missing");
        assert!(why.contains("only 60 are there"), "{why}");
    }
}

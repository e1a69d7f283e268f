//! Directories of a worker's own: it knows exactly what must be there, and looks on its own mount and on the others.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Check, Worker, pause, random_bytes};
use crate::check::tree::{Found, Model};
use crate::watch::{Kind, Stamp, Watch};

/// Names in each of the two directories.
const NAMES: usize = 8;
/// Largest files: inline, of a chunk, of several chunks, bytes.
const INLINE_MAX: usize = 4096;
const MIDDLE_MAX: usize = 200_000;
const LARGE_MAX: usize = 4 << 20;

/// Why a step did not go as it should.
enum Trouble {
    /// An operation failed.
    Failed(String),
    /// Something else was found than was to be.
    Wrong(String),
}

type Step<T = ()> = Result<T, Trouble>;

struct Private {
    watch: Arc<Watch>,
    mount: usize,
    dir: String,
    /// A file of its own that stays open: it is told of whatever is lost.
    sentinel: Option<File>,
    sentinel_path: PathBuf,
    rng: StdRng,
    model: Arc<Mutex<Model>>,
    /// Of the mount, when the model was last known to be right.
    generation: u64,
    sure: Stamp,
}

/// What compares the tree with the model at the end, on every mount.
struct Last {
    dir: String,
    model: Arc<Mutex<Model>>,
}

/// A worker on a mount, and what checks its tree at the end.
pub fn pair(
    watch: &Arc<Watch>,
    mount: usize,
    number: usize,
    seed: u64,
) -> anyhow::Result<(impl Worker + 'static, Box<dyn Check>)> {
    let dir = format!("private{mount}-{number}");
    let path = watch.path(mount, &dir);
    fs::create_dir(&path)
        .and_then(|()| fs::create_dir(path.join("sub")))
        .with_context(|| format!("making {}", path.display()))?;
    let sentinel = watch.path(mount, format!("sentinel{mount}-{number}"));
    File::create_new(&sentinel)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("making {}", sentinel.display()))?;
    let model = Arc::new(Mutex::new(Model::default()));
    let last = Box::new(Last { dir: dir.clone(), model: model.clone() });
    let (watch, rng) = (watch.clone(), StdRng::seed_from_u64(seed));
    Ok((
        Private {
            watch,
            mount,
            dir,
            sentinel_path: sentinel,
            sentinel: None,
            rng,
            model,
            generation: 0,
            sure: 0,
        },
        last,
    ))
}

impl Worker for Private {
    fn run(&mut self) {
        match File::options().write(true).open(&self.sentinel_path) {
            Ok(file) => self.sentinel = Some(file),
            Err(error) => return self.watch.violation(format!("{}: {error}", self.sentinel_path.display())),
        }
        while !self.watch.is_stopped() {
            if self.watch.generation(self.mount) != self.generation {
                self.look_again(None);
                continue;
            }
            if let Err(trouble) = self.step() {
                self.look_again(Some(trouble));
            }
            pause(&mut self.rng);
        }
        self.watch.settle(self.mount);
        if self.watch.generation(self.mount) != self.generation {
            self.look_again(None);
        }
    }
}

impl Private {
    fn with<T>(&self, work: impl FnOnce(&mut Model) -> T) -> T {
        work(&mut self.model.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn path(&self, mount: usize, name: &str) -> PathBuf {
        self.watch.path(mount, &self.dir).join(name)
    }

    /// An operation on the own mount.
    fn op<T>(&self, kind: Kind, name: &str, work: impl FnOnce() -> io::Result<T>) -> Step<T> {
        let done = self.watch.op(self.mount, kind, work);
        done.result.map_err(|error| {
            Trouble::Failed(format!("{kind:?} of {}/{name} on mount {}: {error}", self.dir, self.mount))
        })
    }

    fn any_name(&mut self) -> String {
        let number = self.rng.random_range(0..NAMES);
        if self.rng.random_ratio(1, 3) { format!("sub/f{number}") } else { format!("f{number}") }
    }

    /// A name that is there.
    fn some_name(&mut self) -> Option<(String, u64)> {
        let names = self.with(|model| model.names().clone());
        let at = (!names.is_empty()).then(|| self.rng.random_range(0..names.len()))?;
        names.into_iter().nth(at)
    }

    fn step(&mut self) -> Step {
        let Some((name, inode)) = self.some_name() else { return self.create("f0".into()) };
        match self.rng.random_range(0..100) {
            0..22 => {
                let name = self.any_name();
                if self.with(|model| model.names().contains_key(&name)) {
                    self.unlink(name)
                } else {
                    self.create(name)
                }
            }
            22..36 => self.change(&name, inode),
            36..42 => self.truncate(&name, inode),
            42..50 => self.rename(name),
            50..54 => self.link(name, inode),
            54..60 => self.sync_file(&name, inode),
            60..63 => self.sync_names(),
            63..73 => self.read(self.mount, &name, inode),
            73..76 => self.list(self.mount),
            76..80 => self.stat(self.mount, &name, inode),
            80..100 => {
                let other = (self.mount + self.rng.random_range(1..self.watch.mounts.len()))
                    % self.watch.mounts.len();
                if self.watch.in_trouble(other) {
                    return Ok(());
                }
                match self.rng.random_range(0..4) {
                    0 | 1 => self.read(other, &name, inode),
                    2 => self.list(other),
                    _ => self.stat(other, &name, inode),
                }
            }
            _ => unreachable!("less than 100"),
        }
    }

    fn length(&mut self) -> usize {
        match self.rng.random_range(0..20) {
            0..11 => self.rng.random_range(0..=INLINE_MAX),
            11..19 => self.rng.random_range(INLINE_MAX..MIDDLE_MAX),
            _ => self.rng.random_range(MIDDLE_MAX..LARGE_MAX),
        }
    }

    fn create(&mut self, name: String) -> Step {
        let path = self.path(self.mount, &name);
        let made = self.op(Kind::Create, &name, || {
            let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
            let inode = file.metadata()?.ino();
            Ok((file, inode))
        });
        let (file, inode) = made.inspect_err(|_| self.with(|model| model.doubt(&[&name])))?;
        self.with(|model| model.change_names(|names| names.insert(name.clone(), inode)));
        let length = self.length();
        let bytes = random_bytes(&mut self.rng, length);
        let half = self.rng.random_range(0..=length);
        for part in [0..half, half..length] {
            self.write(&file, &name, inode, part.start, &bytes[part])?;
        }
        if self.rng.random() { self.sync(&file, &name, inode) } else { Ok(()) }
    }

    /// pwrite, and what the file holds then. What failed may have been done.
    fn write(&self, file: &File, name: &str, inode: u64, offset: usize, bytes: &[u8]) -> Step {
        let mut whole = self.with(|model| model.content(inode)).to_vec();
        whole.resize(whole.len().max(offset + bytes.len()), 0);
        whole[offset..offset + bytes.len()].copy_from_slice(bytes);
        let written = self.op(Kind::Write, name, || file.write_all_at(bytes, offset as u64));
        self.with(|model| model.change_content(inode, whole));
        written
    }

    /// Overwrites or appends.
    fn change(&mut self, name: &str, inode: u64) -> Step {
        let (path, length) = (self.path(self.mount, name), self.length() / 4);
        let bytes = random_bytes(&mut self.rng, length);
        let size = self.with(|model| model.content(inode)).len();
        let append = size < LARGE_MAX && self.rng.random();
        let file =
            self.op(Kind::Write, name, || OpenOptions::new().write(true).append(append).open(&path))?;
        if append {
            let mut whole = self.with(|model| model.content(inode)).to_vec();
            whole.extend_from_slice(&bytes);
            let written = self.op(Kind::Append, name, || io::Write::write_all(&mut &file, &bytes));
            self.with(|model| model.change_content(inode, whole));
            written?;
        } else {
            let offset = self.rng.random_range(0..=size);
            self.write(&file, name, inode, offset, &bytes)?;
        }
        if self.rng.random() { self.sync(&file, name, inode) } else { Ok(()) }
    }

    fn truncate(&mut self, name: &str, inode: u64) -> Step {
        let path = self.path(self.mount, name);
        let mut whole = self.with(|model| model.content(inode)).to_vec();
        let length = self.rng.random_range(0..=whole.len() + 5000);
        whole.resize(length, 0);
        let file = self.op(Kind::Truncate, name, || OpenOptions::new().write(true).open(&path))?;
        let done = self.op(Kind::Truncate, name, || file.set_len(length as u64));
        self.with(|model| model.change_content(inode, whole));
        done
    }

    fn unlink(&mut self, name: String) -> Step {
        let path = self.path(self.mount, &name);
        let done = self.op(Kind::Unlink, &name, || fs::remove_file(&path));
        done.inspect_err(|_| self.with(|model| model.doubt(&[&name])))?;
        self.with(|model| model.change_names(|names| names.remove(&name)));
        Ok(())
    }

    fn rename(&mut self, from: String) -> Step {
        let to = self.any_name();
        let paths = (self.path(self.mount, &from), self.path(self.mount, &to));
        let done = self.op(Kind::Rename, &from, || fs::rename(&paths.0, &paths.1));
        done.inspect_err(|_| self.with(|model| model.doubt(&[&from, &to])))?;
        self.with(|model| {
            let same = model.names().get(&from) == model.names().get(&to);
            // Two names of one file: nothing happens.
            if !same {
                model.change_names(|names| {
                    if let Some(inode) = names.remove(&from) {
                        names.insert(to, inode);
                    }
                });
            }
        });
        Ok(())
    }

    fn link(&mut self, from: String, inode: u64) -> Step {
        let to = self.any_name();
        if self.with(|model| model.names().contains_key(&to)) {
            return Ok(());
        }
        let paths = (self.path(self.mount, &from), self.path(self.mount, &to));
        let done = self.op(Kind::Link, &to, || fs::hard_link(&paths.0, &paths.1));
        done.inspect_err(|_| self.with(|model| model.doubt(&[&to])))?;
        self.with(|model| model.change_names(|names| names.insert(to, inode)));
        Ok(())
    }

    fn sync_file(&mut self, name: &str, inode: u64) -> Step {
        let path = self.path(self.mount, name);
        let file = self.op(Kind::Fsync, name, || OpenOptions::new().write(true).open(&path))?;
        self.sync(&file, name, inode)
    }

    fn sync(&self, file: &File, name: &str, inode: u64) -> Step {
        self.op(Kind::Fsync, name, || file.sync_all())?;
        // A session that ended before the file was opened has taken what it took without telling this handle.
        if self.watch.generation(self.mount) == self.generation {
            self.with(|model| {
                model.content_is_safe(inode);
                model.names_are_safe();
            });
        }
        Ok(())
    }

    fn sync_names(&self) -> Step {
        self.op(Kind::Fsync, "sentinel", || self.sync_sentinel())?;
        self.with(Model::names_are_safe);
        Ok(())
    }

    /// An operation on any mount, and whether its answer counts: not if that mount fell into trouble meanwhile.
    fn look<T>(
        &self,
        mount: usize,
        kind: Kind,
        work: impl FnOnce() -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let before = self.watch.generation(mount);
        let done = self.watch.op(mount, kind, work);
        let calm =
            self.watch.generation(mount) == before && self.watch.generation(self.mount) == self.generation;
        calm.then_some(done.result)
    }

    fn read(&self, mount: usize, name: &str, inode: u64) -> Step {
        let path = self.path(mount, name);
        let Some(read) = self.look(mount, Kind::Read, || fs::read(&path)) else { return Ok(()) };
        let bytes = read.map_err(|error| Trouble::Failed(format!("reading {}: {error}", path.display())))?;
        if let Some(wrong) = self.with(|model| model.compare_content(inode, &bytes)) {
            return Err(Trouble::Wrong(format!("{}: {wrong}", path.display())));
        }
        if mount != self.mount {
            // Another mount has it from the servers.
            self.with(|model| model.content_is_safe(inode));
        }
        Ok(())
    }

    fn list(&self, mount: usize) -> Step {
        let path = self.path(mount, "");
        let Some(listed) = self.look(mount, Kind::List, || list(&path)) else { return Ok(()) };
        let names =
            listed.map_err(|error| Trouble::Failed(format!("listing {}: {error}", path.display())))?;
        let found = Found { names: names.into_iter().collect(), ..Found::default() };
        let wrong = self.with(|model| model.compare(&found));
        if !wrong.is_empty() {
            return Err(Trouble::Wrong(format!("{}: {}", path.display(), wrong.join("; "))));
        }
        if mount != self.mount {
            self.with(Model::names_are_safe);
        }
        Ok(())
    }

    fn stat(&self, mount: usize, name: &str, inode: u64) -> Step {
        let path = self.path(mount, name);
        let Some(stat) = self.look(mount, Kind::Stat, || fs::metadata(&path)) else { return Ok(()) };
        let stat = stat.map_err(|error| Trouble::Failed(format!("stat of {}: {error}", path.display())))?;
        let (size, links) = self.with(|model| {
            let links = model.names().values().filter(|other| **other == inode).count();
            (model.content(inode).len() as u64, links as u64)
        });
        if (stat.ino(), stat.len(), stat.nlink()) != (inode, size, links) {
            let found = (stat.ino(), stat.len(), stat.nlink());
            return Err(Trouble::Wrong(format!(
                "stat of {}: inode, size, links are {found:?}, not {:?}",
                path.display(),
                (inode, size, links)
            )));
        }
        Ok(())
    }

    /// Something happened to the mount, or something is not as it should be: everything is compared, with what the end of
    /// a session explains if there was one, and taken for what is there from now on.
    fn look_again(&mut self, trouble: Option<Trouble>) {
        let found = loop {
            self.watch.settle(self.mount);
            let generation = self.watch.generation(self.mount);
            let found = walk(&self.watch, self.mount, &self.dir);
            if self.watch.generation(self.mount) != generation {
                continue;
            }
            self.generation = generation;
            match found {
                Ok(found) => break found,
                Err(error) => {
                    self.watch
                        .violation(format!("{} cannot be read on mount {}: {error}", self.dir, self.mount));
                    return;
                }
            }
        };
        let fenced = self.watch.fences(self.mount).iter().any(|fence| fence.ended > self.sure);
        let wrong = if fenced {
            self.with(|model| model.compare_after_loss(&found))
        } else {
            if let Some(Trouble::Failed(text) | Trouble::Wrong(text)) = trouble {
                self.watch.violation(text);
            }
            self.with(|model| model.compare(&found))
        };
        for text in wrong {
            let when = if fenced { "after its session ended" } else { "with the same session" };
            self.watch.violation(format!("{} on mount {} {when}: {text}", self.dir, self.mount));
        }
        if fenced {
            self.must_be_told(&found);
        }
        self.with(|model| model.adopt(found.clone()));
        self.sure = self.watch.now();
        for (name, inode) in &found.names {
            if let Err(Trouble::Failed(text) | Trouble::Wrong(text)) = self.sync_file(name, *inode) {
                self.told_late(self.sure, text);
            }
        }
    }

    /// Names that were lost are told by the next fsync of an open file, once.
    fn must_be_told(&self, found: &Found) {
        let lost = self.with(|model| model.names_were_lost(found));
        let begun = self.watch.now();
        let first = self.watch.op(self.mount, Kind::Fsync, || self.sync_sentinel()).result;
        if lost && first.is_ok() {
            self.watch
                .violation(format!("{} lost names with its session, and fsync does not say so", self.dir));
        }
        if let Err(error) = &first
            && error.raw_os_error() != Some(libc::EIO)
        {
            self.told_late(begun, format!("fsync after the session of mount {} ended: {error}", self.mount));
        }
        if let Err(error) = self.watch.op(self.mount, Kind::Fsync, || self.sync_sentinel()).result {
            self.told_late(
                begun,
                format!("a second fsync after the session of mount {} ended: {error}", self.mount),
            );
        }
    }

    fn sync_sentinel(&self) -> io::Result<()> {
        self.sentinel.as_ref().map_or(Ok(()), File::sync_all)
    }

    /// An error is wrong unless the mount has lost its session again.
    fn told_late(&self, begun: Stamp, text: String) {
        if !self.watch.explains(self.mount, begun) {
            self.watch.violation(text);
        }
    }
}

/// Names in a directory and its `sub`, with their inodes.
fn list(path: &std::path::Path) -> io::Result<Vec<(String, u64)>> {
    let mut names = Vec::new();
    for (dir, prefix) in [(path.to_owned(), ""), (path.join("sub"), "sub/")] {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if prefix.is_empty() && name == "sub" {
                continue;
            }
            names.push((format!("{prefix}{name}"), entry.ino()));
        }
    }
    Ok(names)
}

/// Everything below a worker's directory, as a mount shows it.
fn walk(watch: &Watch, mount: usize, dir: &str) -> io::Result<Found> {
    let path = watch.path(mount, dir);
    let names = watch.op(mount, Kind::List, || list(&path)).result?;
    let mut found = Found::default();
    for (name, inode) in names {
        let path = path.join(&name);
        if !found.contents.contains_key(&inode) {
            let stat = watch.op(mount, Kind::Stat, || fs::metadata(&path)).result?;
            found.links.insert(inode, stat.nlink());
            found.contents.insert(inode, watch.op(mount, Kind::Read, || fs::read(&path)).result?);
        }
        found.names.insert(name, inode);
    }
    Ok(found)
}

impl Check for Last {
    fn check(&mut self, watch: &Watch) {
        for mount in 0..watch.mounts.len() {
            let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
            match walk(watch, mount, &self.dir) {
                Ok(found) => {
                    for wrong in model.compare(&found) {
                        watch.violation(format!("at the end {} on mount {mount}: {wrong}", self.dir));
                    }
                }
                Err(error) => watch.violation(format!("at the end {} on mount {mount}: {error}", self.dir)),
            }
        }
    }
}

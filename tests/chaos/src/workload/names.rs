//! A few names in one directory that all mounts make (exclusively: one of them wins), remove, look up and list.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use gofs_posix_tests::posix::{self, RenameKind};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Check, Worker, pause};
use crate::check::linear::Action;
use crate::check::names::{self, Entry, UNKNOWN};
use crate::watch::{Done, Kind, Stamp, Watch};

const NAMES: usize = 6;
const DIR: &str = "names";

/// What all workers on the names share.
pub struct Shared(Arc<Vec<Mutex<Vec<Entry>>>>);

struct Fighter {
    watch: Arc<Watch>,
    mount: usize,
    rng: StdRng,
    histories: Arc<Vec<Mutex<Vec<Entry>>>>,
    own: u64,
}

impl Shared {
    /// Makes the directory.
    pub fn new(watch: &Watch) -> anyhow::Result<Shared> {
        let dir = watch.path(0, DIR);
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Shared(Arc::new((0..NAMES).map(|_| Mutex::default()).collect())))
    }

    /// A further worker.
    pub fn worker(&self, watch: &Arc<Watch>, mount: usize, seed: u64) -> impl Worker + 'static {
        let (watch, histories, rng) = (watch.clone(), self.0.clone(), StdRng::seed_from_u64(seed));
        Fighter { watch, mount, rng, histories, own: 0 }
    }
}

impl Worker for Fighter {
    fn run(&mut self) {
        while !self.watch.is_stopped() {
            let begun = self.watch.now();
            let name = self.rng.random_range(0..NAMES);
            let result = match self.rng.random_range(0..12) {
                0..2 => self.create(name),
                2..4 => self.take_own(name),
                4..7 => self.remove(name),
                7..11 => self.look(name),
                _ => self.list(),
            };
            // An error is only explained by a session that ended.
            if let Err(text) = result
                && !self.watch.explains(self.mount, begun)
            {
                self.watch.violation(text);
            }
            pause(&mut self.rng);
        }
    }
}

impl Fighter {
    fn path(&self, name: usize) -> std::path::PathBuf {
        self.watch.path(self.mount, format!("{DIR}/{name}"))
    }

    /// Notes what an operation did; the error where it tells nothing.
    fn note<T>(
        &self,
        name: usize,
        done: Done<T>,
        what: impl FnOnce(&Result<T, ErrorKind>) -> Option<Action>,
        if_failed: Option<Action>,
    ) -> Result<(), String> {
        let (text, failed_kind) = match &done.result {
            Ok(_) => (String::new(), ErrorKind::Other),
            Err(error) => (error.to_string(), error.kind()),
        };
        let action = what(&done.result.map_err(|_| failed_kind));
        let entry = |action, failed| Entry {
            mount: self.mount,
            begun: done.begun,
            ended: done.ended,
            action,
            failed,
        };
        match (action, if_failed) {
            (Some(action), _) => push(&self.histories[name], entry(action, false)),
            (None, Some(action)) => push(&self.histories[name], entry(action, true)),
            (None, None) => {}
        }
        match action {
            Some(_) => Ok(()),
            None => Err(format!("name {name} on mount {}, {if_failed:?}: {text}", self.mount)),
        }
    }

    fn create(&mut self, name: usize) -> Result<(), String> {
        let path = self.path(name);
        let done = self.watch.op(self.mount, Kind::Create, || File::create_new(&path));
        let inode = |file: File| Ok(file.metadata()?.ino());
        let done = Done { result: done.result.and_then(inode), begun: done.begun, ended: done.ended };
        self.note(name, done, taken, Some(Action::Take(UNKNOWN)))
    }

    /// Gives the name to a file that has one of its own, which nobody else knows.
    fn take_own(&mut self, name: usize) -> Result<(), String> {
        self.own += 1;
        let (own, path) =
            (self.watch.path(self.mount, format!("{DIR}/own{}-{}", self.mount, self.own)), self.path(name));
        let made = self.watch.op(self.mount, Kind::Create, || File::create_new(&own)?.metadata());
        let inode = made.result.map_err(|error| format!("making {}: {error}", own.display()))?.ino();
        let done = if self.rng.random() {
            self.watch.op(self.mount, Kind::Rename, || posix::rename(&own, &path, RenameKind::NoReplace))
        } else {
            self.watch.op(self.mount, Kind::Link, || fs::hard_link(&own, &path))
        };
        let done = Done { result: done.result.map(|()| inode), begun: done.begun, ended: done.ended };
        let noted = self.note(name, done, taken, Some(Action::Take(inode)));
        // Gone already after the renaming.
        match self.watch.op(self.mount, Kind::Unlink, || fs::remove_file(&own)).result {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                noted.and(Err(format!("removing {}: {error}", own.display())))
            }
            _ => noted,
        }
    }

    fn remove(&self, name: usize) -> Result<(), String> {
        let path = self.path(name);
        let done = self.watch.op(self.mount, Kind::Unlink, || fs::remove_file(&path));
        let removed = |result: &Result<(), ErrorKind>| match result {
            Ok(()) => Some(Action::Free),
            Err(ErrorKind::NotFound) => Some(Action::FreeRefused),
            Err(_) => None,
        };
        self.note(name, done, removed, Some(Action::Free))
    }

    fn look(&self, name: usize) -> Result<(), String> {
        let path = self.path(name);
        let done = self.watch.op(self.mount, Kind::Stat, || fs::metadata(&path).map(|stat| stat.ino()));
        self.note(name, done, seen, None)
    }

    /// A listing is no look at one moment: of each name it tells what was there at some moment of it.
    fn list(&self) -> Result<(), String> {
        let dir = self.watch.path(self.mount, DIR);
        let done = self.watch.op(self.mount, Kind::List, || list(&dir));
        let found = done.result.map_err(|error| format!("listing {}: {error}", dir.display()))?;
        for name in 0..NAMES {
            let action =
                Action::Read(found.iter().find(|(own, _)| *own == name.to_string()).map(|(_, inode)| *inode));
            let entry =
                Entry { mount: self.mount, begun: done.begun, ended: done.ended, action, failed: false };
            push(&self.histories[name], entry);
        }
        Ok(())
    }
}

fn taken(result: &Result<u64, ErrorKind>) -> Option<Action> {
    match result {
        Ok(inode) => Some(Action::Take(*inode)),
        Err(ErrorKind::AlreadyExists) => Some(Action::TakeRefused),
        Err(_) => None,
    }
}

fn seen(result: &Result<u64, ErrorKind>) -> Option<Action> {
    match result {
        Ok(inode) => Some(Action::Read(Some(*inode))),
        Err(ErrorKind::NotFound) => Some(Action::Read(None)),
        Err(_) => None,
    }
}

fn list(dir: &Path) -> io::Result<Vec<(String, u64)>> {
    fs::read_dir(dir)?
        .map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.ino())))
        .collect()
}

fn push(history: &Mutex<Vec<Entry>>, entry: Entry) {
    history.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
}

impl Check for Shared {
    fn check(&mut self, watch: &Watch) {
        let fences = watch.all_fences();
        for (name, history) in self.0.iter().enumerate() {
            let mut history = history.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for mount in 0..watch.mounts.len() {
                let path = watch.path(mount, format!("{DIR}/{name}"));
                let done = watch.op(mount, Kind::Stat, || fs::metadata(&path).map(|stat| stat.ino()));
                let (begun, ended): (Stamp, Stamp) = (done.begun, done.ended);
                match seen(&done.result.map_err(|error| error.kind())) {
                    Some(action) => history.push(Entry { mount, begun, ended, action, failed: false }),
                    None => watch.violation(format!("name {name} on mount {mount} cannot be looked up")),
                }
            }
            if let Some(wrong) = names::check(&history, &fences) {
                watch.violation(format!("name {name}: {wrong}"));
            }
        }
    }
}

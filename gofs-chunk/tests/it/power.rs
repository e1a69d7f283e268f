//! A watcher that knows what a power cut may leave of the store's files.
//!
//! Of each 512-byte sector every content since the file's last sync is kept; after a cut any of them
//! may be there, for each sector another. Names of files that were not synced with their directory may be gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use gofs_chunk::store::FileWatch;
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;

const SECTOR: usize = 512;

/// What a cut does to sectors that were not synced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cut {
    /// Nothing: only the process died.
    Kill,
    /// All keep what was there at the last sync.
    LoseAll,
    /// Each by itself.
    Sectors,
    /// Each 4 KiB page by itself.
    Pages,
    /// Each file by itself.
    Files,
}

#[derive(Default)]
struct State {
    files: BTreeMap<PathBuf, BTreeMap<u64, Vec<[u8; SECTOR]>>>,
    nameless: BTreeSet<PathBuf>,
    /// What is made once everything fails: a process that has died makes nothing.
    posthumous: BTreeSet<PathBuf>,
    /// Changes that are still let through; after them everything fails, as if the process had died.
    budget: u64,
}

/// See the module.
pub struct Power {
    state: Mutex<State>,
}

impl Power {
    /// Lets `budget` changes through.
    pub fn new(budget: u64) -> Power {
        Power { state: Mutex::new(State { budget, ..State::default() }) }
    }

    /// Whether the budget is used up.
    pub fn is_dead(&self) -> bool {
        self.state.lock().budget == 0
    }

    fn spend(state: &mut State) -> io::Result<()> {
        state.budget = state.budget.saturating_sub(1);
        if state.budget == 0 { Err(io::Error::other("the process has died")) } else { Ok(()) }
    }

    /// Copies the directory as a cut at this moment leaves it. Returns what watches it from then on: after
    /// a kill what was not synced still is not.
    pub fn cut(&self, from: &Path, to: &Path, cut: Cut, budget: u64, rng: &mut StdRng) -> Power {
        let state = self.state.lock();
        copy_tree(from, to);
        let after = Power::new(budget);
        let moved = |path: &PathBuf| to.join(path.strip_prefix(from).unwrap());
        for path in state.posthumous.iter().map(moved).filter(|path| path.exists()) {
            std::fs::remove_file(path).unwrap();
        }
        if cut == Cut::Kill {
            let mut then = after.state.lock();
            then.files = state.files.iter().map(|(path, sectors)| (moved(path), sectors.clone())).collect();
            then.nameless = state.nameless.iter().map(moved).collect();
            drop(then);
            return after;
        }
        for (path, sectors) in &state.files {
            let target = moved(path);
            if !target.exists() {
                continue;
            }
            let file = File::options().write(true).open(&target).unwrap();
            let of_file = rng.random_bool(0.5);
            let mut of_page = (u64::MAX, false);
            for (sector, versions) in sectors {
                let pick = match cut {
                    Cut::Kill => unreachable!(),
                    Cut::LoseAll => 0,
                    Cut::Sectors => rng.random_range(0..versions.len()),
                    Cut::Pages => {
                        if of_page.0 != sector / 8 {
                            of_page = (sector / 8, rng.random_bool(0.5));
                        }
                        if of_page.1 { versions.len() - 1 } else { 0 }
                    }
                    Cut::Files => {
                        if of_file {
                            versions.len() - 1
                        } else {
                            0
                        }
                    }
                };
                file.write_all_at(&versions[pick], sector * SECTOR as u64).unwrap();
            }
        }
        for path in &state.nameless {
            let target = moved(path);
            if target.exists() && (cut == Cut::LoseAll || rng.random_bool(0.5)) {
                std::fs::remove_file(target).unwrap();
            }
        }
        after
    }
}

impl FileWatch for Power {
    fn will_write(&self, path: &Path, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        Power::spend(&mut state)?;
        let sectors = state.files.entry(path.to_owned()).or_default();
        let end = offset + bytes.len() as u64;
        for sector in offset / SECTOR as u64..end.div_ceil(SECTOR as u64) {
            let start = sector * SECTOR as u64;
            let versions = sectors.entry(sector).or_insert_with(|| {
                let mut old = [0; SECTOR];
                let mut done = 0;
                while done < SECTOR {
                    match file.read_at(&mut old[done..], start + done as u64).unwrap() {
                        0 => break,
                        read => done += read,
                    }
                }
                vec![old]
            });
            let mut new = *versions.last().unwrap();
            for (i, byte) in new.iter_mut().enumerate() {
                let at = start + i as u64;
                if (offset..end).contains(&at) {
                    *byte = bytes[(at - offset) as usize];
                }
            }
            versions.push(new);
        }
        Ok(())
    }

    fn will_sync(&self, _: &Path) -> io::Result<()> {
        Power::spend(&mut self.state.lock())
    }

    fn synced(&self, path: &Path) {
        self.state.lock().files.remove(path);
    }

    fn created(&self, path: &Path) {
        let mut state = self.state.lock();
        state.files.remove(path);
        state.nameless.insert(path.to_owned());
        if state.budget == 0 {
            state.posthumous.insert(path.to_owned());
        }
    }

    fn dir_synced(&self, dir: &Path) {
        let mut state = self.state.lock();
        if state.budget > 0 {
            state.nameless.retain(|path| path.parent() != Some(dir));
        }
    }
}

/// Copies a directory with all that is in it.
pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

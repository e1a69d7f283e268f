//! Load that knows what must be there afterwards: files written and fsynced, and their content.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// What a path must hold: content made of a seed, or nothing at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Content { seed: u64, len: usize },
    Absent,
}

/// What was acknowledged, for all threads of a load.
#[derive(Default)]
struct Acknowledged {
    paths: BTreeMap<PathBuf, Expected>,
}

/// Threads that write, fsync, rename and remove files in a directory, and remember.
pub struct Load {
    acknowledged: Arc<Mutex<Acknowledged>>,
    operations: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Load {
    /// A load that has done nothing yet.
    #[allow(clippy::new_without_default, reason = "a test's tool")]
    pub fn new() -> Load {
        Load {
            acknowledged: Arc::default(),
            operations: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        }
    }

    /// Starts threads below `root` (a mount), each in a directory of its own.
    pub fn start(&mut self, root: &Path, threads: usize, seed: u64) {
        self.stop.store(false, Ordering::Release);
        for thread in 0..threads {
            let worker = Worker {
                root: root.to_path_buf(),
                dir: PathBuf::from(format!("load{thread}")),
                rng: StdRng::seed_from_u64(seed ^ ((thread as u64) << 32)),
                acknowledged: self.acknowledged.clone(),
                operations: self.operations.clone(),
                stop: self.stop.clone(),
            };
            self.threads.push(std::thread::spawn(move || worker.run()));
        }
    }

    /// Operations acknowledged since the beginning.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::Acquire)
    }

    /// Has the threads stop; the errors that ended them before.
    pub fn stop(&mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Release);
        self.threads.drain(..).filter_map(|t| t.join().expect("no panic in the load").err()).collect()
    }

    /// Compares all that was acknowledged with what is there; the differences.
    pub fn verify(&self, root: &Path) -> Vec<String> {
        let acknowledged = self.acknowledged.lock().expect("no panic while locked");
        let mut wrong = Vec::new();
        for (path, expected) in &acknowledged.paths {
            let found = fs::read(root.join(path));
            match (expected, found) {
                (Expected::Absent, Err(e)) if e.kind() == io::ErrorKind::NotFound => {}
                (Expected::Absent, other) => {
                    wrong.push(format!("{}: removed, but {:?}", path.display(), other.map(|d| d.len())));
                }
                (Expected::Content { seed, len }, Ok(data)) if data == content(*seed, *len) => {}
                (Expected::Content { seed, len }, Ok(data)) => {
                    let wanted = content(*seed, *len);
                    let first = data.iter().zip(&wanted).position(|(a, b)| a != b);
                    wrong.push(format!(
                        "{}: {len} bytes of seed {seed} wanted, {} found, first difference at {first:?}",
                        path.display(),
                        data.len()
                    ));
                }
                (Expected::Content { .. }, Err(e)) => wrong.push(format!("{}: {e}", path.display())),
            }
        }
        wrong
    }

    /// How many paths are known to be there.
    pub fn files(&self) -> usize {
        let acknowledged = self.acknowledged.lock().expect("no panic while locked");
        acknowledged.paths.values().filter(|e| **e != Expected::Absent).count()
    }
}

/// The bytes of a seed.
pub fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

struct Worker {
    root: PathBuf,
    dir: PathBuf,
    rng: StdRng,
    acknowledged: Arc<Mutex<Acknowledged>>,
    operations: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    fn run(mut self) -> Result<(), String> {
        let dir = self.root.join(&self.dir);
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        while !self.stop.load(Ordering::Acquire) {
            let path = self.dir.join(format!("f{}", self.rng.random_range(0..60)));
            let step = match self.rng.random_range(0..10) {
                0 => self.remove(&path),
                1 => self.rename(&path),
                _ => self.write(&path),
            };
            step.map_err(|e| format!("{}: {e}", path.display()))?;
            self.operations.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Before an operation its path is unknown, after it known.
    fn forget(&self, path: &Path) -> Option<Expected> {
        self.acknowledged.lock().expect("no panic while locked").paths.remove(path)
    }

    fn remember(&self, path: &Path, expected: Expected) {
        self.acknowledged.lock().expect("no panic while locked").paths.insert(path.to_path_buf(), expected);
    }

    fn write(&mut self, path: &Path) -> io::Result<()> {
        self.forget(path);
        let len = match self.rng.random_range(0..20) {
            0 => self.rng.random_range(1 << 20..4 << 20),
            1..6 => self.rng.random_range(5_000..200_000),
            _ => self.rng.random_range(0..4096),
        };
        let seed = self.rng.random();
        let file = File::create(self.root.join(path))?;
        let data = content(seed, len);
        let half = self.rng.random_range(0..=data.len());
        (&file).write_all(&data[..half])?;
        (&file).write_all(&data[half..])?;
        file.sync_all()?;
        self.remember(path, Expected::Content { seed, len });
        Ok(())
    }

    /// A change of names is durable when its directory was fsynced.
    fn sync_names(&self) -> io::Result<()> {
        File::open(self.root.join(&self.dir))?.sync_all()
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.forget(path);
        match fs::remove_file(self.root.join(path)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.sync_names()?;
        self.remember(path, Expected::Absent);
        Ok(())
    }

    fn rename(&mut self, path: &Path) -> io::Result<()> {
        let target = self.dir.join(format!("f{}", self.rng.random_range(0..60)));
        let before = self.forget(path);
        if target == path || !matches!(before, Some(Expected::Content { .. })) {
            if let Some(before) = before {
                self.remember(path, before);
            }
            return Ok(());
        }
        self.forget(&target);
        fs::rename(self.root.join(path), self.root.join(&target))?;
        self.sync_names()?;
        self.remember(path, Expected::Absent);
        if let Some(before) = before {
            self.remember(&target, before);
        }
        Ok(())
    }
}

//! Random operations on two mounts against a directory of a local file system: the same results,
//! the same errors, the same tree, whichever mount acts and whichever looks. Beside directories that both change there
//! is one for each that the other seldom looks at, and a third mount that takes leases back at random.
//!
//! A failure prints the seed and the command that replays it.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gofs_posix_tests::posix::{self, RenameKind};
use gofs_posix_tests::{Cluster, Mount};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

/// Steps of a run; GOFS_RANDOM_STEPS changes it.
const STEPS: usize = 10_000;
/// Each change is committed before the next.
const SYNC_STEPS: usize = 2_000;
/// How often the other mount looks at what only one changes.
const OWN_OBSERVED: f64 = 0.03;
/// Steps between comparisons of the whole tree.
const COMPARE_EVERY: usize = 150;
/// Longest pause between two leases that are taken back.
const MEDDLE_PAUSE_MS: u64 = 12;
/// Open files kept on each side.
const OPEN_MAX: usize = 6;
/// Largest offset written to: past `inline_max` and several chunks of the namespace's 64 KiB.
const OFFSET_MAX: u64 = 300_000;

/// The state of a run.
struct Run {
    rng: StdRng,
    mounts: [Mount; 2],
    local: TempDir,
    /// Open on a mount and in the reference, under the same number.
    open: Vec<(File, File)>,
    /// Paths that the step named, and the mount on which it was done.
    touched: Vec<PathBuf>,
    acted_on: usize,
    history: Vec<String>,
}

/// What an operation gave, comparable between file systems.
type Outcome = Result<Vec<u8>, i32>;

fn outcome<T: Into<Vec<u8>>>(result: io::Result<T>) -> Outcome {
    result.map(Into::into).map_err(|error| error.raw_os_error().unwrap_or(-1))
}

fn done(result: io::Result<()>) -> Outcome {
    outcome(result.map(|()| Vec::new()))
}

impl Run {
    fn new(seed: u64, mounts: [Mount; 2]) -> Run {
        let local = TempDir::with_prefix("gofs-reference-").unwrap();
        Run {
            rng: StdRng::seed_from_u64(seed),
            mounts,
            local,
            open: Vec::new(),
            touched: Vec::new(),
            acted_on: 0,
            history: Vec::new(),
        }
    }

    /// A path of few names, so that operations meet.
    fn path(&mut self) -> PathBuf {
        let mut path = PathBuf::new();
        if self.rng.random_bool(0.4) {
            path.push(format!("own{}", self.rng.random_range(0..2)));
        }
        for _ in 0..self.rng.random_range(0..3) {
            path.push(format!("d{}", self.rng.random_range(0..3)));
        }
        path.push(if self.rng.random_bool(0.7) {
            format!("f{}", self.rng.random_range(0..5))
        } else {
            format!("d{}", self.rng.random_range(0..3))
        });
        self.touched.push(path.clone());
        path
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = match self.rng.random_range(0..4) {
            0 => self.rng.random_range(0..20),
            1 => self.rng.random_range(0..5_000),
            2 => self.rng.random_range(0..20_000),
            _ => self.rng.random_range(0..150_000),
        };
        let fill: u8 = self.rng.random();
        (0..length).map(|index| fill.wrapping_add((index / 7) as u8)).collect()
    }

    /// Does it on a mount and in the reference, and compares.
    fn both(&mut self, what: String, act: impl Fn(&Path) -> Outcome) {
        let which = self.actor();
        self.history.push(format!("[{which}] {what}"));
        let expected = act(self.local.path());
        let got = act(self.mounts[which].path());
        self.same(&expected, &got);
    }

    /// The mount that acts: where the step names something of its own, the owner.
    fn actor(&mut self) -> usize {
        let owner =
            self.touched.iter().find_map(|path| (0..2).find(|which| path.starts_with(format!("own{which}"))));
        self.acted_on = owner.unwrap_or_else(|| self.rng.random_range(0..2));
        self.acted_on
    }

    fn same(&self, expected: &Outcome, got: &Outcome) {
        if expected != got {
            let show = |outcome: &Outcome| match outcome {
                Ok(bytes) if bytes.len() > 80 => format!("{} bytes", bytes.len()),
                other => format!("{other:?}"),
            };
            let differs = match (expected, got) {
                (Ok(expected), Ok(got)) => expected.iter().zip(got).position(|(a, b)| a != b),
                _ => None,
            };
            self.fail(&format!(
                "expected {}, got {}, first difference {differs:?}",
                show(expected),
                show(got)
            ));
        }
    }

    fn fail(&self, why: &str) -> ! {
        let from = self.history.len().saturating_sub(40);
        panic!("{why}\nlast steps:\n{}", self.history[from..].join("\n"));
    }

    fn step(&mut self) {
        let path = self.path();
        let shown = path.display().to_string();
        match self.rng.random_range(0..24) {
            0..=2 => {
                let bytes = self.bytes();
                self.both(format!("write {shown}, {} bytes", bytes.len()), |root| {
                    done(fs::write(root.join(&path), &bytes))
                });
            }
            3 => self.both(format!("create_new {shown}"), |root| {
                done(File::create_new(root.join(&path)).map(drop))
            }),
            4 => self.both(format!("mkdir {shown}"), |root| done(fs::create_dir(root.join(&path)))),
            5 => self.both(format!("rmdir {shown}"), |root| done(fs::remove_dir(root.join(&path)))),
            6 => self.both(format!("unlink {shown}"), |root| done(fs::remove_file(root.join(&path)))),
            7..=8 => {
                let to = self.path();
                let kind = match self.rng.random_range(0..6) {
                    0 => RenameKind::NoReplace,
                    1 => RenameKind::Exchange,
                    _ => RenameKind::Replace,
                };
                self.both(format!("rename {shown} to {} {kind:?}", to.display()), |root| {
                    done(posix::rename(&root.join(&path), &root.join(&to), kind))
                });
            }
            9 => {
                let to = self.path();
                self.both(format!("link {shown} to {}", to.display()), |root| {
                    done(fs::hard_link(root.join(&path), root.join(&to)))
                });
            }
            10 => {
                let target = self.path();
                self.both(format!("symlink {shown} to {}", target.display()), |root| {
                    done(symlink(&target, root.join(&path)))
                });
            }
            11 => {
                let size = self.rng.random_range(0..OFFSET_MAX);
                self.both(format!("truncate {shown} to {size}"), |root| {
                    done(OpenOptions::new().write(true).open(root.join(&path)).and_then(|f| f.set_len(size)))
                });
            }
            12 => {
                let (bytes, offset) = (self.bytes(), self.rng.random_range(0..OFFSET_MAX));
                self.both(format!("write {shown} at {offset}, {} bytes", bytes.len()), |root| {
                    let file = OpenOptions::new().write(true).open(root.join(&path));
                    done(file.and_then(|file| file.write_all_at(&bytes, offset)))
                });
            }
            13 => {
                let bytes = self.bytes();
                self.both(format!("append {shown}, {} bytes", bytes.len()), |root| {
                    let file = OpenOptions::new().append(true).open(root.join(&path));
                    done(file.and_then(|mut file| io::Write::write_all(&mut file, &bytes)))
                });
            }
            14 => {
                let mode = self.rng.random_range(0..0o1000) | 0o600;
                self.both(format!("chmod {shown} {mode:o}"), |root| {
                    done(fs::set_permissions(root.join(&path), fs::Permissions::from_mode(mode | 0o100)))
                });
            }
            15..=16 => self.both(format!("read {shown}"), |root| outcome(fs::read(root.join(&path)))),
            17 => self.both(format!("stat {shown}"), |root| {
                outcome(fs::symlink_metadata(root.join(&path)).map(|metadata| describe(&metadata)))
            }),
            18 => self.both(format!("list {shown}"), |root| outcome(listing(&root.join(&path)))),
            19 => self.open(&path),
            20 => self.use_open(),
            21 => self.close(),
            22 => {
                let (start, length) =
                    (self.rng.random_range(0..OFFSET_MAX), self.rng.random_range(1..100_000));
                let mode = match self.rng.random_range(0..5) {
                    0 => 0,
                    1 => libc::FALLOC_FL_KEEP_SIZE,
                    2 => libc::FALLOC_FL_ZERO_RANGE,
                    3 => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                    _ => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                };
                self.both(format!("fallocate {shown} mode {mode} {start}+{length}"), |root| {
                    let file = OpenOptions::new().write(true).open(root.join(&path));
                    done(file.and_then(|file| posix::fallocate(&file, mode, start, length)))
                });
            }
            _ => {
                let to = self.path();
                let (offset, to_offset) =
                    (self.rng.random_range(0..OFFSET_MAX), self.rng.random_range(0..OFFSET_MAX));
                let length = self.rng.random_range(1..100_000);
                if path != to {
                    self.both(
                        format!("copy {shown} {offset}+{length} to {} {to_offset}", to.display()),
                        |root| done(copy(&root.join(&path), offset, &root.join(&to), to_offset, length)),
                    );
                }
            }
        }
    }

    fn open(&mut self, path: &Path) {
        if self.open.len() >= OPEN_MAX {
            return;
        }
        let which = self.actor();
        self.history.push(format!("[{which}] open {} as #{}", path.display(), self.open.len()));
        let open = |root: &Path| OpenOptions::new().read(true).write(true).open(root.join(path));
        match (open(self.local.path()), open(self.mounts[which].path())) {
            (Ok(reference), Ok(file)) => self.open.push((file, reference)),
            (expected, got) => self.same(&done(expected.map(drop)), &done(got.map(drop))),
        }
    }

    fn use_open(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let number = self.rng.random_range(0..self.open.len());
        let (bytes, offset) = (self.bytes(), self.rng.random_range(0..OFFSET_MAX));
        let action = self.rng.random_range(0..4);
        self.history.push(format!("#{number} action {action} at {offset}, {} bytes", bytes.len()));
        let act = |file: &File| match action {
            0 => done(file.write_all_at(&bytes, offset)),
            1 => done(file.set_len(offset)),
            2 => outcome(file.metadata().map(|metadata| describe(&metadata))),
            _ => {
                let mut seen = vec![0; bytes.len()];
                outcome(file.read_at(&mut seen, offset).map(|length| {
                    seen.truncate(length);
                    seen
                }))
            }
        };
        let (file, reference) = &self.open[number];
        let (expected, got) = (act(reference), act(file));
        self.same(&expected, &got);
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            let number = self.rng.random_range(0..self.open.len());
            self.history.push(format!("close #{number}"));
            self.open.swap_remove(number);
        }
    }

    /// What the step named, as the mount sees it on which the step was not done.
    fn observe(&mut self) {
        let other = 1 - self.acted_on;
        for path in std::mem::take(&mut self.touched) {
            let is_own = path.starts_with("own0") || path.starts_with("own1");
            if is_own && !self.rng.random_bool(OWN_OBSERVED) {
                continue;
            }
            self.history.push(format!("[{other}] observe {}", path.display()));
            let parent = path.parent().unwrap_or(Path::new(""));
            let see = |root: &Path| {
                let full = root.join(&path);
                let metadata = outcome(fs::symlink_metadata(&full).map(|metadata| describe(&metadata)));
                [metadata, outcome(fs::read(&full)), outcome(listing(&root.join(parent)))]
            };
            let (expected, got) = (see(self.local.path()), see(self.mounts[other].path()));
            for (expected, got) in expected.iter().zip(&got) {
                self.same(expected, got);
            }
        }
    }

    fn compare(&self) {
        let expected = tree(self.local.path());
        for (which, mount) in self.mounts.iter().enumerate() {
            let got = tree(mount.path());
            if got != expected {
                let differing: Vec<&String> = expected
                    .keys()
                    .chain(got.keys())
                    .filter(|path| expected.get(*path) != got.get(*path))
                    .collect();
                self.fail(&format!("the tree on mount {which} differs in {differing:?}"));
            }
        }
    }
}

/// Type, mode, links and size, without what differs between file systems.
fn describe(metadata: &fs::Metadata) -> Vec<u8> {
    let size = if metadata.is_dir() { 0 } else { metadata.len() };
    format!("{:o} {} {size}", metadata.mode(), metadata.nlink()).into_bytes()
}

fn listing(dir: &Path) -> io::Result<Vec<u8>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        names.push(format!("{:?} {:?}", entry.file_name(), entry.file_type()?));
    }
    names.sort();
    Ok(names.join("\n").into_bytes())
}

fn copy(from: &Path, offset: u64, to: &Path, to_offset: u64, length: usize) -> io::Result<()> {
    let from = File::open(from)?;
    let to = OpenOptions::new().write(true).open(to)?;
    let mut copied = 0;
    while copied < length {
        let now = posix::copy_range(
            &from,
            offset + copied as u64,
            &to,
            to_offset + copied as u64,
            length - copied,
        )?;
        if now == 0 {
            break;
        }
        copied += now;
    }
    Ok(())
}

/// Every path with its description and contents.
fn tree(root: &Path) -> BTreeMap<String, (Vec<u8>, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let path = dir.join(entry.unwrap().file_name());
            let full = root.join(&path);
            let metadata = fs::symlink_metadata(&full).unwrap();
            let contents = if metadata.is_dir() {
                waiting.push(path.clone());
                Vec::new()
            } else if metadata.is_symlink() {
                fs::read_link(&full).unwrap().into_os_string().into_encoded_bytes()
            } else {
                fs::read(&full).unwrap()
            };
            found.insert(path.display().to_string(), (describe(&metadata), contents));
        }
    }
    found
}

/// Takes leases back until it is told to stop: by looks, and by a change that shows in nothing that is compared.
fn meddle(mount: &Mount, seed: u64, stop: &AtomicBool) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !stop.load(Ordering::Acquire) {
        let mut path = mount.path().to_owned();
        for _ in 0..rng.random_range(0..4) {
            // What is not there, or no directory, ends the way.
            let names =
                fs::read_dir(&path).map(|dir| dir.flatten().map(|entry| entry.path()).collect::<Vec<_>>());
            let Ok(names) = names else { break };
            let Some(next) = names.get(rng.random_range(0..names.len().max(1))) else { break };
            path.clone_from(next);
        }
        match rng.random_range(0..4) {
            0 => drop(fs::symlink_metadata(&path)),
            1 => drop(posix::set_xattr(&path, "trusted.meddled", &[rng.random()])),
            2 => drop(File::open(&path).and_then(|file| file.sync_all())),
            _ => drop(fs::read(&path)),
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..MEDDLE_PAUSE_MS)));
    }
}

fn round(seed: u64, steps: usize, options: &str) {
    let steps = std::env::var("GOFS_RANDOM_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(steps);
    eprintln!("replay with: GOFS_SEED={seed} cargo nextest run -p gofs-posix-tests --test random");
    let cluster = Cluster::builder().start();
    cluster.create_namespace("test", &["--chunk-size", "64KiB"]);
    let mount = |name| cluster.mount_as(name, "test", options);
    let mut run = Run::new(seed, [mount("a"), mount("b")]);
    for (which, mount) in run.mounts.iter().enumerate() {
        let name = format!("own{which}");
        fs::create_dir(mount.join(&name)).unwrap();
        fs::create_dir(run.local.path().join(&name)).unwrap();
    }
    let (third, stop) = (cluster.mount("third"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let meddling = scope.spawn(|| meddle(&third, seed, &stop));
        // Ended also where a step panics.
        let _stop = StopOnDrop(&stop);
        for step in 1..=steps {
            run.step();
            run.observe();
            if step % COMPARE_EVERY == 0 {
                run.compare();
            }
        }
        stop.store(true, Ordering::Release);
        meddling.join().unwrap();
    });
    third.unmount();
    run.open.clear();
    run.compare();
    let Run { mounts: [a, b], local, .. } = run;
    a.unmount();
    b.unmount();
    let fresh = cluster.mount("fresh");
    assert!(tree(fresh.path()) == tree(local.path()), "the tree after unmounting differs");
    cluster.check();
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn two_mounts_do_what_a_local_file_system_does() {
    let seed = match std::env::var("GOFS_SEED") {
        Ok(seed) => seed.parse().expect("GOFS_SEED is a number"),
        Err(_) => rand::rng().random(),
    };
    round(seed, STEPS, "");
}

#[test]
fn two_mounts_do_what_a_local_file_system_does_with_a_known_seed() {
    round(1, STEPS, "");
}

#[test]
fn two_mounts_do_what_a_local_file_system_does_with_every_change_durable() {
    round(2, SYNC_STEPS, "sync");
}

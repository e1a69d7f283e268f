//! What all threads know together: operations and their times, which faults are on, which mounts lost their session, and
//! what went wrong.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Nanoseconds since the run began.
pub type Stamp = u64;

/// An operation that takes longer than this is remembered by itself.
const SLOW: Duration = Duration::from_millis(50);
/// What a daemon logs when the servers have ended its session.
const FENCED: &str = "the session was ended by the servers";
/// Violations that are printed in full.
const PRINTED_MAX: usize = 40;

/// What an operation does, for the counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "they are what they are called")]
pub enum Kind {
    Create,
    Write,
    Append,
    Truncate,
    Fsync,
    Read,
    List,
    Stat,
    SetAttr,
    Rename,
    Link,
    Unlink,
}

impl Kind {
    /// In the order in which they are printed.
    pub const ALL: [Kind; 12] = [
        Kind::Create,
        Kind::Write,
        Kind::Append,
        Kind::Truncate,
        Kind::Fsync,
        Kind::Read,
        Kind::List,
        Kind::Stat,
        Kind::SetAttr,
        Kind::Rename,
        Kind::Link,
        Kind::Unlink,
    ];

    /// What its pauses are counted as.
    pub fn class(self) -> Class {
        match self {
            Kind::Read => Class::Read,
            Kind::Write | Kind::Append | Kind::Fsync => Class::Write,
            _ => Class::Meta,
        }
    }
}

/// Operations that wait for the same servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Bytes are read.
    Read,
    /// Bytes are written or brought to stable storage.
    Write,
    /// Names and attributes.
    Meta,
}

/// An operation that took long.
#[derive(Clone, Copy, Debug)]
pub struct Slow {
    /// On which mount.
    pub mount: usize,
    /// What it did.
    pub kind: Kind,
    /// When it began and ended.
    pub begun: Stamp,
    /// See above.
    pub ended: Stamp,
}

/// A session that the servers ended: what was not fsynced then may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The mount was well until then.
    pub begun: Stamp,
    /// From then on it has another session.
    pub ended: Stamp,
}

/// An operation with its times.
pub struct Done<T> {
    /// When it was asked for.
    pub begun: Stamp,
    /// When it was answered.
    pub ended: Stamp,
    /// The answer.
    pub result: io::Result<T>,
}

/// What is known of a mount.
pub struct MountWatch {
    /// The mount point.
    pub point: PathBuf,
    /// Moves when the mount is cut off, frozen or loses its session.
    generation: AtomicU64,
    trouble: Mutex<Trouble>,
    settled: Condvar,
}

struct Trouble {
    /// Since when something is done to the mount.
    since: Option<Stamp>,
    fences: Vec<Fence>,
    log: PathBuf,
    log_read: u64,
}

impl Trouble {
    /// Whether the daemon has said since the last look that its session was ended.
    fn look(&mut self) -> io::Result<bool> {
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.log_read))?;
        let mut new = Vec::new();
        file.read_to_end(&mut new)?;
        let whole = new.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        self.log_read += whole as u64;
        Ok(String::from_utf8_lossy(&new[..whole]).contains(FENCED))
    }
}

struct Running {
    mount: usize,
    kind: Kind,
    begun: Stamp,
}

/// See the module.
pub struct Watch {
    origin: Instant,
    stopped: AtomicBool,
    closed: AtomicBool,
    counts: [AtomicU64; Kind::ALL.len()],
    slow: Mutex<Vec<Slow>>,
    running: Mutex<BTreeMap<u64, Running>>,
    next: AtomicU64,
    /// By number.
    pub mounts: Vec<MountWatch>,
    faults: Mutex<Vec<String>>,
    violations: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it guards is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    /// Of mounts, each with its mount point and the log of its daemon.
    pub fn new(mounts: impl IntoIterator<Item = (PathBuf, PathBuf)>) -> Watch {
        let mounts = mounts.into_iter().map(|(point, log)| MountWatch {
            point,
            generation: AtomicU64::new(0),
            trouble: Mutex::new(Trouble { since: None, fences: Vec::new(), log, log_read: 0 }),
            settled: Condvar::new(),
        });
        Watch {
            origin: Instant::now(),
            stopped: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            counts: Default::default(),
            slow: Mutex::default(),
            running: Mutex::default(),
            next: AtomicU64::new(0),
            mounts: mounts.collect(),
            faults: Mutex::default(),
            violations: Mutex::default(),
        }
    }

    /// The time.
    pub fn now(&self) -> Stamp {
        self.origin.elapsed().as_nanos() as Stamp
    }

    /// Has the workers end.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Everything is judged: the cluster goes, and what workers that hang find then tells nothing.
    pub fn close(&self) {
        self.stop();
        self.closed.store(true, Ordering::Release);
    }

    /// Whether they should.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// A path on a mount.
    pub fn path(&self, mount: usize, path: impl AsRef<Path>) -> PathBuf {
        self.mounts[mount].point.join(path)
    }

    /// Does an operation on a mount, counted and timed.
    pub fn op<T>(&self, mount: usize, kind: Kind, work: impl FnOnce() -> io::Result<T>) -> Done<T> {
        let (id, begun) = (self.next.fetch_add(1, Ordering::Relaxed), self.now());
        lock(&self.running).insert(id, Running { mount, kind, begun });
        let result = work();
        let ended = self.now();
        lock(&self.running).remove(&id);
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
        if ended - begun > SLOW.as_nanos() as Stamp {
            lock(&self.slow).push(Slow { mount, kind, begun, ended });
        }
        Done { begun, ended, result }
    }

    /// How many operations of a kind there were.
    pub fn count(&self, kind: Kind) -> u64 {
        self.counts[kind as usize].load(Ordering::Relaxed)
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        Kind::ALL.iter().map(|kind| self.count(*kind)).sum()
    }

    /// Slow operations that were under way at any time since `from`, those still under way included.
    pub fn slow_since(&self, from: Stamp) -> Vec<Slow> {
        let mut slow: Vec<Slow> = lock(&self.slow).iter().filter(|slow| slow.ended > from).copied().collect();
        // In this order: none of them begins later.
        let running = lock(&self.running);
        let now = self.now();
        slow.extend(running.values().map(|r| Slow {
            mount: r.mount,
            kind: r.kind,
            begun: r.begun,
            ended: now,
        }));
        slow
    }

    /// The longest operation under way on a mount, and since when.
    pub fn longest_running(&self, mount: usize) -> Option<(Kind, Duration)> {
        let now = self.now();
        let running = lock(&self.running);
        let oldest = running.values().filter(|running| running.mount == mount).min_by_key(|r| r.begun)?;
        Some((oldest.kind, Duration::from_nanos(now.saturating_sub(oldest.begun))))
    }

    /// A fault begins.
    pub fn fault_on(&self, what: &str) {
        lock(&self.faults).push(what.to_owned());
    }

    /// It is over.
    pub fn fault_off(&self, what: &str) {
        lock(&self.faults).retain(|on| on != what);
    }

    /// Something is wrong: printed at once with the time and what is broken just then, and counted.
    pub fn violation(&self, text: impl AsRef<str>) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        let faults = lock(&self.faults).join("; ");
        let faults = if faults.is_empty() { "no fault is on".to_owned() } else { faults };
        let text = format!("{} VIOLATION: {} ({faults})", show(self.now()), text.as_ref());
        let mut violations = lock(&self.violations);
        if violations.len() < PRINTED_MAX {
            println!("{text}");
        }
        violations.push(text);
    }

    /// All that went wrong.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    /// From now on the mount may lose its session: its workers look at what they have when it is over.
    pub fn begin_trouble(&self, mount: usize) {
        let watch = &self.mounts[mount];
        lock(&watch.trouble).since = Some(self.now());
        watch.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// It is over, and the mount has answered since. Whether it lost its session.
    pub fn end_trouble(&self, mount: usize) -> bool {
        let watch = &self.mounts[mount];
        let mut trouble = lock(&watch.trouble);
        let fenced = self.looked(trouble.look());
        if let (Some(begun), true) = (trouble.since, fenced) {
            trouble.fences.push(Fence { begun, ended: self.now() });
        }
        trouble.since = None;
        watch.settled.notify_all();
        fenced
    }

    fn looked(&self, looked: io::Result<bool>) -> bool {
        looked.unwrap_or_else(|error| {
            self.violation(format!("a daemon's log cannot be read: {error}"));
            false
        })
    }

    /// Whether something is done to the mount now.
    pub fn in_trouble(&self, mount: usize) -> bool {
        lock(&self.mounts[mount].trouble).since.is_some()
    }

    /// Moves with each trouble.
    pub fn generation(&self, mount: usize) -> u64 {
        self.mounts[mount].generation.load(Ordering::Acquire)
    }

    /// Waits until nothing is done to the mount. A session that was lost without a fault that could have ended it is a violation.
    pub fn settle(&self, mount: usize) {
        let watch = &self.mounts[mount];
        let mut trouble = lock(&watch.trouble);
        while trouble.since.is_some() {
            trouble = watch.settled.wait(trouble).unwrap_or_else(PoisonError::into_inner);
        }
        if self.looked(trouble.look()) {
            let now = self.now();
            trouble.fences.push(Fence { begun: now.saturating_sub(60_000_000_000), ended: now });
            watch.generation.fetch_add(1, Ordering::AcqRel);
            drop(trouble);
            self.violation(format!("{} lost its session, and nothing was done to it", watch.point.display()));
        }
    }

    /// Whether the end of a session explains that an operation failed which began then.
    pub fn explains(&self, mount: usize, begun: Stamp) -> bool {
        self.settle(mount);
        self.fences(mount).iter().any(|fence| fence.ended >= begun)
    }

    /// The sessions that a mount has lost, in order.
    pub fn fences(&self, mount: usize) -> Vec<Fence> {
        lock(&self.mounts[mount].trouble).fences.clone()
    }

    /// Of all mounts.
    pub fn all_fences(&self) -> Vec<Vec<Fence>> {
        (0..self.mounts.len()).map(|mount| self.fences(mount)).collect()
    }
}

/// Seconds.
pub fn show(stamp: Stamp) -> String {
    format!("{:9.3}", stamp as f64 / 1e9)
}

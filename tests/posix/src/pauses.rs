//! One operation after the other on a mount, each timed: how long programs wait when something happens to a server.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::wait::wait_for;

/// Operations that must have been answered for a pause to be over.
const OVER: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(60);

/// A thread that makes, syncs and removes files.
pub struct Pauses {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    longest: Mutex<Duration>,
}

impl Shared {
    fn timed<T>(&self, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let begun = Instant::now();
        let answer = operation()?;
        let mut longest = self.longest.lock().expect("no panic while locked");
        *longest = begun.elapsed().max(*longest);
        self.answered.fetch_add(1, Ordering::AcqRel);
        Ok(answer)
    }

    /// All of it reaches the servers before the call returns: a create that is not synced does not.
    fn run(&self, dir: &Path) -> io::Result<()> {
        for n in 0.. {
            if self.stop.load(Ordering::Acquire) {
                break;
            }
            let path = dir.join(format!("f{n}"));
            let file = self.timed(|| File::create_new(&path))?;
            (&file).write_all(b"something")?;
            self.timed(|| file.sync_all())?;
            self.timed(|| fs::remove_file(&path))?;
        }
        Ok(())
    }
}

impl Pauses {
    /// Starts, in a directory that it makes.
    pub fn start(dir: PathBuf) -> Pauses {
        fs::create_dir(&dir).expect("a directory of its own");
        let shared = Arc::<Shared>::default();
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || shared.run(&dir)
        });
        Pauses { shared, thread: Some(thread) }
    }

    /// Has something happen; the longest that any operation took from then until operations are answered again.
    pub fn longest_after(&self, happen: impl FnOnce()) -> Duration {
        let settled = self.shared.answered.load(Ordering::Acquire);
        wait_for("operations", PATIENCE, || self.shared.answered.load(Ordering::Acquire) > settled + OVER);
        *self.shared.longest.lock().expect("no panic while locked") = Duration::ZERO;
        happen();
        let happened = self.shared.answered.load(Ordering::Acquire);
        wait_for("operations to go on", PATIENCE, || {
            self.shared.answered.load(Ordering::Acquire) > happened + OVER
        });
        *self.shared.longest.lock().expect("no panic while locked")
    }

    /// Ends it. Panics if an operation was answered with an error.
    pub fn stop(mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let ended = self.thread.take().expect("stopped once").join().expect("no panic in the thread");
        ended.expect("no operation fails");
    }
}

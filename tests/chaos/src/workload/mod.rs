//! What runs on the mounts while they break: each worker is a thread on one mount, and remembers what it was told.

mod append;
mod names;
mod private;
mod register;

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::sys;
use crate::watch::Watch;

/// Pause between two operations of a worker, at most: the load is for finding faults, not for measuring.
const PAUSE_MAX: Duration = Duration::from_millis(12);

/// One thread of the load. It opens files on the mount in [`Worker::run`] alone, see [`sys::own_files`].
pub trait Worker: Send {
    /// Works until the watch is stopped. Tells the watch what is wrong.
    fn run(&mut self);
}

/// Checks at the end what several workers did together, on any mount.
pub trait Check: Send {
    /// Tells the watch what is wrong. Everything is healed, and nobody works.
    fn check(&mut self, watch: &Watch);
}

/// All workers, while they work.
pub struct Load {
    threads: Vec<JoinHandle<()>>,
    checks: Vec<Box<dyn Check>>,
}

impl Load {
    /// Makes what they work on, and starts them.
    pub fn start(watch: &Arc<Watch>, seed: u64, times: usize) -> anyhow::Result<Load> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut load = Load { threads: Vec::new(), checks: Vec::new() };
        let (registers, names) = (register::Shared::new(watch)?, names::Shared::new(watch)?);
        let appends = append::Shared::new(watch)?;
        for mount in 0..watch.mounts.len() {
            for number in 0..2 * times {
                let (worker, check) = private::pair(watch, mount, number, rng.random())?;
                load.add(worker);
                load.checks.push(check);
            }
            for _ in 0..2 * times {
                load.add(registers.worker(watch, mount, rng.random()));
            }
            for _ in 0..times {
                load.add(appends.worker(watch, mount, rng.random()));
            }
            // One on each mount: the checker goes by the order of what a mount did.
            load.add(names.worker(watch, mount, rng.random()));
        }
        load.checks.push(Box::new(registers));
        load.checks.push(Box::new(names));
        load.checks.push(Box::new(appends));
        Ok(load)
    }

    fn add(&mut self, mut worker: impl Worker + 'static) {
        // What the copy of the table has open stays open: it is made before anything else is opened.
        let (ready, is_ready) = mpsc::channel::<()>();
        self.threads.push(std::thread::spawn(move || {
            sys::own_files().expect("root may do so");
            drop(ready);
            worker.run();
        }));
        // Ends with the sender.
        is_ready.recv().ok();
    }

    /// How many threads still work.
    pub fn working(&self) -> usize {
        self.threads.iter().filter(|thread| !thread.is_finished()).count()
    }

    /// Waits for the threads, which were told to stop, and compares everything on every mount.
    pub fn check(self, watch: &Watch) {
        for thread in self.threads {
            if thread.join().is_err() {
                watch.violation("a worker panicked");
            }
        }
        for mut check in self.checks {
            check.check(watch);
        }
    }
}

/// A short time between two operations.
fn pause(rng: &mut StdRng) {
    std::thread::sleep(PAUSE_MAX.mul_f64(rng.random()));
}

/// Bytes that are unlike any others.
fn random_bytes(rng: &mut StdRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill_bytes(&mut bytes);
    bytes
}

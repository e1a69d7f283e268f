//! One thread for each disk that keeps its log short, and one that scrubs it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};

use crate::store::{Disk, Store, StoreError};

/// How often the log is looked after. It also bounds for how long a write is not on stable storage.
const MAINTAIN_EVERY: Duration = Duration::from_secs(2);
/// The scrubber looks this often whether its time has come.
const SCRUB_CHECK: Duration = Duration::from_secs(60);

/// The threads of one server.
pub struct Upkeep {
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Waits; false where it is time to stop.
    fn pause(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let mut stopped = self.stopped.lock();
        while !*stopped {
            if self.changed.wait_until(&mut stopped, end).timed_out() {
                return !*stopped;
            }
        }
        false
    }
}

impl Upkeep {
    /// Starts the threads. `scrub_bytes_per_s` 0: no scrubbing.
    pub fn start(store: Arc<Store>, scrub_bytes_per_s: u64, scrub_interval: Duration) -> Upkeep {
        let stop = Arc::new(Stop::default());
        let mut threads = Vec::new();
        for disk in store.disks() {
            let (disk, stop) = (disk.clone(), stop.clone());
            if scrub_bytes_per_s > 0 {
                let (disk, stop) = (disk.clone(), stop.clone());
                threads
                    .push(std::thread::spawn(move || scrub(&disk, &stop, scrub_bytes_per_s, scrub_interval)));
            }
            threads.push(std::thread::spawn(move || maintain(&disk, &stop)));
        }
        Upkeep { stop, threads }
    }

    /// Stops the threads and waits for them.
    pub fn stop(self) {
        *self.stop.stopped.lock() = true;
        self.stop.changed.notify_all();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("an upkeep thread had panicked");
            }
        }
    }
}

fn maintain(disk: &Disk, stop: &Stop) {
    while stop.pause(MAINTAIN_EVERY) && disk.is_up() {
        match disk.maintain() {
            Ok(()) => {}
            Err(StoreError::NoSpace { .. }) => {
                tracing::warn!(disk = %disk.path().display(), "no room to keep the log short")
            }
            Err(error) => tracing::error!(disk = %disk.path().display(), %error, "upkeep failed"),
        }
    }
}

/// Verifies every chunk, over and over, at a bounded rate.
fn scrub(disk: &Disk, stop: &Stop, bytes_per_s: u64, interval: Duration) {
    while stop.pause(SCRUB_CHECK.min(interval)) && disk.is_up() {
        let last = UNIX_EPOCH + Duration::from_secs(disk.status().last_scrub_unix_s);
        if last.elapsed().is_ok_and(|ago| ago < interval) {
            continue;
        }
        let started = Instant::now();
        let (mut bytes, mut bad, mut go_on) = (0u64, 0u64, true);
        for chunk in disk.chunk_ids() {
            let verified = disk.verify(chunk, |step| {
                bytes += step;
                let due = Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64);
                go_on = stop.pause(due.saturating_sub(started.elapsed()));
                go_on
            });
            // Reported by the store; a chunk that is gone was deleted meanwhile.
            bad += u64::from(matches!(verified, Err(StoreError::Corrupt { .. })));
            if !go_on || !disk.is_up() {
                return;
            }
        }
        tracing::info!(disk = %disk.path().display(), chunks = disk.chunk_count(), bad, "scrubbed");
        if let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) {
            disk.set_scrubbed(now.as_secs());
        }
    }
}

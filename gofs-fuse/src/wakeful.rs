//! Keeps the processors awake while requests flow.
//!
//! An idle processor halts, and waking it costs more than most requests take. The kernel's PM QoS interface makes
//! it poll instead for as long as somebody holds `/dev/cpu_dma_latency` open with 0 written
//! (Documentation/power/pm_qos_interface). A thread of its own holds it while requests come, and lets go
//! when none came for a moment: an idle mount costs nothing. Without permission to open it nothing is lost but speed.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tracing::info;

/// The kernel's interface.
const DEVICE: &str = "/dev/cpu_dma_latency";
/// How long after the last request the processors may sleep again: longer than the gap between
/// the requests of a busy program, shorter than anyone notices on an idle machine.
const LINGER: Duration = Duration::from_millis(10);

/// `-o cpu_latency=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuLatency {
    /// Awake while requests flow.
    #[default]
    Auto,
    /// Awake for as long as the mount lives.
    Hold,
    /// Never touched.
    Off,
}

/// Notices requests; [`touch`](Wakeful::touch) costs a clock and an atomic.
pub struct Wakeful {
    shared: Option<Arc<Shared>>,
}

struct Shared {
    started: Instant,
    /// Microseconds after `started`.
    last_request: AtomicU64,
    held: AtomicBool,
    ended: AtomicBool,
    thread: Thread,
}

impl Wakeful {
    /// Starts the thread, unless it has nothing to do.
    pub fn start(mode: CpuLatency) -> Wakeful {
        Wakeful { shared: start(mode, || hold(DEVICE)) }
    }

    /// A request came or was answered.
    pub fn touch(&self) {
        if let Some(shared) = &self.shared {
            shared.last_request.store(shared.now(), Ordering::Release);
            if !shared.held.load(Ordering::Acquire) {
                shared.thread.unpark();
            }
        }
    }
}

impl Drop for Wakeful {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.ended.store(true, Ordering::Release);
            shared.thread.unpark();
        }
    }
}

impl Shared {
    fn now(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// Time since the last request.
    fn idle(&self) -> Duration {
        Duration::from_micros(self.now().saturating_sub(self.last_request.load(Ordering::Acquire)))
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Holds while requests come. One that comes just as the hold ends wakes nobody, so the time of the last
    /// request is looked at before every sleep.
    fn run<H>(&self, mode: CpuLatency, hold: impl Fn() -> io::Result<H>) {
        while !self.ended() {
            if self.idle() > LINGER {
                thread::park();
                continue;
            }
            let held = match hold() {
                Ok(held) => held,
                Err(error) => {
                    info!(%error, "processors cannot be kept awake: requests have a higher latency");
                    // What stays is a thread that sleeps until the end, and `touch` that wakes nobody.
                    self.held.store(true, Ordering::Release);
                    while !self.ended() {
                        thread::park();
                    }
                    return;
                }
            };
            self.held.store(true, Ordering::Release);
            while !self.ended() && (mode == CpuLatency::Hold || self.idle() <= LINGER) {
                thread::park_timeout(LINGER);
            }
            self.held.store(false, Ordering::Release);
            drop(held);
        }
    }
}

fn start<H>(mode: CpuLatency, hold: impl Fn() -> io::Result<H> + Send + 'static) -> Option<Arc<Shared>> {
    if mode == CpuLatency::Off {
        return None;
    }
    let (give, take) = std::sync::mpsc::sync_channel::<Arc<Shared>>(1);
    let spawned = thread::Builder::new().name("gofs-wakeful".to_owned()).spawn(move || {
        if let Ok(shared) = take.recv() {
            shared.run(mode, hold);
        }
    });
    let thread = match spawned {
        Ok(handle) => handle.thread().clone(),
        Err(error) => {
            info!(%error, "processors cannot be kept awake: requests have a higher latency");
            return None;
        }
    };
    let shared = Arc::new(Shared {
        started: Instant::now(),
        last_request: AtomicU64::new(0),
        held: AtomicBool::new(false),
        ended: AtomicBool::new(false),
        thread,
    });
    give.send(shared.clone()).ok()?;
    Some(shared)
}

/// Opens the interface and asks for no latency at all; closing it takes that back.
fn hold(device: &str) -> io::Result<File> {
    let mut file = File::options().write(true).open(device)?;
    file.write_all(&0_i32.to_ne_bytes())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts what is held.
    struct Held(Arc<AtomicUsize>);

    impl Drop for Held {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn wakeful(mode: CpuLatency) -> (Wakeful, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let hold = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(Held(counter.clone()))
        };
        (Wakeful { shared: start(mode, hold) }, count)
    }

    fn wait_for(count: &AtomicUsize, wanted: usize, meanwhile: impl Fn()) {
        let started = Instant::now();
        while count.load(Ordering::SeqCst) != wanted {
            assert!(started.elapsed() < Duration::from_secs(10), "never {wanted}");
            meanwhile();
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn it_holds_while_requests_come_and_lets_go_after() {
        let (wakeful, count) = wakeful(CpuLatency::Auto);
        for _ in 0..20 {
            // On a busy machine the thread may come too late for one request, not for a stream of them.
            wait_for(&count, 1, || wakeful.touch());
            wait_for(&count, 0, || {});
        }
    }

    #[test]
    fn hold_holds_until_the_end_and_off_never() {
        let (held, count) = wakeful(CpuLatency::Hold);
        wait_for(&count, 1, || held.touch());
        thread::sleep(LINGER * 5);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        drop(held);
        wait_for(&count, 0, || {});
        let (off, count) = wakeful(CpuLatency::Off);
        off.touch();
        thread::sleep(LINGER);
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }
}

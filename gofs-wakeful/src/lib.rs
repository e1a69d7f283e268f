//! Keeps the processors awake while requests flow.
//!
//! An idle processor halts, and waking it costs more than most requests take. The kernel's PM QoS interface makes
//! it poll instead for as long as somebody holds `/dev/cpu_dma_latency` open with 0 written
//! (Documentation/power/pm_qos_interface). A thread of its own holds it while requests come, and lets go
//! when none came for a moment: an idle daemon or server costs nothing. Without permission to open it nothing is lost but speed.

#![forbid(unsafe_code)]

use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::info;

/// The kernel's interface.
const DEVICE: &str = "/dev/cpu_dma_latency";
/// How long after the last request the processors may sleep again: longer than the gap between
/// the requests of a busy program, shorter than anyone notices on an idle machine.
const LINGER: Duration = Duration::from_millis(10);

/// When processors are kept awake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuLatency {
    /// Awake while requests flow.
    #[default]
    Auto,
    /// Awake for as long as the process serves.
    Hold,
    /// Never touched.
    Off,
}

/// Neither `auto` nor `hold` nor `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownCpuLatency;

impl Display for UnknownCpuLatency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("auto, hold or off")
    }
}

impl std::error::Error for UnknownCpuLatency {}

impl FromStr for CpuLatency {
    type Err = UnknownCpuLatency;

    fn from_str(text: &str) -> Result<Self, UnknownCpuLatency> {
        match text {
            "auto" => Ok(CpuLatency::Auto),
            "hold" => Ok(CpuLatency::Hold),
            "off" => Ok(CpuLatency::Off),
            _ => Err(UnknownCpuLatency),
        }
    }
}

/// What is done about the processors now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// They are kept awake.
    Held,
    /// They may sleep: there are no requests.
    Released,
    /// They may sleep: so it was asked for.
    Off,
    /// They may sleep, because the kernel's interface cannot be used: why.
    Unavailable(String),
}

impl Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Held => f.write_str("held"),
            State::Released => f.write_str("released"),
            State::Off => f.write_str("off"),
            State::Unavailable(why) => write!(f, "cannot be held: {why}"),
        }
    }
}

/// Notices requests; [`touch`](Wakeful::touch) costs a clock and an atomic. Dropping it lets go.
pub struct Wakeful {
    /// `None`: why there is no thread.
    shared: Result<Arc<Shared>, State>,
}

struct Shared {
    started: Instant,
    /// Microseconds after `started`, at least 1; 0: there was none yet.
    last_request: AtomicU64,
    held: AtomicBool,
    ended: AtomicBool,
    unavailable: Mutex<Option<String>>,
    thread: Thread,
}

impl Wakeful {
    /// Starts the thread, unless it has nothing to do.
    pub fn start(mode: CpuLatency) -> Wakeful {
        Wakeful { shared: start(mode, || hold(DEVICE)) }
    }

    /// A request came or was answered.
    pub fn touch(&self) {
        self.touch_at(Instant::now());
    }

    /// As [`Wakeful::touch`] for who has looked at the clock already.
    pub fn touch_at(&self, now: Instant) {
        if let Ok(shared) = &self.shared {
            shared.last_request.store(shared.micros(now), Ordering::Release);
            if !shared.held.load(Ordering::Acquire) {
                shared.thread.unpark();
            }
        }
    }

    /// What is done now.
    pub fn state(&self) -> State {
        match &self.shared {
            Err(state) => state.clone(),
            Ok(shared) => match &*shared.unavailable.lock() {
                Some(why) => State::Unavailable(why.clone()),
                None if shared.held.load(Ordering::Acquire) => State::Held,
                None => State::Released,
            },
        }
    }
}

impl Drop for Wakeful {
    fn drop(&mut self) {
        if let Ok(shared) = &self.shared {
            shared.ended.store(true, Ordering::Release);
            shared.thread.unpark();
        }
    }
}

impl Shared {
    fn micros(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.started).as_micros() as u64).max(1)
    }

    /// Whether a request came a moment ago.
    fn is_busy(&self) -> bool {
        let last = self.last_request.load(Ordering::Acquire);
        last > 0 && self.micros(Instant::now()).saturating_sub(last) <= LINGER.as_micros() as u64
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Holds while requests come. One that comes just as the hold ends wakes nobody, so the time of the last
    /// request is looked at before every sleep.
    fn run<H>(&self, mode: CpuLatency, hold: impl Fn() -> io::Result<H>) {
        let wanted = || mode == CpuLatency::Hold || self.is_busy();
        while !self.ended() {
            if !wanted() {
                thread::park();
                continue;
            }
            let held = match hold() {
                Ok(held) => held,
                Err(error) => {
                    info!(%error, "processors cannot be kept awake: requests have a higher latency");
                    *self.unavailable.lock() = Some(error.to_string());
                    // What stays is a thread that sleeps until the end, and `touch` that wakes nobody.
                    self.held.store(true, Ordering::Release);
                    while !self.ended() {
                        thread::park();
                    }
                    return;
                }
            };
            self.held.store(true, Ordering::Release);
            while !self.ended() && wanted() {
                thread::park_timeout(LINGER);
            }
            self.held.store(false, Ordering::Release);
            drop(held);
        }
    }
}

fn start<H>(
    mode: CpuLatency,
    hold: impl Fn() -> io::Result<H> + Send + 'static,
) -> Result<Arc<Shared>, State> {
    if mode == CpuLatency::Off {
        return Err(State::Off);
    }
    let (give, take) = std::sync::mpsc::sync_channel::<Arc<Shared>>(1);
    let spawned = thread::Builder::new().name("gofs-wakeful".to_owned()).spawn(move || {
        if let Ok(shared) = take.recv() {
            shared.run(mode, hold);
        }
    });
    let unavailable = |error: &dyn Display| {
        info!(%error, "processors cannot be kept awake: requests have a higher latency");
        State::Unavailable(error.to_string())
    };
    let thread = spawned.map_err(|error| unavailable(&error))?.thread().clone();
    let shared = Arc::new(Shared {
        started: Instant::now(),
        last_request: AtomicU64::new(0),
        held: AtomicBool::new(false),
        ended: AtomicBool::new(false),
        unavailable: Mutex::default(),
        thread,
    });
    give.send(shared.clone()).map_err(|error| unavailable(&error))?;
    Ok(shared)
}

/// Opens the interface and asks for no latency at all; closing it takes that back.
fn hold(device: &str) -> io::Result<File> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{device}: {error}"));
    let mut file = File::options().write(true).open(device).map_err(named)?;
    file.write_all(&0_i32.to_ne_bytes()).map_err(named)?;
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

    fn wait_for(what: &str, condition: impl Fn() -> bool, meanwhile: impl Fn()) {
        let started = Instant::now();
        while !condition() {
            assert!(started.elapsed() < Duration::from_secs(10), "never {what}");
            meanwhile();
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn it_holds_while_requests_come_and_lets_go_after() {
        let (wakeful, count) = wakeful(CpuLatency::Auto);
        assert_eq!(wakeful.state(), State::Released);
        for _ in 0..20 {
            // On a busy machine the thread may come too late for one request, not for a stream of them.
            wait_for("held", || wakeful.state() == State::Held, || wakeful.touch());
            wait_for("released", || wakeful.state() == State::Released, || {});
            wait_for("closed", || count.load(Ordering::SeqCst) == 0, || {});
        }
    }

    #[test]
    fn nothing_is_held_before_the_first_request() {
        let (wakeful, count) = wakeful(CpuLatency::Auto);
        thread::sleep(LINGER * 2);
        assert_eq!((wakeful.state(), count.load(Ordering::SeqCst)), (State::Released, 0));
    }

    #[test]
    fn hold_holds_from_the_start_to_the_end_and_off_never() {
        let (held, count) = wakeful(CpuLatency::Hold);
        wait_for("held", || count.load(Ordering::SeqCst) == 1, || {});
        thread::sleep(LINGER * 5);
        assert_eq!((held.state(), count.load(Ordering::SeqCst)), (State::Held, 1));
        drop(held);
        wait_for("released", || count.load(Ordering::SeqCst) == 0, || {});
        let (off, count) = wakeful(CpuLatency::Off);
        off.touch();
        thread::sleep(LINGER);
        assert_eq!((off.state(), count.load(Ordering::SeqCst)), (State::Off, 0));
    }

    #[test]
    fn what_cannot_be_opened_says_why() {
        let wakeful = Wakeful { shared: start(CpuLatency::Hold, || hold("/nonexistent/latency")) };
        wait_for("refused", || wakeful.state() != State::Released, || {});
        let State::Unavailable(why) = wakeful.state() else { panic!("{:?}", wakeful.state()) };
        assert!(why.contains("/nonexistent/latency") && why.contains("No such file"), "{why}");
        wakeful.touch();
    }

    #[test]
    fn modes_are_read_by_name() {
        assert_eq!("hold".parse(), Ok(CpuLatency::Hold));
        assert_eq!("Auto".parse::<CpuLatency>(), Err(UnknownCpuLatency));
    }
}

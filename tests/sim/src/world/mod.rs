//! The simulated world: threads that run one at a time, time that passes when all of them wait, a net, disks.
//!
//! Everything that happens follows from the seed: who runs next, how long a message or a sync takes, what a power cut
//! leaves. Only the thread that runs touches the world, so its lock is never waited for. Nothing in here calls a function
//! that is [redefined](crate::interpose), nor makes a map with std's random hasher.

mod disk;
mod events;
mod host;
mod net;
mod poll;
mod schedule;
mod trace;

use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

pub use disk::{Access, Cut, flip_bit, sync_file};
pub use host::HostId;
pub use net::Weather;
pub use schedule::{ThreadId, Wait, Wake, block, finish, pause, spawn_on};

use crate::interpose;
use disk::Disks;
use events::Events;
use host::Hosts;
use net::Net;
use poll::Objects;
use schedule::Threads;
use trace::Trace;

/// A microsecond in the world's unit of time.
pub const MICRO_NS: u64 = 1_000;
/// A millisecond.
pub const MILLI_NS: u64 = 1_000_000;
/// A second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// Time since boot at the beginning.
const BEGIN_NS: u64 = 1000 * SECOND_NS;
/// The wall's time then, since 1970.
const BEGIN_WALL_NS: u64 = 1_700_000_000 * SECOND_NS;

/// What is wrong with this world, to show that it is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sabotage {
    /// Syncs are acknowledged, but not done.
    pub syncs_lie: bool,
    /// Clocks of hosts that only mount run at a fifth of the speed.
    pub clocks_drag: bool,
}

/// See the module.
pub struct World {
    now: u64,
    rng: StdRng,
    trace: Trace,
    threads: Threads,
    hosts: Hosts,
    events: Events,
    objects: Objects,
    net: Net,
    disks: Disks,
    sabotage: Sabotage,
}

static WORLD: Mutex<Option<Box<World>>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Box<World>>> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Works on the world. Only for simulated threads, and for work that waits for nothing.
pub fn with<R>(work: impl FnOnce(&mut World) -> R) -> R {
    work(lock().as_mut().expect("a simulated thread has a world"))
}

/// Whether the calling thread lives in the world.
pub fn is_simulated() -> bool {
    schedule::current_thread().is_some()
}

/// The time of the host that the calling thread runs on, nanoseconds since boot.
pub fn now_ns() -> u64 {
    with(|world| world.steady_ns())
}

/// Begins the world; the calling thread is its first and on no host. `hosts` are numbered from 1.
pub fn begin(seed: u64, hosts: usize, sabotage: Sabotage) {
    let world = World {
        now: BEGIN_NS,
        rng: StdRng::seed_from_u64(seed),
        trace: Trace::default(),
        threads: Threads::default(),
        hosts: Hosts::new(hosts),
        events: Events::default(),
        objects: Objects::default(),
        net: Net::default(),
        disks: Disks::default(),
        sabotage,
    };
    let mut place = lock();
    assert!(place.is_none(), "a process has one world");
    *place = Some(Box::new(world));
    drop(place);
    schedule::begin();
}

impl World {
    /// Time since boot as the host of the running thread measures it.
    pub fn steady_ns(&self) -> u64 {
        self.hosts.steady_ns(self.host(), self.now)
    }

    /// The wall's time there, since 1970.
    pub fn wall_ns(&self) -> u64 {
        let shift = self.hosts.wall_shift_ns(self.host());
        (BEGIN_WALL_NS + self.now).saturating_add_signed(shift)
    }

    /// World time, the same for all.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// What `getrandom` answers.
    pub fn fill_random(&mut self, out: &mut [u8]) {
        self.rng.fill_bytes(out);
    }

    /// What the whole run so far comes to: the same for the same seed.
    pub fn trace(&self) -> u64 {
        self.trace.sum()
    }

    /// Threads that were let run so far.
    pub fn steps(&self) -> u64 {
        self.threads.steps()
    }

    fn host(&self) -> HostId {
        self.threads.host_of_current()
    }

    fn chance(&mut self, one_in: u32) -> bool {
        self.rng.random_range(0..one_in) == 0
    }
}

/// Does this as if on that host: with its clock.
pub fn as_host<R>(host: HostId, work: impl FnOnce() -> R) -> R {
    with(|world| world.threads.stand_in(Some(host)));
    let result = work();
    with(|world| world.threads.stand_in(None));
    result
}

/// Sleeps on the world's clock.
pub fn sleep_ms(ms: u64) {
    let until = now_ns() + ms * MILLI_NS;
    block(Wait::Sleep, Some(until));
}

pub(crate) use interpose::Baton;

//! Who runs: one thread at a time, chosen at random among those that could; when none could, time passes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::RngExt;

use super::{Baton, HostId, World, with};
use crate::interpose;

/// Longest time that one turn of a thread takes, nanoseconds.
const TURN_NS: u64 = 4_000;
/// Turns after which a run is taken for one that goes round in circles.
const STEPS_MAX: u64 = 40_000_000;

/// A thread of the world, from 0, never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ThreadId(pub usize);

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Time only.
    Sleep,
    /// A word in memory.
    Futex(usize),
    /// An epoll, by its number.
    Poll(u64),
    /// The end of another thread.
    Join(ThreadId),
}

/// Why it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// What it waited for happened.
    Woken,
    /// Its time was over.
    TimedOut,
}

/// How a run ended that could not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All threads wait, and nothing is going to happen.
    Deadlock,
    /// Too many turns.
    Circle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Running,
    Waiting(Wait, Option<u64>),
    /// Its process was killed: it never runs again.
    Dead,
    Finished,
}

struct Thread {
    host: HostId,
    state: State,
    baton: &'static Baton,
    wake: Wake,
    handle: Option<libc::pthread_t>,
}

#[derive(Default)]
pub(super) struct Threads {
    all: Vec<Thread>,
    ready: Vec<ThreadId>,
    timers: BTreeSet<(u64, ThreadId)>,
    running: ThreadId,
    /// Where the next thread is born, if not where its parent lives.
    cradle: Option<HostId>,
    stands_in: Option<HostId>,
    steps: u64,
}

/// See [`interpose`].
pub fn current_thread() -> Option<ThreadId> {
    interpose::current()
}

pub(super) fn begin() {
    let (id, _) = with(|world| {
        let made = world.new_thread();
        world.threads.ready.clear();
        world.threads.all[made.0.0].state = State::Running;
        made
    });
    interpose::register_main(id);
}

/// Starts a thread on a host.
pub fn spawn_on<T: Send + 'static>(
    host: HostId,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    with(|world| world.threads.cradle = Some(host));
    std::thread::Builder::new().name(name.to_owned()).spawn(work).expect("the system has room for a thread")
}

/// Waits on the calling thread; `deadline` on its host's steady clock.
pub fn block(wait: Wait, deadline: Option<u64>) -> Wake {
    let (me, mine, next) = with(|world| {
        let me = world.threads.running;
        let deadline = deadline.map(|deadline| world.hosts.world_ns(world.host(), deadline));
        world.threads.wait(me, wait, deadline);
        (me, world.threads.all[me.0].baton, world.next())
    });
    give_way(mine, next);
    with(|world| world.threads.all[me.0].wake)
}

/// Lets others run first.
pub fn pause() {
    let (mine, next) = with(|world| {
        let me = world.threads.running;
        world.threads.make_ready(me, Wake::Woken);
        (world.threads.all[me.0].baton, world.next())
    });
    give_way(mine, next);
}

fn give_way(mine: &'static Baton, next: Result<&'static Baton, Outcome>) {
    let next = next.unwrap_or_else(|outcome| stuck(outcome));
    if !std::ptr::eq(mine, next) {
        interpose::wake(next);
        interpose::wait_for_baton(mine);
    }
}

/// The calling thread ends; the answer is whose turn it is.
pub fn finish(id: ThreadId) -> &'static Baton {
    with(|world| {
        world.threads.all[id.0].state = State::Finished;
        world.threads.wake_all(|wait| wait == Wait::Join(id));
        world.next()
    })
    .unwrap_or_else(|outcome| stuck(outcome))
}

/// Told on the way out; there is nobody left to tell.
fn stuck(outcome: Outcome) -> ! {
    let waiting = with(|world| world.describe());
    eprintln!("{outcome:?}: no thread can go on\n{waiting}");
    crate::report::violation("liveness", &format!("{outcome:?}: the simulated threads cannot go on"));
    crate::report::leave()
}

impl Threads {
    /// The running thread counts as one of that host.
    pub fn stand_in(&mut self, host: Option<HostId>) {
        self.stands_in = host;
    }

    pub fn host_of_current(&self) -> HostId {
        if let Some(host) = self.stands_in {
            return host;
        }
        self.all.get(self.running.0).map_or(HostId::NONE, |thread| thread.host)
    }

    pub fn steps(&self) -> u64 {
        self.steps
    }

    fn wait(&mut self, id: ThreadId, wait: Wait, deadline: Option<u64>) {
        self.all[id.0].state = State::Waiting(wait, deadline);
        if let Some(deadline) = deadline {
            self.timers.insert((deadline, id));
        }
    }

    fn make_ready(&mut self, id: ThreadId, wake: Wake) {
        let thread = &mut self.all[id.0];
        if let State::Waiting(_, Some(deadline)) = thread.state {
            self.timers.remove(&(deadline, id));
        }
        thread.state = State::Ready;
        thread.wake = wake;
        self.ready.push(id);
    }

    /// Lets threads go on that wait for that; says how many.
    fn wake_all(&mut self, is_it: impl Fn(Wait) -> bool) -> usize {
        let found = self.waiting(is_it);
        for &id in &found {
            self.make_ready(id, Wake::Woken);
        }
        found.len()
    }

    fn waiting(&self, is_it: impl Fn(Wait) -> bool) -> Vec<ThreadId> {
        let all = self.all.iter().enumerate();
        all.filter(|(_, thread)| matches!(thread.state, State::Waiting(wait, _) if is_it(wait)))
            .map(|(id, _)| ThreadId(id))
            .collect()
    }

    pub fn kill(&mut self, host: HostId) {
        for at in 0..self.all.len() {
            let thread = &mut self.all[at];
            if thread.host != host || matches!(thread.state, State::Finished | State::Dead) {
                continue;
            }
            if let State::Waiting(_, Some(deadline)) = thread.state {
                self.timers.remove(&(deadline, ThreadId(at)));
            }
            thread.state = State::Dead;
            self.ready.retain(|id| id.0 != at);
        }
    }
}

impl World {
    /// A thread is about to be made.
    pub fn new_thread(&mut self) -> (ThreadId, &'static Baton) {
        let threads = &mut self.threads;
        let id = ThreadId(threads.all.len());
        let host = threads.cradle.take().unwrap_or_else(|| threads.host_of_current());
        let baton: &'static Baton = Box::leak(Box::default());
        threads.all.push(Thread { host, state: State::Ready, baton, wake: Wake::Woken, handle: None });
        threads.ready.push(id);
        (id, baton)
    }

    /// It was; by this handle others know it.
    pub fn thread_created(&mut self, id: ThreadId, handle: libc::pthread_t) {
        self.threads.all[id.0].handle = Some(handle);
    }

    /// Whose handle it is: the newest of that handle, because libc uses them again.
    pub fn thread_of(&self, handle: libc::pthread_t) -> Option<ThreadId> {
        self.threads.all.iter().rposition(|thread| thread.handle == Some(handle)).map(ThreadId)
    }

    /// Whether it has ended.
    pub fn is_finished(&self, id: ThreadId) -> bool {
        self.threads.all[id.0].state == State::Finished
    }

    /// FUTEX_WAKE: lets at most `count` threads go on that wait for the word, in random order.
    pub fn wake_futex(&mut self, word: usize, count: u32) -> usize {
        let mut waiting = self.threads.waiting(|wait| wait == Wait::Futex(word));
        let mut woken = 0;
        while woken < count as usize && !waiting.is_empty() {
            let at = self.rng.random_range(0..waiting.len());
            self.threads.make_ready(waiting.swap_remove(at), Wake::Woken);
            woken += 1;
        }
        woken
    }

    /// Something that this epoll watches has happened.
    pub(super) fn wake_poll(&mut self, poll: u64) {
        self.threads.wake_all(|wait| wait == Wait::Poll(poll));
    }

    /// Chooses who runs next; lets time pass where nobody could.
    fn next(&mut self) -> Result<&'static Baton, Outcome> {
        loop {
            self.let_happen();
            let hosts = &self.hosts;
            let threads = &self.threads;
            let can: Vec<usize> = (0..threads.ready.len())
                .filter(|&at| !hosts.get(threads.all[threads.ready[at].0].host).paused)
                .collect();
            if !can.is_empty() {
                let at = can[self.rng.random_range(0..can.len())];
                self.now += self.rng.random_range(TURN_NS / 8..TURN_NS);
                let threads = &mut self.threads;
                let id = threads.ready.swap_remove(at);
                threads.all[id.0].state = State::Running;
                threads.running = id;
                threads.steps += 1;
                self.trace.note("turn", self.now, id.0 as u64, 0);
                if threads.steps > STEPS_MAX {
                    return Err(Outcome::Circle);
                }
                return Ok(threads.all[id.0].baton);
            }
            let timer = self.threads.timers.first().map(|(at, _)| *at);
            let event = self.events.next_at();
            let Some(next) = timer.into_iter().chain(event).min() else { return Err(Outcome::Deadlock) };
            self.now = self.now.max(next);
        }
    }

    /// Everything whose time has come.
    fn let_happen(&mut self) {
        while let Some(act) = self.events.take(self.now) {
            act(self);
        }
        while let Some(&(at, id)) = self.threads.timers.first() {
            if at > self.now {
                break;
            }
            self.threads.make_ready(id, Wake::TimedOut);
        }
    }

    /// Who waits for what, for people.
    pub fn describe(&self) -> String {
        let all = self.threads.all.iter().enumerate();
        let alive = all.filter(|(_, thread)| !matches!(thread.state, State::Dead | State::Finished));
        alive
            .map(|(id, thread)| format!("thread {id} on host {}: {:?}\n", thread.host.0, thread.state))
            .collect()
    }
}

/// Names things that exist once, for [`Wait::Poll`].
pub(super) fn fresh_number() -> u64 {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) as u64
}

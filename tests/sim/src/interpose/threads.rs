//! Threads that run one at a time: each waits for its baton, and gives it on where it would wait for anything.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{c_int, c_long, c_void};

use super::{fail, real, time};
use crate::world::{self, ThreadId, Wait, Wake};

thread_local! {
    static CURRENT: Cell<Option<ThreadId>> = const { Cell::new(None) };
}

/// The simulated thread that asks; `None`: it is none.
pub fn current() -> Option<ThreadId> {
    CURRENT.with(Cell::get)
}

/// What a thread waits for before it runs.
#[derive(Default)]
pub struct Baton(AtomicU32);

/// Lets the thread that waits for this baton run.
pub fn wake(baton: &Baton) {
    baton.0.store(1, Ordering::Release);
    let address = &raw const baton.0 as c_long;
    let operation = c_long::from(libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG);
    unsafe { real::syscall(libc::SYS_futex, address, operation, 1, 0, 0, 0) };
}

/// Waits for it.
pub fn wait_for_baton(baton: &Baton) {
    let address = &raw const baton.0 as c_long;
    let operation = c_long::from(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG);
    while baton.0.swap(0, Ordering::Acquire) == 0 {
        unsafe { real::syscall(libc::SYS_futex, address, operation, 0, 0, 0, 0) };
    }
}

/// Makes the calling thread the world's first.
pub fn register_main(id: ThreadId) {
    CURRENT.with(|current| current.set(Some(id)));
}

type Start = extern "C" fn(*mut c_void) -> *mut c_void;

struct Birth {
    id: ThreadId,
    baton: &'static Baton,
    start: Start,
    arg: *mut c_void,
}

/// Its destructor runs after those of std's thread locals: the last that a thread does.
fn end_key() -> libc::pthread_key_t {
    static KEY: OnceLock<libc::pthread_key_t> = OnceLock::new();
    *KEY.get_or_init(|| {
        let mut key = 0;
        let made = unsafe { libc::pthread_key_create(&mut key, Some(ended)) };
        assert_eq!(made, 0, "no key for thread-specific data is left");
        key
    })
}

extern "C" fn born(birth: *mut c_void) -> *mut c_void {
    let birth = unsafe { Box::from_raw(birth.cast::<Birth>()) };
    let Birth { id, baton, start, arg } = *birth;
    wait_for_baton(baton);
    CURRENT.with(|current| current.set(Some(id)));
    unsafe { libc::pthread_setspecific(end_key(), std::ptr::dangling::<c_void>()) };
    start(arg)
}

unsafe extern "C" fn ended(_: *mut c_void) {
    if let Some(id) = current() {
        CURRENT.with(|current| current.set(None));
        wake(world::finish(id));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut libc::pthread_t,
    attr: *const libc::pthread_attr_t,
    start: Start,
    arg: *mut c_void,
) -> c_int {
    if !world::is_simulated() {
        return unsafe { real::pthread_create(thread, attr, start, arg) };
    }
    let (id, baton) = world::with(|world| world.new_thread());
    let birth = Box::into_raw(Box::new(Birth { id, baton, start, arg }));
    let result = unsafe { real::pthread_create(thread, attr, born_ptr(), birth.cast()) };
    assert_eq!(result, 0, "the system has no more threads");
    let handle = unsafe { *thread };
    world::with(|world| world.thread_created(id, handle));
    0
}

fn born_ptr() -> Start {
    born
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_join(thread: libc::pthread_t, result: *mut *mut c_void) -> c_int {
    if world::is_simulated()
        && let Some(id) = world::with(|world| world.thread_of(thread))
    {
        while !world::with(|world| world.is_finished(id)) {
            world::block(Wait::Join(id), None);
        }
    }
    unsafe { real::pthread_join(thread, result) }
}

/// The number of a process is told to servers: it must not be another one each time.
#[unsafe(no_mangle)]
extern "C" fn getpid() -> libc::pid_t {
    if !world::is_simulated() {
        return unsafe { real::getpid() };
    }
    1
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sched_yield() -> c_int {
    if !world::is_simulated() {
        return unsafe { real::sched_yield() };
    }
    world::pause();
    0
}

/// Locks, condition variables and parked threads of std and parking_lot wait here.
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    if world::is_simulated() {
        if number == libc::SYS_futex {
            let operation = b as c_int & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
            match operation {
                libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
                    return unsafe {
                        futex_wait(a as *const AtomicU32, operation, c as u32, d as *const libc::timespec)
                    };
                }
                libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => {
                    return world::with(|world| world.wake_futex(a as usize, c as u32)) as c_long;
                }
                other => panic!("futex operation {other} is not simulated"),
            }
        }
        if number == libc::SYS_getrandom {
            let out = unsafe { super::bytes_mut(a as *mut c_void, b as usize) };
            world::with(|world| world.fill_random(out));
            return b;
        }
    }
    unsafe { real::syscall(number, a, b, c, d, e, f) }
}

unsafe fn futex_wait(
    word: *const AtomicU32,
    operation: c_int,
    expected: u32,
    timeout: *const libc::timespec,
) -> c_long {
    if unsafe { &*word }.load(Ordering::Relaxed) != expected {
        return fail(libc::EAGAIN).into();
    }
    let deadline = unsafe { timeout.as_ref() }.map(|timeout| {
        let timeout = time::nanos(timeout);
        if operation == libc::FUTEX_WAIT { world::now_ns() + timeout } else { timeout }
    });
    match world::block(Wait::Futex(word as usize), deadline) {
        Wake::Woken => 0,
        Wake::TimedOut => fail(libc::ETIMEDOUT).into(),
    }
}

//! Clocks, sleep and randomness.

use libc::{c_int, c_uint, c_void, size_t, ssize_t, timespec};

use super::real;
use crate::world::{self, Wait};

const SECOND_NS: u64 = 1_000_000_000;
pub(super) const MILLI_NS: u64 = 1_000_000;

pub(super) fn nanos(time: &timespec) -> u64 {
    time.tv_sec as u64 * SECOND_NS + time.tv_nsec as u64
}

#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut timespec) -> c_int {
    if !world::is_simulated() {
        return unsafe { real::clock_gettime(clock, time) };
    }
    let now = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => world::with(|world| world.wall_ns()),
        _ => world::with(|world| world.steady_ns()),
    };
    unsafe {
        (*time).tv_sec = (now / SECOND_NS) as i64;
        (*time).tv_nsec = (now % SECOND_NS) as i64;
    }
    0
}

fn sleep_until(deadline: u64) {
    world::block(Wait::Sleep, Some(deadline));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nanosleep(time: *const timespec, rest: *mut timespec) -> c_int {
    if !world::is_simulated() {
        return unsafe { real::nanosleep(time, rest) };
    }
    sleep_until(world::now_ns() + nanos(unsafe { &*time }));
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn clock_nanosleep(
    clock: c_int,
    flags: c_int,
    time: *const timespec,
    rest: *mut timespec,
) -> c_int {
    if !world::is_simulated() {
        return unsafe { real::clock_nanosleep(clock, flags, time, rest) };
    }
    let time = nanos(unsafe { &*time });
    sleep_until(if flags & libc::TIMER_ABSTIME != 0 { time } else { world::now_ns() + time });
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, len: size_t, flags: c_uint) -> ssize_t {
    if !world::is_simulated() {
        return unsafe { real::getrandom(buffer, len, flags) };
    }
    let out = unsafe { super::bytes_mut(buffer, len) };
    world::with(|world| world.fill_random(out));
    len as ssize_t
}

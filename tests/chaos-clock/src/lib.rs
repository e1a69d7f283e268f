//! A wall clock that jumps: preloaded into a server, it adds an offset to CLOCK_REALTIME.
//!
//! Time namespaces move CLOCK_MONOTONIC and CLOCK_BOOTTIME only, and the host's own clock is nobody's to set. So this
//! library takes the place of clock_gettime(2), gettimeofday(2) and time(2) of the C library. The offset, nanoseconds as an
//! `i64` of the machine's byte order, is in the file that the environment variable GOFS_CHAOS_CLOCK names; whoever writes
//! to it moves the clock of a running process. Without the variable, or without the file, the clock is right.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

use libc::{clockid_t, time_t, timespec, timeval};

const VARIABLE: *const c_char = c"GOFS_CHAOS_CLOCK".as_ptr();
const NANOS: i64 = 1_000_000_000;

/// What is used where there is no file.
static RIGHT: AtomicI64 = AtomicI64::new(0);
/// The mapped file; null before the first use.
static OFFSET: AtomicPtr<AtomicI64> = AtomicPtr::new(ptr::null_mut());

/// The offset, nanoseconds. Calls nothing that asks for the time or allocates: it runs inside of any call of the clock.
fn offset_ns() -> i64 {
    let mut offset = OFFSET.load(Ordering::Acquire);
    if offset.is_null() {
        offset = map().unwrap_or(ptr::from_ref(&RIGHT).cast_mut());
        OFFSET.store(offset, Ordering::Release);
    }
    // SAFETY: a static, or a mapping of 8 bytes that stays for as long as the process.
    unsafe { (*offset).load(Ordering::Relaxed) }
}

/// Maps the file. Two threads may do so at once; then one mapping more stays.
fn map() -> Option<*mut AtomicI64> {
    let length = size_of::<AtomicI64>();
    // SAFETY: NUL-terminated strings; a fresh mapping at an address of the kernel's choice.
    unsafe {
        let path = libc::getenv(VARIABLE);
        if path.is_null() {
            return None;
        }
        let file = libc::open(path, libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return None;
        }
        let mapped = libc::mmap(ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file, 0);
        libc::close(file);
        (mapped != libc::MAP_FAILED).then_some(mapped.cast())
    }
}

/// The kernel's answer, moved where it is the wall clock's.
fn read(clock: clockid_t, time: &mut timespec) -> c_int {
    // SAFETY: a timespec to be filled in. The system call, because the C library's function is this one.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, ptr::from_mut(time)) };
    if result == 0 && matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE) {
        let moved =
            time.tv_sec.saturating_mul(NANOS).saturating_add(time.tv_nsec).saturating_add(offset_ns());
        time.tv_sec = moved.div_euclid(NANOS);
        time.tv_nsec = moved.rem_euclid(NANOS);
    }
    result as c_int
}

/// clock_gettime(2)
///
/// # Safety
/// As the C function: `time` points to a timespec.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    // SAFETY: the caller's promise.
    read(clock, unsafe { &mut *time })
}

/// gettimeofday(2)
///
/// # Safety
/// As the C function: `time` points to a timeval, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gettimeofday(time: *mut timeval, _zone: *mut c_void) -> c_int {
    let mut now = timespec { tv_sec: 0, tv_nsec: 0 };
    let result = read(libc::CLOCK_REALTIME, &mut now);
    if result == 0 && !time.is_null() {
        // SAFETY: the caller's promise.
        unsafe { *time = timeval { tv_sec: now.tv_sec, tv_usec: now.tv_nsec / 1000 } };
    }
    result
}

/// time(2)
///
/// # Safety
/// As the C function: `time` points to a time_t, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn time(time: *mut time_t) -> time_t {
    let mut now = timespec { tv_sec: 0, tv_nsec: 0 };
    read(libc::CLOCK_REALTIME, &mut now);
    if !time.is_null() {
        // SAFETY: the caller's promise.
        unsafe { *time = now.tv_sec };
    }
    now.tv_sec
}

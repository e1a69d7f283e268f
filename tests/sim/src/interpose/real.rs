//! The functions of libc behind those of the same name in this program.

use std::ffi::CStr;
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{c_char, c_int, c_long, c_uint, c_void, iovec, off_t, size_t, ssize_t};

fn resolve(known: &AtomicUsize, name: &CStr) -> usize {
    let mut address = known.load(Ordering::Relaxed);
    if address == 0 {
        // SAFETY: the name ends in NUL.
        address = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) } as usize;
        assert!(address != 0, "libc has no {name:?}");
        known.store(address, Ordering::Relaxed);
    }
    address
}

macro_rules! real {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {$(
        /// As in libc.
        #[allow(clippy::too_many_arguments, reason = "as in libc")]
        pub unsafe fn $name($($arg: $type),*) -> $result {
            static KNOWN: AtomicUsize = AtomicUsize::new(0);
            const NAME: &CStr = match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("a name with a NUL"),
            };
            let address = resolve(&KNOWN, NAME);
            // SAFETY: libc's function of this name has these arguments and this result.
            let function: unsafe extern "C" fn($($type),*) -> $result = unsafe { std::mem::transmute(address) };
            // SAFETY: the caller keeps what libc asks for.
            unsafe { function($($arg),*) }
        }
    )*};
}

type Start = extern "C" fn(*mut c_void) -> *mut c_void;

real! {
    syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long;
    clock_gettime(clock: c_int, time: *mut libc::timespec) -> c_int;
    nanosleep(time: *const libc::timespec, rest: *mut libc::timespec) -> c_int;
    clock_nanosleep(clock: c_int, flags: c_int, time: *const libc::timespec, rest: *mut libc::timespec) -> c_int;
    sched_yield() -> c_int;
    getpid() -> libc::pid_t;
    getrandom(buffer: *mut c_void, len: size_t, flags: c_uint) -> ssize_t;
    pthread_create(thread: *mut libc::pthread_t, attr: *const libc::pthread_attr_t, start: Start, arg: *mut c_void) -> c_int;
    pthread_join(thread: libc::pthread_t, result: *mut *mut c_void) -> c_int;
    socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    bind(fd: c_int, address: *const libc::sockaddr, len: libc::socklen_t) -> c_int;
    listen(fd: c_int, backlog: c_int) -> c_int;
    accept4(fd: c_int, address: *mut libc::sockaddr, len: *mut libc::socklen_t, flags: c_int) -> c_int;
    connect(fd: c_int, address: *const libc::sockaddr, len: libc::socklen_t) -> c_int;
    getsockname(fd: c_int, address: *mut libc::sockaddr, len: *mut libc::socklen_t) -> c_int;
    getpeername(fd: c_int, address: *mut libc::sockaddr, len: *mut libc::socklen_t) -> c_int;
    setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: libc::socklen_t) -> c_int;
    getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut libc::socklen_t) -> c_int;
    shutdown(fd: c_int, how: c_int) -> c_int;
    send(fd: c_int, buffer: *const c_void, len: size_t, flags: c_int) -> ssize_t;
    recv(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int) -> ssize_t;
    eventfd(count: c_uint, flags: c_int) -> c_int;
    epoll_create1(flags: c_int) -> c_int;
    epoll_ctl(epoll: c_int, what: c_int, fd: c_int, event: *mut libc::epoll_event) -> c_int;
    epoll_wait(epoll: c_int, events: *mut libc::epoll_event, max: c_int, timeout: c_int) -> c_int;
    close(fd: c_int) -> c_int;
    closedir(dir: *mut libc::DIR) -> c_int;
    fcntl(fd: c_int, command: c_int, arg: c_long) -> c_int;
    read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t;
    readv(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t;
    write(fd: c_int, buffer: *const c_void, len: size_t) -> ssize_t;
    writev(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t;
    pread64(fd: c_int, buffer: *mut c_void, len: size_t, offset: off_t) -> ssize_t;
    pwrite64(fd: c_int, buffer: *const c_void, len: size_t, offset: off_t) -> ssize_t;
    open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int;
    openat64(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int;
    ftruncate64(fd: c_int, len: off_t) -> c_int;
    fallocate(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int;
    fsync(fd: c_int) -> c_int;
    fdatasync(fd: c_int) -> c_int;
    statvfs(path: *const c_char, stat: *mut libc::statvfs) -> c_int;
}

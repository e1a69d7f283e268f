//! Files: what was written but not synced is remembered, because a power cut takes it.

use std::ffi::CStr;

use libc::{c_char, c_int, c_long, c_uint, c_void, iovec, off_t, size_t, ssize_t};

use super::{fail, fail_len, real, sockets};
use crate::world::{self, Access};

const BOOT_ID: &[u8] = b"/proc/sys/kernel/random/boot_id";

/// How busy the machine is that simulates: another in each run, and told to MetaServers.
const LOAD: &[u8] = b"/proc/loadavg";

/// Notes who opened it; another boot of a simulated host has another boot id.
unsafe fn opened(path: *const c_char, open: impl FnOnce(*const c_char) -> c_int) -> c_int {
    if !world::is_simulated() {
        return open(path);
    }
    let asked = unsafe { CStr::from_ptr(path) };
    if asked.to_bytes() == LOAD {
        return fail(libc::ENOENT);
    }
    let boot = (asked.to_bytes() == BOOT_ID).then(|| world::with(|world| world.boot_id_path()));
    let fd = open(boot.as_ref().map_or(path, |boot| boot.as_ptr()));
    if fd >= 0 {
        world::with(|world| world.file_opened(fd));
    }
    fd
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    unsafe { opened(path, |path| real::open64(path, flags, mode)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    unsafe { opened(path, |path| real::open64(path, flags, mode)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    unsafe { opened(path, |path| real::openat64(dir, path, flags, mode)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    unsafe { opened(path, |path| real::openat64(dir, path, flags, mode)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    if world::is_simulated() {
        world::with(|world| world.closed(fd));
    }
    unsafe { real::close(fd) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn closedir(dir: *mut libc::DIR) -> c_int {
    if world::is_simulated() {
        let fd = unsafe { libc::dirfd(dir) };
        world::with(|world| world.closed(fd));
    }
    unsafe { real::closedir(dir) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fcntl(fd: c_int, command: c_int, arg: c_long) -> c_int {
    let result = unsafe { real::fcntl(fd, command, arg) };
    if result >= 0 && matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) && world::is_simulated() {
        world::with(|world| world.duplicated(fd, result));
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t {
    let piece = [iovec { iov_base: buffer, iov_len: len }];
    unsafe { sockets::read_pieces(fd, &piece).unwrap_or_else(|| real::read(fd, buffer, len)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn readv(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
    let given = unsafe { std::slice::from_raw_parts(pieces, count as usize) };
    unsafe { sockets::read_pieces(fd, given).unwrap_or_else(|| real::readv(fd, pieces, count)) }
}

/// Remembers what a change is about to destroy; the error is what a full disk answers.
fn before(fd: c_int, access: impl FnOnce() -> Access) -> Result<(), c_int> {
    if world::is_simulated() && world::with(|world| world.is_file(fd)) {
        let access = access();
        return world::with(|world| world.changes_file(fd, access));
    }
    Ok(())
}

/// Where the next plain write of this descriptor goes.
fn position(fd: c_int) -> u64 {
    let flags = unsafe { real::fcntl(fd, libc::F_GETFL, 0) };
    let whence = if flags & libc::O_APPEND != 0 { libc::SEEK_END } else { libc::SEEK_CUR };
    unsafe { libc::lseek(fd, 0, whence) as u64 }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, buffer: *const c_void, len: size_t) -> ssize_t {
    let piece = [iovec { iov_base: buffer.cast_mut(), iov_len: len }];
    if let Some(written) = unsafe { sockets::write_pieces(fd, &piece) } {
        return written;
    }
    match before(fd, || Access::Write { offset: position(fd), len: len as u64 }) {
        Ok(()) => unsafe { real::write(fd, buffer, len) },
        Err(error) => fail_len(error),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
    let given = unsafe { std::slice::from_raw_parts(pieces, count as usize) };
    if let Some(written) = unsafe { sockets::write_pieces(fd, given) } {
        return written;
    }
    let len = given.iter().map(|piece| piece.iov_len as u64).sum();
    match before(fd, || Access::Write { offset: position(fd), len }) {
        Ok(()) => unsafe { real::writev(fd, pieces, count) },
        Err(error) => fail_len(error),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(fd: c_int, buffer: *const c_void, len: size_t, offset: off_t) -> ssize_t {
    match before(fd, || Access::Write { offset: offset as u64, len: len as u64 }) {
        Ok(()) => unsafe { real::pwrite64(fd, buffer, len, offset) },
        Err(error) => fail_len(error),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate64(fd: c_int, len: off_t) -> c_int {
    match before(fd, || Access::Truncate { len: len as u64 }) {
        Ok(()) => unsafe { real::ftruncate64(fd, len) },
        Err(error) => fail(error),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fallocate(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int {
    let (offset_bytes, len_bytes) = (offset as u64, len as u64);
    let access = if mode & libc::FALLOC_FL_PUNCH_HOLE != 0 {
        Access::Punch { offset: offset_bytes, len: len_bytes }
    } else {
        Access::Allocate { end: offset_bytes + len_bytes }
    };
    match before(fd, || access) {
        Ok(()) => unsafe { real::fallocate(fd, mode, offset, len) },
        Err(error) => fail(error),
    }
}

/// std goes on with reads and writes.
#[unsafe(no_mangle)]
unsafe extern "C" fn copy_file_range(
    _: c_int,
    _: *mut off_t,
    _: c_int,
    _: *mut off_t,
    _: size_t,
    _: c_uint,
) -> ssize_t {
    fail_len(libc::ENOSYS)
}

/// std goes on with reads and writes.
#[unsafe(no_mangle)]
unsafe extern "C" fn sendfile64(_: c_int, _: c_int, _: *mut off_t, _: size_t) -> ssize_t {
    fail_len(libc::ENOSYS)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    if world::is_simulated() { world::sync_file(fd) } else { unsafe { real::fsync(fd) } }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    if world::is_simulated() { world::sync_file(fd) } else { unsafe { real::fdatasync(fd) } }
}

/// It promises nothing.
#[unsafe(no_mangle)]
unsafe extern "C" fn sync_file_range(_: c_int, _: off_t, _: off_t, _: c_uint) -> c_int {
    0
}

fn space(stat: &mut libc::statvfs) {
    let (capacity, free) = world::with(|world| world.disk_space());
    stat.f_bsize = 4096;
    stat.f_frsize = 4096;
    stat.f_blocks = capacity / 4096;
    stat.f_bfree = free / 4096;
    stat.f_bavail = free / 4096;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn statvfs(path: *const c_char, stat: *mut libc::statvfs) -> c_int {
    let result = unsafe { real::statvfs(path, stat) };
    if result == 0 && world::is_simulated() {
        space(unsafe { &mut *stat });
    }
    result
}

//! The system calls that std does not have. The only unsafe code of this crate.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Space of the file system that holds a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub capacity_bytes: u64,
    /// Bytes that this process may still fill.
    pub free_bytes: u64,
}

/// Asks the file system of `path` for its space.
pub fn space(path: &Path) -> io::Result<Space> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: statvfs is plain data, for which zeros are a valid value.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call; the path ends in NUL.
    if unsafe { libc::statvfs(path.as_ptr(), &mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let unit = stat.f_frsize;
    Ok(Space { capacity_bytes: stat.f_blocks * unit, free_bytes: stat.f_bavail * unit })
}

/// Allocates the first `len` bytes of a file, as zeros. Where the file system cannot, makes it sparse.
pub fn allocate(file: &File, len: u64) -> io::Result<()> {
    fallocate(file, 0, 0, len).or_else(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => file.set_len(len),
        _ => Err(error),
    })
}

/// Gives the range back to the file system; it reads as zeros. Nothing where the file system cannot.
pub fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(file, mode, offset, len).or_else(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => Ok(()),
        _ => Err(error),
    })
}

fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open for as long as `file` is borrowed.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Reads what the page cache holds, without waiting for the disk; fewer bytes where it holds less.
pub fn read_cached(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    let vector = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
    // SAFETY: the vector is one that `out`, borrowed for the call, can be written through; the descriptor is
    // open for as long as `file` is borrowed.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &vector, 1, offset as i64, libc::RWF_NOWAIT) };
    if read >= 0 {
        return Ok(read as usize);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // Nothing is there, or the file system cannot tell.
        Some(libc::EAGAIN | libc::EINTR | libc::EOPNOTSUPP | libc::ENOSYS) => Ok(0),
        _ => Err(error),
    }
}

/// The range is going to be read: the disk may begin. It is a hint, so errors do not matter.
pub fn will_need(file: &File, offset: u64, len: u64) {
    // SAFETY: the descriptor is open for as long as `file` is borrowed.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset as i64, len as i64, libc::POSIX_FADV_WILLNEED) };
}

/// The range was written: its way to the disk may begin, so that a later sync finds little to do. It is a hint, so
/// errors do not matter: the sync tells them.
pub fn begin_writing(file: &File, offset: u64, len: u64) {
    // SAFETY: the descriptor is open for as long as `file` is borrowed.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset as i64, len as i64, libc::SYNC_FILE_RANGE_WRITE)
    };
}

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

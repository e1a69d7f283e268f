//! The system calls that std does not offer: the only `unsafe` of this crate.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Room on a file system.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes that this user may still write.
    pub bytes: u64,
    /// Inodes that this user may still make; `None` where the file system does not count them.
    pub inodes: Option<u64>,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// statvfs(3).
pub fn room(path: &Path) -> io::Result<Room> {
    let path = c_path(path)?;
    // SAFETY: plain integers, for which zeros are a value.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with NUL and the result is as large as statvfs(3) says.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let inodes = (found.f_files > 0).then_some(found.f_favail);
    Ok(Room { bytes: found.f_bavail.saturating_mul(found.f_frsize), inodes })
}

/// Lets the kernel give up its pages of the file that are not dirty (posix_fadvise).
pub fn drop_pages(file: &File) -> io::Result<()> {
    advise(file, libc::POSIX_FADV_DONTNEED)
}

/// Has the kernel read only what is asked for (posix_fadvise).
pub fn no_readahead(file: &File) -> io::Result<()> {
    advise(file, libc::POSIX_FADV_RANDOM)
}

fn advise(file: &File, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open, and no memory is passed.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, advice) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Whether this process is root.
pub fn is_root() -> bool {
    // SAFETY: takes no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// getxattr(2) of a value of at most 64 KiB, the most that Linux has.
pub fn xattr(path: &Path, name: &CStr) -> io::Result<Vec<u8>> {
    const VALUE_MAX_BYTES: usize = 64 << 10;
    let path = c_path(path)?;
    let mut value = vec![0_u8; VALUE_MAX_BYTES];
    // SAFETY: both names end with NUL, and the buffer has the length that is passed.
    let length =
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match usize::try_from(length) {
        Ok(length) => {
            value.truncate(length);
            Ok(value)
        }
        Err(_) => Err(io::Error::last_os_error()),
    }
}

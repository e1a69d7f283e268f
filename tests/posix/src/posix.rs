//! System calls on files that std does not offer, made safe.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{self, NonNull};

/// Kinds of byte-range locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// F_RDLCK
    Shared,
    /// F_WRLCK
    Exclusive,
    /// F_UNLCK
    Unlock,
}

/// Changes of names by renameat2(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameKind {
    /// As rename(2).
    Replace,
    /// RENAME_NOREPLACE
    NoReplace,
    /// RENAME_EXCHANGE
    Exchange,
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path of the test's own")
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Sets an extended attribute.
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (c_path(path), CString::new(name).expect("a name of the test's own"));
    // SAFETY: two NUL-terminated strings and a buffer with its length.
    check(unsafe {
        libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) as isize
    })
    .map(drop)
}

/// The value of an extended attribute.
pub fn get_xattr(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (path, name) = (c_path(path), CString::new(name).expect("a name of the test's own"));
    let mut value = vec![0; 65_536];
    // SAFETY: two NUL-terminated strings and a buffer with its length.
    let length = check(unsafe {
        libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    })?;
    value.truncate(length);
    Ok(value)
}

/// The names of all extended attributes, sorted.
pub fn list_xattrs(path: &Path) -> io::Result<Vec<String>> {
    let path = c_path(path);
    let mut list = vec![0; 65_536];
    // SAFETY: a NUL-terminated string and a buffer with its length.
    let length = check(unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) })?;
    let mut names: Vec<String> = list[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.sort();
    Ok(names)
}

/// Removes an extended attribute.
pub fn remove_xattr(path: &Path, name: &str) -> io::Result<()> {
    let (path, name) = (c_path(path), CString::new(name).expect("a name of the test's own"));
    // SAFETY: two NUL-terminated strings.
    check(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) as isize }).map(drop)
}

/// fcntl(2) F_SETLK, or F_SETLKW with `wait`; `length` 0 means to the end.
pub fn lock(file: &File, kind: LockKind, start: u64, length: u64, wait: bool) -> io::Result<()> {
    let kind = match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
        LockKind::Unlock => libc::F_UNLCK,
    };
    let lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start as i64,
        l_len: length as i64,
        l_pid: 0,
    };
    let command = if wait { libc::F_SETLKW } else { libc::F_SETLK };
    // SAFETY: an open file and a struct that lives through the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), command, &lock) } as isize).map(drop)
}

/// Mode bits of fallocate(2).
pub fn fallocate(file: &File, mode: i32, offset: u64, length: u64) -> io::Result<()> {
    // SAFETY: an open file, no memory.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) } as isize).map(drop)
}

/// Sets O_APPEND on an open file.
pub fn set_append(file: &File) -> io::Result<()> {
    // SAFETY: an open file, no memory.
    let flags = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) } as isize)? as i32;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_APPEND) } as isize).map(drop)
}

/// copy_file_range(2), once; how many bytes it copied.
pub fn copy_range(from: &File, offset: u64, to: &File, to_offset: u64, length: usize) -> io::Result<usize> {
    let (mut offset, mut to_offset) = (offset as i64, to_offset as i64);
    // SAFETY: open files, and offsets that live through the call.
    check(unsafe {
        libc::copy_file_range(from.as_raw_fd(), &mut offset, to.as_raw_fd(), &mut to_offset, length, 0)
    })
}

/// lseek(2) with SEEK_DATA or SEEK_HOLE.
pub fn seek(file: &File, offset: u64, whence: i32) -> io::Result<u64> {
    // SAFETY: an open file, no memory.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset as i64, whence) };
    check(found as isize).map(|found| found as u64)
}

/// renameat2(2).
pub fn rename(from: &Path, to: &Path, kind: RenameKind) -> io::Result<()> {
    let flags = match kind {
        RenameKind::Replace => 0,
        RenameKind::NoReplace => libc::RENAME_NOREPLACE,
        RenameKind::Exchange => libc::RENAME_EXCHANGE,
    };
    let (from, to) = (c_path(from), c_path(to));
    // SAFETY: two NUL-terminated strings.
    check(unsafe {
        libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) as isize
    })
    .map(drop)
}

/// mknod(2) of a fifo, socket or device.
pub fn make_node(path: &Path, mode: u32, device: u64) -> io::Result<()> {
    let path = c_path(path);
    // SAFETY: a NUL-terminated string.
    check(unsafe { libc::mknod(path.as_ptr(), mode, device) } as isize).map(drop)
}

/// posix_fadvise(3): reads will be at random.
pub fn advise_random(file: &File) -> io::Result<()> {
    // SAFETY: no memory is passed.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// A file mapped shared and writable.
pub struct Mapping {
    address: *mut u8,
    length: usize,
}

impl Mapping {
    /// Maps the first `length` bytes.
    pub fn new(file: &File, length: usize) -> io::Result<Mapping> {
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { address: address.cast(), length })
    }

    /// Stores bytes.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length, "within the mapping");
        // SAFETY: within the mapping, which nobody else in this process has.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.add(offset), bytes.len()) };
    }

    /// Loads bytes.
    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.length, "within the mapping");
        let mut bytes = vec![0; length];
        // SAFETY: within the mapping; a copy, so that no reference to changing memory exists.
        unsafe { ptr::copy_nonoverlapping(self.address.add(offset), bytes.as_mut_ptr(), length) };
        bytes
    }

    /// msync(2) MS_SYNC.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: exactly the mapping.
        check(unsafe { libc::msync(self.address.cast(), self.length, libc::MS_SYNC) } as isize).map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping, which is not used any more.
        unsafe { libc::munmap(self.address.cast(), self.length) };
    }
}

/// A buffer whose address suits O_DIRECT.
pub struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    /// `length` bytes, all `fill`.
    pub fn new(length: usize, fill: u8) -> AlignedBuffer {
        const ALIGN: usize = 4096;
        let memory = vec![fill; length + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        AlignedBuffer { memory, start, length }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..][..self.length]
    }

    /// Its bytes, to be read into.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.length]
    }
}

/// An open directory that can be read again from its beginning, as std's cannot.
pub struct Directory(NonNull<libc::DIR>);

impl Directory {
    /// opendir(3)
    pub fn open(path: &Path) -> io::Result<Directory> {
        let path = c_path(path);
        // SAFETY: a NUL-terminated string.
        let directory = unsafe { libc::opendir(path.as_ptr()) };
        NonNull::new(directory).map(Directory).ok_or_else(io::Error::last_os_error)
    }

    /// rewinddir(3), and all names but `.` and `..`, sorted.
    pub fn list(&mut self) -> io::Result<Vec<String>> {
        // SAFETY: open until drop.
        unsafe { libc::rewinddir(self.0.as_ptr()) };
        let mut names = Vec::new();
        while let Some(name) = self.next_name()? {
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// readdir(3)
    fn next_name(&mut self) -> io::Result<Option<String>> {
        // SAFETY: errno is this thread's own.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: open until drop; nobody else reads it.
        let entry = unsafe { libc::readdir(self.0.as_ptr()) };
        if entry.is_null() {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(0) { Ok(None) } else { Err(error) };
        }
        // SAFETY: a NUL-terminated name, valid until the next call.
        let name = unsafe { CStr::from_ptr((*entry).d_name.as_ptr()) };
        Ok(Some(name.to_string_lossy().into_owned()))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // SAFETY: open, and not used any more.
        unsafe { libc::closedir(self.0.as_ptr()) };
    }
}

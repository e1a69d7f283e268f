//! System calls that std does not offer.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crate::wait_for;

/// Has the child end (SIGTERM) when the test does, however that ends.
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches nothing but the new process.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
}

/// kill(2). Errors (gone already) are of no interest.
pub fn kill(pid: u32, signal: i32) {
    // SAFETY: no memory is passed.
    unsafe {
        libc::kill(pid as i32, signal);
    }
}

/// Has a process stand still until it gets SIGCONT: all of its threads do when this returns. Threads that run, or wait for a disk, take a
/// moment to hear of a signal.
pub fn stop(pid: u32) {
    kill(pid, libc::SIGSTOP);
    wait_for("a process to stand still", Duration::from_secs(60), || {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
        threads.flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // Behind the name, which may have any characters: none, where the thread has ended.
            stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('T'))
        })
    });
}

/// The effective user id.
pub fn euid() -> u32 {
    // SAFETY: cannot fail, no memory is passed.
    unsafe { libc::geteuid() }
}

/// What the file system of an open file has free for anybody, bytes.
pub fn available(file: &File) -> io::Result<u64> {
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the pointer is to memory of that type.
    if unsafe { libc::fstatvfs(file.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled in, as the call says.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Gives a file `len` bytes of space.
pub fn allocate(file: &File, len: u64) -> io::Result<()> {
    // SAFETY: no memory is passed.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len as libc::off_t) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Has a file system (ext4, of which `root` is a directory) lose what is not on its disk, as a power cut does. Root only.
pub(crate) fn shut_down_without_flush(root: &File) -> io::Result<()> {
    // _IOR('X', 125, __u32), and EXT4_GOING_FLAGS_NOLOGFLUSH.
    const EXT4_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587d_u32 as libc::Ioctl;
    const NO_LOG_FLUSH: u32 = 2;
    // SAFETY: the pointer is to a number that the call reads.
    match unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &NO_LOG_FLUSH) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

//! System calls that std does not offer: namespaces and signals.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Release);
}

/// From now on Ctrl-C and SIGTERM are remembered instead of ending the process.
pub fn remember_interrupts() {
    let handler = interrupt as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler stores to an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, handler) };
    }
}

/// Whether there was one.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Acquire)
}

/// Has the command killed when the thread that starts it ends.
pub fn killed_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches nothing but the new process.
    unsafe {
        command.pre_exec(|| check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)));
    }
}

/// A fresh network namespace, which lives for as long as the file is open or a process is in it.
pub fn new_network() -> io::Result<File> {
    let made = std::thread::spawn(|| {
        // SAFETY: moves this thread alone, which ends at once.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        File::open("/proc/thread-self/ns/net")
    });
    made.join().map_err(|_| io::Error::other("the thread that makes a network namespace panicked"))?
}

/// From now on this thread has a table of open files of its own. Files on a mount that does not answer must not be open in
/// the table of a thread that starts programs: the new process closes them before it runs, and closing waits for the mount.
pub fn own_files() -> io::Result<()> {
    // SAFETY: concerns this thread's table alone, which is a copy afterwards.
    check(unsafe { libc::unshare(libc::CLONE_FILES) })
}

/// Has the command run in that network namespace. It must stay open until the command has started.
pub fn enter_network(command: &mut Command, network: &File) {
    let network: RawFd = network.as_raw_fd();
    // SAFETY: setns is async-signal-safe and concerns nothing but the new process.
    unsafe {
        command.pre_exec(move || check(libc::setns(network, libc::CLONE_NEWNET)));
    }
}

/// Has the command's machine be up for longer by `seconds`: its monotonic clocks are not those of the others.
/// Takes effect with exec on Linux 6.1 and newer; before, the clocks are the host's.
pub fn shift_monotonic(command: &mut Command, seconds: u32) {
    let offsets = format!("monotonic {seconds} 0\nboottime {seconds} 0\n");
    // SAFETY: unshare, open, write and close are async-signal-safe; the text was made before the fork.
    unsafe {
        command.pre_exec(move || {
            check(libc::unshare(libc::CLONE_NEWTIME))?;
            let file = libc::open(c"/proc/self/timens_offsets".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            check(file)?;
            let written = libc::write(file, offsets.as_ptr().cast(), offsets.len());
            let result = if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
            libc::close(file);
            result
        });
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

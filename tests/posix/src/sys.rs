//! System calls that std does not offer.
#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::Command;

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

/// The effective user id.
pub fn euid() -> u32 {
    // SAFETY: cannot fail, no memory is passed.
    unsafe { libc::geteuid() }
}

//! Whether the program that waits for an answer has a signal to take.
//!
//! fuser answers the kernel's INTERRUPT by itself, so a wait looks at `/proc/<task>/status` instead: signals
//! pending for the task or its process, without those that it blocks or ignores.

use std::time::Duration;

/// SIGKILL as a bit of the masks in `/proc/<task>/status`.
const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);
/// How often a wait that signals may end looks at them: what a user's Ctrl-C may take at most.
const SIGNAL_POLL: Duration = Duration::from_millis(200);
/// After this time an ordinary operation begins to look whether its program was killed.
const KILL_PATIENCE: Duration = Duration::from_secs(1);
/// How often it looks then.
const KILL_POLL: Duration = Duration::from_millis(500);

/// The signals in the status text of a task that it will act on.
fn deliverable(status: &str) -> u64 {
    let mask = |field: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
            .unwrap_or(0)
    };
    (mask("SigPnd") | mask("ShdPnd")) & !(mask("SigBlk") | mask("SigIgn"))
}

/// The deliverable signals of a task, all of them if it is gone. None for task 0: the kernel itself,
/// or a task of another pid namespace.
fn signals(task: u32) -> u64 {
    if task == 0 {
        return 0;
    }
    match std::fs::read_to_string(format!("/proc/{task}/status")) {
        Ok(status) => deliverable(&status),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => u64::MAX,
        // ESRCH: it went away while it was read.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => u64::MAX,
        Err(_) => 0,
    }
}

/// Returns when the task has any signal to take.
pub async fn interrupted(task: u32) {
    while signals(task) == 0 {
        tokio::time::sleep(SIGNAL_POLL).await;
    }
}

/// Returns when the task is being killed.
pub async fn killed(task: u32) {
    tokio::time::sleep(KILL_PATIENCE).await;
    while signals(task) & SIGKILL == 0 {
        tokio::time::sleep(KILL_POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_and_ignored_signals_interrupt_nothing() {
        let status = "Name:\tx\nSigQ:\t0/1\nSigPnd:\t0000000000000200\nShdPnd:\t0000000000004003\n\
                      SigBlk:\t0000000000000001\nSigIgn:\t0000000000000002\nSigCgt:\t0000000000000000\n";
        assert_eq!(deliverable(status), 0x4200);
        assert_eq!(deliverable("nonsense"), 0);
    }

    #[test]
    fn this_process_is_not_interrupted_and_a_gone_one_is() {
        assert_eq!(signals(std::process::id()) & SIGKILL, 0);
        assert_eq!(signals(0), 0);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_ne!(signals(child.id()), 0);
    }
}

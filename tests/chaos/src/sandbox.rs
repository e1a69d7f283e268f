//! Where the driver works: mount, network and process namespaces of its own.
//!
//! Everything that it makes (processes, mounts, loop devices, networks) is inside of them and goes with them, however the
//! driver ends: when its first process is gone the kernel kills the others, and the last one takes the mounts along.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gofs_posix_tests::sys::kill;

use crate::sys;

/// Set inside.
const INSIDE: &str = "GOFS_CHAOS_INSIDE";
const POLL: Duration = Duration::from_millis(50);
/// What is interrupted and has not cleaned up by then is killed, and the kernel cleans up.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// Programs that are used, and Debian's packages of them.
const PROGRAMS: [(&str, &str); 7] = [
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("mkfs.ext4", "e2fsprogs"),
    ("fusermount3", "fuse3"),
];

/// Runs `work` inside of the namespaces: in another process, to which this one hands on what it is told.
pub fn inside(work: impl FnOnce() -> Result<bool>) -> Result<bool> {
    sys::remember_interrupts();
    if std::env::var_os(INSIDE).is_some() {
        return work();
    }
    check()?;
    let own = std::env::current_exe().context("the own program is not found")?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--"])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1");
    sys::killed_with_parent(&mut command);
    let mut child = command.spawn().context("unshare cannot be started")?;
    let mut kill_at = None;
    loop {
        if let Some(status) = child.try_wait().context("waiting for the driver")? {
            return Ok(status.success());
        }
        if sys::interrupted() && kill_at.is_none() {
            kill_at = Some(Instant::now() + END_TIMEOUT);
            // unshare itself is deaf to it.
            let children = format!("/proc/{0}/task/{0}/children", child.id());
            let children = std::fs::read_to_string(children).unwrap_or_default();
            children
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .for_each(|pid| kill(pid, libc::SIGTERM));
        }
        if kill_at.is_some_and(|at| Instant::now() > at) {
            child.kill().context("ending unshare")?;
        }
        std::thread::sleep(POLL);
    }
}

/// Says what is missing before anything is begun.
fn check() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1));
    ensure!(user == Some("0"), "this makes namespaces and mounts: run it as root");
    for file in ["/dev/fuse", "/dev/loop-control", "/proc/self/ns/net", "/proc/self/ns/pid"] {
        ensure!(Path::new(file).exists(), "{file} is missing: faults need it; see docs/OPERATIONS.md");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for (program, package) in PROGRAMS {
        if !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
            bail!("{program} is not found in PATH; on Debian: apt-get install {package}");
        }
    }
    Ok(())
}

/// Runs a program that must succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let output = match command.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("{command:?}: there is no such program")
        }
        other => other.with_context(|| format!("{command:?}"))?,
    };
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// [`run`] by name and arguments.
pub fn run_program(program: &str, args: &[&str]) -> Result<()> {
    run(Command::new(program).args(args))
}

//! What the tests need of the system: programs, /dev/fuse, root.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command::{Command, find};

/// Programs that the tests on real mounts use, and the Debian package of each.
const PROGRAMS: [(&str, &str); 11] = [
    ("fusermount3", "fuse3"),
    ("getfattr", "attr"),
    ("setfacl", "acl"),
    ("rsync", "rsync"),
    ("sqlite3", "sqlite3"),
    ("git", "git"),
    ("sha256sum", "coreutils"),
    ("mkfs.ext4", "e2fsprogs"),
    ("unshare", "util-linux"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
];

/// Installs what is missing, which only root can.
pub fn install() -> Result<()> {
    let missing: Vec<_> = PROGRAMS.iter().filter(|(program, _)| find(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs = missing.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", ");
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    let advice =
        format!("install the packages that have them, on Debian: apt-get install {}", packages.join(" "));
    if !is_root()? {
        bail!("the tests need {programs}, which PATH does not find; {advice}");
    }
    if find("apt-get").is_none() {
        bail!("the tests need {programs}, which PATH does not find, and there is no apt-get; {advice}");
    }
    let apt =
        |args: &[&str]| Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(args).run();
    let install = [&["install", "--yes", "--no-install-recommends"], packages.as_slice()].concat();
    // Lists of packages may be old or absent.
    if apt(&install).is_err() {
        apt(&["update"]).context(advice.clone())?;
        apt(&install).context(advice)?;
    }
    match PROGRAMS.iter().find(|(program, _)| find(program).is_none()) {
        Some((program, package)) => bail!("{package} was installed, yet PATH does not find {program}"),
        None => Ok(()),
    }
}

/// Says what a mount would fail for, before two hundred tests do.
pub fn check_mountable() -> Result<()> {
    if !Path::new("/dev/fuse").exists() {
        bail!(
            "/dev/fuse does not exist, and the tests mount file systems: `modprobe fuse`, or pass it into the container"
        );
    }
    if !is_root()? {
        bail!("the tests mount file systems, change owners and drop caches: run them as root");
    }
    Ok(())
}

fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1));
    Ok(effective.context("/proc/self/status does not tell the user")? == "0")
}

//! One mount: a gofs-fuse process and its mount point.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::posix;
use crate::process::Server;
use crate::wait::wait_for;

const MOUNT_TIMEOUT: Duration = Duration::from_secs(30);

/// A mounted namespace. Dropping it unmounts.
pub struct Mount {
    path: PathBuf,
    daemon: Server,
}

impl Mount {
    pub(crate) fn start(name: &str, source: &str, options: &str, dir: &Path) -> Mount {
        assert!(Path::new("/dev/fuse").exists(), "/dev/fuse is missing: these tests need real mounts");
        assert!(crate::sys::euid() == 0, "these tests mount file systems: run them as root");
        let path = dir.join(name);
        std::fs::create_dir_all(&path).expect("a mount point");
        let mut args = vec![source.to_string(), path.display().to_string(), "--foreground".into()];
        if !options.is_empty() {
            args.extend(["-o".to_string(), options.to_string()]);
        }
        let mut daemon = Server::start(&format!("fuse-{name}"), "gofs-fuse", args, dir);
        wait_for(&format!("the mount on {}", path.display()), MOUNT_TIMEOUT, || {
            assert!(daemon.is_running(), "gofs-fuse ended before it mounted:\n{}", daemon.log());
            is_mounted(&path)
        });
        Mount { path, daemon }
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path below the mount point.
    pub fn join(&self, path: &str) -> PathBuf {
        self.path.join(path)
    }

    /// The rest of a line of the mount's statistics (the attribute `gofs.stats`) that begins with `name`.
    pub fn statistic(&self, name: &str) -> Option<String> {
        let stats = posix::get_xattr(&self.path, "gofs.stats").expect("the mount's statistics");
        let stats = String::from_utf8(stats).expect("text");
        let rest = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(' ')?.to_owned());
        stats.lines().find_map(rest)
    }

    /// How often there was an operation ("operation KIND") or an answer of a server ("round_trip KIND").
    pub fn counted(&self, name: &str) -> u64 {
        let line = self.statistic(name).unwrap_or_default();
        // BUCKET:COUNT, after times.
        let counts = line.split(' ').filter_map(|field| field.split_once(':'));
        counts.map(|(_, count)| count.parse::<u64>().expect("a number")).sum()
    }

    /// Its daemon.
    pub fn daemon(&mut self) -> &mut Server {
        &mut self.daemon
    }

    /// Unmounts as a user does, and waits for the daemon to end well.
    pub fn unmount(mut self) {
        let status = Command::new("umount").arg(&self.path).status().expect("umount");
        assert!(status.success(), "umount {}", self.path.display());
        let status = self.daemon.wait_exit(Duration::from_secs(30));
        assert_eq!(status, 0, "the daemon's exit status");
    }

    /// As [`Mount::unmount`], when what was not flushed may be lost: the exit status is not looked at.
    pub fn unmount_whatever(mut self) {
        Command::new("umount").arg(&self.path).status().expect("umount");
        self.daemon.wait_exit(Duration::from_secs(60));
    }

    /// kill -9 of the daemon; what it leaves mounted is taken away.
    pub fn kill(mut self) {
        self.daemon.kill();
        Command::new("umount").arg("-l").arg(&self.path).status().ok();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.daemon.stop();
        if is_mounted(&self.path) {
            Command::new("umount").arg("-l").arg(&self.path).status().ok();
        }
    }
}

/// Whether a gofs is mounted there and answers.
fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    let path = path.to_str().expect("a path of the test's own");
    table.lines().any(|l| l.split(' ').nth(4) == Some(path) && l.contains(" fuse.gofs "))
}

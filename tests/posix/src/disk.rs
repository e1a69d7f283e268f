//! A disk of its own for a server's data, that can lose power: ext4 in a file, through a loop device.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::run::run;
use crate::sys;

/// As long as the kernel may keep what nobody syncs: longer than any test.
const OPTIONS: &str = "loop,noauto_da_alloc,commit=600";

/// A directory of which every mount namespace sees what is mounted and unmounted in it: else one that a server has of its own
/// would keep disks and gofs mounts of all tests from ending. Undone when dropped.
pub(crate) struct SharedDir(PathBuf);

impl SharedDir {
    pub(crate) fn make(path: &Path) -> SharedDir {
        let text = path.to_str().expect("a path of the test's own");
        run("mount", &["--bind", text, text]);
        let shared = SharedDir(path.to_owned());
        run("mount", &["--make-shared", text]);
        shared
    }
}

impl Drop for SharedDir {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// See the module. Unmounted when dropped.
pub struct Disk {
    image: PathBuf,
    mount_point: PathBuf,
    mounted: bool,
}

impl Disk {
    /// Makes and mounts an empty one of that size at `mount_point`, in a file beside it.
    pub(crate) fn make(mount_point: &Path, bytes: u64) -> Disk {
        let image = mount_point.with_extension("disk");
        File::create(&image).and_then(|file| file.set_len(bytes)).expect("room for a disk");
        run("mkfs.ext4", &["-q", "-F", image.to_str().expect("a path of the test's own")]);
        fs::create_dir_all(mount_point).expect("a mount point");
        let mut disk = Disk { image, mount_point: mount_point.to_owned(), mounted: false };
        disk.power_on();
        disk
    }

    /// From now on nothing more reaches the disk, and what was not written to it is lost.
    pub fn lose_power(&self) {
        let root = File::open(&self.mount_point).expect("a mounted disk");
        sys::shut_down_without_flush(&root).expect("EXT4_IOC_SHUTDOWN: the test needs root and ext4");
    }

    /// Mounts it again after [`Disk::lose_power`]; nobody may have it open.
    pub fn power_on(&mut self) {
        if self.mounted {
            run("umount", &[self.path()]);
            self.mounted = false;
        }
        run("mount", &["-o", OPTIONS, self.image.to_str().expect("a path of the test's own"), self.path()]);
        self.mounted = true;
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    fn path(&self) -> &str {
        self.mount_point.to_str().expect("a path of the test's own")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            std::process::Command::new("umount").args(["-l", self.path()]).status().ok();
        }
    }
}

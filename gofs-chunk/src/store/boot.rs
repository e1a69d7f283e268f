//! Which boot of the host this is. What is in the page cache outlives processes, but not the boot, nor the file system's
//! being mounted.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rand::RngExt;

/// File systems of which the kernel shows those that are mounted.
const SHOWN: [&str; 3] = ["ext4", "xfs", "f2fs"];

/// Changes when the host starts anew, and so when writes that were not synced may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId(pub u128);

impl BootId {
    /// The present one. Where the kernel does not tell, every process counts as a boot of its own.
    pub fn current() -> BootId {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let told = u128::from_str_radix(&text.trim().replace('-', ""), 16);
        BootId(told.unwrap_or_else(|_| rand::rng().random()))
    }

    /// As it counts for what was written to this directory: another one, too, when its file system was mounted anew.
    pub fn on(self, dir: &Path) -> BootId {
        BootId(self.0 ^ u128::from(mounted(dir).unwrap_or(0)))
    }

    /// As clients see it: not 0.
    pub fn incarnation(self) -> u64 {
        ((self.0 >> 64) as u64 ^ self.0 as u64).max(1)
    }
}

/// A number that the kernel has given to the directory's file system while it is mounted, whether once or several times and in
/// whichever namespaces, and gives to no other in this boot. `None` where it shows none.
fn mounted(dir: &Path) -> Option<u64> {
    let device = dir.metadata().ok()?.dev();
    let link = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    let link = std::fs::read_link(link).ok()?;
    let name = link.file_name()?;
    // Made when it is mounted.
    let shown = SHOWN.iter().find_map(|kind| Path::new("/sys/fs").join(kind).join(name).metadata().ok());
    shown.map(|entry| entry.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_one_boot() {
        assert_eq!(BootId::current(), BootId::current());
        assert_ne!(BootId(0).incarnation(), 0);
    }
}

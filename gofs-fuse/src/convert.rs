//! Between the kernel's types (as fuser shows them) and the tree's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, INodeNo, TimeOrNow};
use gofs_tree::{Attr, FileType, Ino, TimeChange, Timestamp};

/// What `st_blksize` tells programs to read and write in: large enough that `cp` makes few requests.
const PREFERRED_IO_BYTES: u32 = 128 * 1024;

/// Inode numbers as the kernel knows them: it calls the root of the mount 1, whichever
/// directory of the namespace that is.
#[derive(Clone, Copy, Debug)]
pub struct InoMap {
    root: Ino,
}

impl InoMap {
    /// For a mount whose root is `root`.
    pub fn new(root: Ino) -> Self {
        InoMap { root }
    }

    /// The tree's number of the kernel's.
    pub fn ino(self, node: INodeNo) -> Ino {
        if node == INodeNo::ROOT { self.root } else { Ino(node.0) }
    }

    /// The kernel's number of the tree's.
    pub fn node(self, ino: Ino) -> INodeNo {
        if ino == self.root { INodeNo::ROOT } else { INodeNo(ino.0) }
    }

    /// Attributes for the kernel.
    pub fn attr(self, attr: &Attr) -> FileAttr {
        FileAttr {
            ino: self.node(attr.ino),
            size: attr.size,
            blocks: attr.blocks,
            atime: system_time(attr.atime),
            mtime: system_time(attr.mtime),
            ctime: system_time(attr.ctime),
            crtime: system_time(attr.btime),
            kind: file_type(attr.file_type),
            perm: attr.mode.bits() as u16,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            blksize: PREFERRED_IO_BYTES,
            flags: 0,
        }
    }
}

/// An inode of which only number and type are known: `.` and `..` in a listing.
pub fn bare_attr(node: INodeNo, kind: fuser::FileType) -> FileAttr {
    FileAttr {
        ino: node,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: PREFERRED_IO_BYTES,
        flags: 0,
    }
}

/// The attributes of a name that does not exist: node 0.
pub fn no_attr() -> FileAttr {
    bare_attr(INodeNo(0), fuser::FileType::RegularFile)
}

/// The kernel's type of the tree's.
pub fn file_type(file_type: FileType) -> fuser::FileType {
    match file_type {
        FileType::File => fuser::FileType::RegularFile,
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
        FileType::CharDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.secs.unsigned_abs());
    let whole =
        if time.secs >= 0 { UNIX_EPOCH.checked_add(seconds) } else { UNIX_EPOCH.checked_sub(seconds) };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

/// The kernel's (seconds, nanoseconds) out of the `SystemTime` that fuser made of them. For negative
/// seconds fuser *subtracts* the nanoseconds, where they count forward; this undoes exactly that.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp::new(i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let secs = i64::try_from(before.as_secs()).map_or(i64::MIN, |secs| -secs);
            Timestamp::new(secs, before.subsec_nanos())
        }
    }
}

/// A time that utimensat sets.
pub fn time_change(time: TimeOrNow) -> TimeChange {
    match time {
        TimeOrNow::Now => TimeChange::Now,
        TimeOrNow::SpecificTime(time) => TimeChange::To(timestamp(time)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_way_to_the_kernel() {
        for (secs, nanos) in
            [(0, 0), (0, 999_999_999), (1_700_000_000, 123_456_789), (-1, 0), (-2, 800_000_000)]
        {
            let time = system_time(Timestamp::new(secs, nanos));
            let expected = (i128::from(secs)) * 1_000_000_000 + i128::from(nanos);
            let shown = match time.duration_since(UNIX_EPOCH) {
                Ok(after) => after.as_nanos() as i128,
                Err(before) => -(before.duration().as_nanos() as i128),
            };
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn times_before_1970_survive_the_way_from_the_kernel() {
        // What fuser makes of the kernel's (-2 s, 800,000,000 ns).
        let from_fuser = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(timestamp(from_fuser), Timestamp::new(-2, 800_000_000));
    }

    #[test]
    fn the_root_of_a_mounted_subdirectory_is_the_kernels_root() {
        let map = InoMap::new(Ino(42));
        assert_eq!(map.ino(INodeNo::ROOT), Ino(42));
        assert_eq!(map.node(Ino(42)), INodeNo::ROOT);
        assert_eq!(map.ino(INodeNo(43)), Ino(43));
        assert_eq!(map.node(Ino(43)), INodeNo(43));
    }
}

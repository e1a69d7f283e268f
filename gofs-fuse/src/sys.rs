//! The system calls that std does not offer: the only `unsafe` of this crate.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr;

/// Which side of a fork this is.
pub enum Fork {
    /// The caller; the child has this process id.
    Parent(u32),
    /// The new process.
    Child,
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// fork(2). Must be called before any thread is started; refused otherwise, because locks that
/// another thread holds would stay locked in the child for ever.
pub fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("cannot fork with {threads} threads running")));
    }
    // SAFETY: the process has one thread, so the child's copy of every lock and allocator is consistent.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent(child.unsigned_abs())),
    }
}

/// setsid(2): leaves the terminal and the process group.
pub fn new_session() -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::setsid() }).map(drop)
}

/// waitpid(2) for one child, so that it is no zombie.
pub fn reap(child: u32) {
    // SAFETY: the status pointer may be null; a failure (no such child) needs no handling.
    unsafe { libc::waitpid(child as libc::pid_t, ptr::null_mut(), 0) };
}

/// Whether this process is root, which may call mount(2) by itself.
pub fn is_root() -> bool {
    // SAFETY: takes no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Lets standard input, output and (if asked) error end in `/dev/null`.
pub fn silence_stdio(with_stderr: bool) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for fd in 0..=if with_stderr { 2 } else { 1 } {
        // SAFETY: both are open descriptors; dup2 replaces the standard one atomically.
        check(unsafe { libc::dup2(null.as_raw_fd(), fd) })?;
    }
    Ok(())
}

/// mount(2).
pub fn mount(
    source: &CStr,
    target: &CStr,
    fs_type: &CStr,
    flags: libc::c_ulong,
    data: &CStr,
) -> io::Result<()> {
    // SAFETY: all pointers are NUL-terminated strings that live through the call.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), fs_type.as_ptr(), flags, data.as_ptr().cast())
    })
    .map(drop)
}

/// umount2(2); `lazy` detaches it now and ends it when the last user is gone.
pub fn unmount(target: &CStr, lazy: bool) -> io::Result<()> {
    let flags = libc::UMOUNT_NOFOLLOW | if lazy { libc::MNT_DETACH } else { 0 };
    // SAFETY: the pointer is a NUL-terminated string that lives through the call.
    check(unsafe { libc::umount2(target.as_ptr(), flags) }).map(drop)
}

/// What FUSE inodes are known by across opens: FILEID_INO64_GEN of <linux/exportfs.h>, with the number's halves and the
/// generation.
#[repr(C)]
struct FileHandle {
    handle_bytes: u32,
    handle_type: i32,
    id: [u32; 3],
}
const FILEID_INO64_GEN: i32 = 0x81;

/// Opens a file of a FUSE mount by its node, of generation 0, and has the kernel read these bytes of it into its page cache.
/// Returns when they are asked for. Needs CAP_DAC_READ_SEARCH. Waits for requests of that mount.
pub fn will_need(mount_point: &CStr, node: u64, offset: u64, len: u64) -> io::Result<()> {
    let path = Path::new(OsStr::from_bytes(mount_point.to_bytes()));
    // Not O_PATH: a handle is not taken with it.
    let mount = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path)?;
    let id = [(node >> 32) as u32, node as u32, 0];
    let mut handle = FileHandle { handle_bytes: size_of_val(&id) as u32, handle_type: FILEID_INO64_GEN, id };
    // SAFETY: the handle has the layout of `struct file_handle` with as many bytes behind its header as it says.
    let fd = check(unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            ptr::from_mut(&mut handle).cast(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    })?;
    // SAFETY: just opened, and nobody else's.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    let (offset, len) = (offset as libc::off_t, len as libc::off_t);
    // SAFETY: takes no pointers.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, len, libc::POSIX_FADV_WILLNEED) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Codes of notifications in the kernel's FUSE protocol; INC_EPOCH since 7.44 (Linux 6.16).
const NOTIFY_INVAL_INODE: i32 = 2;
const NOTIFY_INC_EPOCH: i32 = 8;
/// Bytes of a `fuse_out_header`: length, error or code, unique.
const OUT_HEADER_BYTES: usize = 16;

/// What of an inode to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidate {
    /// Attributes and cached ACLs.
    Attributes,
    /// And all pages, dirty ones after they were written back.
    AttributesAndPages,
    /// And the pages of `len` bytes from `offset`; 0 = up to the end.
    AttributesAndSome { offset: u64, len: u64 },
}

/// Makes the kernel look every cached name of the mount up again.
/// `InvalidInput` where the kernel does not know this notification.
pub fn notify_inc_epoch(device: &OwnedFd) -> io::Result<()> {
    notify(device, NOTIFY_INC_EPOCH, &[])
}

/// Makes the kernel drop what it has cached of an inode. `NotFound` where it has no such inode.
pub fn notify_inval_inode(device: &OwnedFd, node: u64, what: Invalidate) -> io::Result<()> {
    // A negative offset spares the pages; length 0 means up to the end.
    let (offset, len) = match what {
        Invalidate::Attributes => (-1, 0),
        Invalidate::AttributesAndPages => (0, 0),
        Invalidate::AttributesAndSome { offset, len } => {
            (i64::try_from(offset).unwrap_or(i64::MAX), i64::try_from(len).unwrap_or(0))
        }
    };
    let mut body = [0u8; 24];
    body[..8].copy_from_slice(&node.to_ne_bytes());
    body[8..16].copy_from_slice(&offset.to_ne_bytes());
    body[16..].copy_from_slice(&len.to_ne_bytes());
    notify(device, NOTIFY_INVAL_INODE, &body)
}

fn notify(device: &OwnedFd, code: i32, body: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(OUT_HEADER_BYTES + body.len());
    let length = (OUT_HEADER_BYTES + body.len()) as u32;
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&code.to_ne_bytes());
    // `unique` 0 is what makes it a notification.
    message.extend_from_slice(&0u64.to_ne_bytes());
    message.extend_from_slice(body);
    DeviceWriter(device).write_all(&message)
}

/// Writes to a descriptor without owning it.
struct DeviceWriter<'a>(&'a OwnedFd);

impl Write for DeviceWriter<'_> {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        // SAFETY: the buffer is valid for its length and the descriptor is open.
        let written = unsafe { libc::write(self.0.as_raw_fd(), message.as_ptr().cast(), message.len()) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! What the kernel can do for a mount, asked for one by one, and what is lost where it cannot.

use fuser::{InitFlags, KernelConfig};
use tracing::{info, warn};

/// Largest READ and WRITE, bytes. More brings nothing.
pub const MAX_IO_BYTES: u32 = 1 << 20;
/// Requests that the kernel keeps in flight for readahead and asynchronous I/O. They cost a task each
/// here; the kernel's own default of 12 starves parallel readers.
const MAX_BACKGROUND: u16 = 256;

/// A capability and what is lost without it.
const WANTED: &[(InitFlags, &str, &str)] = &[
    (InitFlags::FUSE_ASYNC_READ, "ASYNC_READ", "readahead is one request at a time"),
    (InitFlags::FUSE_BIG_WRITES, "BIG_WRITES", "writes are 4 KiB each"),
    (InitFlags::FUSE_MAX_PAGES, "MAX_PAGES", "requests carry at most 128 KiB"),
    (InitFlags::FUSE_PARALLEL_DIROPS, "PARALLEL_DIROPS", "look-ups in one directory are one at a time"),
    (InitFlags::FUSE_DO_READDIRPLUS, "DO_READDIRPLUS", "listings fetch attributes file by file"),
    (InitFlags::FUSE_READDIRPLUS_AUTO, "READDIRPLUS_AUTO", "every listing fetches attributes"),
    (InitFlags::FUSE_CACHE_SYMLINKS, "CACHE_SYMLINKS", "every use of a symlink asks the daemon"),
    (InitFlags::FUSE_POSIX_LOCKS, "POSIX_LOCKS", "fcntl locks do not reach other hosts"),
    (InitFlags::FUSE_FLOCK_LOCKS, "FLOCK_LOCKS", "flock does not reach other hosts"),
    (InitFlags::FUSE_ATOMIC_O_TRUNC, "ATOMIC_O_TRUNC", "open with O_TRUNC takes two requests"),
    (InitFlags::FUSE_DONT_MASK, "DONT_MASK", "the umask overrides default ACLs"),
    (InitFlags::FUSE_POSIX_ACL, "POSIX_ACL", "ACLs are stored but not obeyed"),
    (
        InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        "EXPLICIT_INVAL_DATA",
        "pages are dropped when a file's size changes",
    ),
    (InitFlags::FUSE_ASYNC_DIO, "ASYNC_DIO", "direct I/O is one request at a time"),
    (
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        "DIRECT_IO_ALLOW_MMAP",
        "files open for append or O_DIRECT cannot be mapped shared",
    ),
    // Without it every write(2) is preceded by a request for security.capability. With it the daemon clears
    // suid and sgid itself, and has the kernel see that before the write is answered.
    (InitFlags::FUSE_HANDLE_KILLPRIV_V2, "HANDLE_KILLPRIV_V2", "every write costs a second request"),
];

/// What a mount's kernel can do.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// Version of the kernel's FUSE protocol.
    pub protocol: (u32, u32),
    /// Names of what was got.
    pub got: Vec<&'static str>,
    /// Names of what is missing, and what is lost without.
    pub missing: Vec<(&'static str, &'static str)>,
}

impl Capabilities {
    /// Asks the kernel for everything wanted.
    pub fn negotiate(config: &mut KernelConfig) -> Self {
        let version = config.kernel_abi();
        let mut capabilities =
            Capabilities { protocol: (version.0, version.1), got: Vec::new(), missing: Vec::new() };
        for &(flag, name, lost) in WANTED {
            // One at a time: a set is refused whole where one bit is missing.
            match config.add_capabilities(flag) {
                Ok(()) => capabilities.got.push(name),
                Err(_) => capabilities.missing.push((name, lost)),
            }
        }
        // Smaller is the kernel's default where it refuses; both are within fuser's limits.
        config.set_max_write(MAX_IO_BYTES).ok();
        config.set_max_background(MAX_BACKGROUND).ok();
        config.set_congestion_threshold(MAX_BACKGROUND / 4 * 3).ok();
        capabilities
    }

    /// Says at start what there is; `names` is whether names can be invalidated.
    pub fn log(&self, names: bool) {
        let (major, minor) = self.protocol;
        info!(protocol = %format_args!("{major}.{minor}"), got = %self.got.join(" "), "kernel capabilities");
        for (name, lost) in &self.missing {
            warn!(capability = name, "the kernel lacks a capability: {lost}");
        }
        if !names {
            warn!(
                capability = "INC_EPOCH",
                "the kernel lacks a capability (Linux 6.16 has it): every use of a name asks the daemon"
            );
        }
    }
}

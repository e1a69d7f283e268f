//! Puts a FUSE connection on a mount point and takes it off: mount(2) for root, fusermount3 for others.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use tracing::warn;

use crate::backend::Backend;
use crate::capabilities::MAX_IO_BYTES;
use crate::filesystem::Gofs;
use crate::mount::MountError;
use crate::options::{Access, KernelFlags, MountOptions};
use crate::sys;

/// How long an unmount waits for programs that use the mount before it is detached under them.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);
/// Pause between tries.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// A mount in the kernel's table.
pub struct Attachment {
    mount_point: PathBuf,
    /// Of fusermount3; root unmounts by itself.
    unmounter: Option<SessionUnmounter>,
}

/// A connection after its handshake, not yet served.
pub struct Attached<B: Backend> {
    /// The connection.
    pub session: Session<Gofs<B>>,
    /// Its place.
    pub attachment: Attachment,
    /// `/dev/fuse`, for notifications.
    pub device: OwnedFd,
}

/// Mounts `gofs` on `mount_point`, which is absolute and a directory. Blocks.
pub fn attach<B: Backend>(
    gofs: Gofs<B>,
    source: &str,
    mount_point: &Path,
    options: &MountOptions,
) -> Result<Attached<B>, MountError> {
    let root = sys::is_root();
    let acl = match options.access.unwrap_or(if root { Access::All } else { Access::Owner }) {
        Access::All => SessionACL::All,
        Access::RootAndOwner => SessionACL::RootAndOwner,
        Access::Owner => SessionACL::Owner,
    };
    let mut config = Config::default();
    config.acl = acl;
    config.n_threads = Some(options.threads);
    config.clone_fd = true;
    let failed = |error| MountError::Mount { mount_point: mount_point.to_owned(), error };
    let handshake = |error| MountError::Handshake { mount_point: mount_point.to_owned(), error };

    if !root {
        config.mount_options = fusermount_options(source, &options.kernel);
        let mut session = Session::new(gofs, mount_point, &config).map_err(failed)?;
        let unmounter = Some(session.unmount_callable());
        let device = session.as_fd().try_clone_to_owned().map_err(handshake)?;
        let attachment = Attachment { mount_point: mount_point.to_owned(), unmounter };
        return Ok(Attached { session, attachment, device });
    }

    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|error| MountError::Device { error })?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,max_read={MAX_IO_BYTES}",
        device.as_raw_fd()
    );
    if acl != SessionACL::Owner {
        data.push_str(",allow_other");
    }
    let c_string = |bytes: &[u8]| {
        CString::new(bytes)
            .map_err(|_| failed(io::Error::new(io::ErrorKind::InvalidInput, "NUL byte in a path")))
    };
    let target = c_string(mount_point.as_os_str().as_bytes())?;
    sys::mount(
        &c_string(source.as_bytes())?,
        &target,
        c"fuse.gofs",
        flags(&options.kernel),
        &c_string(data.as_bytes())?,
    )
    .map_err(failed)?;
    let mut attachment = Attachment { mount_point: mount_point.to_owned(), unmounter: None };
    let connected = || -> io::Result<(OwnedFd, Session<Gofs<B>>)> {
        let second = device.as_fd().try_clone_to_owned()?;
        Ok((second, Session::from_fd(gofs, OwnedFd::from(device), acl, config)?))
    };
    match connected() {
        Ok((device, session)) => Ok(Attached { session, attachment, device }),
        Err(error) => {
            attachment.detach();
            Err(handshake(error))
        }
    }
}

impl Attachment {
    /// Takes the mount off: at once if nobody uses it; lazily after a short wait otherwise, so that
    /// programs keep what they have open until the daemon ends. Blocks. Nothing happens where it is gone already.
    pub fn detach(&mut self) {
        if let Some(unmounter) = &mut self.unmounter {
            if let Err(error) = unmounter.unmount() {
                warn!(%error, "fusermount3 did not unmount");
            }
            return;
        }
        let Ok(target) = CString::new(self.mount_point.as_os_str().as_bytes()) else { return };
        let started = std::time::Instant::now();
        loop {
            match sys::unmount(&target, false) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    if started.elapsed() < BUSY_PATIENCE {
                        std::thread::sleep(BUSY_PAUSE);
                        continue;
                    }
                    warn!(mount_point = %self.mount_point.display(), "still in use: detached; open files fail from now on");
                    if let Err(error) = sys::unmount(&target, true) {
                        warn!(%error, "could not detach the mount");
                    }
                }
                // EINVAL: not a mount point any more.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => warn!(%error, "could not unmount"),
                Ok(()) => {}
            }
            return;
        }
    }
}

fn flags(kernel: &KernelFlags) -> libc::c_ulong {
    [
        (kernel.read_only, libc::MS_RDONLY),
        (kernel.nodev, libc::MS_NODEV),
        (kernel.nosuid, libc::MS_NOSUID),
        (kernel.noexec, libc::MS_NOEXEC),
        (kernel.noatime, libc::MS_NOATIME),
        (kernel.nodiratime, libc::MS_NODIRATIME),
        (kernel.dirsync, libc::MS_DIRSYNC),
        (kernel.nosymfollow, MS_NOSYMFOLLOW),
    ]
    .into_iter()
    .filter(|&(set, _)| set)
    .fold(0, |flags, (_, flag)| flags | flag)
}

/// Of <linux/mount.h>, Linux 5.10; libc does not have it.
const MS_NOSYMFOLLOW: libc::c_ulong = 256;

fn fusermount_options(source: &str, kernel: &KernelFlags) -> Vec<MountOption> {
    let mut options = vec![
        // Commas part options; a backslash makes them part of the name.
        MountOption::FSName(source.replace('\\', "\\\\").replace(',', "\\,")),
        MountOption::Subtype("gofs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::CUSTOM(format!("max_read={MAX_IO_BYTES}")),
    ];
    let wanted = [
        (kernel.read_only, MountOption::RO),
        (kernel.nodev, MountOption::NoDev),
        (kernel.nosuid, MountOption::NoSuid),
        (kernel.noexec, MountOption::NoExec),
        (kernel.noatime, MountOption::NoAtime),
        (kernel.dirsync, MountOption::DirSync),
    ];
    options.extend(wanted.into_iter().filter(|(set, _)| *set).map(|(_, option)| option));
    options
}

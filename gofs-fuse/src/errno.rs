//! The one place where errors of the file system become errno.

use fuser::Errno;
use gofs_tree::{FsError, NameError};

/// The errno that a program sees for `error`.
pub fn errno(error: FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDirectory => Errno::ENOTDIR,
        FsError::IsDirectory => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::FileTooLarge => Errno::EFBIG,
        FsError::NoSpace => Errno::ENOSPC,
        FsError::QuotaExceeded => Errno::from_i32(libc::EDQUOT),
        FsError::Invalid => Errno::EINVAL,
        FsError::NotPermitted => Errno::EPERM,
        FsError::AccessDenied => Errno::EACCES,
        FsError::Loop => Errno::ELOOP,
        FsError::NoAttribute => Errno::from_i32(libc::ENODATA),
        FsError::Range => Errno::ERANGE,
        FsError::TooBig => Errno::E2BIG,
        FsError::Stale => Errno::from_i32(libc::ESTALE),
        FsError::NotSupported => Errno::EOPNOTSUPP,
        FsError::WouldBlock => Errno::EAGAIN,
        FsError::Deadlock => Errno::EDEADLK,
        FsError::NoLocks => Errno::ENOLCK,
        FsError::Interrupted => Errno::EINTR,
        FsError::NoData => Errno::ENXIO,
        FsError::ReadOnly => Errno::EROFS,
        FsError::Busy => Errno::EBUSY,
        FsError::Io => Errno::EIO,
        // It never leaves the client library; if it did, the program can do nothing about it.
        FsError::NotCached => Errno::EIO,
    }
}

/// What a name that cannot be one means to the program that used it.
pub fn name_error(error: NameError) -> FsError {
    match error {
        NameError::Empty => FsError::NotFound,
        NameError::TooLong { .. } => FsError::NameTooLong,
        NameError::Forbidden => FsError::Invalid,
    }
}

/// What a name of an extended attribute that cannot be one means: ERANGE, as everywhere on Linux.
pub fn xattr_name_error(_: NameError) -> FsError {
    FsError::Range
}

//! The one error of the file system. Each variant is one errno; the mapping is in gofs-fuse.

/// Why an operation was refused. Nothing has changed when one is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FsError {
    /// ENOENT
    #[error("no such file or directory")]
    NotFound,
    /// EEXIST
    #[error("exists already")]
    Exists,
    /// ENOTDIR
    #[error("not a directory")]
    NotDirectory,
    /// EISDIR
    #[error("is a directory")]
    IsDirectory,
    /// ENOTEMPTY
    #[error("directory not empty")]
    NotEmpty,
    /// ENAMETOOLONG
    #[error("name too long")]
    NameTooLong,
    /// EMLINK
    #[error("too many links")]
    TooManyLinks,
    /// EFBIG
    #[error("file too large")]
    FileTooLarge,
    /// ENOSPC: the cluster is full.
    #[error("no space left in the cluster")]
    NoSpace,
    /// EDQUOT: the namespace's quota is used up.
    #[error("quota of the namespace exceeded")]
    QuotaExceeded,
    /// EINVAL
    #[error("invalid argument")]
    Invalid,
    /// EPERM
    #[error("operation not permitted")]
    NotPermitted,
    /// EACCES
    #[error("permission denied")]
    AccessDenied,
    /// ELOOP
    #[error("too many levels of symbolic links")]
    Loop,
    /// ENODATA
    #[error("no such attribute")]
    NoAttribute,
    /// ERANGE
    #[error("result does not fit")]
    Range,
    /// E2BIG
    #[error("argument too big")]
    TooBig,
    /// ESTALE: the inode or session is gone.
    #[error("stale handle")]
    Stale,
    /// EOPNOTSUPP
    #[error("not supported")]
    NotSupported,
    /// EAGAIN: a lock is held by another owner.
    #[error("would block")]
    WouldBlock,
    /// EDEADLK
    #[error("would deadlock")]
    Deadlock,
    /// ENOLCK
    #[error("no locks available")]
    NoLocks,
    /// EINTR
    #[error("interrupted")]
    Interrupted,
    /// ENXIO: SEEK_DATA or SEEK_HOLE past the end.
    #[error("no data past this offset")]
    NoData,
    /// EROFS
    #[error("read-only file system")]
    ReadOnly,
    /// EBUSY
    #[error("busy")]
    Busy,
    /// EIO: the storage failed, or a wait ended (`soft`).
    #[error("input/output error")]
    Io,
    /// A cache does not hold what the edit needs: ask the server. Never leaves the client library.
    #[error("not cached")]
    NotCached,
}

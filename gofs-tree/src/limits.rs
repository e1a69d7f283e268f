//! Bounds of names, links, xattrs and files, as `statfs` and errno tell them.

/// Longest name of a directory entry, bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// Longest path and longest symlink target plus its NUL, bytes (`PATH_MAX`).
pub const PATH_MAX: usize = 4096;
/// Most hard links to one inode, and most subdirectories of one directory plus two. As on ext4.
pub const LINK_MAX: u32 = 65_000;
/// Largest file, bytes: what an `off_t` of the kernel interface can address.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;
/// Longest name of an extended attribute, bytes (`XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX: usize = 255;
/// Largest value of one extended attribute, bytes (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_MAX: usize = 65_536;
/// Most bytes of names (with NUL) that `listxattr` can return (`XATTR_LIST_MAX`).
pub const XATTR_LIST_MAX: usize = 65_536;
/// Largest `inline_max` a namespace may be given, bytes.
pub const INLINE_MAX_LIMIT: u32 = 64 * 1024;
/// Unit of `st_blocks` accounting and of chunk checksums, bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// Most bytes of names and values of one inode's extended attributes together: they travel in one message.
pub const XATTR_TOTAL_MAX: usize = 4 << 20;

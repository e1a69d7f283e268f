//! What the client asks of the kernel that it serves: to forget.
//!
//! gofs-fuse implements it by notifications. Every call but [`KernelCache::forget_attributes`] comes from a thread that may
//! block and that serves no request of the kernel, because a notification can wait for requests in flight.

use gofs_tree::Ino;

/// The kernel's copies of what the client holds leases on.
pub trait KernelCache: Send + Sync + 'static {
    /// Drops the inode's attributes and pages; dirty pages of memory maps are written back first, through
    /// [`Client::write`](crate::Client::write). Returns when that is done, also where the kernel is
    /// about to learn of the inode by a reply that was sent before this call.
    fn invalidate_inode(&self, ino: Ino);

    /// As [`KernelCache::invalidate_inode`], of the pages that hold `len` bytes from `offset` only; 0 = up to the end.
    fn invalidate_pages(&self, ino: Ino, offset: u64, len: u64);

    /// Drops the attributes of an inode that the kernel has, and lets nothing that was answered before bring them back. Waits for
    /// nothing, and may be called while a request about the inode is served.
    fn forget_attributes(&self, ino: Ino);

    /// Makes the kernel ask again for every name.
    fn invalidate_entries(&self);

    /// Whether [`KernelCache::invalidate_entries`] works; names are given no time to live where it does not.
    fn can_cache_entries(&self) -> bool;
}

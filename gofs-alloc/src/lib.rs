//! How the allocator of a process whose work is to move large buffers behaves.
//!
//! Imports nothing of gofs: ChunkServers and mounts share it without one importing the other, and whoever
//! forbids `unsafe` goes on doing so.

/// Large buffers come from memory that the process has already, instead of being mapped, faulted in page by
/// page and given back each time. To be called before there are other threads.
#[allow(unsafe_code, reason = "mallopt(3) has no other door")]
pub fn keep_buffers() {
    /// Memory at the top of the heap that is kept, bytes.
    const KEPT: libc::c_int = 64 << 20;
    /// Buffers up to so long are of the heap.
    const OF_THE_HEAP: libc::c_int = 16 << 20;
    // SAFETY: changes parameters of the allocator only.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OF_THE_HEAP);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

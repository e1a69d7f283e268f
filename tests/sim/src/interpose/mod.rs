//! Functions of libc, redefined: what a simulated thread asks of the kernel goes to the [`world`](crate::world).
//!
//! The linker takes a function of the program before one of libc, for std and every crate alike: so the servers and
//! clients run as they are. A thread that is not simulated (there is only the first, before the world begins) gets
//! libc's own. All unsafe code of this package is in here.
//!
//! # Safety
//! Every function has the signature of its namesake in libc, and its callers owe what libc's manual says: pointers
//! valid for the lengths that come with them, descriptors that are open. On that the blocks below rely.

#![allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, in the text above")]
#![allow(clippy::missing_safety_doc, reason = "libc's manual has it")]

mod files;
pub mod real;
mod sockets;
mod threads;
mod time;

pub use threads::{Baton, current, register_main, wait_for_baton, wake};

use libc::c_int;

/// Fails as libc does.
fn fail(errno: c_int) -> c_int {
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// The same where the result is a length.
fn fail_len(errno: c_int) -> libc::ssize_t {
    fail(errno) as libc::ssize_t
}

/// The bytes of a buffer that a caller of libc named.
unsafe fn bytes<'a>(buffer: *const libc::c_void, len: usize) -> &'a [u8] {
    if len == 0 {
        return &[];
    }
    unsafe { std::slice::from_raw_parts(buffer.cast(), len) }
}

/// The same to be filled.
unsafe fn bytes_mut<'a>(buffer: *mut libc::c_void, len: usize) -> &'a mut [u8] {
    if len == 0 {
        return &mut [];
    }
    unsafe { std::slice::from_raw_parts_mut(buffer.cast(), len) }
}

//! Sockets, event counters and epoll: the net and what waits for it.

use std::net::{Ipv4Addr, SocketAddrV4};

use libc::{c_int, c_uint, c_void, iovec, size_t, sockaddr, sockaddr_in, socklen_t, ssize_t};

use super::{bytes, bytes_mut, fail, fail_len, real, time};
use crate::world::{self, Wait, Wake};

/// A descriptor of the kernel's that keeps the number.
pub(super) fn fresh_fd() -> c_int {
    let fd = unsafe { real::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    assert!(fd >= 0, "the process has no more descriptors");
    fd
}

fn is_ours(fd: c_int) -> bool {
    world::is_simulated() && world::with(|world| world.is_object(fd))
}

unsafe fn address_of(address: *const sockaddr) -> Option<SocketAddrV4> {
    let address = unsafe { &*address.cast::<sockaddr_in>() };
    (c_int::from(address.sin_family) == libc::AF_INET).then(|| {
        SocketAddrV4::new(
            Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)),
            u16::from_be(address.sin_port),
        )
    })
}

unsafe fn tell_address(told: SocketAddrV4, address: *mut sockaddr, len: *mut socklen_t) {
    if address.is_null() {
        return;
    }
    unsafe {
        let address = &mut *address.cast::<sockaddr_in>();
        address.sin_family = libc::AF_INET as u16;
        address.sin_port = told.port().to_be();
        address.sin_addr.s_addr = u32::from(*told.ip()).to_be();
        *len = size_of::<sockaddr_in>() as socklen_t;
    }
}

fn result_of(result: Result<(), c_int>) -> c_int {
    result.map_or_else(fail, |()| 0)
}

fn len_of(result: Result<usize, c_int>) -> ssize_t {
    result.map_or_else(fail_len, |len| len as ssize_t)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    if !world::is_simulated() || domain != libc::AF_INET {
        return unsafe { real::socket(domain, kind, protocol) };
    }
    let fd = fresh_fd();
    world::with(|world| world.new_socket(fd));
    fd
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    if !is_ours(fd) {
        return unsafe { real::bind(fd, address, len) };
    }
    match unsafe { address_of(address) } {
        Some(address) => result_of(world::with(|world| world.bind(fd, address))),
        None => fail(libc::EAFNOSUPPORT),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    if !is_ours(fd) {
        return unsafe { real::listen(fd, backlog) };
    }
    result_of(world::with(|world| world.listen(fd)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn accept4(fd: c_int, address: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int {
    if !is_ours(fd) {
        return unsafe { real::accept4(fd, address, len, flags) };
    }
    let Some(accepted) = world::with(|world| world.accept(fd)) else { return fail(libc::EAGAIN) };
    let fresh = fresh_fd();
    let peer = world::with(|world| world.adopt(fresh, accepted));
    unsafe { tell_address(peer, address, len) };
    fresh
}

#[unsafe(no_mangle)]
unsafe extern "C" fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    if !is_ours(fd) {
        return unsafe { real::connect(fd, address, len) };
    }
    match unsafe { address_of(address) } {
        Some(address) => result_of(world::with(|world| world.connect(fd, address))),
        None => fail(libc::EAFNOSUPPORT),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getsockname(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
    if !is_ours(fd) {
        return unsafe { real::getsockname(fd, address, len) };
    }
    let told = world::with(|world| world.socket_name(fd));
    unsafe { tell_address(told, address, len) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getpeername(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
    if !is_ours(fd) {
        return unsafe { real::getpeername(fd, address, len) };
    }
    match world::with(|world| world.peer_name(fd)) {
        Some(told) => {
            unsafe { tell_address(told, address, len) };
            0
        }
        None => fail(libc::ENOTCONN),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    if is_ours(fd) { 0 } else { unsafe { real::setsockopt(fd, level, name, value, len) } }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    if !is_ours(fd) {
        return unsafe { real::getsockopt(fd, level, name, value, len) };
    }
    let error = level == libc::SOL_SOCKET && name == libc::SO_ERROR;
    let told = if error { world::with(|world| world.take_error(fd)) } else { 0 };
    let out = unsafe { bytes_mut(value, *len as usize) };
    out.fill(0);
    out[..4].copy_from_slice(&told.to_ne_bytes());
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn shutdown(fd: c_int, how: c_int) -> c_int {
    if !is_ours(fd) {
        return unsafe { real::shutdown(fd, how) };
    }
    world::with(|world| world.shut_down(fd, how != libc::SHUT_WR, how != libc::SHUT_RD));
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn send(fd: c_int, buffer: *const c_void, len: size_t, flags: c_int) -> ssize_t {
    if !is_ours(fd) {
        return unsafe { real::send(fd, buffer, len, flags) };
    }
    let buffer = unsafe { bytes(buffer, len) };
    len_of(world::with(|world| world.send(fd, buffer)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn recv(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
    if !is_ours(fd) {
        return unsafe { real::recv(fd, buffer, len, flags) };
    }
    let out = unsafe { bytes_mut(buffer, len) };
    len_of(world::with(|world| world.receive(fd, out, flags & libc::MSG_PEEK != 0)))
}

/// What `read` and `readv` do on one of these; `None`: it is another kind of file.
pub(super) unsafe fn read_pieces(fd: c_int, pieces: &[iovec]) -> Option<ssize_t> {
    if !is_ours(fd) {
        return None;
    }
    let mut got = 0;
    for piece in pieces {
        let out = unsafe { bytes_mut(piece.iov_base, piece.iov_len) };
        match world::with(|world| world.receive(fd, out, false)) {
            Ok(len) => {
                got += len;
                if len < out.len() {
                    break;
                }
            }
            Err(error) if got == 0 => return Some(fail_len(error)),
            Err(_) => break,
        }
    }
    Some(got as ssize_t)
}

/// What `write` and `writev` do on one of these; `None`: it is another kind of file.
pub(super) unsafe fn write_pieces(fd: c_int, pieces: &[iovec]) -> Option<ssize_t> {
    if !is_ours(fd) {
        return None;
    }
    let mut gathered = Vec::new();
    for piece in pieces {
        gathered.extend_from_slice(unsafe { bytes(piece.iov_base, piece.iov_len) });
    }
    Some(len_of(world::with(|world| world.send(fd, &gathered))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn eventfd(count: c_uint, flags: c_int) -> c_int {
    if !world::is_simulated() {
        return unsafe { real::eventfd(count, flags) };
    }
    let fd = fresh_fd();
    world::with(|world| world.new_counter(fd, count.into()));
    fd
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_create1(flags: c_int) -> c_int {
    if !world::is_simulated() {
        return unsafe { real::epoll_create1(flags) };
    }
    let fd = fresh_fd();
    world::with(|world| world.new_poll(fd));
    fd
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_ctl(epoll: c_int, what: c_int, fd: c_int, event: *mut libc::epoll_event) -> c_int {
    if !is_ours(epoll) {
        return unsafe { real::epoll_ctl(epoll, what, fd, event) };
    }
    let interest = unsafe { event.as_ref() }.map(|event| (event.events, event.u64));
    world::with(|world| world.watch(epoll, fd, if what == libc::EPOLL_CTL_DEL { None } else { interest }));
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut libc::epoll_event,
    max: c_int,
    timeout: c_int,
) -> c_int {
    if !is_ours(epoll) {
        return unsafe { real::epoll_wait(epoll, events, max, timeout) };
    }
    if timeout == 0 {
        // A busy runtime looks here now and then: others may have their turn.
        world::pause();
    }
    let deadline = (timeout >= 0).then(|| world::now_ns() + timeout as u64 * time::MILLI_NS);
    loop {
        let found = world::with(|world| world.poll(epoll, max as usize));
        for (at, &(mask, data)) in found.iter().enumerate() {
            unsafe { events.add(at).write(libc::epoll_event { events: mask, u64: data }) };
        }
        if !found.is_empty() || timeout == 0 {
            return found.len() as c_int;
        }
        let wait = world::with(|world| world.poll_wait(epoll));
        if world::block(Wait::Poll(wait), deadline) == Wake::TimedOut {
            return 0;
        }
    }
}

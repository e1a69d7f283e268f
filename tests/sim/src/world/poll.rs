//! Descriptors, event counters, and epoll (edge-triggered, as mio uses it).

use std::collections::{BTreeMap, VecDeque};

use libc::c_int;

use super::net::Socket;
use super::schedule::fresh_number;
use super::{HostId, World};

/// An open file description that is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectId(u64);

pub(super) enum Kind {
    Counter(u64),
    Poll(Poll),
    Socket(Socket),
}

pub(super) struct Object {
    pub kind: Kind,
    pub host: HostId,
    descriptors: usize,
    /// Which epolls watch it, by which descriptor.
    watchers: Vec<(ObjectId, c_int)>,
}

#[derive(Default)]
pub(super) struct Poll {
    number: u64,
    watched: BTreeMap<c_int, Watched>,
    /// Descriptors at which something happened that was not told yet.
    fresh: VecDeque<c_int>,
}

struct Watched {
    object: ObjectId,
    interest: u32,
    data: u64,
}

/// What a number stands for.
#[derive(Clone, Copy)]
pub(super) enum Descriptor {
    Object(ObjectId),
    /// A file of the kernel's: its inode number.
    File(u64),
}

#[derive(Default)]
pub(super) struct Objects {
    all: BTreeMap<ObjectId, Object>,
    descriptors: BTreeMap<c_int, (HostId, Descriptor)>,
    next: u64,
}

impl Objects {
    pub fn get(&self, id: ObjectId) -> Option<&Object> {
        self.all.get(&id)
    }

    pub fn get_mut(&mut self, id: ObjectId) -> Option<&mut Object> {
        self.all.get_mut(&id)
    }

    pub fn descriptor(&self, fd: c_int) -> Option<Descriptor> {
        self.descriptors.get(&fd).map(|(_, descriptor)| *descriptor)
    }

    pub fn object(&self, fd: c_int) -> Option<ObjectId> {
        match self.descriptor(fd)? {
            Descriptor::Object(id) => Some(id),
            Descriptor::File(_) => None,
        }
    }

    pub fn socket(&self, id: ObjectId) -> Option<&Socket> {
        match &self.all.get(&id)?.kind {
            Kind::Socket(socket) => Some(socket),
            _ => None,
        }
    }

    pub fn socket_mut(&mut self, id: ObjectId) -> Option<&mut Socket> {
        match &mut self.all.get_mut(&id)?.kind {
            Kind::Socket(socket) => Some(socket),
            _ => None,
        }
    }

    pub fn sockets(&self) -> impl Iterator<Item = (ObjectId, HostId, &Socket)> {
        self.all.iter().filter_map(|(id, object)| match &object.kind {
            Kind::Socket(socket) => Some((*id, object.host, socket)),
            _ => None,
        })
    }

    /// A new object without a descriptor.
    pub fn make(&mut self, host: HostId, kind: Kind) -> ObjectId {
        self.next += 1;
        let id = ObjectId(self.next);
        self.all.insert(id, Object { kind, host, descriptors: 0, watchers: Vec::new() });
        id
    }

    /// Lets the descriptor stand for it.
    pub fn name(&mut self, host: HostId, fd: c_int, descriptor: Descriptor) {
        if let Descriptor::Object(id) = descriptor
            && let Some(object) = self.all.get_mut(&id)
        {
            object.descriptors += 1;
        }
        self.descriptors.insert(fd, (host, descriptor));
    }

    fn poll(&mut self, id: ObjectId) -> Option<&mut Poll> {
        match &mut self.all.get_mut(&id)?.kind {
            Kind::Poll(poll) => Some(poll),
            _ => None,
        }
    }
}

impl World {
    /// Whether the descriptor is simulated as a whole.
    pub fn is_object(&self, fd: c_int) -> bool {
        self.objects.object(fd).is_some()
    }

    /// Whether it is a file of the kernel's that a simulated thread opened.
    pub fn is_file(&self, fd: c_int) -> bool {
        matches!(self.objects.descriptor(fd), Some(Descriptor::File(_)))
    }

    fn new_object(&mut self, fd: c_int, kind: Kind) {
        let host = self.host();
        let id = self.objects.make(host, kind);
        self.objects.name(host, fd, Descriptor::Object(id));
    }

    /// `eventfd`.
    pub fn new_counter(&mut self, fd: c_int, count: u64) {
        self.new_object(fd, Kind::Counter(count));
    }

    /// `epoll_create1`.
    pub fn new_poll(&mut self, fd: c_int) {
        self.new_object(fd, Kind::Poll(Poll { number: fresh_number(), ..Poll::default() }));
    }

    /// `socket`.
    pub fn new_socket(&mut self, fd: c_int) {
        self.new_object(fd, Kind::Socket(Socket::default()));
    }

    /// `dup` by `fcntl`.
    pub fn duplicated(&mut self, fd: c_int, copy: c_int) {
        let host = self.host();
        if let Some(descriptor) = self.objects.descriptor(fd) {
            self.objects.name(host, copy, descriptor);
        }
    }

    /// `close`, before the kernel's.
    pub fn closed(&mut self, fd: c_int) {
        let Some((_, descriptor)) = self.objects.descriptors.remove(&fd) else { return };
        let Descriptor::Object(id) = descriptor else { return };
        let Some(object) = self.objects.all.get_mut(&id) else { return };
        object.descriptors -= 1;
        if object.descriptors == 0 {
            self.end_object(id, false);
        }
    }

    fn end_object(&mut self, id: ObjectId, silently: bool) {
        let Some(object) = self.objects.all.remove(&id) else { return };
        for (poll, fd) in object.watchers {
            if let Some(poll) = self.objects.poll(poll)
                && poll.watched.get(&fd).is_some_and(|watched| watched.object == id)
            {
                poll.watched.remove(&fd);
            }
        }
        if let Kind::Socket(socket) = object.kind {
            self.socket_gone(object.host, socket, silently);
        }
    }

    /// Everything that the host's processes had open is closed.
    pub(super) fn drop_descriptors(&mut self, host: HostId) {
        let silently = !self.hosts.get(host).up;
        let all = self.objects.descriptors.iter().filter(|(_, (owner, _))| *owner == host);
        let fds: Vec<c_int> = all.map(|(fd, _)| *fd).collect();
        for fd in fds {
            if let Some((_, Descriptor::Object(id))) = self.objects.descriptors.remove(&fd) {
                self.end_object(id, silently);
            }
            // SAFETY: it was the killed process's, which never runs again.
            unsafe { crate::interpose::real::close(fd) };
        }
        let left: Vec<ObjectId> =
            self.objects.sockets().filter(|(_, owner, _)| *owner == host).map(|(id, _, _)| id).collect();
        for id in left {
            self.end_object(id, silently);
        }
    }

    /// `epoll_ctl`; `None`: no more.
    pub fn watch(&mut self, epoll: c_int, fd: c_int, interest: Option<(u32, u64)>) {
        let (Some(poll_id), Some(object)) = (self.objects.object(epoll), self.objects.object(fd)) else {
            return;
        };
        let Some(poll) = self.objects.poll(poll_id) else { return };
        match interest {
            None => {
                poll.watched.remove(&fd);
            }
            Some((interest, data)) => {
                poll.watched.insert(fd, Watched { object, interest, data });
                poll.fresh.retain(|at| *at != fd);
                poll.fresh.push_back(fd);
                if let Some(object) = self.objects.all.get_mut(&object) {
                    object.watchers.retain(|watcher| *watcher != (poll_id, fd));
                    object.watchers.push((poll_id, fd));
                }
            }
        }
    }

    /// Something happened there: whoever watches it looks again.
    pub(super) fn happened(&mut self, object: ObjectId) {
        let Some(watchers) = self.objects.get(object).map(|object| object.watchers.clone()) else { return };
        for (poll, fd) in watchers {
            let Some(poll) = self.objects.poll(poll) else { continue };
            if poll.watched.contains_key(&fd) && !poll.fresh.contains(&fd) {
                poll.fresh.push_back(fd);
            }
            let number = poll.number;
            self.wake_poll(number);
        }
    }

    /// What `epoll_wait` finds: at most `max` masks with their data.
    pub fn poll(&mut self, epoll: c_int, max: usize) -> Vec<(u32, u64)> {
        let mut found = Vec::new();
        let Some(id) = self.objects.object(epoll) else { return found };
        while found.len() < max {
            let Some(poll) = self.objects.poll(id) else { break };
            let Some(fd) = poll.fresh.pop_front() else { break };
            let Some(watched) = poll.watched.get(&fd) else { continue };
            let (object, interest, data) = (watched.object, watched.interest, watched.data);
            let always = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
            let mask = self.readiness(object) & (interest | always);
            if mask != 0 {
                found.push((mask, data));
            }
        }
        found
    }

    /// What a thread that finds nothing there waits for.
    pub fn poll_wait(&mut self, epoll: c_int) -> u64 {
        let id = self.objects.object(epoll);
        id.and_then(|id| self.objects.poll(id)).map_or(0, |poll| poll.number)
    }

    fn readiness(&self, object: ObjectId) -> u32 {
        let Some(object) = self.objects.get(object) else { return 0 };
        match &object.kind {
            Kind::Counter(count) => {
                let readable = if *count > 0 { libc::EPOLLIN } else { 0 };
                (readable | libc::EPOLLOUT) as u32
            }
            Kind::Poll(_) => 0,
            Kind::Socket(socket) => self.socket_readiness(socket),
        }
    }

    /// `read` of what is simulated.
    pub fn receive(&mut self, fd: c_int, out: &mut [u8], peek: bool) -> Result<usize, c_int> {
        let id = self.objects.object(fd).ok_or(libc::EBADF)?;
        match &mut self.objects.get_mut(id).ok_or(libc::EBADF)?.kind {
            Kind::Counter(count) => {
                if *count == 0 {
                    return Err(libc::EAGAIN);
                }
                out[..8].copy_from_slice(&count.to_ne_bytes());
                *count = 0;
                Ok(8)
            }
            Kind::Poll(_) => Err(libc::EINVAL),
            Kind::Socket(_) => self.socket_receive(id, out, peek),
        }
    }

    /// `write` to what is simulated.
    pub fn send(&mut self, fd: c_int, bytes: &[u8]) -> Result<usize, c_int> {
        let id = self.objects.object(fd).ok_or(libc::EBADF)?;
        match &mut self.objects.get_mut(id).ok_or(libc::EBADF)?.kind {
            Kind::Counter(count) => {
                *count += u64::from_ne_bytes(bytes.try_into().map_err(|_| libc::EINVAL)?);
                self.happened(id);
                Ok(8)
            }
            Kind::Poll(_) => Err(libc::EINVAL),
            Kind::Socket(_) => self.socket_send(id, bytes),
        }
    }
}

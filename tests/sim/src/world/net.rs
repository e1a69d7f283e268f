//! TCP between the hosts: ordered streams over a net that delays, loses and is cut.
//!
//! What is lost is sent again later, as TCP does; what cannot be delivered for long ends the connection. A host without
//! power answers nothing; one that is there and knows no such connection, or has no such listener, refuses.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};

use libc::c_int;
use rand::RngExt;

use super::poll::{Descriptor, Kind, ObjectId};
use super::{HostId, MICRO_NS, MILLI_NS, SECOND_NS, World, trace};

/// Bytes under way and unread in one direction, at most.
const WINDOW_BYTES: usize = 1 << 20;
/// First and longest pause before something is sent again.
const RESEND_NS: (u64, u64) = (200 * MILLI_NS, 2 * SECOND_NS);
/// A connection on which nothing gets through for so long ends. Linux waits 15 minutes; nothing that is tested waits for it.
const GIVE_UP_NS: u64 = 60 * SECOND_NS;

/// How the net is.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Time from host to host, nanoseconds: half of it up to half more.
    pub latency_ns: u64,
    /// One message in so many is lost once, and sent again; 0: none.
    pub lost_one_in: u32,
}

impl Default for Weather {
    fn default() -> Self {
        Weather { latency_ns: 150 * MICRO_NS, lost_one_in: 0 }
    }
}

pub(super) fn address_of_host(host: HostId) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, host.0 as u8)
}

fn host_of(address: Ipv4Addr) -> HostId {
    let octets = address.octets();
    if octets[0] == 10 { HostId(octets[3].into()) } else { HostId::NONE }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ConnectionId(u64);

#[derive(Default)]
enum Stage {
    #[default]
    Fresh,
    Listening(VecDeque<ObjectId>),
    Connecting,
    Open,
    /// Over; nothing can be sent.
    Failed,
}

/// One end.
#[derive(Default)]
pub struct Socket {
    stage: Stage,
    own: Option<SocketAddrV4>,
    peer: Option<SocketAddrV4>,
    connection: Option<(ConnectionId, usize)>,
    inbound: VecDeque<u8>,
    inbound_ended: bool,
    outbound_ended: bool,
    error: c_int,
}

enum Message {
    Bytes(Vec<u8>),
    End,
    Reset,
}

#[derive(Default)]
struct Flow {
    under_way: VecDeque<(u64, Message)>,
    bytes: usize,
    /// When the last of them arrives.
    last_at: u64,
    /// Since when nothing gets through, and the pause before the next trial.
    stuck: Option<(u64, u64)>,
    is_awaited: bool,
}

struct Connection {
    hosts: [HostId; 2],
    sockets: [Option<ObjectId>; 2],
    /// By the end that sends.
    flows: [Flow; 2],
}

#[derive(Default)]
pub(super) struct Net {
    connections: BTreeMap<ConnectionId, Connection>,
    listeners: BTreeMap<SocketAddrV4, ObjectId>,
    next: u64,
    weather: Weather,
    /// Messages from the first to the second are lost.
    cut: BTreeSet<(HostId, HostId)>,
    /// Longer ways.
    far: BTreeMap<(HostId, HostId), u64>,
}

impl World {
    /// From now on.
    pub fn set_weather(&mut self, weather: Weather) {
        self.net.weather = weather;
    }

    /// Nothing gets from one to the other, until [`World::mend`].
    pub fn cut_way(&mut self, from: HostId, to: HostId) {
        self.net.cut.insert((from, to));
    }

    /// The way between the two takes longer.
    pub fn lengthen_way(&mut self, from: HostId, to: HostId, latency_ns: u64) {
        self.net.far.insert((from, to), latency_ns);
    }

    /// Every way is whole and short again.
    pub fn mend(&mut self) {
        self.net.cut.clear();
        self.net.far.clear();
    }

    fn is_cut(&self, from: HostId, to: HostId) -> bool {
        self.net.cut.contains(&(from, to)) || !self.hosts.get(to).up
    }

    fn latency_ns(&mut self, from: HostId, to: HostId) -> u64 {
        let base = self.net.far.get(&(from, to)).copied().unwrap_or(self.net.weather.latency_ns);
        let base = if from == to { 10 * MICRO_NS } else { base };
        let lost_one_in = self.net.weather.lost_one_in;
        let again = if lost_one_in > 0 && from != to && self.chance(lost_one_in) { RESEND_NS.0 } else { 0 };
        base / 2 + self.rng.random_range(0..=base) + again
    }

    /// `bind`.
    pub fn bind(&mut self, fd: c_int, mut address: SocketAddrV4) -> Result<(), c_int> {
        let host = self.host();
        if address.port() == 0 {
            address.set_port(self.hosts.take_port(host));
        }
        if self.net.listeners.contains_key(&address) {
            return Err(libc::EADDRINUSE);
        }
        let id = self.objects.object(fd).ok_or(libc::EBADF)?;
        self.objects.socket_mut(id).ok_or(libc::ENOTSOCK)?.own = Some(address);
        Ok(())
    }

    /// `listen`.
    pub fn listen(&mut self, fd: c_int) -> Result<(), c_int> {
        let id = self.objects.object(fd).ok_or(libc::EBADF)?;
        let socket = self.objects.socket_mut(id).ok_or(libc::ENOTSOCK)?;
        socket.stage = Stage::Listening(VecDeque::new());
        let own = socket.own.ok_or(libc::EINVAL)?;
        self.net.listeners.insert(own, id);
        Ok(())
    }

    /// `accept4`, first half: who is next.
    pub fn accept(&mut self, fd: c_int) -> Option<ObjectId> {
        let id = self.objects.object(fd)?;
        match &mut self.objects.socket_mut(id)?.stage {
            Stage::Listening(waiting) => waiting.pop_front(),
            _ => None,
        }
    }

    /// Second half: it gets a descriptor. The answer is who it is from.
    pub fn adopt(&mut self, fd: c_int, accepted: ObjectId) -> SocketAddrV4 {
        let host = self.host();
        self.objects.name(host, fd, Descriptor::Object(accepted));
        let peer = self.objects.socket(accepted).and_then(|socket| socket.peer);
        peer.unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))
    }

    /// `connect`: EINPROGRESS, or why not.
    pub fn connect(&mut self, fd: c_int, to: SocketAddrV4) -> Result<(), c_int> {
        let host = self.host();
        let own = SocketAddrV4::new(host.ip(), self.hosts.take_port(host));
        let id = self.objects.object(fd).ok_or(libc::EBADF)?;
        let socket = self.objects.socket_mut(id).ok_or(libc::ENOTSOCK)?;
        socket.own = Some(own);
        socket.peer = Some(to);
        socket.stage = Stage::Connecting;
        let at = self.now + self.latency_ns(host, host_of(*to.ip()));
        self.at(at, move |world| world.ask_to_connect(id, own, to, RESEND_NS.0));
        Err(libc::EINPROGRESS)
    }

    /// A SYN arrives, or not.
    fn ask_to_connect(&mut self, from: ObjectId, own: SocketAddrV4, to: SocketAddrV4, pause_ns: u64) {
        if self.objects.socket(from).is_none() {
            return;
        }
        let (host, target) = (host_of(*own.ip()), host_of(*to.ip()));
        if self.is_cut(host, target) || self.is_cut(target, host) {
            let at = self.now + pause_ns;
            let longer = (pause_ns * 2).min(RESEND_NS.1);
            return self.at(at, move |world| world.ask_to_connect(from, own, to, longer));
        }
        let at = self.now + self.latency_ns(target, host);
        let Some(&listener) = self.net.listeners.get(&to) else {
            return self.at(at, move |world| world.end_socket(from, libc::ECONNREFUSED));
        };
        self.net.next += 1;
        let id = ConnectionId(self.net.next);
        let accepted = Socket {
            stage: Stage::Open,
            own: Some(to),
            peer: Some(own),
            connection: Some((id, 1)),
            ..Socket::default()
        };
        let accepted = self.objects.make(target, Kind::Socket(accepted));
        let connection = Connection {
            hosts: [host, target],
            sockets: [Some(from), Some(accepted)],
            flows: Default::default(),
        };
        self.net.connections.insert(id, connection);
        if let Some(Socket { stage: Stage::Listening(waiting), .. }) = self.objects.socket_mut(listener) {
            waiting.push_back(accepted);
        }
        self.happened(listener);
        self.at(at, move |world| world.connected(from, id));
    }

    fn connected(&mut self, from: ObjectId, id: ConnectionId) {
        match self.objects.socket_mut(from) {
            Some(socket) => {
                socket.stage = Stage::Open;
                socket.connection = Some((id, 0));
                self.happened(from);
            }
            None => self.transmit(id, 0, Message::Reset),
        }
    }

    /// The connection is over for this end.
    fn end_socket(&mut self, id: ObjectId, error: c_int) {
        if let Some(socket) = self.objects.socket_mut(id) {
            socket.stage = Stage::Failed;
            socket.error = error;
            socket.inbound_ended = true;
            socket.outbound_ended = true;
            self.happened(id);
        }
    }

    /// A socket has no descriptor any more.
    pub(super) fn socket_gone(&mut self, host: HostId, socket: Socket, silently: bool) {
        if let Stage::Listening(waiting) = socket.stage {
            if let Some(own) = socket.own {
                self.net.listeners.remove(&own);
            }
            for id in waiting {
                if let Some(Socket { connection: Some((id, end)), .. }) = self.objects.socket(id) {
                    let (id, end) = (*id, *end);
                    self.transmit(id, end, Message::Reset);
                }
            }
        }
        let Some((id, end)) = socket.connection else { return };
        let Some(connection) = self.net.connections.get_mut(&id) else { return };
        connection.sockets[end] = None;
        debug_assert_eq!(connection.hosts[end], host, "a socket stays on its host");
        if silently {
            // What it had sent and what had not left yet is gone with its host.
            connection.flows[end].under_way.clear();
            connection.flows[end].bytes = 0;
        } else if !socket.inbound.is_empty() {
            self.transmit(id, end, Message::Reset);
        } else if !socket.outbound_ended {
            self.transmit(id, end, Message::End);
        }
    }

    /// Sends along a connection, behind what is under way.
    fn transmit(&mut self, id: ConnectionId, end: usize, message: Message) {
        let Some(connection) = self.net.connections.get(&id) else { return };
        let (from, to) = (connection.hosts[end], connection.hosts[1 - end]);
        let at = self.now + self.latency_ns(from, to);
        if let Message::Bytes(bytes) = &message {
            let sum = trace::sum_of(bytes);
            self.trace.note("send", self.now, (from.0 * 100 + to.0) as u64, sum);
        }
        let Some(connection) = self.net.connections.get_mut(&id) else { return };
        let flow = &mut connection.flows[end];
        flow.last_at = flow.last_at.max(at);
        let at = flow.last_at;
        if let Message::Bytes(bytes) = &message {
            flow.bytes += bytes.len();
        }
        flow.under_way.push_back((at, message));
        self.await_flow(id, end, at);
    }

    fn await_flow(&mut self, id: ConnectionId, end: usize, at: u64) {
        let Some(connection) = self.net.connections.get_mut(&id) else { return };
        if !std::mem::replace(&mut connection.flows[end].is_awaited, true) {
            self.at(at, move |world| world.arrive(id, end));
        }
    }

    /// The first message of a flow gets through, or not.
    fn arrive(&mut self, id: ConnectionId, end: usize) {
        let Some(connection) = self.net.connections.get_mut(&id) else { return };
        connection.flows[end].is_awaited = false;
        let (from, to) = (connection.hosts[end], connection.hosts[1 - end]);
        if connection.flows[end].under_way.is_empty() {
            return;
        }
        if self.is_cut(from, to) {
            return self.not_through(id, end);
        }
        let Some(connection) = self.net.connections.get_mut(&id) else { return };
        let target = connection.sockets[1 - end];
        let flow = &mut connection.flows[end];
        flow.stuck = None;
        let Some((_, message)) = flow.under_way.pop_front() else { return };
        if let Message::Bytes(bytes) = &message {
            flow.bytes -= bytes.len();
        }
        let next = flow.under_way.front().map(|(at, _)| *at);
        if let Some(at) = next {
            let at = at.max(self.now);
            self.await_flow(id, end, at);
        }
        self.hand_over(id, end, target, message);
    }

    fn hand_over(&mut self, id: ConnectionId, end: usize, target: Option<ObjectId>, message: Message) {
        let Some(target) = target else {
            // Nobody there knows the connection.
            if let Message::Bytes(_) = message {
                self.transmit(id, 1 - end, Message::Reset);
            }
            return;
        };
        match message {
            Message::Bytes(bytes) => {
                if let Some(socket) = self.objects.socket_mut(target) {
                    socket.inbound.extend(bytes);
                }
            }
            Message::End => {
                if let Some(socket) = self.objects.socket_mut(target) {
                    socket.inbound_ended = true;
                }
            }
            Message::Reset => self.end_socket(target, libc::ECONNRESET),
        }
        self.happened(target);
    }

    fn not_through(&mut self, id: ConnectionId, end: usize) {
        let now = self.now;
        let Some(connection) = self.net.connections.get_mut(&id) else { return };
        let sender = connection.sockets[end];
        let (since, pause) = connection.flows[end].stuck.unwrap_or((now, RESEND_NS.0));
        if now - since > GIVE_UP_NS {
            connection.flows[end] = Flow::default();
            if let Some(sender) = sender {
                self.end_socket(sender, libc::ETIMEDOUT);
            }
            return;
        }
        connection.flows[end].stuck = Some((since, (pause * 2).min(RESEND_NS.1)));
        self.await_flow(id, end, now + pause);
    }

    /// Room for what is sent from this end.
    fn room(&self, id: ConnectionId, end: usize) -> usize {
        let Some(connection) = self.net.connections.get(&id) else { return WINDOW_BYTES };
        let unread = connection.sockets[1 - end].and_then(|socket| self.objects.socket(socket));
        let used = connection.flows[end].bytes + unread.map_or(0, |socket| socket.inbound.len());
        WINDOW_BYTES.saturating_sub(used)
    }

    pub(super) fn socket_readiness(&self, socket: &Socket) -> u32 {
        let mut mask = 0;
        match &socket.stage {
            Stage::Fresh => mask |= libc::EPOLLOUT | libc::EPOLLHUP,
            Stage::Listening(waiting) => mask |= if waiting.is_empty() { 0 } else { libc::EPOLLIN },
            Stage::Connecting => {}
            Stage::Open => {
                if !socket.inbound.is_empty() || socket.inbound_ended {
                    mask |= libc::EPOLLIN;
                }
                if socket.inbound_ended {
                    mask |= libc::EPOLLRDHUP;
                }
                let has_room = socket.connection.is_none_or(|(id, end)| self.room(id, end) > 0);
                if has_room || socket.outbound_ended {
                    mask |= libc::EPOLLOUT;
                }
                if socket.inbound_ended && socket.outbound_ended {
                    mask |= libc::EPOLLHUP;
                }
            }
            Stage::Failed => {
                mask |= libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP | libc::EPOLLRDHUP;
            }
        }
        mask as u32
    }

    pub(super) fn socket_receive(
        &mut self,
        id: ObjectId,
        out: &mut [u8],
        peek: bool,
    ) -> Result<usize, c_int> {
        let socket = self.objects.socket_mut(id).ok_or(libc::ENOTSOCK)?;
        if socket.inbound.is_empty() {
            if socket.error != 0 {
                return Err(std::mem::take(&mut socket.error));
            }
            return if socket.inbound_ended { Ok(0) } else { Err(libc::EAGAIN) };
        }
        let len = out.len().min(socket.inbound.len());
        for (to, from) in out.iter_mut().zip(&socket.inbound) {
            *to = *from;
        }
        if peek {
            return Ok(len);
        }
        let connection = socket.connection;
        let was_full = connection.is_some_and(|(id, end)| self.room(id, 1 - end) == 0);
        if let Some(socket) = self.objects.socket_mut(id) {
            socket.inbound.drain(..len);
        }
        if was_full && let Some((connection, end)) = connection {
            let sender = self.net.connections.get(&connection).and_then(|c| c.sockets[1 - end]);
            if let Some(sender) = sender {
                self.happened(sender);
            }
        }
        Ok(len)
    }

    pub(super) fn socket_send(&mut self, id: ObjectId, bytes: &[u8]) -> Result<usize, c_int> {
        let socket = self.objects.socket_mut(id).ok_or(libc::ENOTSOCK)?;
        match socket.stage {
            Stage::Open if !socket.outbound_ended => {}
            Stage::Connecting => return Err(libc::EAGAIN),
            Stage::Failed if socket.error != 0 => return Err(std::mem::take(&mut socket.error)),
            _ => return Err(libc::EPIPE),
        }
        let Some((connection, end)) = socket.connection else { return Err(libc::ENOTCONN) };
        let mut len = self.room(connection, end).min(bytes.len());
        if len == 0 && !bytes.is_empty() {
            return Err(libc::EAGAIN);
        }
        // Now and then the reader gets a piece first.
        if len > 1 && self.chance(64) {
            let first = self.rng.random_range(1..len);
            self.transmit(connection, end, Message::Bytes(bytes[..first].to_vec()));
            self.transmit(connection, end, Message::Bytes(bytes[first..len].to_vec()));
            return Ok(len);
        }
        // Or the sender's buffer is full.
        if len > 1 && self.chance(256) {
            len = self.rng.random_range(1..len);
            let at = self.now + MICRO_NS;
            self.at(at, move |world| world.happened(id));
        }
        self.transmit(connection, end, Message::Bytes(bytes[..len].to_vec()));
        Ok(len)
    }

    /// `shutdown`.
    pub fn shut_down(&mut self, fd: c_int, reading: bool, writing: bool) {
        let Some(id) = self.objects.object(fd) else { return };
        let Some(socket) = self.objects.socket_mut(id) else { return };
        if reading {
            socket.inbound_ended = true;
        }
        let ends = writing && !std::mem::replace(&mut socket.outbound_ended, true);
        let connection = socket.connection;
        if ends && let Some((connection, end)) = connection {
            self.transmit(connection, end, Message::End);
        }
        self.happened(id);
    }

    /// `getsockname`.
    pub fn socket_name(&self, fd: c_int) -> SocketAddrV4 {
        let socket = self.objects.object(fd).and_then(|id| self.objects.socket(id));
        socket.and_then(|socket| socket.own).unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))
    }

    /// `getpeername`; `None`: not connected.
    pub fn peer_name(&self, fd: c_int) -> Option<SocketAddrV4> {
        let socket = self.objects.object(fd).and_then(|id| self.objects.socket(id))?;
        matches!(socket.stage, Stage::Open).then_some(socket.peer).flatten()
    }

    /// `SO_ERROR`.
    pub fn take_error(&mut self, fd: c_int) -> c_int {
        let id = self.objects.object(fd);
        id.and_then(|id| self.objects.socket_mut(id)).map_or(0, |socket| std::mem::take(&mut socket.error))
    }
}

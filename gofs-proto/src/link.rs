//! A connection that carries frames both ways: calls out, requests in.
//!
//! Owns the socket, the requests in flight and the bytes not yet sent. A call is
//! written to the socket before it first waits, from the caller's own thread where the
//! socket takes it. Replies and requests are handed on in the order in which they came.
//! When the connection ends every call in flight fails with [`CallError::Closed`];
//! whether the peer acted on it is then unknown.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::sync::{Notify, oneshot};

use crate::frame::{self, Frame, PREFACE};
use crate::kind::{FAILURE, REPLY, Request};
use crate::session::Failure;

/// Unsent bytes over which [`Link::ready`] waits.
const BACKLOG_BYTES: usize = 16 << 20;
/// Pieces handed to one writev.
const GATHER_MAX: usize = 64;
/// Size of a fresh buffer to read into: many small frames at once.
const READ_BYTES: usize = 64 << 10;
/// With less room than this in the buffer there is a fresh one.
const READ_ROOM_BYTES: usize = 8 << 10;

/// Why a call has no reply.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The connection ended; the peer may or may not have acted.
    #[error("connection to {0} ended")]
    Closed(SocketAddr),
    /// The peer refused.
    #[error("{0:?}")]
    Refused(Failure),
    /// The reply was not what the protocol says.
    #[error("{0} sent a reply that cannot be read")]
    Garbled(SocketAddr),
}

/// What is to be done with requests of the peer.
pub trait LinkHandler: Send + Sync + 'static {
    /// Called in order of arrival, on the link's own task: must not block.
    fn on_request(&self, link: &Arc<Link>, request: Frame);
    /// Called when everything that has arrived so far was handed on: what was gathered can be worked on together.
    /// Must not block.
    fn on_pause(&self, _link: &Arc<Link>) {}
    /// Called once, after which no request comes.
    fn on_close(&self, link: &Arc<Link>);
}

type OnReply = Box<dyn FnOnce(Result<Frame, CallError>) + Send>;

/// A live connection. Dropping every handle does not close it; [`Link::close`] does.
pub struct Link {
    stream: OwnedWriteHalf,
    peer: SocketAddr,
    next_id: AtomicU64,
    calls: Mutex<HashMap<u64, OnReply>>,
    unsent: Mutex<VecDeque<Bytes>>,
    backlog_bytes: AtomicUsize,
    wake_writer: Notify,
    drained: Notify,
    closed: AtomicBool,
    closing: Notify,
}

impl Link {
    /// Connects and sends the preface. The handshake messages are the caller's.
    pub async fn connect(
        address: impl ToSocketAddrs,
        handler: Arc<dyn LinkHandler>,
        timeout: Duration,
    ) -> io::Result<Arc<Link>> {
        let stream = tokio::time::timeout(timeout, TcpStream::connect(address))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let link = Link::start(stream, handler, false)?;
        link.push(VecDeque::from([Bytes::from_static(&PREFACE)]));
        Ok(link)
    }

    /// Takes over a connection whose preface [`crate::door::which`] has seen but not read.
    pub fn accept(stream: TcpStream, handler: Arc<dyn LinkHandler>) -> io::Result<Arc<Link>> {
        Link::start(stream, handler, true)
    }

    fn start(stream: TcpStream, handler: Arc<dyn LinkHandler>, skip_preface: bool) -> io::Result<Arc<Link>> {
        stream.set_nodelay(true)?;
        let peer = stream.peer_addr()?;
        let (reader, stream) = stream.into_split();
        let link = Arc::new(Link {
            stream,
            peer,
            next_id: AtomicU64::new(1),
            calls: Mutex::default(),
            unsent: Mutex::default(),
            backlog_bytes: AtomicUsize::new(0),
            wake_writer: Notify::new(),
            drained: Notify::new(),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
        });
        tokio::spawn(link.clone().write_loop());
        tokio::spawn(link.clone().read_loop(reader, handler, skip_preface));
        Ok(link)
    }

    /// The other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Ends the connection; calls in flight fail. May be called more than once.
    pub fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            // Permits are stored, so loops that are not waiting yet see them.
            self.closing.notify_one();
            self.wake_writer.notify_one();
            self.drained.notify_waiters();
        }
    }

    /// Waits while more than [`BACKLOG_BYTES`] are unsent, so that a slow peer slows its callers.
    pub async fn ready(&self) {
        while self.backlog_bytes.load(Ordering::Acquire) > BACKLOG_BYTES && !self.is_closed() {
            let drained = self.drained.notified();
            if self.backlog_bytes.load(Ordering::Acquire) <= BACKLOG_BYTES || self.is_closed() {
                return;
            }
            drained.await;
        }
    }

    /// Sends a request now and returns what waits for its reply.
    pub fn call<R: Request>(
        &self,
        request: &R,
        payload: Vec<Bytes>,
    ) -> impl Future<Output = Result<(R::Reply, Bytes), CallError>> + Send + use<R> {
        self.call_then::<R, _, _>(request, payload, |reply, payload| (reply, payload))
    }

    /// As [`Link::call`]; `then` sees the reply on the link's own task, before any frame that
    /// came after it is looked at. It must not block.
    pub fn call_then<R: Request, T: Send + 'static, F: FnOnce(R::Reply, Bytes) -> T + Send + 'static>(
        &self,
        request: &R,
        payload: Vec<Bytes>,
        then: F,
    ) -> impl Future<Output = Result<T, CallError>> + Send + use<R, T, F> {
        let (sender, receiver) = oneshot::channel();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let peer = self.peer;
        let on_reply: OnReply = Box::new(move |reply| {
            let result = reply.and_then(|frame| {
                let message = <R::Reply as prost::Message>::decode(frame.header);
                message.map(|m| then(m, frame.payload)).map_err(|_| CallError::Garbled(peer))
            });
            // A caller that has gone away does not want the reply.
            let _ = sender.send(result);
        });
        self.calls.lock().insert(id, on_reply);
        if self.is_closed() {
            self.fail_calls();
        } else {
            self.send(R::KIND, id, request, payload);
        }
        async move { receiver.await.unwrap_or(Err(CallError::Closed(peer))) }
    }

    /// Answers a request.
    pub fn reply<R: Request>(&self, id: u64, reply: &R::Reply, payload: Vec<Bytes>) {
        self.send(R::KIND | REPLY, id, reply, payload);
    }

    /// Answers several requests at once.
    pub fn reply_all(&self, replies: Replies) {
        if !replies.0.is_empty() {
            self.push(replies.0);
        }
    }

    /// Refuses a request.
    pub fn refuse(&self, id: u64, failure: &Failure) {
        self.send(FAILURE, id, failure, Vec::new());
    }

    fn send(&self, kind: u16, id: u64, header: &impl prost::Message, payload: Vec<Bytes>) {
        let mut pieces = VecDeque::with_capacity(1 + payload.len());
        lay_out(&mut pieces, kind, id, header, payload);
        self.push(pieces);
    }

    /// Writes the pieces at once where the socket takes them, else leaves the rest to the writer.
    fn push(&self, mut pieces: VecDeque<Bytes>) {
        if self.is_closed() {
            return;
        }
        let mut unsent = self.unsent.lock();
        if unsent.is_empty() {
            match self.write_some(&mut pieces) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return self.close(),
            }
        }
        if !pieces.is_empty() {
            let bytes: usize = pieces.iter().map(Bytes::len).sum();
            self.backlog_bytes.fetch_add(bytes, Ordering::AcqRel);
            unsent.append(&mut pieces);
            drop(unsent);
            self.wake_writer.notify_one();
        }
    }

    /// Writes until the pieces are gone or the socket is full (WouldBlock).
    fn write_some(&self, pieces: &mut VecDeque<Bytes>) -> io::Result<()> {
        while !pieces.is_empty() {
            let slices: Vec<IoSlice<'_>> = pieces.iter().take(GATHER_MAX).map(|p| IoSlice::new(p)).collect();
            let mut written = self.stream.try_write_vectored(&slices)?;
            while let Some(first) = pieces.front_mut() {
                if written < first.len() {
                    first.advance(written);
                    break;
                }
                written -= first.len();
                pieces.pop_front();
            }
        }
        Ok(())
    }

    async fn write_loop(self: Arc<Self>) {
        loop {
            self.wake_writer.notified().await;
            loop {
                if self.is_closed() {
                    return;
                }
                let result = {
                    let mut unsent = self.unsent.lock();
                    let result = self.write_some(&mut unsent);
                    let left: usize = unsent.iter().map(Bytes::len).sum();
                    self.backlog_bytes.store(left, Ordering::Release);
                    if left <= BACKLOG_BYTES {
                        self.drained.notify_waiters();
                    }
                    result
                };
                match result {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if self.stream.writable().await.is_err() {
                            return self.close();
                        }
                    }
                    Err(_) => return self.close(),
                }
            }
        }
    }

    async fn read_loop(
        self: Arc<Self>,
        reader: OwnedReadHalf,
        handler: Arc<dyn LinkHandler>,
        skip_preface: bool,
    ) {
        let reading = self.clone();
        tokio::select! {
            result = reading.read_frames(reader, &handler, skip_preface) => {
                if let Err(error) = result && error.kind() == io::ErrorKind::InvalidData {
                    tracing::warn!(peer = %self.peer, %error, "connection dropped: not a frame");
                }
            }
            () = self.closing.notified() => {}
        }
        self.close();
        socket2::SockRef::from(self.stream.as_ref()).shutdown(std::net::Shutdown::Both).ok();
        self.fail_calls();
        handler.on_close(&self);
    }

    async fn read_frames(
        self: &Arc<Self>,
        mut reader: OwnedReadHalf,
        handler: &Arc<dyn LinkHandler>,
        skip_preface: bool,
    ) -> io::Result<()> {
        if skip_preface {
            reader.read_exact(&mut [0; PREFACE.len()]).await?;
        }
        let mut buffer = BytesMut::new();
        loop {
            match frame::decode(&mut buffer).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))? {
                Ok(frame) => self.dispatch(handler, frame),
                Err(needed) => {
                    handler.on_pause(self);
                    let lacking = needed - buffer.len();
                    // Frames that are still in use keep the buffer they came in: a fresh one only when this is full.
                    if buffer.capacity() - buffer.len() < lacking.max(READ_ROOM_BYTES) {
                        buffer.reserve(lacking.max(READ_BYTES));
                    }
                    if reader.read_buf(&mut buffer).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }

    fn dispatch(self: &Arc<Self>, handler: &Arc<dyn LinkHandler>, frame: Frame) {
        if frame.kind & REPLY == 0 {
            return handler.on_request(self, frame);
        }
        // A reply nobody waits for is one to a call that was given up.
        let Some(on_reply) = self.calls.lock().remove(&frame.id) else { return };
        if frame.kind == FAILURE {
            let refused = <Failure as prost::Message>::decode(frame.header)
                .map_or(CallError::Garbled(self.peer), CallError::Refused);
            on_reply(Err(refused));
        } else {
            on_reply(Ok(frame));
        }
    }

    fn fail_calls(&self) {
        let calls: Vec<OnReply> = self.calls.lock().drain().map(|(_, on_reply)| on_reply).collect();
        for on_reply in calls {
            on_reply(Err(CallError::Closed(self.peer)));
        }
    }
}

/// Answers that go out together, with one system call where the socket takes them.
#[derive(Default)]
pub struct Replies(VecDeque<Bytes>);

impl Replies {
    /// Answers a request.
    pub fn reply<R: Request>(&mut self, id: u64, reply: &R::Reply, payload: Bytes) {
        lay_out(&mut self.0, R::KIND | REPLY, id, reply, vec![payload]);
    }

    /// Refuses a request.
    pub fn refuse(&mut self, id: u64, failure: &Failure) {
        lay_out(&mut self.0, FAILURE, id, failure, Vec::new());
    }
}

fn lay_out(
    pieces: &mut VecDeque<Bytes>,
    kind: u16,
    id: u64,
    header: &impl prost::Message,
    payload: Vec<Bytes>,
) {
    pieces.push_back(frame::encode_head(kind, id, header, payload.iter().map(Bytes::len).sum()));
    pieces.extend(payload.into_iter().filter(|piece| !piece.is_empty()));
}

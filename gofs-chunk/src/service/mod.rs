//! The data door: frames of clients and of other ChunkServers.
//!
//! Each request is a task of its own; the store is called on that task. Only small reads that arrive together are
//! worked on together: what memory has is answered by the reader of the connection, the rest by one task. Writes and punches of one connection to one
//! chunk take effect in the order in which they came, here and on the servers behind; a writer's next connection begins when
//! nothing of the one before is under way. Payloads are verified before they are stored or passed on.

mod chain;
mod failure;
mod fences;
mod foreground;
mod order;
mod peers;
mod reads;
mod requests;
mod writers;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use bytes::Bytes;
use gofs_proto::chunk::{Extents, Hello, Punch, Read, Stat, Sync, Welcome, Write};
use gofs_proto::frame::Frame;
use gofs_proto::kind::{self, Request};
use gofs_proto::session::Failure;
use gofs_proto::session::failure::Code;
use gofs_proto::{Link, LinkHandler, OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, negotiate};
use gofs_tree::ChunkId;
use gofs_wakeful::Wakeful;
use parking_lot::Mutex;

use crate::store::Store;
use failure::bad_request;
pub use fences::{Fences, Sessions};
use foreground::Foreground;
use order::Order;
pub use peers::Peers;
use reads::{SMALL_READ_BYTES, SmallRead};
use writers::{Load, NAME_BYTES_MAX, Writers};

/// Requests of one connection that are worked on at once; more are refused with RETRY.
const IN_FLIGHT_MAX: usize = 4096;
/// Payload bytes of one connection that are worked on at once; more are refused with RETRY.
const IN_FLIGHT_BYTES_MAX: usize = 512 << 20;

/// What all connections share.
pub struct Service {
    /// The chunks.
    pub store: Arc<Store>,
    /// Whose writes are refused.
    pub fences: Fences,
    /// Connections to other servers.
    pub peers: Peers,
    /// Whose connections these are.
    writers: Writers,
    /// Chunks that are being copied to here.
    pub copying: Copying,
    /// What clients want, which copies make way for.
    pub foreground: Foreground,
    /// Keeps processors awake while requests flow. Heartbeats and upkeep do not count.
    pub wakeful: Wakeful,
    in_flight: AtomicU32,
    links: Mutex<Vec<Weak<Link>>>,
}

impl Service {
    /// Serves a store.
    pub fn new(store: Arc<Store>, wakeful: Wakeful) -> Arc<Service> {
        let peers = Peers::new(store.server());
        Arc::new(Service {
            store,
            fences: Fences::default(),
            peers,
            writers: Writers::default(),
            copying: Copying::default(),
            foreground: Foreground::default(),
            wakeful,
            in_flight: AtomicU32::new(0),
            links: Mutex::default(),
        })
    }

    /// Keeps sight of an accepted connection.
    pub fn remember(&self, link: &Arc<Link>) {
        self.links.lock().push(Arc::downgrade(link));
    }

    /// Accepted connections that are open.
    pub fn connection_count(&self) -> usize {
        let mut links = self.links.lock();
        links.retain(|link| link.upgrade().is_some_and(|link| !link.is_closed()));
        links.len()
    }

    /// Ends all accepted connections.
    pub fn close_connections(&self) {
        for link in self.links.lock().drain(..).filter_map(|link| link.upgrade()) {
            link.close();
        }
    }

    /// Requests that are being worked on.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The cluster as a Hello names it; empty before the server was adopted.
    pub fn cluster(&self) -> Bytes {
        self.store.cluster().map(|id| Bytes::copy_from_slice(&id)).unwrap_or_default()
    }

    fn welcome(&self, hello: &Hello) -> Result<Welcome, Failure> {
        let Some(version) = negotiate(hello.version, hello.oldest_version) else {
            let text = format!(
                "versions {} to {} and {OLDEST_PROTOCOL_VERSION} to {PROTOCOL_VERSION} do not meet: upgrade the older side",
                hello.oldest_version, hello.version
            );
            return Err(Failure::new(Code::BadVersion, text));
        };
        let own = self.cluster();
        if own.is_empty() {
            return Err(Failure::new(
                Code::Retry,
                "this ChunkServer is waiting for a MetaServer to adopt it",
            ));
        }
        if hello.writer.len() > NAME_BYTES_MAX {
            return Err(bad_request(format!("the name of a writer has more than {NAME_BYTES_MAX} bytes")));
        }
        if !hello.cluster.is_empty() && hello.cluster != own {
            return Err(Failure::new(Code::WrongCluster, "this ChunkServer belongs to another cluster"));
        }
        Ok(Welcome { version, server: self.store.server().0, incarnation: self.store.incarnation() })
    }
}

/// Chunks that are being copied to here, each once.
#[derive(Default)]
pub struct Copying(Mutex<HashSet<ChunkId>>);

/// One copy under way.
pub struct OnlyCopy<'a> {
    copying: &'a Copying,
    chunk: ChunkId,
}

impl Copying {
    /// `None` where the chunk is being copied already.
    pub fn begin(&self, chunk: ChunkId) -> Option<OnlyCopy<'_>> {
        // Made only where it was not there: dropping it ends the copy.
        let fresh = self.0.lock().insert(chunk);
        if fresh { Some(OnlyCopy { copying: self, chunk }) } else { None }
    }
}

impl Drop for OnlyCopy<'_> {
    fn drop(&mut self) {
        self.copying.0.lock().remove(&self.chunk);
    }
}

/// One connection.
pub struct Connection {
    service: Arc<Service>,
    greeted: Arc<AtomicBool>,
    order: Arc<Order>,
    load: Arc<Load>,
    /// Small reads that have arrived and were not looked at yet.
    reads: Mutex<Vec<SmallRead>>,
}

/// Counts a request for as long as it lives.
struct Counted {
    service: Arc<Service>,
    load: Arc<Load>,
    bytes: usize,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.load.end(self.bytes);
        self.service.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.service.wakeful.touch();
    }
}

impl Connection {
    /// For a connection that has just been accepted.
    pub fn new(service: Arc<Service>) -> Arc<Connection> {
        Arc::new(Connection {
            service,
            greeted: Arc::default(),
            order: Arc::default(),
            load: Arc::default(),
            reads: Mutex::default(),
        })
    }

    fn count(&self, bytes: usize, now: Instant) -> Result<Counted, Failure> {
        let (requests, before) = self.load.begin(bytes);
        self.service.in_flight.fetch_add(1, Ordering::Relaxed);
        self.service.wakeful.touch_at(now);
        let counted = Counted { service: self.service.clone(), load: self.load.clone(), bytes };
        if requests >= IN_FLIGHT_MAX || before + bytes > IN_FLIGHT_BYTES_MAX {
            return Err(Failure::new(Code::Retry, "too many requests of one connection at once"));
        }
        Ok(counted)
    }

    fn greet(&self, link: &Arc<Link>, frame: Frame) {
        let result = decode::<Hello>(&frame).and_then(|hello| {
            let welcome = self.service.welcome(&hello)?;
            Ok((hello, welcome, self.count(0, Instant::now())?))
        });
        let (hello, welcome, counted) = match result {
            Ok(greeted) => greeted,
            Err(failure) => return link.refuse(frame.id, &failure),
        };
        let (service, load, greeted) = (self.service.clone(), self.load.clone(), self.greeted.clone());
        let link = link.clone();
        tokio::spawn(async move {
            if !hello.writer.is_empty() {
                service.writers.greet(hello.writer, &load).await;
            }
            greeted.store(true, Ordering::Release);
            link.reply::<Hello>(frame.id, &welcome, Vec::new());
            drop(counted);
        });
    }

    fn request(&self, link: &Arc<Link>, frame: Frame) -> Result<(), Failure> {
        let (id, service, now) = (frame.id, self.service.clone(), Instant::now());
        let counted = self.count(frame.payload.len(), now)?;
        if self.load.is_succeeded() {
            // Whoever sent it has been told that nothing more of this connection will be done.
            link.close();
            return Ok(());
        }
        match frame.kind {
            Write::KIND => {
                let write = decode::<Write>(&frame)?;
                service.foreground.count(now);
                let turn = self.order.enter(write.items.iter().map(|item| ChunkId(item.chunk)).collect());
                answer::<Write>(link, id, counted, async move {
                    Ok((service.write(write, frame.payload, turn).await?, Bytes::new()))
                });
            }
            Punch::KIND => {
                let punch = decode::<Punch>(&frame)?;
                service.foreground.count(now);
                let turn = self.order.enter(vec![ChunkId(punch.chunk)]);
                answer::<Punch>(link, id, counted, async move {
                    Ok((service.punch(punch, turn).await?, Bytes::new()))
                });
            }
            Read::KIND => {
                let read = decode::<Read>(&frame)?;
                if !read.copy {
                    service.foreground.count(now);
                }
                if read.len <= SMALL_READ_BYTES {
                    self.reads.lock().push(SmallRead { id, read, _counted: counted });
                    return Ok(());
                }
                answer::<Read>(link, id, counted, async move { service.read(&read) });
            }
            Sync::KIND => {
                let sync = decode::<Sync>(&frame)?;
                service.foreground.count(now);
                answer::<Sync>(link, id, counted, async move { Ok((service.sync(&sync)?, Bytes::new())) });
            }
            Extents::KIND => {
                let extents = decode::<Extents>(&frame)?;
                answer::<Extents>(link, id, counted, async move {
                    Ok((service.extents(&extents)?, Bytes::new()))
                });
            }
            Stat::KIND => {
                let stat = decode::<Stat>(&frame)?;
                answer::<Stat>(link, id, counted, async move { Ok((service.stat(&stat)?, Bytes::new())) });
            }
            other => {
                return Err(bad_request(format!("a ChunkServer answers no {} ({other})", kind::name(other))));
            }
        }
        Ok(())
    }
}

fn decode<R: Request>(frame: &Frame) -> Result<R, Failure> {
    R::decode(frame.header.clone()).map_err(|error| bad_request(format!("{}: {error}", kind::name(R::KIND))))
}

fn answer<R: Request>(
    link: &Arc<Link>,
    id: u64,
    counted: Counted,
    work: impl Future<Output = Result<(R::Reply, Bytes), Failure>> + Send + 'static,
) {
    let link = link.clone();
    tokio::spawn(async move {
        match work.await {
            Ok((reply, payload)) => {
                // A reader that does not take its replies is not worked for further.
                link.ready().await;
                link.reply::<R>(id, &reply, vec![payload]);
            }
            Err(failure) => link.refuse(id, &failure),
        }
        drop(counted);
    });
}

impl LinkHandler for Connection {
    fn on_request(&self, link: &Arc<Link>, frame: Frame) {
        if frame.kind == Hello::KIND {
            return self.greet(link, frame);
        }
        let id = frame.id;
        if !self.greeted.load(Ordering::Acquire) {
            link.refuse(id, &bad_request("say Hello first"));
            return link.close();
        }
        if let Err(failure) = self.request(link, frame) {
            link.refuse(id, &failure);
        }
    }

    fn on_pause(&self, link: &Arc<Link>) {
        let reads = std::mem::take(&mut *self.reads.lock());
        if !reads.is_empty() {
            reads::serve(&self.service, link, reads);
        }
    }

    fn on_close(&self, _: &Arc<Link>) {}
}

/// Runs sync work that may wait for a disk on the caller's own task.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        // A runtime of one thread has no other to go on with.
        _ => work(),
    }
}

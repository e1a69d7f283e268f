//! Small requests to the same servers that come close together share a frame, as commits share a sync.
//!
//! One that comes alone goes at once. While enough frames to its servers are under way it waits, and all that wait go
//! together when one of those is answered. A frame says nothing of its parts unless every server took all of it: if not,
//! each part is its author's to send alone, so that the trouble of one file remains its own. A part whose author has
//! gone away, or whose session is over, before it was sent is never sent.
//!
//! A frame of few bytes goes to every server at the same time, which spares the servers to pass it on and its authors two
//! of four trips; a larger one goes down the chain, so that it leaves this host once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use futures_util::future::join_all;
use gofs_proto::chunk::{Hop, ItemDone, Sync, SyncItem, SyncReply, Write, WriteItem, WriteReply, Writer};
use gofs_proto::kind::Request;
use gofs_tree::{NamespaceId, SessionId};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::Replica;
use super::links::ChunkLinks;

/// Items in a frame; a part of more goes alone.
const ITEMS_MAX: usize = 1024;
/// Payload of a frame, bytes; a part of more goes alone. Each server has all of a frame before it passes it on.
const FRAME_BYTES: usize = 1 << 20;
/// Payload of a frame that goes to all servers at once: sent again it costs less than the way through another server.
const FAN_OUT_BYTES: usize = 64 << 10;
/// A part that was not sent for so long is told to go alone: what is under way has trouble.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);
/// Ways that are remembered before those that nobody uses are forgotten.
const WAYS_MAX: usize = 1024;

/// A request of which one can do the work of several.
pub(super) trait Shared: Request {
    /// What it has a list of.
    type Item: Clone + Send + 'static;
    /// What its reply tells of each.
    type Done: Send + 'static;
    /// Frames under way at once on one way before those that come wait.
    const UNDER_WAY: usize;

    /// A request with these items, to be passed on to the servers `behind`.
    fn with(writer: Writer, items: Vec<Self::Item>, behind: &[Replica]) -> Self;
    /// What became of so many items; `None`: that is not known of each.
    fn done(reply: Self::Reply, items: usize) -> Option<Vec<Self::Done>>;
}

impl Shared for Write {
    type Item = WriteItem;
    type Done = ItemDone;
    const UNDER_WAY: usize = 1;

    fn with(writer: Writer, items: Vec<WriteItem>, behind: &[Replica]) -> Write {
        Write {
            writer: Some(writer),
            items,
            chain: behind.iter().map(|r| Hop { server: r.server.0, address: r.address.clone() }).collect(),
            sync: false,
        }
    }

    fn done(reply: WriteReply, items: usize) -> Option<Vec<ItemDone>> {
        (reply.failed.is_empty() && reply.done.len() == items).then_some(reply.done)
    }
}

impl Shared for Sync {
    type Item = SyncItem;
    type Done = ();
    /// Several, because one of much takes long, and a lone fsync beside it should not.
    const UNDER_WAY: usize = 4;

    fn with(_: Writer, items: Vec<SyncItem>, _: &[Replica]) -> Sync {
        Sync { items }
    }

    fn done(_: SyncReply, items: usize) -> Option<Vec<()>> {
        Some(vec![(); items])
    }
}

/// Whose frame it is and which servers it goes through: what parts must have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Way {
    pub session: SessionId,
    /// In the order in which one passes on to the next; at least one.
    pub servers: Vec<Replica>,
}

/// Who sends: the session of the moment, because a fence changes it.
type CurrentSession = Arc<dyn Fn() -> SessionId + Send + std::marker::Sync>;

/// See the module.
pub(super) struct Gather<R: Shared> {
    sender: Arc<Sender>,
    lanes: DashMap<Way, Arc<Lane<R>>>,
}

/// What is needed to send a frame.
struct Sender {
    links: Arc<ChunkLinks>,
    namespace: NamespaceId,
    session: CurrentSession,
    patience: Duration,
    runtime: Handle,
}

/// What goes one way.
struct Lane<R: Shared> {
    way: Way,
    queue: Mutex<Queue<R>>,
}

/// Nothing waits while a frame could leave, but for the moment in which its connection is made.
struct Queue<R: Shared> {
    under_way: usize,
    last_ticket: u64,
    /// In the order of their tickets.
    waiting: VecDeque<Part<R>>,
}

/// What one author wants to have sent.
struct Part<R: Shared> {
    ticket: u64,
    items: Vec<R::Item>,
    payload: Vec<Bytes>,
    tell: oneshot::Sender<Option<Vec<R::Done>>>,
}

impl<R: Shared> Part<R> {
    fn bytes(&self) -> usize {
        self.payload.iter().map(Bytes::len).sum()
    }
}

impl<R: Shared> Gather<R> {
    /// `patience`: see [`PATIENCE`]. Must be called in the context of a runtime.
    pub fn new(
        links: Arc<ChunkLinks>,
        namespace: NamespaceId,
        session: CurrentSession,
        patience: Duration,
    ) -> Self {
        let sender = Arc::new(Sender { links, namespace, session, patience, runtime: Handle::current() });
        Gather { sender, lanes: DashMap::new() }
    }

    /// Sends the items with their payload and returns what became of each, once every server has taken them. `None`:
    /// whether any server has is not known; they are to be sent alone.
    pub async fn send(&self, way: Way, items: Vec<R::Item>, payload: Vec<Bytes>) -> Option<Vec<R::Done>> {
        let (wait, turn) = self.lane(way).enter(&self.sender, items, payload);
        if let Some(turn) = turn {
            // From here, so that it leaves before this first waits.
            turn.frame().await;
        }
        wait.told(self.sender.patience).await
    }

    fn lane(&self, way: Way) -> Arc<Lane<R>> {
        if let Some(lane) = self.lanes.get(&way) {
            return lane.clone();
        }
        if self.lanes.len() >= WAYS_MAX {
            self.lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
        }
        let fresh = Queue { under_way: 0, last_ticket: 0, waiting: VecDeque::new() };
        let lane = || Arc::new(Lane { way: way.clone(), queue: Mutex::new(fresh) });
        self.lanes.entry(way.clone()).or_insert_with(lane).clone()
    }
}

impl<R: Shared> Lane<R> {
    /// Puts a part in line; with leave to send a frame if there is.
    fn enter(
        self: Arc<Self>,
        sender: &Arc<Sender>,
        items: Vec<R::Item>,
        payload: Vec<Bytes>,
    ) -> (Wait<R>, Option<First<R>>) {
        let (tell, told) = oneshot::channel();
        let mut queue = self.queue.lock();
        queue.last_ticket += 1;
        let ticket = queue.last_ticket;
        queue.waiting.push_back(Part { ticket, items, payload, tell });
        let free = queue.under_way < R::UNDER_WAY;
        queue.under_way += usize::from(free);
        drop(queue);
        let turn = free.then(|| Turn { lane: self.clone(), sender: sender.clone(), ended: false });
        (Wait { lane: self, ticket, told }, turn.map(|turn| First(Some(turn))))
    }

    /// Has all that wait go alone.
    fn give_up(&self) {
        for part in self.queue.lock().waiting.drain(..) {
            // An error: its author has gone away.
            let _ = part.tell.send(None);
        }
    }
}

impl<R: Shared> Queue<R> {
    /// What goes into the next frame: at least one part if any waits.
    fn take(&mut self) -> Vec<Part<R>> {
        let (mut items, mut bytes) = (0, 0);
        let fits = |part: &&Part<R>| {
            items += part.items.len();
            bytes += part.bytes();
            items <= ITEMS_MAX && bytes <= FRAME_BYTES
        };
        let count = self.waiting.iter().take_while(fits).count().max(1).min(self.waiting.len());
        self.waiting.drain(..count).collect()
    }
}

/// A part on its way. Dropped, it leaves the line.
struct Wait<R: Shared> {
    lane: Arc<Lane<R>>,
    ticket: u64,
    told: oneshot::Receiver<Option<Vec<R::Done>>>,
}

impl<R: Shared> Wait<R> {
    async fn told(mut self, patience: Duration) -> Option<Vec<R::Done>> {
        let told = match tokio::time::timeout(patience, &mut self.told).await {
            Ok(told) => told,
            Err(_) if self.leave() => return None,
            Err(_) => (&mut self.told).await,
        };
        // An error: whoever sent it went away.
        told.unwrap_or(None)
    }

    /// False if it was sent.
    fn leave(&self) -> bool {
        let mut queue = self.lane.queue.lock();
        match queue.waiting.binary_search_by_key(&self.ticket, |part| part.ticket) {
            Ok(place) => queue.waiting.remove(place).is_some(),
            Err(_) => false,
        }
    }
}

impl<R: Shared> Drop for Wait<R> {
    fn drop(&mut self) {
        // What was told is in no line.
        if !self.told.is_terminated() {
            self.leave();
        }
    }
}

/// Leave to have one frame under way, and then the next as long as something waits.
struct Turn<R: Shared> {
    lane: Arc<Lane<R>>,
    sender: Arc<Sender>,
    ended: bool,
}

impl<R: Shared> Turn<R> {
    /// Sends what waits, as much as one frame takes, and tells the authors.
    async fn frame(&self) {
        let Turn { lane, sender, .. } = self;
        let mut ready = Vec::with_capacity(lane.way.servers.len());
        for server in &lane.way.servers {
            match sender.links.ready(server).await {
                Ok(link) => ready.push(link),
                // One behind the first may be reached from there, unless it may still have something older to do.
                Err(_) if !ready.is_empty() && !sender.links.is_unsettled(server) => break,
                Err(_) => return lane.give_up(),
            }
        }
        if ready.is_empty() || (sender.session)() != lane.way.session {
            return lane.give_up();
        }
        let writer = Writer { namespace: sender.namespace.0, session: lane.way.session.0 };
        let (parts, answers) = {
            // Held until all is on the links: a part that leaves the line was not sent.
            let mut queue = lane.queue.lock();
            let (mut items, mut payload, mut parts) = (Vec::new(), Vec::new(), Vec::new());
            for part in queue.take() {
                parts.push((part.items.len(), part.tell));
                items.extend(part.items);
                payload.extend(part.payload);
            }
            if parts.is_empty() {
                return;
            }
            let bytes: usize = payload.iter().map(Bytes::len).sum();
            let behind = if ready.len() == lane.way.servers.len() && bytes <= FAN_OUT_BYTES {
                &[]
            } else {
                ready.truncate(1);
                &lane.way.servers[1..]
            };
            let mut answers = Vec::with_capacity(ready.len());
            for ready in ready {
                let answer = ready.send(&R::with(writer, items.clone(), behind), payload.clone());
                answers.push(sender.links.answer::<R>(ready, answer));
            }
            (parts, answers)
        };
        let count = parts.iter().map(|(items, _)| items).sum();
        let answers = join_all(answers).await;
        // What the first says of each, if all have taken them.
        let all: Option<Vec<_>> = answers
            .into_iter()
            .map(|answer| answer.ok().and_then(|(reply, _)| R::done(reply, count)))
            .collect();
        let mut done = all.and_then(|all| all.into_iter().next()).map(Vec::into_iter);
        for (items, tell) in parts {
            // An error: its author has gone away.
            let _ = tell.send(done.as_mut().map(|done| done.by_ref().take(items).collect()));
        }
    }

    /// Ends it if nothing waits.
    fn end(&mut self) -> bool {
        let mut queue = self.lane.queue.lock();
        if queue.waiting.is_empty() {
            queue.under_way -= 1;
            self.ended = true;
        }
        self.ended
    }

    async fn go_on(mut self) {
        while !self.end() {
            self.frame().await;
        }
    }
}

impl<R: Shared> Drop for Turn<R> {
    fn drop(&mut self) {
        // The runtime ends, and nobody goes on.
        if !self.ended {
            self.lane.give_up();
            self.lane.queue.lock().under_way -= 1;
        }
    }
}

/// The turn of an author, for one frame: what came meanwhile does not keep it.
struct First<R: Shared>(Option<Turn<R>>);

impl<R: Shared> First<R> {
    async fn frame(self) {
        if let Some(turn) = &self.0 {
            turn.frame().await;
        }
    }
}

impl<R: Shared> Drop for First<R> {
    fn drop(&mut self) {
        if let Some(mut turn) = self.0.take()
            && !turn.end()
        {
            let runtime = turn.sender.runtime.clone();
            runtime.spawn(turn.go_on());
        }
    }
}

//! Keeps the writes of one connection to one chunk in the order in which they came, down the whole chain.
//!
//! A write has its turn when the one before it is in the local store and on its way to the next server. A link
//! keeps order by itself; a write that goes another way than the one before it (because a server is gone)
//! first waits until that one is settled on every server.

use std::collections::HashMap;
use std::sync::Arc;

use gofs_tree::ChunkId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Names the link a write was sent on; `None` = nowhere.
pub type Via = Option<usize>;

/// The last write of each chunk.
#[derive(Default)]
pub struct Order {
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    ticket: u64,
    chunks: HashMap<ChunkId, (u64, Prior)>,
}

struct Prior {
    sent: oneshot::Receiver<Via>,
    settled: oneshot::Receiver<()>,
}

/// A place in the order. Dropping it lets those behind go on.
pub struct Turn {
    order: Arc<Order>,
    ticket: u64,
    chunks: Vec<ChunkId>,
    prior: Vec<Prior>,
    sent: Vec<oneshot::Sender<Via>>,
    /// Dropped with the turn, which is what settles it.
    _settled: Vec<oneshot::Sender<()>>,
}

/// The writes before this one.
pub struct Before {
    ways: Vec<Via>,
    settled: Vec<oneshot::Receiver<()>>,
}

impl Order {
    /// Takes a place behind all earlier writes to these chunks. Call in order of arrival.
    pub fn enter(self: &Arc<Self>, mut chunks: Vec<ChunkId>) -> Turn {
        chunks.sort_unstable();
        chunks.dedup();
        let mut last = self.last.lock();
        last.ticket += 1;
        let ticket = last.ticket;
        let mut turn = Turn {
            order: self.clone(),
            ticket,
            chunks: Vec::new(),
            prior: Vec::new(),
            sent: Vec::new(),
            _settled: Vec::new(),
        };
        for chunk in &chunks {
            let (sent, sent_by_me) = oneshot::channel();
            let (settled, settled_by_me) = oneshot::channel();
            turn.sent.push(sent);
            turn._settled.push(settled);
            let mine = Prior { sent: sent_by_me, settled: settled_by_me };
            turn.prior.extend(last.chunks.insert(*chunk, (ticket, mine)).map(|(_, prior)| prior));
        }
        turn.chunks = chunks;
        turn
    }
}

impl Turn {
    /// Waits for the turn.
    pub async fn come(&mut self) -> Before {
        let mut before = Before { ways: Vec::new(), settled: Vec::new() };
        for prior in self.prior.drain(..) {
            // An error: that write was given up before it was sent.
            before.ways.push(prior.sent.await.unwrap_or(None));
            before.settled.push(prior.settled);
        }
        before
    }

    /// The write is in the store and on its way; those behind have their turn.
    pub fn sent(&mut self, via: Via) {
        for sent in self.sent.drain(..) {
            // Nobody is behind.
            let _ = sent.send(via);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut last = self.order.last.lock();
        for chunk in &self.chunks {
            if last.chunks.get(chunk).is_some_and(|(ticket, _)| *ticket == self.ticket) {
                last.chunks.remove(chunk);
            }
        }
    }
}

impl Before {
    /// Waits until the writes before are settled, unless they went the same way.
    pub async fn same_way(&mut self, via: Via) {
        if self.ways.iter().any(|way| *way != via) {
            self.settled().await;
        }
    }

    /// Waits until the writes before are settled.
    pub async fn settled(&mut self) {
        for settled in self.settled.drain(..) {
            // An error is how it settles: the turn was dropped.
            let _ = settled.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn is_pending<T>(future: impl Future<Output = T>) -> bool {
        tokio::time::timeout(Duration::from_millis(20), future).await.is_err()
    }

    #[tokio::test]
    async fn a_write_waits_for_those_before_it_and_for_no_other() {
        let order = Arc::new(Order::default());
        let mut a = order.enter(vec![ChunkId(1), ChunkId(2)]);
        let mut b = order.enter(vec![ChunkId(2), ChunkId(3)]);
        let mut other = order.enter(vec![ChunkId(9)]);
        a.come().await;
        other.come().await;
        assert!(is_pending(b.come()).await);
        let mut c = order.enter(vec![ChunkId(1)]);
        assert!(is_pending(c.come()).await);
        drop((a, b, c, other));
        assert!(order.last.lock().chunks.is_empty());
    }

    #[tokio::test]
    async fn another_way_waits_for_what_is_not_settled() {
        let order = Arc::new(Order::default());
        let mut a = order.enter(vec![ChunkId(1)]);
        a.come().await;
        a.sent(Some(5));
        let mut b = order.enter(vec![ChunkId(1)]);
        let mut before = b.come().await;
        before.same_way(Some(5)).await;
        assert!(is_pending(before.same_way(Some(6))).await);
        drop(a);
        before.settled().await;
    }
}

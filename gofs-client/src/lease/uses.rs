//! Counts replies to the kernel that are on their way and that used a lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The replies in flight that used one lease since its last recall began.
#[derive(Debug, Default)]
pub struct Uses {
    count: AtomicUsize,
    drained: Notify,
}

impl Uses {
    /// One more reply in flight. Called with the lease table locked, so that none joins after a recall.
    pub fn enter(self: &Arc<Self>) -> UseGuard {
        self.count.fetch_add(1, Ordering::AcqRel);
        UseGuard([Some(self.clone()), None])
    }

    /// Whether none is in flight.
    pub fn is_drained(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Waits until none is in flight.
    pub async fn drained(&self) {
        loop {
            let mut drained = std::pin::pin!(self.drained.notified());
            drained.as_mut().enable();
            if self.is_drained() {
                return;
            }
            drained.await;
        }
    }
}

/// Held from the look into the cache until the kernel has the reply.
#[derive(Debug, Default)]
#[must_use = "dropped before the reply is sent, a recall may pass it by"]
pub struct UseGuard([Option<Arc<Uses>>; 2]);

impl UseGuard {
    /// Guards nothing: the answer is not to be kept.
    pub fn none() -> Self {
        UseGuard([None, None])
    }

    /// Both. A guard holds at most two leases: a directory's and that of the inode it names.
    pub fn and(mut self, mut other: UseGuard) -> Self {
        for uses in other.0.iter_mut().filter_map(Option::take) {
            let free = self.0.iter_mut().find(|slot| slot.is_none());
            *free.expect("no answer uses more than two leases") = Some(uses);
        }
        self
    }
}

impl Drop for UseGuard {
    fn drop(&mut self) {
        for uses in self.0.iter().flatten() {
            if uses.count.fetch_sub(1, Ordering::AcqRel) == 1 {
                uses.drained.notify_waiters();
            }
        }
    }
}

//! Which connection of a writer counts: the newest.
//!
//! A writer whose connection broke cannot know what this server still does with what was sent on it. So the Hello of its next
//! connection is answered when nothing that came over the one before is under way, and nothing more is taken from that one. What
//! a writer sends therefore takes effect after all that it has sent before, whatever connections it went over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Longest name of a writer, bytes.
pub const NAME_BYTES_MAX: usize = 32;
/// Names are looked through for those that are gone when there are more than twice as many as last time, and so many.
const NAMES_MIN: usize = 64;

/// What one connection has under way.
#[derive(Default)]
pub struct Load {
    requests: AtomicUsize,
    bytes: AtomicUsize,
    succeeded: AtomicBool,
    idle: Notify,
}

impl Load {
    /// Counts a request with so many bytes of payload; returns how much there was before. To be ended by [`Load::end`].
    pub fn begin(&self, bytes: usize) -> (usize, usize) {
        // With `succeed`, which does the same the other way round: one of both sees what the other did.
        let requests = self.requests.fetch_add(1, Ordering::SeqCst);
        (requests, self.bytes.fetch_add(bytes, Ordering::Relaxed))
    }

    /// What was counted is done.
    pub fn end(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if self.requests.fetch_sub(1, Ordering::SeqCst) == 1 && self.is_succeeded() {
            self.idle.notify_waiters();
        }
    }

    /// Whether its writer has a newer connection. Decides about a request that was counted before it was asked.
    pub fn is_succeeded(&self) -> bool {
        self.succeeded.load(Ordering::SeqCst)
    }

    /// Takes nothing more, and waits for what is under way.
    async fn succeed(&self) {
        self.succeeded.store(true, Ordering::SeqCst);
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.requests.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// The newest connection of each writer.
#[derive(Default)]
pub struct Writers {
    newest: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    loads: HashMap<Bytes, Weak<Load>>,
    kept: usize,
}

impl Writers {
    /// The connection is the writer's newest from now on. Returns when the one before has nothing under way; what that had to
    /// wait for itself is waited for with it, as long as it counts this among its requests.
    pub async fn greet(&self, writer: Bytes, load: &Arc<Load>) {
        let before = {
            let mut names = self.newest.lock();
            if names.loads.len() > NAMES_MIN.max(names.kept * 2) {
                // Alive while the connection is, or something that came over it is under way.
                names.loads.retain(|_, load| load.strong_count() > 0);
                names.kept = names.loads.len();
            }
            names.loads.insert(writer, Arc::downgrade(load))
        };
        if let Some(before) = before.and_then(|before| before.upgrade())
            && !Arc::ptr_eq(&before, load)
        {
            before.succeed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::time::Duration;

    use super::*;

    const WRITER: Bytes = Bytes::from_static(b"writer");

    async fn is_pending(future: impl Future<Output = ()> + Unpin) -> bool {
        tokio::time::timeout(Duration::from_millis(20), future).await.is_err()
    }

    #[tokio::test]
    async fn a_connection_waits_for_all_before_it_and_for_no_other_writer() {
        let writers = Writers::default();
        let (first, second, third): (Arc<Load>, Arc<Load>, Arc<Load>) = Default::default();
        writers.greet(WRITER, &first).await;
        first.begin(10);
        writers.greet(Bytes::from_static(b"other"), &Arc::default()).await;
        // The second waits for the first, and the third for both.
        second.begin(0);
        let mut second_greeted = Box::pin(writers.greet(WRITER, &second));
        assert!(is_pending(&mut second_greeted).await);
        let mut third_greeted = Box::pin(writers.greet(WRITER, &third));
        assert!(is_pending(&mut third_greeted).await);
        assert!(first.is_succeeded() && second.is_succeeded() && !third.is_succeeded());
        first.end(10);
        second_greeted.await;
        assert!(is_pending(&mut third_greeted).await);
        second.end(0);
        third_greeted.await;
    }

    #[tokio::test]
    async fn what_is_under_way_counts_though_its_connection_is_gone() {
        let writers = Writers::default();
        let load = Arc::new(Load::default());
        writers.greet(WRITER, &load).await;
        load.begin(1);
        let under_way = load.clone();
        drop(load);
        let next = Arc::default();
        let mut greeted = Box::pin(writers.greet(WRITER, &next));
        assert!(is_pending(&mut greeted).await);
        under_way.end(1);
        greeted.await;
    }

    #[tokio::test]
    async fn writers_that_are_gone_are_forgotten() {
        let writers = Writers::default();
        for name in 0..10_000u32 {
            writers.greet(name.to_be_bytes().to_vec().into(), &Arc::default()).await;
        }
        assert!(writers.newest.lock().loads.len() <= NAMES_MIN + 1);
    }
}

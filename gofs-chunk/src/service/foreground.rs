//! Whether a server works for clients: copies make way for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Requests are counted over the present and the last of these.
const SLOT: Duration = Duration::from_millis(250);
/// A server with so many of them works for clients: about ten a second.
const BUSY_REQUESTS: u64 = 4;
/// Bits of a count, which goes no further than that.
const COUNT_BITS: u32 = 8;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// Counts what clients want: reads, writes, punches and syncs, also those that come along a chain.
pub struct Foreground {
    started: Instant,
    /// The number of the slot of the last request, the count of the slot before it, the count of its own.
    counted: AtomicU64,
}

impl Default for Foreground {
    fn default() -> Self {
        Foreground { started: Instant::now(), counted: AtomicU64::new(0) }
    }
}

impl Foreground {
    fn slot(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.started).as_millis() / SLOT.as_millis()) as u64
    }

    /// A client's request has come.
    pub fn count(&self, now: Instant) {
        let (slot, counted) = (self.slot(now), self.counted.load(Ordering::Relaxed));
        let (before, own) = counts(counted, slot);
        if own < BUSY_REQUESTS {
            let next = slot << (2 * COUNT_BITS) | before << COUNT_BITS | (own + 1);
            // One that is lost to another thread is not missed: that one has counted.
            let _ = self.counted.compare_exchange(counted, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whether there are more than a few of them.
    pub fn is_busy(&self, now: Instant) -> bool {
        let (before, own) = counts(self.counted.load(Ordering::Relaxed), self.slot(now));
        before + own >= BUSY_REQUESTS
    }
}

/// Requests of the slot before this one, and of this one.
fn counts(counted: u64, slot: u64) -> (u64, u64) {
    let (of, before, own) =
        (counted >> (2 * COUNT_BITS), counted >> COUNT_BITS & COUNT_MASK, counted & COUNT_MASK);
    match slot.saturating_sub(of) {
        0 => (before, own),
        1 => (own, 0),
        _ => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_who_has_more_than_a_few_requests_in_half_a_second() {
        let foreground = Foreground::default();
        let at = |ms| foreground.started + Duration::from_millis(ms);
        assert!(!foreground.is_busy(at(0)));
        for ms in [10, 20, 260] {
            foreground.count(at(ms));
        }
        assert!(!foreground.is_busy(at(260)));
        foreground.count(at(270));
        assert!(foreground.is_busy(at(270)));
        assert!(!foreground.is_busy(at(500)), "two of them are too long ago");
        for ms in 500..600 {
            foreground.count(at(ms));
        }
        assert!(foreground.is_busy(at(600)) && foreground.is_busy(at(999)));
        assert!(!foreground.is_busy(at(1000)));
        foreground.count(at(60_000));
        assert!(!foreground.is_busy(at(60_000)));
    }
}

//! How often and how fast: counts and latencies by kind, cheap enough to be always on.
//!
//! Recording is two relaxed additions to cells that are the recording thread's own as long as there are no more threads than
//! shards; nothing is ever reset. Who looks takes two [`LatencyCounts`] and subtracts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use gofs_proto::kind;

/// Cells of a histogram for each doubling of the latency: a percentile is right within an eighth.
const PER_OCTAVE: u32 = 4;
/// Latencies below 2^8 ns are counted as that.
const LOWEST_OCTAVE: u32 = 8;
/// Latencies from 2^38 ns (275 s) on are counted as that.
const OCTAVES: u32 = 30;
/// Cells of a histogram.
pub const LATENCY_BUCKETS: usize = (OCTAVES * PER_OCTAVE) as usize;
/// The sum of the latencies, after a kind's buckets.
const SUM: usize = LATENCY_BUCKETS;
/// Cells of one kind.
const CELLS: usize = LATENCY_BUCKETS + 1;

static NEXT_THREAD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static THREAD: usize = NEXT_THREAD.fetch_add(1, Ordering::Relaxed);
}

/// Counts and latencies of kinds numbered from 0.
pub struct Latencies {
    kinds: usize,
    /// Threads write to one of these each.
    shards: Box<[Box<[AtomicU64]>]>,
}

/// What one kind came to so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencyCounts {
    /// Sum of the latencies, nanoseconds.
    pub sum_ns: u64,
    /// Count by latency; see [`bucket_limit`].
    pub buckets: [u64; LATENCY_BUCKETS],
}

impl Default for LatencyCounts {
    fn default() -> Self {
        LatencyCounts { sum_ns: 0, buckets: [0; LATENCY_BUCKETS] }
    }
}

fn bucket(latency_ns: u64) -> usize {
    let latency = latency_ns.max(1 << LOWEST_OCTAVE);
    let octave = latency.ilog2();
    let part = (latency >> (octave - PER_OCTAVE.ilog2())) as u32 % PER_OCTAVE;
    (((octave - LOWEST_OCTAVE) * PER_OCTAVE + part) as usize).min(LATENCY_BUCKETS - 1)
}

/// Latencies in the bucket are shorter than this, and not shorter than the limit of the bucket before.
pub fn bucket_limit(bucket: usize) -> Duration {
    let next = bucket as u32 + 1;
    let (octave, part) = (LOWEST_OCTAVE + next / PER_OCTAVE, next % PER_OCTAVE);
    Duration::from_nanos((1 << octave) + (u64::from(part) << (octave - PER_OCTAVE.ilog2())))
}

impl Latencies {
    /// For kinds below `kinds`, with little contention among up to `shards` threads.
    pub fn new(kinds: usize, shards: usize) -> Latencies {
        let shard = || (0..kinds * CELLS).map(|_| AtomicU64::new(0)).collect();
        Latencies { kinds, shards: (0..shards.max(1)).map(|_| shard()).collect() }
    }

    /// For requests to servers, by the number of their kind.
    pub fn of_requests() -> Latencies {
        const SHARDS: usize = 2;
        Latencies::new(kind::LIMIT.into(), SHARDS)
    }

    /// The requests that there were, by name.
    pub fn requests(&self) -> BTreeMap<&'static str, LatencyCounts> {
        let kinds = (0..kind::LIMIT).map(|number| (kind::name(number), self.counts(number.into())));
        kinds.filter(|(_, counts)| counts.count() > 0).collect()
    }

    /// One of `kind` took so long. A kind that is none is not counted.
    pub fn record(&self, kind: usize, latency: Duration) {
        if kind >= self.kinds {
            return;
        }
        let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        // A thread that is ending has no number of its own any more.
        let thread = THREAD.try_with(|thread| *thread).unwrap_or(0);
        let cells = &self.shards[thread % self.shards.len()][kind * CELLS..];
        cells[bucket(latency_ns)].fetch_add(1, Ordering::Relaxed);
        cells[SUM].fetch_add(latency_ns, Ordering::Relaxed);
    }

    /// What `kind` came to so far.
    pub fn counts(&self, kind: usize) -> LatencyCounts {
        let mut counts = LatencyCounts::default();
        for shard in &self.shards {
            let cells = &shard[kind * CELLS..(kind + 1) * CELLS];
            for (sum, cell) in counts.buckets.iter_mut().zip(cells) {
                *sum += cell.load(Ordering::Relaxed);
            }
            counts.sum_ns = counts.sum_ns.wrapping_add(cells[SUM].load(Ordering::Relaxed));
        }
        counts
    }
}

impl LatencyCounts {
    /// How many.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What came since `before`.
    #[must_use]
    pub fn since(&self, before: &LatencyCounts) -> LatencyCounts {
        let mut since = self.clone();
        since.sum_ns = since.sum_ns.wrapping_sub(before.sum_ns);
        for (now, before) in since.buckets.iter_mut().zip(before.buckets) {
            *now = now.saturating_sub(before);
        }
        since
    }

    /// A latency that `part` (0 to 1) of them are not longer than, up to the width of a bucket; zero where there are none.
    pub fn percentile(&self, part: f64) -> Duration {
        let wanted = (self.count() as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return bucket_limit(bucket);
            }
        }
        Duration::ZERO
    }

    /// The longest, up to the width of a bucket.
    pub fn max(&self) -> Duration {
        self.percentile(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_is_below_the_limit_of_its_bucket_and_not_far() {
        for latency in (0..200_000).step_by(7).chain([u64::MAX >> 27, 1 << 36, (1 << 37) + 12_345]) {
            let at = bucket(latency);
            let limit = bucket_limit(at).as_nanos() as u64;
            assert!(latency < limit || at == LATENCY_BUCKETS - 1, "{latency} in {at}, below {limit}");
            if latency >= 1 << LOWEST_OCTAVE {
                assert!(limit <= latency + latency / 4 + 1, "{latency} in {at}, below {limit}");
            }
            assert!(at == 0 || bucket_limit(at - 1).as_nanos() as u64 <= latency.max(1 << LOWEST_OCTAVE));
        }
        assert_eq!(bucket(u64::MAX), LATENCY_BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_those_of_what_was_recorded_since() {
        let latencies = Latencies::new(3, 4);
        latencies.record(1, Duration::from_secs(5));
        let before = latencies.counts(1);
        for micros in 1..=1000 {
            latencies.record(1, Duration::from_micros(micros));
        }
        latencies.record(2, Duration::from_secs(1));
        latencies.record(3, Duration::from_secs(1));
        let since = latencies.counts(1).since(&before);
        assert_eq!((since.count(), since.sum_ns), (1000, 500_500_000));
        let near = |found: Duration, micros: u64| {
            let wanted = Duration::from_micros(micros);
            assert!(found >= wanted && found <= wanted * 5 / 4, "{found:?} for {wanted:?}");
        };
        near(since.percentile(0.5), 500);
        near(since.percentile(0.99), 990);
        near(since.max(), 1000);
        assert_eq!(LatencyCounts::default().percentile(0.5), Duration::ZERO);
    }

    #[test]
    fn threads_lose_nothing() {
        let latencies = Latencies::new(1, 2);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..10_000).for_each(|_| latencies.record(0, Duration::from_micros(1))));
            }
        });
        assert_eq!(latencies.counts(0).count(), 80_000);
        assert_eq!(latencies.counts(0).sum_ns, 80_000_000);
    }
}

//! Which copy to make next.
//!
//! Chunks in the greatest danger first: those with the fewest replicas, then those whose replicas share a host or rack
//! without need, then what is to leave a draining server, then what evens out how full servers are. Bounded in the
//! cluster and on each server, in number and in bytes per second, so that repair never takes the servers from their clients.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use gofs_tree::{ChunkId, ChunkServerId};
use rand::Rng;

use super::{ChunkConfig, Entry, Replica, Server, ServerTable, directory::without_doubt, placement};

/// Waiting chunks looked at for one that can be copied now.
const LOOK_AT: usize = 256;
/// What a copy costs beside its bytes, in bytes: small chunks take a server's time, not its bandwidth. ChunkServers count the same.
const COPY_COST_BYTES: u64 = 128 << 10;
/// A copy begins on a server whose copies under way are paid for within this time.
const AHEAD: Duration = Duration::from_secs(2);
/// So many times faster than others may chunks be copied that have one replica left, while clients want nothing of the servers.
const URGENT: u64 = 4;
/// Time over which speed is measured, seconds.
const SPEED_OVER_S: u64 = 60;

/// Why a replica is made. The first is the most urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// There are so many, fewer than the goal.
    TooFew {
        /// Current replicas.
        current: u32,
    },
    /// Two share a host or a rack and need not.
    Misplaced,
    /// One is on a server that is being emptied.
    Drain,
    /// One is on a server that is fuller than others.
    Rebalance,
}

/// What is wanted for a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Why.
    pub reason: Reason,
    /// The server whose replica is given up for the new one.
    pub leaving: Option<ChunkServerId>,
    /// The server that gets it, where that is settled.
    pub target: Option<ChunkServerId>,
    /// Bytes of the chunk, as far as its file knows.
    pub bytes: u64,
}

/// A copy to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Of this chunk.
    pub chunk: ChunkId,
    /// From this server, before others.
    pub source: ChunkServerId,
    /// To this server.
    pub target: ChunkServerId,
    /// Given up for it.
    pub leaving: Option<ChunkServerId>,
    /// Why.
    pub reason: Reason,
    /// Bytes a second at which it may run.
    pub bytes_s: u64,
    /// The same while its target works for clients.
    pub busy_bytes_s: u64,
    /// Bytes of the chunk.
    pub bytes: u64,
}

impl Copy {
    fn cost_bytes(&self) -> u64 {
        self.bytes + COPY_COST_BYTES
    }
}

/// Chunks and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many chunks.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What was done in each of the last seconds.
#[derive(Clone, Debug)]
pub struct Speed {
    began: Instant,
    seconds: [(u64, Amount); SPEED_OVER_S as usize],
}

impl Speed {
    /// Nothing yet.
    pub fn new(now: Instant) -> Self {
        Speed { began: now, seconds: [(u64::MAX, Amount::default()); SPEED_OVER_S as usize] }
    }

    /// A chunk of so many bytes is done.
    pub fn add(&mut self, bytes: u64, now: Instant) {
        let second = now.saturating_duration_since(self.began).as_secs();
        let slot = &mut self.seconds[(second % SPEED_OVER_S) as usize];
        if slot.0 != second {
            *slot = (second, Amount::default());
        }
        slot.1.chunks += 1;
        slot.1.bytes += bytes;
    }

    /// Chunks and bytes a second, over the last minute or since the first was done in it.
    pub fn per_second(&self, now: Instant) -> (f64, f64) {
        let second = now.saturating_duration_since(self.began).as_secs();
        let recent = self.seconds.iter().filter(|(at, _)| *at <= second && second - *at < SPEED_OVER_S);
        let Some(first) = recent.clone().map(|(at, _)| *at).min() else { return (0.0, 0.0) };
        let over = (second - first + 1) as f64;
        let chunks: u64 = recent.clone().map(|(_, done)| done.chunks).sum();
        let bytes: u64 = recent.map(|(_, done)| done.bytes).sum();
        (chunks as f64 / over, bytes as f64 / over)
    }
}

/// A server's part in copies.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    running: usize,
    /// Of the copies that run, what they cost beside included.
    bytes: u64,
    /// When what it has begun would be done at the speed that it is allowed.
    paid: Option<Instant>,
}

/// Copies that are wanted and that run.
#[derive(Debug, Default)]
pub struct Repairs {
    /// What is wanted and does not wait after a failure: what waits must not hide what does not.
    order: BTreeSet<(Reason, ChunkId)>,
    wants: HashMap<ChunkId, Want>,
    running: HashMap<ChunkId, Copy>,
    /// When a copy of the chunk failed last, and where.
    failed: HashMap<ChunkId, (Instant, ChunkServerId)>,
    /// Those that failed and wait, by the time of the failure.
    waiting: BTreeSet<(Instant, ChunkId)>,
    parts: HashMap<ChunkServerId, Part>,
}

impl Repairs {
    /// The chunk needs a copy.
    pub fn want(&mut self, chunk: ChunkId, want: Want) {
        if let Some(before) = self.wants.insert(chunk, want) {
            self.order.remove(&(before.reason, chunk));
        }
        let waits = self.failed.get(&chunk).is_some_and(|(at, _)| self.waiting.contains(&(*at, chunk)));
        if !waits {
            self.order.insert((want.reason, chunk));
        }
    }

    /// It does not, after all.
    pub fn unwant(&mut self, chunk: ChunkId) {
        if let Some(before) = self.wants.remove(&chunk) {
            self.order.remove(&(before.reason, chunk));
        }
        if !self.running.contains_key(&chunk)
            && let Some((at, _)) = self.failed.remove(&chunk)
        {
            self.waiting.remove(&(at, chunk));
        }
    }

    /// What is wanted for the chunk.
    pub fn wanted(&self, chunk: ChunkId) -> Option<&Want> {
        self.wants.get(&chunk)
    }

    /// Copies that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// What there is to copy, running copies included, for these reasons.
    pub fn to_do(&self, which: impl Fn(Reason) -> bool) -> Amount {
        let wants = self.wants.values().filter(|want| which(want.reason));
        wants.fold(Amount::default(), |sum, want| Amount {
            chunks: sum.chunks + 1,
            bytes: sum.bytes + want.bytes,
        })
    }

    /// The next copy that may begin now; it counts as running until [`finished`](Self::finished).
    pub fn next<'a>(
        &mut self,
        config: &ChunkConfig,
        servers: &ServerTable,
        entry: impl Fn(ChunkId) -> Option<&'a Entry>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Copy> {
        if self.running.len() >= config.copies_total {
            return None;
        }
        self.end_waits(config.copy_retry, now);
        let mut begin = None;
        for &(_, chunk) in self.order.iter().take(LOOK_AT + self.running.len()) {
            if self.running.contains_key(&chunk) {
                continue;
            }
            let (Some(entry), Some(want)) = (entry(chunk), self.wants.get(&chunk)) else { continue };
            begin = self.choose(config, servers, chunk, want, entry, now, rng);
            if begin.is_some() {
                break;
            }
        }
        let copy = begin?;
        let time = Duration::from_secs_f64(copy.cost_bytes() as f64 / copy.bytes_s as f64);
        for server in [copy.source, copy.target] {
            let part = self.parts.entry(server).or_default();
            part.running += 1;
            part.bytes += copy.cost_bytes();
            part.paid = Some(part.paid.map_or(now, |paid| paid.max(now)) + time);
        }
        self.running.insert(copy.chunk, copy.clone());
        Some(copy)
    }

    /// Those that have waited for long enough are in the order again.
    fn end_waits(&mut self, retry: Duration, now: Instant) {
        while let Some(&(at, chunk)) = self.waiting.first()
            && now.saturating_duration_since(at) >= retry
        {
            self.waiting.pop_first();
            self.order.extend(self.wants.get(&chunk).map(|want| (want.reason, chunk)));
        }
    }

    /// Source and target for the chunk among servers that are not busy.
    #[allow(clippy::too_many_arguments, reason = "what `next` was asked with, and what it found")]
    fn choose(
        &self,
        config: &ChunkConfig,
        servers: &ServerTable,
        chunk: ChunkId,
        want: &Want,
        entry: &Entry,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Copy> {
        let busy = |id: ChunkServerId| {
            self.parts.get(&id).is_some_and(|part| {
                let owes = part.paid.is_some_and(|paid| paid > now + AHEAD);
                // Writers wait for what has begun, also where it gets slower meanwhile.
                let has_begun = part.bytes > config.repair_bytes_s * AHEAD.as_secs();
                owes || has_begun || part.running >= config.copies_per_server
            })
        };
        let good = entry.replicas.iter().filter(|replica| servers.is_alive(replica.server));
        let good = good.filter(|replica| replica.confirmed && !replica.corrupt);
        let newest = good.clone().map(|replica| replica.version).max();
        let good: Vec<&Replica> = good.filter(|replica| Some(replica.version) == newest).collect();
        let good: Vec<ChunkServerId> = without_doubt(good).into_iter().map(|it| it.server).collect();
        // A change leaves behind who is away for a moment: no reason to where nothing is missing.
        let all = entry.replicas.iter().filter(|replica| Some(replica.version) >= newest).count();
        if good.len() < all && !matches!(want.reason, Reason::TooFew { .. }) {
            return None;
        }
        let source = good.iter().copied().find(|&id| !busy(id))?;
        let present: Vec<ChunkServerId> =
            good.iter().copied().filter(|id| Some(*id) != want.leaving).collect();
        let mut avoid: Vec<ChunkServerId> =
            servers.alive().map(|server| server.id).filter(|&id| busy(id)).collect();
        avoid.extend(want.leaving);
        let target = match want.target {
            Some(target) => vec![target].into_iter().filter(|id| !avoid.contains(id)).collect(),
            None => {
                // Better not where it failed, nor on a disk that spoiled it; what is there may also be of use one day.
                let busy_ones = avoid.len();
                avoid.extend(self.failed.get(&chunk).map(|(_, target)| *target));
                avoid.extend(entry.replicas.iter().map(|replica| replica.server));
                let mut choose =
                    |avoid: &[_]| placement::choose(servers, &present, avoid, 1, config.reserve_bytes, rng);
                let chosen = choose(&avoid);
                if chosen.is_empty() { choose(&avoid[..busy_ones]) } else { chosen }
            }
        };
        let target = *target.first()?;
        let on = |ids: &[ChunkServerId], more: Option<ChunkServerId>| {
            let on: Vec<&Server> = ids.iter().copied().chain(more).filter_map(|id| servers.get(id)).collect();
            placement::crowding(on.into_iter())
        };
        let (before, after) = (on(&good, None), on(&present, Some(target)));
        let in_vain = match want.reason {
            Reason::TooFew { .. } | Reason::Drain => false,
            // The better server is busy now, or the picture has changed.
            Reason::Misplaced => after >= before,
            Reason::Rebalance => after > before || good.contains(&target),
        };
        let urgent = matches!(want.reason, Reason::TooFew { current } if current <= 1);
        let busy_bytes_s = config.repair_bytes_s;
        let bytes_s = busy_bytes_s * if urgent { URGENT } else { 1 };
        let (leaving, reason, bytes) = (want.leaving, want.reason, want.bytes);
        (!in_vain).then_some(Copy { chunk, source, target, leaving, reason, bytes_s, busy_bytes_s, bytes })
    }

    /// A copy ended. After a failure the chunk waits a while, and another target is preferred.
    pub fn finished(&mut self, chunk: ChunkId, copied: bool, now: Instant) {
        let Some(copy) = self.running.remove(&chunk) else { return };
        for server in [copy.source, copy.target] {
            if let Some(part) = self.parts.get_mut(&server) {
                part.running = part.running.saturating_sub(1);
                part.bytes = part.bytes.saturating_sub(copy.cost_bytes());
            }
        }
        match self.wants.get(&chunk) {
            Some(want) if !copied && want.reason != Reason::Rebalance => {
                self.order.remove(&(want.reason, chunk));
                self.failed.insert(chunk, (now, copy.target));
                self.waiting.insert((now, chunk));
            }
            _ => self.unwant(chunk),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use gofs_tree::ChunkVersion;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::chunks::{Directory, Disk, Reported};

    fn too_few(current: u32) -> Want {
        Want { reason: Reason::TooFew { current }, leaving: None, target: None, bytes: 1 << 20 }
    }

    fn servers(count: u64) -> ServerTable {
        let mut table = ServerTable::default();
        for id in 1..=count {
            let address = format!("10.0.0.{id}:7470");
            table.connected(ChunkServerId(id), address, BTreeMap::new(), id, Instant::now());
            let server = table.get_mut(ChunkServerId(id)).unwrap();
            server.described = true;
            server.disks = vec![Disk { capacity_bytes: 100 << 30, free_bytes: 50 << 30, ..Disk::default() }];
        }
        table
    }

    fn on(directory: &mut Directory, chunk: u64, servers: &[u64]) {
        for &server in servers {
            directory.copied(ChunkServerId(server), ChunkId(chunk), ChunkVersion(1), Instant::now());
        }
    }

    #[test]
    fn the_chunk_in_greatest_danger_goes_first_and_no_server_is_flooded() {
        let config = ChunkConfig { copies_per_server: 1, copies_total: 2, ..ChunkConfig::default() };
        let table = servers(6);
        let mut directory = Directory::default();
        let mut repairs = Repairs::default();
        let mut rng = StdRng::seed_from_u64(1);
        on(&mut directory, 1, &[1, 2]);
        on(&mut directory, 2, &[3]);
        on(&mut directory, 3, &[3]);
        repairs.want(ChunkId(1), too_few(2));
        repairs.want(ChunkId(2), too_few(1));
        repairs.want(ChunkId(3), too_few(1));
        let now = Instant::now();
        let first = repairs.next(&config, &table, |c| directory.entry(c), now, &mut rng).unwrap();
        assert_eq!(first.chunk, ChunkId(2));
        assert_ne!(first.target, ChunkServerId(3));
        let second = repairs.next(&config, &table, |c| directory.entry(c), now, &mut rng).unwrap();
        assert_eq!(second.chunk, ChunkId(1), "the source of chunk 3 is busy");
        assert_ne!(second.target, first.target);
        assert_eq!(repairs.next(&config, &table, |c| directory.entry(c), now, &mut rng), None);
        repairs.finished(ChunkId(2), true, now);
        let third = repairs.next(&config, &table, |c| directory.entry(c), now, &mut rng).unwrap();
        assert_eq!(third.chunk, ChunkId(3));
    }

    #[test]
    fn a_copy_goes_to_a_server_with_a_bad_replica_only_where_there_is_no_other() {
        let config = ChunkConfig::default();
        let mut directory = Directory::default();
        let now = Instant::now();
        on(&mut directory, 1, &[1]);
        let corrupt = Reported {
            chunk: ChunkId(1),
            version: ChunkVersion(1),
            gone: false,
            corrupt: true,
            doubtful: false,
        };
        directory.report(ChunkServerId(2), corrupt, false, now);
        for (count, expected) in [(3, 3), (2, 2)] {
            for seed in 0..10 {
                let mut repairs = Repairs::default();
                repairs.want(ChunkId(1), too_few(1));
                let mut rng = StdRng::seed_from_u64(seed);
                let table = servers(count);
                let copy = repairs.next(&config, &table, |c| directory.entry(c), now, &mut rng).unwrap();
                assert_eq!(copy.target, ChunkServerId(expected));
            }
        }
    }

    #[test]
    fn a_failed_copy_waits_and_goes_elsewhere() {
        let config = ChunkConfig::default();
        let table = servers(3);
        let mut directory = Directory::default();
        let mut repairs = Repairs::default();
        let mut rng = StdRng::seed_from_u64(1);
        on(&mut directory, 1, &[1]);
        repairs.want(ChunkId(1), too_few(1));
        let now = Instant::now();
        let first = repairs.next(&config, &table, |c| directory.entry(c), now, &mut rng).unwrap();
        repairs.finished(ChunkId(1), false, now);
        assert_eq!(repairs.next(&config, &table, |c| directory.entry(c), now, &mut rng), None);
        let later = now + config.copy_retry + Duration::from_millis(1);
        let again = repairs.next(&config, &table, |c| directory.entry(c), later, &mut rng).unwrap();
        assert_ne!(again.target, first.target);
    }

    #[test]
    fn however_many_chunks_failed_and_wait_others_are_copied() {
        let config = ChunkConfig { repair_bytes_s: 1 << 40, ..ChunkConfig::default() };
        let table = servers(2);
        let (mut directory, mut repairs) = (Directory::default(), Repairs::default());
        let mut rng = StdRng::seed_from_u64(1);
        let now = Instant::now();
        let waiting = LOOK_AT as u64 + 44;
        for chunk in 1..=waiting + 1 {
            on(&mut directory, chunk, &[1]);
            repairs.want(ChunkId(chunk), too_few(1));
        }
        let mut begin =
            |repairs: &mut Repairs, at| repairs.next(&config, &table, |c| directory.entry(c), at, &mut rng);
        for chunk in 1..=waiting {
            assert_eq!(begin(&mut repairs, now).unwrap().chunk, ChunkId(chunk));
            repairs.finished(ChunkId(chunk), false, now);
            repairs.want(ChunkId(chunk), too_few(1));
        }
        assert_eq!(begin(&mut repairs, now).unwrap().chunk, ChunkId(waiting + 1));
        repairs.unwant(ChunkId(1));
        assert_eq!(begin(&mut repairs, now), None);
        assert_eq!(begin(&mut repairs, now + config.copy_retry).unwrap().chunk, ChunkId(2));
    }

    #[test]
    fn danger_goes_before_failure_domains_before_drains_before_evenness() {
        let table = servers(4);
        let mut directory = Directory::default();
        let mut repairs = Repairs::default();
        let mut rng = StdRng::seed_from_u64(1);
        let now = Instant::now();
        let reasons = [Reason::Rebalance, Reason::Drain, Reason::TooFew { current: 2 }];
        for (chunk, reason) in (1..).zip(reasons) {
            on(&mut directory, chunk, &[1, 2]);
            repairs.want(ChunkId(chunk), Want { reason, leaving: Some(ChunkServerId(1)), ..too_few(0) });
        }
        on(&mut directory, 4, &[1]);
        repairs.want(ChunkId(4), too_few(1));
        let config = ChunkConfig::default();
        let mut order = Vec::new();
        while let Some(copy) = repairs.next(&config, &table, |c| directory.entry(c), now, &mut rng) {
            order.push(copy.chunk.0);
        }
        assert_eq!(order, [4, 3, 2, 1]);
    }

    #[test]
    fn large_copies_keep_to_their_bytes_a_second_and_small_ones_run_side_by_side() {
        let config = ChunkConfig::default();
        let table = servers(2);
        let mut directory = Directory::default();
        let now = Instant::now();
        for (bytes, at_once) in [(64 << 20, 2), (4096, config.copies_per_server)] {
            let mut repairs = Repairs::default();
            let mut rng = StdRng::seed_from_u64(1);
            for chunk in 1..=100 {
                on(&mut directory, chunk, &[1]);
                repairs.want(ChunkId(chunk), Want { bytes, ..too_few(2) });
            }
            let (mut begun, mut last) = (0, now);
            while let Some(copy) = repairs.next(&config, &table, |c| directory.entry(c), now, &mut rng) {
                begun += 1;
                assert_eq!(copy.bytes_s, config.repair_bytes_s);
            }
            assert_eq!(begun, at_once, "chunks of {bytes} bytes");
            if bytes > 4096 {
                // All of them, one after the other as they end: as long as their bytes take.
                let mut running: Vec<ChunkId> = repairs.running.keys().copied().collect();
                let mut done = 0;
                for step in 0..2000 {
                    last = now + Duration::from_millis(100 * step);
                    for chunk in running.drain(..) {
                        done += 1;
                        repairs.finished(chunk, true, last);
                    }
                    while let Some(copy) =
                        repairs.next(&config, &table, |c| directory.entry(c), last, &mut rng)
                    {
                        running.push(copy.chunk);
                    }
                    if done == 100 {
                        break;
                    }
                }
                let bound = bytes * 98 / config.repair_bytes_s;
                assert!((last - now).as_secs() + 2 >= bound && done == 100, "{:?} for {bound} s", last - now);
            }
        }
    }

    #[test]
    fn urgent_copies_may_go_faster_but_no_more_of_them_begin_than_end_in_time_where_they_must_go_slower() {
        let config = ChunkConfig::default();
        let table = servers(2);
        let (mut directory, mut repairs) = (Directory::default(), Repairs::default());
        let mut rng = StdRng::seed_from_u64(1);
        let now = Instant::now();
        for chunk in 1..=10 {
            on(&mut directory, chunk, &[1]);
            repairs.want(ChunkId(chunk), Want { bytes: 64 << 20, ..too_few(1) });
        }
        let mut begin =
            |repairs: &mut Repairs| repairs.next(&config, &table, |c| directory.entry(c), now, &mut rng);
        let first = begin(&mut repairs).unwrap();
        assert_eq!((first.bytes_s, first.busy_bytes_s), (4 * config.repair_bytes_s, config.repair_bytes_s));
        assert!(begin(&mut repairs).is_some());
        assert_eq!(begin(&mut repairs), None, "two seconds' worth is under way");
        repairs.finished(first.chunk, true, now);
        assert!(begin(&mut repairs).is_some());
    }

    #[test]
    fn speed_is_that_of_the_last_minute() {
        let now = Instant::now();
        let mut speed = Speed::new(now);
        assert_eq!(speed.per_second(now), (0.0, 0.0));
        for second in 0..10 {
            speed.add(1000, now + Duration::from_secs(second));
        }
        assert_eq!(speed.per_second(now + Duration::from_secs(9)), (1.0, 1000.0));
        assert_eq!(speed.per_second(now + Duration::from_secs(200)), (0.0, 0.0));
    }
}

//! Which copy to make next.
//!
//! Chunks in the greatest danger (fewest replicas) first; bounded in the cluster
//! and on each server, so that repair never takes the servers from their clients.

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use gofs_tree::{ChunkId, ChunkServerId};
use rand::Rng;

use super::{ChunkConfig, Entry, ServerTable, placement};

/// Waiting chunks looked at for one that can be copied now.
const LOOK_AT: usize = 256;

/// A copy to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Of this chunk.
    pub chunk: ChunkId,
    /// To this server.
    pub target: ChunkServerId,
}

#[derive(Debug)]
struct Running {
    target: ChunkServerId,
    source: ChunkServerId,
}

/// Copies that are wanted and that run.
#[derive(Debug, Default)]
pub struct Repairs {
    order: BTreeSet<(u32, ChunkId)>,
    danger: HashMap<ChunkId, u32>,
    running: HashMap<ChunkId, Running>,
    failed: HashMap<ChunkId, (Instant, ChunkServerId)>,
}

impl Repairs {
    /// The chunk has `current` replicas and needs one more.
    pub fn want(&mut self, chunk: ChunkId, current: u32) {
        if let Some(before) = self.danger.insert(chunk, current) {
            self.order.remove(&(before, chunk));
        }
        self.order.insert((current, chunk));
    }

    /// It does not, after all.
    pub fn unwant(&mut self, chunk: ChunkId) {
        if let Some(before) = self.danger.remove(&chunk) {
            self.order.remove(&(before, chunk));
        }
        if !self.running.contains_key(&chunk) {
            self.failed.remove(&chunk);
        }
    }

    /// Copies that run.
    pub fn running(&self) -> usize {
        self.running.len()
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
        let busy = |id: ChunkServerId| {
            let takes_part = self.running.values().filter(|copy| copy.target == id || copy.source == id);
            takes_part.count() >= config.copies_per_server
        };
        let mut begin = None;
        for &(_, chunk) in self.order.iter().take(LOOK_AT) {
            if self.running.contains_key(&chunk) {
                continue;
            }
            let failed = self.failed.get(&chunk);
            if failed.is_some_and(|(at, _)| now.saturating_duration_since(*at) < config.copy_retry) {
                continue;
            }
            let Some(entry) = entry(chunk) else { continue };
            let good = entry.replicas.iter().filter(|replica| servers.is_alive(replica.server));
            let good = good.filter(|replica| replica.confirmed && !replica.corrupt);
            let newest = good.clone().map(|replica| replica.version).max();
            let good: Vec<ChunkServerId> = good
                .filter(|replica| Some(replica.version) == newest)
                .map(|replica| replica.server)
                .collect();
            let Some(&source) = good.iter().find(|&&id| !busy(id)) else { continue };
            let mut avoid: Vec<ChunkServerId> =
                servers.alive().map(|server| server.id).filter(|&id| busy(id)).collect();
            // Better not where it failed, nor on a disk that spoiled it; what is there may also be of use one day.
            let busy_ones = avoid.len();
            avoid.extend(failed.map(|(_, target)| *target));
            avoid.extend(entry.replicas.iter().map(|replica| replica.server));
            let mut target = placement::choose(servers, &good, &avoid, 1, config.reserve_bytes, rng);
            if target.is_empty() {
                avoid.truncate(busy_ones);
                target = placement::choose(servers, &good, &avoid, 1, config.reserve_bytes, rng);
            }
            if let Some(&target) = target.first() {
                begin = Some((chunk, Running { target, source }));
                break;
            }
        }
        let (chunk, running) = begin?;
        let target = running.target;
        self.running.insert(chunk, running);
        Some(Copy { chunk, target })
    }

    /// A copy ended. After a failure the chunk waits a while, and another target is preferred.
    pub fn finished(&mut self, chunk: ChunkId, copied: bool, now: Instant) {
        let Some(running) = self.running.remove(&chunk) else { return };
        if copied {
            self.failed.remove(&chunk);
            self.unwant(chunk);
        } else {
            self.failed.insert(chunk, (now, running.target));
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
        repairs.want(ChunkId(1), 2);
        repairs.want(ChunkId(2), 1);
        repairs.want(ChunkId(3), 1);
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
        let corrupt = Reported { chunk: ChunkId(1), version: ChunkVersion(1), gone: false, corrupt: true };
        directory.report(ChunkServerId(2), corrupt, false, now);
        for (count, expected) in [(3, 3), (2, 2)] {
            for seed in 0..10 {
                let mut repairs = Repairs::default();
                repairs.want(ChunkId(1), 1);
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
        repairs.want(ChunkId(1), 1);
        let now = Instant::now();
        let first = repairs.next(&config, &table, |c| directory.entry(c), now, &mut rng).unwrap();
        repairs.finished(ChunkId(1), false, now);
        assert_eq!(repairs.next(&config, &table, |c| directory.entry(c), now, &mut rng), None);
        let later = now + config.copy_retry + Duration::from_millis(1);
        let again = repairs.next(&config, &table, |c| directory.entry(c), later, &mut rng).unwrap();
        assert_ne!(again.target, first.target);
    }
}

//! Which replicas to move so that servers are about as full as each other.
//!
//! A plan is made when the fullest server and the emptiest are further apart than [`BAND`]: how many bytes each server
//! above the mean gives, and each below it takes. Moves are charged to it until one side has nothing left; then there
//! is rest until the servers' own numbers show what was done (space given up is free after the deletion, and in a log
//! after compaction). Within a plan no server both gives and takes, so nothing goes back and forth, and every plan ends.
//! A server that comes, goes or is drained ends the plan at once.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use gofs_tree::{ChunkId, ChunkServerId};

use super::{Directory, Server, ServerTable, placement};

/// A plan is made when shares in use differ by more.
const BAND: f64 = 0.10;
/// Servers this close to the mean neither give nor take.
const NEAR: f64 = 0.02;
/// Rest after a plan.
const REST: Duration = Duration::from_secs(300);
/// Least that a move is charged, bytes: a chunk takes room beside its data.
const MOVE_MIN_BYTES: u64 = 4096;

/// See the module.
#[derive(Debug, Default)]
pub struct Balance {
    members: Vec<ChunkServerId>,
    give: BTreeMap<ChunkServerId, u64>,
    take: BTreeMap<ChunkServerId, u64>,
    /// Where the look at a giver's chunks goes on.
    cursor: BTreeMap<ChunkServerId, ChunkId>,
    rest_until: Option<Instant>,
}

impl Balance {
    /// Whether moves are wanted.
    pub fn is_under_way(&self) -> bool {
        !self.give.is_empty() && !self.take.is_empty()
    }

    /// Makes, keeps or ends a plan, and says at which chunks to look next, at most so many, with the server that is
    /// to give each up.
    pub fn candidates(
        &mut self,
        servers: &ServerTable,
        directory: &Directory,
        most: usize,
        now: Instant,
    ) -> Vec<(ChunkServerId, ChunkId)> {
        let usable = servers.alive().filter(|server| !server.draining);
        let filled: Vec<(&Server, u64, u64)> = usable
            .filter_map(|server| server.used_bytes().map(|(capacity, used)| (server, capacity, used)))
            .collect();
        let members: Vec<ChunkServerId> = filled.iter().map(|(server, ..)| server.id).collect();
        if members != self.members {
            *self = Balance { members, ..Balance::default() };
        }
        if !self.is_under_way() {
            self.plan(&filled, now);
        }
        let Some(giver) = self.give.iter().max_by_key(|(_, left)| **left).map(|(id, _)| *id) else {
            return Vec::new();
        };
        let chunks = directory.chunks_on(giver, self.cursor.get(&giver).copied(), most);
        match chunks.last() {
            Some(last) => {
                self.cursor.insert(giver, *last);
            }
            // All were looked at: what could go has gone.
            None => self.end(giver, now),
        }
        chunks.into_iter().map(|chunk| (giver, chunk)).collect()
    }

    /// Where a healthy chunk of `bytes`, current on these servers, goes from `giver`, if it is to move at all. The
    /// plan is charged with it.
    pub fn choose(
        &mut self,
        servers: &ServerTable,
        current: &[ChunkServerId],
        giver: ChunkServerId,
        bytes: u64,
        now: Instant,
    ) -> Option<ChunkServerId> {
        let bytes = bytes.max(MOVE_MIN_BYTES);
        if !current.contains(&giver) || self.give.get(&giver).is_none_or(|left| *left < bytes) {
            return None;
        }
        let on = |without: Option<ChunkServerId>| {
            current.iter().filter(move |id| Some(**id) != without).filter_map(|&id| servers.get(id))
        };
        let crowded = placement::crowding(on(None));
        let fits = |id: &ChunkServerId| {
            let target = servers.get(*id).filter(|server| server.is_alive());
            target.is_some_and(|to| placement::crowding(on(Some(giver)).chain([to])) <= crowded)
        };
        let takers = self.take.iter().filter(|(id, left)| **left >= bytes && !current.contains(*id));
        let taker = takers.filter(|(id, _)| fits(id)).max_by_key(|(_, left)| **left).map(|(id, _)| *id)?;
        for (id, side) in [(giver, &mut self.give), (taker, &mut self.take)] {
            if let Some(left) = side.get_mut(&id) {
                *left -= bytes;
                if *left < MOVE_MIN_BYTES {
                    side.remove(&id);
                }
            }
        }
        if !self.is_under_way() {
            self.rest(now);
        }
        Some(taker)
    }

    fn plan(&mut self, filled: &[(&Server, u64, u64)], now: Instant) {
        if self.rest_until.is_some_and(|until| now < until) {
            return;
        }
        let share = |&(_, capacity, used): &(&Server, u64, u64)| used as f64 / capacity as f64;
        let (least, most) = filled
            .iter()
            .map(share)
            .fold((1.0_f64, 0.0_f64), |(least, most), share| (least.min(share), most.max(share)));
        if most - least <= BAND {
            return;
        }
        let capacity: u64 = filled.iter().map(|(_, capacity, _)| capacity).sum();
        let used: u64 = filled.iter().map(|(_, _, used)| used).sum();
        let mean = used as f64 / capacity as f64;
        for server in filled {
            let apart = ((share(server) - mean) * server.1 as f64) as i64;
            if share(server) > mean + NEAR {
                self.give.insert(server.0.id, apart.unsigned_abs());
            } else if share(server) < mean - NEAR {
                self.take.insert(server.0.id, apart.unsigned_abs());
            }
        }
        tracing::info!(least, most, mean, "ChunkServers are unevenly full: replicas are moved");
    }

    fn end(&mut self, giver: ChunkServerId, now: Instant) {
        self.give.remove(&giver);
        self.cursor.remove(&giver);
        if !self.is_under_way() {
            self.rest(now);
        }
    }

    fn rest(&mut self, now: Instant) {
        let members = std::mem::take(&mut self.members);
        *self = Balance { members, rest_until: Some(now + REST), ..Balance::default() };
    }
}

#[cfg(test)]
mod tests {
    use gofs_tree::ChunkVersion;
    use proptest::prelude::*;

    use super::*;
    use crate::chunks::Disk;

    const CAPACITY: u64 = 1000 << 20;

    struct World {
        servers: ServerTable,
        directory: Directory,
        bytes: BTreeMap<ChunkId, u64>,
        now: Instant,
        next: u64,
    }

    impl World {
        fn new(count: u64) -> World {
            let now = Instant::now();
            let mut servers = ServerTable::default();
            for id in 1..=count {
                servers.connected(ChunkServerId(id), format!("10.0.0.{id}:1"), BTreeMap::new(), id, now);
            }
            World { servers, directory: Directory::default(), bytes: BTreeMap::new(), now, next: 1 }
        }

        fn put(&mut self, on: &[u64], bytes: u64) {
            for &id in on {
                self.directory.copied(ChunkServerId(id), ChunkId(self.next), ChunkVersion(1), self.now);
            }
            self.bytes.insert(ChunkId(self.next), bytes);
            self.next += 1;
        }

        /// Servers say how full they are.
        fn describe(&mut self) {
            let ids: Vec<ChunkServerId> = self.servers.iter().map(|server| server.id).collect();
            for id in ids {
                let used: u64 =
                    self.directory.chunks_on(id, None, usize::MAX).iter().map(|c| self.bytes[c]).sum();
                let server = self.servers.get_mut(id).unwrap();
                server.described = true;
                let free_bytes = CAPACITY - used.min(CAPACITY);
                server.disks = vec![Disk { capacity_bytes: CAPACITY, free_bytes, ..Disk::default() }];
            }
        }

        fn spread(&self) -> f64 {
            let used = self.servers.iter().map(|server| server.used_bytes().unwrap().1);
            let used: Vec<u64> = used.collect();
            (used.iter().max().unwrap() - used.iter().min().unwrap()) as f64 / CAPACITY as f64
        }

        /// Balances until nothing was moved for two rests; moves of each chunk. Servers report only now and then.
        fn run(&mut self, balance: &mut Balance, late: u64) -> BTreeMap<ChunkId, u32> {
            let mut moves = BTreeMap::<ChunkId, u32>::new();
            let (mut idle, mut round) = (Duration::ZERO, 0);
            while idle < REST * 2 {
                round += 1;
                assert!(round < 200_000, "it does not end");
                if round % late == 0 {
                    self.describe();
                }
                let look = balance.candidates(&self.servers, &self.directory, 16, self.now);
                let mut moved = false;
                for (giver, chunk) in look {
                    let current: Vec<ChunkServerId> =
                        self.directory.entry(chunk).unwrap().replicas.iter().map(|r| r.server).collect();
                    let to = balance.choose(&self.servers, &current, giver, self.bytes[&chunk], self.now);
                    if let Some(to) = to {
                        assert!(!current.contains(&to));
                        self.directory.copied(to, chunk, ChunkVersion(1), self.now);
                        self.directory.remove(giver, chunk);
                        *moves.entry(chunk).or_default() += 1;
                        moved = true;
                    }
                }
                self.now += Duration::from_secs(1);
                idle = if moved { Duration::ZERO } else { idle + Duration::from_secs(1) };
            }
            self.describe();
            moves
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn an_added_server_is_filled_and_then_nothing_moves(
            chunks in proptest::collection::vec((0u64..3, 1u64..8), 100..250), late in 1u64..60,
        ) {
            let mut world = World::new(4);
            for (first, mib) in chunks {
                world.put(&[first + 1, (first + 1) % 3 + 1], mib << 20);
            }
            world.describe();
            let before = world.spread();
            let mut balance = Balance::default();
            let moves = world.run(&mut balance, late);
            prop_assert!(before < BAND || world.spread() < before);
            prop_assert!(world.spread() <= BAND + 0.02, "{} of {before}", world.spread());
            prop_assert!(moves.values().all(|times| *times <= 2), "back and forth: {moves:?}");
            let again = world.run(&mut balance, late);
            prop_assert!(again.is_empty(), "{again:?}");
        }
    }

    #[test]
    fn servers_within_the_band_are_left_alone_and_a_new_member_makes_a_new_plan() {
        let mut world = World::new(2);
        for _ in 0..10 {
            world.put(&[1], 9 << 20);
        }
        world.describe();
        let mut balance = Balance::default();
        assert!(balance.candidates(&world.servers, &world.directory, 8, world.now).is_empty());
        world.put(&[1], 20 << 20);
        world.describe();
        assert_eq!(balance.candidates(&world.servers, &world.directory, 8, world.now).len(), 8);
        world.servers.get_mut(ChunkServerId(2)).unwrap().draining = true;
        assert!(balance.candidates(&world.servers, &world.directory, 8, world.now).is_empty());
        assert!(!balance.is_under_way());
    }
}

//! On which servers a new replica goes.
//!
//! Random, weighted by room and against load, so that no server is flooded
//! because it is the emptiest. Replicas of one chunk are kept apart: on different
//! hosts and racks where there are such, at least on different servers always.

use std::collections::BTreeSet;

use gofs_tree::ChunkServerId;
use rand::{Rng, RngExt};

use super::{Server, ServerTable};

/// Bytes that a chunk placed since the last status is taken to fill, until the server says what it did.
const EXPECTED_BYTES: u64 = 4 << 20;

/// Chooses up to `count` servers with room, none of them in `avoid`, as far as
/// possible on other hosts and racks than `present` (servers that hold the
/// chunk already). Fewer are returned where fewer qualify.
pub fn choose(
    servers: &ServerTable,
    present: &[ChunkServerId],
    avoid: &[ChunkServerId],
    count: usize,
    reserve_bytes: (u64, u64),
    rng: &mut impl Rng,
) -> Vec<ChunkServerId> {
    let mut hosts = BTreeSet::new();
    let mut racks = BTreeSet::new();
    for server in present.iter().filter_map(|&id| servers.get(id)) {
        hosts.insert(server.host());
        racks.insert(server.labels.get("rack"));
    }
    let mut candidates: Vec<(&Server, f64)> = servers
        .alive()
        .filter(|server| !present.contains(&server.id) && !avoid.contains(&server.id))
        .filter_map(|server| Some((server, weight(server, reserve_bytes)?)))
        .collect();
    let mut chosen = Vec::new();
    while chosen.len() < count && !candidates.is_empty() {
        let distance = |server: &Server| {
            let rack = server.labels.get("rack");
            (hosts.contains(server.host()), rack.is_some() && racks.contains(&rack))
        };
        let Some(best) = candidates.iter().map(|(server, _)| distance(server)).min() else { break };
        let tier: Vec<usize> =
            (0..candidates.len()).filter(|&index| distance(candidates[index].0) == best).collect();
        let total: f64 = tier.iter().map(|&index| candidates[index].1).sum();
        let mut point = rng.random::<f64>() * total;
        let mut pick = tier[0];
        for &index in &tier {
            pick = index;
            point -= candidates[index].1;
            if point < 0.0 {
                break;
            }
        }
        let (server, _) = candidates.swap_remove(pick);
        hosts.insert(server.host());
        racks.insert(server.labels.get("rack"));
        chosen.push(server.id);
    }
    chosen
}

/// How crowded replicas on these servers are: those that share a host with an earlier one, those that share a rack.
pub fn crowding<'a>(on: impl Iterator<Item = &'a Server>) -> (usize, usize) {
    let (mut hosts, mut racks) = (BTreeSet::new(), BTreeSet::new());
    let mut shared = (0, 0);
    for server in on {
        shared.0 += usize::from(!hosts.insert(server.host()));
        shared.1 += server.labels.get("rack").map_or(0, |rack| usize::from(!racks.insert(rack)));
    }
    shared
}

/// The one of these servers whose replica would better be on another server, as far as hosts and racks go.
pub fn misplaced(
    servers: &ServerTable,
    current: &[ChunkServerId],
    reserve_bytes: (u64, u64),
) -> Option<ChunkServerId> {
    let on = |without: Option<ChunkServerId>| {
        current.iter().filter(move |id| Some(**id) != without).filter_map(|&id| servers.get(id))
    };
    let now = crowding(on(None));
    if now == (0, 0) {
        return None;
    }
    let others = || {
        let others = servers.alive().filter(|server| !current.contains(&server.id));
        others.filter(|server| weight(server, reserve_bytes).is_some())
    };
    let moved = |id: ChunkServerId| others().map(move |to| crowding(on(Some(id)).chain([to]))).min();
    let best = current.iter().filter_map(|&id| Some((moved(id)?, id))).min()?;
    (best.0 < now).then_some(best.1)
}

/// How likely the server is taken; `None` where it has no room or is not known well enough. What was placed since it
/// said how much room it has makes it less likely, but is no reason to call it full: most chunks are small.
fn weight(server: &Server, reserve_bytes: (u64, u64)) -> Option<f64> {
    let room = server.room_bytes(reserve_bytes);
    let left = room.saturating_sub(u64::from(server.placed) * EXPECTED_BYTES).max(1);
    let load = f64::from(server.in_flight) + f64::from(server.placed) + server.load.max(0.0);
    (server.described && !server.draining && room > 0).then(|| left as f64 / (1.0 + load))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Instant};

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::chunks::Disk;

    const RESERVE: (u64, u64) = (64 << 20, 4 << 30);

    /// A table of servers (host, rack, free bytes), their ids from 1.
    fn table(servers: &[(&str, &str, u64)]) -> ServerTable {
        let mut table = ServerTable::default();
        for (index, &(host, rack, free_bytes)) in servers.iter().enumerate() {
            let id = ChunkServerId(index as u64 + 1);
            let mut labels = BTreeMap::from([("host".to_owned(), host.to_owned())]);
            if !rack.is_empty() {
                labels.insert("rack".to_owned(), rack.to_owned());
            }
            table.connected(id, format!("127.0.0.1:{}", 7470 + index), labels, id.0, Instant::now());
            let server = table.get_mut(id).unwrap();
            server.described = true;
            server.disks = vec![Disk { capacity_bytes: 100 << 30, free_bytes, ..Disk::default() }];
        }
        table
    }

    #[test]
    fn hosts_and_racks_differ_where_they_can() {
        let servers = table(&[
            ("a", "r1", 50 << 30),
            ("a", "r1", 50 << 30),
            ("b", "r1", 50 << 30),
            ("c", "r2", 50 << 30),
        ]);
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..200 {
            let two = choose(&servers, &[], &[], 2, RESERVE, &mut rng);
            assert!(two.contains(&ChunkServerId(4)), "racks differ: {two:?}");
            let three = choose(&servers, &[], &[], 3, RESERVE, &mut rng);
            assert!(three.contains(&ChunkServerId(3)), "hosts differ: {three:?}");
            let next = choose(&servers, &[ChunkServerId(1), ChunkServerId(4)], &[], 1, RESERVE, &mut rng);
            assert_eq!(next, [ChunkServerId(3)]);
        }
    }

    #[test]
    fn one_host_means_different_servers_and_never_one_twice() {
        let servers = table(&[("a", "", 50 << 30), ("a", "", 50 << 30)]);
        let mut rng = StdRng::seed_from_u64(2);
        let mut three = choose(&servers, &[], &[], 3, RESERVE, &mut rng);
        three.sort();
        assert_eq!(three, [ChunkServerId(1), ChunkServerId(2)]);
    }

    #[test]
    fn many_small_chunks_at_once_do_not_make_a_server_full() {
        let mut servers = table(&[("a", "", 2 << 30)]);
        let mut rng = StdRng::seed_from_u64(4);
        for _ in 0..10_000 {
            assert_eq!(choose(&servers, &[], &[], 1, RESERVE, &mut rng), [ChunkServerId(1)]);
            servers.get_mut(ChunkServerId(1)).unwrap().placed += 1;
        }
    }

    #[test]
    fn a_replica_is_misplaced_only_where_another_server_would_do_better() {
        let id = ChunkServerId;
        let mut servers = table(&[("a", "r1", 50 << 30), ("a", "r1", 50 << 30)]);
        assert_eq!(misplaced(&servers, &[id(1), id(2)], RESERVE), None, "there is one host only");
        servers = table(&[("a", "r1", 50 << 30), ("a", "r1", 50 << 30), ("b", "r1", 50 << 30)]);
        assert_eq!(misplaced(&servers, &[id(1), id(2)], RESERVE), Some(id(1)));
        assert_eq!(misplaced(&servers, &[id(1), id(3)], RESERVE), None, "there is one rack only");
        servers = table(&[("a", "r1", 50 << 30), ("b", "r1", 50 << 30), ("c", "r2", 50 << 30)]);
        assert_eq!(misplaced(&servers, &[id(1), id(2)], RESERVE), Some(id(1)));
        servers.get_mut(id(3)).unwrap().draining = true;
        assert_eq!(misplaced(&servers, &[id(1), id(2)], RESERVE), None, "nothing goes to a draining server");
    }

    #[test]
    fn a_full_or_unknown_server_gets_nothing_and_room_attracts() {
        let mut servers =
            table(&[("a", "", 32 << 20), ("b", "", 10 << 30), ("c", "", 90 << 30), ("d", "", 90 << 30)]);
        servers.get_mut(ChunkServerId(4)).unwrap().described = false;
        let mut rng = StdRng::seed_from_u64(3);
        let mut taken = BTreeMap::<u64, u32>::new();
        for _ in 0..1000 {
            for id in choose(&servers, &[], &[], 1, RESERVE, &mut rng) {
                *taken.entry(id.0).or_default() += 1;
            }
        }
        assert!(!taken.contains_key(&1) && !taken.contains_key(&4), "{taken:?}");
        assert!(taken[&3] > taken[&2] * 4 && taken[&2] > 20, "{taken:?}");
    }
}

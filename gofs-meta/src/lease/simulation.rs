//! Several sessions that cache, change and acknowledge in random order, with a copy of the truth
//! beside them: whatever the order, no operation runs while another session may hold a copy
//! that it makes stale, or may have changed what the operation sees, and all of them end.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use gofs_tree::{Ino, LeaseEpoch, LeaseMode, Name, SessionId};

use super::*;

/// xorshift64*: a failing seed replays on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }
    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// Something that can be cached: attributes of an inode, or an entry of a directory.
type Thing = (Ino, Option<Name>);

#[derive(Default)]
struct Client {
    /// What it may answer from: put in when the reply is *sent*, since nothing can stop it then.
    copies: HashMap<Thing, u64>,
    leases: BTreeMap<Ino, LeaseMode>,
    /// Changed under Write, and nobody was told yet.
    dirty: BTreeSet<Ino>,
    stream: VecDeque<Recall>,
    /// Recalls that it has read, with the own operations that keep the acknowledgement back.
    unanswered: Vec<(Recall, BTreeSet<OpId>)>,
}

struct Flight {
    session: SessionId,
    needs: Vec<Need>,
    running: bool,
    seen: Option<HashMap<Thing, u64>>,
}

struct World {
    random: Random,
    table: LeaseTable,
    now: Now,
    clients: BTreeMap<SessionId, Client>,
    flights: BTreeMap<OpId, Flight>,
    truth: HashMap<Thing, u64>,
    /// Write leases that were asked back, until when that counts.
    contended: HashMap<Ino, Now>,
    /// How many of the sessions are here yet.
    joined: usize,
    refused: usize,
    ended: usize,
    local_changes: usize,
}

const DIRS: u64 = 2;
const FILES: u64 = 3;
const NAMES: [&str; 3] = ["a", "b", "c"];

impl World {
    fn new(seed: u64, sessions: u64) -> World {
        let mut table = LeaseTable::new(LeaseEpoch(1));
        let ids: Vec<SessionId> = (1..=sessions).map(SessionId).collect();
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let joined = 1 + random.below(ids.len());
        ids.iter().take(joined).for_each(|&id| table.open_session(id));
        World {
            random,
            table,
            now: Duration::ZERO,
            clients: ids.into_iter().map(|id| (id, Client::default())).collect(),
            flights: BTreeMap::new(),
            truth: HashMap::new(),
            contended: HashMap::new(),
            joined,
            refused: 0,
            ended: 0,
            local_changes: 0,
        }
    }

    fn some_name(&mut self) -> Name {
        Name::new(NAMES[self.random.below(NAMES.len())].as_bytes()).unwrap()
    }

    fn some_needs(&mut self) -> Vec<Need> {
        let dir = Ino(1 + self.random.below(DIRS as usize) as u64);
        let other_dir = Ino(1 + self.random.below(DIRS as usize) as u64);
        let file = Ino(100 + self.random.below(FILES as usize) as u64);
        let name = self.some_name();
        match self.random.below(9) {
            0 => vec![Need::read(dir), Need::read(file)],
            1 => vec![Need::read(dir), Need::maybe_read(file), Need::maybe_read(Ino(100))],
            2 => vec![Need::read(file)],
            3 => vec![Need::change(file)],
            4 => vec![Need::entries(dir, vec![name])],
            5 => vec![Need::entries(dir, vec![name]), Need::change(file)],
            6 => {
                let to = self.some_name();
                vec![Need::entries(dir, vec![name]), Need::entries(other_dir, vec![to]), Need::change(file)]
            }
            7 => vec![Need::change(dir)],
            _ => vec![Need::settle(file)],
        }
    }

    fn step(&mut self, new_ops: bool) {
        match self.random.below(12) {
            0..=3 if new_ops && self.flights.len() < 12 => self.begin(),
            0..=4 => self.work(),
            5..=6 => self.read_stream(),
            7..=8 => self.acknowledge(),
            9..=10 => self.change_locally(),
            _ => {
                if self.joined < self.clients.len() && self.random.one_in(20) {
                    self.joined += 1;
                    self.table.open_session(SessionId(self.joined as u64));
                }
                self.now += Duration::from_millis(self.random.below(400) as u64);
                let overdue = self.table.tick(self.now);
                self.perform(overdue.effects);
            }
        }
    }

    fn some_session(&mut self) -> SessionId {
        SessionId(1 + self.random.below(self.joined) as u64)
    }

    /// A session changes what it holds under Write, without a word, unless it knows that it is asked for it.
    fn change_locally(&mut self) {
        let session = self.some_session();
        let client = self.clients.get_mut(&session).unwrap();
        let busy = |ino: Ino| {
            let asked = client.unanswered.iter().any(|(recall, _)| recall.ino == ino);
            let own =
                |flight: &Flight| flight.session == session && flight.needs.iter().any(|n| n.ino == ino);
            asked || self.flights.values().any(own)
        };
        let held = client.leases.iter().filter(|(_, mode)| **mode == LeaseMode::Write);
        let free: Vec<Ino> = held.map(|(&ino, _)| ino).filter(|&ino| !busy(ino)).collect();
        if free.is_empty() {
            return;
        }
        let ino = free[self.random.below(free.len())];
        let copies = client.copies.iter_mut().filter(|(thing, _)| thing.0 == ino);
        copies.for_each(|(_, value)| *value += 1);
        client.dirty.insert(ino);
        self.local_changes += 1;
    }

    /// The session ships what it has changed there.
    fn flush(&mut self, session: SessionId, ino: Ino) {
        let client = self.clients.get_mut(&session).unwrap();
        if client.dirty.remove(&ino) {
            assert_eq!(client.leases.get(&ino), Some(&LeaseMode::Write), "changed without a lease");
            let copies = client.copies.iter().filter(|(thing, _)| thing.0 == ino);
            self.truth.extend(copies.map(|(thing, value)| (thing.clone(), *value)));
        }
    }

    fn begin(&mut self) {
        let session = self.some_session();
        let needs = self.some_needs();
        let (id, effects) = self.table.begin(self.now, session, needs).unwrap();
        // Merged and without the optional ones that could not be had.
        let needs = self.table.ops[&id].needs.to_vec();
        self.flights.insert(id, Flight { session, needs, running: false, seen: None });
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Run(id) => {
                    for other in self.flights.values().filter(|f| f.running) {
                        for (a, b) in other
                            .needs
                            .iter()
                            .flat_map(|a| self.flights[&id].needs.iter().map(move |b| (a, b)))
                        {
                            assert!(a.ino != b.ino || !a.access.excludes(b.access), "two run on {}", a.ino);
                        }
                    }
                    self.flights.get_mut(&id).unwrap().running = true;
                }
                Effect::Refuse(id) => {
                    assert!(!self.flights.remove(&id).unwrap().running);
                    self.refused += 1;
                    self.answered(id);
                }
                Effect::Recall(recall) => {
                    let client = self.clients.get_mut(&recall.session).unwrap();
                    let held = client.leases.get(&recall.ino).expect("recalled what is not held");
                    if *held == LeaseMode::Write {
                        assert_eq!(recall.names, [], "a holder of Write gives all of it back");
                        self.contended.insert(recall.ino, self.now + CONTENDED_FOR);
                    }
                    client.stream.push_back(recall);
                }
            }
        }
    }

    /// The client has the reply: acknowledgements that waited for it may go.
    fn answered(&mut self, id: OpId) {
        for client in self.clients.values_mut() {
            for (_, kept_back_by) in &mut client.unanswered {
                kept_back_by.remove(&id);
            }
        }
    }

    /// An operation that runs reads and changes the truth, or ends.
    fn work(&mut self) {
        let running: Vec<OpId> = self.flights.iter().filter(|(_, f)| f.running).map(|(&id, _)| id).collect();
        if running.is_empty() {
            return;
        }
        let id = running[self.random.below(running.len())];
        if self.flights[&id].seen.is_none() { self.execute(id) } else { self.end(id) }
    }

    fn execute(&mut self, id: OpId) {
        let (session, inos) = (
            self.flights[&id].session,
            self.flights[&id].needs.iter().map(|need| need.ino).collect::<Vec<_>>(),
        );
        inos.into_iter().for_each(|ino| self.flush(session, ino));
        let flight = &self.flights[&id];
        let mut seen = HashMap::new();
        for need in &flight.needs {
            for (&session, client) in self.clients.iter().filter(|(s, _)| **s != flight.session) {
                let write = client.leases.get(&need.ino) == Some(&LeaseMode::Write);
                assert!(need.access == Access::Settle || !write, "{session} may have changed {}", need.ino);
                if need.access == Access::Change {
                    let stale = client.copies.keys().find(|(ino, name)| {
                        let named = name
                            .as_ref()
                            .is_none_or(|name| need.names.is_empty() || need.names.contains(name));
                        *ino == need.ino && named
                    });
                    assert_eq!(
                        stale, None,
                        "{session} holds a copy that {id:?} of {} makes stale",
                        flight.session
                    );
                }
            }
            let mut things: Vec<Thing> = vec![(need.ino, None)];
            if need.ino.0 <= DIRS {
                things.extend(NAMES.iter().map(|n| (need.ino, Some(Name::new(n.as_bytes()).unwrap()))));
            }
            for thing in things {
                let value = self.truth.entry(thing.clone()).or_default();
                let changes =
                    thing.1.as_ref().is_none_or(|n| need.names.is_empty() || need.names.contains(n));
                if need.access == Access::Change && changes {
                    *value += 1;
                }
                seen.insert(thing, *value);
            }
        }
        self.flights.get_mut(&id).unwrap().seen = Some(seen);
    }

    fn end(&mut self, id: OpId) {
        let flight = self.flights.remove(&id).unwrap();
        let seen = flight.seen.unwrap();
        let own: Vec<Ino> =
            flight.needs.iter().filter(|n| n.access == Access::Change).map(|n| n.ino).collect();
        // What a session has changed itself it knows from the reply only.
        let client = self.clients.get_mut(&flight.session).unwrap();
        client.copies.retain(|(ino, _), _| !own.contains(ino));
        for need in flight.needs.iter().filter(|n| n.access != Access::Settle) {
            let write = need.access == Access::Change && need.ino.0 >= 100 && self.random.one_in(2);
            let mode = if write { LeaseMode::Write } else { LeaseMode::Read };
            let grant = match self.random.below(3) {
                0 => self.table.grant(id, need.ino, mode),
                1 => self.table.grant_best(self.now, id, need.ino, Some(mode)),
                _ => self.table.grant_best(self.now, id, need.ino, None),
            };
            let Some(grant) = grant else { continue };
            let client = self.clients.get_mut(&flight.session).unwrap();
            let before = client.leases.get(&need.ino).copied();
            if grant.mode == LeaseMode::Write && before != Some(LeaseMode::Write) && !write {
                let contended = self.contended.get(&need.ino).is_some_and(|until| self.now < *until);
                assert!(!contended, "{} is fought over", need.ino);
                assert!(need.access == Access::Change || self.joined == 1, "others may look at {}", need.ino);
            }
            let asked = client.stream.iter().chain(client.unanswered.iter().map(|(recall, _)| recall));
            assert!(asked.into_iter().all(|recall| recall.ino != need.ino), "granted while it is recalled");
            client.leases.insert(need.ino, grant.mode);
            for (thing, value) in seen.iter().filter(|(thing, _)| thing.0 == need.ino) {
                assert_eq!(self.truth[thing], *value, "changed between the look and the grant");
                client.copies.insert(thing.clone(), *value);
            }
        }
        let effects = self.table.end(self.now, id);
        self.ended += 1;
        self.answered(id);
        self.perform(effects);
        self.check();
    }

    fn read_stream(&mut self) {
        let session = self.some_session();
        let stubborn = self.random.one_in(2);
        let client = self.clients.get_mut(&session).unwrap();
        let Some(recall) = client.stream.pop_front() else { return };
        // The kernel of a stubborn one holds the inode's lock for the own operations on it.
        let own = self.flights.iter().filter(|(_, f)| {
            stubborn && f.session == session && f.needs.iter().any(|need| need.ino == recall.ino)
        });
        let own = own.map(|(&id, _)| id).collect();
        client.unanswered.push((recall, own));
    }

    fn acknowledge(&mut self) {
        let session = self.some_session();
        let client = self.clients.get_mut(&session).unwrap();
        let ready: Vec<usize> =
            (0..client.unanswered.len()).filter(|&at| client.unanswered[at].1.is_empty()).collect();
        if ready.is_empty() {
            return;
        }
        let at = ready[self.random.below(ready.len())];
        let (recall, _) = client.unanswered.remove(at);
        self.flush(session, recall.ino);
        let client = self.clients.get_mut(&session).unwrap();
        if recall.names.is_empty() {
            match recall.keep {
                Some(_) => {
                    client.leases.entry(recall.ino).and_modify(|mode| *mode = LeaseMode::Read);
                }
                None => {
                    client.leases.remove(&recall.ino);
                    client.copies.retain(|(ino, _), _| *ino != recall.ino);
                }
            }
        } else {
            let forget: HashSet<Thing> = recall.names.iter().map(|n| (recall.ino, Some(n.clone()))).collect();
            client.copies.retain(|thing, _| !forget.contains(thing) && *thing != (recall.ino, None));
        }
        let effects = self.table.acknowledge(self.now, recall.id, false);
        self.perform(effects);
        self.check();
    }

    /// Two sessions never hold conflicting leases, and every copy is the truth or its own author's.
    fn check(&self) {
        for entry in self.table.inodes.values() {
            let writers = entry.leases.values().filter(|lease| lease.mode == LeaseMode::Write).count();
            assert!(writers == 0 || entry.leases.len() == 1, "a writer is not alone");
        }
        for (session, client) in &self.clients {
            for (thing, value) in &client.copies {
                let being_changed = self.flights.values().any(|f| f.session == *session && f.seen.is_some());
                let ours = being_changed || client.dirty.contains(&thing.0);
                assert!(ours || self.truth[thing] == *value, "{session} holds an old {thing:?}");
            }
        }
    }
}

#[test]
fn no_order_of_events_leaves_a_stale_copy_or_a_hang() {
    let seeds = match std::env::var("GOFS_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (1..=400).collect::<Vec<u64>>(),
    };
    let (mut refused, mut ended, mut local) = (0, 0, 0);
    for seed in seeds {
        println!("GOFS_SEED={seed} cargo nextest run -p gofs-meta no_order_of_events");
        let mut world = World::new(seed, 2 + seed % 3);
        for _ in 0..1500 {
            world.step(true);
        }
        let mut steps = 0;
        while !world.flights.is_empty() {
            world.step(false);
            steps += 1;
            assert!(steps < 100_000, "operations do not end: {:?}", world.flights.keys());
        }
        assert!(world.table.ops.is_empty());
        refused += world.refused;
        ended += world.ended;
        local += world.local_changes;
    }
    println!("{ended} operations ended, {refused} were refused, {local} changes were made under leases");
    assert!(local > ended / 10, "sessions change things by themselves: {local} changes, {ended} operations");
    assert!(ended > 100 * (refused + 1) / 10, "refusals are the exception: {refused} of {ended}");
}

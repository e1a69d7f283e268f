//! Where the replicas of chunks are.
//!
//! In memory only, rebuilt from the servers' reports after every change of leader.
//! Says nothing about which version is right: that is in the state, and
//! [`judge`](super::judge) and [`locate`](super::locate) bring the two together.
//! What a dead server held is remembered until it returns and lists its chunks anew.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use gofs_tree::{ChunkId, ChunkServerId, ChunkVersion};

/// One replica as far as it is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Replica {
    /// The server that has it, or was promised it.
    pub server: ChunkServerId,
    /// Its version.
    pub version: ChunkVersion,
    /// The server found its bytes bad.
    pub corrupt: bool,
    /// Its host went down with writes that were not on stable storage: it may lack some that were acknowledged.
    pub doubtful: bool,
    /// A client found its bytes bad, and the server has not said yet what it thinks.
    pub suspect: Option<Instant>,
    /// The server itself said that it has it; else it is a promise of placement.
    pub confirmed: bool,
    /// When this version was first seen or promised here.
    pub since: Instant,
    /// The last full list that it was in.
    listing: u64,
}

/// How long a client's word against a replica counts where its server does not answer.
const SUSPECT_FOR: Duration = Duration::from_secs(60);

impl Replica {
    /// Whether a client found its bytes bad lately.
    pub fn is_suspect(&self, now: Instant) -> bool {
        self.suspect.is_some_and(|at| now.saturating_duration_since(at) < SUSPECT_FOR)
    }
}

/// Which of these replicas of one version count. Doubtful ones may lack what others have, so none of them counts
/// beside one that is not; where all are, they may differ, so one counts, the same for everybody who asks.
pub fn without_doubt(replicas: Vec<&Replica>) -> Vec<&Replica> {
    let sure: Vec<&Replica> = replicas.iter().copied().filter(|replica| !replica.doubtful).collect();
    if sure.is_empty() {
        return replicas.into_iter().min_by_key(|replica| replica.server).into_iter().collect();
    }
    sure
}

/// Those of the newest version.
pub fn newest_of(replicas: Vec<&Replica>) -> Vec<&Replica> {
    let newest = replicas.iter().map(|replica| replica.version).max();
    replicas.into_iter().filter(|replica| Some(replica.version) == newest).collect()
}

/// What is known of one chunk's replicas.
#[derive(Clone, Debug)]
pub struct Entry {
    /// At most one for each server.
    pub replicas: Vec<Replica>,
    /// Placed by this leader: at this version, on so many servers, and on no other.
    pub placed: Option<(ChunkVersion, usize)>,
    /// Highest version that any server was ever asked to take in this term.
    pub asked: ChunkVersion,
    /// When the chunk was first heard of in this term.
    pub seen: Instant,
    /// Since when it has been below its goal without an excuse.
    pub under_since: Option<Instant>,
    /// Since when it has had more replicas than its goal.
    pub over_since: Option<Instant>,
}

impl Entry {
    fn new(now: Instant) -> Self {
        Entry {
            replicas: Vec::new(),
            placed: None,
            asked: ChunkVersion(0),
            seen: now,
            under_since: None,
            over_since: None,
        }
    }

    /// The replica on that server.
    pub fn on(&self, server: ChunkServerId) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.server == server)
    }
}

/// What a server says of one of its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its version there.
    pub version: ChunkVersion,
    /// It is not there any more.
    pub gone: bool,
    /// Its bytes fail their checksums there.
    pub corrupt: bool,
    /// It may lack writes that were acknowledged.
    pub doubtful: bool,
}

/// All replicas that are known.
#[derive(Debug, Default)]
pub struct Directory {
    chunks: HashMap<ChunkId, Entry>,
    by_server: HashMap<ChunkServerId, BTreeSet<ChunkId>>,
    listings: HashMap<ChunkServerId, u64>,
    /// Chunks about which something changed: the planner looks at them first.
    changed: BTreeSet<ChunkId>,
}

impl Directory {
    /// The chunk's replicas.
    pub fn entry(&self, chunk: ChunkId) -> Option<&Entry> {
        self.chunks.get(&chunk)
    }

    /// The same, for the planner's notes.
    pub fn entry_mut(&mut self, chunk: ChunkId) -> Option<&mut Entry> {
        self.chunks.get_mut(&chunk)
    }

    /// Every chunk that any server reported or was promised.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkId> {
        self.chunks.keys().copied()
    }

    /// Takes one line of a report. `full`: of a server's full list, which is
    /// begun by [`begin_list`](Self::begin_list).
    pub fn report(&mut self, server: ChunkServerId, reported: Reported, full: bool, now: Instant) {
        if reported.gone {
            self.remove(server, reported.chunk);
            return;
        }
        let listing = self.listings.get(&server).copied().unwrap_or(0);
        let replica = self.replica_mut(server, reported.chunk, reported.version, now);
        let changed =
            replica.version != reported.version || replica.corrupt != reported.corrupt || !replica.confirmed;
        let changed = changed || replica.doubtful != reported.doubtful;
        if replica.version != reported.version {
            replica.since = now;
        }
        replica.version = reported.version;
        replica.confirmed = true;
        if reported.corrupt {
            replica.suspect = None;
        }
        replica.corrupt = reported.corrupt;
        replica.doubtful = reported.doubtful;
        if full {
            replica.listing = listing;
            replica.suspect = None;
        }
        if changed || full {
            self.changed.insert(reported.chunk);
        }
    }

    /// A server begins to list everything it has.
    pub fn begin_list(&mut self, server: ChunkServerId) {
        *self.listings.entry(server).or_default() += 1;
    }

    /// The list is complete: what it did not name is not there. Promises stay, however old:
    /// whoever got the location may still create the chunk there at that version.
    pub fn end_list(&mut self, server: ChunkServerId) {
        let listing = self.listings.get(&server).copied().unwrap_or(0);
        let missing: Vec<ChunkId> = self
            .by_server
            .get(&server)
            .into_iter()
            .flatten()
            .copied()
            .filter(|chunk| {
                let replica = self.chunks.get(chunk).and_then(|entry| entry.on(server));
                replica.is_some_and(|replica| replica.listing != listing && replica.confirmed)
            })
            .collect();
        for chunk in missing {
            self.remove(server, chunk);
        }
    }

    /// Replicas of a new chunk, or of one that was placed anew: known at once, so that
    /// readers find them before the servers report them.
    pub fn promise(
        &mut self,
        chunk: ChunkId,
        version: ChunkVersion,
        servers: &[ChunkServerId],
        now: Instant,
    ) {
        for &server in servers {
            let replica = self.replica_mut(server, chunk, version, now);
            if !(replica.confirmed && replica.version >= version) {
                replica.version = version;
                replica.since = now;
                replica.confirmed = false;
                replica.corrupt = false;
                replica.doubtful = false;
                replica.suspect = None;
            }
        }
        if let Some(entry) = self.chunks.get_mut(&chunk) {
            entry.placed = Some((version, servers.len()));
        }
        self.changed.insert(chunk);
    }

    /// The server said that it holds the chunk at this version now.
    pub fn holds(&mut self, server: ChunkServerId, chunk: ChunkId, version: ChunkVersion, now: Instant) {
        let replica = self.replica_mut(server, chunk, version, now);
        if replica.version != version || !replica.confirmed {
            replica.since = now;
        }
        // A move of the version ends the doubt on the server, too.
        replica.doubtful &= replica.version == version;
        replica.version = version;
        replica.confirmed = true;
        self.changed.insert(chunk);
    }

    /// A whole, verified copy was made there.
    pub fn copied(&mut self, server: ChunkServerId, chunk: ChunkId, version: ChunkVersion, now: Instant) {
        self.holds(server, chunk, version, now);
        let replica = self.replica_mut(server, chunk, version, now);
        replica.corrupt = false;
        replica.doubtful = false;
        replica.suspect = None;
    }

    /// A version is about to be sent to servers.
    pub fn asked(&mut self, chunk: ChunkId, version: ChunkVersion) {
        if let Some(entry) = self.chunks.get_mut(&chunk) {
            entry.asked = entry.asked.max(version);
        }
    }

    /// The server does not have the chunk.
    pub fn remove(&mut self, server: ChunkServerId, chunk: ChunkId) {
        if let Some(chunks) = self.by_server.get_mut(&server) {
            chunks.remove(&chunk);
        }
        if let Some(entry) = self.chunks.get_mut(&chunk) {
            entry.replicas.retain(|replica| replica.server != server);
            self.changed.insert(chunk);
        }
    }

    /// The state does not know the chunk any more and nobody has it.
    pub fn forget_if_empty(&mut self, chunk: ChunkId) {
        if self.chunks.get(&chunk).is_some_and(|entry| entry.replicas.is_empty()) {
            self.chunks.remove(&chunk);
        }
    }

    /// A client says that the bytes there are bad; `false` where that is known, or nothing is.
    pub fn suspect(&mut self, server: ChunkServerId, chunk: ChunkId, now: Instant) -> bool {
        let Some(entry) = self.chunks.get_mut(&chunk) else { return false };
        let Some(replica) = entry.replicas.iter_mut().find(|replica| replica.server == server) else {
            return false;
        };
        if replica.corrupt || replica.is_suspect(now) {
            return false;
        }
        replica.suspect = Some(now);
        self.changed.insert(chunk);
        true
    }

    /// The server verified the chunk and found it good.
    pub fn cleared(&mut self, server: ChunkServerId, chunk: ChunkId) {
        if let Some(entry) = self.chunks.get_mut(&chunk)
            && let Some(replica) = entry.replicas.iter_mut().find(|replica| replica.server == server)
        {
            replica.suspect = None;
        }
    }

    /// A server came or went: everything it holds is to be looked at.
    pub fn touch_server(&mut self, server: ChunkServerId) {
        if let Some(chunks) = self.by_server.get(&server) {
            self.changed.extend(chunks.iter().copied());
        }
    }

    /// The server does not belong to the cluster any more: what it held does not count, now or later.
    pub fn forget_server(&mut self, server: ChunkServerId) {
        for chunk in self.by_server.remove(&server).into_iter().flatten() {
            self.remove(server, chunk);
        }
        self.listings.remove(&server);
    }

    /// Up to `most` chunks of a server, those after `after`, in order.
    pub fn chunks_on(&self, server: ChunkServerId, after: Option<ChunkId>, most: usize) -> Vec<ChunkId> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let chunks = self.by_server.get(&server).into_iter();
        chunks
            .flat_map(|chunks| chunks.range((from, std::ops::Bound::Unbounded)))
            .take(most)
            .copied()
            .collect()
    }

    /// Replicas in doubt.
    pub fn doubtful_replicas(&self) -> u64 {
        let replicas = self.chunks.values().flat_map(|entry| &entry.replicas);
        replicas.filter(|replica| replica.doubtful).count() as u64
    }

    /// Up to `most` chunks about which something changed.
    pub fn take_changed(&mut self, most: usize) -> Vec<ChunkId> {
        let taken: Vec<ChunkId> = self.changed.iter().take(most).copied().collect();
        for chunk in &taken {
            self.changed.remove(chunk);
        }
        taken
    }

    /// Replicas known to be corrupt.
    pub fn corrupt_replicas(&self) -> u64 {
        let replicas = self.chunks.values().flat_map(|entry| &entry.replicas);
        replicas.filter(|replica| replica.corrupt).count() as u64
    }

    fn replica_mut(
        &mut self,
        server: ChunkServerId,
        chunk: ChunkId,
        version: ChunkVersion,
        now: Instant,
    ) -> &mut Replica {
        let entry = self.chunks.entry(chunk).or_insert_with(|| Entry::new(now));
        let index = match entry.replicas.iter().position(|replica| replica.server == server) {
            Some(index) => index,
            None => {
                self.by_server.entry(server).or_default().insert(chunk);
                entry.replicas.push(Replica {
                    server,
                    version,
                    corrupt: false,
                    doubtful: false,
                    suspect: None,
                    confirmed: false,
                    since: now,
                    listing: 0,
                });
                entry.replicas.len() - 1
            }
        };
        &mut entry.replicas[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ChunkServerId = ChunkServerId(1);
    const B: ChunkServerId = ChunkServerId(2);
    const CHUNK: ChunkId = ChunkId(7);

    fn at(chunk: u64, version: u64) -> Reported {
        Reported {
            chunk: ChunkId(chunk),
            version: ChunkVersion(version),
            gone: false,
            corrupt: false,
            doubtful: false,
        }
    }

    #[test]
    fn a_full_list_removes_what_it_does_not_name() {
        let now = Instant::now();
        let mut directory = Directory::default();
        directory.begin_list(A);
        directory.report(A, at(7, 1), true, now);
        directory.report(A, at(8, 1), true, now);
        directory.end_list(A);
        directory.begin_list(A);
        directory.report(A, at(8, 2), true, now);
        directory.end_list(A);
        assert!(directory.entry(CHUNK).unwrap().replicas.is_empty());
        assert_eq!(directory.entry(ChunkId(8)).unwrap().on(A).unwrap().version, ChunkVersion(2));
    }

    #[test]
    fn a_promise_survives_a_list_that_does_not_name_it() {
        let now = Instant::now();
        let mut directory = Directory::default();
        directory.promise(CHUNK, ChunkVersion(1), &[A, B], now);
        directory.begin_list(A);
        directory.end_list(A);
        assert!(directory.entry(CHUNK).unwrap().on(A).is_some());
        directory.report(A, at(7, 1), false, now);
        directory.begin_list(A);
        directory.end_list(A);
        assert!(directory.entry(CHUNK).unwrap().on(A).is_none());
        assert!(directory.entry(CHUNK).unwrap().on(B).is_some());
    }

    #[test]
    fn a_promise_is_confirmed_by_a_report_and_a_copy_clears_doubt() {
        let now = Instant::now();
        let mut directory = Directory::default();
        directory.promise(CHUNK, ChunkVersion(1), &[A], now);
        assert!(!directory.entry(CHUNK).unwrap().on(A).unwrap().confirmed);
        directory.report(A, Reported { corrupt: true, ..at(7, 1) }, false, now);
        let replica = directory.entry(CHUNK).unwrap().on(A).unwrap();
        assert!(replica.confirmed && replica.corrupt);
        assert!(!directory.suspect(A, CHUNK, now), "known already");
        directory.copied(A, CHUNK, ChunkVersion(2), now);
        let replica = directory.entry(CHUNK).unwrap().on(A).unwrap();
        assert!(!replica.corrupt && replica.version == ChunkVersion(2));
        directory.report(A, Reported { gone: true, ..at(7, 2) }, false, now);
        assert!(directory.entry(CHUNK).unwrap().on(A).is_none());
    }
}

//! Which replicas a client may use.
//!
//! Read from: alive ones that are current, those that a client suspects only where there is no other.
//! Written to: only when they are *all* that may hold the version, which is known by their number: it
//! was committed with the version. Else a server, or a disk of one, that is away now would come back
//! with the same version and without the write. Where some are missing the version is raised first
//! ([`Write::Raise`]).
//!
//! A location that is good for reading only carries version 0: a ChunkServer lets a reader in whose version
//! is not newer than its own, and a writer only at exactly its own. So a client that keeps such a location
//! and writes with it later is refused, and asks again.

use std::time::{Duration, Instant};

use gofs_tree::{ChunkServerId, ChunkVersion};

use super::{
    Entry, Record, Replica, Server, ServerTable,
    directory::{newest_of, without_doubt},
};

/// What is known of servers at this moment, and since when this leader leads.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The servers.
    pub servers: &'a ServerTable,
    /// When the term began.
    pub began: Instant,
    /// Now.
    pub now: Instant,
    /// Whether every server has reported or had its time to.
    pub settled: bool,
    /// How long after the beginning a writer waits for servers that are not back.
    pub write_patience: Duration,
    /// The state comes from a backup, and servers have not had their time to report since.
    pub restoring: bool,
    /// After so long a server that is away does not count any more.
    pub repair_after: Duration,
}

/// Servers, with the addresses of their data doors.
pub type Servers = Vec<(ChunkServerId, String)>;

/// Where a chunk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// At this version on these live servers, at least one. On servers that are away where without them it would pass for a
    /// chunk that was never written ([`hidden_at`]): they are waited for.
    At {
        /// The committed version, or 0 where the location is good for reading only.
        version: ChunkVersion,
        /// The servers.
        servers: Servers,
    },
    /// Not known yet, or about to change: ask again after a short pause (answer RETRY).
    Wait,
    /// No flush ever put bytes into the chunk and no server has it: it reads as zeros.
    Unwritten,
    /// No live server has it at the committed version.
    Absent {
        /// A dead server had it, or was not heard of yet: it may come back (RETRY is honest;
        /// otherwise the bytes are lost: EIO).
        may_return: bool,
    },
    /// The state knows no such live chunk.
    NoChunk,
}

/// Where a chunk may be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// There, as it is.
    There(Location),
    /// On what is alive, after the version was raised.
    Raise,
}

/// Version of a location that is good for reading only.
pub const READ_ONLY: ChunkVersion = ChunkVersion(0);

/// Replicas for reading. [`Location::Unwritten`] is never the answer: that takes the file's record. Where no whole replica is
/// there, or will be soon, it is damaged ones: each block is checked, and most are good.
pub fn locate(view: &View<'_>, record: &Record, entry: Option<&Entry>) -> Location {
    let location = locate_whole(view, record, entry);
    let (Location::Absent { .. }, Some(entry)) = (&location, entry) else { return location };
    let damaged = damaged(view, record, entry);
    if damaged.is_empty() || surer_one_is_away(view, record, entry) {
        return location;
    }
    Location::At { version: READ_ONLY, servers: addresses(view, damaged.into_iter()) }
}

fn locate_whole(view: &View<'_>, record: &Record, entry: Option<&Entry>) -> Location {
    if record.deleted {
        return Location::NoChunk;
    }
    let replicas = entry.map_or(&[][..], |entry| &entry.replicas);
    let alive: Vec<&Replica> = replicas
        .iter()
        .filter(|replica| view.servers.is_alive(replica.server) && !replica.corrupt)
        .filter(|replica| replica.version >= record.version)
        .collect();
    let uncertain = record.copies == 0;
    if uncertain && view.restoring && !view.settled {
        // A server that is not there yet may have what was written after the backup.
        return Location::Wait;
    }
    let sure = alive.iter().any(|replica| !replica.doubtful);
    if !sure && !alive.is_empty() && entry.is_some_and(|entry| surer_one_is_away(view, record, entry)) {
        return Location::Absent { may_return: true };
    }
    let alive: Vec<&Replica> = alive.into_iter().filter(|replica| !(sure && replica.doubtful)).collect();
    let newest = alive.iter().map(|replica| replica.version).max().filter(|_| uncertain);
    let version = newest.unwrap_or(record.version);
    let current: Vec<&Replica> = alive.iter().copied().filter(|replica| replica.version == version).collect();
    // While a change is under way its replicas hold what was committed, and no write gets in.
    let good = if current.is_empty() { newest_of(alive) } else { current };
    let good = without_doubt(good);
    let trusted: Vec<&Replica> =
        good.iter().copied().filter(|replica| !replica.is_suspect(view.now)).collect();
    // Doubtful bytes are better than none: clients verify them.
    let chosen = if trusted.is_empty() { good.clone() } else { trusted };
    if !chosen.is_empty() {
        // A suspect that turns out to be good counts again: no writer may leave it out.
        let all = chosen.len() == good.len() && entry.is_some_and(|entry| is_complete(view, record, entry));
        let version = if all { record.version } else { READ_ONLY };
        return Location::At { version, servers: addresses(view, chosen.into_iter()) };
    }
    if !view.settled || view.servers.alive().any(|server| !server.listed) {
        return Location::Wait;
    }
    let dead_holder = replicas.iter().any(|replica| {
        !view.servers.is_alive(replica.server) && replica.version >= record.version && !replica.corrupt
    });
    let unseen = view.servers.iter().any(|server| !server.listed_before);
    Location::Absent { may_return: dead_holder || unseen }
}

/// Replicas for writing.
pub fn locate_to_write(view: &View<'_>, record: &Record, entry: Option<&Entry>) -> Write {
    let location = locate_whole(view, record, entry);
    let Some(entry) = entry else { return Write::There(location) };
    if !last_damaged(view, record, entry).is_empty() {
        return Write::Raise;
    }
    if !matches!(location, Location::At { .. }) {
        return Write::There(location);
    }
    if is_complete(view, record, entry) {
        let holders = entry.replicas.iter().filter(|replica| replica.version == record.version);
        return Write::There(Location::At { version: record.version, servers: addresses(view, holders) });
    }
    let patient = view.now.saturating_duration_since(view.began) < view.write_patience;
    if patient && !view.settled && !view.servers.all_seen() && !knows_all(record, entry) {
        return Write::There(Location::Wait);
    }
    Write::Raise
}

/// Damaged replicas on live servers that lack no write.
fn damaged<'a>(view: &View<'_>, record: &Record, entry: &'a Entry) -> Vec<&'a Replica> {
    let replicas = entry.replicas.iter().filter(|replica| view.servers.is_alive(replica.server));
    let current = replicas.filter(|replica| replica.version >= record.version && !replica.doubtful);
    newest_of(current.filter(|replica| replica.corrupt).collect())
}

/// The same where no server has a whole one, or may have it: only then are they written to, because that leaves any other behind. A
/// block that is written whole is good again.
pub(super) fn last_damaged<'a>(view: &View<'_>, record: &Record, entry: &'a Entry) -> Vec<&'a Replica> {
    match locate_whole(view, record, Some(entry)) {
        Location::Absent { may_return: false } => damaged(view, record, entry),
        _ => Vec::new(),
    }
}

/// Whether all that may hold the committed version, or one after it, are alive, at it and without doubt.
fn is_complete(view: &View<'_>, record: &Record, entry: &Entry) -> bool {
    let not_stale = entry.replicas.iter().filter(|replica| replica.version >= record.version);
    knows_all(record, entry)
        && not_stale.into_iter().all(|replica| {
            let counts = !replica.corrupt && !replica.doubtful;
            counts && replica.version == record.version && view.servers.is_alive(replica.server)
        })
}

/// Whether a server that is away for a short time, or has not listed its chunks yet, has, or may have, a replica without
/// doubt: those in doubt wait for it, because it has the writes that they may lack.
pub fn surer_one_is_away(view: &View<'_>, record: &Record, entry: &Entry) -> bool {
    let is_away = |server: &Server| {
        let since = server.down_since.filter(|_| !server.is_alive());
        since.is_some_and(|since| view.now.saturating_duration_since(since) < view.repair_after)
    };
    let is_surer =
        |replica: &Replica| replica.version >= record.version && !replica.corrupt && !replica.doubtful;
    let mut surer = entry.replicas.iter().filter(|replica| is_surer(replica));
    let unseen = view.servers.iter().filter(|server| !server.listed_before);
    let mut unseen = unseen.filter(|server| entry.on(server.id).is_none());
    surer.any(|replica| view.servers.get(replica.server).is_some_and(is_away))
        || !knows_all(record, entry) && unseen.any(|server| server.is_alive() || is_away(server))
}

/// Whether a server said in this term that it has the chunk as it was committed, or as it is about to be. Else it may only have been
/// promised.
pub fn was_told(record: &Record, entry: &Entry) -> bool {
    told(record, entry).next().is_some()
}

/// Of the servers that said so those that are away, if no other can be read at this location: the bytes come back with them, while
/// those that are there were only promised the chunk, or may lack writes.
pub fn hidden_at(view: &View<'_>, record: &Record, entry: &Entry, location: &Location) -> Option<Servers> {
    let is_there = |replica: &&Replica| view.servers.is_alive(replica.server);
    let hidden = match location {
        Location::At { .. } => !told(record, entry).any(|replica| is_there(&replica)),
        Location::Absent { may_return } => *may_return,
        Location::Wait | Location::Unwritten | Location::NoChunk => false,
    };
    let away = told(record, entry).filter(|replica| !is_there(replica)).collect();
    (hidden && was_told(record, entry)).then(|| addresses(view, without_doubt(away).into_iter()))
}

fn told<'a>(record: &Record, entry: &'a Entry) -> impl Iterator<Item = &'a Replica> + use<'a> {
    let version = record.version;
    entry.replicas.iter().filter(move |replica| replica.confirmed && replica.version >= version)
}

/// Whether every replica that there can be at the committed version is known.
pub(super) fn knows_all(record: &Record, entry: &Entry) -> bool {
    let known = entry.replicas.iter().filter(|replica| replica.version == record.version).count();
    let placed = entry.placed.filter(|(version, _)| *version == record.version);
    let all = placed.map_or(record.copies as usize, |(_, servers)| servers);
    all > 0 && known >= all
}

fn addresses<'a>(
    view: &View<'_>,
    replicas: impl Iterator<Item = &'a Replica>,
) -> Vec<(ChunkServerId, String)> {
    replicas
        .filter_map(|replica| view.servers.get(replica.server))
        .map(|server| (server.id, server.address.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gofs_tree::ChunkId;

    use super::*;
    use crate::chunks::{Directory, Reported};

    const CHUNK: ChunkId = ChunkId(1);
    const A: ChunkServerId = ChunkServerId(1);
    const B: ChunkServerId = ChunkServerId(2);

    struct World {
        servers: ServerTable,
        directory: Directory,
        record: Record,
        settled: bool,
        restoring: bool,
        began: Instant,
    }

    impl World {
        /// Two servers that have listed the chunk at version 5.
        fn new() -> Self {
            let mut servers = ServerTable::default();
            let mut directory = Directory::default();
            let began = Instant::now();
            for id in [A, B] {
                servers.connected(id, format!("10.0.0.{}:1", id.0), BTreeMap::new(), id.0, began);
                let server = servers.get_mut(id).unwrap();
                server.listed = true;
                server.listed_before = true;
                directory.holds(id, CHUNK, ChunkVersion(5), began);
            }
            let record = Record { version: ChunkVersion(5), copies: 2, goal: 2, deleted: false };
            World { servers, directory, record, settled: true, restoring: false, began }
        }

        fn view(&self, after: Duration) -> View<'_> {
            View {
                servers: &self.servers,
                began: self.began,
                now: self.began + after,
                settled: self.settled,
                write_patience: Duration::from_secs(3),
                restoring: self.restoring,
                repair_after: Duration::from_secs(15),
            }
        }

        fn read(&self) -> Location {
            locate(&self.view(Duration::from_secs(1)), &self.record, self.directory.entry(CHUNK))
        }

        fn write(&self, after: u64) -> Write {
            let view = self.view(Duration::from_secs(after));
            locate_to_write(&view, &self.record, self.directory.entry(CHUNK))
        }
    }

    fn at(version: u64, servers: &[ChunkServerId]) -> Location {
        let servers = servers.iter().map(|&id| (id, format!("10.0.0.{}:1", id.0))).collect();
        Location::At { version: ChunkVersion(version), servers }
    }

    #[test]
    fn all_holders_alive_may_be_written() {
        let world = World::new();
        assert_eq!(world.read(), at(5, &[A, B]));
        assert_eq!(world.write(1), Write::There(at(5, &[A, B])));
    }

    #[test]
    fn with_a_holder_dead_readers_get_a_location_that_no_writer_can_use() {
        let mut world = World::new();
        world.servers.disconnected(B, B.0, world.began);
        assert_eq!(world.read(), at(0, &[A]));
        assert_eq!(world.write(1), Write::Raise);
    }

    #[test]
    fn a_dead_holder_of_a_newer_version_keeps_writers_from_the_committed_one() {
        let mut world = World::new();
        world.directory.holds(B, CHUNK, ChunkVersion(6), world.began);
        world.servers.disconnected(B, B.0, world.began);
        assert_eq!(world.write(1), Write::Raise);
    }

    #[test]
    fn a_new_leader_gives_servers_time_before_a_writer_goes_on_without_them() {
        let mut world = World::new();
        world.record.copies = 3;
        world.settled = false;
        world.servers.know(ChunkServerId(3), "10.0.0.3:1".into(), BTreeMap::new(), world.began);
        assert_eq!(world.read(), at(0, &[A, B]));
        assert_eq!(world.write(1), Write::There(Location::Wait));
        assert_eq!(world.write(4), Write::Raise);
    }

    #[test]
    fn a_server_that_cannot_have_the_chunk_is_not_waited_for() {
        let mut world = World::new();
        world.settled = false;
        world.servers.know(ChunkServerId(3), "10.0.0.3:1".into(), BTreeMap::new(), world.began);
        assert_eq!(world.write(1), Write::There(at(5, &[A, B])));
    }

    #[test]
    fn a_version_is_not_written_again_after_one_of_its_replicas_vanished() {
        let mut world = World::new();
        let gone =
            Reported { chunk: CHUNK, version: ChunkVersion(0), gone: true, corrupt: false, doubtful: false };
        world.directory.report(B, gone, false, world.began);
        assert_eq!(world.read(), at(0, &[A]));
        assert_eq!(world.write(1), Write::Raise);
        world.record = Record { version: ChunkVersion(6), copies: 1, ..world.record };
        world.directory.holds(A, CHUNK, ChunkVersion(6), world.began);
        assert_eq!(world.write(1), Write::There(at(6, &[A])));
    }

    #[test]
    fn a_replica_that_fell_back_to_an_older_version_has_vanished_too() {
        let mut world = World::new();
        let older =
            Reported { chunk: CHUNK, version: ChunkVersion(4), gone: false, corrupt: false, doubtful: false };
        world.directory.report(B, older, false, world.began);
        assert_eq!(world.write(1), Write::Raise);
    }

    #[test]
    fn a_new_leader_misses_a_replica_that_vanished_before_its_term() {
        let mut world = World::new();
        world.record.copies = 3;
        assert_eq!(world.write(1), Write::Raise);
        // The namespace asks for fewer by now: who may have the version does not change by that.
        world.record.goal = 1;
        assert_eq!(world.write(1), Write::Raise);
        world.record.copies = 0;
        assert_eq!(world.write(1), Write::Raise, "not known from before");
    }

    #[test]
    fn a_chunk_placed_on_fewer_servers_than_asked_for_may_be_written_there() {
        let mut world = World::new();
        let first = ChunkVersion(9);
        world.record = Record { version: first, copies: 3, ..world.record };
        world.directory.promise(CHUNK, first, &[A, B], world.began);
        assert_eq!(world.write(1), Write::There(at(9, &[A, B])));
        let gone = Reported { chunk: CHUNK, version: first, gone: true, corrupt: false, doubtful: false };
        world.directory.report(B, gone, false, world.began);
        assert_eq!(world.write(1), Write::Raise);
    }

    #[test]
    fn nothing_is_lost_before_servers_had_their_time() {
        let mut world = World::new();
        world.directory.remove(A, CHUNK);
        world.directory.remove(B, CHUNK);
        assert_eq!(world.read(), Location::Absent { may_return: false });
        world.settled = false;
        assert_eq!(world.read(), Location::Wait);
        world.settled = true;
        world.servers.know(ChunkServerId(3), "10.0.0.3:1".into(), BTreeMap::new(), world.began);
        assert_eq!(world.read(), Location::Absent { may_return: true });
    }

    #[test]
    fn after_a_restore_the_newest_replica_is_read_and_none_before_servers_had_their_time() {
        let mut world = World::new();
        // Committed after the backup, by a leader that the restored state does not know of.
        world.directory.holds(B, CHUNK, ChunkVersion(9), world.began);
        world.record.copies = 0;
        world.restoring = true;
        world.settled = false;
        assert_eq!(world.read(), Location::Wait);
        assert_eq!(world.write(9), Write::There(Location::Wait));
        world.settled = true;
        assert_eq!(world.read(), at(0, &[B]), "not A, which is at the version that the state knows");
        assert_eq!(world.write(9), Write::Raise);
        // Once settled it is as any other in the next leader's term.
        world.restoring = false;
        world.settled = false;
        assert_eq!(world.read(), at(0, &[B]));
    }

    #[test]
    fn a_doubtful_replica_is_not_read_beside_a_sure_one_and_never_written() {
        let mut world = World::new();
        let line =
            Reported { chunk: CHUNK, version: ChunkVersion(5), gone: false, corrupt: false, doubtful: true };
        world.directory.report(A, line, false, world.began);
        assert_eq!(world.read(), at(0, &[B]));
        assert_eq!(world.write(1), Write::Raise);
        // They may differ: every reader gets the same one.
        world.directory.report(B, line, false, world.began);
        assert_eq!(world.read(), at(0, &[A]));
        assert_eq!(world.write(1), Write::Raise);
    }

    #[test]
    fn a_doubtful_replica_waits_for_a_sure_one_that_is_away_until_that_one_is_written_off() {
        let mut world = World::new();
        let line =
            Reported { chunk: CHUNK, version: ChunkVersion(5), gone: false, corrupt: false, doubtful: true };
        world.directory.report(A, line, false, world.began);
        world.servers.disconnected(B, B.0, world.began);
        let waits = Location::Absent { may_return: true };
        assert_eq!(world.read(), waits, "what B has was acknowledged");
        assert_eq!(world.write(14), Write::There(waits.clone()));
        assert_eq!(world.write(15), Write::Raise);
        let late = world.view(Duration::from_secs(15));
        assert_eq!(locate(&late, &world.record, world.directory.entry(CHUNK)), at(0, &[A]));

        // In the next leader's term nothing is known of it but that there must be one.
        let mut world = World::new();
        world.directory = Directory::default();
        world.directory.report(A, line, false, world.began);
        world.servers = ServerTable::default();
        world.servers.connected(A, "10.0.0.1:1".into(), BTreeMap::new(), 1, world.began);
        assert_eq!(world.read(), at(0, &[A]), "there is no other server");
        world.servers.know(B, "10.0.0.2:1".into(), BTreeMap::new(), world.began);
        assert_eq!(world.read(), waits);
        // It is there, and its list of chunks is on its way.
        let back = world.began + Duration::from_secs(10);
        world.servers.connected(B, "10.0.0.2:1".into(), BTreeMap::new(), 2, back);
        assert_eq!(world.write(11), Write::There(waits));
    }

    #[test]
    fn a_damaged_replica_is_read_where_no_whole_one_is_left_and_written_where_none_may_return() {
        let mut world = World::new();
        let line =
            Reported { chunk: CHUNK, version: ChunkVersion(5), gone: false, corrupt: true, doubtful: false };
        world.directory.report(A, line, false, world.began);
        assert_eq!(world.read(), at(0, &[B]));
        world.servers.disconnected(B, B.0, world.began);
        let waits = Location::Absent { may_return: true };
        assert_eq!(world.read(), waits, "a restart is waited for");
        let late = world.view(Duration::from_secs(15));
        assert_eq!(locate(&late, &world.record, world.directory.entry(CHUNK)), at(0, &[A]));
        assert_eq!(world.write(15), Write::There(waits), "B would be left behind, with what is damaged on A");

        let mut world = World::new();
        world.directory.report(A, line, false, world.began);
        world.directory.report(B, line, false, world.began);
        assert_eq!(world.read(), at(0, &[A, B]));
        assert_eq!(world.write(1), Write::Raise);
        world.settled = false;
        assert_eq!(world.read(), Location::Wait);
    }

    #[test]
    fn a_suspect_replica_is_read_only_where_there_is_no_other_and_written_to_as_any() {
        let mut world = World::new();
        assert!(world.directory.suspect(A, CHUNK, world.began));
        assert_eq!(world.read(), at(0, &[B]), "who writes at version 5 writes to A, too");
        assert_eq!(world.write(1), Write::There(at(5, &[A, B])));
        assert!(world.directory.suspect(B, CHUNK, world.began));
        assert_eq!(world.read(), at(5, &[A, B]));
    }
}

//! Which replicas a client may use.
//!
//! Read from: alive ones at the committed version. Written to: only when they
//! are *all* that may hold that version, else a server that is away now would come
//! back with the same version and without the write. Where some are
//! missing the version is raised first ([`Write::Raise`]).

use std::time::{Duration, Instant};

use gofs_tree::{ChunkServerId, ChunkVersion};

use super::{Entry, Record, Replica, ServerTable, version::chosen_in};

/// What is known of servers at this moment, and since when this leader leads.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The servers.
    pub servers: &'a ServerTable,
    /// The leader's term.
    pub term: u64,
    /// When the term began.
    pub began: Instant,
    /// Now.
    pub now: Instant,
    /// Whether every server has reported or had its time to.
    pub settled: bool,
    /// How long after the beginning a writer waits for servers that are not back.
    pub write_patience: Duration,
}

/// Where a chunk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// At this version on these live servers, at least one.
    At {
        /// The committed version.
        version: ChunkVersion,
        /// Servers with the addresses of their data doors.
        servers: Vec<(ChunkServerId, String)>,
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

/// Replicas for reading. [`Location::Unwritten`] is never the answer: that takes the file's record.
pub fn locate(view: &View<'_>, record: &Record, entry: Option<&Entry>) -> Location {
    if record.deleted {
        return Location::NoChunk;
    }
    let replicas = entry.map_or(&[][..], |entry| &entry.replicas);
    let alive = |replica: &&Replica| view.servers.is_alive(replica.server) && !replica.corrupt;
    let current: Vec<&Replica> =
        replicas.iter().filter(alive).filter(|replica| replica.version == record.version).collect();
    let trusted: Vec<&Replica> =
        current.iter().copied().filter(|replica| !replica.is_suspect(view.now)).collect();
    // Doubtful bytes are better than none: clients verify them.
    let chosen = if trusted.is_empty() { current } else { trusted };
    if !chosen.is_empty() {
        return Location::At { version: record.version, servers: addresses(view, chosen.into_iter()) };
    }
    if replicas.iter().filter(alive).any(|replica| replica.version > record.version) {
        return Location::Wait;
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
    let location = locate(view, record, entry);
    let (Location::At { version, .. }, Some(entry)) = (&location, entry) else {
        return Write::There(location);
    };
    // A newer version on a live server: a change is under way and about to refuse this write.
    // On a dead one: it would come back and win over what is written now.
    let newer = || entry.replicas.iter().filter(|replica| replica.version > *version);
    if newer().any(|replica| view.servers.is_alive(replica.server)) {
        return Write::There(Location::Wait);
    }
    let holders: Vec<&Replica> =
        entry.replicas.iter().filter(|replica| replica.version == *version).collect();
    let all_good = newer().next().is_none()
        && holders.iter().all(|replica| view.servers.is_alive(replica.server) && !replica.corrupt);
    let all_known = chosen_in(view.term, *version) || entry.born_here || view.servers.all_seen();
    if all_good && all_known {
        return Write::There(Location::At {
            version: *version,
            servers: addresses(view, holders.into_iter()),
        });
    }
    let patient = view.now.saturating_duration_since(view.began) < view.write_patience;
    if !all_known && patient && !view.settled {
        return Write::There(Location::Wait);
    }
    Write::Raise
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

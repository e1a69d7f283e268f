//! How the set of replicas of one chunk changes without any of them being wrong.
//!
//! The rule: **a version is committed only when every server that was ever asked
//! to take it has said yes**. A server that did not answer may have taken it or
//! may take it later, so the others go on to a version after it, which only they
//! were asked for. And a version under which a copy runs is handed to no writer
//! before the copy is complete:
//!
//! 1. raise the version on the replicas that stay (uncommitted): writers with the
//!    old version are refused by them from here on, and told to wait by us;
//! 2. if a replica is to be made: the target copies from them at that version;
//! 3. commit. Copy failed: raise once more (a late copy is stale then), commit without it.
//!
//! A leader that dies in between leaves replicas newer than the committed version; the next one
//! raises those past every other ([`judge`](super::judge)). Versions of two terms never meet
//! ([`version`](super::version)).

use gofs_tree::{ChunkServerId, ChunkVersion};

use super::{Entry, Record, ServerTable, version::next_version};

/// What to do next; afterwards tell [`Change::answered`] which servers said yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Have each of these servers move the chunk from the version given with it.
    Raise {
        /// Servers with the version that each holds.
        servers: Vec<(ChunkServerId, ChunkVersion)>,
        /// The version to take.
        to: ChunkVersion,
    },
    /// Have the target copy the chunk from any of the sources.
    Copy {
        /// The server that gets a replica.
        target: ChunkServerId,
        /// Servers that have it.
        sources: Vec<ChunkServerId>,
        /// The version that they hold and the copy gets.
        version: ChunkVersion,
    },
    /// Commit the version; these servers hold it. Nothing follows.
    Commit {
        /// Version in the state so far.
        from: ChunkVersion,
        /// Version to commit.
        to: ChunkVersion,
        /// Its replicas.
        holders: Vec<ChunkServerId>,
        /// Whether the copy that was asked for was made.
        copied: bool,
    },
    /// No server could be raised: nothing is committed, nothing has changed for readers.
    NoSurvivor,
}

/// A change under way.
#[derive(Debug)]
pub struct Change {
    term: u64,
    committed: ChunkVersion,
    to: ChunkVersion,
    asked: Vec<ChunkServerId>,
    target: Option<ChunkServerId>,
    copying: bool,
    copied: bool,
}

impl Change {
    /// Begins a change that leaves out `without` and every dead or corrupt
    /// replica. Those stay that have the newest version, if that is the committed
    /// one or a later one. `target` gets a copy.
    pub fn start(
        term: u64,
        record: &Record,
        entry: &Entry,
        servers: &ServerTable,
        without: &[ChunkServerId],
        target: Option<ChunkServerId>,
    ) -> (Change, Step) {
        let staying = entry.replicas.iter().filter(|replica| {
            replica.version >= record.version
                && !replica.corrupt
                && servers.is_alive(replica.server)
                && !without.contains(&replica.server)
                && target != Some(replica.server)
        });
        let newest = staying.clone().map(|replica| replica.version).max().unwrap_or(record.version);
        let staying: Vec<(ChunkServerId, ChunkVersion)> = staying
            .filter(|replica| replica.version == newest)
            .map(|replica| (replica.server, replica.version))
            .collect();
        let known = entry.replicas.iter().map(|replica| replica.version).max().unwrap_or(record.version);
        let mut change = Change {
            term,
            committed: record.version,
            to: known.max(entry.asked).max(record.version),
            asked: Vec::new(),
            target,
            copying: false,
            copied: false,
        };
        let step = change.raise(staying);
        (change, step)
    }

    /// All servers of the last step answered or had their time; these said yes.
    pub fn answered(&mut self, yes: &[ChunkServerId]) -> Step {
        if self.copying {
            self.copying = false;
            self.copied = self.target.is_some_and(|target| yes.contains(&target));
            if self.copied {
                let mut holders = self.asked.clone();
                holders.extend(self.target);
                return self.commit(holders);
            }
            self.target = None;
            let version = self.to;
            return self.raise(self.asked.iter().map(|&server| (server, version)).collect());
        }
        let stay: Vec<ChunkServerId> = self.asked.iter().copied().filter(|id| yes.contains(id)).collect();
        if stay.is_empty() {
            return Step::NoSurvivor;
        }
        if stay.len() < self.asked.len() {
            let version = self.to;
            return self.raise(stay.into_iter().map(|server| (server, version)).collect());
        }
        match self.target {
            Some(target) => {
                self.copying = true;
                Step::Copy { target, sources: stay, version: self.to }
            }
            None => self.commit(stay),
        }
    }

    fn raise(&mut self, servers: Vec<(ChunkServerId, ChunkVersion)>) -> Step {
        if servers.is_empty() {
            return Step::NoSurvivor;
        }
        self.to = next_version(self.term, self.to);
        self.asked = servers.iter().map(|&(server, _)| server).collect();
        Step::Raise { servers, to: self.to }
    }

    fn commit(&self, holders: Vec<ChunkServerId>) -> Step {
        Step::Commit { from: self.committed, to: self.to, holders, copied: self.copied }
    }
}

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
//! 3. if another replica is to be given up for it: raise all but that one once more, which leaves it behind;
//! 4. commit. Copy failed: raise once more (a late copy is stale then), commit without it. Somebody did not answer
//!    the raise that leaves a replica behind: raise the others together with that one, nothing is given up. Nor is anything
//!    where somebody did not answer before.
//!
//! Replicas in doubt (they may lack acknowledged writes) are left behind by every change, beside others or beside the
//! one of them that wins: a raise ends the doubt on a server, so it must never reach two that may differ.
//!
//! A leader that dies in between leaves replicas newer than the committed version; the next one
//! raises those past every other ([`judge`](super::judge)). Versions of two terms never meet
//! ([`version`](super::version)).

use gofs_tree::{ChunkServerId, ChunkVersion};

use super::{
    Entry, Record, Replica,
    directory::{newest_of, without_doubt},
    locate::{View, last_damaged, surer_one_is_away},
    version::{next_version, next_version_with_loss},
};

/// What to do next; afterwards tell [`Change::answered`] which servers said yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Have each of these servers move the chunk from the version given with it.
    Raise {
        /// Servers with the version that each holds.
        servers: Vec<(ChunkServerId, ChunkVersion)>,
        /// The version to take: one of another loss where it is not sure.
        to: ChunkVersion,
        /// Whether a replica in doubt refuses: none that was asked is known to be. Its server may have lost its power
        /// since it was heard of.
        sure: bool,
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

/// How the set of replicas is to change.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Servers whose replicas are left out.
    pub without: &'a [ChunkServerId],
    /// Servers whose replicas are left out, too, but stay where another does not answer.
    pub spare: &'a [ChunkServerId],
    /// A server that gets a copy.
    pub target: Option<ChunkServerId>,
    /// A server whose replica is given up once the copy is made, and stays where it is not.
    pub leaving: Option<ChunkServerId>,
}

/// What was asked for last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Raise,
    Copy,
    /// All but this server were raised from the version given with it, at which it stays.
    Leave(ChunkServerId, ChunkVersion),
}

/// A change under way.
#[derive(Debug)]
pub struct Change {
    term: u64,
    committed: ChunkVersion,
    to: ChunkVersion,
    asked: Vec<ChunkServerId>,
    spare: Vec<(ChunkServerId, ChunkVersion)>,
    target: Option<ChunkServerId>,
    leaving: Option<ChunkServerId>,
    phase: Phase,
    copied: bool,
}

impl Change {
    /// Begins a change that leaves out every dead, corrupt or doubtful replica, too; corrupt ones not where no server has, or may
    /// have, another. Those stay that have the newest version, if that is the committed one or a later one. None does where
    /// all are in doubt and one that is not may be back soon.
    pub fn start(
        term: u64,
        record: &Record,
        entry: &Entry,
        view: &View<'_>,
        wanted: Wanted<'_>,
    ) -> (Change, Step) {
        let servers = view.servers;
        let good = entry.replicas.iter().filter(|replica| {
            replica.version >= record.version
                && !replica.corrupt
                && servers.is_alive(replica.server)
                && wanted.target != Some(replica.server)
        });
        // A doubtful one gives way to any that is not, also to one of an earlier version that was never committed, and
        // also to one that is left out: what a writer could not reach for once is not what it may replace.
        let sure = good.clone().any(|replica| !replica.doubtful);
        let waits = !sure && surer_one_is_away(view, record, entry);
        let staying = good.filter(|replica| !waits && !wanted.without.contains(&replica.server));
        let staying: Vec<&Replica> = staying.filter(|replica| !(sure && replica.doubtful)).collect();
        let staying = without_doubt(newest_of(staying));
        let damaged = last_damaged(view, record, entry).into_iter();
        let damaged = damaged.filter(|replica| wanted.target != Some(replica.server));
        let damaged = damaged.filter(|replica| !wanted.without.contains(&replica.server));
        let staying = if staying.is_empty() { damaged.collect() } else { staying };
        let doubtful = staying.iter().any(|replica| replica.doubtful);
        let staying = staying.into_iter().map(|it| (it.server, it.version));
        let (mut spare, mut staying): (Vec<_>, Vec<_>) =
            staying.partition(|(server, _)| wanted.spare.contains(server));
        if staying.is_empty() {
            staying.append(&mut spare);
        }
        let known = entry.replicas.iter().map(|replica| replica.version).max().unwrap_or(record.version);
        let mut change = Change {
            term,
            committed: record.version,
            to: known.max(entry.asked).max(record.version),
            asked: Vec::new(),
            spare,
            target: wanted.target,
            leaving: wanted.leaving,
            phase: Phase::Raise,
            copied: false,
        };
        let step = change.raise(staying, !doubtful);
        (change, step)
    }

    /// All servers of the last step answered or had their time; these said yes.
    pub fn answered(&mut self, yes: &[ChunkServerId]) -> Step {
        match std::mem::replace(&mut self.phase, Phase::Raise) {
            Phase::Raise => self.raised(yes),
            Phase::Copy => self.copy_ended(yes),
            Phase::Leave(server, version) => self.left_behind(yes, server, version),
        }
    }

    fn raised(&mut self, yes: &[ChunkServerId]) -> Step {
        let stay = self.asked_and(yes);
        if stay.is_empty() {
            return Step::NoSurvivor;
        }
        if stay.len() < self.asked.len() {
            // One replica less: no other is given up.
            self.leaving = None;
            let mut servers = self.at_present(stay);
            servers.append(&mut self.spare);
            return self.raise(servers, true);
        }
        match self.target {
            Some(target) => {
                self.phase = Phase::Copy;
                Step::Copy { target, sources: stay, version: self.to }
            }
            None => self.commit(),
        }
    }

    fn copy_ended(&mut self, yes: &[ChunkServerId]) -> Step {
        let made = self.target.take().filter(|target| yes.contains(target));
        self.copied = made.is_some();
        let Some(target) = made else {
            return self.raise(self.at_present(self.asked.clone()), true);
        };
        self.asked.push(target);
        match self.leaving.take().filter(|server| self.asked.contains(server)) {
            Some(server) => {
                let others = self.asked.iter().copied().filter(|other| *other != server).collect();
                let (version, others) = (self.to, self.at_present(others));
                self.phase = Phase::Leave(server, version);
                self.raise(others, true)
            }
            None => self.commit(),
        }
    }

    fn left_behind(&mut self, yes: &[ChunkServerId], server: ChunkServerId, version: ChunkVersion) -> Step {
        let stay = self.asked_and(yes);
        if stay.len() == self.asked.len() {
            return self.commit();
        }
        let mut all = self.at_present(stay);
        all.push((server, version));
        self.raise(all, true)
    }

    fn asked_and(&self, yes: &[ChunkServerId]) -> Vec<ChunkServerId> {
        self.asked.iter().copied().filter(|id| yes.contains(id)).collect()
    }

    fn at_present(&self, servers: Vec<ChunkServerId>) -> Vec<(ChunkServerId, ChunkVersion)> {
        servers.into_iter().map(|server| (server, self.to)).collect()
    }

    fn raise(&mut self, servers: Vec<(ChunkServerId, ChunkVersion)>, sure: bool) -> Step {
        if servers.is_empty() {
            return Step::NoSurvivor;
        }
        self.to =
            if sure { next_version(self.term, self.to) } else { next_version_with_loss(self.term, self.to) };
        self.asked = servers.iter().map(|&(server, _)| server).collect();
        Step::Raise { servers, to: self.to, sure }
    }

    fn commit(&self) -> Step {
        Step::Commit { from: self.committed, to: self.to, holders: self.asked.clone(), copied: self.copied }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        time::{Duration, Instant},
    };

    use gofs_tree::ChunkId;

    use super::*;
    use crate::chunks::{Directory, ServerTable};

    const CHUNK: ChunkId = ChunkId(1);
    const A: ChunkServerId = ChunkServerId(1);
    const B: ChunkServerId = ChunkServerId(2);
    const C: ChunkServerId = ChunkServerId(3);

    /// A change of a chunk that is on these servers, all of which are alive.
    fn start(holders: &[ChunkServerId], goal: u32, wanted: Wanted<'_>) -> (Change, Step) {
        let (mut servers, mut directory) = (ServerTable::default(), Directory::default());
        let (version, now) = (ChunkVersion(5), Instant::now());
        for id in [A, B, C] {
            servers.connected(id, format!("10.0.0.{}:1", id.0), BTreeMap::new(), id.0, now);
        }
        for id in holders {
            directory.holds(*id, CHUNK, version, now);
        }
        let view = View {
            servers: &servers,
            began: now,
            now,
            settled: true,
            write_patience: Duration::from_secs(3),
            restoring: false,
            repair_after: Duration::from_secs(15),
        };
        let record = Record { version, copies: holders.len() as u32, goal, deleted: false };
        Change::start(1, &record, directory.entry(CHUNK).unwrap(), &view, wanted)
    }

    fn asked(step: &Step) -> Vec<ChunkServerId> {
        let Step::Raise { servers, .. } = step else { panic!("{step:?}") };
        servers.iter().map(|(server, _)| *server).collect()
    }

    fn committed(step: &Step) -> Vec<ChunkServerId> {
        let Step::Commit { holders, .. } = step else { panic!("{step:?}") };
        holders.clone()
    }

    #[test]
    fn a_replica_that_moves_stays_where_another_does_not_answer() {
        let wanted = Wanted { target: Some(C), leaving: Some(B), ..Wanted::default() };
        let (mut change, step) = start(&[A, B], 2, wanted);
        assert_eq!(asked(&step), [A, B]);
        assert_eq!(asked(&change.answered(&[B])), [B]);
        assert!(matches!(change.answered(&[B]), Step::Copy { target: C, .. }));
        assert_eq!(committed(&change.answered(&[C])), [B, C]);

        let (mut change, _) = start(&[A, B], 2, wanted);
        change.answered(&[A, B]);
        assert_eq!(asked(&change.answered(&[C])), [A, C], "all did");
        assert_eq!(committed(&change.answered(&[A, C])), [A, C]);
    }

    #[test]
    fn a_replica_too_many_stays_where_another_does_not_answer() {
        let wanted = Wanted { spare: &[C], ..Wanted::default() };
        let (mut change, step) = start(&[A, B, C], 2, wanted);
        assert_eq!(asked(&step), [A, B]);
        let Step::Raise { servers, to, .. } = change.answered(&[B]) else { panic!() };
        assert_eq!(servers.iter().map(|(server, _)| *server).collect::<Vec<_>>(), [B, C]);
        assert!(servers[0].1 > ChunkVersion(5) && servers[1].1 == ChunkVersion(5) && to > servers[0].1);
        assert_eq!(committed(&change.answered(&[B, C])), [B, C]);

        let (mut change, _) = start(&[A, B, C], 2, wanted);
        assert_eq!(committed(&change.answered(&[A, B])), [A, B], "all did");
    }
}

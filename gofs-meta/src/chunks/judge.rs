//! What is to be done about one chunk: the planner of repair and deletion.
//!
//! Sync and without memory of its own but the two notes in [`Entry`]. Asked only when the
//! leader has *settled*: every server has reported or had its time to.
//!
//! Nothing is ever deleted at the committed version of a live chunk: a replica
//! that is to go is first left behind by a raise of the version, so that no
//! writer with an old location can bring it to life again, and deleted as stale afterwards,
//! when as many current ones exist as the goal asks.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use gofs_tree::{ChunkServerId, ChunkVersion};

use super::{
    ChunkConfig, Entry, Reason, Replica, ServerTable, directory::without_doubt, locate::knows_all, placement,
};

/// The chunk as the state has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Committed version.
    pub version: ChunkVersion,
    /// Most servers that can have it at that version; 0 = not known.
    pub copies: u32,
    /// Replicas wanted; 0 = leave it alone.
    pub goal: u32,
    /// No file refers to it any more.
    pub deleted: bool,
}

/// How a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// As many current replicas as wanted, or more.
    Healthy,
    /// Fewer, but at least one.
    Under,
    /// No live server has a current one.
    Lost,
    /// To be deleted.
    Deleting,
    /// On servers, but not in the state.
    Orphan,
}

impl Health {
    /// The word for people.
    pub fn name(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Under => "under-replicated",
            Health::Lost => "lost",
            Health::Deleting => "to be deleted",
            Health::Orphan => "unknown to the state",
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How the chunk is.
    pub health: Health,
    /// Current replicas on live servers, seen there.
    pub current: u32,
    /// Replicas to delete, of this version or older.
    pub delete: Vec<(ChunkServerId, ChunkVersion)>,
    /// Raise the version without these servers.
    pub raise_without: Option<Vec<ChunkServerId>>,
    /// Make one more replica.
    pub repair: bool,
    /// Make one elsewhere, then give this one up.
    pub relocate: Option<(ChunkServerId, Reason)>,
    /// The state may forget the chunk.
    pub forget: bool,
}

impl Verdict {
    fn nothing(health: Health, current: u32) -> Self {
        Verdict {
            health,
            current,
            delete: Vec::new(),
            raise_without: None,
            repair: false,
            relocate: None,
            forget: false,
        }
    }
}

/// Looks at a chunk whose record is `record` (`None`: the state does not know it, and
/// `issued` says whether its id was ever given out, is not reserved for a session, and is none that a restored state may
/// just not know).
pub fn judge(
    config: &ChunkConfig,
    servers: &ServerTable,
    record: Option<&Record>,
    issued: bool,
    entry: Option<&mut Entry>,
    now: Instant,
) -> Verdict {
    match (record, entry) {
        (None, None) => Verdict::nothing(Health::Orphan, 0),
        (None, Some(entry)) => judge_orphan(config, servers, issued, entry, now),
        (Some(record), entry) if record.deleted => judge_deleted(config, servers, record, entry, now),
        (Some(_), None) => Verdict::nothing(Health::Lost, 0),
        (Some(record), Some(entry)) => judge_live(config, servers, record, entry, now),
    }
}

fn judge_orphan(
    config: &ChunkConfig,
    servers: &ServerTable,
    issued: bool,
    entry: &Entry,
    now: Instant,
) -> Verdict {
    let mut verdict = Verdict::nothing(Health::Orphan, 0);
    // An id that was never given out: the state is older than the chunk (a restored
    // backup), or the server belongs elsewhere. Not ours to delete. One that is reserved: the session
    // that writes it is about to give it to a file.
    if issued && now.saturating_duration_since(entry.seen) >= config.orphan_grace {
        verdict.delete = on_live_servers(servers, entry).map(|r| (r.server, r.version)).collect();
    }
    verdict
}

fn judge_deleted(
    config: &ChunkConfig,
    servers: &ServerTable,
    record: &Record,
    entry: Option<&mut Entry>,
    now: Instant,
) -> Verdict {
    let mut verdict = Verdict::nothing(Health::Deleting, 0);
    if let Some(entry) = entry {
        verdict.delete = on_live_servers(servers, entry)
            .map(|replica| (replica.server, replica.version.max(record.version)))
            .collect();
        // A dead server that returns after the chunk is forgotten reports an orphan, which goes too.
        verdict.forget = entry.replicas.iter().all(|replica| {
            dead_for(servers, replica.server, now).is_some_and(|dead| dead >= config.forget_after)
        });
    } else {
        verdict.forget = true;
    }
    verdict
}

fn judge_live(
    config: &ChunkConfig,
    servers: &ServerTable,
    record: &Record,
    entry: &mut Entry,
    now: Instant,
) -> Verdict {
    if record.goal == 0 {
        // The namespace is going: its chunks are marked deleted one by one.
        return Verdict::nothing(Health::Healthy, 0);
    }
    let newer: Vec<&Replica> = on_live_servers(servers, entry)
        .filter(|replica| replica.version > record.version && !replica.corrupt)
        .collect();
    if let Some(since) = newer.iter().map(|replica| replica.since).max() {
        // Somebody raised the version and did not commit it. Whoever has the newest bytes keeps them.
        let mut verdict = Verdict::nothing(Health::Under, newer.len() as u32);
        if now.saturating_duration_since(since) >= config.resolve_after {
            verdict.raise_without = Some(Vec::new());
        }
        return verdict;
    }

    let at_version = |replica: &&Replica| replica.version == record.version;
    let whole = on_live_servers(servers, entry).filter(at_version);
    let whole: Vec<&Replica> = whole.filter(|replica| replica.confirmed && !replica.corrupt).collect();
    let current: Vec<ChunkServerId> =
        without_doubt(whole.clone()).into_iter().map(|replica| replica.server).collect();
    let doubted = whole.into_iter().filter(|replica| replica.doubtful).map(|replica| replica.server);
    let mut leave: Vec<ChunkServerId> = doubted.filter(|server| !current.contains(server)).collect();
    let count = current.len() as u32;
    let excused = entry.replicas.iter().filter(at_version).filter(|replica| !replica.corrupt);
    let excused = excused.filter(|replica| match dead_for(servers, replica.server, now) {
        Some(dead) => dead < config.repair_after,
        None => !replica.confirmed && now.saturating_duration_since(replica.since) < config.promise,
    });
    let excused = excused.count() as u32;
    let promised = entry.replicas.iter().filter(at_version).any(|replica| !replica.confirmed);

    let health = match count {
        0 if promised => Health::Under,
        0 => Health::Lost,
        count if count < record.goal => Health::Under,
        _ => Health::Healthy,
    };
    let mut verdict = Verdict::nothing(health, count);
    if count == 0 {
        // Whatever there is stays: it may be all that is left.
        entry.under_since = None;
        return verdict;
    }
    if count < record.goal {
        entry.over_since = None;
        let all_known = knows_all(record, entry) || !may_be_listed(config, servers, now);
        if count + excused < record.goal && all_known {
            let since = *entry.under_since.get_or_insert(now);
            // Two heartbeats: a report on its way may still change the picture.
            verdict.repair = now.saturating_duration_since(since) >= config.heartbeat * 2;
        } else {
            entry.under_since = None;
        }
        return verdict;
    }
    entry.under_since = None;

    let corrupt = on_live_servers(servers, entry).filter(at_version).filter(|replica| replica.corrupt);
    leave.extend(corrupt.map(|replica| replica.server));
    let stale = on_live_servers(servers, entry).filter(|replica| replica.version < record.version);
    verdict.delete = stale.map(|replica| (replica.server, replica.version)).collect();
    if count > record.goal {
        let since = *entry.over_since.get_or_insert(now);
        let extra = extra(config, servers, &current, (count - record.goal) as usize);
        if now.saturating_duration_since(since) >= config.extra_grace {
            leave.extend(extra);
        } else {
            // A draining server's is not wanted back.
            leave.extend(extra.into_iter().filter(|id| is_draining(servers, *id)));
        }
    } else {
        entry.over_since = None;
    }
    if !leave.is_empty() {
        verdict.raise_without = Some(leave);
    } else if count == record.goal {
        verdict.relocate = relocate(config, servers, &current);
    }
    verdict
}

/// Which of the current replicas would better be elsewhere, if one would.
fn relocate(
    config: &ChunkConfig,
    servers: &ServerTable,
    current: &[ChunkServerId],
) -> Option<(ChunkServerId, Reason)> {
    let misplaced = placement::misplaced(servers, current, config.reserve_bytes);
    let draining = || current.iter().copied().find(|id| is_draining(servers, *id));
    let misplaced = misplaced.map(|id| (id, Reason::Misplaced));
    misplaced.or_else(|| draining().map(|id| (id, Reason::Drain)))
}

fn is_draining(servers: &ServerTable, id: ChunkServerId) -> bool {
    servers.get(id).is_some_and(|server| server.draining)
}

/// Which of the current replicas to give up: first those on draining servers, then those that share a host with
/// another, then those on the servers with the least room.
fn extra(
    config: &ChunkConfig,
    servers: &ServerTable,
    current: &[ChunkServerId],
    count: usize,
) -> Vec<ChunkServerId> {
    let mut by_room: Vec<_> = current.iter().filter_map(|&id| servers.get(id)).collect();
    by_room.sort_by_key(|server| std::cmp::Reverse(server.room_bytes(config.reserve_bytes)));
    let mut hosts = BTreeSet::new();
    let (alone, shared): (Vec<_>, Vec<_>) =
        by_room.into_iter().partition(|server| !server.draining && hosts.insert(server.host()));
    let (draining, shared): (Vec<_>, Vec<_>) = shared.into_iter().partition(|server| server.draining);
    let keep_order = alone.into_iter().chain(shared).chain(draining);
    let ids: Vec<ChunkServerId> = keep_order.map(|server| server.id).collect();
    ids[ids.len().saturating_sub(count)..].to_vec()
}

fn on_live_servers<'a>(
    servers: &'a ServerTable,
    entry: &'a Entry,
) -> impl Iterator<Item = &'a Replica> + use<'a> {
    entry.replicas.iter().filter(|replica| servers.is_alive(replica.server))
}

/// Whether servers are known that have not said yet in this term what they have, and may be expected to: any of it may be there.
fn may_be_listed(config: &ChunkConfig, servers: &ServerTable, now: Instant) -> bool {
    let silent = servers.iter().filter(|server| !server.listed_before);
    silent
        .map(|server| dead_for(servers, server.id, now))
        .any(|dead| dead.is_none_or(|dead| dead < config.repair_after))
}

/// How long the server has been dead; `None` while it lives.
fn dead_for(servers: &ServerTable, id: ChunkServerId, now: Instant) -> Option<Duration> {
    match servers.get(id) {
        Some(server) if server.is_alive() => None,
        Some(server) => {
            Some(server.down_since.map_or(Duration::MAX, |since| now.saturating_duration_since(since)))
        }
        None => Some(Duration::MAX),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gofs_tree::ChunkId;

    use super::*;
    use crate::chunks::{Directory, Reported};

    const CHUNK: ChunkId = ChunkId(1);

    /// Whether a leader that began `after` ago has a copy made of a chunk that the first of `known` servers has at version 1, the only
    /// one that has said what it has.
    fn is_copied(known: u64, copies: u32, after: Duration) -> bool {
        let (config, began) = (ChunkConfig::default(), Instant::now());
        let (mut servers, mut directory) = (ServerTable::default(), Directory::default());
        for id in 1..=known {
            servers.know(ChunkServerId(id), format!("10.0.0.{id}:1"), BTreeMap::new(), began);
        }
        servers.connected(ChunkServerId(1), "10.0.0.1:1".into(), BTreeMap::new(), 1, began);
        servers.get_mut(ChunkServerId(1)).unwrap().listed_before = true;
        let version = ChunkVersion(1);
        let line = Reported { chunk: CHUNK, version, gone: false, corrupt: false, doubtful: false };
        directory.report(ChunkServerId(1), line, false, began);
        let record = Record { version, copies, goal: 2, deleted: false };
        let mut judge_at =
            |now| judge(&config, &servers, Some(&record), true, directory.entry_mut(CHUNK), now).repair;
        assert!(!judge_at(began + after - config.heartbeat * 2));
        judge_at(began + after)
    }

    #[test]
    fn a_new_leader_copies_nothing_that_a_server_may_have_which_is_late() {
        let ChunkConfig { dead_after, settle, repair_after, heartbeat, .. } = ChunkConfig::default();
        let just_settled = dead_after + settle - heartbeat;
        assert!(!is_copied(2, 2, just_settled), "server 2 may have it, and come back");
        assert!(!is_copied(2, 0, just_settled), "as many as may be: from before that was counted");
        assert!(is_copied(2, 1, just_settled), "there is no other");
        assert!(is_copied(1, 2, just_settled), "the other one is not in the cluster any more");
        assert!(
            is_copied(2, 2, repair_after + heartbeat * 2),
            "as long as a leader waits for one that it knew"
        );
    }
}

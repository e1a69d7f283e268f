//! The planner: what is to be done about chunks nobody asks for, a round twice a heartbeat.
//!
//! A round looks at the chunks that changed, at those with which something is the matter, and at the next part of all
//! that the state knows. [`judge`] says what is to be done about each: deletions are sent at once, the rest is in the
//! [`Round`] and begun after it. Nothing here is remembered over a crash: the next leader judges anew.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use gofs_tree::{ChunkId, ChunkServerId, FsError};
use tokio::task::JoinSet;

use super::{
    ChunkService,
    changing::{Changed, Changing},
};
use crate::{
    chunks::{ChunkConfig, Copy, Entry, Health, Reason, Replica, Want, Wanted, judge, leader::Leader},
    command::Command,
    state::ChunkRecord,
};

/// Forgotten chunks committed in one round of the planner.
const FORGETS_PER_ROUND: usize = 256;
/// Chunks of which one round asks whether they are where they were promised.
const PROBES_PER_ROUND: usize = 64;
/// Chunks looked at in one round for one to move to an emptier server, and moves that may wait for their turn.
const BALANCE_LOOK_AT: usize = 256;
const BALANCE_WAITING: u64 = 128;

/// Runs the planner until the group stops.
pub(super) async fn run(service: Weak<ChunkService>) {
    let Some(pause) = service.upgrade().map(|service| service.config.heartbeat / 2) else { return };
    loop {
        tokio::time::sleep(pause).await;
        let Some(service) = service.upgrade() else { return };
        let planner = service.clone();
        let round = tokio::task::spawn_blocking(move || Round::plan(&planner)).await;
        // The state is closed then, and the runtime may end: neither is an error.
        if service.group.is_stopping() {
            return;
        }
        match round {
            Ok(Ok(round)) => round.perform(&service).await,
            Ok(Err(error)) => {
                tracing::error!(%error, "the planner of repair and deletion cannot read the state");
            }
            Err(error) => tracing::error!(%error, "the planner of repair and deletion failed"),
        }
    }
}

/// What a round of the planner wants done.
#[derive(Debug, Default)]
struct Round {
    term: u64,
    /// The restored cluster is known from now on.
    settles: bool,
    raises: Vec<(ChunkId, Vec<ChunkServerId>)>,
    forgets: Vec<ChunkId>,
    copies: Vec<Copy>,
    /// With bytes in them, and none of those that were to have them has said for long that it does.
    probes: Vec<ChunkId>,
}

impl Round {
    /// Reads the state: runs off the runtime's own threads.
    fn plan(service: &ChunkService) -> Result<Round, FsError> {
        let (config, state) = (&service.config, service.group.state());
        let mut round = Round::default();
        let batch = config.scan_batch;
        let known = service.leader.lock().servers.ids();
        let records = state.servers()?;
        let (mut chunks, walk_from) = {
            let mut leader = service.leader.lock();
            let now = Instant::now();
            leader.expire(config, now);
            leader.settle(config, now);
            leader.age_deletions(config, now);
            if leader.term != 0 {
                leader.follow(&known, &records, now);
            }
            if leader.term == 0 || !leader.settled {
                return Ok(round);
            }
            round.term = leader.term;
            round.settles = leader.restoring;
            let mut chunks = leader.directory.take_changed(batch);
            chunks.extend(leader.next_watched(batch));
            let walk = now >= leader.walk_at;
            if walk {
                leader.walk_at = now + config.walk_every;
            }
            (chunks, walk.then_some(leader.cursor))
        };
        let mut walk_next = None;
        if let Some(from) = walk_from {
            let walked = state.chunks_from(from, batch)?;
            if walked.len() == batch {
                walk_next = walked.last().map(|(chunk, _)| *chunk);
            }
            chunks.extend(walked.into_iter().map(|(chunk, _)| chunk));
        }
        chunks.sort_unstable();
        chunks.dedup();
        let next_chunk = state.counters()?.next_chunk;
        let reserved = state.reserved()?;
        let restored = state.restored()?;
        for chunk in chunks {
            // After what is reserved: meanwhile a session may have given the chunk to a file.
            let record = state.chunk(chunk)?;
            let kept = restored.is_some_and(|restored| restored.keeps(chunk))
                || reserved.iter().any(|held| held.chunks.contains(chunk.0));
            let issued = chunk < next_chunk && !kept;
            let mut leader = service.leader.lock();
            if leader.term != round.term {
                return Ok(Round::default());
            }
            if !leader.changing.contains(&chunk) {
                round.look_at(service, &mut leader, chunk, record.as_ref(), issued);
            }
        }
        round.balance(service)?;
        let mut leader = service.leader.lock();
        if leader.term == round.term {
            if walk_from.is_some() {
                leader.cursor = walk_next;
            }
            while let Some(copy) = leader.next_copy(config, Instant::now()) {
                round.copies.push(copy);
            }
        }
        Ok(round)
    }

    fn look_at(
        &mut self,
        service: &ChunkService,
        leader: &mut Leader,
        chunk: ChunkId,
        record: Option<&ChunkRecord>,
        issued: bool,
    ) {
        let now = Instant::now();
        let known = record.map(Into::into);
        let Leader { servers, directory, .. } = leader;
        let verdict =
            judge(&service.config, servers, known.as_ref(), issued, directory.entry_mut(chunk), now);
        let (delete_wanted, raise_wanted) = (!verdict.delete.is_empty(), verdict.raise_without.is_some());
        for (server, version) in verdict.delete {
            leader.delete(&service.config, server, chunk, version, now);
        }
        if let Some(without) = verdict.raise_without
            && self.raises.len() < service.config.copies_total
        {
            self.raises.push((chunk, without));
        }
        if verdict.forget && self.forgets.len() < FORGETS_PER_ROUND {
            self.forgets.push(chunk);
        }
        let few = verdict.repair.then_some((None, Reason::TooFew { current: verdict.current }));
        let moved = verdict.relocate.map(|(from, reason)| (Some(from), reason));
        let relocated = moved.is_some();
        match (few.or(moved), record) {
            (Some((leaving, reason)), Some(record)) => {
                let wanted = leader.repairs.wanted(chunk).map(|want| want.bytes);
                let bytes = wanted.unwrap_or_else(|| service.bytes_of(record));
                leader.repairs.want(chunk, Want { reason, leaving, target: None, bytes });
            }
            _ => {
                let kept = leader.repairs.wanted(chunk).is_some_and(|want| want.reason == Reason::Rebalance);
                if !(kept && verdict.health == Health::Healthy && !raise_wanted) {
                    leader.repairs.unwant(chunk);
                }
            }
        }
        if verdict.health == Health::Under
            && verdict.current == 0
            && self.probes.len() < PROBES_PER_ROUND
            && leader.directory.entry(chunk).is_some_and(|entry| is_overdue(&service.config, entry, now))
            && record.is_some_and(|record| !service.is_unwritten(record))
        {
            self.probes.push(chunk);
        }
        if record.is_none() {
            leader.directory.forget_if_empty(chunk);
        }
        let entry = leader.directory.entry(chunk);
        let at_rest = match verdict.health {
            Health::Healthy => {
                let quiet = !delete_wanted && !raise_wanted && !relocated;
                quiet && entry.is_none_or(|entry| entry.over_since.is_none())
            }
            // Nothing can be done until a server reports it, which is a change.
            Health::Lost => true,
            Health::Orphan => entry.is_none(),
            Health::Under | Health::Deleting => false,
        };
        if at_rest {
            leader.watched.remove(&chunk);
        } else {
            leader.watched.insert(chunk);
        }
    }

    /// Finds replicas to move from full servers to emptier ones, while nothing more urgent waits.
    fn balance(&self, service: &ChunkService) -> Result<(), FsError> {
        let candidates = {
            let mut leader = service.leader.lock();
            let Leader { repairs, balance, servers, directory, .. } = &mut *leader;
            let urgent = repairs.to_do(|reason| reason != Reason::Rebalance).chunks > 0;
            if urgent || repairs.to_do(|_| true).chunks >= BALANCE_WAITING {
                return Ok(());
            }
            balance.candidates(servers, directory, BALANCE_LOOK_AT, Instant::now())
        };
        for (giver, chunk) in candidates {
            let Some(record) = service.group.state().chunk(chunk)? else { continue };
            let bytes = service.bytes_of(&record);
            let mut leader = service.leader.lock();
            if leader.term != self.term || leader.changing.contains(&chunk) {
                continue;
            }
            let now = Instant::now();
            let Leader { repairs, balance, servers, directory, .. } = &mut *leader;
            let Some(entry) = directory.entry_mut(chunk) else { continue };
            let verdict = judge(&service.config, servers, Some(&(&record).into()), true, Some(entry), now);
            let rests = verdict.health == Health::Healthy && verdict.relocate.is_none() && !record.deleted;
            if !rests || verdict.raise_without.is_some() || repairs.wanted(chunk).is_some() {
                continue;
            }
            let current = entry.replicas.iter().filter(|replica| replica.version == record.version);
            let current: Vec<ChunkServerId> = current.map(|replica| replica.server).collect();
            if let Some(target) = balance.choose(servers, &current, giver, bytes, now) {
                let (reason, leaving, target) = (Reason::Rebalance, Some(giver), Some(target));
                repairs.want(chunk, Want { reason, leaving, target, bytes });
            }
        }
        Ok(())
    }

    /// Begins the copies and raises, and waits for what is forgotten.
    async fn perform(self, service: &Arc<ChunkService>) {
        if self.settles && service.group.propose(Command::SettleRestore).await.is_ok() {
            let mut leader = service.leader.lock();
            leader.restoring = leader.restoring && leader.term != self.term;
        }
        for copy in self.copies {
            tokio::spawn(repair(service.clone(), copy, self.term));
        }
        for (chunk, without) in self.raises {
            tokio::spawn(raise_without(service.clone(), chunk, without));
        }
        for chunk in self.probes {
            tokio::spawn(service.clone().probe_promises(chunk));
        }
        let mut forgets = JoinSet::new();
        for chunk in self.forgets {
            let group = service.group.clone();
            forgets.spawn(async move { (chunk, group.propose(Command::ForgetChunk { chunk }).await) });
        }
        while let Some(forgotten) = forgets.join_next().await {
            match forgotten {
                Ok((chunk, Ok(_))) => service.leader.lock().directory.forget_if_empty(chunk),
                Ok((chunk, Err(error))) => {
                    tracing::debug!(chunk = chunk.0, %error, "a chunk could not be forgotten yet");
                }
                Err(error) => tracing::error!(%error, "forgetting a chunk failed"),
            }
        }
    }
}

/// Whether all servers that were promised the chunk would have told of it by now.
fn is_overdue(config: &ChunkConfig, entry: &Entry, now: Instant) -> bool {
    let is_overdue = |replica: &Replica| {
        !replica.confirmed && now.saturating_duration_since(replica.since) >= config.promise
    };
    entry.replicas.iter().all(is_overdue)
}

/// Makes a replica, and goes on with the next copy that its end allows.
async fn repair(service: Arc<ChunkService>, copy: Copy, term: u64) {
    let mut next = Some(copy);
    while let Some(copy) = next {
        let mut copied = false;
        if let Some(changing) = Changing::begin(&service, copy.chunk) {
            let changed = changing.copied(&copy).await;
            copied = matches!(changed, Changed::Committed { copied: true, .. });
        }
        if copied {
            let (chunk, server, reason) = (copy.chunk.0, copy.target.0, copy.reason);
            tracing::debug!(chunk, server, ?reason, "a replica was made");
        }
        let mut leader = service.leader.lock();
        if leader.term != term {
            return;
        }
        if copied {
            leader.count_copy(&copy, Instant::now());
        }
        leader.repairs.finished(copy.chunk, copied, Instant::now());
        next = leader.next_copy(&service.config, Instant::now());
    }
}

async fn raise_without(service: Arc<ChunkService>, chunk: ChunkId, spare: Vec<ChunkServerId>) {
    if let Some(changing) = Changing::begin(&service, chunk) {
        changing.replicas(Wanted { spare: &spare, ..Wanted::default() }).await;
    }
}

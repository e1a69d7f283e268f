//! Edits that are applied here first: under Write leases the tree is changed in memory, by the same
//! `gofs_tree::apply` that the servers run, the caller goes on, and the edit goes to the servers later, in order.
//!
//! The table, and the log after it, are locked together: an edit's place in the log is the order in which
//! edits were applied. Who asks the servers about an inode waits first until they have its last edit.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use gofs_proto::convert::{self, ConvertError, Grant, Node};
use gofs_proto::session::{BatchReply, BatchResult, Placed, Reserve};
use gofs_tree::{
    Attr, AttrChange, Edit, EditOp, FsError, Ino, NamespaceLimits, Outcome, SessionId, TimeChange,
};
use tokio::sync::oneshot;

use super::Core;
use super::learn::{EditHints, garbled};
use crate::clock::BootTime;
use crate::data::ChunkLocation;
use crate::lease::{Changed, LeaseTable, Position, concerned, made_by};
use crate::session::{Generation, Logged, Pace};
use crate::slices::TakenInode;

/// How long edits that nobody waits for are gathered, so that one entry of the EditLog takes many.
const GATHER: Duration = Duration::from_millis(5);
/// Inode numbers reserved at once.
const RESERVE: u32 = 8192;
/// More are reserved when this many are left.
const RESERVE_AT: u64 = 2048;

/// Inode numbers that were reserved for this session.
#[derive(Debug, Default)]
pub struct InoPool {
    /// Used in the order in which they came; none is empty.
    ranges: VecDeque<Range<u64>>,
    asking: bool,
}

impl InoPool {
    fn left(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    fn take(&mut self) -> Option<Ino> {
        let range = self.ranges.front_mut()?;
        let ino = range.next()?;
        if range.is_empty() {
            self.ranges.pop_front();
        }
        Some(Ino(ino))
    }

    /// It was not used after all. The last of its range, or another was taken since: then it is given up.
    fn put_back(&mut self, ino: Ino) {
        if let Some(range) = self.ranges.front_mut().filter(|range| range.start == ino.0 + 1) {
            range.start = ino.0;
        }
    }

    fn add(&mut self, first: u64, count: u64) {
        self.asking = false;
        let range = first..first.saturating_add(count);
        if !range.is_empty() {
            self.ranges.push_back(range);
        }
    }

    /// The numbers belong to a session that is over.
    pub fn clear(&mut self) {
        *self = InoPool::default();
    }
}

impl Core {
    /// Applies the edit here and logs it, if nothing about it needs the servers. `None`: ask them.
    pub fn edit_here<T>(
        self: &Arc<Self>,
        edit: &Edit,
        hints: EditHints,
        then: impl Fn(&Core, &mut LeaseTable, Outcome, &[Node]) -> T,
    ) -> Option<Result<T, FsError>> {
        let limits = self.limits()?;
        let mut edit = edit.clone();
        let mut table = self.table.lock();
        if !table.is_valid(BootTime::now()) || !self.log.lock().has_room() {
            return None;
        }
        // What the servers are asked to remove: what is made in it here would come too late.
        if concerned(&edit.op).iter().any(|ino| table.is_directory_going(*ino)) {
            return None;
        }
        let mut taken = None;
        match &mut edit.op {
            EditOp::Create { ino, .. } => {
                self.keep_sliced();
                taken = Some(self.slices.take_inode()?);
                match self.next_ino() {
                    Some(next) => *ino = next,
                    None => {
                        taken.iter().for_each(|taken| self.slices.return_inode(taken));
                        return None;
                    }
                }
            }
            EditOp::Unlink { holders, .. }
            | EditOp::Rmdir { holders, .. }
            | EditOp::Rename { holders, .. } => {
                if hints.open_here {
                    holders.push(self.identity.lock().session);
                }
            }
            EditOp::SetAttr { change, .. } if change.size.is_none() => {}
            EditOp::Link { .. } | EditOp::SetXattr { .. } | EditOp::RemoveXattr { .. } => {}
            _ => return None,
        }
        let applied = table.try_apply(&edit, limits);
        let (outcome, changed) = match applied {
            Ok((_, changed)) if table.is_changing(changed.inodes.keys()) => {
                return self.not_here(&edit, taken);
            }
            Ok(applied) => applied,
            Err(error) => {
                let nothing = self.not_here(&edit, taken);
                return match error {
                    // What is known here does not suffice, or makes no sense together: the servers know.
                    FsError::NotCached | FsError::Stale | FsError::Io | FsError::Invalid => nothing,
                    // What it was refused for may be about to change.
                    _ if table.is_changing(&concerned(&edit.op)) => nothing,
                    error => Some(Err(error)),
                };
            }
        };
        let moves_directory = matches!(edit.op, EditOp::Rename { .. })
            && changed
                .inodes
                .get(&outcome.ino)
                .is_some_and(|moved| moved.as_ref().is_none_or(|m| m.is_dir()));
        // A rename between two names of one inode does nothing; let the servers say so.
        if moves_directory || changed.inodes.is_empty() {
            return None;
        }
        let times = match &edit.op {
            EditOp::SetAttr { ino, change } => {
                let mtime = change.mtime.map(|change| match change {
                    TimeChange::Now => edit.time,
                    TimeChange::To(time) => time,
                });
                Some((*ino, mtime))
            }
            EditOp::SetXattr { ino, .. } | EditOp::RemoveXattr { ino, .. } => Some((*ino, None)),
            _ => None,
        };
        // Bytes that are not written yet come after this edit, with the times that the file shall have.
        if let Some((ino, mtime)) = times
            && !self.data.adopt_times(ino, mtime, edit.time)
        {
            return None;
        }
        let made = made_by(&edit);
        let nodes = table.take_in_own(&edit, &changed);
        if let Some(node) = nodes.iter().find(|node| made == Some(node.attr.ino)) {
            self.load(false, node);
        }
        let touched: Vec<Ino> = changed.inodes.keys().copied().collect();
        let logged = Logged { taken, ..logged(&edit, touched) };
        let logged = self.or_touch(&mut table, &edit, &outcome, &changed).unwrap_or(logged);
        self.push(&mut table, logged);
        let done = then(self, &mut table, outcome, &nodes);
        self.after_learning(table);
        Some(Ok(done))
    }

    /// The edit is not made here: gives back what was taken for it.
    fn not_here<T>(&self, edit: &Edit, taken: Option<TakenInode>) -> Option<T> {
        if let Some(taken) = &taken {
            self.slices.return_inode(taken);
        }
        if let Some(ino) = made_by(edit) {
            self.inos.lock().put_back(ino);
        }
        None
    }

    /// Whether a change of the file may be committed that was made in this session, and the session's generation.
    pub(super) fn may_commit(
        &self,
        table: &LeaseTable,
        ino: Ino,
        session: SessionId,
    ) -> Result<Generation, FsError> {
        table.may_commit(ino)?;
        // A later session may have the lease again; where it ends now, the table loses all first.
        let identity = self.identity.lock();
        if identity.session == session { Ok(identity.generation) } else { Err(FsError::Stale) }
    }

    /// Logs a change of a file's contents, which live apart from the table, and waits until it is committed.
    pub async fn log_content(&self, ino: Ino, session: SessionId, edit: &Edit) -> Result<Attr, FsError> {
        let (waiter, outcome) = oneshot::channel();
        {
            let mut table = self.table.lock();
            self.may_commit(&table, ino, session)?;
            self.push(&mut table, Logged { waiter: Some(waiter), ..logged(edit, vec![ino]) });
        }
        outcome.await.unwrap_or(Err(FsError::Io))
    }

    /// Logs that a file got a chunk of this session's. Nobody waits for it: it goes with the edit that shows its bytes,
    /// which the servers refuse without it.
    pub(super) fn log_chunk(&self, table: &mut LeaseTable, edit: &Edit, at: &ChunkLocation) {
        let EditOp::AddChunk { ino, chunk, .. } = edit.op else { return };
        let servers = at.replicas.iter().map(|replica| replica.server.0).collect();
        let placed = Some(Placed { chunk: chunk.0, servers });
        self.push(table, Logged { placed, ..logged(edit, vec![ino]) });
    }

    /// Where the edit removes a file that nobody has open and of which the servers have not heard: takes back what made
    /// it, and returns what is to be sent instead, which is what is left to be seen of it all: the directory's times.
    fn or_touch(
        &self,
        table: &mut LeaseTable,
        edit: &Edit,
        outcome: &Outcome,
        changed: &Changed,
    ) -> Option<Logged> {
        let EditOp::Unlink { parent, holders, .. } = &edit.op else { return None };
        let removed =
            outcome.removed.filter(|ino| holders.is_empty() && changed.inodes.get(ino) == Some(&None))?;
        let parent = *parent;
        let (taken_back, stands_in) = self.log.lock().take_back(removed, parent)?;
        for edit in &taken_back {
            table.edit_answered(&edit.touched);
            if let Some(taken) = &edit.taken {
                self.slices.return_inode(taken);
            }
        }
        let mtime = Some(TimeChange::To(edit.time));
        let op = EditOp::SetAttr { ino: parent, change: AttrChange { mtime, ..AttrChange::default() } };
        let touch = Edit { time: edit.time, op };
        Some(Logged { stands_in: Some(stands_in), ..logged(&touch, vec![parent]) })
    }

    fn push(&self, table: &mut LeaseTable, logged: Logged) {
        let touched = logged.touched.clone();
        let mut log = self.log.lock();
        let before = log.pace();
        let at = log.push(logged);
        let wake = log.pace() != before;
        drop(log);
        table.edited(&touched, at);
        if wake {
            self.log_wake.notify_one();
        }
    }

    /// What the namespace sets for edits that are applied here; `None` where the servers must decide, because every
    /// operation is to be durable before it returns.
    fn limits(&self) -> Option<NamespaceLimits> {
        (!self.config.sync).then_some(self.limits)
    }

    /// The number for the next new inode.
    fn next_ino(self: &Arc<Self>) -> Option<Ino> {
        let mut inos = self.inos.lock();
        if inos.left() < RESERVE_AT && !inos.asking {
            inos.asking = true;
            let core = self.clone();
            self.runtime.spawn(async move { core.reserve().await });
        }
        inos.take()
    }

    async fn reserve(self: Arc<Self>) {
        let generation = self.identity.lock().generation;
        let core = self.clone();
        let asked = self
            .session
            .call_long(Reserve { count: RESERVE }, move |reply| {
                let identity = core.identity.lock();
                if identity.generation == generation {
                    core.inos.lock().add(reply.first, reply.count.into());
                }
                Ok(())
            })
            .await;
        if let Err(error) = asked {
            tracing::warn!(%error, "no inode numbers could be reserved: files are made at the servers' pace");
            self.inos.lock().asking = false;
        }
    }

    // ---- waiting --------------------------------------------------------------------

    /// Sends what is logged without gathering more.
    fn send_log(&self, upto: Position) {
        self.log.lock().want(upto);
        self.log_wake.notify_one();
    }

    async fn sent(&self, upto: Position) -> Result<(), FsError> {
        self.send_log(upto);
        self.wait_for(|_| self.log.lock().is_done(upto).then_some(())).await
    }

    /// Waits until the servers have the inode's last edit, before they are asked about it.
    pub async fn settled(&self, ino: Ino) -> Result<(), FsError> {
        let last = self.table.lock().last_edit(ino);
        match last {
            Some(last) => self.sent(last).await,
            None => Ok(()),
        }
    }

    /// As `settled`, for what must not be given up on a soft mount either: as long as it takes.
    pub async fn settled_hard(&self, ino: Ino) {
        let last = self.table.lock().last_edit(ino);
        if let Some(last) = last {
            self.send_log(last);
            self.wait_hard(|| self.log.lock().is_done(last).then_some(())).await;
        }
    }

    /// Waits until the servers have every edit that was made before.
    pub async fn all_edits_sent(&self) -> Result<(), FsError> {
        let last = self.log.lock().last();
        if self.log.lock().is_done(last) { Ok(()) } else { self.sent(last).await }
    }

    /// Whether edits were lost since `told`, which then counts them.
    pub fn told_of_lost_edits(&self, told: &AtomicU64) -> Result<(), FsError> {
        let lost = self.lost_edits.load(Ordering::Acquire);
        if told.swap(lost, Ordering::AcqRel) == lost { Ok(()) } else { Err(FsError::Io) }
    }

    /// Waits until every change of the tree that was begun before is committed, or lost.
    pub async fn commit_all(&self) -> Result<(), FsError> {
        self.all_edits_sent().await?;
        self.session.patiently(self.session.edits_answered()).await
    }

    // ---- sending --------------------------------------------------------------------

    /// Runs for as long as the mount.
    pub async fn send_edits(core: Weak<Core>) {
        while let Some(strong) = core.upgrade().filter(|core| !core.session.is_stopped()) {
            let wake = strong.log_wake.clone();
            let pace = strong.log.lock().pace();
            match pace {
                Pace::Idle => {
                    drop(strong);
                    wake.notified().await;
                }
                Pace::Gather => {
                    let gathered = async {
                        while strong.log.lock().pace() == Pace::Gather {
                            wake.notified().await;
                        }
                    };
                    let _ = tokio::time::timeout(GATHER, gathered).await;
                    strong.send_batch().await;
                }
                Pace::Now => strong.send_batch().await,
            }
        }
    }

    async fn send_batch(self: &Arc<Self>) {
        let (generation, batch) = {
            // Together: a new session begins with an empty log.
            let identity = self.identity.lock();
            (identity.generation, self.log.lock().begin_batch())
        };
        if batch.edits.is_empty() {
            return;
        }
        let core = self.clone();
        let then = move |reply: BatchReply| core.batch_answered(&reply);
        if let Err(error) = self.session.batch(generation, batch, then).await {
            let lost = self.log.lock().end_batch();
            self.lose_edits(lost, error);
        }
    }

    /// Takes the answer in, on the link's task.
    fn batch_answered(self: &Arc<Self>, reply: &BatchReply) -> Result<(), FsError> {
        let grants: Result<Vec<Grant>, ConvertError> = reply.grants.iter().map(Grant::try_from).collect();
        let grants = grants.map_err(|e| garbled(&e))?;
        let (mut wrong, mut misplaced) = (Vec::new(), Vec::new());
        let mut table = self.table.lock();
        let batch = self.log.lock().end_batch();
        if reply.results.len() != batch.len() {
            drop(table);
            self.lose_edits(batch, garbled(&ConvertError::Missing("result of an edit")));
            return Ok(());
        }
        for grant in &grants {
            // What was removed here meanwhile goes at the servers soon.
            if table.is_own(grant.ino) {
                table.grant(*grant);
            }
        }
        for (edit, result) in batch.into_iter().zip(&reply.results) {
            table.edit_answered(&edit.touched);
            let refused = match outcome(result) {
                Ok(attr) => {
                    if let Some(attr) = &attr {
                        table.learn_content(attr);
                    }
                    if let Some(waiter) = edit.waiter {
                        let _ = waiter.send(attr.ok_or(FsError::Stale));
                    }
                    None
                }
                Err(error) => match edit.waiter {
                    Some(waiter) => {
                        let _ = waiter.send(Err(error));
                        None
                    }
                    None => Some(error),
                },
            };
            if let Some(error) = refused {
                let is_gone = error == FsError::Stale && edit.touched.iter().all(|ino| table.is_gone(*ino));
                if edit.placed.is_some() {
                    // The bytes went to a chunk that the file does not have: the edit that shows them is refused too, and
                    // who waits for that tells it.
                    misplaced.extend(&edit.touched);
                } else if is_gone {
                    tracing::debug!(inodes = ?edit.touched, "a change came after the removal of what it is of");
                } else {
                    tracing::error!(%error, inodes = ?edit.touched, "the servers refused a change that was made here");
                    self.lost_edits.fetch_add(1, Ordering::AcqRel);
                }
                wrong.extend(edit.touched);
            }
            // Made, not granted, and not removed by a later edit: somebody else has it.
            wrong.extend(edit.made.filter(|ino| table.is_own(*ino)));
        }
        for ino in &wrong {
            table.lose_made(*ino);
        }
        drop(table);
        misplaced.into_iter().for_each(|ino| self.lose_data(ino));
        self.changed.notify_waiters();
        if !wrong.is_empty() {
            self.make_kernel_forget_all(wrong);
        }
        Ok(())
    }

    /// These edits will never be: whoever waits is told, and the next fsync of anybody.
    pub(super) fn lose_edits(self: &Arc<Self>, lost: Vec<Logged>, error: FsError) {
        let mut silent = 0;
        let mut touched = Vec::new();
        {
            let mut table = self.table.lock();
            for edit in lost {
                table.edit_answered(&edit.touched);
                for ino in &edit.touched {
                    table.lose_made(*ino);
                }
                touched.extend(edit.touched);
                match edit.waiter {
                    Some(waiter) => drop(waiter.send(Err(error))),
                    None => silent += 1,
                }
            }
        }
        if silent > 0 {
            tracing::error!(edits = silent, %error, "changes that were made here are lost");
            self.lost_edits.fetch_add(silent, Ordering::AcqRel);
        }
        self.changed.notify_waiters();
        if !touched.is_empty() {
            self.make_kernel_forget_all(touched);
        }
    }
}

/// An edit for the log for which nobody waits.
fn logged(edit: &Edit, touched: Vec<Ino>) -> Logged {
    let (made, edit) = (made_by(edit), convert::edit_to_wire(edit));
    Logged { edit, touched, made, placed: None, taken: None, stands_in: None, waiter: None }
}

/// What became of an edit: the attributes after a change of contents.
fn outcome(result: &BatchResult) -> Result<Option<Attr>, FsError> {
    if result.fs_error != 0 {
        return Err(convert::fs_error(result.fs_error).unwrap_or_else(|e| garbled(&e)));
    }
    result.attr.as_ref().map(Attr::try_from).transpose().map_err(|e| garbled(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_not_used_comes_back_only_into_the_range_it_is_of() {
        let mut pool = InoPool::default();
        assert_eq!(pool.take(), None);
        pool.add(10, 5);
        let (first, second) = (pool.take().unwrap(), pool.take().unwrap());
        assert_eq!((first, second), (Ino(10), Ino(11)));
        pool.put_back(first);
        assert_eq!(pool.take(), Some(Ino(12)), "given up: a later one is used");
        pool.put_back(Ino(12));
        assert_eq!(pool.take(), Some(Ino(12)));
        // Another range comes between taking and putting back.
        pool.add(100, 2);
        pool.put_back(Ino(12));
        let rest: Vec<u64> = std::iter::from_fn(|| pool.take()).map(|ino| ino.0).collect();
        assert_eq!(rest, [12, 13, 14, 100, 101], "none is skipped");
        pool.put_back(Ino(101));
        assert_eq!((pool.take(), pool.left()), (None, 0));
    }
}

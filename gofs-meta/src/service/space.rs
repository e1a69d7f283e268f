//! What a term keeps of one namespace: leases, locks, the connections of its sessions and whoever waits.
//!
//! All of it is under one lock, and replies with grants and recalls are queued to the connections
//! while it is held: so they leave in the order in which they were decided.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gofs_proto::{Link, convert, session as wire};
use gofs_tree::{FsError, Ino, LeaseEpoch, NamespaceId, SessionId};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::answer::Answer;
use super::{Refusal, Shared};
use crate::lease::{Effect, LeaseTable, Now, OpId, Recall, RecallId};
use crate::lock::{LockTable, WaitId};

/// Numbers connections as they come, so that what belongs to an old one is told from what belongs to its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnectionId(pub u64);

pub(crate) struct Space {
    pub id: NamespaceId,
    pub shared: Arc<Shared>,
    next_ino: AtomicU64,
    inner: Mutex<Inner>,
}

pub(crate) struct Inner {
    pub leases: LeaseTable,
    pub locks: LockTable,
    /// The connection of each session that has one.
    links: HashMap<SessionId, (ConnectionId, Arc<Link>)>,
    /// The last connection that each session had, whether it stands or not.
    newest: HashMap<SessionId, ConnectionId>,
    waiters: HashMap<OpId, Waiter>,
    pub lock_waits: HashMap<WaitId, LockWaiter>,
    /// What each session said last about what it has not sent and what it has lost.
    pub reports: HashMap<SessionId, wire::KeepAlive>,
    /// Slices of the quota are not given before.
    pub tight_until: Option<Now>,
    /// So many changes of the quota are about to be made: everything is metered, and no slice is given.
    pub metering: u32,
    over: bool,
}

struct Waiter {
    connection: ConnectionId,
    run: oneshot::Sender<Result<(), Refusal>>,
}

pub(crate) struct LockWaiter {
    pub connection: ConnectionId,
    pub session: SessionId,
    pub wait_id: u64,
    pub answer: Answer<wire::SetLock>,
}

impl Space {
    pub fn new(shared: Arc<Shared>, id: NamespaceId, next_ino: Ino, first_epoch: LeaseEpoch) -> Arc<Space> {
        let inner = Inner {
            leases: LeaseTable::new(first_epoch),
            locks: LockTable::default(),
            links: HashMap::new(),
            newest: HashMap::new(),
            waiters: HashMap::new(),
            lock_waits: HashMap::new(),
            reports: HashMap::new(),
            tight_until: None,
            metering: 0,
            over: false,
        };
        Arc::new(Space { id, shared, next_ino: AtomicU64::new(next_ino.0), inner: Mutex::new(inner) })
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// An inode number that was never used.
    pub fn new_ino(&self) -> Ino {
        self.new_inos(1)
    }

    /// The first of `count` inode numbers that were never used.
    pub fn new_inos(&self, count: u32) -> Ino {
        Ino(self.next_ino.fetch_add(u64::from(count), Ordering::Relaxed))
    }

    /// Carries out what the lease table decided. The caller holds the lock and keeps it until it is done.
    pub fn perform(self: &Arc<Self>, inner: &mut Inner, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Run(op) => inner.wake(op, Ok(())),
                Effect::Refuse(op) => inner.wake(op, Err(FsError::Stale.into())),
                Effect::Recall(recall) => self.send_recall(inner, &recall),
            }
        }
    }

    fn send_recall(self: &Arc<Self>, inner: &Inner, recall: &Recall) {
        let Some((_, link)) = inner.links.get(&recall.session) else { return };
        let message = wire::Recall {
            ino: recall.ino.0,
            epoch: recall.epoch.0,
            keep: convert::lease_mode_to_wire(recall.keep),
            names: recall.names.iter().map(|name| bytes::Bytes::copy_from_slice(name.as_bytes())).collect(),
        };
        let (space, id) = (self.clone(), recall.id);
        // The closure does all there is to do; nobody waits for the call itself.
        drop(link.call_then(&message, Vec::new(), move |reply: wire::RecallReply, _| {
            space.acknowledge(id, reply.open);
        }));
    }

    fn acknowledge(self: &Arc<Self>, recall: RecallId, open: bool) {
        let mut inner = self.lock();
        if !inner.over {
            let effects = inner.leases.acknowledge(self.shared.now(), recall, open);
            self.perform(&mut inner, effects);
        }
    }

    /// Takes an operation in and returns what tells that it may run.
    pub fn begin(
        self: &Arc<Self>,
        session: SessionId,
        connection: ConnectionId,
        needs: Vec<crate::lease::Need>,
        firm: bool,
    ) -> Result<(OpId, oneshot::Receiver<Result<(), Refusal>>), Refusal> {
        let mut inner = self.lock();
        if !inner.is_current(session, connection) {
            return Err(inner.gone());
        }
        let (op, effects) =
            inner.leases.begin(self.shared.now(), session, needs).ok_or(Refusal::NoSession)?;
        if firm {
            inner.leases.make_firm(op);
        }
        let (run, may_run) = oneshot::channel();
        inner.waiters.insert(op, Waiter { connection, run });
        self.perform(&mut inner, effects);
        Ok((op, may_run))
    }

    /// Makes this the session's connection. The old one is closed and what it waited for ends. False, and nothing is done, where
    /// the session has had a later one.
    pub fn attach(
        self: &Arc<Self>,
        inner: &mut Inner,
        session: SessionId,
        connection: ConnectionId,
        link: Arc<Link>,
    ) -> bool {
        if inner.newest.get(&session).is_some_and(|newest| *newest > connection) {
            return false;
        }
        inner.newest.insert(session, connection);
        if let Some((old, old_link)) = inner.links.insert(session, (connection, link)) {
            old_link.close();
            self.forget_waits(inner, old);
        }
        true
    }

    /// The connection is gone. The session stays, with its leases.
    pub fn detach(self: &Arc<Self>, session: SessionId, connection: ConnectionId) {
        let mut inner = self.lock();
        if inner.is_current(session, connection) {
            inner.links.remove(&session);
        }
        self.forget_waits(&mut inner, connection);
    }

    fn forget_waits(self: &Arc<Self>, inner: &mut Inner, connection: ConnectionId) {
        let ops: Vec<OpId> =
            inner.waiters.iter().filter(|(_, w)| w.connection == connection).map(|(&op, _)| op).collect();
        for op in ops {
            // Its task ends when it finds nobody left to tell it to run.
            inner.waiters.remove(&op);
            let effects = inner.leases.cancel(self.shared.now(), op);
            self.perform(inner, effects);
        }
        let waits: Vec<WaitId> = inner
            .lock_waits
            .iter()
            .filter(|(_, w)| w.connection == connection)
            .map(|(&wait, _)| wait)
            .collect();
        for wait in waits {
            inner.lock_waits.remove(&wait);
            inner.locks.cancel(wait);
        }
    }

    /// The session is no more: frees its leases and locks and lets others go on. Its connection is left to itself.
    pub fn end_session(self: &Arc<Self>, session: SessionId) {
        let mut inner = self.lock();
        if let Some((connection, _)) = inner.links.remove(&session) {
            self.forget_waits(&mut inner, connection);
        }
        inner.newest.remove(&session);
        inner.reports.remove(&session);
        let effects = inner.leases.end_session(self.shared.now(), session);
        self.perform(&mut inner, effects);
        let granted = inner.locks.end_session(session);
        inner.grant_locks(granted);
    }

    /// Closes the session's connection.
    pub fn disconnect(&self, session: SessionId) {
        if let Some((_, link)) = self.lock().links.get(&session) {
            link.close();
        }
    }

    /// Looks at the clock. Returns sessions that did not answer a recall for too long.
    pub fn tick(self: &Arc<Self>) -> Vec<SessionId> {
        let mut inner = self.lock();
        let overdue = inner.leases.tick(self.shared.now());
        self.perform(&mut inner, overdue.effects);
        overdue.sessions.into_iter().collect()
    }

    /// The term is over: whoever waits is told, all connections are closed.
    pub fn end(&self) {
        let mut inner = self.lock();
        inner.over = true;
        inner.waiters.clear();
        inner.lock_waits.clear();
        for (_, (_, link)) in inner.links.drain() {
            link.close();
        }
    }
}

impl Inner {
    /// Whether this is the session's connection.
    pub fn is_current(&self, session: SessionId, connection: ConnectionId) -> bool {
        self.links.get(&session).is_some_and(|(current, _)| *current == connection)
    }

    /// The session's connection, if it has one.
    pub fn link(&self, session: SessionId) -> Option<Arc<Link>> {
        self.links.get(&session).map(|(_, link)| link.clone())
    }

    /// All connections that stand.
    pub fn all_links(&self) -> Vec<Arc<Link>> {
        self.links.values().map(|(_, link)| link.clone()).collect()
    }

    /// Why nothing can be done for a connection that is not current.
    pub fn gone(&self) -> Refusal {
        if self.over { Refusal::NotLeader(None) } else { Refusal::Gone }
    }

    fn wake(&mut self, op: OpId, result: Result<(), Refusal>) {
        if let Some(waiter) = self.waiters.remove(&op) {
            // A task that has gone away ends the operation itself.
            let _ = waiter.run.send(result);
        }
    }

    /// Answers requests for locks that waited and are granted.
    pub fn grant_locks(&mut self, granted: Vec<WaitId>) {
        for wait in granted {
            if let Some(waiter) = self.lock_waits.remove(&wait) {
                waiter.answer.send(&wire::SetLockReply {});
            }
        }
    }
}

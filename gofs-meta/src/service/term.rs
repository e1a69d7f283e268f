//! One term of leadership: its sessions, its namespaces' tables, its allocators, and the clock's work.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gofs_proto::session as wire;
use gofs_tree::{ChunkId, LeaseEpoch, NamespaceId, SessionId};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::space::Space;
use super::{Refusal, Shared};
use crate::command::{self, Command, CommandOutcome};
use crate::lease::Now;
use crate::session::{Hearing, SessionTable};

/// How often silence, late recalls and circles are looked for: the precision of all these times.
const TICK: Duration = Duration::from_millis(250);
/// Pause before the end of a session is proposed again.
const END_RETRY: Duration = Duration::from_millis(500);
/// Epochs of one term; the next term's are above them.
const EPOCH_BITS: u32 = 40;

pub(crate) struct Term {
    pub shared: Arc<Shared>,
    number: u64,
    /// Locked before a space, never after it.
    pub sessions: Mutex<SessionTable>,
    spaces: Mutex<HashMap<NamespaceId, Arc<Space>>>,
    next_session: AtomicU64,
    next_chunk: AtomicU64,
    grace: watch::Sender<Grace>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Grace {
    Waiting,
    Open,
    TermOver,
}

impl Term {
    /// Reads what the state knows and starts to serve.
    pub fn begin(shared: Arc<Shared>, number: u64) -> Result<Arc<Term>, Refusal> {
        let state = shared.group.state();
        let known: Vec<_> =
            state.sessions()?.into_iter().map(|record| (record.id, record.namespace)).collect();
        let counters = state.counters()?;
        let sessions = SessionTable::new(shared.now(), shared.times, known);
        let grace = if sessions.in_grace() { Grace::Waiting } else { Grace::Open };
        let term = Arc::new(Term {
            shared,
            number,
            sessions: Mutex::new(sessions),
            spaces: Mutex::default(),
            next_session: AtomicU64::new(counters.next_session.0),
            next_chunk: AtomicU64::new(counters.next_chunk.0),
            grace: watch::channel(grace).0,
        });
        tokio::spawn(term.clone().watch_clock());
        tokio::spawn(term.clone().tell_members());
        Ok(term)
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn in_grace(&self) -> bool {
        *self.grace.borrow() == Grace::Waiting
    }

    /// Nothing of this term is used any more.
    pub fn end(&self) {
        self.grace.send_replace(Grace::TermOver);
        for space in self.all_spaces() {
            space.end();
        }
    }

    /// Whether this server does not lead any more, or again in another term.
    pub fn is_over(&self) -> bool {
        *self.grace.borrow() == Grace::TermOver
    }

    fn all_spaces(&self) -> Vec<Arc<Space>> {
        self.spaces.lock().values().cloned().collect()
    }

    /// Waits while a session that is not back may hold what the request needs.
    pub async fn pass_grace(&self) -> Result<(), Refusal> {
        let mut grace = self.grace.subscribe();
        let passed = grace.wait_for(|grace| *grace != Grace::Waiting).await;
        match passed.map(|grace| *grace) {
            Ok(Grace::Open) => Ok(()),
            _ => Err(Refusal::NotLeader(None)),
        }
    }

    /// Tells whoever waits if grace is over by now.
    pub fn publish_grace(&self) {
        let open = !self.sessions.lock().in_grace();
        let ended = self.grace.send_if_modified(|grace| {
            let ends = open && *grace == Grace::Waiting;
            if ends {
                *grace = Grace::Open;
            }
            ends
        });
        if ended {
            tracing::info!(term = self.number, "grace is over: every session is back or was fenced");
        }
    }

    /// The tables of a namespace.
    pub fn space(&self, namespace: NamespaceId) -> Result<Arc<Space>, Refusal> {
        let mut spaces = self.spaces.lock();
        if self.is_over() {
            return Err(Refusal::NotLeader(None));
        }
        if let Some(space) = spaces.get(&namespace) {
            return Ok(space.clone());
        }
        // All that was committed in earlier terms is applied, and nothing of this one is under way for it.
        let record = self.shared.group.state().namespace(namespace)?;
        let record = record.ok_or_else(|| Refusal::NoNamespace(format!("no namespace {namespace}")))?;
        let first_epoch = LeaseEpoch((self.number.max(1)) << EPOCH_BITS);
        let space = Space::new(self.shared.clone(), namespace, record.next_ino, first_epoch);
        spaces.insert(namespace, space.clone());
        Ok(space)
    }

    /// The tables of a namespace if anything was ever asked of it.
    pub fn known_space(&self, namespace: NamespaceId) -> Option<Arc<Space>> {
        self.spaces.lock().get(&namespace).cloned()
    }

    pub fn new_session(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    pub fn new_chunk(&self) -> ChunkId {
        self.new_chunks(1)
    }

    /// The first of so many.
    pub fn new_chunks(&self, count: u32) -> ChunkId {
        ChunkId(self.next_chunk.fetch_add(u64::from(count), Ordering::Relaxed))
    }

    /// Ends a session: commits that, has the ChunkServers refuse it if it was fenced, and only then frees what it
    /// held. Nothing happens where it is being ended already. Fails only with the term.
    pub async fn end_session(
        &self,
        session: SessionId,
        namespace: NamespaceId,
        fenced: bool,
    ) -> Result<(), Refusal> {
        if !self.sessions.lock().begin_end(session) {
            return Ok(());
        }
        let space = self.space(namespace);
        if fenced && let Ok(space) = &space {
            space.disconnect(session);
        }
        // Others wait for what it holds, so this is not given up while the term lasts.
        while let Err(refusal) = self.commit_end(session, fenced).await {
            if self.is_over() {
                return Err(refusal);
            }
            tracing::warn!(%session, error = %refusal, "the end of a session could not be committed yet");
            tokio::time::sleep(END_RETRY).await;
        }
        if fenced {
            self.shared.chunks.fence(session).await;
        }
        if let Ok(space) = space {
            space.end_session(session);
        }
        self.sessions.lock().ended(session);
        self.publish_grace();
        Ok(())
    }

    async fn commit_end(&self, session: SessionId, fenced: bool) -> Result<(), Refusal> {
        match self.shared.group.propose(Command::EndSession { session, fenced }).await? {
            // Gone already: with its namespace.
            CommandOutcome::Done | CommandOutcome::Refused(command::Refusal::NoSession(_)) => Ok(()),
            other => Err(Refusal::Retry(format!("the state answered {other:?} to the end of a session"))),
        }
    }

    async fn watch_clock(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut grace = self.grace.subscribe();
        loop {
            let leads = async {
                tick.tick().await;
                self.shared.group.confirm_leader().await.is_ok()
            };
            let leads = tokio::select! {
                leads = leads => leads,
                _ = grace.wait_for(|grace| *grace == Grace::TermOver) => return,
            };
            let now = self.shared.now();
            let hearing = self.sessions.lock().look(now, leads);
            match hearing {
                Hearing::Good => self.judge(now),
                Hearing::Back => {
                    tracing::warn!(
                        term = self.number,
                        "no session could be heard for a while: all have their whole time again"
                    );
                    for space in self.all_spaces() {
                        space.lock().leases.wait_anew(now);
                    }
                }
                // Nothing that waits could go on either, without a majority.
                Hearing::Deaf => {}
            }
        }
    }

    /// Ends what was silent for too long, and what waits in circles.
    fn judge(self: &Arc<Self>, now: Now) {
        let silent = self.sessions.lock().overdue(now);
        for session in silent {
            self.fence(session, "it was not heard of for longer than its validity");
        }
        for space in self.all_spaces() {
            for session in space.tick() {
                // It may be heard of, and answer from its caches: others get what it holds when it cannot do that any more.
                if self.sessions.lock().refuse(session) {
                    tracing::warn!(%session, "a session did not answer a recall: nothing of it is accepted any more");
                    space.disconnect(session);
                }
            }
        }
    }

    /// Tells every mount at once where the MetaServers are, whenever that changes: those that it knows may be gone soon.
    async fn tell_members(self: Arc<Self>) {
        let mut voters = self.shared.group.voter_addresses();
        let mut grace = self.grace.subscribe();
        loop {
            tokio::select! {
                Ok(()) = voters.changed() => {}
                _ = grace.wait_for(|grace| *grace == Grace::TermOver) => return,
            }
            let members = wire::Members { addresses: voters.borrow_and_update().clone() };
            for link in self.all_spaces().iter().flat_map(|space| space.lock().all_links()) {
                // Whoever does not hear it is told with the answer to its next KeepAlive.
                drop(link.call(&members, Vec::new()));
            }
        }
    }

    /// Fences a session in a task of its own.
    pub fn fence(self: &Arc<Self>, session: SessionId, why: &'static str) {
        let namespace = self.sessions.lock().namespace_of(session);
        let Some(namespace) = namespace else { return };
        let term = self.clone();
        tokio::spawn(async move {
            tracing::warn!(%session, ns = %namespace, why, "fencing a session");
            if let Err(error) = term.end_session(session, namespace, true).await {
                // A lost leadership ends the term; the next leader fences it.
                tracing::error!(%session, %error, "the session could not be fenced");
            }
        });
    }
}

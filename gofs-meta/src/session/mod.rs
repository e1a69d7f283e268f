//! Which sessions live, for one term of leadership: when each was last heard of, grace, and fencing.
//!
//! Decides only; committing the end of a session, telling ChunkServers and freeing leases is the caller's work,
//! in that order. Invariant: a session is over only [`SessionTimes::server_silence`] after it was last heard of, which is
//! longer than it may answer from its caches; none that the state knew at the start of the term is over
//! before it had that time; and none before it had it since it could be heard again.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use gofs_tree::{NamespaceId, SessionId};

use crate::lease::Now;

/// Longest time between two looks at the clock in which whoever speaks is heard: far less than a session's time, and more than
/// a busy processor takes.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long sessions are believed to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTimes {
    /// What the client counts from the sending of a KeepAlive.
    pub validity: Duration,
    /// What the server waits beyond it.
    pub margin: Duration,
}

impl Default for SessionTimes {
    fn default() -> Self {
        SessionTimes { validity: Duration::from_secs(20), margin: Duration::from_secs(5) }
    }
}

impl SessionTimes {
    /// Silence after which a session is fenced.
    pub fn server_silence(self) -> Duration {
        self.validity + self.margin
    }
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The state knows it, it has not said Hello in this term.
    Absent,
    /// It has.
    Here,
    /// Nothing of it is accepted any more, and it does not know that for sure: until its time is over it may answer from its
    /// caches.
    Refused,
    /// It is being ended: nothing of it is accepted any more.
    Ending,
}

impl Phase {
    fn is_live(self) -> bool {
        matches!(self, Phase::Absent | Phase::Here)
    }
}

#[derive(Clone, Debug)]
struct Session {
    namespace: NamespaceId,
    heard: Now,
    phase: Phase,
}

/// A session as administration shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionState {
    /// Which.
    pub session: SessionId,
    /// What it mounts.
    pub namespace: NamespaceId,
    /// Time since it was last heard of; `None`: not in this term.
    pub silent: Option<Duration>,
}

/// What silence says, of sessions and of those that are to answer a recall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// Whoever is silent could be heard.
    Good,
    /// Nobody could until now: all have their whole time again.
    Back,
    /// Nobody can.
    Deaf,
}

/// The sessions of one term. See the module.
#[derive(Debug)]
pub struct SessionTable {
    times: SessionTimes,
    sessions: BTreeMap<SessionId, Session>,
    in_grace: bool,
    /// The last look at the clock, if sessions could be heard then.
    looked: Option<Now>,
}

impl SessionTable {
    /// A term begins; `known` are the sessions in the state.
    pub fn new(
        now: Now,
        times: SessionTimes,
        known: impl IntoIterator<Item = (SessionId, NamespaceId)>,
    ) -> SessionTable {
        let session = |(id, namespace)| (id, Session { namespace, heard: now, phase: Phase::Absent });
        let sessions = known.into_iter().map(session).collect();
        let mut table = SessionTable { times, sessions, in_grace: true, looked: Some(now) };
        table.check_grace();
        table
    }

    /// A session was committed.
    pub fn opened(&mut self, now: Now, session: SessionId, namespace: NamespaceId) {
        self.sessions.insert(session, Session { namespace, heard: now, phase: Phase::Here });
    }

    /// A session says Hello. False where it is over.
    pub fn hello(&mut self, now: Now, session: SessionId) -> bool {
        if !self.heard(now, session) {
            return false;
        }
        if let Some(known) = self.sessions.get_mut(&session) {
            known.phase = Phase::Here;
        }
        self.check_grace();
        true
    }

    /// Something came from the session. False where it is over.
    pub fn heard(&mut self, now: Now, session: SessionId) -> bool {
        match self.sessions.get_mut(&session) {
            Some(known) if known.phase.is_live() => {
                known.heard = known.heard.max(now);
                true
            }
            _ => false,
        }
    }

    /// Whether the session lives.
    pub fn is_live(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|known| known.phase.is_live())
    }

    /// From now on nothing of the session is accepted, and it is over when it was silent for its time. False where that was so
    /// already.
    pub fn refuse(&mut self, session: SessionId) -> bool {
        match self.sessions.get_mut(&session) {
            Some(known) if known.phase.is_live() => {
                known.phase = Phase::Refused;
                true
            }
            _ => false,
        }
    }

    /// What a session that lives mounts.
    pub fn namespace_of(&self, session: SessionId) -> Option<NamespaceId> {
        self.sessions.get(&session).filter(|known| known.phase != Phase::Ending).map(|known| known.namespace)
    }

    /// From now on nothing of the session is accepted. False where it is over already.
    pub fn begin_end(&mut self, session: SessionId) -> bool {
        match self.sessions.get_mut(&session) {
            Some(known) if known.phase != Phase::Ending => {
                known.phase = Phase::Ending;
                true
            }
            _ => false,
        }
    }

    /// The session is gone from the state, and nothing of it is left.
    pub fn ended(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        self.check_grace();
    }

    /// Whether sessions may hold leases that this server does not know of: no request may run.
    pub fn in_grace(&self) -> bool {
        self.in_grace
    }

    /// A look at the clock; `leads`: a majority has confirmed just now that this server does.
    ///
    /// Without a majority nobody's KeepAlive or Hello is answered, and who gets no answer gives up its connection. A server that was
    /// stopped for a while has heard nobody either, nor read what has come. To end a session late is always safe: others wait for
    /// what it holds, and nobody is given it before.
    pub fn look(&mut self, now: Now, leads: bool) -> Hearing {
        let last = std::mem::replace(&mut self.looked, leads.then_some(now));
        if !leads {
            return Hearing::Deaf;
        }
        if last.is_some_and(|last| now.saturating_sub(last) <= LOOK_PAUSE_MAX) {
            return Hearing::Good;
        }
        for known in self.sessions.values_mut().filter(|known| known.phase.is_live()) {
            known.heard = now;
        }
        Hearing::Back
    }

    /// Sessions that were silent for too long, to be fenced; each is named until [`SessionTable::begin_end`].
    pub fn overdue(&self, now: Now) -> Vec<SessionId> {
        let silence = self.times.server_silence();
        let late =
            |known: &Session| known.phase != Phase::Ending && now.saturating_sub(known.heard) > silence;
        self.sessions.iter().filter(|(_, known)| late(known)).map(|(&id, _)| id).collect()
    }

    /// All sessions that live.
    pub fn list(&self, now: Now) -> Vec<SessionState> {
        let live = self.sessions.iter().filter(|(_, known)| known.phase.is_live());
        live.map(|(&session, known)| SessionState {
            session,
            namespace: known.namespace,
            silent: (known.phase == Phase::Here).then(|| now.saturating_sub(known.heard)),
        })
        .collect()
    }

    /// Sessions that live in a namespace.
    pub fn of_namespace(&self, namespace: NamespaceId) -> Vec<SessionId> {
        let live = |known: &Session| known.namespace == namespace && known.phase != Phase::Ending;
        self.sessions.iter().filter(|(_, known)| live(known)).map(|(&id, _)| id).collect()
    }

    /// Grace ends once, when every session is back or gone.
    fn check_grace(&mut self) {
        self.in_grace = self.in_grace && self.sessions.values().any(|known| known.phase != Phase::Here);
    }
}

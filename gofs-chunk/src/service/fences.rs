//! Sessions whose writes are refused.
//!
//! A session that was fenced must not write any more, on whichever side of a broken network it and this server are. So sessions
//! write only while it is known who may: from a registration on, and for as long after the leading MetaServer is known to have heard of this
//! server as it waits itself before it gives what a fenced session held to others without this server's word.
//!
//! Once [`Fences::add`] or [`Fences::replace`] has returned no write of a fenced session is under way in the store, nor will one begin.

use std::collections::HashSet;
use std::time::Duration;

use gofs_proto::session::Failure;
use gofs_proto::session::failure::Code;
use gofs_tree::SessionId;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::clock::BootTime;

/// What a MetaServer knows of all sessions.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    /// Those below are over, except `live`; all others are not, except `fenced`.
    pub floor: SessionId,
    /// Sessions below the floor that go on.
    pub live: HashSet<SessionId>,
    /// Others that are over.
    pub fenced: HashSet<SessionId>,
}

impl Sessions {
    fn are_over(&self, session: SessionId) -> bool {
        self.fenced.contains(&session) || (session < self.floor && !self.live.contains(&session))
    }
}

/// Until when sessions may write.
#[derive(Clone, Copy, Debug, Default)]
enum Lease {
    /// No MetaServer has said yet.
    #[default]
    Unknown,
    /// It sets no bound.
    Unbounded,
    /// `length` after what was heard last was sent.
    Until { end: BootTime, length: Duration },
}

/// See the module. In memory: the MetaServer tells it at every registration.
#[derive(Default)]
pub struct Fences {
    sessions: RwLock<Sessions>,
    /// Apart, so that it is renewed while a write is under way.
    lease: Mutex<Lease>,
}

/// While it lives a fence waits.
pub struct Passed<'a> {
    fences: &'a Fences,
    session: SessionId,
    _sessions: RwLockReadGuard<'a, Sessions>,
}

impl Passed<'_> {
    /// Whether the writer may still write: it may have waited since.
    pub fn may_write(&self, now: BootTime) -> bool {
        self.fences.why_not_known(self.session, now).is_none()
    }
}

impl Fences {
    /// Refuses the session from now on, and waits for what it has under way.
    pub fn add(&self, session: SessionId) {
        self.sessions.write().fenced.insert(session);
    }

    /// A MetaServer has accepted this server's registration, which was sent at `asked`: sessions may write for `length` from then on, or for ever.
    /// Waits for what is under way.
    pub fn replace(&self, sessions: Sessions, asked: BootTime, length: Option<Duration>) {
        *self.sessions.write() = sessions;
        *self.lease.lock() =
            length.map_or(Lease::Unbounded, |length| Lease::Until { end: asked.after(length), length });
    }

    /// The MetaServer that accepted the registration has heard what was sent at `asked`.
    pub fn heard(&self, asked: BootTime) {
        if let Lease::Until { end, length } = &mut *self.lease.lock() {
            *end = asked.after(*length).max(*end);
        }
    }

    /// Why it is not known whether the session may write. Session 0 is a server that copies.
    fn why_not_known(&self, session: SessionId, now: BootTime) -> Option<&'static str> {
        match *self.lease.lock() {
            Lease::Unbounded => None,
            _ if session.0 == 0 => None,
            Lease::Until { end, .. } if now < end => None,
            Lease::Until { .. } => Some("has not been heard by a MetaServer lately"),
            Lease::Unknown => Some("has not registered with a MetaServer yet"),
        }
    }

    /// Lets a writer pass that is not fenced.
    pub fn pass(&self, session: SessionId, now: BootTime) -> Result<Passed<'_>, Failure> {
        let sessions = self.sessions.read();
        if let Some(why) = self.why_not_known(session, now) {
            return Err(Failure::new(
                Code::Retry,
                format!("this ChunkServer {why}: who may write is not known"),
            ));
        }
        if session.0 != 0 && sessions.are_over(session) {
            let text = format!("session {session} was fenced: its writes are refused");
            return Err(Failure::new(Code::StaleChunk, text));
        }
        Ok(Passed { fences: self, session, _sessions: sessions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(fences: &Fences, session: u64, now: BootTime) -> Option<Code> {
        fences.pass(SessionId(session), now).err().map(|failure| failure.code())
    }

    fn set<const N: usize>(ids: [u64; N]) -> HashSet<SessionId> {
        ids.into_iter().map(SessionId).collect()
    }

    #[test]
    fn of_old_sessions_those_named_may_write_and_of_new_ones_all_but_those_named() {
        let (fences, now) = (Fences::default(), BootTime::now());
        let sessions = Sessions { floor: SessionId(100), live: set([7]), fenced: set([120]) };
        fences.replace(sessions, now, None);
        fences.add(SessionId(130));
        for session in [7, 100, 121, 1000, 0] {
            assert_eq!(code(&fences, session, now), None, "{session}");
        }
        for session in [1, 6, 8, 99, 120, 130] {
            assert_eq!(code(&fences, session, now), Some(Code::StaleChunk), "{session}");
        }
        // Another registration says all there is to know.
        fences.replace(Sessions::default(), now, None);
        assert_eq!(code(&fences, 130, now), None);
    }

    #[test]
    fn sessions_write_while_it_is_known_who_may() {
        const LENGTH: Duration = Duration::from_secs(10);
        let (fences, began) = (Fences::default(), BootTime::now());
        let at = |seconds| began.after(Duration::from_secs(seconds));
        assert_eq!(code(&fences, 5, began), Some(Code::Retry));
        assert_eq!(code(&fences, 0, began), None, "a server that copies");
        fences.heard(began);
        assert_eq!(code(&fences, 5, began), Some(Code::Retry), "heard of an earlier connection");
        fences.replace(Sessions::default(), began, Some(LENGTH));
        assert_eq!((code(&fences, 5, at(9)), code(&fences, 5, at(10))), (None, Some(Code::Retry)));
        fences.heard(at(4));
        // Answers may come in any order.
        fences.heard(at(3));
        assert_eq!((code(&fences, 5, at(13)), code(&fences, 5, at(14))), (None, Some(Code::Retry)));
        assert_eq!(code(&fences, 0, at(14)), None);
        fences.replace(Sessions::default(), at(20), Some(LENGTH));
        assert_eq!(code(&fences, 5, at(29)), None);
        let passed = fences.pass(SessionId(5), at(29)).unwrap();
        assert!(passed.may_write(at(29)) && !passed.may_write(at(30)), "it has waited");
        fences.heard(at(21));
        assert!(passed.may_write(at(30)));
    }
}

//! Sessions whose writes are refused.
//!
//! Once [`Fences::add`] has returned no write of the session is under way in the store, nor will one begin.

use std::collections::HashSet;

use gofs_proto::session::Failure;
use gofs_proto::session::failure::Code;
use gofs_tree::SessionId;
use parking_lot::{RwLock, RwLockReadGuard};

/// See the module. In memory: the MetaServer tells them again at every registration.
#[derive(Default)]
pub struct Fences(RwLock<HashSet<SessionId>>);

/// While it lives a fence waits.
pub struct Passed<'a>(#[allow(dead_code, reason = "held, not read")] RwLockReadGuard<'a, HashSet<SessionId>>);

impl Fences {
    /// Refuses these sessions from now on, and waits for what they have under way.
    pub fn add(&self, sessions: impl IntoIterator<Item = SessionId>) {
        self.0.write().extend(sessions);
    }

    /// Lets a writer pass that is not fenced. Session 0 is a server that copies.
    pub fn pass(&self, session: SessionId) -> Result<Passed<'_>, Failure> {
        let fenced = self.0.read();
        if session.0 != 0 && fenced.contains(&session) {
            let text = format!("session {session} was fenced: its writes are refused");
            return Err(Failure::new(Code::StaleChunk, text));
        }
        Ok(Passed(fenced))
    }
}

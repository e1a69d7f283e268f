//! Keeps the session alive and finds the leader again when the connection is lost.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use gofs_proto::session::failure::Code;
use gofs_proto::session::{Failure, Hello};
use gofs_proto::{CallError, Link};

use super::greet::Door;
use super::{Greeted, Greeting, greet};
use crate::clock::BootTime;
use crate::core::Core;

/// Pause after every known address has been tried: from, to.
const ROUND_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// While an election is likely to be under way, nobody pauses for longer than this: its end is waited for by all.
const ELECTION: Duration = Duration::from_secs(5);
const ELECTION_PAUSE: Duration = Duration::from_millis(100);
/// Longest wait for the server that has just been lost, where others may lead by now.
const LOST_TIMEOUT: Duration = Duration::from_secs(1);
/// Where requests wait for so long, the server is asked whether it is there still, and given so long to answer.
const SUSPICION: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Times that servers may send us on to one another within a round.
const HINTS_MAX: usize = 4;
/// Addresses learned from servers that are kept beside the configured ones.
const LEARNED_MAX: usize = 16;

/// Which addresses to try, in order.
pub struct Addresses {
    configured: Vec<String>,
    /// Where the MetaServers are, as the last leader said. Those of the configuration may all be gone by now.
    members: Vec<String>,
    /// Leaders that were found elsewhere.
    learned: VecDeque<String>,
    preferred: Option<String>,
    /// The connection to this one was lost a moment ago.
    lost: Option<String>,
}

impl Addresses {
    /// Those of the configuration.
    pub fn new(configured: Vec<String>) -> Self {
        Addresses { configured, members: Vec::new(), learned: VecDeque::new(), preferred: None, lost: None }
    }

    /// This one first from now on.
    fn prefer(&mut self, address: &str) {
        self.preferred = Some(address.to_owned());
        self.lost = None;
        if !self.configured.iter().any(|a| a == address) {
            self.learned.retain(|a| a != address);
            self.learned.push_front(address.to_owned());
            self.learned.truncate(LEARNED_MAX);
        }
    }

    /// This one last: it may be gone, and not even say so.
    fn lose(&mut self, address: &str) {
        self.lost = Some(address.to_owned());
    }

    fn is_lost(&self, address: &str) -> bool {
        self.lost.as_deref() == Some(address)
    }

    /// What a leader says of where the MetaServers are; one of an older version says nothing.
    pub fn are_at(&mut self, members: Vec<String>) {
        if !members.is_empty() {
            self.members = members;
        }
    }

    fn all(&self) -> VecDeque<String> {
        let mut all = Vec::new();
        for address in self.preferred.iter().chain(&self.members).chain(&self.configured).chain(&self.learned)
        {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        if let Some(at) = all.iter().position(|address| self.is_lost(address)) {
            all[at..].rotate_left(1);
        }
        all.into()
    }
}

/// One round over all addresses. What each said goes to `tried`.
async fn round(
    addresses: &mut Addresses,
    first: Option<String>,
    hello: &Hello,
    timeout: Duration,
    core: Option<&Weak<Core>>,
    tried: &mut Vec<String>,
) -> Option<Greeting> {
    let mut queue = addresses.all();
    if let Some(first) = first {
        queue.retain(|address| *address != first);
        queue.push_front(first);
    }
    let alone = queue.len() == 1;
    let mut hints = 0;
    while let Some(address) = queue.pop_front() {
        let lost = addresses.is_lost(&address) && !alone;
        let timeout = if lost { timeout.min(LOST_TIMEOUT) } else { timeout };
        match greet(&address, hello, timeout, core.cloned()).await {
            Greeting::Welcome(greeted) => {
                addresses.prefer(&address);
                addresses.are_at(greeted.welcome.metas.clone());
                return Some(Greeting::Welcome(greeted));
            }
            Greeting::NotLeader(leader) => {
                tried.push(format!("{address}: not the leader"));
                // One that was lost leads still for those that have not noticed; its turn comes.
                if let Some(leader) = leader.filter(|leader| hints < HINTS_MAX && !addresses.is_lost(leader))
                {
                    hints += 1;
                    queue.retain(|a| *a != leader);
                    queue.push_front(leader);
                }
            }
            Greeting::Later(text) => tried.push(format!("{address}: {text}")),
            last @ (Greeting::NoSession | Greeting::Refused(_)) => return Some(last),
        }
    }
    None
}

/// The first connection of a mount. The error is what each address said in the last round, or a refusal with its server.
pub async fn find_leader(
    addresses: &mut Addresses,
    hello: &Hello,
    connect_timeout: Duration,
    mount_timeout: Duration,
) -> Result<Greeted, Result<Failure, String>> {
    let deadline = Instant::now() + mount_timeout;
    let mut pause = ROUND_PAUSE.0;
    loop {
        let mut tried = Vec::new();
        match round(addresses, None, hello, connect_timeout, None, &mut tried).await {
            Some(Greeting::Welcome(greeted)) => return Ok(*greeted),
            Some(Greeting::Refused(failure)) => return Err(Ok(failure)),
            _ => {}
        }
        if Instant::now() + pause >= deadline {
            return Err(Err(tried.join("; ")));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ROUND_PAUSE.1);
    }
}

/// Runs for as long as the mount: keep-alive, and reconnection.
pub async fn supervise(core: Weak<Core>, mut addresses: Addresses, mut link: Arc<Link>, mut door: Arc<Door>) {
    loop {
        keep_alive(&core, &link, &door).await;
        addresses.are_at(std::mem::take(&mut door.members.lock()));
        let Some(strong) = core.upgrade() else { return };
        strong.session.set(None);
        if strong.session.is_stopped() {
            return;
        }
        let lost_at = Instant::now();
        let server = strong.session_address();
        addresses.lose(&server);
        drop(strong);
        tracing::info!(server, "connection to the MetaServer lost");
        let Some(greeted) = reconnect(&core, &mut addresses).await else { return };
        let Some(strong) = core.upgrade() else { return greeted.link.close() };
        tracing::info!(server = greeted.address, after = ?lost_at.elapsed(), "connected again");
        link = greeted.link.clone();
        door = greeted.door.clone();
        if let Some(connection) = strong.welcomed(greeted) {
            strong.session.set(Some(connection));
        }
        if strong.session.is_stopped() {
            return link.close();
        }
    }
}

/// Until the mount ends (`None`) or a server takes the session.
async fn reconnect(core: &Weak<Core>, addresses: &mut Addresses) -> Option<Greeted> {
    let mut pause = ROUND_PAUSE.0;
    let begun = Instant::now();
    let mut told = begun;
    loop {
        let mut tried = Vec::new();
        let (hello, hint, timeout) = {
            let core = core.upgrade().filter(|core| !core.session.is_stopped())?;
            (core.hello(), core.session.take_hint(), core.config.connect_timeout)
        };
        match round(addresses, hint, &hello, timeout, Some(core), &mut tried).await {
            Some(Greeting::Welcome(greeted)) => return Some(*greeted),
            Some(Greeting::NoSession) => {
                let core = core.upgrade()?;
                if core.session.is_leaving() {
                    core.session.has_ended();
                    core.session.stop();
                    return None;
                }
                core.fenced();
                continue;
            }
            Some(Greeting::Refused(failure)) => tried.push(failure.text),
            _ => {}
        }
        if told.elapsed() > Duration::from_secs(10) {
            tracing::warn!(tried = tried.join("; "), "no MetaServer leads; trying on");
            told = Instant::now();
        }
        tokio::time::sleep(pause).await;
        let longest = if begun.elapsed() < ELECTION { ELECTION_PAUSE } else { ROUND_PAUSE.1 };
        pause = (pause * 2).min(longest);
    }
}

/// Waits until it is time for the next KeepAlive, or, and then true, requests have waited for so long that the server may be
/// gone without a word: frozen, or cut off.
async fn beat_is_due(core: &Weak<Core>, period: Duration) -> bool {
    let begun = Instant::now();
    loop {
        let left = period.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return false;
        }
        tokio::time::sleep(left.min(LOOK)).await;
        let Some(core) = core.upgrade() else { return false };
        let waits = core.session.waits.list();
        if begun.elapsed() >= SUSPICION && waits.iter().any(|wait| wait.since.elapsed() >= SUSPICION) {
            return true;
        }
    }
}

/// Renews the session until the connection ends.
async fn keep_alive(core: &Weak<Core>, link: &Arc<Link>, door: &Arc<Door>) {
    let closed = door.closed.notified();
    tokio::pin!(closed);
    while let Some(period) = core.upgrade().map(|core| core.validity() / 4) {
        let suspicious = tokio::select! {
            () = &mut closed => return,
            suspicious = beat_is_due(core, period) => suspicious,
        };
        let timeout = if suspicious { PROBE_TIMEOUT.min(period * 2) } else { period * 2 };
        let sent = BootTime::now();
        let beat = async {
            let Some(message) = core.upgrade().map(|core| core.keep_alive()) else { return };
            let reply = tokio::time::timeout(timeout, link.call(&message, Vec::new())).await;
            let Some(core) = core.upgrade() else { return };
            match reply {
                Ok(Ok((reply, _))) => {
                    *door.members.lock() = reply.metas;
                    core.renewed(sent);
                }
                Ok(Err(CallError::Refused(failure))) if failure.code() == Code::Retry => {}
                Ok(Err(CallError::Refused(failure))) => {
                    if let Some(connection) = core.session.current() {
                        core.session.refused(&connection, &failure);
                    }
                    link.close();
                }
                Ok(Err(_)) => link.close(),
                Err(_) => {
                    tracing::warn!(server = %link.peer(), "no answer to a keep-alive: connecting anew");
                    link.close();
                }
            }
        };
        tokio::select! {
            () = &mut closed => return,
            () = beat => {}
        }
    }
    link.close();
    closed.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_servers_are_now_is_tried_before_where_they_were() {
        let mut addresses = Addresses::new(vec!["a:1".into(), "b:1".into()]);
        assert_eq!(addresses.all(), ["a:1", "b:1"]);
        addresses.prefer("b:1");
        assert_eq!(addresses.all(), ["b:1", "a:1"]);
        addresses.are_at(vec!["b:1".into(), "c:1".into(), "d:1".into()]);
        assert_eq!(addresses.all(), ["b:1", "c:1", "d:1", "a:1"]);
        addresses.are_at(Vec::new());
        addresses.prefer("d:1");
        assert_eq!(addresses.all(), ["d:1", "b:1", "c:1", "a:1"]);
        addresses.lose("d:1");
        assert_eq!(addresses.all(), ["b:1", "c:1", "a:1", "d:1"]);
        addresses.prefer("d:1");
        assert_eq!(addresses.all()[0], "d:1");
    }
}

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
/// Times that servers may send us on to one another within a round.
const HINTS_MAX: usize = 4;
/// Addresses learned from servers that are kept beside the configured ones.
const LEARNED_MAX: usize = 16;

/// Which addresses to try, in order.
pub struct Addresses {
    configured: Vec<String>,
    learned: VecDeque<String>,
}

impl Addresses {
    /// Those of the configuration.
    pub fn new(configured: Vec<String>) -> Self {
        Addresses { configured, learned: VecDeque::new() }
    }

    /// This one first from now on.
    fn prefer(&mut self, address: &str) {
        if let Some(at) = self.configured.iter().position(|a| a == address) {
            self.configured[..=at].rotate_right(1);
        } else {
            self.learned.retain(|a| a != address);
            self.learned.push_front(address.to_owned());
            self.learned.truncate(LEARNED_MAX);
        }
    }

    fn all(&self) -> VecDeque<String> {
        self.configured.iter().chain(&self.learned).cloned().collect()
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
    queue.extend(first.iter().cloned());
    if first.is_some() {
        queue.rotate_right(1);
    }
    let mut hints = 0;
    while let Some(address) = queue.pop_front() {
        match greet(&address, hello, timeout, core.cloned()).await {
            Greeting::Welcome(greeted) => {
                addresses.prefer(&address);
                return Some(Greeting::Welcome(greeted));
            }
            Greeting::NotLeader(leader) => {
                tried.push(format!("{address}: not the leader"));
                if let Some(leader) = leader.filter(|_| hints < HINTS_MAX) {
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
        let Some(strong) = core.upgrade() else { return };
        strong.session.set(None);
        if strong.session.is_stopped() {
            return;
        }
        let lost_at = Instant::now();
        let server = strong.session_address();
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
    let mut told = Instant::now();
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
        pause = (pause * 2).min(ROUND_PAUSE.1);
    }
}

/// Renews the session until the connection ends.
async fn keep_alive(core: &Weak<Core>, link: &Arc<Link>, door: &Arc<Door>) {
    let closed = door.closed.notified();
    tokio::pin!(closed);
    while let Some(period) = core.upgrade().map(|core| core.validity() / 4) {
        tokio::select! {
            () = &mut closed => return,
            () = tokio::time::sleep(period) => {}
        }
        let sent = BootTime::now();
        let beat = async {
            let Some(message) = core.upgrade().map(|core| core.keep_alive()) else { return };
            let reply = tokio::time::timeout(period * 2, link.call(&message, Vec::new())).await;
            let Some(core) = core.upgrade() else { return };
            match reply {
                Ok(Ok(_)) => core.renewed(sent),
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

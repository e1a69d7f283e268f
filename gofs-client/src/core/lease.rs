//! Getting leases, and keeping one for the length of an operation.

use std::sync::Arc;
use std::time::Duration;

use gofs_proto::convert::{self, ConvertError, Node};
use gofs_proto::session::Fetch;
use gofs_tree::{Attr, FsError, Ino, LeaseMode};

use super::Core;
use super::learn::garbled;
use crate::cached::Cached;
use crate::clock::BootTime;
use crate::lease::{Holding, LeaseTable, LockedPages};

/// Pause before a lease that was not granted is asked for again: from, to.
const AGAIN_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Times that a lease is asked for again after ESTALE.
const CROSSED_MAX: u32 = 3;

/// Keeps a lease until dropped: a recall of it waits.
pub struct Hold {
    core: Arc<Core>,
    ino: Ino,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.core.table.lock().end_hold(self.ino);
        self.core.changed.notify_waiters();
    }
}

/// A request that waits while the kernel keeps pages locked for it.
pub struct PageWait {
    core: Arc<Core>,
    ino: Ino,
    pages: Arc<LockedPages>,
}

impl Drop for PageWait {
    fn drop(&mut self) {
        self.core.table.lock().end_page_wait(self.ino, &self.pages);
    }
}

/// Slows down a loop that asks for a lease in vain.
#[derive(Default)]
pub struct Again {
    pause: Option<Duration>,
}

impl Again {
    /// Before another try: not before the first.
    pub async fn turn(&mut self, core: &Core) {
        if let Some(pause) = self.pause {
            core.pause(pause).await;
        }
        self.pause = Some(self.pause.map_or(AGAIN_PAUSE.0, |pause| (pause * 2).min(AGAIN_PAUSE.1)));
    }
}

impl Core {
    /// Asks the server for an inode and a lease on it. Without a grant the answer is for one use.
    pub async fn fetch(self: &Arc<Self>, ino: Ino, want: LeaseMode) -> Result<Cached<Attr>, FsError> {
        self.settled(ino).await?;
        let core = self.clone();
        let request = Fetch { ino: ino.0, want: convert::lease_mode_to_wire(Some(want)) };
        self.session
            .call(request, move |reply| {
                let node = reply.node.as_ref().ok_or(ConvertError::Missing("node"));
                let node = node.and_then(Node::try_from).map_err(|e| garbled(&e))?;
                let mut table = core.table.lock();
                let learned = core.take_in(&mut table, &node);
                let answer = core.answer(&mut table, node.attr, learned);
                core.after_learning(table);
                Ok(answer)
            })
            .await
    }

    /// From now on, and until it is dropped, recalls need not wait for these pages.
    pub fn wait_with(self: &Arc<Self>, ino: Ino, pages: Arc<LockedPages>) -> PageWait {
        self.table.lock().begin_page_wait(ino, pages.clone());
        PageWait { core: self.clone(), ino, pages }
    }

    /// For a hold that the table has already counted.
    pub fn held(self: &Arc<Self>, ino: Ino) -> Hold {
        Hold { core: self.clone(), ino }
    }

    /// Keeps at least `mode` on the inode, fetching it first where need be. At once where it is held.
    pub async fn hold(self: &Arc<Self>, ino: Ino, mode: LeaseMode) -> Result<Hold, FsError> {
        self.hold_by(ino, mode, LeaseTable::hold).await
    }

    /// As `hold`, by the way in which the table is asked.
    pub async fn hold_by(
        self: &Arc<Self>,
        ino: Ino,
        mode: LeaseMode,
        ask: fn(&mut LeaseTable, Ino, LeaseMode, BootTime) -> Holding,
    ) -> Result<Hold, FsError> {
        let mut again = Again::default();
        let mut crossed = 0;
        loop {
            let holding = self
                .wait_for(|table| match ask(table, ino, mode, BootTime::now()) {
                    Holding::Wait => None,
                    holding @ (Holding::Held | Holding::NeedLease) => Some(holding),
                })
                .await?;
            if holding == Holding::Held {
                return Ok(self.held(ino));
            }
            again.turn(self).await;
            match self.fetch(ino, mode).await {
                // The server's way out where two hosts wait for each other; the kernel does not repeat a write for it.
                Err(FsError::Stale) if crossed < CROSSED_MAX => crossed += 1,
                answer => drop(answer?),
            }
        }
    }

    /// Keeps `mode` if that needs no waiting.
    pub fn hold_at_once(self: &Arc<Self>, ino: Ino, mode: LeaseMode) -> Option<Hold> {
        let holding = self.table.lock().hold(ino, mode, BootTime::now());
        (holding == Holding::Held).then(|| self.held(ino))
    }
}

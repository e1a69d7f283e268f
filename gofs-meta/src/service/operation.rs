//! An operation in a task: waits until it may run, and ends whatever happens to the task.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use gofs_proto::session as wire;
use gofs_tree::{Ino, LeaseMode, SessionId};
use tokio::sync::oneshot;

use super::Refusal;
use super::space::{ConnectionId, Space};
use crate::lease::{self, LeaseTable, Need, Now, OpId};

/// An operation that may run. Dropped without [`Operation::finish`] it ends without a grant.
pub(crate) struct Operation {
    space: Arc<Space>,
    session: SessionId,
    connection: ConnectionId,
    id: OpId,
    over: bool,
}

/// Hands out grants at the end of an operation, while its reply is made.
pub(crate) struct Grants<'a> {
    pub leases: &'a mut LeaseTable,
    id: OpId,
    now: Now,
    /// Whether the reply reaches the session: a grant that it cannot know of is not given.
    current: bool,
}

impl Operation {
    /// Waits until the operation may run. `firm`: see [`LeaseTable::make_firm`].
    pub async fn begin(
        space: &Arc<Space>,
        session: SessionId,
        connection: ConnectionId,
        needs: Vec<Need>,
        firm: bool,
    ) -> Result<Operation, Refusal> {
        let (id, may_run) = space.begin(session, connection, needs, firm)?;
        let mut operation = Operation { space: space.clone(), session, connection, id, over: false };
        operation.wait(may_run).await?;
        Ok(operation)
    }

    async fn wait(&mut self, may_run: oneshot::Receiver<Result<(), Refusal>>) -> Result<(), Refusal> {
        match may_run.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(refusal)) => {
                self.over = true;
                Err(refusal)
            }
            // The session, its connection or the term has ended, and with it the operation.
            Err(_) => {
                self.over = true;
                Err(self.space.lock().gone())
            }
        }
    }

    /// Makes and queues the reply with its grants, then lets others have the inodes.
    pub fn finish(mut self, reply: impl FnOnce(&mut Grants<'_>)) {
        self.over = true;
        let space = self.space.clone();
        let mut inner = space.lock();
        let current = inner.is_current(self.session, self.connection);
        let now = space.shared.now();
        reply(&mut Grants { leases: &mut inner.leases, id: self.id, now, current });
        let effects = inner.leases.end(space.shared.now(), self.id);
        space.perform(&mut inner, effects);
    }

    /// Grants Write on inodes that it is about to make, whether its reply reaches the session or not: it has them already,
    /// and says so when it is back. Nobody else may have seen them before.
    pub fn makes(&self, inos: impl IntoIterator<Item = Ino>) {
        let mut inner = self.space.lock();
        for ino in inos {
            inner.leases.grant_new(self.id, ino);
        }
    }

    /// The inodes that it has: all that it needed, and the optional ones that it got.
    pub fn inodes(&self) -> HashSet<Ino> {
        self.space.lock().leases.inodes_of(self.id)
    }

    /// Sessions that have the inode open, as far as they had to say so.
    pub fn holders(&self, ino: Ino) -> Vec<SessionId> {
        self.space.lock().leases.holders(ino)
    }

    /// The same for several inodes; those that nobody has open are left out.
    pub fn holders_among(&self, inos: impl Iterator<Item = Ino>) -> HashMap<Ino, Vec<SessionId>> {
        let inner = self.space.lock();
        inos.map(|ino| (ino, inner.leases.holders(ino))).filter(|(_, holders)| !holders.is_empty()).collect()
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if !self.over {
            let space = self.space.clone();
            let mut inner = space.lock();
            let effects = inner.leases.end(space.shared.now(), self.id);
            space.perform(&mut inner, effects);
        }
    }
}

impl Grants<'_> {
    /// Grants or confirms a lease on an inode that the operation needed.
    pub fn grant(&mut self, ino: Ino, mode: LeaseMode) -> Option<wire::Grant> {
        if !self.current {
            return None;
        }
        self.leases.grant(self.id, ino, mode).map(to_wire)
    }

    /// The same, with Write where nobody else wants the inode; without `least` what is held anyway is confirmed.
    pub fn best(&mut self, ino: Ino, least: Option<LeaseMode>) -> Option<wire::Grant> {
        if !self.current {
            return None;
        }
        self.leases.grant_best(self.now, self.id, ino, least).map(to_wire)
    }

    /// Grants Write on an inode that the operation made.
    pub fn made(&mut self, ino: Ino) -> Option<wire::Grant> {
        if !self.current {
            return None;
        }
        self.leases.grant_new(self.id, ino).map(to_wire)
    }

    /// What [`Operation::makes`] granted was not made, or is gone.
    pub fn not_made(&mut self, ino: Ino) {
        self.leases.take_back_new(self.id, ino);
    }

    /// Confirms what [`Operation::makes`] granted, if nothing has come of it since.
    pub fn confirm_made(&mut self, ino: Ino) -> Option<wire::Grant> {
        if !self.current {
            return None;
        }
        self.leases.confirm_new(self.id, ino).map(to_wire)
    }
}

fn to_wire(grant: lease::Grant) -> wire::Grant {
    gofs_proto::convert::Grant { ino: grant.ino, mode: grant.mode, epoch: grant.epoch }.into()
}

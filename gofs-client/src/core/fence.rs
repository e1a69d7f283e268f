//! A session ends or goes on: what stays, what is lost.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use gofs_tree::{FsError, Ino, LeaseMode, SessionId};

use super::{Core, Place, usable_validity};
use crate::clock::BootTime;
use crate::session::{Connection, Generation, Greeted};

/// Threads that make the kernel forget everything: one that writes a dirty page back must not keep the rest waiting.
const FORGET_THREADS: usize = 4;

/// Longest pause between looks at the session's validity.
const EXPIRY_LOOK: Duration = Duration::from_millis(500);

impl Core {
    /// A server has taken the session. `None` where it is not the one that was mounted.
    pub fn welcomed(self: &Arc<Self>, greeted: Greeted) -> Option<Connection> {
        let Greeted { link, welcome, sent, address, .. } = greeted;
        let place = Place::of(&welcome);
        if place != self.place {
            tracing::error!(server = address, "it serves another cluster or namespace than was mounted");
            link.close();
            return None;
        }
        let session = SessionId(welcome.session);
        let generation = {
            let mut identity = self.identity.lock();
            if identity.session != session {
                identity.session = session;
                identity.token = welcome.token.clone();
                tracing::info!(session = session.0, "new session");
            }
            identity.validity = usable_validity(&welcome);
            identity.generation
        };
        let refused: Vec<Ino> = welcome.refused_leases.iter().copied().map(Ino).collect();
        {
            let mut table = self.table.lock();
            let told = table.registered_opens();
            table.opens_registered(&told);
            table.begin_void(&refused);
            for ino in &refused {
                table.lose(*ino);
                if table.drop_parked(*ino) {
                    self.data.fail(*ino, FsError::Io);
                }
                self.lose_data(*ino);
            }
            table.renew(sent.after(self.validity()));
        }
        self.changed.notify_waiters();
        if !refused.is_empty() {
            tracing::warn!(leases = refused.len(), "leases were not given again");
            self.make_kernel_forget_each(refused, Core::void_forgotten);
        }
        self.cover_opens();
        Some(Connection { link, address: address.into(), generation })
    }

    pub(super) fn lose_data(&self, ino: Ino) {
        if self.data.discard(ino) {
            self.lost_files.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The servers have ended the session: everything cached is void, what was not written is lost.
    pub fn fenced(self: &Arc<Self>) {
        let known = {
            let mut table = self.table.lock();
            let known = table.known();
            for ino in table.parked() {
                self.data.fail(ino, FsError::Io);
            }
            table.begin_void(&known);
            table.lose_all();
            known
        };
        let lost = self.data.discard_all();
        self.lost_files.fetch_add(lost, Ordering::Relaxed);
        let locks = self.locks.lock().clear();
        let edits = {
            let mut identity = self.identity.lock();
            identity.session = SessionId(0);
            identity.token = Default::default();
            identity.generation = Generation(identity.generation.0 + 1);
            self.inos.lock().clear();
            self.chunks.lock().clear();
            self.slices.reset();
            self.log.lock().lose_all()
        };
        tracing::error!(
            lost_files = lost,
            lost_locks = locks,
            lost_edits = edits.len(),
            "the session was ended by the servers (no sign of life in time): unwritten changes and locks are lost"
        );
        self.lose_edits(edits, FsError::Io);
        self.changed.notify_waiters();
        self.make_kernel_forget_each(known, Core::void_forgotten);
    }

    /// Runs for as long as the mount: when the session's validity has passed, the kernel must not answer from its copies
    /// either. Names and attributes end by themselves, pages do not.
    pub async fn watch_validity(core: Weak<Core>) {
        let mut expired = false;
        loop {
            let Some(strong) = core.upgrade().filter(|core| !core.session.is_stopped()) else { return };
            let left = strong.table.lock().validity(BootTime::now());
            if left.is_zero() && !expired {
                tracing::warn!(
                    "no server has renewed the session: nothing is answered from the cache until one does"
                );
                let known = strong.table.lock().known();
                strong.make_kernel_forget_all(known);
            }
            expired = left.is_zero();
            drop(strong);
            // Looked at often, because a suspended host's timers stand still and validity does not.
            let pause = if expired { EXPIRY_LOOK } else { left.min(EXPIRY_LOOK) };
            tokio::time::sleep(pause.max(Duration::from_millis(1))).await;
        }
    }

    fn void_forgotten(&self, ino: Ino) {
        self.table.lock().end_void(ino);
    }

    /// Not waited for: the kernel writes dirty pages back, which may need the next session.
    pub(super) fn make_kernel_forget_all(self: &Arc<Self>, inos: Vec<Ino>) {
        self.make_kernel_forget_each(inos, |_, _| {});
    }

    /// As `make_kernel_forget_all`; `forgotten` is told of each.
    fn make_kernel_forget_each(self: &Arc<Self>, inos: Vec<Ino>, forgotten: fn(&Core, Ino)) {
        let kernel = self.kernel.clone();
        self.runtime.spawn_blocking(move || kernel.invalidate_entries());
        for part in inos.chunks(inos.len().div_ceil(FORGET_THREADS).max(1)) {
            let (core, part) = (self.clone(), part.to_vec());
            self.runtime.spawn_blocking(move || {
                for ino in part {
                    core.kernel.invalidate_inode(ino);
                    forgotten(&core, ino);
                }
            });
        }
    }

    /// A lease for each open inode that has none, so that its last name can go without the bytes.
    fn cover_opens(self: &Arc<Self>) {
        let bare: Vec<Ino> = {
            let table = self.table.lock();
            table.open_inodes().into_iter().filter(|ino| table.mode(*ino).is_none()).collect()
        };
        if bare.is_empty() {
            return;
        }
        let core = self.clone();
        self.runtime.spawn(async move {
            for ino in bare {
                if let Err(error) = core.fetch(ino, LeaseMode::Read).await {
                    tracing::warn!(%ino, %error, "an open file is not there any more");
                }
            }
        });
    }
}

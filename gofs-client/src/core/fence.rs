//! A session ends or goes on: what stays, what is lost.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use gofs_tree::{FsError, Ino, LeaseMode, SessionId};
use parking_lot::Mutex;

use super::{Core, Place, usable_validity};
use crate::clock::BootTime;
use crate::session::{Connection, Generation, Greeted};

/// Threads that make the kernel forget everything.
const FORGET_THREADS: usize = 4;

/// How long one inode may take before another thread goes on with the rest: the kernel waits for requests in flight, and for dirty
/// pages to be written back, which may take until the next session.
const FORGET_WAIT: Duration = Duration::from_millis(20);

/// Inodes that may wait so at a time: each keeps a thread.
const FORGET_STUCK_MAX: usize = 64;

/// Longest pause between looks at the session's validity.
const EXPIRY_LOOK: Duration = Duration::from_millis(500);

/// Inodes that the kernel is made to forget.
struct Forgetting {
    left: std::vec::IntoIter<Ino>,
    /// Threads that may still be added for those that wait.
    spare: usize,
    /// Is told of each.
    forgotten: fn(&Core, Ino),
}

impl Forgetting {
    fn take_spare(&mut self) -> bool {
        let left = self.spare.checked_sub(1);
        self.spare = left.unwrap_or(0);
        left.is_some()
    }
}

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
        let forgetting =
            Forgetting { left: inos.into_iter(), spare: FORGET_STUCK_MAX - FORGET_THREADS, forgotten };
        let forgetting = Arc::new(Mutex::new(forgetting));
        for _ in 0..FORGET_THREADS {
            self.forget_more(forgetting.clone());
        }
    }

    fn forget_more(self: &Arc<Self>, forgetting: Arc<Mutex<Forgetting>>) {
        self.runtime.spawn(self.clone().forget_each(forgetting));
    }

    /// One after the other until there are none, or another has taken over.
    async fn forget_each(self: Arc<Self>, forgetting: Arc<Mutex<Forgetting>>) {
        let mut is_replaced = false;
        while !is_replaced {
            let Some(ino) = forgetting.lock().left.next() else { return };
            let kernel = self.kernel.clone();
            let pass = self.in_kernel(move || kernel.invalidate_inode(ino));
            tokio::pin!(pass);
            if tokio::time::timeout(FORGET_WAIT, &mut pass).await.is_err() {
                is_replaced = forgetting.lock().take_spare();
                if is_replaced {
                    self.forget_more(forgetting.clone());
                }
                // What is not in the way itself need not wait for what is.
                let waiting = self.table.lock().waiting_pages(ino);
                if !waiting.is_empty() {
                    self.forget_around(ino, &waiting).await;
                }
                pass.await;
            }
            let forgotten = forgetting.lock().forgotten;
            forgotten(&self, ino);
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

//! Byte-range locks, kept by the server; here only so that they can be claimed back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use gofs_proto::session::{CancelLock, GetLock, Lock, SetLock, Unlock};
use gofs_tree::{FsError, Ino};

use crate::client::Client;
use crate::core::Core;
use crate::handle::FileLock;

fn to_wire(ino: Ino, lock: FileLock) -> Lock {
    Lock {
        ino: ino.0,
        owner: lock.owner,
        start: lock.start,
        end: lock.end,
        exclusive: lock.exclusive,
        pid: lock.pid,
    }
}

const WAITING: u8 = 0;
const GRANTED: u8 = 1;
const GIVEN_UP: u8 = 2;

/// A lock that is asked for. Dropped before it is granted, the wait ends; dropped unseen after, the lock goes.
struct LockWait {
    core: Arc<Core>,
    ino: Ino,
    lock: FileLock,
    wait_id: u64,
    state: Arc<AtomicU8>,
    seen: bool,
}

impl Drop for LockWait {
    fn drop(&mut self) {
        if self.seen {
            return;
        }
        let (core, ino, lock, wait_id) = (self.core.clone(), self.ino, self.lock, self.wait_id);
        match self.state.swap(GIVEN_UP, Ordering::AcqRel) {
            GRANTED => core.let_go(ino, lock),
            _ if wait_id != 0 => {
                let runtime = core.runtime.clone();
                runtime.spawn(async move {
                    let cancelled = core.session.call_long(CancelLock { wait_id }, |_| Ok(())).await;
                    if let Err(error) = cancelled {
                        tracing::debug!(%ino, %error, "a wait for a lock could not be cancelled");
                    }
                });
            }
            _ => {}
        }
    }
}

impl Core {
    fn let_go(self: &Arc<Self>, ino: Ino, lock: FileLock) {
        let core = self.clone();
        self.runtime.spawn(async move {
            if let Err(error) = core.unlock(ino, lock.owner, lock.start, lock.end).await {
                tracing::warn!(%ino, %error, "a lock that nobody waits for any more could not be given back");
            }
        });
    }

    async fn unlock(&self, ino: Ino, owner: u64, start: u64, end: u64) -> Result<(), FsError> {
        if !self.locks.lock().holds_any(ino, owner) {
            return Ok(());
        }
        self.locks.lock().remove(ino, owner, start, end);
        self.session.call(Unlock { ino: ino.0, owner, start, end }, |_| Ok(())).await
    }
}

impl Client {
    /// A lock that would be in the way of this one.
    pub async fn get_lock(&self, ino: Ino, lock: FileLock) -> Result<Option<FileLock>, FsError> {
        self.core.settled(ino).await?;
        let request = GetLock { lock: Some(to_wire(ino, lock)) };
        self.core
            .session
            .call(request, |reply| {
                Ok(reply.conflict.map(|conflict| FileLock {
                    owner: conflict.owner,
                    start: conflict.start,
                    end: conflict.end,
                    exclusive: conflict.exclusive,
                    pid: conflict.pid,
                }))
            })
            .await
    }

    /// Takes a lock in place of what the owner has on these bytes. WouldBlock where another's is in the way and `wait`
    /// is not set, Deadlock where waiting would never end. Dropping the future ends the wait.
    pub async fn set_lock(&self, ino: Ino, lock: FileLock, wait: bool) -> Result<(), FsError> {
        self.core.settled(ino).await?;
        let core = &self.core;
        let wait_id = if wait { core.lock_waits.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 };
        let state = Arc::new(AtomicU8::new(WAITING));
        let mut waiting =
            LockWait { core: core.clone(), ino, lock, wait_id, state: state.clone(), seen: false };
        let owner = core.clone();
        let request = SetLock { lock: Some(to_wire(ino, lock)), wait, wait_id };
        let granted = core.session.call_long(request, move |_| {
            owner.locks.lock().set(ino, lock);
            if state.swap(GRANTED, Ordering::AcqRel) == GIVEN_UP {
                owner.let_go(ino, lock);
            }
            Ok(())
        });
        let result = granted.await;
        waiting.seen = true;
        result
    }

    /// Gives back what the owner has on `start..=end`.
    pub async fn unlock(&self, ino: Ino, owner: u64, start: u64, end: u64) -> Result<(), FsError> {
        self.core.unlock(ino, owner, start, end).await
    }

    /// At close: every lock of that owner on that inode goes. Asks nobody where it holds none.
    pub async fn release_locks(&self, ino: Ino, owner: u64) -> Result<(), FsError> {
        self.core.unlock(ino, owner, 0, u64::MAX).await
    }
}

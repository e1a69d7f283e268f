//! Byte-range locks, kept by the server; here only so that they can be claimed back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gofs_proto::session::{CancelLock, GetLock, Lock, SetLock, Unlock};
use gofs_tree::{FsError, Ino};
use parking_lot::Mutex;

use crate::client::Client;
use crate::core::Core;
use crate::handle::FileLock;
use crate::session::Generation;

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

/// A lock that counts: in which life of the session, and what its owner had on these bytes before.
struct Granted {
    generation: Generation,
    before: Vec<FileLock>,
}

/// A lock that is asked for. Dropped before its answer was seen, the wait ends, and what was granted is given back.
struct LockWait {
    core: Arc<Core>,
    ino: Ino,
    lock: FileLock,
    wait_id: u64,
    granted: Arc<Mutex<Option<Granted>>>,
    seen: bool,
}

impl Drop for LockWait {
    fn drop(&mut self) {
        if self.seen {
            return;
        }
        let (core, ino, lock, wait_id) = (self.core.clone(), self.ino, self.lock, self.wait_id);
        let granted = self.granted.clone();
        // From here on, so that what the owner does next comes after it.
        core.locks.lock().begin_leaving(ino, lock.owner);
        let runtime = core.runtime.clone();
        runtime.spawn(async move {
            if let Err(error) = core.leave(ino, lock, wait_id, &granted).await {
                tracing::warn!(%ino, %error, "a lock that nobody waits for any more could not be given back");
            }
            core.locks.lock().end_leaving(ino, lock.owner);
            core.locks_left.notify_waiters();
        });
    }
}

impl Core {
    /// Ends a wait. Where the lock was granted meanwhile, the owner has again what it had before.
    async fn leave(
        &self,
        ino: Ino,
        lock: FileLock,
        wait_id: u64,
        granted: &Mutex<Option<Granted>>,
    ) -> Result<(), FsError> {
        // Also where nobody waits: the answer comes behind that to the lock, if there is one.
        self.session.call_long(CancelLock { wait_id }, |_| Ok(())).await?;
        let Some(Granted { generation, before }) = granted.lock().take() else { return Ok(()) };
        if self.generation() != generation {
            // It went with its session.
            return Ok(());
        }
        {
            let mut held = self.locks.lock();
            held.remove(ino, lock.owner, lock.start, lock.end);
            for piece in &before {
                held.set(ino, *piece);
            }
        }
        let mut next = Some(lock.start);
        for piece in before {
            let Some(start) = next else { break };
            if start < piece.start {
                self.unlock_there(ino, lock.owner, start, piece.start - 1).await?;
            }
            // Weaker than what is held, or the same: nothing is in its way.
            let request = SetLock { lock: Some(to_wire(ino, piece)), wait: false, wait_id: 0 };
            self.session.call_in(generation, request, |_| Ok(())).await?;
            next = piece.end.checked_add(1);
        }
        match next.filter(|start| *start <= lock.end) {
            Some(start) => self.unlock_there(ino, lock.owner, start, lock.end).await,
            None => Ok(()),
        }
    }

    async fn unlock_there(&self, ino: Ino, owner: u64, start: u64, end: u64) -> Result<(), FsError> {
        self.session.call(Unlock { ino: ino.0, owner, start, end }, |_| Ok(())).await
    }

    /// Waits until every lock that the owner does not want any more is given back: that would take what it is given now.
    async fn left_locks(&self, ino: Ino, owner: u64) {
        loop {
            let mut left = std::pin::pin!(self.locks_left.notified());
            left.as_mut().enable();
            if !self.locks.lock().is_leaving(ino, owner) {
                return;
            }
            left.await;
        }
    }

    async fn unlock(&self, ino: Ino, owner: u64, start: u64, end: u64) -> Result<(), FsError> {
        self.session.patiently(self.left_locks(ino, owner)).await?;
        if !self.locks.lock().holds_any(ino, owner) {
            return Ok(());
        }
        self.locks.lock().remove(ino, owner, start, end);
        self.unlock_there(ino, owner, start, end).await
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
        core.left_locks(ino, lock.owner).await;
        let wait_id = core.lock_waits.fetch_add(1, Ordering::Relaxed) + 1;
        // What its owner has less of then is not claimed in a Hello from now on.
        let before = core.locks.lock().weaken(ino, lock);
        let weakened = (!before.is_empty()).then(|| Granted { generation: core.generation(), before });
        let granted = Arc::new(Mutex::new(weakened));
        let mut waiting =
            LockWait { core: core.clone(), ino, lock, wait_id, granted: granted.clone(), seen: false };
        let owner = core.clone();
        let request = SetLock { lock: Some(to_wire(ino, lock)), wait, wait_id };
        let answer = core.session.call_long(request, move |_| {
            let generation = owner.generation();
            let before = owner.locks.lock().set(ino, lock);
            let mut granted = granted.lock();
            if granted.as_ref().is_none_or(|weakened| weakened.generation != generation) {
                *granted = Some(Granted { generation, before });
            }
            Ok(())
        });
        let result = answer.await;
        waiting.seen = true;
        if result == Err(FsError::NoLocks)
            && let Some(Granted { before, .. }) = waiting.granted.lock().take()
        {
            let mut held = core.locks.lock();
            before.into_iter().for_each(|piece| drop(held.set(ino, piece)));
        }
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

//! Advisory locks: SetLock, Unlock, GetLock, CancelLock. All are decided at once, in the order in which they came.

use std::sync::Arc;

use gofs_proto::{convert, session as wire};
use gofs_tree::{FsError, Ino, SessionId};

use super::Refusal;
use super::answer::Answer;
use super::connection::Member;
use super::space::LockWaiter;
use crate::lock::{Lock, LockOwner, LockRange, SetOutcome};

fn range(start: u64, end: u64) -> Result<LockRange, Refusal> {
    LockRange::new(start, end).ok_or(Refusal::Fs(FsError::Invalid))
}

/// A lock of that session.
pub(super) fn from_wire(session: SessionId, lock: &wire::Lock) -> Result<(Ino, Lock), Refusal> {
    let owner = LockOwner { session, owner: lock.owner };
    let range = range(lock.start, lock.end)?;
    Ok((convert::ino(lock.ino)?, Lock { owner, range, exclusive: lock.exclusive, pid: lock.pid }))
}

fn to_wire(ino: Ino, lock: &Lock) -> wire::Lock {
    wire::Lock {
        ino: ino.0,
        owner: lock.owner.owner,
        start: lock.range.start(),
        end: lock.range.end(),
        exclusive: lock.exclusive,
        pid: lock.pid,
    }
}

/// In grace a lock that nobody seems to hold may be that of a session which is not back.
fn after_grace(member: &Member) -> Result<(), Refusal> {
    if member.term.in_grace() {
        return Err(Refusal::Retry("a new leader waits for mounts to reclaim their locks".into()));
    }
    Ok(())
}

pub(super) fn set(
    member: &Arc<Member>,
    request: &wire::SetLock,
    answer: Answer<wire::SetLock>,
) -> Result<(), Refusal> {
    after_grace(member)?;
    let lock = request.lock.as_ref().ok_or_else(|| Refusal::BadRequest("lock is missing".into()))?;
    let (ino, lock) = from_wire(member.session, lock)?;
    let mut inner = member.space.lock();
    if !inner.is_current(member.session, member.connection) {
        return Err(inner.gone());
    }
    let (outcome, granted) = inner.locks.set(ino, lock, request.wait)?;
    match outcome {
        SetOutcome::Granted => answer.send(&wire::SetLockReply {}),
        SetOutcome::Waiting(wait) => {
            let (connection, session) = (member.connection, member.session);
            inner
                .lock_waits
                .insert(wait, LockWaiter { connection, session, wait_id: request.wait_id, answer });
        }
    }
    inner.grant_locks(granted);
    Ok(())
}

pub(super) fn unlock(
    member: &Arc<Member>,
    request: &wire::Unlock,
    answer: &Answer<wire::Unlock>,
) -> Result<(), Refusal> {
    let ino = convert::ino(request.ino)?;
    let range = range(request.start, request.end)?;
    let owner = LockOwner { session: member.session, owner: request.owner };
    let mut inner = member.space.lock();
    let granted = inner.locks.unlock(ino, owner, range);
    answer.send(&wire::UnlockReply {});
    inner.grant_locks(granted);
    Ok(())
}

pub(super) fn get(
    member: &Arc<Member>,
    request: &wire::GetLock,
    answer: &Answer<wire::GetLock>,
) -> Result<(), Refusal> {
    after_grace(member)?;
    let lock = request.lock.as_ref().ok_or_else(|| Refusal::BadRequest("lock is missing".into()))?;
    let (ino, lock) = from_wire(member.session, lock)?;
    let conflict = member.space.lock().locks.test(ino, &lock).map(|held| {
        // A process of another host means nothing here.
        let pid = if held.owner.session == member.session { held.pid } else { 0 };
        to_wire(ino, &Lock { pid, ..held })
    });
    answer.send(&wire::GetLockReply { conflict });
    Ok(())
}

/// Ends a request that waits; where it was granted already, that stands.
pub(super) fn cancel(
    member: &Arc<Member>,
    request: &wire::CancelLock,
    answer: &Answer<wire::CancelLock>,
) -> Result<(), Refusal> {
    let mut inner = member.space.lock();
    let ours = |waiter: &LockWaiter| waiter.session == member.session && waiter.wait_id == request.wait_id;
    let waits: Vec<_> =
        inner.lock_waits.iter().filter(|(_, waiter)| ours(waiter)).map(|(&wait, _)| wait).collect();
    for wait in waits {
        inner.locks.cancel(wait);
        if let Some(waiter) = inner.lock_waits.remove(&wait) {
            waiter.answer.refuse(&FsError::Interrupted.into());
        }
    }
    answer.send(&wire::CancelLockReply {});
    Ok(())
}

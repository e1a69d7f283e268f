//! Requests about locks: fcntl and flock. fuser does not tell them apart, so both are
//! byte-range locks in one table; flock's cover the whole file and have an owner of their own.

use fuser::{INodeNo, LockOwner, ReplyEmpty, ReplyLock, Request};
use gofs_client::FileLock;
use gofs_tree::FsError;

use super::Gofs;
use crate::backend::Backend;
use crate::requester;
use crate::stats::Operation;

/// The kernel's "to the end of the file".
const END_OF_FILE: u64 = i64::MAX as u64;

impl<B: Backend> Gofs<B> {
    pub(super) fn do_getlk(
        &self,
        request: &Request,
        ino: INodeNo,
        lock: Result<FileLock, FsError>,
        answer: ReplyLock,
    ) {
        let shared = self.shared.clone();
        let ino = shared.map.ino(ino);
        let work = async move { shared.backend.get_lock(ino, lock?).await };
        self.serve(Operation::GetLock, request, answer, work, |_, answer, found| match found {
            None => answer.locked(0, 0, libc::F_UNLCK, 0),
            Some(lock) => {
                let kind = if lock.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
                answer.locked(lock.start, lock.end.min(END_OF_FILE), kind, lock.pid);
            }
        });
    }

    pub(super) fn do_setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        lock: Result<FileLock, FsError>,
        wait: bool,
        answer: ReplyEmpty,
    ) {
        let shared = self.shared.clone();
        let ino = shared.map.ino(ino);
        let task = request.pid();
        let work = async move {
            let lock = lock?;
            if !wait {
                return shared.backend.set_lock(ino, lock, false).await;
            }
            tokio::select! {
                biased;
                result = shared.backend.set_lock(ino, lock, true) => result,
                // Dropping the other branch ends the server's wait.
                () = requester::interrupted(task) => Err(FsError::Interrupted),
            }
        };
        self.serve(Operation::SetLock, request, answer, work, |_, answer, ()| answer.ok());
    }

    pub(super) fn do_unlock(
        &self,
        request: &Request,
        ino: INodeNo,
        owner: LockOwner,
        start: u64,
        end: u64,
        answer: ReplyEmpty,
    ) {
        let shared = self.shared.clone();
        let ino = shared.map.ino(ino);
        let work = async move { shared.backend.unlock(ino, owner.0, start, last_byte(end)).await };
        self.serve(Operation::Unlock, request, answer, work, |_, answer, ()| answer.ok());
    }
}

/// A lock as the kernel describes it; `end` is inclusive.
pub(super) fn file_lock(
    owner: LockOwner,
    start: u64,
    end: u64,
    kind: i32,
    pid: u32,
) -> Result<FileLock, FsError> {
    let exclusive = if kind == libc::F_WRLCK {
        true
    } else if kind == libc::F_RDLCK {
        false
    } else {
        return Err(FsError::Invalid);
    };
    if start > end {
        return Err(FsError::Invalid);
    }
    Ok(FileLock { owner: owner.0, start, end: last_byte(end), exclusive, pid })
}

fn last_byte(end: u64) -> u64 {
    if end >= END_OF_FILE { u64::MAX } else { end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_to_the_end_of_the_file_has_no_end() {
        let lock = |end| file_lock(LockOwner(1), 5, end, libc::F_RDLCK, 9);
        assert_eq!(lock(END_OF_FILE).unwrap().end, u64::MAX);
        assert_eq!(lock(99).unwrap().end, 99);
        assert_eq!(lock(4), Err(FsError::Invalid));
        assert_eq!(file_lock(LockOwner(1), 0, 1, 77, 9), Err(FsError::Invalid));
    }
}

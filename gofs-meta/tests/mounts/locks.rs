//! Advisory locks between mounts.

use std::time::Duration;

use gofs_proto::session as wire;
use gofs_tree::{FsError, Ino};

use crate::client::*;

fn lock(ino: Ino, owner: u64, exclusive: bool) -> wire::Lock {
    wire::Lock { ino: ino.0, owner, start: 0, end: u64::MAX, exclusive, pid: 1 }
}

async fn set(mount: &Mount, lock: wire::Lock, wait_id: u64) -> Result<(), FsError> {
    let request = wire::SetLock { lock: Some(lock), wait: wait_id != 0, wait_id };
    match mount.call(request).await {
        Ok(_) => Ok(()),
        Err(error) => Err(refused(error).to_fs_error().unwrap().unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_hold_across_mounts_and_die_with_them() {
    let server = serve_with(SHORT).await;
    let (a, b) = (server.mount().await, server.mount().await);
    let ino = Ino(a.create(ROOT, "f").await.unwrap().ino);
    set(&a, lock(ino, 1, true), 0).await.unwrap();
    assert_eq!(set(&b, lock(ino, 1, true), 0).await, Err(FsError::WouldBlock));
    let conflict = b.call(wire::GetLock { lock: Some(lock(ino, 1, false)) }).await.unwrap().conflict.unwrap();
    assert_eq!((conflict.exclusive, conflict.pid), (true, 0));
    // A wait ends by an unlock,
    let waiting = set(&b, lock(ino, 1, true), 5);
    let unlock = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        a.call(wire::Unlock { ino: ino.0, owner: 1, start: 0, end: u64::MAX }).await.unwrap();
    };
    assert_eq!(tokio::join!(waiting, unlock).0, Ok(()));
    // by a signal,
    let waiting = set(&a, lock(ino, 1, false), 6);
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        a.call(wire::CancelLock { wait_id: 6 }).await.unwrap();
    };
    assert_eq!(tokio::join!(waiting, cancel).0, Err(FsError::Interrupted));
    // and by the death of the holder.
    b.fall_silent();
    set(&a, lock(ino, 1, true), 7).await.unwrap();
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_of_two_mounts_is_told() {
    let server = serve().await;
    let (a, b) = (server.mount().await, server.mount().await);
    set(&a, lock(Ino(10), 1, true), 0).await.unwrap();
    set(&b, lock(Ino(11), 1, true), 0).await.unwrap();
    let (first, second) = tokio::join!(set(&a, lock(Ino(11), 1, true), 1), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let second = set(&b, lock(Ino(10), 1, true), 2).await;
        b.call(wire::Unlock { ino: 11, owner: 1, start: 0, end: u64::MAX }).await.unwrap();
        second
    });
    assert_eq!((first, second), (Ok(()), Err(FsError::Deadlock)));
    server.shutdown().await;
}

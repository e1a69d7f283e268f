//! fallocate: the file reaches at least to `end`.

use super::file;
use super::size::Resize;
use crate::{FsError, Ino, Outcome, Store, Timestamp};

pub(super) fn allocate(
    store: &mut impl Store,
    time: Timestamp,
    ino: Ino,
    end: u64,
) -> Result<Outcome, FsError> {
    let mut inode = file(store, ino)?;
    let size = end.max(inode.size);
    let resize = Resize::plan_without_chunks(store, &mut inode, size)?;

    resize.perform(store, ino);
    inode.modified(time);
    store.set_inode(ino, inode);
    Ok(Outcome { ino, removed: None })
}

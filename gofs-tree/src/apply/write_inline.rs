//! The whole content of a small file.

use bytes::Bytes;

use super::file;
use super::size::Resize;
use crate::{ChunkIndex, FsError, Ino, Outcome, Store, Timestamp};

/// Refused (`Invalid`) where chunks hold the content. Chunks that were made but never
/// came to hold it, because their writer died before its Extend, are dropped.
pub(super) fn write_inline(
    store: &mut impl Store,
    time: Timestamp,
    ino: Ino,
    data: &Bytes,
    size: u64,
    mtime: Timestamp,
) -> Result<Outcome, FsError> {
    let mut inode = file(store, ino)?;
    if data.len() > store.limits().inline_max as usize || size < data.len() as u64 {
        return Err(FsError::Invalid);
    }
    let unfilled = inode.chunks_from(store, ino, ChunkIndex(0))?;
    if !unfilled.is_empty() && inode.inline.is_empty() && inode.size > 0 {
        return Err(FsError::Invalid);
    }
    // All chunks go, so those past the new end need not be looked for again.
    let resize = Resize::plan_without_chunks(store, &mut inode, size)?;

    resize.perform(store, ino);
    for (index, chunk) in unfilled {
        store.remove_chunk(ino, index, chunk.chunk);
    }
    inode.blocks_4k = 0;
    inode.chunks = 0;
    inode.inline = data.clone();
    inode.mtime = mtime;
    inode.ctime = time;
    store.set_inode(ino, inode);
    Ok(Outcome { ino, removed: None })
}

#[cfg(test)]
#[path = "content_tests.rs"]
mod tests;

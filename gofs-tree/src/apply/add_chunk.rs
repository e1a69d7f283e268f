//! A chunk for a range of a file that had none.

use super::file;
use crate::{ChunkId, ChunkIndex, ChunkRef, FsError, Ino, Outcome, Store};

/// The chunk holds nothing yet, so the file looks as before. Inline bytes, where there are any, stay
/// the content until an Extend with `clear_inline` says that chunk 0 holds them.
pub(super) fn add_chunk(
    store: &mut impl Store,
    ino: Ino,
    index: ChunkIndex,
    chunk: ChunkId,
) -> Result<Outcome, FsError> {
    let mut inode = file(store, ino)?;
    if chunk.0 == 0 {
        return Err(FsError::Invalid);
    }
    if store.chunk(ino, index)?.is_some() {
        return Err(FsError::Exists);
    }

    inode.chunks = inode.chunks.checked_add(1).ok_or(FsError::FileTooLarge)?;
    store.set_chunk(ino, index, ChunkRef { chunk, blocks_4k: 0 });
    store.set_inode(ino, inode);
    Ok(Outcome { ino, removed: None })
}

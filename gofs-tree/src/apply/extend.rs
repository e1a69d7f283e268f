//! Bytes that ChunkServers acknowledged become part of the file.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::file;
use super::size::Resize;
use crate::{BLOCK_BYTES, ChunkIndex, FsError, Ino, Outcome, Store, Timestamp};

/// The size never shrinks. `Invalid` where a chunk that was written is not the file's, or where inline
/// bytes would hide what was written, or be lost.
pub(super) fn extend(
    store: &mut impl Store,
    time: Timestamp,
    ino: Ino,
    size: u64,
    mtime: Timestamp,
    blocks_4k: &[(ChunkIndex, u32)],
    clear_inline: bool,
) -> Result<Outcome, FsError> {
    let mut inode = file(store, ino)?;
    let most_blocks = u64::from(store.limits().chunk_size.bytes()) / BLOCK_BYTES;
    let mut written = BTreeMap::new();
    for (index, blocks) in blocks_4k {
        let mut chunk = store.chunk(ino, *index)?.ok_or(FsError::Invalid)?;
        if u64::from(*blocks) > most_blocks {
            return Err(FsError::Invalid);
        }
        let before = chunk.blocks_4k;
        chunk.blocks_4k = *blocks;
        // An index that comes twice counts once: the last one.
        let first_before = written.get(index).map_or(before, |(first, _)| *first);
        written.insert(*index, (first_before, chunk));
    }
    if !inode.inline.is_empty() {
        let moved = clear_inline && store.chunk(ino, ChunkIndex(0))?.is_some();
        if !moved && (clear_inline || !written.is_empty()) {
            return Err(FsError::Invalid);
        }
    }
    let new_size = size.max(inode.size);
    let resize = Resize::plan_without_chunks(store, &mut inode, new_size)?;

    resize.perform(store, ino);
    for (index, (before, chunk)) in written {
        inode.blocks_4k = (inode.blocks_4k + u64::from(chunk.blocks_4k)).saturating_sub(u64::from(before));
        store.set_chunk(ino, index, chunk);
    }
    if clear_inline {
        inode.inline = Bytes::new();
    }
    inode.mtime = mtime;
    inode.ctime = time;
    store.set_inode(ino, inode);
    Ok(Outcome { ino, removed: None })
}

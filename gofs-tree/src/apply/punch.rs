//! A hole in a file.

use bytes::Bytes;

use super::file;
use crate::{FsError, Ino, Outcome, Store, Timestamp};

pub(super) fn punch(
    store: &mut impl Store,
    time: Timestamp,
    ino: Ino,
    start: u64,
    end: u64,
) -> Result<Outcome, FsError> {
    let mut inode = file(store, ino)?;
    if start > end {
        return Err(FsError::Invalid);
    }
    let chunk_size = store.limits().chunk_size;
    // Bytes past the end of the file are undefined, so a hole up to it takes the whole last chunk.
    let to_end = end >= inode.size;
    let end = end.min(inode.size);
    let mut dropped = Vec::new();
    if let Ok(first) = u32::try_from(start.div_ceil(u64::from(chunk_size.bytes()))) {
        dropped = inode.chunks_from(store, ino, crate::ChunkIndex(first))?;
        dropped.retain(|(index, _)| {
            let chunk_start = index.start(chunk_size).0;
            chunk_start < end && (to_end || chunk_start + u64::from(chunk_size.bytes()) <= end)
        });
    }

    // Zeros are kept rather than cut off: while inline bytes are there, they are the content.
    let inline_end = end.min(inode.inline.len() as u64) as usize;
    if start < inline_end as u64 {
        let mut bytes = inode.inline.to_vec();
        bytes[start as usize..inline_end].fill(0);
        inode.inline = Bytes::from(bytes);
    }
    inode.forget_chunks(&dropped);
    for (index, chunk) in dropped {
        store.remove_chunk(ino, index, chunk.chunk);
    }
    inode.modified(time);
    store.set_inode(ino, inode);
    Ok(Outcome { ino, removed: None })
}

//! A new size: its limits, the quota, and what lies past a new end.

use bytes::Bytes;

use crate::{
    ChunkIndex, ChunkRef, FILE_SIZE_MAX, FileOffset, FsError, Ino, Inode, NamespaceLimits, Store, Usage,
};

/// `FileTooLarge` where no file can have that size.
fn check(limits: NamespaceLimits, size: u64) -> Result<(), FsError> {
    let last = FileOffset(size.saturating_sub(1));
    if size > FILE_SIZE_MAX || last.split(limits.chunk_size).is_none() {
        return Err(FsError::FileTooLarge);
    }
    Ok(())
}

/// The usage after a regular file went from size `old` to `new`.
fn usage_after(store: &impl Store, limits: NamespaceLimits, old: u64, new: u64) -> Result<Usage, FsError> {
    let mut usage = store.usage()?;
    let others = usage.bytes.saturating_sub(old);
    // Sparse files are large for nothing, so the sum is the first to pass 64 bits.
    usage.bytes = others.checked_add(new).ok_or(FsError::NoSpace)?;
    if new > old && limits.quota_bytes != 0 && usage.bytes > limits.quota_bytes {
        return Err(FsError::QuotaExceeded);
    }
    Ok(usage)
}

/// A change of size that was found possible.
pub(super) struct Resize {
    usage: Usage,
    dropped: Vec<(ChunkIndex, ChunkRef)>,
}

impl Resize {
    /// Gives the record its new size and takes from it what lies past the end. Growing adds zeros:
    /// neither inline bytes nor chunks change.
    pub fn plan(store: &impl Store, ino: Ino, inode: &mut Inode, size: u64) -> Result<Resize, FsError> {
        let shrinks = size < inode.size || size == 0;
        let mut resize = Resize::plan_without_chunks(store, inode, size)?;
        let first = size.div_ceil(u64::from(store.limits().chunk_size.bytes()));
        // Past the last index there is no chunk to drop.
        if let Ok(first) = u32::try_from(first)
            && shrinks
        {
            resize.dropped = inode.chunks_from(store, ino, ChunkIndex(first))?;
            inode.forget_chunks(&resize.dropped);
        }
        Ok(resize)
    }

    /// As [`Resize::plan`], but the caller sees to the chunks.
    pub fn plan_without_chunks(store: &impl Store, inode: &mut Inode, size: u64) -> Result<Resize, FsError> {
        let limits = store.limits();
        check(limits, size)?;
        let usage = usage_after(store, limits, inode.size, size)?;
        let kept = usize::try_from(size).unwrap_or(usize::MAX);
        if inode.inline.len() > kept {
            // A copy, because a slice would keep the larger buffer alive.
            inode.inline = Bytes::copy_from_slice(&inode.inline[..kept]);
        }
        inode.size = size;
        Ok(Resize { usage, dropped: Vec::new() })
    }

    pub fn perform(self, store: &mut impl Store, ino: Ino) {
        for (index, chunk) in self.dropped {
            store.remove_chunk(ino, index, chunk.chunk);
        }
        store.set_usage(self.usage);
    }
}

impl Inode {
    /// The file's chunks from `first` on. Where there are none the store is not asked.
    pub(super) fn chunks_from(
        &self,
        store: &impl Store,
        ino: Ino,
        first: ChunkIndex,
    ) -> Result<Vec<(ChunkIndex, ChunkRef)>, FsError> {
        if self.chunks == 0 { Ok(Vec::new()) } else { store.chunks_from(ino, first) }
    }

    /// These chunks are no longer part of the file.
    pub(super) fn forget_chunks(&mut self, dropped: &[(ChunkIndex, ChunkRef)]) {
        self.chunks = self.chunks.saturating_sub(u32::try_from(dropped.len()).unwrap_or(u32::MAX));
        let blocks: u64 = dropped.iter().map(|(_, chunk)| u64::from(chunk.blocks_4k)).sum();
        self.blocks_4k = self.blocks_4k.saturating_sub(blocks);
    }
}

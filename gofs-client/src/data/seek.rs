//! SEEK_DATA and SEEK_HOLE, and copies within the cluster.

use std::sync::Arc;

use bytes::Bytes;
use gofs_proto::chunk::Extent;
use gofs_tree::{BLOCK_BYTES, ByteRange, ChunkIndex, FsError, Ino, Timestamp};

use super::FileData;
use super::chunks::{INDEX_END, spans};
use super::file::File;
use super::state::FileState;

/// Chunks asked for at once when a hole is crossed.
const PAGE: u64 = 65_536;
/// Bytes copied at a time.
const COPY_BYTES: u64 = 4 << 20;

/// Bytes of a file that are alike.
enum Stretch {
    Data(u32),
    Hole(u64),
}

/// The first byte of data (or of a hole) at or after `from` in a chunk of `len` bytes with these extents.
fn next_in_chunk(extents: &[Extent], from: u64, len: u64, hole: bool) -> Option<u64> {
    let mut at = from;
    for extent in extents {
        let start = u64::from(extent.start_4k) * BLOCK_BYTES;
        let end = start + u64::from(extent.blocks_4k) * BLOCK_BYTES;
        if end <= at {
            continue;
        }
        if !hole {
            return Some(start.max(at)).filter(|&at| at < len);
        }
        if start > at {
            break;
        }
        at = end;
    }
    (hole && at < len).then_some(at)
}

impl FileData {
    /// lseek: the next byte of data (`hole` false) or of a hole (`hole` true) at or after `offset`.
    /// `NoData` at or past the end of the file, or where no data follows. Flushes first.
    pub async fn seek(self: &Arc<Self>, ino: Ino, offset: u64, hole: bool) -> Result<u64, FsError> {
        let file = self.file(ino).ok_or(FsError::NotCached)?;
        self.flush(ino, false).await?;
        let size = file.look(FileState::size);
        if offset >= size {
            return Err(FsError::NoData);
        }
        let found = if file.look(FileState::in_chunks) {
            self.seek_chunks(&file, offset, size, hole).await?
        } else {
            let data_end = file.look(FileState::inline_len).min(size);
            match (offset < data_end, hole) {
                (true, false) | (false, true) => Some(offset),
                (true, true) => Some(data_end),
                (false, false) => None,
            }
        };
        // The end of the file is a hole.
        match found.filter(|&at| at < size) {
            Some(at) => Ok(at),
            None if hole => Ok(size),
            None => Err(FsError::NoData),
        }
    }

    async fn seek_chunks(
        &self,
        file: &File,
        offset: u64,
        size: u64,
        hole: bool,
    ) -> Result<Option<u64>, FsError> {
        let chunk_bytes = u64::from(self.config.chunk_size.bytes());
        let mut at = offset;
        while at < size {
            let index = at / chunk_bytes;
            let page_end = (index + PAGE).min(size.div_ceil(chunk_bytes)).min(INDEX_END);
            self.learn(file, index, page_end).await?;
            let next: Option<ChunkIndex> =
                file.look(|state| state.chunks.present(index, page_end).next().map(|c| c.location.index));
            let start = next.map_or(page_end, |next| u64::from(next.0)) * chunk_bytes;
            if start > at {
                if hole {
                    return Ok(Some(at));
                }
                at = start;
                continue;
            }
            let rest = ByteRange { start: at, end: start + chunk_bytes };
            let Some(span) = spans(rest, self.config.chunk_size).next() else { return Ok(None) };
            let extents = self.extents(file, span).await?.unwrap_or_default().extents;
            if let Some(found) = next_in_chunk(&extents, at - start, chunk_bytes, hole) {
                return Ok(Some(start + found));
            }
            at = start + chunk_bytes;
        }
        Ok(None)
    }

    /// Copies up to `len` bytes and returns how many (fewer at the end of `from`); holes stay holes. Needs Read on
    /// `from`, Write on `to`.
    pub async fn copy_range(
        self: &Arc<Self>,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
        now: Timestamp,
    ) -> Result<u64, FsError> {
        let source = self.file(from).ok_or(FsError::NotCached)?;
        self.file(to).ok_or(FsError::NotCached)?;
        let len = len.min(source.look(FileState::size).saturating_sub(from_offset));
        if to_offset.checked_add(len).is_none() {
            return Err(FsError::FileTooLarge);
        }
        if from == to && from_offset < to_offset + len && to_offset < from_offset + len {
            return Err(FsError::Invalid);
        }
        let mut done = 0;
        while done < len {
            let at = to_offset + done;
            let copied = match self.stretch(&source, from_offset + done, len - done).await {
                Ok(Stretch::Data(part)) => self.copy_part(from, from_offset + done, to, at, part, now).await,
                Ok(Stretch::Hole(part)) => self.leave_hole(to, at, at + part, now).await.map(|()| part),
                Err(error) => Err(error),
            };
            let copied = match copied {
                Ok(copied) => copied,
                // What was copied counts; the error comes with the next call.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            };
            if copied == 0 {
                break;
            }
            done += copied;
        }
        Ok(done)
    }

    /// What is at `offset` of the file, up to `len` bytes from there.
    async fn stretch(self: &Arc<Self>, file: &File, offset: u64, len: u64) -> Result<Stretch, FsError> {
        let size = file.look(FileState::size);
        // Not worth a flush.
        if size <= u64::from(self.config.inline_max) {
            return Ok(Stretch::Data(len.min(COPY_BYTES) as u32));
        }
        let data = match self.seek(file.ino, offset, false).await {
            Ok(data) => data,
            Err(FsError::NoData) => size.max(offset),
            Err(error) => return Err(error),
        };
        if data > offset {
            return Ok(Stretch::Hole((data - offset).min(len)));
        }
        let end = match self.seek(file.ino, offset, true).await {
            Ok(end) => end,
            // The file has become shorter.
            Err(FsError::NoData) => offset,
            Err(error) => return Err(error),
        };
        Ok(Stretch::Data((end - offset).min(len).min(COPY_BYTES) as u32))
    }

    /// Makes `[start, end)` read as zeros, and the file at least as long, without writing zeros.
    async fn leave_hole(
        self: &Arc<Self>,
        ino: Ino,
        start: u64,
        end: u64,
        now: Timestamp,
    ) -> Result<(), FsError> {
        let size = self.file(ino).ok_or(FsError::NotCached)?.look(FileState::size);
        if start < size {
            self.punch(ino, start, end, now).await?;
        }
        if end > size {
            self.allocate(ino, end, now).await?;
        }
        Ok(())
    }

    async fn copy_part(
        self: &Arc<Self>,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u32,
        now: Timestamp,
    ) -> Result<u64, FsError> {
        let pieces: Vec<Bytes> = self.read(from, from_offset, len).await?;
        let mut copied = 0;
        for piece in pieces {
            let len = piece.len() as u64;
            match self.write(to, Some(to_offset + copied), piece, now).await {
                Ok(_) => copied += len,
                Err(_) if copied > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(copied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_and_holes_alternate_in_a_chunk() {
        let extents = [
            Extent { start_4k: 1, blocks_4k: 1 },
            Extent { start_4k: 2, blocks_4k: 1 },
            Extent { start_4k: 8, blocks_4k: 8 },
        ];
        let next = |from, hole| next_in_chunk(&extents, from, 65536, hole);
        assert_eq!(next(0, true), Some(0));
        assert_eq!(next(0, false), Some(4096));
        assert_eq!(next(5000, false), Some(5000));
        assert_eq!(next(5000, true), Some(12288));
        assert_eq!(next(12288, false), Some(32768));
        assert_eq!(next(32768, true), None);
        assert_eq!(next_in_chunk(&[], 10, 65536, false), None);
        assert_eq!(next_in_chunk(&[], 10, 65536, true), Some(10));
    }
}

//! What a read is put together from, and what is kept of it.

use bytes::Bytes;
use gofs_tree::ByteRange;

use super::{Base, FetchId, FileState, ReadPiece};

impl FileState {
    /// What a read of `len` bytes from `offset` is put together from; ends with the file.
    pub fn plan_read(&self, offset: u64, len: u64) -> Vec<ReadPiece> {
        let range = ByteRange { start: offset, end: offset.saturating_add(len).min(self.size) };
        let mut out = Vec::new();
        if range.start >= range.end {
            return out;
        }
        for part in self.dirty.look(range) {
            match part {
                Ok((_, bytes)) => out.push(ReadPiece::Bytes(bytes)),
                Err(gap) => match &self.flushing {
                    None => self.plan_base(gap, &mut out),
                    Some(flushing) => {
                        for part in flushing.look(gap) {
                            match part {
                                Ok((_, bytes)) => out.push(ReadPiece::Bytes(bytes)),
                                Err(gap) => self.plan_base(gap, &mut out),
                            }
                        }
                    }
                },
            }
        }
        out
    }

    fn plan_base(&self, range: ByteRange, out: &mut Vec<ReadPiece>) {
        let valid_end = match &self.base {
            Base::Inline(bytes) => bytes.len() as u64,
            Base::Chunks => self.valid_end,
        };
        let end = range.end.min(valid_end);
        if range.start < end {
            match &self.base {
                Base::Inline(bytes) => {
                    out.push(ReadPiece::Bytes(bytes.slice(range.start as usize..end as usize)));
                }
                Base::Chunks => self.plan_chunks(ByteRange { start: range.start, end }, out),
            }
        }
        if range.end > end.max(range.start) {
            out.push(ReadPiece::Zeros(range.end - end.max(range.start)));
        }
    }

    fn plan_chunks(&self, range: ByteRange, out: &mut Vec<ReadPiece>) {
        for part in self.cached.look(range) {
            let gap = match part {
                Ok((_, bytes)) => {
                    out.push(ReadPiece::Bytes(bytes));
                    continue;
                }
                Err(gap) => gap,
            };
            let mut at = gap.start;
            while at < gap.end {
                let joined = self.fetches.iter().find(|(_, range)| range.start <= at && at < range.end);
                if let Some(&(id, fetch)) = joined {
                    let end = fetch.end.min(gap.end);
                    out.push(ReadPiece::Join(id, ByteRange { start: at, end }));
                    at = end;
                } else {
                    let next =
                        self.fetches.iter().map(|(_, range)| range.start).filter(|&start| start > at).min();
                    let end = next.map_or(gap.end, |start| start.min(gap.end));
                    out.push(ReadPiece::Fetch(ByteRange { start: at, end }));
                    at = end;
                }
            }
        }
    }

    /// A read from the chunks begins: others may wait for it.
    pub fn begin_fetch(&mut self, range: ByteRange) -> FetchId {
        let id = FetchId(self.next_fetch);
        self.next_fetch += 1;
        self.fetches.push((id, range));
        id
    }

    /// It ended, with these bytes if it did well. Kept for later reads unless a change came between;
    /// returns whether they were.
    pub fn end_fetch(&mut self, id: FetchId, bytes: Option<Bytes>) -> bool {
        let Some(at) = self.fetches.iter().position(|(fetch, _)| *fetch == id) else { return false };
        let (_, range) = self.fetches.swap_remove(at);
        match bytes {
            Some(bytes) if !self.retired && self.base == Base::Chunks => {
                debug_assert_eq!(bytes.len() as u64, range.len());
                self.cached.insert(range.start, bytes);
                true
            }
            _ => false,
        }
    }

    /// Drops clean bytes, and what reads under way will bring of them.
    pub fn forget_clean(&mut self, start: u64, end: u64) {
        self.cached.remove(start, end);
        self.fetches.retain(|(_, range)| range.end <= start || range.start >= end);
    }

    /// Drops clean bytes only, to make room.
    pub fn evict(&mut self, start: u64, end: u64) {
        self.cached.remove(start, end);
    }
}

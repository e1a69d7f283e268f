//! Offsets and lengths in files and chunks, and the only arithmetic between them that makes sense.

/// Bytes from the start of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileOffset(pub u64);

/// Position of a chunk in its file, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u32);

/// Bytes from the start of a chunk, less than the chunk size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkOffset(pub u32);

/// Bytes in a chunk: a power of two, 64 KiB to 1 GiB, fixed when the namespace is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSize(u32);

impl ChunkSize {
    /// 64 MiB.
    pub const DEFAULT: ChunkSize = ChunkSize(64 << 20);

    /// Checks that `bytes` is a power of two from 64 KiB to 1 GiB.
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 64 << 10 && bytes <= 1 << 30 {
            Some(ChunkSize(bytes))
        } else {
            None
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u32 {
        self.0
    }
}

impl Default for ChunkSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl FileOffset {
    /// The chunk that holds this byte, and where in it; `None` past 2^32 chunks.
    pub fn split(self, size: ChunkSize) -> Option<(ChunkIndex, ChunkOffset)> {
        let index = u32::try_from(self.0 / u64::from(size.0)).ok()?;
        Some((ChunkIndex(index), ChunkOffset((self.0 % u64::from(size.0)) as u32)))
    }
}

impl ChunkIndex {
    /// Offset in the file of the chunk's first byte.
    pub fn start(self, size: ChunkSize) -> FileOffset {
        FileOffset(u64::from(self.0) * u64::from(size.0))
    }
}

/// A half-open range of bytes in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte; never less than `start`.
    pub end: u64,
}

impl ByteRange {
    /// `len` bytes from `start`; `None` where that passes the end of the offset space.
    pub fn new(start: u64, len: u64) -> Option<Self> {
        Some(ByteRange { start, end: start.checked_add(len)? })
    }

    /// Bytes covered.
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether no byte is covered.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

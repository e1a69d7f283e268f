//! Records of the state as bytes.

use super::bytes::{Reader, Writer};
use super::{CodecError, Encode};
use crate::{ChunkId, ChunkRef, DirEntry, Inode, Orphan, Usage};

const VERSION: u8 = 1;

impl Encode for Inode {
    fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(100 + self.inline.len());
        let mut w = Writer(out);
        w.u8(VERSION);
        w.file_type(self.file_type);
        w.mode(self.mode);
        w.u32(self.uid);
        w.u32(self.gid);
        w.u32(self.nlink);
        w.u64(self.size);
        w.u64(self.blocks_4k);
        w.u32(self.chunks);
        w.u32(self.rdev);
        w.time(self.atime);
        w.time(self.mtime);
        w.time(self.ctime);
        w.time(self.btime);
        w.ino(self.parent);
        w.bool(self.has_xattrs);
        w.blob(&self.inline);
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new("inode record", bytes, VERSION)?;
        let inode = Inode {
            file_type: r.file_type()?,
            mode: r.mode()?,
            uid: r.u32()?,
            gid: r.u32()?,
            nlink: r.u32()?,
            size: r.u64()?,
            blocks_4k: r.u64()?,
            chunks: r.u32()?,
            rdev: r.u32()?,
            atime: r.time()?,
            mtime: r.time()?,
            ctime: r.time()?,
            btime: r.time()?,
            parent: r.ino()?,
            has_xattrs: r.bool()?,
            inline: r.blob()?,
        };
        r.finish(inode)
    }
}

impl Encode for DirEntry {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer(out);
        w.u8(VERSION);
        w.ino(self.ino);
        w.file_type(self.file_type);
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new("directory entry record", bytes, VERSION)?;
        let entry = DirEntry { ino: r.ino()?, file_type: r.file_type()? };
        r.finish(entry)
    }
}

impl Encode for ChunkRef {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer(out);
        w.u8(VERSION);
        w.u64(self.chunk.0);
        w.u32(self.blocks_4k);
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new("chunk reference record", bytes, VERSION)?;
        let chunk = ChunkRef { chunk: ChunkId(r.u64()?), blocks_4k: r.u32()? };
        r.finish(chunk)
    }
}

impl Encode for Orphan {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer(out);
        w.u8(VERSION);
        w.sessions(&self.holders);
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new("orphan record", bytes, VERSION)?;
        let holders = r.sessions()?;
        if holders.is_empty() || !holders.is_sorted_by(|a, b| a < b) {
            return Err(r.malformed());
        }
        r.finish(Orphan { holders })
    }
}

impl Encode for Usage {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer(out);
        w.u8(VERSION);
        w.u64(self.bytes);
        w.u64(self.inodes);
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new("usage record", bytes, VERSION)?;
        let usage = Usage { bytes: r.u64()?, inodes: r.u64()? };
        r.finish(usage)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{FileType, Ino, Mode, SessionId, Timestamp};

    fn inode() -> Inode {
        Inode {
            file_type: FileType::File,
            mode: Mode::new(0o4755),
            uid: 1000,
            gid: 0x0102_0304,
            nlink: 2,
            size: 5,
            blocks_4k: 1,
            chunks: 3,
            rdev: 9,
            atime: Timestamp::new(1, 2),
            mtime: Timestamp::new(-1, 999_999_999),
            ctime: Timestamp::new(3, 4),
            btime: Timestamp::new(5, 6),
            parent: Ino(7),
            has_xattrs: true,
            inline: Bytes::from_static(b"hello"),
        }
    }

    #[test]
    fn inode_bytes_are_golden() {
        let golden: &[u8] = b"\x01\x01\xed\x09\xe8\x03\0\0\x04\x03\x02\x01\x02\0\0\0\
            \x05\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x03\0\0\0\x09\0\0\0\
            \x01\0\0\0\0\0\0\0\x02\0\0\0\
            \xff\xff\xff\xff\xff\xff\xff\xff\xff\xc9\x9a\x3b\
            \x03\0\0\0\0\0\0\0\x04\0\0\0\
            \x05\0\0\0\0\0\0\0\x06\0\0\0\
            \x07\0\0\0\0\0\0\0\x01\x05\0\0\0hello";
        assert_eq!(inode().to_bytes().escape_ascii().to_string(), golden.escape_ascii().to_string());
        assert_eq!(Inode::decode(golden), Ok(inode()));
    }

    #[test]
    fn small_records_are_golden() {
        let entry = DirEntry { ino: Ino(258), file_type: FileType::Directory };
        assert_eq!(entry.to_bytes(), b"\x01\x02\x01\0\0\0\0\0\0\x02");
        assert_eq!(DirEntry::decode(&entry.to_bytes()), Ok(entry));
        let chunk = ChunkRef { chunk: ChunkId(3), blocks_4k: 16384 };
        assert_eq!(chunk.to_bytes(), b"\x01\x03\0\0\0\0\0\0\0\0\x40\0\0");
        assert_eq!(ChunkRef::decode(&chunk.to_bytes()), Ok(chunk));
        let orphan = Orphan { holders: vec![SessionId(1), SessionId(2)] };
        assert_eq!(orphan.to_bytes(), b"\x01\x02\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
        assert_eq!(Orphan::decode(&orphan.to_bytes()), Ok(orphan));
        let usage = Usage { bytes: 1, inodes: 2 };
        assert_eq!(usage.to_bytes(), b"\x01\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
        assert_eq!(Usage::decode(&usage.to_bytes()), Ok(usage));
    }

    #[test]
    fn cut_long_and_newer_records_are_refused() {
        let whole = inode().to_bytes();
        for len in 0..whole.len() {
            assert_eq!(
                Inode::decode(&whole[..len]),
                Err(CodecError::Short { what: "inode record" }),
                "{len}"
            );
        }
        let mut long = whole.clone();
        long.push(0);
        assert_eq!(Inode::decode(&long), Err(CodecError::Malformed { what: "inode record" }));
        let mut newer = whole.clone();
        newer[0] = 2;
        assert_eq!(Inode::decode(&newer), Err(CodecError::Version { what: "inode record", version: 2 }));
        let mut unversioned = whole;
        unversioned[0] = 0;
        assert_eq!(Inode::decode(&unversioned), Err(CodecError::Malformed { what: "inode record" }));
    }

    #[test]
    fn impossible_values_are_refused() {
        let bytes = inode().to_bytes();
        // file type, mode over 12 bits, nanoseconds of atime over a second, a bool that is neither.
        for (at, value) in [(1, 0), (1, 8), (3, 0x10), (51, 0xff), (96, 2)] {
            let mut bad = bytes.clone();
            bad[at] = value;
            assert_eq!(Inode::decode(&bad), Err(CodecError::Malformed { what: "inode record" }), "byte {at}");
        }
        for holders in [vec![], vec![SessionId(2), SessionId(1)], vec![SessionId(1), SessionId(1)]] {
            let bytes = Orphan { holders }.to_bytes();
            assert_eq!(Orphan::decode(&bytes), Err(CodecError::Malformed { what: "orphan record" }));
        }
    }

    #[test]
    fn a_count_larger_than_the_bytes_allocates_nothing() {
        assert_eq!(Orphan::decode(b"\x01\xff\xff\xff\xff"), Err(CodecError::Short { what: "orphan record" }));
    }
}

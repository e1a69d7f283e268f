//! Single fields: how each is written, and read back from bytes that nobody vouches for.

use bytes::Bytes;

use super::CodecError;
use crate::{ChunkIndex, FileType, Ino, Mode, Name, SessionId, Timestamp, XattrName};

/// Appends fields to a vector.
pub(super) struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn ino(&mut self, ino: Ino) {
        self.u64(ino.0);
    }

    pub fn file_type(&mut self, file_type: FileType) {
        self.u8(file_type.code());
    }

    pub fn mode(&mut self, mode: Mode) {
        self.0.extend_from_slice(&(mode.bits() as u16).to_le_bytes());
    }

    pub fn time(&mut self, time: Timestamp) {
        self.u64(time.secs as u64);
        self.u32(time.nanos);
    }

    /// Both kinds of names have at most 255 bytes.
    pub fn name(&mut self, bytes: &[u8]) {
        self.u8(u8::try_from(bytes.len()).expect("names have at most 255 bytes"));
        self.0.extend_from_slice(bytes);
    }

    pub fn blob(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    pub fn count(&mut self, len: usize) {
        self.u32(u32::try_from(len).expect("what is encoded was bounded far below 4 Gi elements"));
    }

    pub fn sessions(&mut self, sessions: &[SessionId]) {
        self.count(sessions.len());
        for session in sessions {
            self.u64(session.0);
        }
    }
}

/// Takes fields off bytes.
pub(super) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts after the version byte, which must be from 1 to `newest`.
    pub fn new(what: &'static str, bytes: &'a [u8], newest: u8) -> Result<Self, CodecError> {
        let mut reader = Reader { what, rest: bytes };
        match reader.u8()? {
            0 => Err(reader.malformed()),
            version if version > newest => Err(CodecError::Version { what, version }),
            _ => Ok(reader),
        }
    }

    pub fn malformed(&self) -> CodecError {
        CodecError::Malformed { what: self.what }
    }

    /// The value, if nothing is left over.
    pub fn finish<T>(self, value: T) -> Result<T, CodecError> {
        if self.rest.is_empty() { Ok(value) } else { Err(self.malformed()) }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(CodecError::Short { what: self.what })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(CodecError::Short { what: self.what })?;
        self.rest = rest;
        Ok(*taken)
    }

    pub fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn bool(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed()),
        }
    }

    pub fn u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn ino(&mut self) -> Result<Ino, CodecError> {
        Ok(Ino(self.u64()?))
    }

    pub fn index(&mut self) -> Result<ChunkIndex, CodecError> {
        Ok(ChunkIndex(self.u32()?))
    }

    pub fn file_type(&mut self) -> Result<FileType, CodecError> {
        FileType::from_code(self.u8()?).ok_or(self.malformed())
    }

    pub fn mode(&mut self) -> Result<Mode, CodecError> {
        let bits = u16::from_le_bytes(self.array()?);
        if bits > 0o7777 {
            return Err(self.malformed());
        }
        Ok(Mode::new(u32::from(bits)))
    }

    pub fn time(&mut self) -> Result<Timestamp, CodecError> {
        let secs = self.u64()? as i64;
        let nanos = self.u32()?;
        if nanos >= 1_000_000_000 {
            return Err(self.malformed());
        }
        Ok(Timestamp { secs, nanos })
    }

    pub fn name(&mut self) -> Result<Name, CodecError> {
        let len = self.u8()?;
        Name::new(self.take(usize::from(len))?).map_err(|_| self.malformed())
    }

    pub fn xattr_name(&mut self) -> Result<XattrName, CodecError> {
        let len = self.u8()?;
        XattrName::new(self.take(usize::from(len))?).map_err(|_| self.malformed())
    }

    pub fn blob(&mut self) -> Result<Bytes, CodecError> {
        let len = self.u32()? as usize;
        Ok(Bytes::copy_from_slice(self.take(len)?))
    }

    /// A count of elements of `each` bytes at least, all of which must be there.
    pub fn count(&mut self, each: usize) -> Result<usize, CodecError> {
        let count = self.u32()? as usize;
        if count > self.rest.len() / each {
            return Err(CodecError::Short { what: self.what });
        }
        Ok(count)
    }

    pub fn sessions(&mut self) -> Result<Vec<SessionId>, CodecError> {
        let count = self.count(8)?;
        (0..count).map(|_| Ok(SessionId(self.u64()?))).collect()
    }
}

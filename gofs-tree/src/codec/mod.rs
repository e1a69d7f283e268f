//! Records and edits as bytes: versioned, checked, the same on disk and on the wire.
//!
//! Little-endian; the first byte of every encoded value is its format's version.
//! A length counts what follows it and is checked against the bytes that are there
//! before anything is allocated. Each value has exactly one encoding, so equal records
//! are equal bytes; bytes that are not one are refused, never repaired.

mod bytes;
mod edit;
mod number;
mod record;

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

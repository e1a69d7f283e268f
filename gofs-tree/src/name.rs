//! Names of directory entries and of extended attributes: any bytes but those that cannot be.

use std::fmt;

use crate::{NAME_MAX, XATTR_NAME_MAX};

/// Why bytes are not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes at all.
    #[error("a name cannot be empty")]
    Empty,
    /// Longer than the limit, bytes.
    #[error("a name has at most {max} bytes, this one {len}")]
    TooLong {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// `/`, NUL, `.` or `..`.
    #[error("a name cannot be '.' or '..', nor contain '/' or NUL")]
    Forbidden,
}

macro_rules! bytes_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<[u8]>);

        impl $name {
            /// The bytes, without a terminator.
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "\"{}\"", self.0.escape_ascii())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", String::from_utf8_lossy(&self.0))
            }
        }
    };
}

bytes_name!(
    /// Name of a directory entry: 1 to 255 bytes, none of them `/` or NUL, not `.` or `..`.
    Name
);
bytes_name!(
    /// Name of an extended attribute with its prefix: 1 to 255 bytes, no NUL.
    XattrName
);

impl Name {
    /// Checks and takes the bytes of a name.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes.len() > NAME_MAX {
            return Err(NameError::TooLong { len: bytes.len(), max: NAME_MAX });
        }
        if bytes == b"." || bytes == b".." || bytes.iter().any(|&b| b == b'/' || b == 0) {
            return Err(NameError::Forbidden);
        }
        Ok(Name(bytes.into()))
    }
}

impl XattrName {
    /// Checks and takes the bytes of an attribute name, prefix included.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes.len() > XATTR_NAME_MAX {
            return Err(NameError::TooLong { len: bytes.len(), max: XATTR_NAME_MAX });
        }
        if bytes.contains(&0) {
            return Err(NameError::Forbidden);
        }
        Ok(XattrName(bytes.into()))
    }
}

//! The tree: the vocabulary of gofs and the meaning of every edit.
//!
//! Owns ids, names, attributes, edits, errors, lease modes, records and
//! [`apply`], the only code that knows what an edit does. Pure and sync: no I/O,
//! no clock, no randomness; everything chosen travels in the edit. The
//! MetaServer runs it on its state store, recovery on the log's tail, a lease
//! holder on its cache, and all must reach the same records, byte for byte.

#![forbid(unsafe_code)]

mod acl;
mod apply;
mod attr;
mod check;
mod codec;
mod edit;
mod error;
mod id;
mod lease;
mod limits;
mod memory;
mod name;
mod node;
mod offset;
mod store;
mod time;

pub use apply::apply;
pub use attr::{Attr, FileType, Mode};
pub use check::check;
pub use codec::{CodecError, Encode};
pub use edit::{AttrChange, Edit, EditOp, NewNode, Outcome, RenameFlags, TimeChange, XattrSetMode};
pub use error::FsError;
pub use id::*;
pub use lease::LeaseMode;
pub use limits::*;
pub use memory::MemoryStore;
pub use name::{Name, NameError, XattrName};
pub use node::{ChunkRef, DirEntry, Inode, Orphan, make_root};
pub use offset::{ByteRange, ChunkIndex, ChunkOffset, ChunkSize, FileOffset};
pub use store::{NamespaceLimits, Store, Usage};
pub use time::Timestamp;

//! The wire: messages, frames, versions, and the conversions to gofs-tree's types.
//!
//! Two doors share one port. *frame* carries what is hot: the session stream of a
//! mount and chunk data. *rpc* (tonic) carries administration, heartbeats and raft.
//! [`door`] tells them apart by the first bytes of a connection.

#![forbid(unsafe_code)]

pub mod convert;
pub mod door;
pub mod frame;
#[cfg(test)]
mod garbage_tests;
pub mod kind;
mod link;
mod version;

pub use link::{CallError, Link, LinkHandler, Replies};
pub use version::Versions;

/// Headers of the session stream's frames.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod session {
    tonic::include_proto!("gofs.session");
}

/// Headers of a ChunkServer's data frames.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod chunk {
    tonic::include_proto!("gofs.chunk");
}

/// Messages and services of the rpc door.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod cluster {
    tonic::include_proto!("gofs.cluster");
}

/// Newest protocol version that this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// Oldest protocol version that this build understands.
pub const OLDEST_PROTOCOL_VERSION: u32 = 1;

/// Name of the metadata in which a MetaServer that refuses a ChunkServer of another cluster names its own, in
/// hexadecimal. No other refusal has it: every other may pass.
pub const OTHER_CLUSTER_METADATA: &str = "gofs-other-cluster";

/// What this build speaks.
pub const SPOKEN: Versions = Versions { newest: PROTOCOL_VERSION, oldest: OLDEST_PROTOCOL_VERSION };

/// The version both ends speak, or `None` where their ranges do not meet.
pub fn negotiate(newest: u32, oldest: u32) -> Option<u32> {
    SPOKEN.common(Versions { newest, oldest })
}

//! What one MetaServer says to another: postcard in the Raft service's messages.

use openraft::raft::{SnapshotResponse, VoteRequest, VoteResponse};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{SnapshotMeta, Types, Vote};

/// The one group there is so far.
pub(crate) const GROUP: u32 = 1;
/// Largest message taken, bytes: a batch of entries and its envelope.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1 << 30;
/// Bytes of a Snapshot in one part.
pub(crate) const PART_BYTES: usize = 1 << 20;

/// Bodies of `Raft.Vote`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ballot {
    /// Would you vote for me?
    PreVote(VoteRequest<Types>),
    /// Vote for me.
    Vote(VoteRequest<Types>),
    /// Have you ever taken part?
    Probe,
}

/// Answers to [`Ballot`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum BallotReply {
    Vote(VoteResponse<Types>),
    Probe { fresh: bool },
}

/// Header of the first part of a Snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotHeader {
    pub vote: Vote,
    pub meta: SnapshotMeta,
    /// Bytes that follow.
    pub len: u64,
}

pub(crate) type SnapshotReply = SnapshotResponse<Types>;

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_stdvec(value)
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, postcard::Error> {
    let (value, rest) = postcard::take_from_bytes(bytes)?;
    if rest.is_empty() { Ok(value) } else { Err(postcard::Error::SerdeDeCustom) }
}

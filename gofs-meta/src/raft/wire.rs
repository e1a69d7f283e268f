//! What one MetaServer says to another: postcard in the Raft service's messages.

use openraft::raft::{SnapshotResponse, VoteRequest, VoteResponse};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use gofs_proto::Versions;
use tonic::Status;

use super::{SnapshotMeta, Types, Vote};

/// The one group there is so far.
pub(crate) const GROUP: u32 = 1;
/// Versions of what is said here that this build reads and writes. A new one is written to those only that read it, and
/// the one before it is read as long as servers of that version may be beside it.
pub(crate) const SPOKEN: Versions = Versions { newest: 1, oldest: 1 };
/// What a message is of that does not say it.
const UNNAMED: u32 = 1;

/// The version of a message, or why it cannot be read.
pub(crate) fn readable(version: u32, spoken: Versions) -> Result<u32, Status> {
    let version = if version == 0 { UNNAMED } else { version };
    if (spoken.oldest..=spoken.newest).contains(&version) {
        return Ok(version);
    }
    Err(Status::unimplemented(format!(
        "a message between MetaServers is of version {version}, this MetaServer reads {spoken}: upgrade the older one"
    )))
}

/// The version to write to a MetaServer that said which it reads; `None` before it said anything.
pub(crate) fn writable(spoken: Versions, theirs: Option<Versions>) -> u32 {
    let unnamed = |version: u32| if version == 0 { UNNAMED } else { version };
    let theirs = theirs.map(|t| Versions { newest: unnamed(t.newest), oldest: unnamed(t.oldest) });
    // Where nothing is in common it refuses, and says why.
    theirs.and_then(|theirs| spoken.common(theirs)).unwrap_or(spoken.oldest)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Versions = Versions { newest: 1, oldest: 1 };
    const NEW: Versions = Versions { newest: 2, oldest: 1 };
    const NEXT: Versions = Versions { newest: 3, oldest: 2 };

    #[test]
    fn members_of_adjacent_versions_write_what_the_other_one_reads() {
        for (own, theirs) in [(OLD, OLD), (OLD, NEW), (NEW, OLD), (NEW, NEW), (NEW, NEXT), (NEXT, NEW)] {
            let version = writable(own, Some(theirs));
            assert_eq!(Some(version), own.common(theirs));
            assert_eq!(readable(version, theirs).ok(), Some(version), "{own:?} to {theirs:?}");
            // Its first message, before it knows anything, is read where both are adjacent.
            if own.oldest >= theirs.oldest {
                assert!(readable(writable(own, None), theirs).is_ok(), "{own:?} to {theirs:?}");
            }
        }
        // One that does not say what it reads is of the first version.
        assert_eq!(writable(NEW, Some(Versions { newest: 0, oldest: 0 })), 1);
        assert_eq!(readable(0, NEW).ok(), Some(1));
    }

    #[test]
    fn a_message_of_another_version_is_refused_with_both_named() {
        let refused = readable(writable(NEXT, Some(OLD)), OLD).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unimplemented);
        assert!(refused.message().contains("version 2") && refused.message().contains("1 to 1"), "{refused}");
        assert!(readable(0, NEXT).is_err());
    }

    #[test]
    fn golden_bytes_of_a_ballot_and_a_vote() {
        let vote = Vote::new(3, 2);
        let ballot = Ballot::Vote(VoteRequest::new(vote, None));
        assert_eq!(encode(&vote).unwrap(), [3, 1, 2, 0]);
        assert_eq!(encode(&ballot).unwrap(), GOLDEN_BALLOT);
        assert!(matches!(decode(&GOLDEN_BALLOT), Ok(Ballot::Vote(request)) if request.vote == vote));
        assert_eq!(encode(&Ballot::Probe).unwrap(), [2]);
        assert_eq!(encode(&BallotReply::Probe { fresh: true }).unwrap(), [1, 1]);
    }

    const GOLDEN_BALLOT: [u8; 7] = [1, 3, 1, 2, 0, 0, 0];
}

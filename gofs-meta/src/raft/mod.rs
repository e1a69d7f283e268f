//! The EditLog replicated: openraft on our log, our state and our wire.
//!
//! Owns nothing but the glue: which type is which, and what crosses between MetaServers.

pub(crate) mod book;
pub(crate) mod door;
mod log_store;
mod machine;
pub(crate) mod network;
pub(crate) mod wire;

pub(crate) use log_store::LogStore;
pub(crate) use machine::{StateMachine, newest_snapshot};

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use gofs_tree::MetaServerId;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::command::CommandOutcome;
use crate::state::LogPosition;

openraft::declare_raft_types!(
    /// The types of the one consensus of a group.
    pub(crate) Types:
        D = CommandBytes,
        R = Applied,
        NodeId = u64,
        Node = openraft::BasicNode,
        Term = u64,
        // One leader a term, so that a term and an index name one entry.
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

pub(crate) type Raft = openraft::Raft<Types, StateMachine>;
pub(crate) type RaftMetricsReceiver =
    openraft::type_config::alias::WatchReceiverOf<Types, openraft::RaftMetrics<Types>>;
pub(crate) type SerdeInstant = openraft::type_config::alias::SerdeInstantOf<Types>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<Types>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<Types>;
pub(crate) type Payload = openraft::type_config::alias::PayloadOf<Types>;
pub(crate) type Membership = openraft::Membership<u64, openraft::BasicNode>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;
pub(crate) type Snapshot = openraft::type_config::alias::SnapshotOf<Types, crate::state::SnapshotFile>;

/// An encoded [`Command`](crate::command::Command): encoded once by the leader, the same bytes in every log.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct CommandBytes(pub Bytes);

impl fmt::Debug for CommandBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

impl fmt::Display for CommandBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Serialize for CommandBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for CommandBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = CommandBytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a command")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<CommandBytes, E> {
                Ok(CommandBytes(Bytes::copy_from_slice(bytes)))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<CommandBytes, E> {
                Ok(CommandBytes(bytes.into()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// What applying an entry answered. Stays in the process that proposed it; openraft wants the traits all the same.
#[derive(Clone, Debug)]
pub(crate) struct Applied(pub CommandOutcome);

impl Serialize for Applied {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(ser::Error::custom("outcomes do not travel"))
    }
}

impl<'de> Deserialize<'de> for Applied {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(de::Error::custom("outcomes do not travel"))
    }
}

pub(crate) fn position_of(id: &LogId) -> LogPosition {
    LogPosition { term: id.leader_id.term, index: id.index }
}

pub(crate) fn log_id_of(position: LogPosition) -> LogId {
    use openraft::vote::leader_id_std::CommittedLeaderId;
    LogId { leader_id: CommittedLeaderId::new(position.term), index: position.index }
}

/// Who the MetaServers are from `at` on, as the state keeps it.
pub(crate) fn membership_bytes(
    at: LogPosition,
    members: &BTreeMap<MetaServerId, String>,
) -> Result<Bytes, String> {
    let nodes: BTreeMap<u64, openraft::BasicNode> =
        members.iter().map(|(id, address)| (id.0, openraft::BasicNode::new(address))).collect();
    let voters = nodes.keys().copied().collect();
    let membership = Membership::new(vec![voters], nodes).map_err(|error| error.to_string())?;
    let stored = StoredMembership::new(Some(log_id_of(at)), membership);
    Ok(wire::encode(&stored).map_err(|error| error.to_string())?.into())
}

/// The members in what [`membership_bytes`] made, or raft.
pub(crate) fn members_of(bytes: &[u8]) -> Result<BTreeMap<MetaServerId, String>, String> {
    let stored: StoredMembership = wire::decode(bytes).map_err(|error| error.to_string())?;
    let nodes = stored.membership().nodes();
    Ok(nodes.map(|(id, node)| (MetaServerId(*id), node.addr.clone())).collect())
}

/// A vote that nobody won, in that term.
pub(crate) fn vote_bytes(term: u64, id: MetaServerId) -> Result<Vec<u8>, String> {
    wire::encode(&Vote::new(term, id.0)).map_err(|error| error.to_string())
}

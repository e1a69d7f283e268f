//! Who may vote after having been brought up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use gofs_proto::cluster::RaftMessage;
use gofs_proto::cluster::raft_server::Raft;
use gofs_tree::MetaServerId;
use openraft::BasicNode;
use openraft::raft::AppendEntriesRequest;
use tonic::Request;

use super::{GroupConfig, MetaGroup};
use crate::raft::{Entry, LogId, Membership, Payload, Types, Vote, log_id_of, wire};
use crate::state::LogPosition;

fn at(term: u64, index: u64) -> LogId {
    log_id_of(LogPosition { term, index })
}

/// Entries of which the first makes MetaServer 2 the only member, and this server a learner.
fn entries(ids: &[LogId]) -> Vec<Entry> {
    let nodes = [1, 2].map(|id| (id, BasicNode::new(format!("127.0.0.1:{id}"))));
    let membership = Membership::new(vec![BTreeSet::from([2])], BTreeMap::from(nodes)).unwrap();
    let payload = |id: &LogId| {
        if id.index == 0 { Payload::Membership(membership.clone()) } else { Payload::Blank }
    };
    ids.iter().map(|id| Entry { log_id: *id, payload: payload(id) }).collect()
}

/// Whether the server votes once it has heard that of the leader of a term.
async fn votes_after(
    group: &MetaGroup,
    term: u64,
    after: Option<LogId>,
    new: &[LogId],
    committed: LogId,
) -> bool {
    let request: AppendEntriesRequest<Types> = AppendEntriesRequest {
        vote: Vote::new_committed(term, 2),
        prev_log_id: after,
        entries: entries(new),
        leader_commit: Some(committed),
    };
    let body = wire::encode(&request).unwrap().into();
    let message =
        RaftMessage { group: wire::GROUP, body, from: 2, version: wire::SPOKEN.oldest, ..Default::default() };
    group.door.append(Request::new(message)).await.unwrap().into_inner().votes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deposed_leader_says_is_committed_makes_no_server_whole() {
    let data = tempfile::tempdir().unwrap();
    let config =
        GroupConfig::new(MetaServerId(1), data.path().to_owned(), "127.0.0.1:1".into(), BTreeMap::new());
    let group = MetaGroup::start(GroupConfig { join: vec!["127.0.0.1:2".into()], ..config }).await.unwrap();
    // The leader of term 2 has not committed anything of its own yet.
    assert!(!votes_after(&group, 2, None, &[at(1, 0), at(1, 1)], at(1, 1)).await);
    let until = Instant::now() + Duration::from_secs(20);
    while group.state.applied().0 < 1 {
        assert!(Instant::now() < until, "the entries are not applied");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!votes_after(&group, 1, Some(at(1, 1)), &[], at(1, 1)).await, "that term is over");
    while !votes_after(&group, 2, Some(at(1, 1)), &[at(2, 2)], at(2, 2)).await {
        assert!(Instant::now() < until, "it has all that is committed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    group.shutdown().await;
}

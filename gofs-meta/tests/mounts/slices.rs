//! Slices of a quota: whose they are, and that they are given back where somebody else needs them.

use gofs_meta::Server;
use gofs_meta::command::{Command, CommandOutcome, NamespaceConfig};
use gofs_proto::session as wire;
use gofs_tree::{Edit, EditOp, FsError, Ino, NamespaceId, NewNode, Timestamp};

use crate::client::*;

async fn set_quota(server: &Server, inodes: u64) -> NamespaceId {
    let id = server.group().state().namespace_by_name("demo").unwrap().unwrap().id;
    let config = NamespaceConfig { quota_inodes: inodes, ..NamespaceConfig::default() };
    let outcome = server.group().propose(Command::SetNamespace { id, config }).await.unwrap();
    assert_eq!(outcome, CommandOutcome::Done);
    id
}

async fn delegate(mount: &Mount, inodes: u64, known: u64, give_back: bool) -> wire::DelegateReply {
    let amount = |inodes| Some(wire::Amount { bytes: 0, inodes });
    let wish = wire::Delegate { want: amount(inodes), known: amount(known), give_back };
    mount.call(wish).await.unwrap()
}

/// Makes that many files in one batch; how many were made. All others were refused for the quota.
async fn make(mount: &Mount, first_seq: u64, count: u64) -> usize {
    let first = mount.call(wire::Reserve { count: count as u32 }).await.unwrap().first;
    let edits = (first..first + count).map(|ino| {
        let mut op = create(ROOT, &format!("f{ino}"), NewNode::File);
        if let EditOp::Create { ino: number, .. } = &mut op {
            *number = Ino(ino);
        }
        gofs_proto::convert::edit_to_wire(&Edit { time: Timestamp::new(1, 0), op })
    });
    let edits = edits.collect();
    let batch = wire::Batch { first_seq, answered_seq: first_seq - 1, edits, placed: Vec::new() };
    let results = mount.call(batch).await.unwrap().results;
    assert_eq!(results.len() as u64, count);
    let refused = results.iter().filter(|result| result.fs_error != 0);
    assert!(refused.clone().all(|r| FsError::from_code(r.fs_error) == Some(FsError::QuotaExceeded)));
    results.len() - refused.count()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quota_nothing_is_metered() {
    let server = serve().await;
    let a = server.mount().await;
    let before = server.group().state().applied();
    let reply = delegate(&a, 1000, 7, false).await;
    assert_eq!(reply.metered, Some(wire::Metered::default()));
    assert_eq!(reply.given.unwrap().inodes, 7, "as it was");
    assert_eq!(server.group().state().applied(), before, "nothing is committed for it");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_needs_more_gets_what_others_give_back() {
    let server = serve().await;
    let id = set_quota(&server, 1001).await;
    let (a, b) = (server.mount().await, server.mount().await);
    let given = delegate(&a, 1 << 40, 0, false).await.given.unwrap().inodes;
    assert_eq!(given, 125);
    assert_eq!(make(&b, 1, 500).await, 500);
    let slice = async {
        let asked = a.slice_asked().await;
        assert_eq!(make(&a, 1, 5).await, 5, "what was promised");
        let reply = delegate(&a, 0, given, true).await;
        assert_eq!(reply.given.unwrap().inodes, given);
        Mount::answer_slice(asked);
    };
    let (made, ()) = tokio::join!(make(&b, 501, 500), slice);
    assert_eq!(made, 495, "to the last inode, and exactly");
    let state = server.group().state();
    assert_eq!(state.namespace(id).unwrap().unwrap().usage.inodes, 1001);
    let again = delegate(&a, 1000, given, false).await;
    assert_eq!(again.given.unwrap().inodes, given, "not now");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_goes_with_its_session() {
    let server = serve().await;
    let id = set_quota(&server, 801).await;
    let (a, b) = (server.mount().await, server.mount().await);
    delegate(&a, 1 << 40, 0, false).await;
    assert_eq!(make(&b, 1, 500).await, 500);
    let leaving = async {
        let _asked = a.slice_asked().await;
        a.call(wire::Goodbye {}).await.unwrap();
    };
    let (made, ()) = tokio::join!(make(&b, 501, 310), leaving);
    assert_eq!(made, 300);
    assert_eq!(server.group().state().sliced(id).unwrap().inodes, 0);
    server.shutdown().await;
}

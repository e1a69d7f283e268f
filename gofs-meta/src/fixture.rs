//! A group of one MetaServer that leads, for tests of what stands on a group.

use std::collections::BTreeMap;
use std::sync::Arc;

use gofs_tree::{Edit, EditOp, EditSeq, MetaServerId, NamespaceId, SessionId, Timestamp};

use crate::command::{Command, CommandOutcome};
use crate::group::{GroupConfig, MetaGroup, Role};

/// The session whose edits these are.
const SESSION: SessionId = SessionId(1);

/// See the module.
pub(crate) struct GroupOfOne {
    pub group: Arc<MetaGroup>,
    seq: u64,
    _data: tempfile::TempDir,
}

impl GroupOfOne {
    pub async fn start() -> GroupOfOne {
        let data = tempfile::tempdir().unwrap();
        let (id, own) = (MetaServerId(1), "127.0.0.1:1".to_owned());
        let config = GroupConfig::new(id, data.path().to_owned(), own, BTreeMap::new());
        let group = MetaGroup::start(config).await.unwrap();
        group.leadership().wait_for(|known| known.role == Role::Leader).await.unwrap();
        GroupOfOne { group, seq: 0, _data: data }
    }

    /// Session 1 begins.
    pub async fn open_session(&self, namespace: NamespaceId) {
        let command = Command::OpenSession {
            session: SESSION,
            namespace,
            token: [1; 16],
            host: "web1".into(),
            mount_point: "/mnt".into(),
            pid: 1,
        };
        assert_eq!(self.group.propose(command).await.unwrap(), CommandOutcome::Session(SESSION));
    }

    /// Commits an edit of session 1, which must succeed.
    pub async fn edit(&mut self, op: EditOp) {
        self.seq += 1;
        let command = Command::Edits {
            session: SESSION,
            first_seq: EditSeq(self.seq),
            answered: EditSeq(self.seq - 1),
            edits: vec![Edit { time: Timestamp::new(1, 0), op }],
        };
        match self.group.propose(command).await.unwrap() {
            CommandOutcome::Edits { results, .. } => assert!(results[0].is_ok(), "{results:?}"),
            other => panic!("{other:?}"),
        }
    }
}

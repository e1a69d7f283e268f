//! Serves the other MetaServers.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gofs_proto::cluster::raft_server;
use gofs_proto::cluster::{RaftMessage, SnapshotPart};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status, Streaming};

use super::wire::{self, Ballot, BallotReply, GROUP, SnapshotHeader};
use super::{Raft, Snapshot, Types};
use crate::state::{SnapshotFile, StateStore};

/// The door's handle on a group.
#[derive(Clone)]
pub struct RaftDoor {
    inner: std::sync::Arc<Inner>,
}

struct Inner {
    raft: Raft,
    state: StateStore,
    snapshots: PathBuf,
    rejoin: Rejoin,
    received: AtomicU64,
}

/// Keeps a member that came back with nothing from voting until it has again what it once acknowledged.
///
/// Its acknowledgements of before may have made entries committed. If it voted now, one that lacks them could be elected.
struct Rejoin {
    /// It may vote.
    votes: AtomicBool,
    /// What was committed when the leader first spoke to it; `u64::MAX` until then.
    wanted: AtomicU64,
}

impl Rejoin {
    fn appended(&self, committed: Option<u64>, applied: u64) {
        if self.votes.load(Ordering::Acquire) {
            return;
        }
        let wanted = committed.unwrap_or(0);
        let wanted = match self.wanted.compare_exchange(u64::MAX, wanted, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => wanted,
            Err(first) => first,
        };
        if applied >= wanted {
            self.votes.store(true, Ordering::Release);
        }
    }

    /// A candidate with the first entry only makes a new cluster: nothing can be lost.
    fn may_vote(&self, request: &VoteRequest<Types>) -> bool {
        self.votes.load(Ordering::Acquire) || request.last_log_id.as_ref().is_none_or(|last| last.index == 0)
    }
}

impl RaftDoor {
    /// `fresh`: this MetaServer started without a log.
    pub(crate) fn new(raft: Raft, state: StateStore, snapshots: PathBuf, fresh: bool) -> Self {
        let rejoin = Rejoin { votes: AtomicBool::new(!fresh), wanted: AtomicU64::new(u64::MAX) };
        let inner = Inner { raft, state, snapshots, rejoin, received: AtomicU64::new(0) };
        RaftDoor { inner: inner.into() }
    }

    fn check(&self, group: u32, cluster: &[u8]) -> Result<(), Status> {
        if group != GROUP {
            return Err(Status::failed_precondition(format!("no metadata group {group} here")));
        }
        let own = self.inner.state.cluster().map_err(|error| Status::internal(error.to_string()))?;
        match own {
            Some(own) if !cluster.is_empty() && own != cluster => Err(Status::failed_precondition(
                "this MetaServer belongs to another cluster: check --peers and the data directories",
            )),
            _ => Ok(()),
        }
    }

    fn read<T: DeserializeOwned>(&self, message: &RaftMessage) -> Result<T, Status> {
        self.check(message.group, &message.cluster)?;
        wire::decode(&message.body).map_err(unreadable)
    }
}

fn unreadable(error: postcard::Error) -> Status {
    Status::invalid_argument(format!(
        "a message between MetaServers cannot be read ({error}): do all run one version?"
    ))
}

fn reply<T: Serialize>(body: &T) -> Result<Response<RaftMessage>, Status> {
    let body = wire::encode(body).map_err(unreadable)?.into();
    Ok(Response::new(RaftMessage { group: GROUP, body, ..RaftMessage::default() }))
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

fn disk(error: std::io::Error) -> Status {
    Status::internal(format!("a Snapshot cannot be stored: {error}"))
}

#[tonic::async_trait]
impl raft_server::Raft for RaftDoor {
    async fn append(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let request: AppendEntriesRequest<Types> = self.read(request.get_ref())?;
        let committed = request.leader_commit.as_ref().map(|committed| committed.index);
        let answer = self.inner.raft.append_entries(request).await.map_err(stopped)?;
        self.inner.rejoin.appended(committed, self.inner.state.applied().0);
        reply(&answer)
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let ballot: Ballot = self.read(request.get_ref())?;
        let raft = &self.inner.raft;
        if let Ballot::PreVote(request) | Ballot::Vote(request) = &ballot
            && !self.inner.rejoin.may_vote(request)
        {
            return Err(Status::unavailable(
                "this MetaServer came back empty and fetches the state before it votes",
            ));
        }
        let answer = match ballot {
            Ballot::PreVote(request) => BallotReply::Vote(raft.pre_vote(request).await.map_err(stopped)?),
            Ballot::Vote(request) => BallotReply::Vote(raft.vote(request).await.map_err(stopped)?),
            Ballot::Probe => BallotReply::Probe { fresh: !raft.is_initialized().await.map_err(stopped)? },
        };
        reply(&answer)
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<RaftMessage>, Status> {
        let mut parts = request.into_inner();
        let first =
            parts.message().await?.ok_or_else(|| Status::invalid_argument("a Snapshot without a header"))?;
        self.check(first.group, &first.cluster)?;
        let header: SnapshotHeader = wire::decode(&first.header).map_err(unreadable)?;
        let number = self.inner.received.fetch_add(1, Ordering::Relaxed);
        let path = self.inner.snapshots.join(format!("received-{number}.part"));
        let received = Received { path: path.clone() };
        let mut file = std::fs::File::create(&path).map_err(disk)?;
        let mut len = 0;
        while let Some(part) = parts.message().await? {
            if crc32c::crc32c(&part.body) != part.crc32c {
                return Err(Status::data_loss("a part of a Snapshot was damaged on its way"));
            }
            file.write_all(&part.body).map_err(disk)?;
            len += part.body.len() as u64;
        }
        if len != header.len {
            return Err(Status::data_loss(format!("a Snapshot of {} bytes ended after {len}", header.len)));
        }
        tokio::task::spawn_blocking(move || file.sync_all()).await.map_err(stopped)?.map_err(disk)?;
        let committed = header.meta.last_log_id.as_ref().map(|last| last.index);
        let snapshot = Snapshot { meta: header.meta, snapshot: SnapshotFile { path } };
        let answer = self.inner.raft.install_full_snapshot(header.vote, snapshot).await.map_err(stopped)?;
        drop(received);
        self.inner.rejoin.appended(committed, self.inner.state.applied().0);
        reply(&answer)
    }

    async fn transfer_leader(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let request: TransferLeaderRequest<Types> = self.read(request.get_ref())?;
        let answer = self.inner.raft.handle_transfer_leader(request).await.map_err(stopped)?;
        reply(&answer)
    }
}

/// A Snapshot on its way in; what was not installed does not stay.
struct Received {
    path: PathBuf,
}

impl Drop for Received {
    fn drop(&mut self) {
        // Installed, it has another name by now.
        let _ = std::fs::remove_file(&self.path);
    }
}

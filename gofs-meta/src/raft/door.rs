//! Serves the other MetaServers.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gofs_proto::cluster::raft_server;
use gofs_proto::cluster::{RaftMessage, SnapshotPart};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status, Streaming};

use super::wire::{self, Ballot, BallotReply, GROUP, SnapshotHeader};
use super::{LogId, Raft, Snapshot, Types, Vote};
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

/// When this member may vote.
///
/// One that came back with nothing must not before it has again what it once acknowledged: entries may be
/// committed because of that, and one that lacks them could be elected. And one that has just started does not
/// remember whom it promised not to depose: it waits as long as such a promise lasts.
struct Rejoin {
    /// It has what it acknowledged.
    whole: AtomicBool,
    promises_end: Instant,
}

impl Rejoin {
    /// After entries of `request` were taken.
    fn appended(&self, vote: &Vote, committed: Option<&LogId>, applied: u64) {
        // A leader that has committed an entry of its own knows everything that was committed before.
        let complete = committed.is_some_and(|committed| {
            committed.leader_id.term == vote.leader_id.term && committed.index <= applied
        });
        if complete {
            self.whole.store(true, Ordering::Release);
        }
    }

    fn may_vote(&self, request: &VoteRequest<Types>) -> bool {
        // A candidate with nothing but the first entry makes a new cluster, and this member is of it from the start.
        if request.last_log_id.as_ref().is_none_or(|last| last.index == 0) {
            self.whole.store(true, Ordering::Release);
            return true;
        }
        self.whole.load(Ordering::Acquire) && Instant::now() >= self.promises_end
    }
}

impl RaftDoor {
    /// `fresh`: this MetaServer started without a log. `lease`: how long a leader counts on not being deposed.
    pub(crate) fn new(
        raft: Raft,
        state: StateStore,
        snapshots: PathBuf,
        fresh: bool,
        lease: Duration,
    ) -> Self {
        let rejoin = Rejoin { whole: AtomicBool::new(!fresh), promises_end: Instant::now() + lease };
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
        let (vote, committed) = (request.vote, request.leader_commit);
        let answer = self.inner.raft.append_entries(request).await.map_err(stopped)?;
        self.inner.rejoin.appended(&vote, committed.as_ref(), self.inner.state.applied().0);
        reply(&answer)
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let ballot: Ballot = self.read(request.get_ref())?;
        let raft = &self.inner.raft;
        if let Ballot::PreVote(request) | Ballot::Vote(request) = &ballot
            && !self.inner.rejoin.may_vote(request)
        {
            return Err(Status::unavailable("this MetaServer has just started and does not vote yet"));
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
        let snapshot = Snapshot { meta: header.meta, snapshot: SnapshotFile { path } };
        let answer = self.inner.raft.install_full_snapshot(header.vote, snapshot).await.map_err(stopped)?;
        drop(received);
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

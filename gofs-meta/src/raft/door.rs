//! Serves the other MetaServers.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use gofs_proto::cluster::raft_server;
use gofs_proto::cluster::{RaftMessage, SnapshotPart};
use gofs_tree::MetaServerId;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use super::book::{AddressBook, REMOVED_METADATA};
use super::wire::{self, Ballot, BallotReply, GROUP, SnapshotHeader};
use super::{LogId, Raft, Snapshot, StoredMembership, Types, Vote};
use crate::identity;
use crate::state::{SnapshotFile, StateStore};

/// The door's handle on a group.
#[derive(Clone)]
pub struct RaftDoor {
    inner: Arc<Inner>,
}

struct Inner {
    raft: Raft,
    state: StateStore,
    snapshots: PathBuf,
    rejoin: Rejoin,
    received: AtomicU64,
    book: Arc<AddressBook>,
    /// The cluster that this server waits to be added to, once it is known.
    awaited: OnceLock<Vec<u8>>,
    /// When a leader was last heard of.
    heard: Mutex<Instant>,
}

/// When this member may vote.
///
/// One that came back with nothing must not before it has again what it once acknowledged: entries may be
/// committed because of that, and one that lacks them could be elected. So it does not vote for itself either: it asks
/// nobody to elect it. And one that has just started does not remember whom it promised not to depose: it waits as long as
/// such a promise lasts.
struct Rejoin {
    /// Stands for election only while this member is whole.
    raft: Raft,
    /// It has what it acknowledged.
    whole: AtomicBool,
    /// The data directory, which is marked until then.
    data: PathBuf,
    /// What a leader had committed when it was first heard of: the entry up to which this member was behind. 0: none.
    target: AtomicU64,
    promises_end: Instant,
}

impl Rejoin {
    fn new(raft: Raft, config: DoorConfig, now: Instant) -> Self {
        raft.runtime_config().elect(!config.incomplete);
        Rejoin {
            raft,
            whole: AtomicBool::new(!config.incomplete),
            data: config.data,
            target: AtomicU64::new(0),
            promises_end: now + config.lease,
        }
    }

    /// After entries of `request` were taken.
    fn appended(&self, vote: &Vote, committed: Option<&LogId>, applied: u64) {
        if self.whole.load(Ordering::Acquire) {
            return;
        }
        // A leader that has committed an entry of its own knows everything that was committed before. Under load there is
        // always more by the time that this is applied, so the first such entry counts.
        if let Some(committed) = committed.filter(|committed| committed.leader_id.term == vote.leader_id.term)
        {
            let _ = self.target.compare_exchange(0, committed.index, Ordering::AcqRel, Ordering::Acquire);
        }
        let target = self.target.load(Ordering::Acquire);
        if target != 0 && target <= applied {
            self.is_whole();
        }
    }

    fn is_whole(&self) {
        if self.whole.swap(true, Ordering::AcqRel) {
            return;
        }
        self.raft.runtime_config().elect(true);
        if let Err(error) = identity::set_whole(&self.data) {
            tracing::warn!(%error, "the data directory stays marked as incomplete");
        }
    }

    fn may_vote(&self, request: &VoteRequest<Types>) -> bool {
        // A candidate with nothing but the first entry makes a new cluster, and this member is of it from the start.
        if request.last_log_id.as_ref().is_none_or(|last| last.index == 0) {
            self.is_whole();
            return true;
        }
        self.whole.load(Ordering::Acquire) && Instant::now() >= self.promises_end
    }
}

/// What a door needs to know beside the group's raft and state.
pub(crate) struct DoorConfig {
    pub data: PathBuf,
    pub snapshots: PathBuf,
    /// This MetaServer has not yet been brought to where it was, or has never been anywhere.
    pub incomplete: bool,
    /// How long a leader counts on not being deposed.
    pub lease: Duration,
}

impl RaftDoor {
    pub(crate) fn new(raft: Raft, state: StateStore, book: Arc<AddressBook>, config: DoorConfig) -> Self {
        let now = Instant::now();
        let inner = Inner {
            snapshots: config.snapshots.clone(),
            rejoin: Rejoin::new(raft.clone(), config, now),
            raft,
            state,
            received: AtomicU64::new(0),
            book,
            awaited: OnceLock::new(),
            heard: Mutex::new(now),
        };
        RaftDoor { inner: inner.into() }
    }

    /// This server has everything: it leads, or makes a new cluster.
    pub(crate) fn is_whole(&self) {
        self.inner.rejoin.is_whole();
    }

    /// A server without a cluster takes messages of this one only, from now on.
    pub(crate) fn await_cluster(&self, cluster: &[u8]) {
        self.inner.awaited.get_or_init(|| cluster.to_vec());
    }

    /// How long no leader was heard of.
    pub(crate) fn silence(&self) -> Duration {
        self.inner.heard.lock().elapsed()
    }

    fn check(&self, group: u32, cluster: &[u8]) -> Result<(), Status> {
        if group != GROUP {
            return Err(Status::failed_precondition(format!("no metadata group {group} here")));
        }
        let own = self.inner.state.cluster_tag().map_err(|error| Status::internal(error.to_string()))?;
        let own = own.as_ref().map(|own| &own[..]).or(self.inner.awaited.get().map(|awaited| &awaited[..]));
        match own {
            Some(own) if !cluster.is_empty() && own != cluster => Err(Status::failed_precondition(
                "this MetaServer belongs to another cluster, or was restored from another backup: check --peers, --join and the data directories",
            )),
            _ => Ok(()),
        }
    }

    /// Whether the message is for this server, and its sender is one that may send it.
    fn introduce(&self, from: u64, address: &str, to: u64) -> Result<(), Status> {
        let own = self.inner.book.own();
        if to != 0 && to != own.0 {
            return Err(Status::failed_precondition(format!("this is MetaServer {}, not {to}", own.0)));
        }
        let from = MetaServerId(from);
        if from.0 != 0 && self.is_removed(from) {
            let mut status = Status::failed_precondition(format!("MetaServer {} was removed", from.0));
            status.metadata_mut().insert(REMOVED_METADATA, MetadataValue::from_static("1"));
            return Err(status);
        }
        self.inner.book.heard(from, address);
        Ok(())
    }

    /// Whether that MetaServer was a member and is none any more. Ids are not used again, so this stays so.
    pub(crate) fn is_removed(&self, id: MetaServerId) -> bool {
        let metrics = self.inner.raft.metrics();
        let member = {
            let metrics = metrics.borrow_watched();
            let has = |membership: &StoredMembership| membership.membership().get_node(&id.0).is_some();
            has(&metrics.membership_config) || has(&metrics.committed_membership_config)
        };
        !member && self.inner.state.is_retired(id).unwrap_or(false)
    }

    fn read<T: DeserializeOwned>(&self, message: &RaftMessage) -> Result<T, Status> {
        self.check(message.group, &message.cluster)?;
        self.introduce(message.from, &message.address, message.to)?;
        wire::readable(message.version, wire::SPOKEN)?;
        wire::decode(&message.body).map_err(unreadable)
    }

    fn reply<T: Serialize>(&self, body: &T) -> Result<Response<RaftMessage>, Status> {
        let body = wire::encode(body).map_err(unreadable)?.into();
        let book = &self.inner.book;
        let cluster = self.inner.state.cluster_tag().ok().flatten();
        Ok(Response::new(RaftMessage {
            group: GROUP,
            body,
            cluster: cluster.unwrap_or_default(),
            from: book.own().0,
            address: book.announced().to_owned(),
            to: 0,
            votes: self.inner.rejoin.whole.load(Ordering::Acquire),
            // Whoever asked reads it: it wrote in it.
            version: wire::SPOKEN.oldest,
            newest_version: wire::SPOKEN.newest,
            oldest_version: wire::SPOKEN.oldest,
        }))
    }

    fn heard_a_leader(&self) {
        *self.inner.heard.lock() = Instant::now();
    }
}

fn unreadable(error: postcard::Error) -> Status {
    Status::invalid_argument(format!(
        "a message between MetaServers cannot be read ({error}): do all run one version?"
    ))
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
        self.heard_a_leader();
        let (vote, committed) = (request.vote, request.leader_commit);
        let answer = self.inner.raft.append_entries(request).await.map_err(stopped)?;
        // What raft refused is of a leader that is none any more.
        if answer.is_success() {
            self.inner.rejoin.appended(&vote, committed.as_ref(), self.inner.state.applied().0);
        }
        self.reply(&answer)
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
        self.reply(&answer)
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<RaftMessage>, Status> {
        let mut parts = request.into_inner();
        let first =
            parts.message().await?.ok_or_else(|| Status::invalid_argument("a Snapshot without a header"))?;
        self.check(first.group, &first.cluster)?;
        self.introduce(first.from, &first.address, first.to)?;
        wire::readable(first.version, wire::SPOKEN)?;
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
            self.heard_a_leader();
            file.write_all(&part.body).map_err(disk)?;
            len += part.body.len() as u64;
        }
        if len != header.len {
            return Err(Status::data_loss(format!("a Snapshot of {} bytes ended after {len}", header.len)));
        }
        tokio::task::spawn_blocking(move || file.sync_all()).await.map_err(stopped)?.map_err(disk)?;
        let snapshot = Snapshot { meta: header.meta, snapshot: SnapshotFile { path } };
        // In a task of its own: the sender may give up, and the file must stay until raft is done with it.
        let raft = self.inner.raft.clone();
        let installing = tokio::spawn(async move {
            let answer = raft.install_full_snapshot(header.vote, snapshot).await;
            drop(received);
            answer
        });
        let answer = installing.await.map_err(stopped)?.map_err(stopped)?;
        self.reply(&answer)
    }

    async fn transfer_leader(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let request: TransferLeaderRequest<Types> = self.read(request.get_ref())?;
        let answer = self.inner.raft.handle_transfer_leader(request).await.map_err(stopped)?;
        self.reply(&answer)
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

//! Calls to the other MetaServers.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gofs_proto::cluster::raft_client::RaftClient;
use gofs_proto::cluster::{RaftMessage, SnapshotPart};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::network::v2::RaftNetworkV2;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, RaftNetworkFactory};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::wire::{
    self, Ballot, BallotReply, GROUP, MESSAGE_BYTES_MAX, PART_BYTES, SnapshotHeader, SnapshotReply,
};
use super::{Snapshot, Types, Vote};
use crate::state::{SnapshotFile, StateStore};

/// How long a peer may take to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a peer may take to write a batch of entries. Far above a heartbeat: a starved disk or processor must
/// not make the same batch travel twice.
const APPEND_TIMEOUT: Duration = Duration::from_secs(3);
/// Parts of a Snapshot read ahead of the connection.
const PARTS_AHEAD: usize = 4;

/// Makes the connections.
#[derive(Clone)]
pub(crate) struct Network {
    /// Where the members are, from the configuration. Goes before what the log says: addresses may change.
    pub peers: Arc<BTreeMap<u64, String>>,
    pub state: StateStore,
}

impl Network {
    pub fn peer(&self, target: u64, logged: Option<&BasicNode>) -> Peer {
        let address = self.peers.get(&target).or(logged.map(|node| &node.addr));
        Peer { client: address.and_then(|address| connect(address)), state: self.state.clone() }
    }
}

/// A connection that is made when it is first used, and again whenever it broke.
fn connect(address: &str) -> Option<RaftClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .inspect_err(|error| tracing::error!(address, %error, "not an address of a MetaServer"))
        .ok()?;
    let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect_lazy();
    let client = RaftClient::new(channel);
    Some(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        self.peer(target, Some(node))
    }
}

/// One other MetaServer.
pub(crate) struct Peer {
    /// `None` where its address cannot be one.
    client: Option<RaftClient<Channel>>,
    state: StateStore,
}

fn failed(status: &Status) -> RPCError<Types> {
    match status.code() {
        // Nobody there, or one that does not take us: ask again later, not at once.
        Code::Unavailable | Code::FailedPrecondition | Code::Unimplemented => {
            RPCError::Unreachable(Unreachable::new(status))
        }
        _ => RPCError::Network(NetworkError::new(status)),
    }
}

fn streaming(error: RPCError<Types>) -> StreamingError<Types> {
    match error {
        RPCError::Unreachable(error) => StreamingError::Unreachable(error),
        RPCError::Timeout(error) => StreamingError::Timeout(error),
        RPCError::Network(error) => StreamingError::Network(error),
        RPCError::RemoteError(error) => StreamingError::Network(NetworkError::from_string(error.to_string())),
    }
}

fn garbled(error: postcard::Error) -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string(format!("a message cannot be read: {error}")))
}

impl Peer {
    fn client(&self) -> Result<RaftClient<Channel>, RPCError<Types>> {
        let missing = || RPCError::Unreachable(Unreachable::from_string("no address is known"));
        self.client.clone().ok_or_else(missing)
    }

    fn cluster(&self) -> Bytes {
        match self.state.cluster() {
            Ok(Some(cluster)) => Bytes::copy_from_slice(&cluster),
            _ => Bytes::new(),
        }
    }

    fn message<T: Serialize>(&self, body: &T) -> Result<RaftMessage, RPCError<Types>> {
        let body = wire::encode(body).map_err(garbled)?.into();
        Ok(RaftMessage { group: GROUP, body, cluster: self.cluster() })
    }

    /// Waits for an answer and reads it.
    async fn answer<T: DeserializeOwned>(
        &self,
        timeout: Duration,
        call: impl Future<Output = Result<tonic::Response<RaftMessage>, Status>>,
    ) -> Result<T, RPCError<Types>> {
        let reply = match tokio::time::timeout(timeout, call).await {
            Ok(reply) => reply.map_err(|status| failed(&status))?,
            Err(_) => {
                let text = format!("no answer within {} ms", timeout.as_millis());
                return Err(RPCError::Network(NetworkError::from_string(text)));
            }
        };
        wire::decode(&reply.into_inner().body).map_err(garbled)
    }

    async fn ballot(&self, ballot: &Ballot, timeout: Duration) -> Result<BallotReply, RPCError<Types>> {
        let mut client = self.client()?;
        let message = self.message(ballot)?;
        self.answer(timeout, client.vote(message)).await
    }

    async fn vote_reply(
        &self,
        ballot: Ballot,
        timeout: Duration,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.ballot(&ballot, timeout).await? {
            BallotReply::Vote(reply) => Ok(reply),
            BallotReply::Probe { .. } => {
                Err(RPCError::Network(NetworkError::from_string("the answer is to another question")))
            }
        }
    }

    /// Whether this peer has never been part of a cluster.
    pub async fn is_fresh(&self, timeout: Duration) -> Result<bool, RPCError<Types>> {
        match self.ballot(&Ballot::Probe, timeout).await? {
            BallotReply::Probe { fresh } => Ok(fresh),
            BallotReply::Vote(_) => {
                Err(RPCError::Network(NetworkError::from_string("the answer is to another question")))
            }
        }
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let mut client = self.client()?;
        let message = self.message(&rpc)?;
        self.answer(APPEND_TIMEOUT, client.append(message)).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.vote_reply(Ballot::Vote(rpc), option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.vote_reply(Ballot::PreVote(rpc), option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let mut client = self.client().map_err(streaming)?;
        let unreadable = |error: std::io::Error| StreamingError::Network(NetworkError::new(&error));
        // Opened here: once open it can be sent even if a newer one takes its place meanwhile.
        let file = std::fs::File::open(&snapshot.snapshot.path).map_err(unreadable)?;
        let len = file.metadata().map_err(unreadable)?.len();
        let header = SnapshotHeader { vote, meta: snapshot.meta, len };
        let header = wire::encode(&header).map_err(|error| streaming(garbled(error)))?.into();
        let first = SnapshotPart { group: GROUP, header, cluster: self.cluster(), ..SnapshotPart::default() };
        let (parts, receiver) = tokio::sync::mpsc::channel(PARTS_AHEAD);
        tokio::task::spawn_blocking(move || send_parts(file, first, &parts));
        let call =
            self.answer::<SnapshotReply>(option.hard_ttl(), client.snapshot(ReceiverStream::new(receiver)));
        tokio::select! {
            reply = call => reply.map_err(streaming),
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let mut client = self.client()?;
        let message = self.message(&req)?;
        self.answer(option.hard_ttl(), client.transfer_leader(message)).await
    }
}

/// Reads the file into parts until it ends or nobody takes them any more. A file cut short is noticed by the receiver.
fn send_parts(mut file: std::fs::File, first: SnapshotPart, parts: &tokio::sync::mpsc::Sender<SnapshotPart>) {
    if parts.blocking_send(first).is_err() {
        return;
    }
    loop {
        let mut body = vec![0; PART_BYTES];
        let read = match file.read(&mut body) {
            Ok(0) => return,
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, "a Snapshot cannot be read to be sent");
                return;
            }
        };
        body.truncate(read);
        let crc32c = crc32c::crc32c(&body);
        let part = SnapshotPart { group: GROUP, body: body.into(), crc32c, ..SnapshotPart::default() };
        if parts.blocking_send(part).is_err() {
            return;
        }
    }
}

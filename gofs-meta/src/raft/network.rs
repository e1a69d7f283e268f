//! Calls to the other MetaServers.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gofs_proto::Versions;
use gofs_proto::cluster::raft_client::RaftClient;
use gofs_proto::cluster::{RaftMessage, SnapshotPart};
use gofs_tree::MetaServerId;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::network::v2::RaftNetworkV2;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, RaftNetworkFactory};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::book::AddressBook;
use super::wire::{
    self, Ballot, BallotReply, GROUP, MESSAGE_BYTES_MAX, PART_BYTES, SnapshotHeader, SnapshotReply,
};
use super::{Snapshot, Types, Vote};
use crate::state::{SnapshotFile, StateStore};

/// While a call is under way the other side is asked for a sign of life so often, and given up without one: a host that lost its
/// power while it took a Snapshot says nothing, also when it is back.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
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
    pub book: Arc<AddressBook>,
    pub state: StateStore,
    pub sending: Sending,
}

/// Snapshots on their way to members: bytes sent, and of how many.
#[derive(Clone, Default)]
pub(crate) struct Sending(Arc<Mutex<BTreeMap<u64, (u64, u64)>>>);

impl Sending {
    /// To that member.
    pub fn to(&self, id: MetaServerId) -> Option<(u64, u64)> {
        self.0.lock().get(&id.0).copied()
    }
}

impl Network {
    /// `logged`: where the log says that it is.
    pub fn peer(&self, target: u64, logged: Option<&BasicNode>) -> Peer {
        let id = MetaServerId(target);
        let logged = logged.map(|node| node.addr.clone());
        Peer { id, logged, line: Mutex::default(), reads: Mutex::default(), network: self.clone() }
    }

    /// Who is at `address`.
    pub async fn probe(&self, address: &str, timeout: Duration) -> Result<Found, Status> {
        let mut client = connect(address).ok_or_else(|| {
            Status::invalid_argument(format!("{address} is not an address: HOST:PORT expected"))
        })?;
        let unreadable =
            |error: postcard::Error| Status::internal(format!("its answer cannot be read: {error}"));
        let body = wire::encode(&Ballot::Probe).map_err(unreadable)?.into();
        let message = self.message(MetaServerId(0), body);
        let reply = tokio::time::timeout(timeout, client.vote(message))
            .await
            .map_err(|_| Status::deadline_exceeded(format!("no answer within {} ms", timeout.as_millis())))?;
        let reply = reply.inspect_err(|status| self.book.told(status))?.into_inner();
        match wire::decode(&reply.body).map_err(unreadable)? {
            BallotReply::Probe { fresh } => {
                let id = MetaServerId(reply.from);
                Ok(Found { id, cluster: reply.cluster, fresh, votes: reply.votes })
            }
            BallotReply::Vote(_) => Err(Status::internal("the answer is to another question")),
        }
    }

    fn cluster(&self) -> Bytes {
        self.state.cluster_tag().ok().flatten().unwrap_or_default()
    }

    fn message(&self, to: MetaServerId, body: Bytes) -> RaftMessage {
        RaftMessage {
            group: GROUP,
            body,
            cluster: self.cluster(),
            from: self.book.own().0,
            address: self.book.announced().to_owned(),
            to: to.0,
            votes: false,
            version: wire::SPOKEN.oldest,
            newest_version: wire::SPOKEN.newest,
            oldest_version: wire::SPOKEN.oldest,
        }
    }
}

/// A MetaServer that answered a probe.
#[derive(Debug)]
pub(crate) struct Found {
    /// 0: of a version that does not say.
    pub id: MetaServerId,
    /// Empty: it belongs to none yet.
    pub cluster: Bytes,
    /// It has never been part of a cluster.
    pub fresh: bool,
    /// It has everything that it has ever acknowledged: it votes.
    pub votes: bool,
}

/// A connection that is made when it is first used, and again whenever it broke.
fn connect(address: &str) -> Option<RaftClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .inspect_err(|error| tracing::error!(address, %error, "not an address of a MetaServer"))
        .ok()?;
    let channel = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .connect_lazy();
    let client = RaftClient::new(channel);
    Some(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        self.peer(target, Some(node))
    }
}

/// One other MetaServer. Where several addresses are known for it, the next one is tried after each failure, until it is
/// the one that answers: another server does not, because every message says for whom it is.
pub(crate) struct Peer {
    id: MetaServerId,
    logged: Option<String>,
    line: Mutex<Option<Line>>,
    /// What it reads, as it said last.
    reads: Mutex<Option<Versions>>,
    network: Network,
}

#[derive(Clone)]
struct Line {
    address: String,
    client: RaftClient<Channel>,
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
    fn line(&self) -> Result<Line, RPCError<Types>> {
        let mut line = self.line.lock();
        if line.is_none() {
            let candidates = self.network.book.candidates(self.id, self.logged.as_deref());
            let lines = candidates.into_iter().filter_map(|address| {
                let client = connect(&address)?;
                Some(Line { address, client })
            });
            *line = lines.into_iter().next();
        }
        let missing = || RPCError::Unreachable(Unreachable::from_string("no address is known"));
        line.clone().ok_or_else(missing)
    }

    /// The address did not do: the next one is tried.
    fn elsewhere(&self, tried: &str) {
        let candidates = self.network.book.candidates(self.id, self.logged.as_deref());
        let next = candidates.iter().position(|address| address == tried).map_or(0, |at| at + 1);
        let Some(address) = candidates.get(next % candidates.len().max(1)) else { return };
        let mut line = self.line.lock();
        if address != tried && line.as_ref().is_some_and(|line| line.address == tried) {
            *line = connect(address).map(|client| Line { address: address.clone(), client });
        }
    }

    fn message<T: Serialize>(&self, body: &T) -> Result<RaftMessage, RPCError<Types>> {
        let message = self.network.message(self.id, wire::encode(body).map_err(garbled)?.into());
        Ok(RaftMessage { version: self.version(), ..message })
    }

    /// What to write to it.
    fn version(&self) -> u32 {
        wire::writable(wire::SPOKEN, *self.reads.lock())
    }

    /// Asks, waits for the answer and reads it.
    async fn call<T, F>(
        &self,
        timeout: Duration,
        ask: impl FnOnce(RaftClient<Channel>) -> F,
    ) -> Result<T, RPCError<Types>>
    where
        T: DeserializeOwned,
        F: Future<Output = Result<tonic::Response<RaftMessage>, Status>>,
    {
        let line = self.line()?;
        let book = &self.network.book;
        let error = match tokio::time::timeout(timeout, ask(line.client)).await {
            Ok(Ok(reply)) => {
                let reply = reply.into_inner();
                if reply.from == 0 || reply.from == self.id.0 {
                    book.heard(MetaServerId(reply.from), &reply.address);
                    *self.reads.lock() =
                        Some(Versions { newest: reply.newest_version, oldest: reply.oldest_version });
                    wire::readable(reply.version, wire::SPOKEN).map_err(|status| failed(&status))?;
                    return wire::decode(&reply.body).map_err(garbled);
                }
                let text = format!("MetaServer {} is at {}, not {}", reply.from, line.address, self.id.0);
                RPCError::Unreachable(Unreachable::from_string(text))
            }
            Ok(Err(status)) => {
                book.told(&status);
                failed(&status)
            }
            Err(_) => {
                let text = format!("no answer within {} ms", timeout.as_millis());
                RPCError::Network(NetworkError::from_string(text))
            }
        };
        self.elsewhere(&line.address);
        Err(error)
    }

    async fn ballot(&self, ballot: &Ballot, timeout: Duration) -> Result<BallotReply, RPCError<Types>> {
        let message = self.message(ballot)?;
        self.call(timeout, |mut client| async move { client.vote(message).await }).await
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
        let message = self.message(&rpc)?;
        self.call(APPEND_TIMEOUT, |mut client| async move { client.append(message).await }).await
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
        let unreadable = |error: std::io::Error| StreamingError::Network(NetworkError::new(&error));
        // Opened here: once open it can be sent even if a newer one takes its place meanwhile.
        let file = std::fs::File::open(&snapshot.snapshot.path).map_err(unreadable)?;
        let len = file.metadata().map_err(unreadable)?.len();
        let header = SnapshotHeader { vote, meta: snapshot.meta, len };
        let header = wire::encode(&header).map_err(|error| streaming(garbled(error)))?.into();
        let network = &self.network;
        let first = SnapshotPart {
            group: GROUP,
            header,
            cluster: network.cluster(),
            from: network.book.own().0,
            address: network.book.announced().to_owned(),
            to: self.id.0,
            version: self.version(),
            ..SnapshotPart::default()
        };
        let (parts, receiver) = tokio::sync::mpsc::channel(PARTS_AHEAD);
        let under_way = UnderWay::begin(&network.sending, self.id, len);
        tokio::task::spawn_blocking(move || send_parts(file, first, &parts, &under_way));
        let call = self.call::<SnapshotReply, _>(option.hard_ttl(), |mut client| async move {
            client.snapshot(ReceiverStream::new(receiver)).await
        });
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
        let message = self.message(&req)?;
        self.call(option.hard_ttl(), |mut client| async move { client.transfer_leader(message).await }).await
    }
}

/// Reads the file into parts until it ends or nobody takes them any more. A file cut short is noticed by the receiver.
fn send_parts(
    mut file: std::fs::File,
    first: SnapshotPart,
    parts: &tokio::sync::mpsc::Sender<SnapshotPart>,
    under_way: &UnderWay,
) {
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
        under_way.sent(read as u64);
    }
}

/// Shows a Snapshot as being sent for as long as its parts are read.
struct UnderWay {
    sending: Sending,
    to: u64,
}

impl UnderWay {
    fn begin(sending: &Sending, to: MetaServerId, len: u64) -> UnderWay {
        sending.0.lock().insert(to.0, (0, len));
        UnderWay { sending: sending.clone(), to: to.0 }
    }

    fn sent(&self, bytes: u64) {
        if let Some((sent, _)) = self.sending.0.lock().get_mut(&self.to) {
            *sent += bytes;
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.sending.0.lock().remove(&self.to);
    }
}

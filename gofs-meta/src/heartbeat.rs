//! The door for ChunkServers: registration, reports up, instructions down.
//!
//! Owns nothing: a connection's facts go to the [`ChunkService`]'s memory of the term. A
//! connection ends with the term, with the server's silence, or when the server connects anew.

use std::{pin::Pin, sync::Arc, time::Duration};

use gofs_proto::{
    OTHER_CLUSTER_METADATA,
    cluster::{self, heartbeat_server, instruction, report},
    negotiate,
};
use gofs_tree::{ChunkServerId, SessionId};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue};

use crate::{
    chunks::ChunkService,
    command::{Command, CommandOutcome, Standing},
    group::{MetaGroup, ProposeError, Role},
};

/// A server that connects and does not say who it is within this time is let go.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most labels of a server, and the longest key or value, bytes.
const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 256;

/// Name of the metadata in which a server that does not lead names the leader's address.
pub const LEADER_METADATA: &str = "gofs-leader";

/// UNAVAILABLE with the leader's address, if it is known, for a caller to go on there.
pub fn not_leader(leader: Option<&str>) -> Status {
    let mut status = match leader {
        Some(leader) => Status::unavailable(format!("this MetaServer does not lead; {leader} does")),
        None => Status::unavailable(
            "this MetaServer does not lead, and no leader is known at the moment: try again",
        ),
    };
    if let Some(Ok(value)) = leader.map(str::parse) {
        status.metadata_mut().insert(LEADER_METADATA, value);
    }
    status
}

/// Refuses unless this server leads.
pub fn require_leader(group: &MetaGroup) -> Result<(), Status> {
    let leadership = group.leadership();
    let leadership = leadership.borrow();
    match leadership.role {
        Role::Leader => Ok(()),
        Role::Follower => Err(not_leader(leadership.leader.as_ref().map(|(_, address)| address.as_str()))),
    }
}

/// What a failed proposal is to a caller.
pub fn propose_status(error: ProposeError) -> Status {
    match error {
        ProposeError::NotLeader { leader } => not_leader(leader.as_deref()),
        ProposeError::Shutdown => Status::unavailable("this MetaServer is shutting down"),
        ProposeError::Storage(text) => Status::internal(format!("this MetaServer's storage failed: {text}")),
    }
}

/// The Heartbeat service of a MetaServer.
pub struct HeartbeatDoor {
    chunks: Arc<ChunkService>,
}

impl ChunkService {
    /// The door for ChunkServers, to be served on this server's port.
    pub fn heartbeat_service(self: &Arc<Self>) -> heartbeat_server::HeartbeatServer<HeartbeatDoor> {
        heartbeat_server::HeartbeatServer::new(HeartbeatDoor { chunks: self.clone() })
    }
}

type Instructions = Pin<Box<dyn Stream<Item = Result<cluster::Instruction, Status>> + Send>>;

#[tonic::async_trait]
impl heartbeat_server::Heartbeat for HeartbeatDoor {
    type BeatStream = Instructions;

    async fn beat(
        &self,
        request: Request<Streaming<cluster::Report>>,
    ) -> Result<Response<Instructions>, Status> {
        let group = self.chunks.group().clone();
        require_leader(&group)?;
        let mut reports = request.into_inner();
        let first = tokio::time::timeout(REGISTER_TIMEOUT, reports.message())
            .await
            .map_err(|_| Status::deadline_exceeded("a ChunkServer must register first; nothing came"))??;
        let Some(report::Body::Register(register)) = first.and_then(|first| first.body) else {
            return Err(Status::invalid_argument("a ChunkServer must register before anything else"));
        };
        let server = ChunkServerId(register.server);
        let (version, cluster) = accept(&group, &register).await?;

        let labels = register.labels.into_iter().collect();
        let connected = self.chunks.connect(server, register.address.clone(), labels);
        let (link, instructions) = connected.ok_or_else(|| not_leader(None))?;
        let accepted = match terms(&self.chunks, &group, version, cluster).await {
            Ok(accepted) => accepted,
            Err(refused) => {
                self.chunks.disconnect(server, link);
                return Err(refused);
            }
        };
        tracing::info!(server = server.0, address = register.address, "a ChunkServer registered");
        tokio::spawn(read_reports(self.chunks.clone(), server, link, reports));

        let (out, stream) = mpsc::channel(1);
        tokio::spawn(instruct(group, accepted, instructions, out));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Sends what there is for a ChunkServer, and where the MetaServers are whenever that changes, until the connection is to
/// end: then `instructions` is closed, and the server is told where to go on.
async fn instruct(
    group: Arc<MetaGroup>,
    mut accepted: cluster::Accepted,
    mut instructions: mpsc::Receiver<cluster::Instruction>,
    out: mpsc::Sender<Result<cluster::Instruction, Status>>,
) {
    let mut voters = group.voter_addresses();
    accepted.metas.clone_from(&voters.borrow_and_update());
    let mut next = Some(instruction::Body::Accepted(accepted));
    loop {
        let instruction = match next.take() {
            Some(body) => cluster::Instruction { id: 0, body: Some(body) },
            None => tokio::select! {
                instruction = instructions.recv() => match instruction {
                    Some(instruction) => instruction,
                    None => break,
                },
                Ok(()) = voters.changed() => {
                    let addresses = voters.borrow_and_update().clone();
                    let body = instruction::Body::Members(cluster::Members { addresses });
                    cluster::Instruction { id: 0, body: Some(body) }
                }
                () = out.closed() => return,
            },
        };
        if out.send(Ok(instruction)).await.is_err() {
            return;
        }
    }
    // A server that is gone has nobody to be told.
    let _ = out.send(Err(not_leader_now(&group))).await;
}

/// Why a connection that stood ends now, for the server to know where to go on.
fn not_leader_now(group: &MetaGroup) -> Status {
    let leadership = group.leadership();
    let leadership = leadership.borrow();
    match &leadership.leader {
        Some((_, address)) => not_leader(Some(address)),
        None => not_leader(None),
    }
}

/// Takes the server into the state; the version that both speak, and the cluster.
async fn accept(group: &MetaGroup, register: &cluster::Register) -> Result<(u32, [u8; 16]), Status> {
    let server = ChunkServerId(register.server);
    let Some(version) = negotiate(register.version, register.oldest_version) else {
        return Err(Status::unimplemented(format!(
            "ChunkServer {server} speaks protocol versions {} to {}, this MetaServer {} to {}: upgrade the older one",
            register.oldest_version,
            register.version,
            gofs_proto::OLDEST_PROTOCOL_VERSION,
            gofs_proto::PROTOCOL_VERSION
        )));
    };
    if register.server == 0 || register.address.is_empty() {
        return Err(Status::invalid_argument(
            "a ChunkServer must register with an id and the address of its data door",
        ));
    }
    let too_long = |text: &String| text.len() > LABEL_BYTES_MAX;
    if register.labels.len() > LABELS_MAX
        || register.labels.iter().any(|(key, value)| too_long(key) || too_long(value))
    {
        return Err(Status::invalid_argument(format!(
            "a ChunkServer has at most {LABELS_MAX} labels of at most {LABEL_BYTES_MAX} bytes"
        )));
    }
    let unreadable = |_| Status::internal("this MetaServer cannot read its state; see its log");
    let Some(cluster) = group.state().cluster().map_err(unreadable)? else {
        return Err(Status::unavailable("the cluster is being made: try again"));
    };
    if !register.cluster.is_empty() && register.cluster[..] != cluster[..] {
        let mut status = Status::failed_precondition(format!(
            "ChunkServer {server} at {} belongs to cluster {}, this is cluster {}: check its --meta, or give it an empty data directory",
            register.address,
            hex(&register.cluster),
            hex(&cluster)
        ));
        if let Ok(value) = hex(&cluster).parse() {
            status.metadata_mut().insert(OTHER_CLUSTER_METADATA, value);
        }
        return Err(status);
    }
    let labels = register.labels.clone().into_iter().collect();
    let known = group.state().server(server).map_err(unreadable)?;
    if known.as_ref().is_some_and(|known| known.standing == Standing::Removed) {
        let mut status = Status::failed_precondition(format!(
            "ChunkServer {server} at {} was removed from this cluster: give it an empty data directory to join as a new one, or take it back with what it holds: gofsctl chunk undrain {server}",
            register.address
        ));
        // No use to try on, as with another cluster.
        status.metadata_mut().insert(OTHER_CLUSTER_METADATA, MetadataValue::from_static("removed"));
        return Err(status);
    }
    if known.is_none_or(|known| known.address != register.address || known.labels != labels) {
        let command = Command::RegisterServer { server, address: register.address.clone(), labels };
        match group.propose(command).await.map_err(propose_status)? {
            CommandOutcome::Refused(refusal) => return Err(Status::internal(refusal.to_string())),
            _ => tracing::info!(
                server = server.0,
                address = register.address,
                "a ChunkServer is new, or has moved"
            ),
        }
    }
    Ok((version, cluster))
}

/// What a server that is connected already is told first, so that it misses no fence; refused where this server does not lead after all.
async fn terms(
    chunks: &ChunkService,
    group: &MetaGroup,
    version: u32,
    cluster: [u8; 16],
) -> Result<cluster::Accepted, Status> {
    // What another leader has committed is in the state then, and what this one tells is not out of date.
    group.confirm_leader().await.map_err(propose_status)?;
    let unreadable = |_| Status::internal("this MetaServer cannot read its state; see its log");
    let sessions = group.state().ended_sessions().map_err(unreadable)?;
    let ids = |sessions: Vec<SessionId>| sessions.into_iter().map(|session| session.0).collect();
    let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    Ok(cluster::Accepted {
        cluster: cluster.to_vec().into(),
        version,
        heartbeat_ms: millis(chunks.config().heartbeat),
        fenced_sessions: ids(sessions.fenced),
        session_floor: sessions.floor.0,
        live_sessions: ids(sessions.live),
        write_lease_ms: millis(chunks.config().dead_after),
        metas: Vec::new(),
    })
}

async fn read_reports(
    chunks: Arc<ChunkService>,
    server: ChunkServerId,
    link: u64,
    mut reports: Streaming<cluster::Report>,
) {
    loop {
        match reports.message().await {
            Ok(Some(cluster::Report { body: Some(body) })) => {
                let number = match &body {
                    report::Body::Status(status) => status.number,
                    _ => 0,
                };
                if !chunks.report(server, link, body) {
                    break;
                }
                if number > 0 {
                    // Not in the way of what comes behind.
                    let chunks = chunks.clone();
                    tokio::spawn(async move { chunks.acknowledge(server, link, number).await });
                }
            }
            // A kind of report that a newer server sends.
            Ok(Some(cluster::Report { body: None })) => {}
            Ok(None) => break,
            Err(status) => {
                tracing::debug!(server = server.0, error = %status.message(), "a ChunkServer's connection broke");
                break;
            }
        }
    }
    chunks.disconnect(server, link);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_leader_for_the_caller_to_follow() {
        let status = not_leader(Some("10.0.0.2:7460"));
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert_eq!(status.metadata().get(LEADER_METADATA).unwrap(), "10.0.0.2:7460");
        assert!(not_leader(None).metadata().get(LEADER_METADATA).is_none());
    }
}

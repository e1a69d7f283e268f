//! `ListServers`, `SetDraining`, `RemoveServer`: the ChunkServers, dead ones too, and what is decided about them.

use gofs_proto::cluster;
use gofs_tree::{ChunkServerId, FsError};
use tonic::Status;

use super::{Admin, millis, unreadable};
use crate::{
    chunks::{Left, ServerStatus, StandingError},
    heartbeat::propose_status,
};

/// Walks what draining servers hold: call it off the runtime's own threads.
pub(super) fn list(admin: &Admin) -> Result<cluster::ListServersReply, Status> {
    let servers = admin.chunks.servers().into_iter().map(|server| to_wire(admin, server));
    let servers: Result<Vec<_>, FsError> = servers.collect();
    Ok(cluster::ListServersReply { servers: servers.map_err(unreadable)? })
}

pub(super) async fn set_draining(admin: &Admin, request: cluster::SetDrainingRequest) -> Result<(), Status> {
    let server = find(admin, request.server, &request.address)?;
    admin.chunks.set_draining(server, request.draining).await.map_err(refused)
}

pub(super) async fn remove(
    admin: &Admin,
    request: cluster::RemoveServerRequest,
) -> Result<cluster::RemoveServerReply, Status> {
    let server = find(admin, request.server, &request.address)?;
    let left = admin.chunks.remove_server(server, request.force).await.map_err(refused)?;
    Ok(cluster::RemoveServerReply { server: server.0, needed_chunks: left.needed, only_chunks: left.only })
}

fn find(admin: &Admin, id: u64, address: &str) -> Result<ChunkServerId, Status> {
    if address.is_empty() {
        return Ok(ChunkServerId(id));
    }
    let servers = admin.chunks.servers();
    let mut found = servers.iter().filter(|server| server.address == address);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.id),
        (None, _) => {
            Err(Status::not_found(format!("no ChunkServer at {address:?}; see: gofsctl chunk list")))
        }
        (Some(one), Some(other)) => Err(Status::failed_precondition(format!(
            "ChunkServers {} and {} both say that they are at {address}: name the one by its id",
            one.id, other.id
        ))),
    }
}

fn refused(error: StandingError) -> Status {
    match error {
        StandingError::Unknown(_) => Status::not_found(error.to_string()),
        StandingError::Needed(_) | StandingError::NotSettled => {
            Status::failed_precondition(error.to_string())
        }
        StandingError::State(error) => unreadable(error),
        StandingError::Propose(error) => propose_status(error),
    }
}

/// A server for the wire. Walks what a draining one holds.
pub(super) fn to_wire(admin: &Admin, server: ServerStatus) -> Result<cluster::ChunkServer, FsError> {
    let left = if server.draining { admin.chunks.left_on(server.id)? } else { Left::default() };
    let progress = admin.chunks.drain_progress(server.id, left.held);
    let state = match (server.alive, server.draining) {
        (false, _) => "dead",
        (true, false) => "alive",
        (true, true) if left.held.chunks == 0 && admin.chunks.is_settled() => "drained",
        (true, true) => "draining",
    };
    let disks = server.disks.into_iter().map(|disk| cluster::Disk {
        path: disk.path,
        capacity_bytes: disk.capacity_bytes,
        free_bytes: disk.free_bytes,
        error: disk.error,
        last_scrub_unix_s: disk.last_scrub_unix_s,
    });
    Ok(cluster::ChunkServer {
        id: server.id.0,
        address: server.address,
        state: state.to_owned(),
        labels: server.labels.into_iter().collect(),
        disks: disks.collect(),
        chunks: server.chunks,
        corrupt_blocks_total: server.corrupt_blocks_total,
        last_heard_ms: millis(server.heard_ago),
        cpu_latency: server.cpu_latency,
        draining: server.draining,
        left_chunks: left.held.chunks,
        left_bytes: left.held.bytes,
        moved_bytes_s: progress.bytes_s,
        end_s: progress.end_s.unwrap_or_default(),
        needed_chunks: left.needed,
        only_chunks: left.only,
    })
}

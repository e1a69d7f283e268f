//! `ClusterStatus`: everything at a glance.

use gofs_proto::cluster;
use tonic::Status;

use super::{Admin, unreadable};

pub(super) fn cluster_status(admin: &Admin) -> Result<cluster::ClusterStatusReply, Status> {
    let metrics = admin.group.metrics();
    let leader = admin.group.leadership().borrow().leader.as_ref().map(|(id, _)| *id);
    let metas = metrics.members.iter().map(|(id, address, reachable)| cluster::MetaServerStatus {
        id: id.0,
        address: address.clone(),
        role: if Some(*id) == leader { "leader" } else { "follower" }.to_owned(),
        reachable: *reachable,
        cpu_latency: if *id == admin.group.id() {
            admin.group.wakeful().state().to_string()
        } else {
            String::new()
        },
    });
    let chunks = admin.chunks.status().map_err(unreadable)?;
    let state = admin.group.state();
    let sessions = state.sessions().map_err(unreadable)?.len();
    Ok(cluster::ClusterStatusReply {
        cluster: state.cluster().map_err(unreadable)?.map(|id| id.to_vec().into()).unwrap_or_default(),
        metas: metas.collect(),
        leader: leader.map_or(0, |id| id.0),
        committed_index: metrics.committed.0,
        applied_index: metrics.applied.0,
        snapshot_index: metrics.snapshot.0,
        chunk_servers_alive: chunks.servers_alive,
        chunk_servers_dead: chunks.servers_dead,
        capacity_bytes: chunks.capacity.total_bytes,
        free_bytes: chunks.capacity.free_bytes,
        chunks: chunks.chunks,
        chunks_under_replicated: chunks.under_replicated,
        chunks_lost: chunks.lost,
        chunks_to_delete: chunks.to_delete,
        repairs_running: chunks.repairs_running,
        sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
        in_grace: admin.sessions.in_grace(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        corrupt_replicas: chunks.corrupt_replicas,
        chunks_known: admin.chunks.is_settled(),
    })
}

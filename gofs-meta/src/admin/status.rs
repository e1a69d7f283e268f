//! `ClusterStatus`: everything at a glance.

use gofs_proto::cluster;
use tonic::Status;

use super::{Admin, unreadable};

pub(super) fn cluster_status(admin: &Admin) -> Result<cluster::ClusterStatusReply, Status> {
    let metrics = admin.group.metrics();
    let leader = admin.group.leadership().borrow().leader.as_ref().map(|(id, _)| *id);
    let metas = metrics.members.iter().map(|member| cluster::MetaServerStatus {
        id: member.id.0,
        address: member.address.clone(),
        role: match member {
            member if Some(member.id) == leader => "leader",
            member if member.voter => "follower",
            _ => "learner",
        }
        .to_owned(),
        reachable: member.reachable,
        cpu_latency: if member.id == admin.group.id() {
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
        repair_chunks: chunks.to_repair.amount.chunks,
        repair_bytes: chunks.to_repair.amount.bytes,
        repair_end_s: chunks.to_repair.end_s.unwrap_or_default(),
        move_chunks: chunks.to_move.amount.chunks,
        move_bytes: chunks.to_move.amount.bytes,
        move_end_s: chunks.to_move.end_s.unwrap_or_default(),
        copied_bytes_s: chunks.to_move.bytes_s,
        doubtful_replicas: chunks.doubtful_replicas,
        chunk_servers_draining: chunks.servers_draining,
        disks_failed: chunks.disks_failed,
    })
}

//! The MetaServers themselves: how each sees the group, and changes of who they are.

use gofs_proto::cluster;
use gofs_tree::MetaServerId;
use tonic::Status;

use super::{Admin, millis, unreadable};
use crate::group::{Member, MemberError};
use crate::heartbeat::propose_status;

/// Longest address taken, bytes.
const ADDRESS_MAX: usize = 512;

pub(super) fn status(admin: &Admin) -> Result<cluster::MemberStatusReply, Status> {
    let group = &admin.group;
    let (view, metrics) = (group.view(), group.metrics());
    let cluster = group.state().cluster().map_err(unreadable)?;
    Ok(cluster::MemberStatusReply {
        cluster: cluster.map(|id| id.to_vec().into()).unwrap_or_default(),
        id: group.id().0,
        address: group.address().to_owned(),
        role: view.role.to_owned(),
        term: view.term,
        leader: view.leader.map_or(0, |id| id.0),
        last_index: view.last.0,
        committed_index: metrics.committed.0,
        applied_index: metrics.applied.0,
        snapshot_index: metrics.snapshot.0,
        members: view.members.iter().map(member).collect(),
        membership_index: view.membership.0,
        changing: view.changing,
        quorum_ms: millis(view.quorum),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

fn member(member: &Member) -> cluster::Member {
    let (sent, bytes) = member.snapshot.unwrap_or_default();
    cluster::Member {
        id: member.id.0,
        address: member.address.clone(),
        voter: member.voter,
        matched_index: member.matched.unwrap_or_default().0,
        heard_ms: millis(member.heard),
        snapshot_sent_bytes: sent,
        snapshot_bytes: bytes,
    }
}

pub(super) async fn add(
    admin: &Admin,
    request: cluster::AddMetaRequest,
) -> Result<cluster::AddMetaReply, Status> {
    let address = request.address;
    let port = address.rsplit_once(':').map(|(host, port)| (!host.is_empty(), port.parse::<u16>()));
    if request.id == 0 || address.len() > ADDRESS_MAX || !matches!(port, Some((true, Ok(_)))) {
        return Err(Status::invalid_argument(format!(
            "a MetaServer has an id from 1 and an address HOST:PORT, not {} and {address:?}",
            request.id
        )));
    }
    let progress = admin.group.add_member(MetaServerId(request.id), &address).await.map_err(refused)?;
    let (sent, bytes) = progress.snapshot.unwrap_or_default();
    Ok(cluster::AddMetaReply {
        voter: progress.voter,
        matched_index: progress.matched.0,
        last_index: progress.last.0,
        snapshot_sent_bytes: sent,
        snapshot_bytes: bytes,
    })
}

pub(super) async fn remove(
    admin: &Admin,
    request: cluster::RemoveMetaRequest,
) -> Result<cluster::RemoveMetaReply, Status> {
    let voters = admin.group.remove_member(MetaServerId(request.id)).await.map_err(refused)?;
    Ok(cluster::RemoveMetaReply { voters: u32::try_from(voters).unwrap_or(u32::MAX) })
}

pub(super) async fn transfer(
    admin: &Admin,
    request: cluster::TransferLeadRequest,
) -> Result<cluster::TransferLeadReply, Status> {
    let to = Some(MetaServerId(request.to)).filter(|to| to.0 != 0);
    let leader = admin.group.transfer(to).await.map_err(refused)?;
    Ok(cluster::TransferLeadReply { leader: leader.0 })
}

fn refused(error: MemberError) -> Status {
    match error {
        MemberError::Refused(text) => Status::failed_precondition(text),
        MemberError::Later(text) => Status::aborted(text),
        MemberError::Propose(error) => propose_status(error),
    }
}

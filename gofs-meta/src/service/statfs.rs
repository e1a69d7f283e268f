//! Statfs: how large the namespace is and what is left.

use std::sync::Arc;

use gofs_proto::session as wire;

use super::Refusal;
use super::answer::Answer;
use super::connection::Member;

/// Inodes shown as the total where no quota says otherwise.
const INODES_WITHOUT_QUOTA: u64 = 1 << 40;

pub(super) async fn serve(
    member: Arc<Member>,
    _: wire::Statfs,
    answer: Answer<wire::Statfs>,
) -> Result<(), Refusal> {
    member.term.shared.group.confirm_leader().await?;
    let record = member.term.shared.group.state().namespace(member.namespace())?.ok_or(Refusal::NoSession)?;
    let (config, usage) = (record.config, record.usage);
    let capacity = member.term.shared.chunks.capacity();
    let replicas = u64::from(config.replicas.max(1));
    let free_in_cluster = capacity.free_bytes / replicas;
    let (total_bytes, free_bytes) = match config.quota_bytes {
        0 => (capacity.total_bytes / replicas, free_in_cluster),
        quota => (quota, quota.saturating_sub(usage.bytes).min(free_in_cluster)),
    };
    let total_inodes = if config.quota_inodes == 0 { INODES_WITHOUT_QUOTA } else { config.quota_inodes };
    answer.send(&wire::StatfsReply {
        total_bytes,
        free_bytes,
        total_inodes,
        free_inodes: total_inodes.saturating_sub(usage.inodes),
    });
    Ok(())
}

//! What a namespace uses never exceeds its quota, on no MetaServer at any time.

use gofs_meta::group::MetaGroup;

/// Looks at one MetaServer's state.
pub fn look(group: &MetaGroup, namespace: &str) -> Result<(), String> {
    let state = group.state();
    let Ok(Some(record)) = state.namespace_by_name(namespace) else { return Ok(()) };
    let Ok(Some((usage, _))) = state.usage(record.id) else { return Ok(()) };
    let (bytes, inodes) = (record.config.quota_bytes, record.config.quota_inodes);
    if bytes > 0 && usage.bytes > bytes || inodes > 0 && usage.inodes > inodes {
        return Err(format!("{usage:?} with a quota of {bytes} bytes and {inodes} inodes"));
    }
    Ok(())
}

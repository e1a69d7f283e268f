//! MetaServers that applied the same entries have the same state, and every record of it is whole.

use gofs_meta::group::MetaGroup;

/// Looks at all that run. Answers whether they could be compared: one may be behind.
pub fn look(groups: &[std::sync::Arc<MetaGroup>]) -> Result<bool, String> {
    let mut first = None;
    for group in groups {
        match group.state().verify() {
            Ok(verified) if verified.damaged_records == 0 => {}
            other => return Err(format!("MetaServer {}: {other:?}", group.id().0)),
        }
        let Ok(digest) = group.state().digest() else { return Ok(false) };
        match first {
            None => first = Some(digest),
            Some(first) if digest.applied != first.applied => return Ok(false),
            Some(first) if digest != first => {
                return Err(format!("MetaServer {} has {digest:?}, another {first:?}", group.id().0));
            }
            Some(_) => {}
        }
    }
    Ok(true)
}

//! What each edit means.

use crate::{Edit, FsError, Outcome, Store};

/// Applies one edit. On error nothing has changed.
pub fn apply(store: &mut impl Store, edit: &Edit) -> Result<Outcome, FsError> {
    let _ = (store.limits(), edit);
    Err(FsError::NotSupported)
}

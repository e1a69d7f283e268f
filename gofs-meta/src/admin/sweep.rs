//! Clears away the records of deleted namespaces, a bounded number in each EditLog entry.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use gofs_tree::NamespaceId;

use crate::{
    command::{Command, CommandOutcome},
    group::{MetaGroup, Role},
};

const PAUSE: Duration = Duration::from_secs(2);

pub(super) async fn run(group: Weak<MetaGroup>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        let Some(group) = group.upgrade() else { return };
        if group.leadership().borrow().role != Role::Leader {
            continue;
        }
        // A state that cannot be read was logged by the store.
        for id in group.state().deleted_namespaces().unwrap_or_default() {
            sweep(&group, id).await;
        }
    }
}

async fn sweep(group: &Arc<MetaGroup>, id: NamespaceId) {
    loop {
        match group.propose(Command::SweepNamespace { id }).await {
            Ok(CommandOutcome::Done) => {}
            // All gone.
            Ok(_) => {
                tracing::info!(ns = id.0, "the records of a deleted namespace are gone");
                return;
            }
            Err(error) => {
                tracing::debug!(ns = id.0, %error, "a deleted namespace is cleared away later");
                return;
            }
        }
    }
}

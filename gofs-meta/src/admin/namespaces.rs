//! Namespaces: create, list, set, delete.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use gofs_proto::cluster;
use gofs_tree::{ChunkSize, NamespaceId, ROOT_INO, Store, Timestamp};
use tokio::sync::oneshot;
use tonic::Status;

use super::{Admin, Metering, unreadable};
use crate::{
    command::{Command, CommandOutcome, NamespaceConfig, Refusal},
    group::ProposeError,
    heartbeat::propose_status,
    state::NamespaceRecord,
};

/// Longest name of a namespace, characters.
const NAME_MAX: usize = 64;

/// `CreateNamespace`: with an empty root directory, 0755 of root.
pub(super) async fn create(
    admin: &Admin,
    request: cluster::CreateNamespaceRequest,
) -> Result<cluster::Namespace, Status> {
    let cluster::CreateNamespaceRequest { name, config } = request;
    check_name(&name)?;
    let config = configure(NamespaceConfig::default(), config.unwrap_or_default(), None)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = Timestamp::new(i64::try_from(now.as_secs()).unwrap_or(i64::MAX), now.subsec_nanos());
    let command = Command::CreateNamespace { name: name.clone(), config, time };
    match admin.group.propose(command).await.map_err(propose_status)? {
        CommandOutcome::Namespace(id) => {
            tracing::info!(ns = id.0, name, "a namespace was made");
            one(admin, &name)
        }
        CommandOutcome::Refused(refusal) => Err(refused(&refusal)),
        other => Err(Status::internal(format!("making a namespace was answered with {other:?}"))),
    }
}

/// `ListNamespaces`.
pub(super) fn list(admin: &Admin) -> Result<cluster::ListNamespacesReply, Status> {
    let mut mounts: HashMap<NamespaceId, u32> = HashMap::new();
    for session in admin.group.state().sessions().map_err(unreadable)? {
        *mounts.entry(session.namespace).or_default() += 1;
    }
    let namespaces = admin.group.state().namespaces().map_err(unreadable)?;
    let namespaces =
        namespaces.into_iter().map(|ns| to_wire(&ns, mounts.get(&ns.id).copied().unwrap_or_default()));
    Ok(cluster::ListNamespacesReply { namespaces: namespaces.collect() })
}

/// `SetNamespace`: what is not named stays.
pub(super) async fn set(
    admin: &Admin,
    request: cluster::SetNamespaceRequest,
) -> Result<cluster::Namespace, Status> {
    let namespace = find(admin, &request.name)?;
    let config = configure(namespace.config, request.config.unwrap_or_default(), Some(&request.name))?;
    let metering = if namespace.config.has_more_quota_than(&config) {
        let metering = admin.sessions.meter(namespace.id).await;
        Some(metering.map_err(|error| Status::unavailable(format!("not now: {error}; try again")))?)
    } else {
        None
    };
    let command = Command::SetNamespace { id: namespace.id, config };
    match commit_metered(admin, namespace.id, command, metering).await.map_err(propose_status)? {
        CommandOutcome::Refused(refusal) => Err(refused(&refusal)),
        _ => {
            tracing::info!(ns = namespace.id.0, name = request.name, ?config, "a namespace was changed");
            one(admin, &request.name)
        }
    }
}

/// Commits a change of a quota. Everything is metered until it is known what became of it, also where whoever asked has gone, or
/// was told that this is not known: a session that makes something unmetered before could exceed the quota.
async fn commit_metered(
    admin: &Admin,
    namespace: NamespaceId,
    command: Command,
    metering: Option<Metering>,
) -> Result<CommandOutcome, ProposeError> {
    let group = admin.group.clone();
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let term = group.leadership().borrow().term;
        let outcome = group.propose(command).await;
        let is_known = outcome.is_ok();
        // Nobody may be waiting for it any more.
        let _ = tell.send(outcome);
        if !is_known {
            group.settle(term, namespace).await;
        }
        drop(metering);
    });
    told.await.unwrap_or(Err(ProposeError::Shutdown))
}

/// `DeleteNamespace`: empty and unmounted, unless told otherwise; then its sessions end first.
pub(super) async fn delete(
    admin: &Admin,
    request: cluster::DeleteNamespaceRequest,
) -> Result<cluster::DeleteNamespaceReply, Status> {
    let namespace = find(admin, &request.name)?;
    let name = &request.name;
    let root_is_empty = admin.group.state().tree(namespace.id).is_empty_dir(ROOT_INO).map_err(unreadable)?;
    if !root_is_empty && !request.even_if_not_empty {
        return Err(Status::failed_precondition(format!(
            "namespace {name:?} is not empty ({} inodes, {} bytes): delete its files first, or give --even-if-not-empty",
            namespace.usage.inodes, namespace.usage.bytes
        )));
    }
    let sessions = admin.group.state().sessions().map_err(unreadable)?;
    let mounts: Vec<String> = sessions
        .iter()
        .filter(|session| session.namespace == namespace.id)
        .map(|session| format!("{}:{}", session.host, session.mount_point))
        .collect();
    if !mounts.is_empty() && !request.even_if_mounted {
        return Err(Status::failed_precondition(format!(
            "namespace {name:?} is mounted {} times (for example on {}): unmount it first, or give --even-if-mounted",
            mounts.len(),
            mounts[0]
        )));
    }
    if !mounts.is_empty() {
        admin.sessions.end_sessions(namespace.id).await.map_err(|error| {
            Status::unavailable(format!(
                "the mounts of namespace {name:?} could not be ended: {error}; try again"
            ))
        })?;
    }
    match admin.group.propose(Command::DeleteNamespace { id: namespace.id }).await.map_err(propose_status)? {
        CommandOutcome::Refused(refusal) => Err(refused(&refusal)),
        _ => {
            tracing::info!(ns = namespace.id.0, name, "a namespace was deleted");
            Ok(cluster::DeleteNamespaceReply {})
        }
    }
}

/// The refusal of a name that no namespace has.
pub(super) fn no_namespace(name: &str) -> Status {
    Status::not_found(format!("no namespace {name:?}; gofsctl ns list shows which there are"))
}

/// The namespace of that name.
pub(super) fn find(admin: &Admin, name: &str) -> Result<NamespaceRecord, Status> {
    admin.group.state().namespace_by_name(name).map_err(unreadable)?.ok_or_else(|| no_namespace(name))
}

fn one(admin: &Admin, name: &str) -> Result<cluster::Namespace, Status> {
    let namespace = find(admin, name)?;
    let sessions = admin.group.state().sessions().map_err(unreadable)?;
    let mounts = sessions.iter().filter(|session| session.namespace == namespace.id).count();
    Ok(to_wire(&namespace, u32::try_from(mounts).unwrap_or(u32::MAX)))
}

fn to_wire(namespace: &NamespaceRecord, mounts: u32) -> cluster::Namespace {
    cluster::Namespace {
        id: namespace.id.0,
        name: namespace.name.clone(),
        replicas: namespace.config.replicas,
        chunk_size: namespace.config.chunk_size.bytes(),
        inline_max: namespace.config.inline_max,
        quota_bytes: namespace.config.quota_bytes,
        quota_inodes: namespace.config.quota_inodes,
        used_bytes: namespace.usage.bytes,
        used_inodes: namespace.usage.inodes,
        mounts,
    }
}

fn refused(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::NameTaken(_) => Status::already_exists(refusal.to_string()),
        Refusal::NoNamespace(_) => Status::not_found(refusal.to_string()),
        Refusal::Invalid(_) => Status::invalid_argument(refusal.to_string()),
        _ => Status::failed_precondition(refusal.to_string()),
    }
}

fn check_name(name: &str) -> Result<(), Status> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(good) {
        return Err(Status::invalid_argument(format!(
            "{name:?} cannot be a namespace's name: 1 to {NAME_MAX} letters, digits, '.', '_' or '-'"
        )));
    }
    if name == "." || name == ".." || name.starts_with('-') {
        return Err(Status::invalid_argument(format!("{name:?} cannot be a namespace's name")));
    }
    Ok(())
}

/// The configuration with what was asked for in it. `existing`: of that namespace, whose chunk size is fixed.
fn configure(
    base: NamespaceConfig,
    change: cluster::NamespaceConfig,
    existing: Option<&str>,
) -> Result<NamespaceConfig, Status> {
    let chunk_size = match change.chunk_size {
        None => base.chunk_size,
        Some(bytes) => ChunkSize::new(bytes).ok_or_else(|| {
            Status::invalid_argument(format!(
                "chunk_size must be a power of two from 64 KiB to 1 GiB, not {bytes} bytes"
            ))
        })?,
    };
    if let Some(name) = existing
        && chunk_size != base.chunk_size
    {
        return Err(Status::invalid_argument(format!(
            "chunk_size of namespace {name:?} is fixed at {} bytes since it was made",
            base.chunk_size.bytes()
        )));
    }
    let config = NamespaceConfig {
        replicas: change.replicas.unwrap_or(base.replicas),
        chunk_size,
        inline_max: change.inline_max.unwrap_or(base.inline_max),
        quota_bytes: change.quota_bytes.unwrap_or(base.quota_bytes),
        quota_inodes: change.quota_inodes.unwrap_or(base.quota_inodes),
    };
    config.problem().map_or(Ok(config), |problem| Err(Status::invalid_argument(problem)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "photos-2024", "A.b_c", &"x".repeat(64)] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", "a:b", "ä", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_not_named_stays_and_what_cannot_be_is_refused() {
        let base = NamespaceConfig { quota_bytes: 7, ..NamespaceConfig::default() };
        let change = cluster::NamespaceConfig { replicas: Some(3), ..Default::default() };
        let config = configure(base, change, Some("x")).unwrap();
        assert_eq!((config.replicas, config.quota_bytes), (3, 7));
        let refused = |change| configure(base, change, Some("x")).unwrap_err().message().to_owned();
        let config = cluster::NamespaceConfig::default;
        assert!(refused(cluster::NamespaceConfig { replicas: Some(0), ..config() }).contains("replicas"));
        assert!(refused(cluster::NamespaceConfig { replicas: Some(17), ..config() }).contains("replicas"));
        assert!(
            refused(cluster::NamespaceConfig { chunk_size: Some(100_000), ..config() })
                .contains("power of two")
        );
        assert!(
            refused(cluster::NamespaceConfig { chunk_size: Some(1 << 20), ..config() }).contains("fixed")
        );
        assert!(
            refused(cluster::NamespaceConfig { inline_max: Some(1 << 30), ..config() })
                .contains("inline_max")
        );
    }
}

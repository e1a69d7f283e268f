//! Administration: the Admin service that `gofsctl` speaks to. One operation, one file.
//!
//! Answers on the leader only, from a state that holds everything committed before the call; elsewhere
//! every call is UNAVAILABLE with the leader's address in the metadata. Only `MemberStatus` is each server's own view. Whatever
//! walks the state runs off the runtime's own threads.

mod backup;
mod check;
mod chunk_servers;
mod members;
mod namespaces;
mod problem;
mod repair;
mod sessions;
mod status;
mod sweep;
#[cfg(test)]
mod tests;
mod why;

use std::{sync::Arc, time::Duration};

use gofs_proto::cluster::{self, admin_server};
use gofs_tree::{FsError, Timestamp};
use tonic::{Request, Response, Status};

use crate::{
    chunks::ChunkService,
    group::MetaGroup,
    heartbeat::{propose_status, require_leader},
};

pub use sessions::{LeaseSummary, Metering, SessionInfo, SessionSummary};

/// How long a call waits for a majority of MetaServers to confirm that this one leads.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// The Admin service of a MetaServer.
pub struct AdminDoor {
    inner: Arc<Admin>,
}

/// What the operations work with.
pub(crate) struct Admin {
    pub group: Arc<MetaGroup>,
    pub chunks: Arc<ChunkService>,
    pub sessions: Arc<dyn SessionInfo>,
}

/// The door for administration, to be served on this server's port. Also clears away the records of deleted
/// namespaces, for as long as the group is there.
pub fn admin_service(
    group: Arc<MetaGroup>,
    chunks: Arc<ChunkService>,
    sessions: Arc<dyn SessionInfo>,
) -> admin_server::AdminServer<AdminDoor> {
    tokio::spawn(sweep::run(Arc::downgrade(&group)));
    admin_server::AdminServer::new(AdminDoor { inner: Arc::new(Admin { group, chunks, sessions }) })
}

impl Admin {
    async fn confirm(&self) -> Result<(), Status> {
        require_leader(&self.group)?;
        match tokio::time::timeout(CONFIRM_TIMEOUT, self.group.confirm_leader()).await {
            Ok(confirmed) => confirmed.map_err(propose_status),
            Err(_) => Err(Status::unavailable(format!(
                "this MetaServer leads but reached no majority of MetaServers within {CONFIRM_TIMEOUT:?}: are they running?"
            ))),
        }
    }

    /// Runs a walk over the state where it holds nobody up.
    async fn walk<T: Send + 'static>(
        self: &Arc<Self>,
        walk: impl FnOnce(&Admin) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let admin = self.clone();
        tokio::task::spawn_blocking(move || walk(&admin))
            .await
            .map_err(|error| Status::internal(format!("the request failed in the MetaServer: {error}")))?
    }
}

/// A state that cannot be read; the store logged why.
fn unreadable(_: FsError) -> Status {
    Status::internal("this MetaServer cannot read its state; its log says which record is damaged")
}

/// Milliseconds on the wire; never heard of is the largest number.
fn millis(ago: Option<Duration>) -> u64 {
    ago.map_or(u64::MAX, |ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX))
}

/// The clock that people read, for what they are shown only.
fn wall_clock() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl admin_server::Admin for AdminDoor {
    async fn cluster_status(
        &self,
        _: Request<cluster::ClusterStatusRequest>,
    ) -> Answer<cluster::ClusterStatusReply> {
        self.inner.confirm().await?;
        self.inner.walk(status::cluster_status).await.map(Response::new)
    }

    async fn list_servers(
        &self,
        _: Request<cluster::ListServersRequest>,
    ) -> Answer<cluster::ListServersReply> {
        self.inner.confirm().await?;
        self.inner.walk(chunk_servers::list).await.map(Response::new)
    }

    async fn set_draining(
        &self,
        request: Request<cluster::SetDrainingRequest>,
    ) -> Answer<cluster::ListServersReply> {
        self.inner.confirm().await?;
        chunk_servers::set_draining(&self.inner, request.into_inner()).await?;
        self.inner.walk(chunk_servers::list).await.map(Response::new)
    }

    async fn remove_server(
        &self,
        request: Request<cluster::RemoveServerRequest>,
    ) -> Answer<cluster::RemoveServerReply> {
        self.inner.confirm().await?;
        chunk_servers::remove(&self.inner, request.into_inner()).await.map(Response::new)
    }

    async fn create_namespace(
        &self,
        request: Request<cluster::CreateNamespaceRequest>,
    ) -> Answer<cluster::Namespace> {
        self.inner.confirm().await?;
        namespaces::create(&self.inner, request.into_inner()).await.map(Response::new)
    }

    async fn list_namespaces(
        &self,
        _: Request<cluster::ListNamespacesRequest>,
    ) -> Answer<cluster::ListNamespacesReply> {
        self.inner.confirm().await?;
        self.inner.walk(namespaces::list).await.map(Response::new)
    }

    async fn set_namespace(
        &self,
        request: Request<cluster::SetNamespaceRequest>,
    ) -> Answer<cluster::Namespace> {
        self.inner.confirm().await?;
        namespaces::set(&self.inner, request.into_inner()).await.map(Response::new)
    }

    async fn delete_namespace(
        &self,
        request: Request<cluster::DeleteNamespaceRequest>,
    ) -> Answer<cluster::DeleteNamespaceReply> {
        self.inner.confirm().await?;
        namespaces::delete(&self.inner, request.into_inner()).await.map(Response::new)
    }

    async fn list_sessions(
        &self,
        request: Request<cluster::ListSessionsRequest>,
    ) -> Answer<cluster::ListSessionsReply> {
        self.inner.confirm().await?;
        let request = request.into_inner();
        self.inner.walk(move |admin| sessions::list(admin, &request)).await.map(Response::new)
    }

    async fn why(&self, request: Request<cluster::WhyRequest>) -> Answer<cluster::WhyReply> {
        self.inner.confirm().await?;
        let request = request.into_inner();
        self.inner.walk(move |admin| why::why(admin, request)).await.map(Response::new)
    }

    type BackupStream = backup::Parts;

    async fn backup(&self, _: Request<cluster::BackupRequest>) -> Answer<backup::Parts> {
        self.inner.confirm().await?;
        Ok(Response::new(backup::stream(&self.inner)))
    }

    async fn check(&self, request: Request<cluster::CheckRequest>) -> Answer<cluster::CheckReply> {
        self.inner.confirm().await?;
        repair::run(&self.inner, request.into_inner()).await.map(Response::new)
    }

    async fn member_status(
        &self,
        _: Request<cluster::MemberStatusRequest>,
    ) -> Answer<cluster::MemberStatusReply> {
        // Of this server, whoever leads.
        members::status(&self.inner).map(Response::new)
    }

    async fn add_meta(&self, request: Request<cluster::AddMetaRequest>) -> Answer<cluster::AddMetaReply> {
        self.inner.confirm().await?;
        members::add(&self.inner, request.into_inner()).await.map(Response::new)
    }

    async fn remove_meta(
        &self,
        request: Request<cluster::RemoveMetaRequest>,
    ) -> Answer<cluster::RemoveMetaReply> {
        self.inner.confirm().await?;
        members::remove(&self.inner, request.into_inner()).await.map(Response::new)
    }

    async fn transfer_lead(
        &self,
        request: Request<cluster::TransferLeadRequest>,
    ) -> Answer<cluster::TransferLeadReply> {
        self.inner.confirm().await?;
        members::transfer(&self.inner, request.into_inner()).await.map(Response::new)
    }
}

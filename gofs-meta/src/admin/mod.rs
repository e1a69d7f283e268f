//! Administration: the Admin service that `gofsctl` speaks to. One operation, one file.
//!
//! Answers on the leader only, from a state that holds everything committed before the call; elsewhere
//! every call is UNAVAILABLE with the leader's address in the metadata. Whatever walks the
//! state runs off the runtime's own threads.

mod check;
mod namespaces;
mod servers;
mod sessions;
mod status;
mod sweep;
#[cfg(test)]
mod tests;
mod why;

use std::{sync::Arc, time::Duration};

use gofs_proto::cluster::{self, admin_server};
use gofs_tree::FsError;
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
        Ok(Response::new(servers::list(&self.inner)))
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

    async fn check(&self, _: Request<cluster::CheckRequest>) -> Answer<cluster::CheckReply> {
        self.inner.confirm().await?;
        self.inner.walk(check::check).await.map(Response::new)
    }
}

//! One connection of a mount: Hello first, then requests, each handled in a task of its own.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use gofs_proto::frame::Frame;
use gofs_proto::kind::Request;
use gofs_proto::session as wire;
use gofs_proto::{Link, LinkHandler, kind};
use gofs_tree::{NamespaceId, SessionId};

use super::answer::Answer;
use super::operation::Operation;
use super::space::{ConnectionId, Space};
use super::term::Term;
use super::{Refusal, Service};
use super::{
    batch, chunk_map, closed, edits, fetch, hello, keep_alive, locks, lookup, readdir, reserve, slices,
    statfs, walk, xattrs,
};
use crate::lease::Need;
use crate::state::TreeView;

/// Most requests of one connection at once; a mount's kernel has a few hundred under way.
const IN_FLIGHT_MAX: usize = 8192;

static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);

/// The handler of one link.
pub(crate) struct Connection {
    service: Arc<Service>,
    id: ConnectionId,
    greeted: AtomicBool,
    member: Arc<OnceLock<Arc<Member>>>,
    in_flight: Arc<AtomicUsize>,
}

/// A session on this connection.
pub(crate) struct Member {
    pub term: Arc<Term>,
    pub space: Arc<Space>,
    pub session: SessionId,
    pub connection: ConnectionId,
}

impl Member {
    pub fn namespace(&self) -> NamespaceId {
        self.space.id
    }

    /// The namespace's records, as new as they are here.
    pub fn tree(&self) -> TreeView {
        self.term.shared.group.state().tree(self.space.id)
    }

    /// Waits until this operation may run.
    pub async fn operate(&self, needs: Vec<Need>) -> Result<Operation, Refusal> {
        self.term.pass_grace().await?;
        Operation::begin(&self.space, self.session, self.connection, needs, false).await
    }

    /// The same where an acknowledgement of this session may need it.
    pub async fn operate_firmly(&self, needs: Vec<Need>) -> Result<Operation, Refusal> {
        self.term.pass_grace().await?;
        Operation::begin(&self.space, self.session, self.connection, needs, true).await
    }

    /// The same, to look: what [`Member::tree`] shows then is all that is committed.
    pub async fn look(&self, needs: Vec<Need>) -> Result<Operation, Refusal> {
        let operation = self.operate(needs).await?;
        self.term.shared.group.confirm_leader().await?;
        Ok(operation)
    }
}

impl Connection {
    pub fn new(service: Arc<Service>) -> Arc<Connection> {
        Arc::new(Connection {
            service,
            id: ConnectionId(NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed)),
            greeted: AtomicBool::new(false),
            member: Arc::default(),
            in_flight: Arc::default(),
        })
    }

    /// Whether Hello was said.
    pub fn is_greeted(&self) -> bool {
        self.greeted.load(Ordering::Acquire)
    }

    /// The first request.
    fn greet(&self, link: &Arc<Link>, request: Frame) {
        if request.kind != wire::Hello::KIND || self.greeted.swap(true, Ordering::AcqRel) {
            let text = format!("{} before the answer to Hello", kind::name(request.kind));
            return link.refuse(request.id, &Refusal::BadRequest(text).to_failure());
        }
        let hello = match <wire::Hello as prost::Message>::decode(request.header) {
            Ok(hello) => hello,
            Err(error) => {
                return link.refuse(request.id, &Refusal::BadRequest(format!("Hello: {error}")).to_failure());
            }
        };
        let answer = Answer::<wire::Hello>::new(link.clone(), request.id);
        let (service, connection, link, cell) =
            (self.service.clone(), self.id, link.clone(), self.member.clone());
        tokio::spawn(async move {
            if let Err(refusal) = hello::serve(&service, connection, &link, &cell, hello, &answer).await {
                tracing::info!(peer = %link.peer(), error = %refusal, "a mount was refused");
                answer.refuse(&refusal);
            }
            // It may have closed while nobody could know whose it was.
            if link.is_closed()
                && let Some(member) = cell.get()
            {
                member.space.detach(member.session, member.connection);
            }
        });
    }

    /// Decodes a request and has it handled in a task.
    fn spawn<R, F>(
        &self,
        link: &Arc<Link>,
        member: &Arc<Member>,
        request: Frame,
        handle: impl FnOnce(Arc<Member>, R, Answer<R>) -> F + Send + 'static,
    ) where
        R: Request,
        F: Future<Output = Result<(), Refusal>> + Send + 'static,
    {
        let Some((message, answer)) = decode::<R>(link, request) else { return };
        if self.in_flight.fetch_add(1, Ordering::AcqRel) >= IN_FLIGHT_MAX {
            self.in_flight.fetch_sub(1, Ordering::AcqRel);
            return answer.refuse(&Refusal::Retry(format!("more than {IN_FLIGHT_MAX} requests at once")));
        }
        let (member, link, in_flight) = (member.clone(), link.clone(), self.in_flight.clone());
        let refuse = Answer::<R>::new(link.clone(), answer.id());
        tokio::spawn(async move {
            // A mount that does not read its replies waits for itself alone.
            link.ready().await;
            if let Err(refusal) = handle(member, message, answer).await {
                refuse.refuse(&refusal);
            }
            in_flight.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

/// Reads a request's header, or refuses it.
fn decode<R: Request>(link: &Arc<Link>, request: Frame) -> Option<(R, Answer<R>)> {
    let answer = Answer::<R>::new(link.clone(), request.id);
    match R::decode(request.header) {
        Ok(message) => Some((message, answer)),
        Err(error) => {
            answer.refuse(&Refusal::BadRequest(format!("{}: {error}", kind::name(R::KIND))));
            None
        }
    }
}

/// Handles a request here and now, in its order among the connection's requests.
fn at_once<R: Request>(
    link: &Arc<Link>,
    request: Frame,
    handle: impl FnOnce(R, Answer<R>) -> Result<(), Refusal>,
) {
    let Some((message, answer)) = decode::<R>(link, request) else { return };
    let refuse = Answer::<R>::new(link.clone(), answer.id());
    if let Err(refusal) = handle(message, answer) {
        refuse.refuse(&refusal);
    }
}

impl LinkHandler for Connection {
    fn on_request(&self, link: &Arc<Link>, request: Frame) {
        let Some(member) = self.member.get() else { return self.greet(link, request) };
        if !member.term.sessions.lock().heard(member.term.shared.now(), member.session) {
            link.refuse(request.id, &Refusal::NoSession.to_failure());
            return;
        }
        // A mount that is idle keeps its session alive, and nobody awake.
        if request.kind != wire::KeepAlive::KIND {
            member.term.shared.group.wakeful().touch();
        }
        match request.kind {
            wire::KeepAlive::KIND => self.spawn(link, member, request, keep_alive::keep_alive),
            wire::Goodbye::KIND => self.spawn(link, member, request, keep_alive::goodbye),
            wire::Lookup::KIND => self.spawn(link, member, request, lookup::serve),
            wire::Fetch::KIND => self.spawn(link, member, request, fetch::serve),
            wire::ReadDir::KIND => self.spawn(link, member, request, readdir::serve),
            wire::Walk::KIND => self.spawn(link, member, request, walk::serve),
            wire::Edits::KIND => self.spawn(link, member, request, edits::serve),
            wire::Batch::KIND => self.spawn(link, member, request, batch::serve),
            wire::Reserve::KIND => self.spawn(link, member, request, reserve::inos),
            wire::ReserveChunks::KIND => self.spawn(link, member, request, reserve::chunks),
            wire::Delegate::KIND => self.spawn(link, member, request, slices::serve),
            wire::Xattrs::KIND => self.spawn(link, member, request, xattrs::serve),
            wire::ChunkMap::KIND => self.spawn(link, member, request, chunk_map::serve),
            wire::Allocate::KIND => self.spawn(link, member, request, chunk_map::allocate),
            wire::ReplicaFailed::KIND => self.spawn(link, member, request, chunk_map::replica_failed),
            wire::BadReplica::KIND => self.spawn(link, member, request, chunk_map::bad_replica),
            wire::Statfs::KIND => self.spawn(link, member, request, statfs::serve),
            wire::Closed::KIND => self.spawn(link, member, request, closed::closed),
            // Those below mean what they mean by their order among the connection's requests.
            wire::Release::KIND => {
                at_once(link, request, |message, answer| closed::release(member, &message, &answer))
            }
            wire::SetLock::KIND => {
                at_once(link, request, |message, answer| locks::set(member, &message, answer))
            }
            wire::Unlock::KIND => {
                at_once(link, request, |message, answer| locks::unlock(member, &message, &answer))
            }
            wire::GetLock::KIND => {
                at_once(link, request, |message, answer| locks::get(member, &message, &answer))
            }
            wire::CancelLock::KIND => {
                at_once(link, request, |message, answer| locks::cancel(member, &message, &answer));
            }
            other => {
                let text = format!("request of kind {other} ({}) is not known here", kind::name(other));
                link.refuse(request.id, &Refusal::BadRequest(text).to_failure());
            }
        }
    }

    fn on_close(&self, _: &Arc<Link>) {
        if let Some(member) = self.member.get() {
            member.space.detach(member.session, member.connection);
        }
    }
}

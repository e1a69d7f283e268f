//! Hello: a session begins, or goes on over a new connection.
//!
//! A Hello may have been on its way for long, its client have given it up and gone on over another connection: what it says of
//! leases is old then. So the client is asked first, over the same connection, whether it is there: whoever answers waits for this
//! Hello, and has heard of no other since it said it. Of two such the one whose connection came later counts.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use gofs_proto::{CallError, Link, OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, convert, session as wire};
use gofs_tree::{Ino, LeaseEpoch, SessionId, Store};

use super::answer::Answer;
use super::connection::Member;
use super::space::ConnectionId;
use super::{Refusal, Service, locks};
use crate::command::{Command, CommandOutcome};
use crate::lease::HeldLease;
use crate::state::NamespaceRecord;

/// Longest host name and mount point kept for people, bytes.
const LABEL_MAX: usize = 4096;

/// Answers a Hello and, if that succeeds, puts the session into `cell`.
pub(super) async fn serve(
    service: &Arc<Service>,
    connection: ConnectionId,
    link: &Arc<Link>,
    cell: &OnceLock<Arc<Member>>,
    hello: wire::Hello,
    answer: &Answer<wire::Hello>,
) -> Result<(), Refusal> {
    let version = gofs_proto::negotiate(hello.version, hello.oldest_version).ok_or_else(|| {
        Refusal::BadVersion(format!(
            "this MetaServer speaks protocol versions {OLDEST_PROTOCOL_VERSION} to {PROTOCOL_VERSION}, the mount \
             {} to {}: update the older one",
            hello.oldest_version, hello.version
        ))
    })?;
    let known = convert::session_id(hello.session);
    let held = hello.leases.iter().map(held_lease).collect::<Result<Vec<_>, Refusal>>()?;
    let making: HashSet<Ino> =
        held.iter().filter(|lease| lease.epoch == LeaseEpoch(0)).map(|lease| lease.ino).collect();
    let opens = hello.opens.iter().map(|&ino| convert::ino(ino)).collect::<Result<BTreeSet<Ino>, _>>()?;
    // A session that is only now opened has none.
    let holder = known.unwrap_or_default();
    let locks =
        hello.locks.iter().map(|lock| locks::from_wire(holder, lock)).collect::<Result<Vec<_>, _>>()?;
    let term = service.term()?;
    is_there(&term, link).await?;
    term.shared.group.confirm_leader().await?;
    let state = term.shared.group.state();
    let record = match known {
        None => {
            let name = &hello.namespace;
            state.namespace_by_name(name)?.ok_or_else(|| {
                Refusal::NoNamespace(format!("no namespace {name:?}; make it with: gofsctl ns create {name}"))
            })?
        }
        Some(session) => {
            let session = state.session(session)?.filter(|record| record.token[..] == hello.token[..]);
            let session = session.ok_or(Refusal::NoSession)?;
            state.namespace(session.namespace)?.ok_or(Refusal::NoSession)?
        }
    };
    let space = term.space(record.id)?;
    let (session, token) = match known {
        Some(session) => (session, hello.token.clone()),
        None => open(&term, &record, &hello).await?,
    };
    let applied = state.applied_seq(session)?;
    let mut welcome = wire::Welcome {
        version,
        cluster: state.cluster()?.map(|cluster| Bytes::copy_from_slice(&cluster)).unwrap_or_default(),
        session: session.0,
        token,
        namespace_id: record.id.0,
        chunk_size: record.config.chunk_size.bytes(),
        inline_max: record.config.inline_max,
        replicas: record.config.replicas,
        validity_ms: u32::try_from(term.shared.times.validity.as_millis()).unwrap_or(u32::MAX),
        refused_leases: Vec::new(),
        applied_seq: applied.0,
        metas: Vec::new(),
    };
    let member = Member { term: term.clone(), space: space.clone(), session, connection };
    {
        // Grace must not end, nor the session, before its leases are back in the table.
        let mut sessions = term.sessions.lock();
        let now = term.shared.now();
        if known.is_none() {
            sessions.opened(now, session, record.id);
        } else if !sessions.is_live(session) {
            return Err(Refusal::NoSession);
        }
        let reclaim = sessions.in_grace();
        let mut inner = space.lock();
        if !space.attach(&mut inner, session, connection, link.clone()) {
            return Err(Refusal::Gone);
        }
        // After it: what changes from now on is told to this link too.
        welcome.metas.clone_from(&term.shared.group.voter_addresses().borrow());
        let (refused, effects) = inner.leases.resume(now, session, &held, &opens, reclaim);
        let granted = inner.locks.resume(session, &locks);
        // What it makes at this moment may be nowhere yet, and is in the table before anybody can see it.
        let tree = member.tree();
        let unmade = |ino: &Ino| making.contains(ino) && matches!(tree.inode(*ino), Ok(None));
        welcome.refused_leases = refused.iter().filter(|ino| !unmade(ino)).map(|ino| ino.0).collect();
        // Requests are accepted from when the client may have read the answer.
        let _ = cell.set(Arc::new(member));
        answer.send(&welcome);
        space.perform(&mut inner, effects);
        inner.grant_locks(granted);
        drop(inner);
        sessions.hello(now, session);
    }
    term.publish_grace();
    tracing::info!(%session, ns = %record.id, peer = %link.peer(), host = hello.host, mount_point = hello.mount_point,
        new = known.is_none(), "a mount is here");
    Ok(())
}

/// Waits until the client answers over this connection, in this term.
async fn is_there(term: &super::Term, link: &Arc<Link>) -> Result<(), Refusal> {
    let members = wire::Members { addresses: term.shared.group.voter_addresses().borrow().clone() };
    let answer = link.call(&members, Vec::new());
    match tokio::time::timeout(term.shared.times.validity, answer).await {
        // One that does not know the question is there as well.
        Ok(Ok(_) | Err(CallError::Refused(_))) => Ok(()),
        Ok(Err(CallError::Closed(_) | CallError::Garbled(_))) | Err(_) => Err(Refusal::Gone),
    }
}

async fn open(
    term: &super::Term,
    record: &NamespaceRecord,
    hello: &wire::Hello,
) -> Result<(SessionId, Bytes), Refusal> {
    if hello.host.len() > LABEL_MAX || hello.mount_point.len() > LABEL_MAX {
        return Err(Refusal::BadRequest(format!("host or mount point longer than {LABEL_MAX} bytes")));
    }
    let token: [u8; 16] = rand::random();
    let session = term.new_session();
    let command = Command::OpenSession {
        session,
        namespace: record.id,
        token,
        host: hello.host.clone(),
        mount_point: hello.mount_point.clone(),
        pid: hello.pid,
    };
    let outcome = term.shared.group.propose(command).await.inspect_err(|_| {
        // It may be committed after all: then it goes as every silent session does.
        term.sessions.lock().opened(term.shared.now(), session, record.id);
    })?;
    match outcome {
        CommandOutcome::Session(session) => Ok((session, Bytes::copy_from_slice(&token))),
        CommandOutcome::Refused(refusal) => Err(refusal.into()),
        other => Err(Refusal::Retry(format!("the state answered {other:?} to a new session"))),
    }
}

fn held_lease(lease: &wire::HeldLease) -> Result<HeldLease, Refusal> {
    let lease = convert::Grant::try_from(lease)?;
    Ok(HeldLease { ino: lease.ino, mode: lease.mode, epoch: lease.epoch })
}

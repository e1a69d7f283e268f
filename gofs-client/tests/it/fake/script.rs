//! Misbehaviour: what happens to a request instead of its being served, as a test has told.

use std::collections::HashMap;
use std::sync::Arc;

use gofs_proto::frame::Frame;
use gofs_proto::session::{self as wire, Failure};
use gofs_proto::{Link, LinkHandler};
use gofs_tree::Ino;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::server::Server;

/// What happens to one request, instead of its being served.
#[derive(Clone, Debug)]
pub enum Act {
    /// The connection ends before it is looked at.
    Drop,
    /// It is served, and the connection ends before the answer.
    ServeThenDrop,
    /// It is refused.
    Refuse(Failure),
    /// It is served, without a grant.
    NoGrant,
    /// It is never answered.
    Ignore,
    /// It is served when a request of that kind comes, and before that one.
    Before(u16),
    /// It is served, and the lease on that inode recalled right behind the answer.
    ThenRecall(Ino),
    /// The lease on that inode is recalled, and it is served when that is acknowledged.
    RecallThenServe(Ino),
}

/// Which requests misbehave, and how.
#[derive(Default)]
pub struct Script {
    /// Acts for the next requests of that kind, in order.
    pub next: Vec<(u16, Act)>,
    /// Kinds that misbehave for ever.
    pub always: HashMap<u16, Act>,
    /// Requests that wait for one of that kind.
    waiting: Vec<(u16, Arc<Link>, Frame)>,
}

impl Script {
    fn take(&mut self, kind: u16) -> Option<Act> {
        let at = self.next.iter().position(|(of, _)| *of == kind);
        at.map(|at| self.next.remove(at).1).or_else(|| self.always.get(&kind).cloned())
    }
}

/// One connection's end: serves its requests, or does as the script says.
pub struct Handler {
    pub server: Arc<Mutex<Server>>,
    pub changed: Arc<Notify>,
}

impl LinkHandler for Handler {
    fn on_request(&self, link: &Arc<Link>, request: Frame) {
        let mut server = self.server.lock();
        server.record(request.kind);
        for (_, to, waiting) in
            server.script.waiting.extract_if(.., |(kind, ..)| *kind == request.kind).collect::<Vec<_>>()
        {
            server.serve(&to, &waiting, true)(&to);
        }
        match server.script.take(request.kind) {
            None => server.serve(link, &request, true)(link),
            Some(Act::NoGrant) => server.serve(link, &request, false)(link),
            Some(Act::Drop) => link.close(),
            Some(Act::Ignore) => {}
            Some(Act::Before(kind)) => server.script.waiting.push((kind, link.clone(), request)),
            Some(Act::Refuse(failure)) => link.refuse(request.id, &failure),
            Some(Act::ServeThenDrop) => {
                drop(server.serve(link, &request, true));
                link.close();
            }
            Some(Act::ThenRecall(ino)) => {
                server.serve(link, &request, true)(link);
                let epoch = server.leases.remove(&ino).map_or(1, |grant| grant.epoch.0);
                let at = server.recalled.len();
                server.recalled.push(None);
                self.recall(link, ino, epoch, move |server, open| server.recalled[at] = Some(open));
            }
            Some(Act::RecallThenServe(ino)) => {
                let epoch = server.leases.get(&ino).expect("held").epoch.0;
                let to = link.clone();
                self.recall(link, ino, epoch, move |server, _| {
                    server.leases.remove(&ino);
                    server.serve(&to, &request, true)(&to);
                });
            }
        }
        drop(server);
        self.changed.notify_waiters();
    }

    fn on_close(&self, _link: &Arc<Link>) {
        self.changed.notify_waiters();
    }
}

impl Handler {
    /// Asks for a whole lease; `then` has the acknowledgement, and whether the client has the inode open.
    fn recall(
        &self,
        link: &Arc<Link>,
        ino: Ino,
        epoch: u64,
        then: impl FnOnce(&mut Server, bool) + Send + 'static,
    ) {
        let recall = wire::Recall { ino: ino.0, epoch, keep: 0, names: Vec::new() };
        let answer = link.call(&recall, Vec::new());
        let (server, changed) = (self.server.clone(), self.changed.clone());
        tokio::spawn(async move {
            let open = answer.await.expect("acknowledged").0.open;
            then(&mut server.lock(), open);
            changed.notify_waiters();
        });
    }
}

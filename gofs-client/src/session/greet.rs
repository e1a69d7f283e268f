//! One attempt at one address: connect, Hello, Welcome.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use gofs_proto::convert::ConvertError;
use gofs_proto::frame::Frame;
use gofs_proto::kind::Request;
use gofs_proto::session::failure::Code;
use gofs_proto::session::{Failure, Hello, Members, Recall, RecallSlice, Welcome};
use gofs_proto::{CallError, Link, LinkHandler};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::BootTime;
use crate::core::Core;

/// A server has taken the session.
pub struct Greeted {
    /// The connection.
    pub link: Arc<Link>,
    /// Its other side's requests.
    pub door: Arc<Door>,
    /// What it said.
    pub welcome: Welcome,
    /// When the Hello was sent.
    pub sent: BootTime,
    /// host:port
    pub address: String,
}

/// How an attempt ended.
pub enum Greeting {
    /// Connected.
    Welcome(Box<Greeted>),
    /// Not here; the leader is there, if it is known.
    NotLeader(Option<String>),
    /// The session has ended.
    NoSession,
    /// Nothing that another attempt would not change.
    Later(String),
    /// Refused for good.
    Refused(Failure),
}

/// Takes the server's requests on one connection.
#[derive(Default)]
pub struct Door {
    /// Set before any lease is held over this connection.
    pub core: OnceLock<Weak<Core>>,
    /// The connection has ended and no reply will be handled any more.
    pub closed: Notify,
    /// Where the MetaServers are, as this one said last; empty: it has not said yet.
    pub members: Mutex<Vec<String>>,
}

impl LinkHandler for Door {
    fn on_request(&self, link: &Arc<Link>, request: Frame) {
        let refuse = |failure: Failure| link.refuse(request.id, &failure);
        let core = self.core.get().and_then(Weak::upgrade);
        if request.kind == RecallSlice::KIND {
            return match core {
                Some(core) => core.on_recall_slice(link, request.id),
                // Nothing was made: there is no mount yet.
                None => link.reply::<RecallSlice>(request.id, &Default::default(), Vec::new()),
            };
        }
        if request.kind == Members::KIND {
            return match <Members as prost::Message>::decode(request.header.clone()) {
                Ok(members) => {
                    *self.members.lock() = members.addresses;
                    link.reply::<Members>(request.id, &Default::default(), Vec::new());
                }
                Err(_) => refuse(ConvertError::Missing("a readable header").into()),
            };
        }
        if request.kind != Recall::KIND {
            return refuse(Failure::new(
                Code::BadRequest,
                "a client takes recalls and news of the members only",
            ));
        }
        let Some(core) = core else {
            // Nothing is cached, nothing open: a recall finds nothing here.
            return link.reply::<Recall>(request.id, &Default::default(), Vec::new());
        };
        match <Recall as prost::Message>::decode(request.header.clone()) {
            Ok(recall) => core.on_recall(link, request.id, &recall),
            Err(_) => refuse(ConvertError::Missing("a readable header").into()),
        }
    }

    fn on_close(&self, _link: &Arc<Link>) {
        self.closed.notify_one();
    }
}

/// Says Hello at `address`.
pub async fn greet(address: &str, hello: &Hello, timeout: Duration, core: Option<Weak<Core>>) -> Greeting {
    let door = Arc::new(Door::default());
    if let Some(core) = core {
        door.core.get_or_init(|| core);
    }
    let link = match Link::connect(address, door.clone(), timeout).await {
        Ok(link) => link,
        Err(error) => return Greeting::Later(error.to_string()),
    };
    let sent = BootTime::now();
    let reply = tokio::time::timeout(timeout, link.call(hello, Vec::new())).await;
    let greeting = match reply {
        Ok(Ok((welcome, _))) => {
            let greeted = Greeted { link, door, welcome, sent, address: address.to_owned() };
            return Greeting::Welcome(Box::new(greeted));
        }
        Ok(Err(CallError::Refused(failure))) => match failure.code() {
            Code::NotLeader => Greeting::NotLeader(Some(failure.leader).filter(|leader| !leader.is_empty())),
            Code::NoSession => Greeting::NoSession,
            Code::Retry => Greeting::Later(failure.text),
            _ => Greeting::Refused(failure),
        },
        Ok(Err(error)) => Greeting::Later(error.to_string()),
        Err(_) => Greeting::Later(format!("no answer within {} s", timeout.as_secs())),
    };
    link.close();
    // Replies on this connection must not be handled after the next one is made.
    door.closed.notified().await;
    greeting
}

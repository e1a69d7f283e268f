//! The place where a request's reply goes.

use std::marker::PhantomData;
use std::sync::Arc;

use gofs_proto::Link;
use gofs_proto::kind::Request;

/// Answers one request of kind `R`.
pub(crate) struct Answer<R> {
    link: Arc<Link>,
    id: u64,
    kind: PhantomData<fn() -> R>,
}

impl<R: Request> Answer<R> {
    pub fn new(link: Arc<Link>, id: u64) -> Self {
        Answer { link, id, kind: PhantomData }
    }

    /// The request's number on its connection.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Queues the reply to the connection, at once and in order.
    pub fn send(&self, reply: &R::Reply) {
        self.link.reply::<R>(self.id, reply, Vec::new());
    }

    /// Queues a refusal.
    pub fn refuse(&self, refusal: &super::Refusal) {
        self.link.refuse(self.id, &refusal.to_failure());
    }
}

//! Passes a write on to the servers behind this one.
//!
//! The write is on its way to the next server before the local store has it, and is answered when all have
//! answered. A server that cannot be reached or fails is left out and named; those behind it get the
//! write from here.

use std::time::Duration;

use bytes::Bytes;
use gofs_proto::CallError;
use gofs_proto::chunk::{Failed, Hop, ItemDone, Punch, PunchReply, Write, WriteReply};
use gofs_proto::kind::Request;
use gofs_proto::session::Failure;
use gofs_proto::session::failure::Code;
use gofs_tree::{ChunkServerId, FsError};

use super::Service;
use super::order::{Before, Via};

/// How long one server of the chain may take for its part.
const HOP_TIMEOUT: Duration = Duration::from_secs(6);

/// A request that goes down a chain.
pub trait Chained: Request + Clone {
    /// The servers behind the receiver.
    fn chain(&self) -> &[Hop];
    /// The same for the first of `chain`, the others behind it.
    fn behind(&self, chain: &[Hop]) -> Self;
    /// What the reply tells.
    fn outcome(reply: Self::Reply) -> Downstream;
}

/// What the servers behind this one answered.
#[derive(Default)]
pub struct Downstream {
    /// Blocks of each chunk there; empty where no server behind holds the bytes.
    pub done: Vec<ItemDone>,
    /// Those that do not hold them.
    pub failed: Vec<Failed>,
    /// One of them cannot take the write yet: it is to be sent again.
    pub busy: Option<Failure>,
}

impl Chained for Write {
    fn chain(&self) -> &[Hop] {
        &self.chain
    }

    fn behind(&self, chain: &[Hop]) -> Self {
        Write { chain: chain[1..].to_vec(), ..self.clone() }
    }

    fn outcome(reply: WriteReply) -> Downstream {
        Downstream { done: reply.done, failed: reply.failed, busy: None }
    }
}

impl Chained for Punch {
    fn chain(&self) -> &[Hop] {
        &self.chain
    }

    fn behind(&self, chain: &[Hop]) -> Self {
        Punch { chain: chain[1..].to_vec(), ..self.clone() }
    }

    fn outcome(reply: PunchReply) -> Downstream {
        Downstream { done: vec![ItemDone { blocks_4k: reply.blocks_4k }], failed: reply.failed, busy: None }
    }
}

type Answer<R> =
    std::pin::Pin<Box<dyn Future<Output = Result<(<R as Request>::Reply, Bytes), CallError>> + Send>>;

/// A request on its way down the chain.
pub struct Passing<R: Chained> {
    request: R,
    payload: Bytes,
    /// Servers before this index failed or are the one that was sent to.
    next: usize,
    sent: Option<(std::sync::Arc<gofs_proto::Link>, Answer<R>)>,
    failed: Vec<Failed>,
}

fn failed(hop: &Hop, text: String, no_space: bool) -> Failed {
    Failed { server: hop.server, text, no_space }
}

impl<R: Chained> Passing<R> {
    /// Sends to the first server behind that can be reached, in order behind the writes before.
    pub async fn start(service: &Service, request: R, payload: Bytes, before: &mut Before) -> Passing<R> {
        let mut passing = Passing { request, payload, next: 0, sent: None, failed: Vec::new() };
        passing.send(service, Some(before)).await;
        passing
    }

    /// The link that it went out on.
    pub fn via(&self) -> Via {
        self.sent.as_ref().map(|(link, _)| std::sync::Arc::as_ptr(link) as usize)
    }

    async fn send(&mut self, service: &Service, mut before: Option<&mut Before>) {
        while let Some(hop) = self.request.chain().get(self.next) {
            let linked =
                service.peers.link(&hop.address, Some(ChunkServerId(hop.server)), service.cluster()).await;
            match linked {
                Ok(link) => {
                    if let Some(before) = before.as_deref_mut() {
                        before.same_way(Some(std::sync::Arc::as_ptr(&link) as usize)).await;
                    }
                    link.ready().await;
                    let request = self.request.behind(&self.request.chain()[self.next..]);
                    let answer = Box::pin(link.call(&request, vec![self.payload.clone()]));
                    self.next += 1;
                    self.sent = Some((link, answer));
                    return;
                }
                Err(why) => {
                    tracing::warn!(server = hop.server, error = why, "left out of a chain");
                    self.failed.push(failed(hop, why, false));
                    self.next += 1;
                }
            }
        }
    }

    /// Waits for the answer. Where none comes, the servers behind are written to from here, once all
    /// earlier writes to the same chunks are settled.
    pub async fn finish(mut self, service: &Service, mut before: Before) -> Downstream {
        loop {
            let Some((link, answer)) = self.sent.take() else {
                return Downstream { failed: self.failed, ..Downstream::default() };
            };
            let hop = self.request.chain()[self.next - 1].clone();
            let left = self.request.chain().len() - self.next;
            let bound = HOP_TIMEOUT * (1 + left as u32);
            match tokio::time::timeout(bound, answer).await {
                Ok(Ok((reply, _))) => {
                    let mut downstream = R::outcome(reply);
                    self.failed.append(&mut downstream.failed);
                    return Downstream { failed: self.failed, ..downstream };
                }
                Ok(Err(CallError::Refused(refusal))) if refusal.code() == Code::Retry => {
                    return Downstream { busy: Some(refusal), ..Downstream::default() };
                }
                Ok(Err(CallError::Refused(refusal))) => {
                    // Refused before it was passed on.
                    let no_space = refusal.code() == Code::Fs && refusal.fs_error == FsError::NoSpace.code();
                    self.failed.push(failed(&hop, refusal.text, no_space));
                }
                Ok(Err(error)) => self.failed.push(failed(&hop, error.to_string(), false)),
                Err(_) => {
                    // What it may still do with it comes too late; nobody should wait for its other answers.
                    link.close();
                    self.failed.push(failed(
                        &hop,
                        format!("{} did not answer within {bound:?}", hop.address),
                        false,
                    ));
                }
            }
            tracing::warn!(server = hop.server, address = hop.address, "failed in a chain");
            before.settled().await;
            self.send(service, None).await;
        }
    }
}

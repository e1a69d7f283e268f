//! The session with the MetaServers: one connection to the leader, found again whenever it is lost.
//!
//! Owns the connection, the requests that wait for one, and the numbers of edits. A request is sent until
//! it is answered; an edit keeps its number, so it happens once. A session that the servers have ended
//! (fenced) is replaced by a new one of the next [`Generation`]; an edit of the old one whose outcome is not known
//! fails with `Io`.

mod edits;
mod greet;
mod log;
mod supervise;
mod waits;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gofs_proto::kind::{self, Request};
use gofs_proto::session::failure::Code;
use gofs_proto::session::{Batch, BatchReply, Edits, EditsReply, Failure};
use gofs_proto::{CallError, Link};
use gofs_tree::FsError;
use parking_lot::Mutex;
use tokio::sync::watch;

pub use greet::{Greeted, Greeting, greet};
pub use log::{EditLog, Logged, Outgoing, Pace};
pub use supervise::{Addresses, find_leader, supervise};
pub use waits::Waits;

use crate::config::Wait;
use crate::latencies::Latencies;
use edits::EditNumbers;

/// Pause before a request is repeated that the server could not serve just now: from, to.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// Counts the sessions that the mount has had, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// A connection over which a session is established.
#[derive(Clone)]
pub struct Connection {
    /// The frames.
    pub link: Arc<Link>,
    /// host:port, as it was dialled.
    pub address: Arc<str>,
    /// Which session it is.
    pub generation: Generation,
}

/// See the module.
pub struct Session {
    connection: watch::Sender<Option<Connection>>,
    numbers: EditNumbers,
    /// Requests that wait for their answers.
    pub waits: Waits,
    /// Requests that were answered, by kind, from when they were sent.
    round_trips: Arc<Latencies>,
    /// Address that a refusing server named as leader.
    hint: Mutex<Option<String>>,
    stopped: AtomicBool,
    /// Goodbye is being said.
    leaving: AtomicBool,
    /// The servers know that the session is over.
    left: AtomicBool,
    wait: Wait,
    runtime: tokio::runtime::Handle,
}

impl Session {
    /// Established by a first greeting.
    pub fn new(
        first: Connection,
        wait: Wait,
        runtime: tokio::runtime::Handle,
        round_trips: Arc<Latencies>,
    ) -> Self {
        Session {
            connection: watch::Sender::new(Some(first)),
            numbers: EditNumbers::default(),
            waits: Waits::default(),
            round_trips,
            hint: Mutex::default(),
            stopped: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            left: AtomicBool::new(false),
            wait,
            runtime,
        }
    }

    /// The connection, if there is one.
    pub fn current(&self) -> Option<Connection> {
        self.connection.borrow().clone()
    }

    /// Puts a connection in place, or takes it away.
    fn set(&self, connection: Option<Connection>) {
        self.connection.send_replace(connection);
    }

    /// Requests fail from now on, and nothing reconnects.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        if let Some(connection) = self.current() {
            connection.link.close();
        }
        // Wakes all that wait for a connection.
        self.set(None);
    }

    /// Goodbye is about to be said: servers that do not know the session any more have heard it, and none follows.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Whether `leave` was called.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Goodbye was heard: nothing reconnects.
    pub fn has_ended(&self) {
        self.left.store(true, Ordering::Release);
        self.stopped.store(true, Ordering::Release);
    }

    /// Whether the servers have heard Goodbye.
    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Whether `stop` was called, or the session has ended with Goodbye.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    async fn connected(&self) -> Result<Connection, FsError> {
        if let Some(connection) = self.current().filter(|c| !c.link.is_closed()) {
            return Ok(connection);
        }
        let mut changes = self.connection.subscribe();
        loop {
            if self.is_stopped() {
                return Err(FsError::Io);
            }
            let current = changes.borrow_and_update().clone();
            match current {
                Some(connection) if !connection.link.is_closed() => return Ok(connection),
                _ => changes.changed().await.map_err(|_| FsError::Io)?,
            }
        }
    }

    /// Sleeps also where the caller polls from a thread outside of the runtime.
    fn pause(&self, time: Duration) -> tokio::time::Sleep {
        let _inside = self.runtime.enter();
        tokio::time::sleep(time)
    }

    fn bounded<F: Future>(&self, time: Duration, work: F) -> tokio::time::Timeout<F> {
        let _inside = self.runtime.enter();
        tokio::time::timeout(time, work)
    }

    /// As long as a mount waits; `Io` where a soft mount has waited long enough.
    pub async fn patiently<F: Future>(&self, work: F) -> Result<F::Output, FsError> {
        match self.wait {
            Wait::Hard => Ok(work.await),
            Wait::Soft(time) => self.bounded(time, work).await.map_err(|_| FsError::Io),
        }
    }

    /// Asks until there is an answer, over as many connections as it takes. `then` sees the reply on the
    /// link's own task, in the order of the stream, once.
    ///
    /// What is sent is on the heap: an operation that is answered from memory must not carry the state of one that is not.
    pub async fn call<R, T, F>(&self, request: R, then: F) -> Result<T, FsError>
    where
        R: Request,
        T: Send + 'static,
        F: Fn(R::Reply) -> Result<T, FsError> + Clone + Send + 'static,
    {
        self.call_of(None, request, then).await
    }

    /// As [`Session::call`] in the session of that generation: `Io` where it has ended.
    pub async fn call_in<R, T, F>(&self, generation: Generation, request: R, then: F) -> Result<T, FsError>
    where
        R: Request,
        T: Send + 'static,
        F: Fn(R::Reply) -> Result<T, FsError> + Clone + Send + 'static,
    {
        self.call_of(Some(generation), request, then).await
    }

    async fn call_of<R, T, F>(
        &self,
        generation: Option<Generation>,
        request: R,
        then: F,
    ) -> Result<T, FsError>
    where
        R: Request,
        T: Send + 'static,
        F: Fn(R::Reply) -> Result<T, FsError> + Clone + Send + 'static,
    {
        let call = Box::pin(self.call_hard(generation, &request, then, || true));
        match self.wait {
            Wait::Hard => call.await,
            Wait::Soft(time) => self.bounded(time, call).await.unwrap_or_else(|_| {
                tracing::warn!(request = kind::name(R::KIND), ?time, "gave up (soft mount)");
                Err(FsError::Io)
            }),
        }
    }

    /// As [`Session::call`] but for as long as it takes on a soft mount too: for waits that are asked for.
    pub async fn call_long<R, T, F>(&self, request: R, then: F) -> Result<T, FsError>
    where
        R: Request,
        T: Send + 'static,
        F: Fn(R::Reply) -> Result<T, FsError> + Clone + Send + 'static,
    {
        Box::pin(self.call_hard(None, &request, then, || true)).await
    }

    /// As [`Session::call_in`], and for as long as it takes as [`Session::call_long`].
    pub async fn call_long_in<R, T, F>(
        &self,
        generation: Generation,
        request: R,
        then: F,
    ) -> Result<T, FsError>
    where
        R: Request,
        T: Send + 'static,
        F: Fn(R::Reply) -> Result<T, FsError> + Clone + Send + 'static,
    {
        Box::pin(self.call_hard(Some(generation), &request, then, || true)).await
    }

    /// Tells the server something, for as long as it takes but only while `wanted` says that it is (still) so.
    pub async fn tell<R: Request>(
        &self,
        request: R,
        wanted: impl Fn() -> bool + Send,
    ) -> Result<(), FsError> {
        Box::pin(self.call_hard(None, &request, |_| Ok(()), wanted)).await
    }

    /// One edit, exactly once. `Io` where the session ended before its outcome was known.
    pub async fn edit<T, F>(self: &Arc<Self>, edits: Edits, then: F) -> Result<T, FsError>
    where
        T: Send + 'static,
        F: Fn(EditsReply) -> Result<T, FsError> + Clone + Send + Sync + 'static,
    {
        match self.wait {
            Wait::Hard => Box::pin(self.edit_hard(edits, then)).await,
            Wait::Soft(time) => {
                // Goes on alone after the caller has given up, so that its outcome is still learned.
                let this = self.clone();
                let work = self.runtime.spawn(async move { this.edit_hard(edits, then).await });
                match self.bounded(time, work).await {
                    Ok(done) => done.unwrap_or(Err(FsError::Io)),
                    Err(_) => {
                        tracing::warn!(?time, "an edit has no answer yet (soft mount)");
                        Err(FsError::Io)
                    }
                }
            }
        }
    }

    async fn edit_hard<T, F>(&self, mut edits: Edits, then: F) -> Result<T, FsError>
    where
        T: Send + 'static,
        F: Fn(EditsReply) -> Result<T, FsError> + Clone + Send + 'static,
    {
        self.numbers.room().await;
        let generation = self.connected().await?.generation;
        let number = self.numbers.begin(generation, 1).ok_or(FsError::Io)?;
        edits.first_seq = number.seq.0;
        edits.answered_seq = number.answered.0;
        let result = self.call_hard(Some(generation), &edits, then, || true).await;
        self.numbers.end(generation, number.seq, 1);
        result
    }

    /// Edits of this session that were applied here, exactly once, for as long as it takes. `Io` where the session ended
    /// before their outcome was known, without a call of `then`.
    pub async fn batch<F>(&self, generation: Generation, batch: Outgoing, then: F) -> Result<(), FsError>
    where
        F: Fn(BatchReply) -> Result<(), FsError> + Clone + Send + 'static,
    {
        self.numbers.room().await;
        let Outgoing { edits, placed } = batch;
        let count = edits.len() as u64;
        let number = self.numbers.begin(generation, count).ok_or(FsError::Io)?;
        let batch = Batch { first_seq: number.seq.0, answered_seq: number.answered.0, edits, placed };
        let result = self.call_hard(Some(generation), &batch, then, || true).await;
        self.numbers.end(generation, number.seq, count);
        result
    }

    /// Waits until every edit that was begun before has its answer.
    pub async fn edits_answered(&self) {
        self.numbers.all_answered().await;
    }

    async fn call_hard<R, T, F>(
        &self,
        generation: Option<Generation>,
        request: &R,
        then: F,
        wanted: impl Fn() -> bool,
    ) -> Result<T, FsError>
    where
        R: Request,
        T: Send + 'static,
        F: Fn(R::Reply) -> Result<T, FsError> + Clone + Send + 'static,
    {
        let _waiting = self.waits.begin(kind::name(R::KIND));
        let mut pause = RETRY_PAUSE.0;
        loop {
            let connection = self.connected().await?;
            if generation.is_some_and(|generation| generation != connection.generation) {
                tracing::warn!(
                    request = kind::name(R::KIND),
                    "the session ended before the outcome was known"
                );
                return Err(FsError::Io);
            }
            let link = &connection.link;
            link.ready().await;
            if !wanted() {
                return Err(FsError::Interrupted);
            }
            let then = then.clone();
            let sent = Instant::now();
            let answer = link.call_then(request, Vec::new(), move |reply, _| then(reply)).await;
            if matches!(answer, Ok(_) | Err(CallError::Refused(_))) {
                self.round_trips.record(R::KIND.into(), sent.elapsed());
            }
            match answer {
                Ok(result) => return result,
                // The supervisor finds the next connection.
                Err(CallError::Closed(_)) => self.left(&connection).await,
                Err(CallError::Garbled(server)) => {
                    tracing::error!(%server, request = kind::name(R::KIND), "reply cannot be read");
                    return Err(FsError::Io);
                }
                Err(CallError::Refused(failure)) => match failure.code() {
                    Code::NotLeader | Code::NoSession => {
                        self.refused(&connection, &failure);
                        self.left(&connection).await;
                    }
                    Code::Retry => {
                        self.pause(pause).await;
                        pause = (pause * 2).min(RETRY_PAUSE.1);
                    }
                    _ => return Err(refusal(kind::name(R::KIND), &connection.address, &failure)),
                },
            }
        }
    }

    /// The server does not serve this session (any more): the supervisor shall look elsewhere.
    fn refused(&self, connection: &Connection, failure: &Failure) {
        if !failure.leader.is_empty() {
            *self.hint.lock() = Some(failure.leader.clone());
        }
        connection.link.close();
    }

    fn take_hint(&self) -> Option<String> {
        self.hint.lock().take()
    }

    /// Waits until that connection is not the current one.
    async fn left(&self, connection: &Connection) {
        connection.link.close();
        let mut changes = self.connection.subscribe();
        loop {
            let gone = changes
                .borrow_and_update()
                .as_ref()
                .is_none_or(|now| !Arc::ptr_eq(&now.link, &connection.link));
            if gone || changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// What a refusal that no retry helps means to the caller. Logged here, once, where it is not the file system's own.
fn refusal(request: &str, server: &str, failure: &Failure) -> FsError {
    match failure.to_fs_error() {
        Ok(Some(error)) => error,
        Ok(None) => {
            tracing::error!(request, server, code = ?failure.code(), text = failure.text, "request refused");
            FsError::Io
        }
        Err(error) => {
            tracing::error!(request, server, %error, "refusal cannot be read");
            FsError::Io
        }
    }
}

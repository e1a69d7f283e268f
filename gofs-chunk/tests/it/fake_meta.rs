//! A MetaServer as far as a ChunkServer can see: its Heartbeat service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use gofs_proto::cluster::heartbeat_server::{Heartbeat, HeartbeatServer};
use gofs_proto::cluster::{
    Accepted, ChunkState, Done, Heard, Instruction, Register, Report, Status as ServerStatus, instruction,
    report,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// The cluster it leads.
pub const CLUSTER: [u8; 16] = [0xc1; 16];
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Seen {
    registers: Vec<Register>,
    chunks: Vec<ChunkState>,
    full_reports: usize,
    status: Option<ServerStatus>,
    done: Vec<Done>,
    to: Option<mpsc::Sender<Result<Instruction, Status>>>,
}

struct Shared {
    leader: Option<SocketAddr>,
    fenced: Vec<u64>,
    write_lease_ms: u32,
    /// Says that it has heard each Status.
    answering: AtomicBool,
    seen: Mutex<Seen>,
    changed: Notify,
}

/// See the module. For one ChunkServer.
pub struct FakeMeta {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    next_id: AtomicU64,
    task: tokio::task::JoinHandle<()>,
}

struct Door(Arc<Shared>);

#[tonic::async_trait]
impl Heartbeat for Door {
    type BeatStream = ReceiverStream<Result<Instruction, Status>>;

    async fn beat(&self, request: Request<Streaming<Report>>) -> Result<Response<Self::BeatStream>, Status> {
        if let Some(leader) = self.0.leader {
            let mut status = Status::unavailable("not the leader");
            status.metadata_mut().insert("gofs-leader", leader.to_string().parse().unwrap());
            return Err(status);
        }
        let mut reports = request.into_inner();
        let Some(Report { body: Some(report::Body::Register(register)) }) = reports.message().await? else {
            return Err(Status::invalid_argument("register first"));
        };
        let (to, instructions) = mpsc::channel(64);
        let accepted = Accepted {
            cluster: CLUSTER.to_vec().into(),
            version: 1,
            heartbeat_ms: 100,
            fenced_sessions: self.0.fenced.clone(),
            write_lease_ms: self.0.write_lease_ms,
            ..Accepted::default()
        };
        to.send(Ok(Instruction { id: 0, body: Some(instruction::Body::Accepted(accepted)) })).await.unwrap();
        {
            let mut seen = self.0.seen.lock();
            seen.registers.push(register);
            seen.to = Some(to);
        }
        let shared = self.0.clone();
        tokio::spawn(async move {
            while let Ok(Some(Report { body: Some(body) })) = reports.message().await {
                let mut seen = shared.seen.lock();
                match body {
                    report::Body::Register(_) => {}
                    report::Body::Chunks(report) => {
                        seen.full_reports += usize::from(report.full && report.last);
                        seen.chunks.extend(report.chunks);
                    }
                    report::Body::Status(status) => {
                        if shared.answering.load(Ordering::Relaxed) {
                            let heard = instruction::Body::Heard(Heard { number: status.number });
                            let to = seen.to.as_ref().unwrap();
                            to.try_send(Ok(Instruction { id: 0, body: Some(heard) })).unwrap();
                        }
                        seen.status = Some(status);
                    }
                    report::Body::Done(done) => seen.done.push(done),
                }
                drop(seen);
                shared.changed.notify_waiters();
            }
        });
        Ok(Response::new(ReceiverStream::new(instructions)))
    }
}

impl FakeMeta {
    pub async fn start() -> FakeMeta {
        FakeMeta::with(None, Vec::new()).await
    }

    /// One that sends everyone to another.
    pub async fn follower(leader: SocketAddr) -> FakeMeta {
        FakeMeta::with(Some(leader), Vec::new()).await
    }

    pub async fn with(leader: Option<SocketAddr>, fenced: Vec<u64>) -> FakeMeta {
        FakeMeta::new(leader, fenced, 0).await
    }

    /// One that lets sessions write for so long.
    pub async fn with_lease(write_lease_ms: u32) -> FakeMeta {
        FakeMeta::new(None, Vec::new(), write_lease_ms).await
    }

    /// Whether it says from now on that it has heard what comes.
    pub fn answer(&self, answering: bool) {
        self.shared.answering.store(answering, Ordering::Relaxed);
    }

    async fn new(leader: Option<SocketAddr>, fenced: Vec<u64>, write_lease_ms: u32) -> FakeMeta {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            leader,
            fenced,
            write_lease_ms,
            answering: AtomicBool::new(true),
            seen: Mutex::default(),
            changed: Notify::new(),
        });
        let service = HeartbeatServer::new(Door(shared.clone()));
        let serve = tonic::transport::Server::builder().add_service(service);
        let task = tokio::spawn(async move {
            serve.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        FakeMeta { address, shared, next_id: AtomicU64::new(1), task }
    }

    async fn until<T>(&self, what: &str, mut look: impl FnMut(&Seen) -> Option<T>) -> T {
        let wait = async {
            loop {
                let changed = self.shared.changed.notified();
                if let Some(found) = look(&self.shared.seen.lock()) {
                    return found;
                }
                let _ = tokio::time::timeout(Duration::from_millis(50), changed).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never came: {what}"))
    }

    /// Waits for the registration with its full report.
    pub async fn registered(&self) -> Register {
        self.until("registration", |seen| (seen.full_reports > 0).then(|| seen.registers[0].clone())).await
    }

    pub async fn registrations(&self) -> usize {
        self.shared.seen.lock().registers.len()
    }

    pub async fn has_report(&self) -> bool {
        self.shared.seen.lock().full_reports > 0
    }

    /// Waits for the newest word about a chunk to be as wanted.
    pub async fn chunk(&self, chunk: u64, wanted: impl Fn(&ChunkState) -> bool) -> ChunkState {
        let newest = |seen: &Seen| seen.chunks.iter().rev().find(|state| state.chunk == chunk).copied();
        self.until("news of a chunk", |seen| newest(seen).filter(|state| wanted(state))).await
    }

    pub async fn status(&self, wanted: impl Fn(&ServerStatus) -> bool) -> ServerStatus {
        self.until("status", |seen| seen.status.clone().filter(|status| wanted(status))).await
    }

    /// Sends an instruction and waits for its answer.
    pub async fn instruct(&self, body: instruction::Body) -> Result<(), String> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let to = self.shared.seen.lock().to.clone().expect("a server is registered");
        to.send(Ok(Instruction { id, body: Some(body) })).await.unwrap();
        let done = self.until("an answer", |seen| seen.done.iter().find(|done| done.id == id).cloned()).await;
        if done.error.is_empty() { Ok(()) } else { Err(done.error) }
    }
}

impl Drop for FakeMeta {
    fn drop(&mut self) {
        self.task.abort();
    }
}

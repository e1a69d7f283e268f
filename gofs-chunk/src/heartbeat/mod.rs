//! Keeps the leading MetaServer informed, and does what it says.
//!
//! One stream at a time: registration, every chunk, then changes and status. The leader is looked for for as long as
//! the server runs. Instructions are carried out beside the stream; what one was about is
//! forgotten with the stream it came on.

mod copy;
mod instructions;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gofs_proto::cluster::heartbeat_client::HeartbeatClient;
use gofs_proto::cluster::{
    self, ChunkReport, ChunkState, Instruction, Register, Report, instruction, report,
};
use gofs_proto::{OLDEST_PROTOCOL_VERSION, OTHER_CLUSTER_METADATA, PROTOCOL_VERSION};
use gofs_tree::SessionId;
use rand::RngExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::clock::BootTime;
use crate::service::{Service, Sessions, blocking};
use crate::store::identity::{ClusterId, hex};
use crate::store::{ChunkInfo, Taken};
use instructions::Worker;

/// How long a MetaServer may take to connect, and to accept a registration.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(15);
/// Without a sign of life for so long the connection is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Pauses after all MetaServers were asked in vain.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// While an election is likely to be under way, no longer than this: mounts wait for this server to be known again.
const ELECTION: Duration = Duration::from_secs(5);
const ELECTION_PAUSE: Duration = Duration::from_millis(200);
/// Chunks in one message of a report.
const REPORT_CHUNKS: usize = 4096;
/// Reports and answers not yet sent; who has more waits.
const REPORTS_QUEUED: usize = 64;
/// Changes are gathered for so long, so that a burst is one message.
const GATHER: Duration = Duration::from_millis(20);
/// Statuses whose answers are waited for; older ones say nothing new.
const UNHEARD_MAX: usize = 64;
/// Bounds of the interval that a MetaServer may ask for.
const INTERVAL_MIN: Duration = Duration::from_millis(50);
const INTERVAL_MAX: Duration = Duration::from_secs(60);

/// What is told of this server.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Where its data door is reached.
    pub address: String,
    /// Failure domains and the like.
    pub labels: BTreeMap<String, String>,
}

/// Why a stream ended.
#[derive(Debug)]
enum Ended {
    /// Another server leads.
    Elsewhere(String),
    /// It is to be tried again, here or elsewhere.
    Failed(String),
    /// This server belongs to another cluster: trying on is of no use.
    WrongCluster(String),
}

/// Where MetaServers are looked for.
struct Metas {
    configured: Vec<String>,
    /// Where they are as the last leader said. Those of the configuration may all be gone by now.
    members: Vec<String>,
}

impl Metas {
    fn are_at(&mut self, members: Vec<String>) {
        // One of an older version says nothing.
        if !members.is_empty() {
            self.members = members;
        }
    }

    fn all(&self) -> VecDeque<String> {
        let mut all = VecDeque::new();
        for address in self.members.iter().chain(&self.configured) {
            if !all.contains(address) {
                all.push_back(address.clone());
            }
        }
        all
    }
}

/// Runs until it is dropped, or until a MetaServer says that this server belongs to another cluster: returns what it says.
pub async fn run(service: Arc<Service>, metas: Vec<String>, announcement: Announcement) -> String {
    let mut metas = Metas { configured: metas, members: Vec::new() };
    let mut next = metas.all();
    let mut pause = PAUSE_MIN;
    let mut told = String::new();
    // When the last stream ended.
    let mut lost = Instant::now();
    let mut hints = 0;
    loop {
        let Some(address) = next.pop_front() else {
            let jitter = rand::rng().random_range(0.5..1.0);
            tokio::time::sleep(pause.mul_f64(jitter)).await;
            let longest = if lost.elapsed() < ELECTION { ELECTION_PAUSE } else { PAUSE_MAX };
            pause = (pause * 2).min(longest);
            next = metas.all();
            hints = 0;
            continue;
        };
        let mut accepted = false;
        match stream(&service, &address, &announcement, &mut metas, &mut accepted).await {
            // Servers that name each other in a circle are left for a while.
            Ended::Elsewhere(leader) if hints <= metas.all().len() => {
                hints += 1;
                next.push_front(leader);
            }
            Ended::Elsewhere(_) => {}
            Ended::WrongCluster(why) => return format!("MetaServer {address}: {why}"),
            Ended::Failed(why) => {
                // The same reason again and again is said once.
                let why = format!("MetaServer {address}: {why}");
                if why != told {
                    tracing::warn!(error = why, "no heartbeat; trying on");
                    told = why;
                }
            }
        }
        if accepted {
            pause = PAUSE_MIN;
            lost = Instant::now();
            hints = 0;
            told.clear();
        }
    }
}

/// One stream, from registration to its end.
async fn stream(
    service: &Arc<Service>,
    address: &str,
    announcement: &Announcement,
    metas: &mut Metas,
    accepted: &mut bool,
) -> Ended {
    match try_stream(service, address, announcement, metas, accepted).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

async fn try_stream(
    service: &Arc<Service>,
    address: &str,
    announcement: &Announcement,
    metas: &mut Metas,
    accepted: &mut bool,
) -> Result<std::convert::Infallible, Ended> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Ended::Failed(error.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    let channel = endpoint.connect().await.map_err(|error| Ended::Failed(chain_of(&error)))?;
    let (reports, queued) = mpsc::channel(REPORTS_QUEUED);
    let asked = BootTime::now();
    send(&reports, report::Body::Register(register(service, announcement))).await?;
    let beat = HeartbeatClient::new(channel);
    let call = async move {
        let mut beat = beat;
        let mut instructions = beat.beat(ReceiverStream::new(queued)).await?.into_inner();
        let first = instructions.message().await?;
        Ok((first, instructions))
    };
    let (first, mut instructions) = tokio::time::timeout(ACCEPT_TIMEOUT, call)
        .await
        .map_err(|_| Ended::Failed(format!("no answer to the registration within {ACCEPT_TIMEOUT:?}")))?
        .map_err(refused)?;
    let Some(instruction::Body::Accepted(terms)) = first.and_then(|first| first.body) else {
        return Err(Ended::Failed("answered the registration with something else".to_owned()));
    };
    let interval = accept(service, &terms, asked)?;
    *accepted = true;
    metas.are_at(terms.metas.clone());
    tracing::info!(meta = address, cluster = hex(&terms.cluster), "registered");

    // What changed before the full report is in it.
    service.store.changes().take();
    full_report(service, &reports).await?;
    let worker = Worker::new(service.clone(), reports.clone());
    let mut unheard = Unheard::default();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                // After the changes that it counts: who sees damage counted knows where it is.
                let mut status = status(service);
                report_changes(service, &reports).await?;
                status.number = unheard.sending(BootTime::now());
                send(&reports, report::Body::Status(status)).await?;
            }
            () = service.store.changes().changed() => {
                tokio::time::sleep(GATHER).await;
                report_changes(service, &reports).await?;
            }
            message = instructions.message() => match message.map_err(refused)? {
                Some(Instruction { body: Some(instruction::Body::Heard(heard)), .. }) => {
                    if let Some(asked) = unheard.heard(heard.number) {
                        service.fences.heard(asked);
                    }
                }
                Some(Instruction { body: Some(instruction::Body::Members(members)), .. }) => {
                    metas.are_at(members.addresses);
                }
                Some(Instruction { id, body: Some(body) }) => worker.start(id, body),
                // A kind of instruction that a newer MetaServer sends.
                Some(Instruction { id, body: None }) => {
                    worker.answer(id, Err("this ChunkServer does not know the instruction".to_owned()));
                }
                None => return Err(Ended::Failed("ended the stream".to_owned())),
            },
        }
    }
}

/// When each Status was sent of which it is not known that it was heard.
#[derive(Default)]
struct Unheard {
    last: u64,
    sent: VecDeque<(u64, BootTime)>,
}

impl Unheard {
    /// The number of the Status that is sent now.
    fn sending(&mut self, now: BootTime) -> u64 {
        self.last += 1;
        if self.sent.len() >= UNHEARD_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.last, now));
        self.last
    }

    /// When the one that was heard was sent; those before it do not matter any more.
    fn heard(&mut self, number: u64) -> Option<BootTime> {
        let place = self.sent.iter().position(|(sent, _)| *sent == number)?;
        self.sent.drain(..=place).next_back().map(|(_, at)| at)
    }
}

fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn refused(status: tonic::Status) -> Ended {
    match status.metadata().get("gofs-leader").and_then(|leader| leader.to_str().ok()) {
        Some(leader) if !leader.is_empty() => Ended::Elsewhere(leader.to_owned()),
        _ if status.metadata().contains_key(OTHER_CLUSTER_METADATA) => {
            Ended::WrongCluster(status.message().to_owned())
        }
        _ => Ended::Failed(format!("{}: {}", status.code(), status.message())),
    }
}

async fn send(reports: &mpsc::Sender<Report>, body: report::Body) -> Result<(), Ended> {
    let sent = reports.send(Report { body: Some(body) }).await;
    sent.map_err(|_| Ended::Failed("the connection ended".to_owned()))
}

fn register(service: &Service, announcement: &Announcement) -> Register {
    Register {
        version: PROTOCOL_VERSION,
        oldest_version: OLDEST_PROTOCOL_VERSION,
        cluster: service.cluster(),
        server: service.store.server().0,
        address: announcement.address.clone(),
        labels: announcement.labels.clone().into_iter().collect(),
    }
}

/// Takes over what the MetaServer decided about the registration that was sent at `asked`; how often it wants to hear.
fn accept(service: &Service, terms: &cluster::Accepted, asked: BootTime) -> Result<Duration, Ended> {
    if !(OLDEST_PROTOCOL_VERSION..=PROTOCOL_VERSION).contains(&terms.version) {
        return Err(Ended::Failed(format!(
            "chose protocol version {}, which this server does not speak",
            terms.version
        )));
    }
    let cluster: ClusterId = terms.cluster[..]
        .try_into()
        .map_err(|_| Ended::Failed(format!("named a cluster of {} bytes", terms.cluster.len())))?;
    match service.store.cluster() {
        Some(own) if own != cluster => {
            let text = format!("leads cluster {}, but this server belongs to {}", hex(&cluster), hex(&own));
            return Err(Ended::WrongCluster(text));
        }
        Some(_) => {}
        None => {
            blocking(|| service.store.adopt(cluster)).map_err(|error| Ended::Failed(error.to_string()))?
        }
    }
    let ids = |ids: &[u64]| ids.iter().copied().map(SessionId).collect();
    let sessions = Sessions {
        floor: SessionId(terms.session_floor),
        live: ids(&terms.live_sessions),
        fenced: ids(&terms.fenced_sessions),
    };
    let length = (terms.write_lease_ms > 0).then(|| Duration::from_millis(terms.write_lease_ms.into()));
    blocking(|| service.fences.replace(sessions, asked, length));
    Ok(Duration::from_millis(terms.heartbeat_ms.into()).clamp(INTERVAL_MIN, INTERVAL_MAX))
}

fn state(info: &ChunkInfo) -> ChunkState {
    ChunkState {
        chunk: info.chunk.0,
        version: info.version.0,
        gone: info.gone,
        corrupt: info.corrupt,
        doubtful: info.doubtful,
    }
}

async fn full_report(service: &Service, reports: &mpsc::Sender<Report>) -> Result<(), Ended> {
    let chunks = blocking(|| service.store.list());
    let mut pieces = chunks.chunks(REPORT_CHUNKS).peekable();
    if pieces.peek().is_none() {
        return send(
            reports,
            report::Body::Chunks(ChunkReport { chunks: Vec::new(), full: true, last: true }),
        )
        .await;
    }
    while let Some(piece) = pieces.next() {
        let chunks = piece.iter().map(state).collect();
        let last = pieces.peek().is_none();
        send(reports, report::Body::Chunks(ChunkReport { chunks, full: true, last })).await?;
    }
    Ok(())
}

/// What changed since the last report.
async fn report_changes(service: &Service, reports: &mpsc::Sender<Report>) -> Result<(), Ended> {
    match service.store.changes().take() {
        Taken::Everything => full_report(service, reports).await,
        Taken::Some(changed) => changes_report(&changed, reports).await,
    }
}

async fn changes_report(changed: &[ChunkInfo], reports: &mpsc::Sender<Report>) -> Result<(), Ended> {
    for piece in changed.chunks(REPORT_CHUNKS) {
        let chunks = piece.iter().map(state).collect();
        send(reports, report::Body::Chunks(ChunkReport { chunks, full: false, last: false })).await?;
    }
    Ok(())
}

fn status(service: &Service) -> cluster::Status {
    let disks = blocking(|| service.store.status());
    let disks = disks.into_iter().map(|disk| cluster::Disk {
        path: disk.path.display().to_string(),
        capacity_bytes: disk.capacity_bytes,
        free_bytes: disk.free_bytes,
        error: disk.error.unwrap_or_default(),
        last_scrub_unix_s: disk.last_scrub_unix_s,
    });
    cluster::Status {
        disks: disks.collect(),
        chunks: service.store.chunk_count(),
        in_flight: service.in_flight(),
        corrupt_blocks_total: service.store.corrupt_blocks(),
        load: load(),
        cpu_latency: service.wakeful.state().to_string(),
        number: 0,
    }
}

/// The machine's load average of one minute; 0 where it is not known.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn what_was_heard_counts_from_when_it_was_sent_and_once() {
        let (mut unheard, began) = (Unheard::default(), BootTime::now());
        let at = |ms| began.after(Duration::from_millis(ms));
        let numbers: Vec<u64> = (0..4).map(|ms| unheard.sending(at(ms))).collect();
        assert_eq!(unheard.heard(numbers[1]), Some(at(1)));
        assert_eq!(unheard.heard(numbers[0]), None, "an earlier one");
        assert_eq!(unheard.heard(numbers[3] + 1), None, "it was never sent");
        assert_eq!(unheard.heard(numbers[3]), Some(at(3)));
        for ms in 0..1000 {
            unheard.sending(at(ms));
        }
        assert_eq!(unheard.sent.len(), UNHEARD_MAX);
    }

    #[test]
    fn only_a_metaserver_of_another_cluster_stops_this_server() {
        let upgrade = Status::failed_precondition("upgrade the older one");
        for passing in [upgrade, Status::unimplemented("versions"), Status::internal("its storage")] {
            assert!(matches!(refused(passing), Ended::Failed(_)));
        }
        let mut other = Status::failed_precondition("this is cluster 01");
        other.metadata_mut().insert(OTHER_CLUSTER_METADATA, "01".parse().unwrap());
        assert!(matches!(refused(other), Ended::WrongCluster(why) if why == "this is cluster 01"));
    }
}

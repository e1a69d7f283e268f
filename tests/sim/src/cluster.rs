//! The servers and clients of a run, each on a host of its own: started, stopped and restarted as they are.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gofs_client::{Client, ClientConfig, KernelCache};
use gofs_meta::command::{Command, NamespaceConfig};
use gofs_meta::group::{MetaGroup, Role};
use gofs_meta::{ChunkConfig, SessionTimes, StateConfig};
use gofs_tree::{ChunkSize, FsError, Ino, MetaServerId, Timestamp};
use gofs_wakeful::CpuLatency;
use tokio::sync::Notify;

use crate::history::History;
use crate::plan::{NAMESPACE, Plan};
use crate::report;
use crate::workload::{self, Actor};
use crate::world::{self, HostId};

/// A process on a host.
pub struct Process<T> {
    pub host: HostId,
    pub state: Arc<Shared<T>>,
}

/// What a process and the simulation share.
pub struct Shared<T> {
    stop: Notify,
    running: Mutex<Option<T>>,
    ended: AtomicBool,
}

impl<T: Clone> Shared<T> {
    fn new() -> Arc<Shared<T>> {
        Arc::new(Shared { stop: Notify::new(), running: Mutex::new(None), ended: AtomicBool::new(false) })
    }

    /// What runs; `None`: it has not started yet.
    pub fn running(&self) -> Option<T> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, running: Option<T>) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = running;
    }

    /// Asks it to end cleanly.
    pub fn stop(&self) {
        self.stop.notify_one();
    }

    /// Whether it has.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

/// Runs it to its end on the thread that calls.
pub fn run<F: Future<Output = ()>>(work: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(work);
}

/// Starts a MetaServer.
pub fn start_meta(plan: &Plan, at: usize) -> Process<Arc<MetaGroup>> {
    let host = plan.meta_host(at);
    let mut config =
        gofs_meta::Config::new(MetaServerId(at as u64 + 1), plan.meta_address(at), plan.directory(host));
    if at >= plan.metas {
        config.join = plan.meta_addresses();
    } else if plan.metas > 1 {
        let all = plan.meta_addresses().into_iter().enumerate();
        config.peers = all.map(|(at, address)| (MetaServerId(at as u64 + 1), address)).collect();
    }
    config.sessions = SessionTimes { validity: plan.validity, margin: plan.margin };
    config.chunks = ChunkConfig {
        heartbeat: Duration::from_millis(200),
        dead_after: Duration::from_secs(1),
        repair_after: plan.repair_after,
        // Where bits flip, no whole replica is left out because its server is late.
        settle: Duration::from_millis(if plan.flips.is_some() { 5_000 } else { 500 }),
        orphan_grace: Duration::from_secs(5),
        extra_grace: Duration::from_secs(2),
        promise: Duration::from_secs(3),
        resolve_after: Duration::from_millis(500),
        forget_after: Duration::from_secs(10),
        copy_timeout: Duration::from_secs(5),
        copy_retry: Duration::from_millis(500),
        answer_timeout: Duration::from_millis(500),
        write_patience: Duration::from_millis(if plan.flips.is_some() { 5_000 } else { 500 }),
        walk_every: Duration::from_millis(500),
        ..ChunkConfig::default()
    };
    config.state = StateConfig { record_cache_bytes: 1 << 20, block_cache_bytes: 1 << 20 };
    config.segment_bytes = 64 << 10;
    config.snapshot_entries = plan.snapshot_entries;
    config.heartbeat_ms = plan.heartbeat_ms;
    config.cpu_latency = CpuLatency::Off;
    let shared = Shared::new();
    let own = shared.clone();
    let namespace = namespace(plan);
    world::spawn_on(host, "meta", move || {
        run(async {
            match gofs_meta::Server::start(config).await {
                Ok(server) => {
                    own.set(Some(server.group().clone()));
                    let naming = tokio::spawn(make_namespace(server.group().clone(), namespace));
                    tokio::select! {
                        () = own.stop.notified() => {}
                        () = server.removed() => {}
                    }
                    naming.abort();
                    own.set(None);
                    server.shutdown().await;
                }
                Err(error) => refused_to_start(host, &error),
            }
        });
        own.ended.store(true, Ordering::Release);
    });
    Process { host, state: shared }
}

/// A server that does not start with what a crash left is one that lost what it had.
fn refused_to_start(host: HostId, error: &anyhow::Error) {
    report::violation("restart", &format!("the server on host {} does not start: {error:#}", host.0));
}

fn namespace(plan: &Plan) -> NamespaceConfig {
    NamespaceConfig {
        replicas: 2,
        chunk_size: ChunkSize::new(64 << 10).expect("a chunk size that is allowed"),
        inline_max: plan.inline_max,
        quota_bytes: plan.quota_bytes,
        quota_inodes: plan.quota_inodes,
    }
}

async fn make_namespace(group: Arc<MetaGroup>, config: NamespaceConfig) {
    loop {
        let leads = group.leadership().borrow().role == Role::Leader;
        if leads && matches!(group.state().namespace_by_name(NAMESPACE), Ok(None)) {
            let name = NAMESPACE.into();
            // Asked again until it is there.
            let _ =
                group.propose(Command::CreateNamespace { name, config, time: Timestamp::default() }).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Starts a ChunkServer.
pub fn start_chunk(plan: &Plan, at: usize) -> Process<()> {
    let host = plan.chunk_host(at);
    let mut config =
        gofs_chunk::Config::new(plan.chunk_address(at), vec![plan.directory(host)], plan.meta_addresses());
    config.segment_bytes = 1 << 20;
    config.small_chunk_bytes = plan.small_chunk_bytes;
    config.labels = BTreeMap::from([("host".to_owned(), format!("h{}", host.0))]);
    config.cpu_latency = CpuLatency::Off;
    let shared = Shared::new();
    let own = shared.clone();
    world::spawn_on(host, "chunk", move || {
        run(async {
            let started = loop {
                match gofs_chunk::Server::start(config.clone()).await {
                    // It says so and ends, and whoever watches over servers starts it again.
                    Err(_) if world::with(|world| world.is_disk_full(host)) => {
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                    started => break started,
                }
            };
            match started {
                Ok(server) => {
                    own.set(Some(()));
                    own.stop.notified().await;
                    own.set(None);
                    server.shutdown().await;
                }
                Err(error) => refused_to_start(host, &error),
            }
        });
        own.ended.store(true, Ordering::Release);
    });
    Process { host, state: shared }
}

/// A kernel without copies of its own, that takes its time to say so.
struct Kernel;

impl KernelCache for Kernel {
    fn invalidate_inode(&self, _: Ino) {
        std::thread::sleep(Duration::from_micros(50));
    }

    fn invalidate_pages(&self, _: Ino, _: u64, _: u64) {
        std::thread::sleep(Duration::from_micros(50));
    }

    fn forget_attributes(&self, _: Ino) {}

    fn invalidate_entries(&self) {
        std::thread::sleep(Duration::from_micros(50));
    }

    fn can_cache_entries(&self) -> bool {
        true
    }
}

/// How clients of a run are made.
#[derive(Clone)]
pub struct Crew {
    pub plan: Plan,
    pub history: History,
    pub fresh: Arc<AtomicU64>,
    pub next_client: Arc<AtomicU64>,
    /// Set when no operation is to begin any more.
    pub stop: Arc<AtomicBool>,
}

impl Crew {
    /// Mounts on a host, again until it succeeds.
    async fn mount(&self, place: usize) -> Arc<Client> {
        let config = ClientConfig {
            metas: self.plan.meta_addresses(),
            namespace: NAMESPACE.into(),
            mount_point: format!("/{place}"),
            dirty_age: self.plan.dirty_age,
            connect_timeout: Duration::from_millis(500),
            // A quarter of it goes on its way at once.
            dirty_bytes: if self.plan.streams { 256 << 10 } else { ClientConfig::default().dirty_bytes },
            ..ClientConfig::default()
        };
        loop {
            match Client::mount(config.clone(), Arc::new(Kernel)).await {
                Ok(client) => return client,
                Err(error) => {
                    tracing::info!(%error, "mount");
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
        }
    }

    async fn actor(&self, place: usize) -> Actor {
        let client = self.mount(place).await;
        let places = loop {
            match workload::prepare(&client, self.plan.clients).await {
                Ok(places) => break places,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        Actor {
            id: self.next_client.fetch_add(1, Ordering::Relaxed) as usize,
            place,
            client,
            places: Arc::new(places),
            history: self.history.clone(),
            fresh: self.fresh.clone(),
            stop: self.stop.clone(),
            idle: self.plan.idle,
            moves: self.plan.moves,
            streams: self.plan.streams,
            turns: Arc::default(),
        }
    }

    /// Starts a client that works until all are to stop.
    pub fn start(&self, place: usize) -> Process<Arc<Client>> {
        let host = self.plan.client_host(place);
        if self.plan.sabotage().clocks_drag {
            world::with(|world| world.drag_clock(host));
        }
        let (crew, shared) = (self.clone(), Shared::new());
        let own = shared.clone();
        world::spawn_on(host, "client", move || {
            run(crew.work(place, own.clone()));
            own.ended.store(true, Ordering::Release);
        });
        Process { host, state: shared }
    }

    async fn work(self, place: usize, own: Arc<Shared<Arc<Client>>>) {
        let actor = self.actor(place).await;
        own.set(Some(actor.client.clone()));
        let seed = self.plan.seed.wrapping_mul(1000).wrapping_add(actor.id as u64 * 10);
        let mut tasks = vec![
            tokio::spawn(actor.clone().number(seed)),
            tokio::spawn(actor.clone().append(seed + 1)),
            tokio::spawn(actor.clone().locks(seed + 6)),
        ];
        for task in 0..2 {
            tasks.push(tokio::spawn(actor.clone().names(seed + 2 + task)));
            tasks.push(tokio::spawn(actor.clone().contents(seed + 4 + task)));
        }
        for task in tasks {
            if task.await.is_err() {
                report::violation("panic", "a client's operation panicked");
            }
        }
        let session = actor.client.session().0;
        let synced = actor.client.sync_all().await.is_ok();
        if synced && actor.lost() == 0 && actor.client.session().0 == session {
            self.history.is_clean(session);
        }
        // From here on it answers nobody: what its table holds until the goodbye is heard does not count.
        own.set(None);
        actor.client.unmount(Duration::from_secs(10)).await;
    }

    /// Looks at everything, from a host that did nothing before. Answers the log and the numbered files.
    pub fn look(&self) -> Process<Seen> {
        let host = self.plan.client_host(self.plan.clients);
        let (crew, shared) = (self.clone(), Shared::new());
        let own = shared.clone();
        world::spawn_on(host, "last", move || {
            run(async {
                let actor = crew.actor(crew.plan.clients).await;
                crew.history.is_clean(actor.client.session().0);
                own.set(Some(crew.see(&actor).await));
            });
            own.ended.store(true, Ordering::Release);
        });
        Process { host, state: shared }
    }

    async fn see(&self, actor: &Actor) -> Seen {
        let mut seen = Seen::default();
        for at in 0..workload::DIRECTORIES {
            actor.list(at).await;
        }
        for file in 0..workload::FILES {
            if let Ok(handle) = actor.client.open(actor.places.files[file], READ_ONLY).await {
                // Twice: another replica may answer.
                for at in (0..workload::blocks(file).0.len()).chain(0..workload::blocks(file).0.len()) {
                    actor.read(&handle, file, at).await;
                }
                actor.client.release(handle).await;
            }
            actor.mode(file).await;
        }
        for &directory in &actor.places.numbered {
            let names = workload::names_in(&actor.client, directory).await.unwrap_or_default();
            let number = |name: Vec<u8>| String::from_utf8_lossy(&name).parse().unwrap_or(0);
            seen.numbered.push(names.into_iter().map(|(name, _)| number(name)).collect());
        }
        match log_of(actor).await {
            Ok(log) => seen.log = log,
            Err(error) => {
                report::violation("appended", &format!("the log cannot be read at the end: {error}"))
            }
        }
        seen
    }
}

async fn log_of(actor: &Actor) -> Result<Vec<u8>, FsError> {
    let handle = actor.client.open(actor.places.log, READ_ONLY).await?;
    let mut log = Vec::new();
    loop {
        let bytes = actor.client.read(&handle, log.len() as u64, 1 << 20).await?.value.concat();
        if bytes.is_empty() {
            return Ok(log);
        }
        log.extend_from_slice(&bytes);
    }
}

const READ_ONLY: gofs_client::OpenFlags = gofs_client::OpenFlags {
    read: true,
    write: false,
    append: false,
    truncate: false,
    direct: false,
    sync: false,
};

/// What is there at the end.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Bytes of the log.
    pub log: Vec<u8>,
    /// Numbers of files, for each place of a client.
    pub numbered: Vec<std::collections::BTreeSet<u64>>,
}

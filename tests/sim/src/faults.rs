//! Troubles: one begins now and then, and each ends.

use rand::RngExt;
use rand::rngs::StdRng;

use crate::admin::{self, Wish};
use crate::cluster::{self, Crew, Process};
use crate::plan::{Break, LONGEST_TROUBLE_S, Plan};
use crate::report;
use crate::world::{self, Cut, HostId, MILLI_NS, SECOND_NS, Weather};
use gofs_client::Client;
use gofs_meta::group::MetaGroup;
use gofs_tree::MetaServerId;
use std::sync::Arc;

/// Everything that runs.
pub struct Cluster {
    pub plan: Plan,
    pub crew: Crew,
    pub metas: Vec<Process<Arc<MetaGroup>>>,
    pub chunks: Vec<Process<()>>,
    pub clients: Vec<Process<Arc<Client>>>,
    /// The MetaServer whose place another one takes: it is not started again.
    pub replaced: Option<usize>,
}

/// What is to be repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repair {
    StartMeta(usize),
    StartChunk(usize),
    StartClient(usize),
    Resume(HostId),
    Mend,
    Clear,
    Disk(HostId),
    Undrain(usize),
}

/// How files begin in which ChunkServers have chunks: large ones have their own, small ones are in the log.
const CHUNK_MAGICS: [&[u8]; 2] = [b"gofsbig1", b"gofsseg1"];

/// See the module.
pub struct Faults {
    rng: StdRng,
    due: Vec<(u64, Repair)>,
    /// Hosts in trouble, which get no second one.
    troubled: Vec<HostId>,
    /// Nothing has kept a replica from being written so far, so each chunk has all of them.
    whole: bool,
    pub made: u64,
}

impl Faults {
    /// With choices of its own.
    pub fn new(rng: StdRng) -> Faults {
        Faults { rng, due: Vec::new(), troubled: Vec::new(), whole: true, made: 0 }
    }

    fn later(&mut self, from_ms: u64, to_ms: u64, repair: Repair) {
        let at = world::now_ns() + self.rng.random_range(from_ms..to_ms) * MILLI_NS;
        self.due.push((at, repair));
    }

    /// Ends what has to end by now; everything where `all`.
    pub fn repair(&mut self, cluster: &mut Cluster, all: bool) {
        let now = world::now_ns();
        let (due, left) = std::mem::take(&mut self.due).into_iter().partition(|(at, _)| all || *at <= now);
        self.due = left;
        let due: Vec<(u64, Repair)> = due;
        for (_, repair) in due {
            tracing::info!(?repair, "repair");
            let host = match repair {
                // It stays in trouble: nothing runs there any more.
                Repair::StartMeta(at) if cluster.replaced == Some(at) => None,
                Repair::StartMeta(at) => {
                    world::with(|world| world.power_on(cluster.plan.meta_host(at)));
                    cluster.metas[at] = cluster::start_meta(&cluster.plan, at);
                    Some(cluster.plan.meta_host(at))
                }
                Repair::StartChunk(at) => {
                    world::with(|world| world.power_on(cluster.plan.chunk_host(at)));
                    cluster.chunks[at] = cluster::start_chunk(&cluster.plan, at);
                    Some(cluster.plan.chunk_host(at))
                }
                Repair::StartClient(at) => {
                    world::with(|world| world.power_on(cluster.plan.client_host(at)));
                    cluster.clients[at] = cluster.crew.start(at);
                    Some(cluster.plan.client_host(at))
                }
                Repair::Resume(host) => {
                    world::with(|world| world.set_paused(host, false));
                    Some(host)
                }
                Repair::Mend => {
                    if cluster.plan.broken != Break::Net {
                        world::with(|world| world.mend());
                    }
                    None
                }
                Repair::Clear => {
                    world::with(|world| world.set_weather(cluster.plan.weather.clone()));
                    None
                }
                Repair::Disk(host) => {
                    world::with(|world| {
                        world.set_disk_full(host, false);
                        world.set_sync_ns(host, 2 * MILLI_NS);
                    });
                    Some(host)
                }
                Repair::Undrain(at) => {
                    drain(&cluster.plan, at, false);
                    Some(cluster.plan.chunk_host(at))
                }
            };
            self.troubled.retain(|troubled| Some(*troubled) != host);
        }
    }

    /// A new one.
    pub fn make(&mut self, cluster: &mut Cluster) {
        self.made += 1;
        let plan = cluster.plan.clone();
        match self.rng.random_range(0..16) {
            0..3 => self.meta(cluster, &plan),
            3..6 => match plan.flips {
                Some(at) => flip(&mut self.rng, &plan, at),
                None if plan.blackouts && self.rng.random() => self.blackout(&plan),
                None => self.chunk(cluster, &plan),
            },
            6..9 => self.client(cluster, &plan),
            9..12 => self.net(&plan),
            12 if plan.flips.is_none() => {
                self.whole = false;
                let weather = Weather { lost_one_in: self.rng.random_range(3..20), ..plan.weather };
                world::with(|world| world.set_weather(weather));
                self.later(300, 3_000, Repair::Clear);
            }
            12 | 13 => {
                let host = HostId(self.rng.random_range(1..plan.hosts() - 1));
                let hours = self.rng.random_range(-3..=3);
                world::with(|world| world.shift_wall(host, hours * 3_600 * SECOND_NS as i64));
            }
            _ => self.disk(&plan),
        }
    }

    /// Whether this host may get into trouble now, with at most `most` of these.
    fn may(&mut self, host: HostId, kind: impl Fn(HostId) -> bool, most: usize) -> bool {
        let many = self.troubled.iter().filter(|host| kind(**host)).count();
        if self.troubled.contains(&host) || many >= most {
            return false;
        }
        self.troubled.push(host);
        true
    }

    fn stop(&mut self, host: HostId, sorts: u32) {
        match self.rng.random_range(0..sorts) {
            0 => world::with(|world| world.kill(host)),
            1 => world::with(|world| world.cut_power(host, Cut::All)),
            _ => world::with(|world| world.cut_power(host, Cut::Torn)),
        }
    }

    fn meta(&mut self, cluster: &mut Cluster, plan: &Plan) {
        // Now and then all at once.
        if self.rng.random_range(0..6) == 0 {
            for at in 0..plan.metas {
                let host = plan.meta_host(at);
                if self.may(host, |_| false, usize::MAX) {
                    tracing::info!(host = host.0, "all MetaServers stop");
                    self.stop(host, 3);
                    self.later(200, 2_000, Repair::StartMeta(at));
                }
            }
            return;
        }
        let at = self.rng.random_range(0..plan.metas);
        let host = plan.meta_host(at);
        let (metas, most) = (plan.metas, plan.metas.div_ceil(2) - usize::from(plan.metas > 1));
        let replaced = cluster.replaced.map(|at| plan.meta_host(at));
        if !self.may(host, |host| host.0 <= metas && Some(host) != replaced, most) {
            return;
        }
        match self.rng.random_range(0..6) {
            5 if metas > 1 && cluster.replaced.is_none() => {
                tracing::info!(host = host.0, "MetaServer is replaced");
                self.troubled.pop();
                cluster.replaced = Some(at);
                cluster.metas.push(cluster::start_meta(plan, metas));
                let (old, new) = (MetaServerId(at as u64 + 1), MetaServerId(metas as u64 + 1));
                let address = plan.meta_address(metas).to_string();
                admin::ask(plan, Wish::Replace { old, new, address });
            }
            4 => {
                tracing::info!("the lead is given away");
                self.troubled.pop();
                admin::ask(plan, Wish::TransferLead);
            }
            0 => {
                tracing::info!(host = host.0, "MetaServer pauses");
                world::with(|world| world.set_paused(host, true));
                self.later(100, 4_000, Repair::Resume(host));
            }
            1 => {
                tracing::info!(host = host.0, "MetaServer is stopped");
                stop_cleanly(&cluster.metas[at], |host| world::with(|world| world.kill(host)));
                self.later(0, 2_000, Repair::StartMeta(at));
            }
            _ => {
                tracing::info!(host = host.0, "MetaServer dies");
                self.stop(host, 3);
                self.later(100, 5_000, Repair::StartMeta(at));
            }
        }
    }

    fn chunk(&mut self, cluster: &mut Cluster, plan: &Plan) {
        let at = self.rng.random_range(0..plan.chunks);
        let host = plan.chunk_host(at);
        let chunks = plan.chunk_host(0).0..plan.chunk_host(plan.chunks).0;
        if !self.may(host, |host| chunks.contains(&host.0), 1) {
            return;
        }
        // What was not synced is on the other replica only then, if there is one.
        let is_whole = std::mem::take(&mut self.whole) && plan.may_cut_chunks();
        let may_cut = is_whole || plan.blackouts;
        let sort = if is_whole { 5 } else { self.rng.random_range(0..6) };
        match sort {
            4 => {
                tracing::info!(host = host.0, "ChunkServer is drained");
                drain(plan, at, true);
                self.later(1_000, 6_000, Repair::Undrain(at));
            }
            0 => {
                tracing::info!(host = host.0, "ChunkServer pauses");
                world::with(|world| world.set_paused(host, true));
                self.later(100, 4_000, Repair::Resume(host));
            }
            1 => {
                tracing::info!(host = host.0, "ChunkServer is stopped");
                stop_cleanly(&cluster.chunks[at], |host| world::with(|world| world.kill(host)));
                self.later(0, 2_000, Repair::StartChunk(at));
            }
            _ => {
                tracing::info!(host = host.0, may_cut, "ChunkServer dies");
                self.stop(host, if may_cut { 3 } else { 1 });
                self.later(100, 6_000, Repair::StartChunk(at));
            }
        }
    }

    /// All ChunkServers lose their power, now and then the MetaServers with them.
    fn blackout(&mut self, plan: &Plan) {
        self.whole = false;
        let chunks = (0..plan.chunks).map(|at| (plan.chunk_host(at), Repair::StartChunk(at)));
        let metas = (0..plan.metas).map(|at| (plan.meta_host(at), Repair::StartMeta(at)));
        let with_metas = self.rng.random_range(0..4) == 0;
        tracing::info!(with_metas, "blackout");
        report::count("blackouts", 1);
        for (host, start) in chunks.chain(metas.filter(|_| with_metas)) {
            if self.may(host, |_| false, usize::MAX) {
                let cut = if self.rng.random() { Cut::All } else { Cut::Torn };
                world::with(|world| world.cut_power(host, cut));
                self.later(100, 1_000 * LONGEST_TROUBLE_S, start);
            }
        }
    }

    fn client(&mut self, _: &mut Cluster, plan: &Plan) {
        let at = self.rng.random_range(0..plan.clients);
        let host = plan.client_host(at);
        if !self.may(host, |_| false, usize::MAX) {
            return;
        }
        if self.rng.random() {
            tracing::info!(host = host.0, "client pauses");
            world::with(|world| world.set_paused(host, true));
            self.later(100, 6_000, Repair::Resume(host));
        } else {
            tracing::info!(host = host.0, "client dies");
            self.stop(host, 2);
            self.later(100, 4_000, Repair::StartClient(at));
        }
    }

    fn net(&mut self, plan: &Plan) {
        self.whole = false;
        let hosts = plan.hosts();
        let one = HostId(self.rng.random_range(1..hosts - 1));
        let both = self.rng.random_range(0..3) > 0;
        tracing::info!(host = one.0, both, "the net is cut");
        let far = self.rng.random_range(0..4) == 0;
        for other in (1..=hosts).map(HostId).filter(|other| *other != one) {
            if plan.is_spared(one) || plan.is_spared(other) {
                continue;
            }
            // From some of the others, or all.
            if self.rng.random_range(0..4) == 0 {
                continue;
            }
            world::with(|world| {
                if far {
                    world.lengthen_way(one, other, 300 * MILLI_NS);
                    world.lengthen_way(other, one, 20 * MILLI_NS);
                } else {
                    world.cut_way(one, other);
                    if both {
                        world.cut_way(other, one);
                    }
                }
            });
        }
        self.later(100, 6_000, Repair::Mend);
    }

    fn disk(&mut self, plan: &Plan) {
        let full = self.rng.random_range(0..3) == 0;
        let host = if full {
            plan.chunk_host(self.rng.random_range(0..plan.chunks))
        } else {
            HostId(self.rng.random_range(1..=plan.metas + plan.chunks))
        };
        if plan.is_spared(host) || !self.may(host, |_| false, usize::MAX) {
            return;
        }
        tracing::info!(host = host.0, full, "disk is full or slow");
        self.whole = false;
        let sync_ns = self.rng.random_range(20..400) * MILLI_NS;
        world::with(
            |world| if full { world.set_disk_full(host, true) } else { world.set_sync_ns(host, sync_ns) },
        );
        self.later(300, 4_000, Repair::Disk(host));
    }
}

fn drain(plan: &Plan, at: usize, draining: bool) {
    admin::ask(plan, Wish::Drain { address: plan.chunk_address(at).to_string(), draining });
}

/// A bit of what a ChunkServer has.
fn flip(rng: &mut StdRng, plan: &Plan, at: usize) {
    let host = plan.chunk_host(at);
    let flipped = world::flip_bit(&plan.directory(host), &CHUNK_MAGICS, rng);
    tracing::info!(host = host.0, ?flipped, "a bit flips");
    report::count("flips", flipped.is_some().into());
}

/// Asks, and ends it by force where it does not end in time.
fn stop_cleanly<T: Clone>(process: &Process<T>, kill: impl Fn(HostId)) {
    process.state.stop();
    for _ in 0..1_000 {
        if process.state.has_ended() {
            break;
        }
        world::sleep_ms(10);
    }
    kill(process.host);
}

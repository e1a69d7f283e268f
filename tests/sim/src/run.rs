//! One run: a cluster is made, works in trouble, and is looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gofs_meta::group::MetaGroup;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::admin;
use crate::cluster::{self, Crew, Process, Seen};
use crate::faults::{Cluster, Faults};
use crate::history::{self, Action, Answer, History, Object};
use crate::invariants;
use crate::plan::{Break, NAMESPACE, Plan};
use crate::report;
use crate::world::{self, MILLI_NS};

/// How often invariants are looked at while the cluster works, milliseconds.
const LOOK_MS: u64 = 5;
/// How long everything may take to end once all faults have ended, milliseconds.
const LIVENESS_MS: u64 = 90_000;
/// How long a cluster may take to begin.
const BEGIN_MS: u64 = 60_000;

/// Makes the world and everything in it; does not return.
pub fn run(plan: Plan) -> ! {
    world::begin(plan.seed, plan.hosts(), plan.sabotage());
    std::panic::set_hook(Box::new(|info| {
        report::violation("panic", &format!("{info}"));
    }));
    let history = History::default();
    let crew = Crew {
        plan: plan.clone(),
        history: history.clone(),
        fresh: Arc::new(AtomicU64::new(1)),
        next_client: Arc::new(AtomicU64::new(0)),
        stop: Arc::new(AtomicBool::new(false)),
    };
    world::with(|world| world.set_weather(plan.weather.clone()));
    let mut cluster = Cluster {
        metas: (0..plan.metas).map(|at| cluster::start_meta(&plan, at)).collect(),
        chunks: (0..plan.chunks).map(|at| cluster::start_chunk(&plan, at)).collect(),
        clients: (0..plan.clients).map(|at| crew.start(at)).collect(),
        crew,
        plan,
        replaced: None,
    };
    let works = |cluster: &Cluster| cluster.clients.iter().all(|client| client.state.running().is_some());
    if wait_until(&cluster, BEGIN_MS, works) {
        trouble(&mut cluster);
        settle(&cluster, &history);
    } else {
        report::violation("liveness", "the cluster does not begin to work");
    }
    report::leave()
}

fn wait_until(cluster: &Cluster, within_ms: u64, done: impl Fn(&Cluster) -> bool) -> bool {
    let end = world::now_ns() + within_ms * MILLI_NS;
    while !done(cluster) {
        if world::now_ns() > end || report::is_violated() {
            return false;
        }
        world::sleep_ms(LOOK_MS);
        look(cluster);
    }
    true
}

/// What holds at any time.
fn look(cluster: &Cluster) {
    let mut held = Vec::new();
    for (at, process) in cluster.clients.iter().enumerate() {
        let Some(client) = process.state.running() else { continue };
        let leases = world::as_host(process.host, || client.valid_leases());
        held.extend(leases.map(|leases| (at, leases)));
    }
    report::expect("exclusive-leases", invariants::exclusive_leases::look(&held));
}

fn running_metas(cluster: &Cluster) -> Vec<Arc<MetaGroup>> {
    let all = cluster.metas.iter().enumerate().filter(|(at, _)| cluster.replaced != Some(*at));
    all.filter_map(|(_, process)| process.state.running()).collect()
}

/// Faults, while the clients work.
fn trouble(cluster: &mut Cluster) {
    let mut rng = StdRng::seed_from_u64(cluster.plan.seed ^ 0x6661_756c);
    let end = world::now_ns() + cluster.plan.troubled_ms * MILLI_NS;
    let every = cluster.plan.fault_every_ms;
    let mut pause = move || rng.random_range(every / 10..=every) * MILLI_NS;
    let mut faults = Faults::new(StdRng::seed_from_u64(cluster.plan.seed ^ 0x6661_696c));
    let mut next = world::now_ns() + pause();
    while world::now_ns() < end && !report::is_violated() {
        world::sleep_ms(LOOK_MS);
        look(cluster);
        faults.repair(cluster, false);
        if world::now_ns() >= next {
            faults.make(cluster);
            next = world::now_ns() + pause();
        }
    }
    faults.repair(cluster, true);
    report::count("faults", faults.made);
}

/// All faults have ended: everything that was begun ends, and what is there is what was promised.
fn settle(cluster: &Cluster, history: &History) {
    world::sleep_ms(1_000);
    cluster.crew.stop.store(true, Ordering::Relaxed);
    let ended = |cluster: &Cluster| cluster.clients.iter().all(|client| client.state.has_ended());
    if !wait_until(cluster, LIVENESS_MS, ended) {
        return describe_waits(cluster);
    }
    let problems = admin::check(&cluster.plan, cluster.plan.blackouts);
    if !wait_until(cluster, LIVENESS_MS, |_| problems.get().is_some_and(|problems| problems.is_empty())) {
        let left = problems.get().unwrap_or_else(|| vec!["nobody answers".to_owned()]);
        report::violation("fsck", &format!("what is not as it should be does not end:\n{}", left.join("\n")));
        return;
    }
    let last: Process<Seen> = cluster.crew.look();
    if !wait_until(cluster, LIVENESS_MS, |_| last.state.has_ended()) {
        report::violation("liveness", "what is there at the end cannot be read");
        return;
    }
    let Some(seen) = last.state.running() else { return };
    judge(cluster, history, &seen);
    let mut groups = running_metas(cluster);
    // One that was to take another's place and was never taken in, because the leader that began to do so is gone, has its own end.
    let newcomer = cluster.plan.meta_address(cluster.plan.metas).to_string();
    let is_in = groups.iter().any(|group| group.voter_addresses().borrow().contains(&newcomer));
    groups.retain(|group| is_in || group.id().0 <= cluster.plan.metas as u64);
    for group in &groups {
        report::expect("quota", invariants::quota::look(group, NAMESPACE));
    }
    let end = world::now_ns() + 20_000 * MILLI_NS;
    while report::expect("same-state", invariants::same_state::look(&groups)) == Some(false) {
        if world::now_ns() > end {
            report::violation("liveness", "MetaServers do not come to the same entry");
            break;
        }
        world::sleep_ms(200);
    }
}

fn describe_waits(cluster: &Cluster) {
    let mut waits = String::new();
    for (at, process) in cluster.clients.iter().enumerate().filter(|(_, client)| !client.state.has_ended()) {
        match process.state.running() {
            Some(client) => waits += &format!("client {at}: {:?}\n", client.stats().waiting),
            None => waits += &format!("client {at} has no session\n"),
        }
    }
    let threads = world::with(|world| world.describe());
    report::violation(
        "liveness",
        &format!("operations do not end although all faults have:\n{waits}{threads}"),
    );
}

fn judge(cluster: &Cluster, history: &History, seen: &Seen) {
    let (mut ops, clean) = history.take();
    report::count("operations", history.returned_count() as u64);
    let syncs = ops.iter().filter(|op| op.action == Action::Sync);
    report::count(
        "failed_syncs",
        syncs.filter(|op| matches!(op.answer, Some((_, Answer::Unknown)))).count() as u64,
    );
    tell_wrong(&mut ops, cluster.plan.broken);
    let standings = history::standings(&ops, &clean, cluster.plan.blackouts);
    report::expect("coherent-names", invariants::coherent_names::look(&ops, &standings));
    report::expect("coherent-blocks", invariants::coherent_blocks::look(&ops, &standings));
    report::expect("exclusive-locks", invariants::exclusive_locks::look(&ops));
    report::expect("inode-numbers", invariants::inode_numbers::look(&ops));
    report::expect("appended", invariants::appended::look(&ops, &standings, &seen.log));
    for (place, left) in seen.numbered.iter().enumerate() {
        report::expect("prefix", invariants::prefix::look(&ops, &standings, place, left));
    }
}

/// For tests of the checkers: the history says what was not so.
fn tell_wrong(ops: &mut [history::Op], broken: Break) {
    match broken {
        Break::Told => {
            let read = ops
                .iter_mut()
                .rev()
                .find(|op| matches!(op.object, Object::Block(..)) && op.action == Action::Read);
            if let Some(read) = read {
                read.answer = read.answer.take().map(|(at, _)| (at, Answer::Value(u64::MAX)));
            }
        }
        Break::Inodes => {
            let mut made = ops.iter_mut().filter(|op| matches!(op.answer, Some((_, Answer::Done(Some(_))))));
            if let (Some(first), Some(second)) = (made.next(), made.next()) {
                second.answer =
                    second.answer.take().zip(first.answer.clone()).map(|((at, _), (_, told))| (at, told));
            }
        }
        Break::Locks => {
            for refused in ops.iter_mut().filter(|op| op.action == Action::Lock) {
                refused.answer = refused.answer.take().map(|(at, _)| (at, Answer::Done(None)));
            }
        }
        _ => {}
    }
}

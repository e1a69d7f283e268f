//! One fault after the other, sometimes two at once, never more than the promises allow; and whether everything heals.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::cluster::Cluster;
use crate::faults::act::{self, Active, Target};
use crate::faults::{Class, Kind};
use crate::options::Options;
use crate::report::Pauses;
use crate::sys;
use crate::watch::{Kind as Operation, Stamp, Watch, show};

/// After the end of a fault every mount answers within this time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// A loss is made good within this time.
const HEAL_TIMEOUT: Duration = Duration::from_secs(180);
/// Pause between two rounds.
const CALM: Duration = Duration::from_secs(2);
/// One round in so many has two faults at once.
const DOUBLE: u32 = 5;

/// See the module.
pub struct Conductor<'a> {
    options: &'a Options,
    cluster: &'a mut Cluster,
    watch: &'a Arc<Watch>,
    rng: StdRng,
    /// How often each kind of fault was on.
    pub faults: BTreeMap<Kind, u64>,
    /// What operations waited for.
    pub pauses: Pauses,
}

impl<'a> Conductor<'a> {
    /// Of a run with this seed.
    pub fn new(options: &'a Options, cluster: &'a mut Cluster, watch: &'a Arc<Watch>, seed: u64) -> Self {
        let (faults, pauses) = (BTreeMap::new(), Pauses::default());
        Conductor { options, cluster, watch, rng: StdRng::seed_from_u64(seed), faults, pauses }
    }

    /// Until the time is over, something does not heal, or somebody interrupts.
    pub fn run(&mut self, kinds: &[Kind]) -> Result<()> {
        let end = Instant::now() + Duration::from_secs_f64(self.options.minutes * 60.0);
        while Instant::now() < end && !sys::interrupted() {
            self.round(kinds)?;
            for mount in 0..self.watch.mounts.len() {
                self.watch.settle(mount);
            }
            self.sleep(CALM);
        }
        Ok(())
    }

    fn round(&mut self, kinds: &[Kind]) -> Result<()> {
        let mut chosen = vec![*kinds.choose(&mut self.rng).expect("some kind was chosen")];
        if self.rng.random_ratio(1, DOUBLE) {
            let first = chosen[0].class();
            let others: Vec<Kind> = kinds
                .iter()
                .copied()
                .filter(|kind| kind.class() != first && kind.class() != Class::Any)
                .collect();
            chosen.extend(others.choose(&mut self.rng));
        }
        for class in chosen.iter().map(|kind| kind.class()).collect::<Vec<_>>() {
            self.ready(class)?;
        }
        let begun = self.watch.now();
        let mut active = Vec::new();
        for kind in &chosen {
            // Where there is no leader this moment the fault is left out.
            let Ok(target) = act::choose(*kind, self.cluster, &mut self.rng) else { continue };
            let duration = kind.duration(Duration::from_secs(self.options.session_s), &mut self.rng);
            if let Target::Client(mount) = target {
                self.watch.begin_trouble(mount);
            }
            let fault = act::begin(*kind, target, self.cluster, &mut self.rng)?;
            self.watch.fault_on(&fault.text);
            println!("{} {} for {:.1} s", show(self.watch.now()), fault.text, duration.as_secs_f64());
            *self.faults.entry(*kind).or_default() += 1;
            active.push((Instant::now() + duration, fault));
        }
        active.sort_by_key(|(until, _)| *until);
        let ended = self.end_all(active, begun)?;
        self.ended_by_themselves();
        if let [(kind, troubled)] = ended.as_slice() {
            self.pauses.add(*kind, *troubled, begun, &self.watch.slow_since(begun));
        }
        Ok(())
    }

    /// Waits for the end of each, mends it, and waits until the mounts answer. What was on, and which mount it concerned.
    fn end_all(
        &mut self,
        active: Vec<(Instant, Active)>,
        begun: Stamp,
    ) -> Result<Vec<(Kind, Option<usize>)>> {
        let mut ended = Vec::new();
        let mut flipped = None;
        for (until, fault) in active {
            while Instant::now() < until && !sys::interrupted() {
                self.sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(200)));
            }
            let (kind, target, text) = (fault.kind, fault.target, fault.text.clone());
            act::end(fault, self.cluster)?;
            println!("{} {text} is over", show(self.watch.now()));
            let troubled = if let Target::Client(mount) = target { Some(mount) } else { None };
            ended.push((kind, troubled));
            self.answers(troubled)?;
            if let Some(mount) = troubled {
                let fenced = self.watch.end_trouble(mount);
                let what = if fenced { "lost its session" } else { "kept its session" };
                println!("{} {} {what}", show(self.watch.now()), self.cluster.clients[mount].name);
            }
            if kind == Kind::ChunkBits {
                flipped = Some(target);
            }
            self.watch.fault_off(&text);
        }
        // Takes longer than what else is on may last.
        if let Some(target) = flipped {
            self.scrubbed(target)?;
        }
        let slow = self.watch.slow_since(begun);
        if let Some(longest) = slow.iter().max_by_key(|slow| slow.ended - slow.begun) {
            println!(
                "{} longest operation {:.3} s: {:?} on mount {}; {} operations so far",
                show(self.watch.now()),
                (longest.ended - longest.begun) as f64 / 1e9,
                longest.kind,
                longest.mount,
                self.watch.total()
            );
        }
        Ok(ended)
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Whether a further fault of this class is within the promises.
    fn ready(&mut self, class: Class) -> Result<()> {
        match class {
            Class::Meta => self.cluster.wait("every MetaServer to be reachable", HEAL_TIMEOUT, |cluster| {
                let status = cluster.ctl_json(&["status"])?;
                let all = status["metas"]
                    .as_array()
                    .is_some_and(|metas| metas.iter().all(|meta| meta["reachable"] == true));
                Ok((all && status["in_grace"] == false).then_some(()))
            }),
            Class::Chunk => self.replicated(),
            Class::Client | Class::Any => Ok(()),
        }
    }

    /// Every chunk has all its replicas, on servers that are there.
    pub fn replicated(&mut self) -> Result<()> {
        let count = self.cluster.chunks.len() as u64;
        self.cluster.wait("all chunks to have all their replicas", HEAL_TIMEOUT, |cluster| {
            let status = cluster.ctl_json(&["status"])?;
            let whole = status["chunks_known"] == true
                && status["chunks_under_replicated"] == 0
                && status["chunks_lost"] == 0
                && status["corrupt_replicas"] == 0
                && status["chunk_servers_alive"].as_u64() >= Some(count);
            if whole { Ok(Some(())) } else { anyhow::bail!("{status}") }
        })
    }

    /// Every mount answers to which nothing is done, and the one that was `troubled`: what it makes is committed.
    fn answers(&mut self, troubled: Option<usize>) -> Result<()> {
        let mounts = 0..self.watch.mounts.len();
        for mount in mounts.filter(|mount| troubled == Some(*mount) || !self.watch.in_trouble(*mount)) {
            let probe = self.watch.path(mount, format!("probe{mount}"));
            let (watch, answer) = (self.watch.clone(), std::sync::mpsc::channel());
            std::thread::spawn(move || {
                sys::own_files().expect("root may do so");
                let probe = || std::fs::File::create(&probe)?.sync_all();
                // The error of a session that ended is told here, too.
                let done = watch.op(mount, Operation::Fsync, probe);
                // Nobody listens any more when it was too late.
                answer.0.send(done.result.map_err(|error| error.to_string())).ok();
            });
            let deadline = Instant::now() + ANSWER_TIMEOUT;
            loop {
                match answer.1.recv_timeout(Duration::from_millis(200)) {
                    Ok(_) => break,
                    Err(_) if Instant::now() > deadline => {
                        let running = self.watch.longest_running(mount);
                        anyhow::bail!(
                            "mount {mount} does not answer {ANSWER_TIMEOUT:?} after the fault; it works on {running:?}"
                        )
                    }
                    Err(_) => anyhow::ensure!(!sys::interrupted(), "interrupted"),
                }
            }
        }
        Ok(())
    }

    /// The scrubber has seen the whole disk twice, so one pass began after now; then everything is whole again.
    fn scrubbed(&mut self, target: Target) -> Result<()> {
        let Target::Chunk(number) = target else { return Ok(()) };
        for _ in 0..2 {
            let before = self.cluster.chunks[number].server.log().matches("scrubbed").count();
            self.cluster.wait("a pass of the scrubber", HEAL_TIMEOUT, |cluster| {
                let passes = cluster.chunks[number].server.log().matches("scrubbed").count();
                Ok((passes > before).then_some(()))
            })?;
        }
        self.replicated()
    }

    /// Processes that ended where nobody told them to.
    fn ended_by_themselves(&mut self) {
        for name in self.cluster.ended() {
            self.watch.violation(format!("{name} ended by itself; its log says why"));
            let nodes = self.cluster.metas.iter_mut().chain(&mut self.cluster.chunks);
            for node in nodes.filter(|node| node.name == name) {
                node.server.kill();
                node.server.restart();
            }
        }
    }
}

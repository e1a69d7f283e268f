//! `gofs-chaos`: real faults on a cluster of real processes, and a checker that would notice.
//!
//! [`sandbox`] is where everything happens, [`cluster`] what breaks, [`faults`] how, [`conductor`] when; [`workload`] is what
//! runs meanwhile and writes down what it was told, and [`check`] judges it by docs/SEMANTICS.md. [`watch`] is what they
//! share.

#![deny(unsafe_code)]

mod check;
mod cluster;
mod conductor;
mod disk;
mod faults;
mod network;
mod options;
mod report;
mod sandbox;
mod sys;
mod tree;
mod watch;
mod workload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use crate::cluster::Cluster;
use crate::conductor::Conductor;
use crate::faults::Kind;
use crate::options::Options;
use crate::watch::Watch;
use crate::workload::Load;

/// The workers end within this time of being told.
const END_TIMEOUT: Duration = Duration::from_secs(120);
/// What fsck sees comes with the heartbeats of ChunkServers.
const FSCK_TIMEOUT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("gofs-chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything was as it must be.
fn run(options: &Options) -> Result<bool> {
    if options.list {
        for kind in Kind::value_variants() {
            let help = kind.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
            println!("{:<15} {}", kind.to_string(), help.unwrap_or_default());
        }
        return Ok(true);
    }
    options.validate()?;
    sandbox::inside(|| run_inside(options))
}

fn run_inside(options: &Options) -> Result<bool> {
    let seed = options.seed.unwrap_or_else(rand::random);
    let dir = directory(options)?;
    println!("seed {seed}; everything is in {}", dir.display());
    let good = break_and_check(options, seed, &dir)?;
    if good && !options.keep {
        // The mounts below it are gone with the cluster.
        std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    } else {
        println!("logs and data are kept in {}; repeat with --seed {seed}", dir.display());
    }
    Ok(good)
}

fn directory(options: &Options) -> Result<PathBuf> {
    let dir = match &options.dir {
        Some(dir) => std::path::absolute(dir)?,
        None => std::env::temp_dir().join(format!("gofs-chaos-{:08x}", rand::random::<u32>())),
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

fn break_and_check(options: &Options, seed: u64, dir: &Path) -> Result<bool> {
    let mut cluster = Cluster::start(options, dir)?;
    let log = |name: &str| dir.join(format!("{name}.log"));
    let mounts = cluster.clients.iter().map(|client| (client.point.clone(), log(&client.name)));
    let watch = Arc::new(Watch::new(mounts));
    let load = Load::start(&watch, seed, options.load)?;
    let kinds = if options.faults.is_empty() { Kind::value_variants() } else { &options.faults };
    let mut conductor = Conductor::new(options, &mut cluster, &watch, seed);
    let broken = conductor.run(kinds);
    let (faults, pauses) = (std::mem::take(&mut conductor.faults), std::mem::take(&mut conductor.pauses));
    let healed = broken.and_then(|()| {
        watch.stop();
        finish(&mut conductor, load, &watch)
    });
    if let Err(error) = healed {
        watch.violation(format!("{error:#}"));
    } else {
        compare(&mut cluster, &watch);
    }
    watch.close();
    print!("{}", report::show(&watch, &faults, &pauses));
    Ok(watch.violations().is_empty() && !sys::interrupted())
}

/// Nothing is broken any more: everything heals, and what the workers know is compared.
fn finish(conductor: &mut Conductor<'_>, load: Load, watch: &Watch) -> Result<()> {
    println!("{} no more faults", watch::show(watch.now()));
    let deadline = std::time::Instant::now() + END_TIMEOUT;
    while load.working() > 0 {
        anyhow::ensure!(
            std::time::Instant::now() < deadline,
            "{} workers do not end; {:?}",
            load.working(),
            (0..watch.mounts.len()).map(|mount| watch.longest_running(mount)).collect::<Vec<_>>()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    load.check(watch);
    conductor.replicated()
}

/// Every mount shows the same tree, and the servers find nothing wrong.
fn compare(cluster: &mut Cluster, watch: &Watch) {
    let trees: Vec<_> = (0..watch.mounts.len()).map(|mount| tree::read(&watch.mounts[mount].point)).collect();
    for (mount, tree) in trees.iter().enumerate() {
        match (tree, &trees[0]) {
            (Ok(tree), Ok(first)) => {
                for difference in tree::differences(first, tree) {
                    watch.violation(format!("mounts 0 and {mount} show different trees: {difference}"));
                }
            }
            (Err(error), _) => watch.violation(format!("the tree on mount {mount} cannot be read: {error}")),
            (Ok(_), Err(_)) => {}
        }
    }
    let checked = cluster
        .wait("gofsctl fsck to find nothing", FSCK_TIMEOUT, |cluster| cluster.ctl(&["fsck"]).map(Some));
    match checked {
        Ok(text) => println!("gofsctl fsck: {}", text.replace('\n', ", ")),
        Err(error) => watch.violation(format!("{error:#}")),
    }
}

//! The whole of gofs in one process, under a seeded scheduler: real servers and clients, simulated time, net and disks.
//!
//! docs/SIMULATION.md says how it works. `gofs-sim run --seed N` is one run; `gofs-sim runs` does many, each in a process of
//! its own.

#![deny(unsafe_op_in_unsafe_fn)]

mod admin;
mod cluster;
mod faults;
mod history;
mod interpose;
mod invariants;
mod linearize;
mod plan;
mod report;
mod run;
mod runs;
mod workload;
mod world;

use clap::{Parser, Subcommand};

use crate::plan::{Break, Plan};

#[derive(Parser)]
#[command(about = "Simulates gofs from seeds", after_help = "Example: gofs-sim runs --seeds 0..1000")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One run; the same seed is the same run. Disks of its hosts are directories of the current one, which must be empty.
    Run {
        /// Which.
        #[arg(long)]
        seed: u64,
        /// Breaks something, to show that it is found.
        #[arg(long = "break", value_enum, default_value_t)]
        broken: Break,
        /// All ChunkServers lose their power at once now and then, not only in some runs.
        #[arg(long)]
        blackouts: bool,
        /// Shows what servers and clients log, at this level.
        #[arg(long)]
        log: Option<String>,
    },
    /// Many runs, one process each.
    Runs(runs::Options),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Run { seed, broken, blackouts, log } => {
            if let Some(log) = log {
                let shown = tracing_subscriber::EnvFilter::try_new(log)?;
                tracing_subscriber::fmt()
                    .with_env_filter(shown)
                    .with_writer(std::io::stderr)
                    .with_ansi(false)
                    .init();
            }
            anyhow::ensure!(
                std::fs::read_dir(".")?.next().is_none(),
                "a run puts its disks into the current directory, and this one is not empty: use `gofs-sim runs`"
            );
            run::run(Plan::new(seed, broken, blackouts))
        }
        Command::Runs(options) => runs::runs(&options),
    }
}

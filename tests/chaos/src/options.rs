//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::faults::Kind;

/// Breaks a gofs cluster of real processes again and again, and checks that nothing acknowledged is lost
#[derive(Clone, Debug, Parser)]
#[command(
    name = "gofs-chaos",
    version,
    after_help = "Exit status 0: nothing was lost, no read was stale, and everything healed. 1: not so; logs and data are kept.

Examples:
  cargo xtask chaos --minutes 10
  cargo xtask chaos --minutes 2 --seed 7 --faults leader-kill,chunk-kill
  cargo xtask chaos --list"
)]
pub struct Options {
    /// How long faults go on, minutes
    #[arg(long, default_value_t = 5.0, value_name = "MINUTES")]
    pub minutes: f64,
    /// Chooses faults and operations [default: a new one, which is printed]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Kinds of faults to choose from, with commas between them [default: all, see --list]
    #[arg(long, value_delimiter = ',', value_name = "KIND,...")]
    pub faults: Vec<Kind>,
    /// Print the kinds of faults and end
    #[arg(long)]
    pub list: bool,
    /// Number of MetaServers
    #[arg(long, default_value_t = 3)]
    pub metas: usize,
    /// Number of ChunkServers
    #[arg(long, default_value_t = 4)]
    pub chunks: usize,
    /// Number of mounts
    #[arg(long, default_value_t = 2)]
    pub clients: usize,
    /// Replicas of each chunk
    #[arg(long, default_value_t = 2)]
    pub replicas: usize,
    /// How often each kind of worker runs on each mount
    #[arg(long, default_value_t = 1)]
    pub load: usize,
    /// Validity of sessions, seconds
    #[arg(long, default_value_t = 20)]
    pub session_s: u64,
    /// Silence after which a ChunkServer is taken for dead, seconds
    #[arg(long, default_value_t = 10)]
    pub dead_after_s: u64,
    /// Time a ChunkServer is dead before its chunks are copied elsewhere, seconds
    #[arg(long, default_value_t = 15)]
    pub repair_after_s: u64,
    /// Entries of the EditLog between two Snapshots
    #[arg(long, default_value_t = 5000)]
    pub snapshot_entries: u64,
    /// Where data, logs and mount points are [default: a new directory below the system's for temporary files]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Keep that directory also when nothing is wrong
    #[arg(long)]
    pub keep: bool,
}

impl Options {
    /// Refuses what cannot work.
    pub fn validate(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.minutes > 0.0 && self.minutes < 24.0 * 60.0,
            "--minutes must be more than 0 and less than 1440, not {}",
            self.minutes
        );
        anyhow::ensure!(matches!(self.metas, 1 | 3 | 5), "--metas must be 1, 3 or 5, not {}", self.metas);
        anyhow::ensure!(
            self.clients >= 2,
            "--clients must be 2 or more: one mount cannot see another's changes"
        );
        anyhow::ensure!(
            self.replicas >= 1 && self.chunks >= self.replicas,
            "--chunks ({}) must be no fewer than --replicas ({})",
            self.chunks,
            self.replicas
        );
        anyhow::ensure!(
            self.metas + self.chunks + self.clients < 250,
            "more than 250 hosts: the network has no addresses for so many"
        );
        anyhow::ensure!((1..=16).contains(&self.load), "--load must be 1 to 16, not {}", self.load);
        Ok(())
    }
}

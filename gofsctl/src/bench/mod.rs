//! `gofsctl bench`: how fast a directory is, in a minute, and beside others.
//!
//! Every step runs in each directory before the next one, so that a noisy moment hits all of them. All work is done
//! below one directory of its own in each, which goes with the command however it ends, short of SIGKILL.

mod report;
mod steps;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::output::Style;
use crate::{size, sys};
use report::Report;
use steps::{STEPS, Site, Step};

/// Room that is left over, bytes.
const SPARE_BYTES: u64 = 64 << 20;

#[derive(Args)]
#[command(after_help = "\
Nothing outside of a new directory .gofs-bench-PID in each DIR is touched, and that is removed at the end, also on Ctrl-C.
Exit status 0 when every step ran in every directory.

Steps: seqwrite, seqread, randread, randwrite, fsync, smallwrite, smallread, and with one thread and with several create,
stat, readdir, rename, unlink. \"Cold\" steps are those that begin with the kernel's pages given up (posix_fadvise), and as
root with drop_caches too; what a daemon keeps in its own memory stays. randread reads no block twice, and past the
kernel's cache (O_DIRECT) where the file system lets it; where not, its number says so.

Examples:
  gofsctl bench /mnt/gofs
  gofsctl bench /mnt/gofs /var/tmp                side by side, in turns
  gofsctl bench /mnt/gofs --only seqwrite,fsync --size 4GiB
  gofsctl bench /mnt/gofs --json | jq '.results[] | select(.name == \"create\")'")]
pub struct BenchArgs {
    /// Where to measure: a mount of gofs, or any directory
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Bytes of the large file
    #[arg(long, default_value = "256MiB", value_parser = size::parse)]
    size: u64,
    /// Small files of each step
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    files: u32,
    /// Threads of the steps with several
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Most that one step takes in one directory; what was done by then counts
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS")]
    seconds: f64,
    /// Only these steps (and what they need), with commas between
    #[arg(long, value_delimiter = ',', value_name = "STEP,...")]
    only: Vec<String>,
}

/// What every step is told.
pub struct Plan {
    size: u64,
    files: u32,
    threads: u32,
    time: Duration,
    stop: Arc<AtomicBool>,
}

impl Plan {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// `gofsctl bench`
pub async fn run(args: BenchArgs, style: Style) -> anyhow::Result<()> {
    let steps = wanted(&args.only)?;
    ensure!(
        args.seconds > 0.0 && args.seconds <= 3600.0,
        "--seconds is {}, but must be more than 0 and at most 3600",
        args.seconds
    );
    ensure!(args.size >= 1 << 20, "--size is {}, but must be at least 1 MiB", size::show(args.size));
    let stop = Arc::new(AtomicBool::new(false));
    let plan = Plan {
        size: args.size,
        files: args.files,
        threads: args.threads,
        time: Duration::from_secs_f64(args.seconds),
        stop: stop.clone(),
    };
    for dir in &args.dirs {
        check_room(dir, &plan)?;
    }
    let (mut interrupt, mut terminate, mut hangup) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let dirs = args.dirs.clone();
    let mut work = tokio::task::spawn_blocking(move || measure(&dirs, &steps, &plan));
    let report = loop {
        tokio::select! {
            done = &mut work => break done.context("the measurement died")??,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        // The step ends at its next operation, and what was made is removed.
        stop.store(true, Ordering::Relaxed);
    };
    report.print(style)?;
    if stop.load(Ordering::Relaxed) {
        bail!("interrupted: the steps after that were not run");
    }
    match report.failures() {
        0 => Ok(()),
        failed => bail!("{failed} steps failed, see above"),
    }
}

/// The steps to run and show; those that make what others need are run in any case.
fn wanted(only: &[String]) -> anyhow::Result<Vec<(&'static Step, bool)>> {
    for name in only {
        if !STEPS.iter().any(|step| step.name == name) {
            let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
            bail!("there is no step {name:?}; there are: {}", names.join(", "));
        }
    }
    let shown = |step: &Step| only.is_empty() || only.iter().any(|name| name == step.name);
    let needed = |step: &Step| STEPS.iter().any(|other| shown(other) && other.needs.contains(&step.name));
    Ok(STEPS.iter().filter(|step| shown(step) || needed(step)).map(|step| (step, shown(step))).collect())
}

fn check_room(dir: &Path, plan: &Plan) -> anyhow::Result<()> {
    let metadata = std::fs::metadata(dir).with_context(|| format!("{} cannot be used", dir.display()))?;
    ensure!(metadata.is_dir(), "{} is not a directory", dir.display());
    let room =
        sys::room(dir).with_context(|| format!("{} does not say how much room it has", dir.display()))?;
    let files = u64::from(plan.files) * 2;
    let bytes = plan.size.saturating_add(files * steps::SMALL_BYTES as u64).saturating_add(SPARE_BYTES);
    ensure!(
        room.bytes >= bytes,
        "{} has room for {}, but {} are needed: give a smaller --size or fewer --files",
        dir.display(),
        size::show(room.bytes),
        size::show(bytes)
    );
    let inodes = files + 64;
    if let Some(free) = room.inodes {
        ensure!(
            free >= inodes,
            "{} has room for {free} files, but {inodes} are needed: give fewer --files",
            dir.display()
        );
    }
    Ok(())
}

/// Everything, in turns. Blocks.
fn measure(dirs: &[PathBuf], steps: &[(&'static Step, bool)], plan: &Plan) -> anyhow::Result<Report> {
    let mut sites = Vec::new();
    for dir in dirs {
        sites.push(Site::new(dir).with_context(|| format!("nothing can be made in {}", dir.display()))?);
    }
    let mut report = Report::new(dirs, plan, sys::is_root());
    let progress = std::io::stderr().is_terminal();
    for (at, (step, shown)) in steps.iter().enumerate() {
        let mut results = Vec::new();
        for site in &mut sites {
            if plan.stopped() {
                break;
            }
            if progress {
                eprint!("\r\x1b[K[{}/{}] {}: {}", at + 1, steps.len(), step.name, site.dir().display());
                std::io::stderr().flush().ok();
            }
            results.push((step.run)(site, plan));
        }
        // One that was cut short in any directory says nothing.
        if plan.stopped() {
            break;
        }
        if *shown || results.iter().any(Result::is_err) {
            report.add(step, results);
        }
    }
    if progress {
        eprint!("\r\x1b[K");
    }
    let left: Vec<String> = sites.into_iter().filter_map(|site| site.remove().err()).collect();
    ensure!(left.is_empty(), "what was made could not be removed: {}", left.join("; "));
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_step_needs_is_run_but_not_shown() {
        let steps = wanted(&["rename".to_owned()]).unwrap();
        let named: Vec<(&str, bool)> = steps.iter().map(|(step, shown)| (step.name, *shown)).collect();
        assert_eq!(named, [("create", false), ("rename", true)]);
        assert_eq!(wanted(&[]).unwrap().len(), STEPS.len());
        assert!(wanted(&["renaming".to_owned()]).err().unwrap().to_string().contains("rename, "));
    }

    #[test]
    fn needs_come_before_those_who_need_them() {
        for (at, step) in STEPS.iter().enumerate() {
            for need in step.needs {
                assert!(STEPS[..at].iter().any(|before| before.name == *need), "{} needs {need}", step.name);
            }
        }
    }
}

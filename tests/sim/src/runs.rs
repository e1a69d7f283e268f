//! Many runs, each in a process and a directory of its own.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};

use crate::plan::Break;

/// Which runs.
#[derive(Args)]
pub struct Options {
    /// `FROM..TO`, the second one not included.
    #[arg(long, conflicts_with = "seed")]
    seeds: Option<String>,
    /// A single one.
    #[arg(long)]
    seed: Option<u64>,
    /// So many from the first.
    #[arg(long)]
    count: Option<u64>,
    /// Runs at the same time; as many as there are processors where not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Breaks something, to show that it is found.
    #[arg(long = "break", value_enum, default_value_t)]
    broken: Break,
    /// All ChunkServers lose their power at once now and then, not only in some runs.
    #[arg(long)]
    blackouts: bool,
    /// Shows what servers and clients log, at this level.
    #[arg(long)]
    log: Option<String>,
    /// Runs each seed twice and compares.
    #[arg(long)]
    twice: bool,
    /// Goes on after a violation.
    #[arg(long)]
    keep_going: bool,
}

/// Longest time of one run, in the time of this machine: what takes longer goes round in circles.
const RUN_PATIENCE: Duration = Duration::from_secs(180);

fn range(options: &Options) -> anyhow::Result<std::ops::Range<u64>> {
    let (from, to) = match (&options.seeds, options.seed) {
        (Some(seeds), _) => {
            let (from, to) = seeds.split_once("..").context("--seeds is FROM..TO, for example 0..1000")?;
            (from.parse()?, to.parse()?)
        }
        (None, Some(seed)) => (seed, seed + 1),
        (None, None) => (0, 100),
    };
    ensure!(from < to, "--seeds {from}..{to} is empty");
    Ok(from..options.count.map_or(to, |count| from + count))
}

struct Ran {
    summary: String,
    violations: Vec<String>,
    log: String,
}

fn run_one(seed: u64, options: &Options, directory: &Path, processor: usize) -> anyhow::Result<Ran> {
    if directory.exists() {
        std::fs::remove_dir_all(directory)?;
    }
    std::fs::create_dir_all(directory)?;
    let broken = options.broken.to_possible_value().context("a break has a name")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["run", "--seed", &seed.to_string(), "--break", broken.get_name()]);
    command.args(options.blackouts.then_some("--blackouts"));
    command.args(options.log.iter().flat_map(|level| ["--log", level]));
    command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::piped());
    let log = directory.with_extension("log");
    let errors = std::fs::File::create(&log)?;
    // One thread runs at a time: no thread needs memory of its own.
    command.stderr(errors).env("RUST_BACKTRACE", "1").env("MALLOC_ARENA_MAX", "1");
    // SAFETY: only system calls between fork and exec.
    unsafe { command.pre_exec(move || settle_process(processor)) };
    let mut child = command.spawn()?;
    let started = Instant::now();
    let timed_out = loop {
        if child.try_wait()?.is_some() {
            break false;
        }
        if started.elapsed() > RUN_PATIENCE {
            child.kill()?;
            break true;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let logged = std::fs::read_to_string(&log).unwrap_or_default();
    std::fs::remove_file(log)?;
    std::fs::remove_dir_all(directory)?;
    let mut violations: Vec<String> =
        text.lines().filter_map(|line| line.strip_prefix("VIOLATION ")).map(str::to_owned).collect();
    if timed_out {
        violations.push(format!("run: it took longer than {} s", RUN_PATIENCE.as_secs()));
    } else if !output.status.success() && violations.is_empty() {
        violations.push(format!("run: it ended with {}: {}", output.status, logged.trim_end()));
    }
    let summary = text.lines().find(|line| line.starts_with("trace=")).unwrap_or_default().to_owned();
    Ok(Ran { summary, violations, log: logged })
}

/// One processor, because only one thread runs at a time and handing over within a processor is cheap; and
/// the same addresses each time.
fn settle_process(processor: usize) -> std::io::Result<()> {
    // SAFETY: plain data, for which zeros are a valid value; the calls have no other arguments than values.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
        libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
    }
    Ok(())
}

fn scratch(job: usize) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    place.join(format!("gofs-sim-{}-{job}", std::process::id()))
}

/// Does them; an error if one found something.
pub fn runs(options: &Options) -> anyhow::Result<()> {
    let seeds = range(options)?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = options.jobs.unwrap_or(processors).clamp(1, 64);
    let (next, found) = (AtomicU64::new(seeds.start), AtomicUsize::new(0));
    let failure = Mutex::new(None);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for job in 0..jobs {
            let (next, found, seeds, failure) = (&next, &found, &seeds, &failure);
            scope.spawn(move || {
                while found.load(Ordering::Relaxed) == 0 || options.keep_going {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    match one_seed(seed, options, &scratch(job), job % processors) {
                        Ok(true) => {}
                        Ok(false) => {
                            found.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => {
                            *failure.lock().expect("nobody panics with it") = Some(error);
                            found.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failure.into_inner().expect("nobody panics with it") {
        return Err(error);
    }
    let done = next.load(Ordering::Relaxed).min(seeds.end) - seeds.start;
    println!("{done} seeds in {:.1} s", started.elapsed().as_secs_f64());
    match found.into_inner() {
        0 => Ok(()),
        found => bail!("{found} of {done} seeds violate an invariant"),
    }
}

fn one_seed(seed: u64, options: &Options, directory: &Path, processor: usize) -> anyhow::Result<bool> {
    let ran = run_one(seed, options, directory, processor)?;
    let mut good = ran.violations.is_empty();
    if options.log.is_some() || options.seed.is_some() {
        eprint!("{}", ran.log);
    }
    println!("seed {seed}: {}", ran.summary);
    for violation in &ran.violations {
        println!("seed {seed}: VIOLATION {violation}");
    }
    if options.twice {
        let again = run_one(seed, options, directory, processor)?;
        if again.summary != ran.summary {
            println!("seed {seed}: VIOLATION determinism: the second time {}", again.summary);
            good = false;
        }
    }
    Ok(good)
}

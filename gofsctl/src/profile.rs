//! `gofsctl profile`: what a mount does, second by second.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use gofs_client::LatencyCounts;
use gofs_fuse::{MountStats, STATS_XATTR};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::output::{Style, table};
use crate::{size, sys};

/// How long the mount may take to answer: a daemon that hangs answers nothing at all.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

#[derive(Args)]
#[command(after_help = "\
Prints until Ctrl-C. Latencies are from the arrival of a request in the daemon to the end of its answer, for round trips from
the request to its reply; they are right within a quarter. WAITED is the part of the requests that could not be answered from
memory. \"Kernel interface\" is the part of the daemon's processor time that its session threads spend inside of the kernel.
With --json each interval is one object on a line of its own.

Examples:
  gofsctl profile /mnt/gofs
  gofsctl profile /mnt/gofs --interval 0.2 --count 50
  gofsctl profile /mnt/gofs --json | jq -c '[.operations.create.per_second, .unsent_edits]'")]
pub struct ProfileArgs {
    /// The mount point, or anything in the mount
    #[arg(value_name = "MOUNT")]
    mount: PathBuf,
    /// Intervals to print; without it, until Ctrl-C
    #[arg(long)]
    count: Option<u64>,
    /// Seconds from one print to the next
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    interval: f64,
}

/// `gofsctl profile`
pub async fn run(args: ProfileArgs, style: Style) -> anyhow::Result<()> {
    ensure!(
        (0.01..=3600.0).contains(&args.interval),
        "--interval is {}, but must be from 0.01 to 3600 seconds",
        args.interval
    );
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut before = read(&args.mount).await?;
    let mut turns = tokio::time::interval(Duration::from_secs_f64(args.interval));
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    turns.tick().await;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = turns.tick() => {}
        }
        let now = read(&args.mount).await?;
        let interval = Interval::between(&before, &now);
        let text = if style.json { format!("{}\n", interval.json()) } else { interval.text() };
        // Whoever reads has seen enough (head, less).
        if std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()).is_err() {
            return Ok(());
        }
        before = now;
        left -= 1;
    }
    Ok(())
}

/// Asks the daemon.
async fn read(mount: &Path) -> anyhow::Result<MountStats> {
    let path = mount.to_owned();
    let name = CString::new(STATS_XATTR)?;
    let asked = tokio::task::spawn_blocking(move || sys::xattr(&path, &name));
    let shown = mount.display();
    let value = match tokio::time::timeout(ANSWER_LIMIT, asked).await {
        Ok(done) => done?,
        Err(_) => bail!("{shown} has not answered for {} s: does its daemon hang?", ANSWER_LIMIT.as_secs()),
    };
    let value = value.map_err(|error| match error.raw_os_error() {
        Some(libc::ENODATA | libc::EOPNOTSUPP | libc::ENOSYS) => anyhow!(
            "{shown} is not on a gofs mount (or on one whose daemon is older than this command): name the directory that a \
             namespace is mounted on; findmnt -t fuse.gofs shows them"
        ),
        Some(libc::ENOTCONN) => {
            anyhow!("the daemon of the mount on {shown} is gone: take it off (umount -l {shown}) and mount again")
        }
        _ => anyhow::Error::new(error).context(format!("{shown} cannot be asked")),
    })?;
    let text = String::from_utf8(value).context("the daemon's answer is not text")?;
    text.parse().with_context(|| {
        format!(
            "the daemon of {shown} and this command do not understand each other: install the same version"
        )
    })
}

/// What happened between two looks.
struct Interval<'a> {
    seconds: f64,
    now: &'a MountStats,
    operations: BTreeMap<&'a str, (LatencyCounts, u64)>,
    round_trips: BTreeMap<&'a str, LatencyCounts>,
    /// Processors that the daemon kept busy.
    busy: f64,
    /// Of that, inside of the kernel on session threads.
    kernel_part: f64,
}

impl<'a> Interval<'a> {
    fn between(before: &MountStats, now: &'a MountStats) -> Interval<'a> {
        let nothing = MountStats::default();
        // A daemon that was started again counts from 0.
        let before = if before.age > now.age { &nothing } else { before };
        let seconds = (now.age - before.age).as_secs_f64().max(1e-6);
        let operations = now.operations.iter().map(|(name, counts)| {
            let earlier = before.operations.get(name);
            let latencies = match earlier {
                Some(earlier) => counts.latencies.since(&earlier.latencies),
                None => counts.latencies.clone(),
            };
            let waited = counts.waited.saturating_sub(earlier.map_or(0, |earlier| earlier.waited));
            (name.as_str(), (latencies, waited))
        });
        let round_trips = now.round_trips.iter().map(|(name, counts)| {
            let since = before.round_trips.get(name).map(|earlier| counts.since(earlier));
            (name.as_str(), since.unwrap_or_else(|| counts.clone()))
        });
        let spent = |of: fn(&gofs_fuse::ProcessorTime) -> Duration| {
            of(&now.processor).saturating_sub(of(&before.processor)).as_secs_f64()
        };
        let (system, user, others) =
            (spent(|time| time.session_system), spent(|time| time.session_user), spent(|time| time.others));
        let total = system + user + others;
        Interval {
            seconds,
            now,
            operations: operations.filter(|(_, (counts, _))| counts.count() > 0).collect(),
            round_trips: round_trips.filter(|(_, counts)| counts.count() > 0).collect(),
            busy: total / seconds,
            kernel_part: if total > 0.0 { system / total } else { 0.0 },
        }
    }

    fn totals(&self) -> (u64, u64) {
        self.operations.values().fold((0, 0), |(all, waited), (counts, waits)| {
            let count = counts.count();
            (all + count, waited + waits.min(&count))
        })
    }

    fn text(&self) -> String {
        let now = self.now;
        let (all, waited) = self.totals();
        let cached = if all > 0 { (all - waited) as f64 / all as f64 } else { 1.0 };
        let server = if now.server.is_empty() { "not connected" } else { &now.server };
        let mut text = format!(
            "{:.0} operations/s, {:.1} % from memory; daemon {:.2} processors, kernel interface {:.0} % of that; {server}\n\
             unflushed {}, {} edits; {} waiting; {} leases, {} open; processors {}",
            all as f64 / self.seconds,
            cached * 100.0,
            self.busy,
            self.kernel_part * 100.0,
            size::show(now.dirty_bytes),
            now.unsent_edits,
            now.waiting,
            now.leases,
            now.opens,
            now.cpu_latency,
        );
        if now.lost_files + now.lost_edits > 0 {
            text.push_str(&format!("; LOST {} files, {} edits", now.lost_files, now.lost_edits));
        }
        text.push('\n');
        let row = |name: &str, counts: &LatencyCounts, waited: Option<u64>| {
            let count = counts.count();
            let part = waited.map(|waited| waited.min(count) as f64 / count as f64 * 100.0);
            vec![
                name.to_owned(),
                format!("{:.0}", count as f64 / self.seconds),
                micros(counts.percentile(0.5)),
                micros(counts.percentile(0.99)),
                micros(counts.max()),
                part.map_or(String::new(), |part| format!("{part:.1} %")),
            ]
        };
        let headings = ["", "per s", "p50 us", "p99 us", "max us", "waited"];
        let operations =
            self.operations.iter().map(|(name, (counts, waited))| row(name, counts, Some(*waited)));
        let trips = self.round_trips.iter().map(|(name, counts)| row(&format!("-> {name}"), counts, None));
        let rows: Vec<Vec<String>> = operations.chain(trips).collect();
        if !rows.is_empty() {
            text.push_str(&table(&headings, &rows));
        }
        text.push('\n');
        text
    }

    fn json(&self) -> Value {
        let latencies = |counts: &LatencyCounts| {
            json!({
                "per_second": counts.count() as f64 / self.seconds, "count": counts.count(),
                "p50_us": counts.percentile(0.5).as_secs_f64() * 1e6,
                "p99_us": counts.percentile(0.99).as_secs_f64() * 1e6,
                "max_us": counts.max().as_secs_f64() * 1e6,
                "sum_us": counts.sum_ns as f64 / 1e3,
            })
        };
        let operations = self.operations.iter().map(|(name, (counts, waited))| {
            let mut value = latencies(counts);
            value["waited"] = json!(waited);
            ((*name).to_owned(), value)
        });
        let trips = self.round_trips.iter().map(|(name, counts)| ((*name).to_owned(), latencies(counts)));
        let (all, waited) = self.totals();
        let now = self.now;
        json!({
            "seconds": self.seconds, "per_second": all as f64 / self.seconds, "from_memory": all - waited,
            "waited": waited, "operations": operations.collect::<serde_json::Map<_, _>>(),
            "round_trips": trips.collect::<serde_json::Map<_, _>>(),
            "processors_busy": self.busy, "kernel_interface_part": self.kernel_part,
            "server": now.server, "cpu_latency": now.cpu_latency, "dirty_bytes": now.dirty_bytes,
            "unsent_edits": now.unsent_edits, "waiting": now.waiting, "leases": now.leases, "opens": now.opens,
            "lost_files": now.lost_files, "lost_edits": now.lost_edits,
        })
    }
}

fn micros(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    if micros >= 100.0 { format!("{micros:.0}") } else { format!("{micros:.1}") }
}

#[cfg(test)]
mod tests {
    use gofs_fuse::OperationCounts;

    use super::*;

    fn stats(age_s: u64, creates: u64, waited: u64) -> MountStats {
        let mut latencies = LatencyCounts::default();
        latencies.buckets[20] = creates;
        let operations = [("create".to_owned(), OperationCounts { waited, latencies })].into();
        MountStats { age: Duration::from_secs(age_s), operations, ..MountStats::default() }
    }

    #[test]
    fn an_interval_is_what_came_between_two_looks() {
        let (before, now) = (stats(10, 100, 5), stats(12, 500, 6));
        let interval = Interval::between(&before, &now).json();
        assert_eq!(interval["operations"]["create"]["per_second"], 200.0);
        assert_eq!((&interval["waited"], &interval["from_memory"]), (&json!(1), &json!(399)));
        assert!(Interval::between(&before, &now).text().contains("200 operations/s, 99.8 % from memory"));
    }

    #[test]
    fn a_daemon_that_was_started_again_counts_from_nothing() {
        let (before, now) = (stats(1000, 100, 5), stats(2, 50, 0));
        assert_eq!(Interval::between(&before, &now).json()["operations"]["create"]["count"], 50);
    }

    #[test]
    fn an_idle_interval_has_no_rows() {
        let (before, now) = (stats(1, 100, 5), stats(2, 100, 5));
        let text = Interval::between(&before, &now).text();
        assert!(text.contains("0 operations/s") && !text.contains("create"), "{text}");
    }
}

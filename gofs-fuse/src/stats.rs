//! What a mount does, for `gofsctl profile`: counted here, read as the extended attribute [`STATS_XATTR`] of any file of
//! the mount.
//!
//! Counts only grow. Who looks reads twice and subtracts, so any number may look at once and nobody disturbs.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gofs_client::{LATENCY_BUCKETS, Latencies, LatencyCounts};

/// The extended attribute; listed nowhere.
pub const STATS_XATTR: &str = "gofs.stats";
/// First line of its value. Another number: lines mean other things.
const MAGIC: &str = "gofs-stats 1";
/// Session threads and the runtime's that answer at once without getting in each other's way.
const SHARDS: usize = 8;

macro_rules! operations {
    ($($name:ident $text:literal,)*) => {
        /// Kinds of requests of the kernel that are answered. FORGET and RELEASEDIR are not counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the names are FUSE's")]
        pub enum Operation { $($name,)* }

        /// Their names, by number.
        const OPERATIONS: &[&str] = &[$($text,)*];
    };
}

operations! {
    Lookup "lookup", GetAttr "getattr", SetAttr "setattr", ReadLink "readlink", StatFs "statfs",
    Create "create", MakeNode "mknod", Link "link", Unlink "unlink", RemoveDir "rmdir", Rename "rename",
    Open "open", Read "read", Write "write", Flush "flush", Release "release", Fsync "fsync",
    Fallocate "fallocate", Seek "lseek", Copy "copy_file_range",
    OpenDir "opendir", ReadDir "readdir", ReadDirPlus "readdirplus", FsyncDir "fsyncdir",
    GetXattr "getxattr", ListXattr "listxattr", SetXattr "setxattr", RemoveXattr "removexattr",
    GetLock "getlk", SetLock "setlk", Unlock "unlock",
}

/// Counts of one mount.
pub struct Stats {
    started: Instant,
    latencies: Latencies,
    waited: [AtomicU64; OPERATIONS.len()],
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            started: Instant::now(),
            latencies: Latencies::new(OPERATIONS.len(), SHARDS),
            waited: [const { AtomicU64::new(0) }; OPERATIONS.len()],
        }
    }
}

impl Stats {
    /// A request that came at `began` is answered.
    pub fn answered(&self, operation: Operation, began: Instant) {
        self.latencies.record(operation as usize, began.elapsed());
    }

    /// A request could not be answered from memory.
    pub fn waited(&self, operation: Operation) {
        self.waited[operation as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What there is so far.
    pub fn operations(&self) -> BTreeMap<String, OperationCounts> {
        let counts = |(number, name): (usize, &&str)| {
            OperationCounts {
                waited: self.waited[number].load(Ordering::Relaxed),
                latencies: self.latencies.counts(number),
            }
            .named(name)
        };
        OPERATIONS.iter().enumerate().map(counts).filter(|(_, counts)| counts.latencies.count() > 0).collect()
    }

    /// Time since the mount began.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }
}

/// What one kind of request came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationCounts {
    /// How many could not be answered from memory.
    pub waited: u64,
    /// From the request's arrival in the daemon to the end of its answer.
    pub latencies: LatencyCounts,
}

impl OperationCounts {
    fn named(self, name: &str) -> (String, OperationCounts) {
        (name.to_owned(), self)
    }
}

/// Processor time of the daemon since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessorTime {
    /// Of the threads that read the kernel's requests: in the kernel, which is the kernel interface's share.
    pub session_system: Duration,
    /// Of these: outside of the kernel.
    pub session_user: Duration,
    /// Of all other threads.
    pub others: Duration,
}

impl ProcessorTime {
    /// What `/proc` has of this process; zeros where it has nothing.
    pub fn now() -> ProcessorTime {
        /// `/proc` counts in hundredths of a second, whatever the kernel's own tick is.
        const TICK: Duration = Duration::from_millis(10);
        let mut time = ProcessorTime::default();
        for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
            let Some((name, user, system)) = task_times(&stat) else { continue };
            if name.starts_with("fuser-") {
                time.session_user += TICK * user;
                time.session_system += TICK * system;
            } else {
                time.others += TICK * (user + system);
            }
        }
        time
    }
}

/// Name, user and system ticks in the text of `/proc/self/task/N/stat` (proc_pid_stat(5)).
fn task_times(stat: &str) -> Option<(&str, u32, u32)> {
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1;
    // The third field follows the name.
    let mut fields = after.split_ascii_whitespace().skip(14 - 3);
    Some((name, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Everything that [`STATS_XATTR`] says, as text and from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountStats {
    /// Time since the mount began.
    pub age: Duration,
    /// The MetaServer in use, empty while there is none.
    pub server: String,
    /// What of processor latency: `held`, `released`, `off`, or why it cannot be held.
    pub cpu_latency: String,
    /// Written bytes that no server has yet.
    pub dirty_bytes: u64,
    /// Changes of the tree that no server has yet.
    pub unsent_edits: u64,
    /// Inodes under a lease.
    pub leases: u64,
    /// Open files and directories.
    pub opens: u64,
    /// Requests that wait for a server now.
    pub waiting: u64,
    /// Files of which written bytes were lost, since the mount.
    pub lost_files: u64,
    /// Changes of the tree that were lost, since the mount.
    pub lost_edits: u64,
    /// Processor time of the daemon.
    pub processor: ProcessorTime,
    /// The kernel's requests by kind.
    pub operations: BTreeMap<String, OperationCounts>,
    /// Round trips to servers by kind of request.
    pub round_trips: BTreeMap<String, LatencyCounts>,
}

impl Display for MountStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{MAGIC}")?;
        writeln!(f, "age_us {}", self.age.as_micros())?;
        writeln!(f, "server {}", self.server)?;
        writeln!(f, "cpu_latency {}", self.cpu_latency)?;
        writeln!(f, "dirty_bytes {}", self.dirty_bytes)?;
        writeln!(f, "unsent_edits {}", self.unsent_edits)?;
        writeln!(f, "leases {}", self.leases)?;
        writeln!(f, "opens {}", self.opens)?;
        writeln!(f, "waiting {}", self.waiting)?;
        writeln!(f, "lost_files {}", self.lost_files)?;
        writeln!(f, "lost_edits {}", self.lost_edits)?;
        writeln!(f, "session_system_us {}", self.processor.session_system.as_micros())?;
        writeln!(f, "session_user_us {}", self.processor.session_user.as_micros())?;
        writeln!(f, "other_threads_us {}", self.processor.others.as_micros())?;
        for (name, counts) in &self.operations {
            writeln!(f, "operation {name} {} {}", counts.waited, Counts(&counts.latencies))?;
        }
        for (name, counts) in &self.round_trips {
            writeln!(f, "round_trip {name} {}", Counts(counts))?;
        }
        Ok(())
    }
}

/// Sum in nanoseconds, then `BUCKET:COUNT` where the count is not 0.
struct Counts<'a>(&'a LatencyCounts);

impl Display for Counts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.sum_ns)?;
        for (bucket, count) in self.0.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            write!(f, " {bucket}:{count}")?;
        }
        Ok(())
    }
}

/// Text that is no [`MountStats`], and the line that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not understood: {line:?}")]
pub struct StatsError {
    line: String,
}

impl FromStr for MountStats {
    type Err = StatsError;

    /// Lines of an unknown name are of a newer daemon, and left out.
    fn from_str(text: &str) -> Result<Self, StatsError> {
        let mut lines = text.lines().filter(|line| !line.is_empty());
        let first = lines.next().unwrap_or_default();
        let wrong = |line: &str| StatsError { line: line.to_owned() };
        if first != MAGIC {
            return Err(wrong(first));
        }
        let mut stats = MountStats::default();
        for line in lines {
            stats.take(line).ok_or_else(|| wrong(line))?;
        }
        Ok(stats)
    }
}

impl MountStats {
    fn take(&mut self, line: &str) -> Option<()> {
        let (name, value) = line.split_once(' ')?;
        let number = || value.parse::<u64>().ok();
        let time = || number().map(Duration::from_micros);
        match name {
            "age_us" => self.age = time()?,
            "server" => self.server = value.to_owned(),
            "cpu_latency" => self.cpu_latency = value.to_owned(),
            "dirty_bytes" => self.dirty_bytes = number()?,
            "unsent_edits" => self.unsent_edits = number()?,
            "leases" => self.leases = number()?,
            "opens" => self.opens = number()?,
            "waiting" => self.waiting = number()?,
            "lost_files" => self.lost_files = number()?,
            "lost_edits" => self.lost_edits = number()?,
            "session_system_us" => self.processor.session_system = time()?,
            "session_user_us" => self.processor.session_user = time()?,
            "other_threads_us" => self.processor.others = time()?,
            "operation" => {
                let (kind, rest) = value.split_once(' ')?;
                let (waited, rest) = rest.split_once(' ')?;
                let latencies = counts(rest)?;
                let counts = OperationCounts { waited: waited.parse().ok()?, latencies };
                self.operations.insert(kind.to_owned(), counts);
            }
            "round_trip" => {
                let (kind, rest) = value.split_once(' ')?;
                self.round_trips.insert(kind.to_owned(), counts(rest)?);
            }
            _ => {}
        }
        Some(())
    }
}

fn counts(text: &str) -> Option<LatencyCounts> {
    let mut counts = LatencyCounts::default();
    let mut parts = text.split_ascii_whitespace();
    counts.sum_ns = parts.next()?.parse().ok()?;
    for part in parts {
        let (bucket, count) = part.split_once(':')?;
        let bucket: usize = bucket.parse().ok().filter(|bucket| *bucket < LATENCY_BUCKETS)?;
        counts.buckets[bucket] = count.parse().ok()?;
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_what_is_read() {
        let stats = Stats::default();
        stats.answered(Operation::Lookup, Instant::now());
        stats.answered(Operation::Unlock, Instant::now());
        stats.waited(Operation::Unlock);
        let told = MountStats {
            age: Duration::from_millis(5),
            server: "meta:7460".to_owned(),
            cpu_latency: "cannot be held: permission denied".to_owned(),
            dirty_bytes: 1,
            unsent_edits: 2,
            leases: 3,
            opens: 4,
            waiting: 5,
            lost_files: 6,
            lost_edits: 7,
            processor: ProcessorTime {
                session_system: Duration::from_millis(10),
                session_user: Duration::from_millis(20),
                others: Duration::from_millis(30),
            },
            round_trips: [("session.Batch".to_owned(), stats.operations()["lookup"].latencies.clone())]
                .into(),
            operations: stats.operations(),
        };
        assert_eq!(told.operations["unlock"].waited, 1);
        assert_eq!(told.to_string().parse(), Ok(told));
    }

    #[test]
    fn the_largest_there_can_be_fits_into_an_attribute() {
        let latencies = LatencyCounts { sum_ns: u64::MAX, buckets: [1_000_000; LATENCY_BUCKETS] };
        let counts = OperationCounts { waited: u64::MAX, latencies: latencies.clone() };
        // Latencies of one kind spread over a factor of a million at most: half of the buckets.
        let mut half = counts.clone();
        half.latencies.buckets[LATENCY_BUCKETS / 2..].fill(0);
        let stats = MountStats {
            operations: OPERATIONS.iter().map(|name| half.clone().named(name)).collect(),
            round_trips: (0..22).map(|at| (format!("session.Kind{at}"), half.latencies.clone())).collect(),
            ..MountStats::default()
        };
        assert!(stats.to_string().len() < gofs_tree::XATTR_VALUE_MAX, "{}", stats.to_string().len());
    }

    #[test]
    fn nonsense_is_refused_and_what_is_new_is_left_out() {
        assert!("".parse::<MountStats>().is_err());
        assert!("gofs-stats 2\n".parse::<MountStats>().is_err());
        assert!("gofs-stats 1\ndirty_bytes x\n".parse::<MountStats>().is_err());
        assert!("gofs-stats 1\noperation read 0 1 500:1\n".parse::<MountStats>().is_err());
        assert_eq!("gofs-stats 1\nnew 1 2 3\n".parse(), Ok(MountStats::default()));
    }

    #[test]
    fn times_of_a_task_are_found_whatever_it_is_called() {
        let stat = "12 (a) (b) S 1 2 3 4 -1 5 6 7 8 9 41 42 0 0 20 0 1 0";
        assert_eq!(task_times(stat), Some(("a) (b", 41, 42)));
        assert_eq!(task_times("12"), None);
        // Some time has gone by since the process began.
        let now = ProcessorTime::now();
        assert_eq!(now.session_user, Duration::ZERO);
    }
}

//! What is measured. A step works on one directory and says how fast that was.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Plan;
use crate::sys;

/// Bytes of a small file, and of a random read or write.
pub const SMALL_BYTES: usize = 4096;
/// Bytes of a sequential read or write.
const LARGE_BYTES: usize = 1 << 20;
/// What a renamed file's name ends with.
const RENAMED: &str = "renamed";
/// Most blocks that are read at random, each once: what is left of a larger file is not looked at.
const RANDOM_READS_MAX: u64 = 1 << 22;
/// Most writes with fsync.
const FSYNCS_MAX: usize = 2000;

/// One number of a step.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// What follows the step's name; empty where there is only one.
    pub suffix: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// The number.
    pub value: f64,
    /// Whether less is better.
    pub is_time: bool,
    /// What to know of this directory's number; mostly empty.
    pub note: &'static str,
}

/// A step, its name and what has to be there for it.
pub struct Step {
    /// See `gofsctl bench --help`.
    pub name: &'static str,
    /// Steps that make what it uses.
    pub needs: &'static [&'static str],
    /// Whether it begins with cold caches.
    pub cold: bool,
    /// Does it.
    pub run: fn(&mut Site, &Plan) -> io::Result<Vec<Figure>>,
}

/// The order is that in which they run.
pub const STEPS: &[Step] = &[
    Step { name: "seqwrite", needs: &[], cold: false, run: seqwrite },
    Step { name: "seqread", needs: &["seqwrite"], cold: true, run: seqread },
    Step { name: "randread", needs: &["seqwrite"], cold: true, run: randread },
    Step { name: "randwrite", needs: &["seqwrite"], cold: false, run: randwrite },
    Step { name: "fsync", needs: &[], cold: false, run: fsync },
    Step { name: "smallwrite", needs: &[], cold: false, run: smallwrite },
    Step { name: "smallread", needs: &["smallwrite"], cold: true, run: smallread },
    Step { name: "create", needs: &[], cold: false, run: |site, plan| create(site, plan, 1) },
    Step { name: "stat", needs: &["create"], cold: true, run: stat },
    Step { name: "readdir", needs: &["create"], cold: true, run: readdir },
    Step { name: "rename", needs: &["create"], cold: false, run: rename },
    Step { name: "unlink", needs: &["create"], cold: false, run: unlink },
    Step {
        name: "create-threads",
        needs: &[],
        cold: false,
        run: |site, plan| create(site, plan, plan.threads),
    },
    Step { name: "stat-threads", needs: &["create-threads"], cold: true, run: stat },
    Step { name: "rename-threads", needs: &["create-threads"], cold: false, run: rename },
    Step { name: "unlink-threads", needs: &["create-threads"], cold: false, run: unlink },
];

/// A directory that is measured, and what was made in it. Dropping it removes that.
pub struct Site {
    dir: PathBuf,
    scratch: PathBuf,
    /// Bytes of the large file.
    large_bytes: u64,
    small_files: u64,
    /// Files by thread, and how many of these were renamed, from the first.
    made: Vec<u64>,
    renamed: Vec<u64>,
    removed: bool,
}

impl Site {
    /// Makes a directory of its own in `dir`.
    pub fn new(dir: &Path) -> io::Result<Site> {
        let scratch = dir.join(format!(".gofs-bench-{}", std::process::id()));
        fs::create_dir(&scratch)?;
        Ok(Site {
            dir: dir.to_owned(),
            scratch,
            large_bytes: 0,
            small_files: 0,
            made: Vec::new(),
            renamed: Vec::new(),
            removed: false,
        })
    }

    /// The directory that is measured.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes what was made, or says what could not be.
    pub fn remove(mut self) -> Result<(), String> {
        self.removed = true;
        fs::remove_dir_all(&self.scratch).map_err(|error| format!("{}: {error}", self.scratch.display()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// The file that a thread made.
    fn file(&self, thread: usize, at: u64) -> PathBuf {
        let path = self.scratch.join(format!("t{thread}/{at}"));
        if at < self.renamed[thread] { path.with_extension(RENAMED) } else { path }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if !self.removed {
            // Only after a failure that is reported already.
            fs::remove_dir_all(&self.scratch).ok();
        }
    }
}

/// Time that a step has.
struct Clock<'a> {
    plan: &'a Plan,
    started: Instant,
}

impl<'a> Clock<'a> {
    fn start(plan: &'a Plan) -> Self {
        Clock { plan, started: Instant::now() }
    }

    fn goes_on(&self) -> bool {
        !self.plan.stopped() && self.started.elapsed() < self.plan.time
    }

    fn per_second(&self, count: f64) -> f64 {
        count / self.started.elapsed().as_secs_f64().max(1e-9)
    }
}

fn figure(unit: &'static str, value: f64) -> Vec<Figure> {
    vec![Figure { suffix: "", unit, value, is_time: false, note: "" }]
}

/// Numbers that follow one another without a pattern (splitmix64, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Bytes that nothing compresses.
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length.div_ceil(8)).flat_map(|_| self.next().to_ne_bytes()).take(length).collect()
    }

    /// All of 0 to `count` - 1, shuffled (Fisher and Yates).
    fn order(&mut self, count: u64) -> Vec<u64> {
        let mut order: Vec<u64> = (0..count).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, (self.next() % (at as u64 + 1)) as usize);
        }
        order
    }
}

/// Empties the kernel's caches as far as this user may.
fn make_cold(file: Option<&File>) -> io::Result<()> {
    if let Some(file) = file {
        sys::drop_pages(file)?;
    }
    if sys::is_root() {
        fs::write("/proc/sys/vm/drop_caches", "3").ok();
    }
    Ok(())
}

fn seqwrite(site: &mut Site, plan: &Plan) -> io::Result<Vec<Figure>> {
    let block = Random(1).bytes(LARGE_BYTES);
    let mut file = File::create(site.path("large"))?;
    site.large_bytes = 0;
    let clock = Clock::start(plan);
    while site.large_bytes < plan.size && clock.goes_on() {
        let length = (plan.size - site.large_bytes).min(LARGE_BYTES as u64);
        file.write_all(&block[..length as usize])?;
        site.large_bytes += length;
    }
    file.sync_all()?;
    Ok(figure("MiB/s", clock.per_second(site.large_bytes as f64 / LARGE_BYTES as f64)))
}

fn seqread(site: &mut Site, plan: &Plan) -> io::Result<Vec<Figure>> {
    let mut file = File::open(site.path("large"))?;
    make_cold(Some(&file))?;
    let mut block = vec![0; LARGE_BYTES];
    let mut bytes = 0;
    let clock = Clock::start(plan);
    while clock.goes_on() {
        match file.read(&mut block)? {
            0 => break,
            length => bytes += length,
        }
    }
    Ok(figure("MiB/s", clock.per_second(bytes as f64 / LARGE_BYTES as f64)))
}

/// Offsets of whole blocks of the large file.
fn offset(random: &mut Random, bytes: u64) -> u64 {
    let small = SMALL_BYTES as u64;
    random.next() % (bytes / small).max(1) * small
}

/// Opens a file past the kernel's cache, and reads a block to see that this works; `None` where it does not.
fn open_direct(path: &Path) -> io::Result<Option<File>> {
    let opened = File::options().read(true).custom_flags(libc::O_DIRECT).open(path).and_then(|file| {
        file.read_at(AlignedBlock::new().bytes(), 0)?;
        Ok(file)
    });
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Room for a small block at an address that O_DIRECT takes.
struct AlignedBlock(Vec<u8>);

impl AlignedBlock {
    fn new() -> Self {
        AlignedBlock(vec![0; 2 * SMALL_BYTES])
    }

    fn bytes(&mut self) -> &mut [u8] {
        let at = self.0.as_ptr().align_offset(SMALL_BYTES);
        &mut self.0[at..at + SMALL_BYTES]
    }
}

/// No block twice: the second time it would come out of some cache.
fn randread(site: &mut Site, plan: &Plan) -> io::Result<Vec<Figure>> {
    let path = site.path("large");
    let cached = File::open(&path)?;
    make_cold(Some(&cached))?;
    let (file, note) = match open_direct(&path)? {
        Some(direct) => (direct, ""),
        None => {
            sys::no_readahead(&cached)?;
            (cached, "through the page cache: no O_DIRECT here")
        }
    };
    let blocks = site.large_bytes / SMALL_BYTES as u64;
    let order = Random(1).order(blocks.min(RANDOM_READS_MAX));
    let next = AtomicUsize::new(0);
    let done = AtomicU64::new(0);
    let clock = Clock::start(plan);
    in_threads(plan.threads, |_| {
        let mut block = AlignedBlock::new();
        while clock.goes_on()
            && let Some(at) = order.get(next.fetch_add(1, Ordering::Relaxed))
        {
            file.read_exact_at(block.bytes(), at * SMALL_BYTES as u64)?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })?;
    let value = clock.per_second(done.into_inner() as f64);
    Ok(vec![Figure { suffix: "", unit: "reads/s", value, is_time: false, note }])
}

fn randwrite(site: &mut Site, plan: &Plan) -> io::Result<Vec<Figure>> {
    let file = File::options().write(true).open(site.path("large"))?;
    let mut random = Random(2);
    let block = random.bytes(SMALL_BYTES);
    let mut done = 0_u64;
    let clock = Clock::start(plan);
    while clock.goes_on() {
        file.write_all_at(&block, offset(&mut random, site.large_bytes))?;
        done += 1;
    }
    file.sync_all()?;
    Ok(figure("writes/s", clock.per_second(done as f64)))
}

fn fsync(site: &mut Site, plan: &Plan) -> io::Result<Vec<Figure>> {
    let block = Random(3).bytes(SMALL_BYTES);
    let mut file = File::create(site.path("synced"))?;
    let mut times = Vec::new();
    let clock = Clock::start(plan);
    while times.len() < FSYNCS_MAX && clock.goes_on() {
        let started = Instant::now();
        file.write_all(&block)?;
        file.sync_all()?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    let part = |part: f64| {
        let at = ((times.len() as f64 * part).ceil() as usize).clamp(1, times.len().max(1)) - 1;
        times.get(at).copied().unwrap_or(Duration::ZERO).as_secs_f64() * 1e3
    };
    let time = |suffix, value| Figure { suffix, unit: "ms", value, is_time: true, note: "" };
    Ok(vec![time(" p50", part(0.5)), time(" p99", part(0.99))])
}

fn smallwrite(site: &mut Site, plan: &Plan) -> io::Result<Vec<Figure>> {
    let block = Random(4).bytes(SMALL_BYTES);
    fs::create_dir(site.path("small"))?;
    let clock = Clock::start(plan);
    while site.small_files < plan.files.into() && clock.goes_on() {
        fs::write(site.path(&format!("small/{}", site.small_files)), &block)?;
        site.small_files += 1;
    }
    Ok(figure("files/s", clock.per_second(site.small_files as f64)))
}

fn smallread(site: &mut Site, plan: &Plan) -> io::Result<Vec<Figure>> {
    let order = Random(5).order(site.small_files);
    for at in &order {
        let file = File::open(site.path(&format!("small/{at}")))?;
        // Dirty pages are not given up.
        file.sync_data()?;
        sys::drop_pages(&file)?;
        if plan.stopped() {
            break;
        }
    }
    make_cold(None)?;
    let mut done = 0_u64;
    let mut block = Vec::with_capacity(SMALL_BYTES);
    let clock = Clock::start(plan);
    for at in order {
        if !clock.goes_on() {
            break;
        }
        block.clear();
        File::open(site.path(&format!("small/{at}")))?.read_to_end(&mut block)?;
        done += 1;
    }
    Ok(figure("files/s", clock.per_second(done as f64)))
}

/// Does `work` in as many threads, told their number; the first error of any.
fn in_threads(threads: u32, work: impl Fn(usize) -> io::Result<()> + Sync) -> io::Result<()> {
    if threads == 1 {
        return work(0);
    }
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..threads as usize).map(|thread| scope.spawn(move || work(thread))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn create(site: &mut Site, plan: &Plan, threads: u32) -> io::Result<Vec<Figure>> {
    for (thread, _) in site.made.iter().enumerate() {
        fs::remove_dir_all(site.path(&format!("t{thread}")))?;
    }
    site.made.clear();
    site.renamed = vec![0; threads as usize];
    let each = u64::from(plan.files.div_ceil(threads));
    for thread in 0..threads {
        fs::create_dir(site.path(&format!("t{thread}")))?;
    }
    let counts: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
    let clock = Clock::start(plan);
    let this = &*site;
    let result = in_threads(threads, |thread| {
        for at in 0..each {
            if !clock.goes_on() {
                break;
            }
            File::create_new(this.file(thread, at))?;
            counts[thread].store(at + 1, Ordering::Relaxed);
        }
        Ok(())
    });
    let rate = |counts: &[u64]| clock.per_second(counts.iter().sum::<u64>() as f64);
    site.made = counts.into_iter().map(AtomicU64::into_inner).collect();
    result?;
    Ok(figure("files/s", rate(&site.made)))
}

/// Does `work` to the files that were made, each thread in its own directory and in the order that it is given: how many a
/// second, and how many by thread.
fn each_file(
    site: &Site,
    plan: &Plan,
    order: impl Fn(u64) -> Vec<u64> + Sync,
    work: impl Fn(&Path) -> io::Result<()> + Sync,
) -> io::Result<(f64, Vec<u64>)> {
    let orders: Vec<Vec<u64>> = site.made.iter().map(|made| order(*made)).collect();
    let done: Vec<AtomicU64> = orders.iter().map(|_| AtomicU64::new(0)).collect();
    let clock = Clock::start(plan);
    in_threads(orders.len() as u32, |thread| {
        for at in &orders[thread] {
            if !clock.goes_on() {
                break;
            }
            work(&site.file(thread, *at))?;
            done[thread].fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })?;
    let done: Vec<u64> = done.into_iter().map(AtomicU64::into_inner).collect();
    Ok((clock.per_second(done.iter().sum::<u64>() as f64), done))
}

fn in_order(count: u64) -> Vec<u64> {
    (0..count).collect()
}

fn stat(site: &mut Site, plan: &Plan) -> io::Result<Vec<Figure>> {
    make_cold(None)?;
    let shuffled = |count| Random(6).order(count);
    let (rate, _) = each_file(site, plan, shuffled, |path| fs::symlink_metadata(path).map(drop))?;
    Ok(figure("files/s", rate))
}

fn readdir(site: &mut Site, plan: &Plan) -> io::Result<Vec<Figure>> {
    make_cold(None)?;
    let mut done = 0_u64;
    let clock = Clock::start(plan);
    for entry in fs::read_dir(site.path("t0"))? {
        if !clock.goes_on() {
            break;
        }
        entry?.metadata()?;
        done += 1;
    }
    Ok(figure("entries/s", clock.per_second(done as f64)))
}

fn rename(site: &mut Site, plan: &Plan) -> io::Result<Vec<Figure>> {
    let (rate, done) =
        each_file(site, plan, in_order, |path| fs::rename(path, path.with_extension(RENAMED)))?;
    site.renamed = done;
    Ok(figure("files/s", rate))
}

fn unlink(site: &mut Site, plan: &Plan) -> io::Result<Vec<Figure>> {
    let (rate, _) = each_file(site, plan, in_order, |path| fs::remove_file(path))?;
    Ok(figure("files/s", rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_every_number_once() {
        let mut order = Random(7).order(1000);
        assert_ne!(order, in_order(1000));
        order.sort_unstable();
        assert_eq!(order, in_order(1000));
        assert_eq!(Random(7).order(0), Vec::<u64>::new());
    }

    #[test]
    fn a_block_is_aligned_and_whole() {
        for _ in 0..20 {
            let mut block = AlignedBlock::new();
            let bytes = block.bytes();
            assert_eq!((bytes.len(), bytes.as_ptr().align_offset(SMALL_BYTES)), (SMALL_BYTES, 0));
        }
    }

    #[test]
    fn random_bytes_are_as_many_as_asked_for() {
        for length in [0, 1, 7, 8, 4096] {
            assert_eq!(Random(1).bytes(length).len(), length);
        }
    }
}

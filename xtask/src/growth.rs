//! What an operation costs, and how much memory gofs takes, as a namespace and a directory grow: a measurement, not a test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

/// Files in each directory of the growing namespace.
const PER_DIRECTORY: usize = 1000;
/// Sizes of the namespace, and of one directory, at which is measured.
const NAMESPACE: [usize; 5] = [10_000, 100_000, 300_000, 600_000, 1_000_000];
const DIRECTORY: [usize; 4] = [100, 1_000, 10_000, 100_000];
/// Operations of each kind in a measurement, and measurements, of which the median counts.
const OPERATIONS: usize = 1000;
const TIMES: usize = 5;

/// Grows a tree below `root`, on a mount, and prints a table as it goes on.
pub fn run(root: &Path) -> Result<()> {
    let root = root.join(format!("growth.{}", std::process::id()));
    fs::create_dir(&root).with_context(|| format!("making {}", root.display()))?;
    println!("| files | create/s | stat/s | random stat/s | unlink/s | resident, MiB |");
    println!("| --- | ---: | ---: | ---: | ---: | --- |");
    grow_namespace(&root)?;
    println!("\n| files in the directory | create/s | stat/s | random stat/s | unlink/s | resident, MiB |");
    println!("| --- | ---: | ---: | ---: | ---: | --- |");
    grow_directory(&root)?;
    fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))
}

fn grow_namespace(root: &Path) -> Result<()> {
    let mut files = 0;
    for size in NAMESPACE {
        while files < size {
            let dir = root.join(format!("d{}", files / PER_DIRECTORY));
            fs::create_dir(&dir)?;
            make(&dir, "f", 0..PER_DIRECTORY)?;
            files += PER_DIRECTORY;
        }
        let side = root.join("measured");
        fs::create_dir(&side)?;
        measure(size, &side, |number| {
            root.join(format!("d{}/f{}", number / PER_DIRECTORY, number % PER_DIRECTORY))
        })?;
        fs::remove_dir(&side)?;
    }
    Ok(())
}

fn grow_directory(root: &Path) -> Result<()> {
    let dir = root.join("large");
    fs::create_dir(&dir)?;
    let mut files = 0;
    for size in DIRECTORY {
        make(&dir, "f", files..size)?;
        files = size;
        measure(size, &dir, |number| dir.join(format!("f{number}")))?;
    }
    Ok(())
}

fn make(dir: &Path, prefix: &str, numbers: std::ops::Range<usize>) -> Result<()> {
    for number in numbers {
        let path = dir.join(format!("{prefix}{number}"));
        File::create_new(&path).with_context(|| format!("making {}", path.display()))?;
    }
    Ok(())
}

/// Prints a line: files are made in `dir`, looked at and removed, and of `size` files, which `path` names, some at random.
fn measure(size: usize, dir: &Path, path: impl Fn(usize) -> PathBuf) -> Result<()> {
    let mut rates = [const { Vec::new() }; 4];
    // Fixed, so that two runs look at the same files.
    let mut random = 1_u64;
    for _ in 0..TIMES {
        let new = |number| dir.join(format!("new{number}"));
        let look = |path: &Path| fs::symlink_metadata(path).map(|_| ()).map_err(anyhow::Error::from);
        rates[0].push(rate(|_| make(dir, "new", 0..OPERATIONS), 1)?);
        rates[1].push(rate(|number| look(&new(number)), OPERATIONS)?);
        let mut any = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            path((random >> 33) as usize % size)
        };
        rates[2].push(rate(|_| look(&any()), OPERATIONS)?);
        rates[3].push(rate(|number| fs::remove_file(new(number)).map_err(Into::into), OPERATIONS)?);
    }
    let medians = rates.map(|mut rates: Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        format!("{:.0}", rates[TIMES / 2])
    });
    println!("| {size} | {} | {} |", medians.join(" | "), resident()?);
    Ok(())
}

/// [`OPERATIONS`] divided by the seconds that so many calls of `work` take.
fn rate(mut work: impl FnMut(usize) -> Result<()>, calls: usize) -> Result<f64> {
    let start = Instant::now();
    for number in 0..calls {
        work(number)?;
    }
    Ok(OPERATIONS as f64 / start.elapsed().as_secs_f64())
}

/// Memory of every gofs process on this host, by name.
fn resident() -> Result<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        // One that ends meanwhile, or is none.
        let Ok(status) = fs::read_to_string(process.join("status")) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let (Some(name), Some(resident)) = (field("Name:"), field("VmRSS:")) else { continue };
        if name.starts_with("gofs-") {
            let kib: u64 = resident.trim_end_matches(" kB").parse().context("VmRSS of /proc")?;
            found.push(format!("{name} {}", kib >> 10));
        }
    }
    found.sort();
    Ok(found.join(", "))
}

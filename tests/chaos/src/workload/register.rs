//! Numbers that all mounts write and read: in small files, in chunks, as whole files put in place of others, as times and
//! as extended attributes. No read may be stale.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use gofs_posix_tests::posix;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Check, Worker, pause};
use crate::check::register::{self, Entry, What};
use crate::watch::{Kind, Stamp, Watch};

const ATTRIBUTE: &str = "user.register";
/// The chunks' register lies in the middle of a file of this size, bytes.
const CHUNKED: u64 = 3 << 20;
const REGISTERS: usize = 10;

/// Where the number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At the beginning of a small file.
    Inline,
    /// In a chunk.
    Chunk,
    /// In a small file that takes the name of the one before.
    Replaced,
    /// The time of the last change, seconds.
    Time,
    /// An extended attribute.
    Attribute,
}

const PLACES: [Place; 5] = [Place::Inline, Place::Chunk, Place::Replaced, Place::Time, Place::Attribute];

/// What all workers on registers share.
pub struct Shared(Arc<Histories>);

struct Histories {
    next: AtomicU64,
    histories: Vec<Mutex<Vec<Entry>>>,
}

/// What is done when an error is told that is of what was done before.
const SYNCING: &str = "syncing";
/// So long after the end of a session a register that was written under it has been synced again.
const OWED_NS: Stamp = 60_000_000_000;

struct Registers {
    watch: Arc<Watch>,
    mount: usize,
    rng: StdRng,
    shared: Arc<Histories>,
    /// Files that stay open for reading: what the kernel has cached of them is not asked for.
    open: Vec<Option<File>>,
}

fn place(register: usize) -> Place {
    PLACES[register % PLACES.len()]
}

fn name(register: usize) -> String {
    format!("registers/{register}")
}

/// A number with its check, so that half of one is noticed.
fn encode(value: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes[8..].copy_from_slice(&mixed(value).to_le_bytes());
    bytes
}

fn mixed(value: u64) -> u64 {
    (value ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn decode(bytes: &[u8]) -> io::Result<u64> {
    let word = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    match (word(0), word(8)) {
        (Some(value), Some(check)) if check == mixed(value) => Ok(value),
        _ => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("no number was written as {bytes:02x?}")))
        }
    }
}

impl Shared {
    /// Makes the files, each with the number 0.
    pub fn new(watch: &Watch) -> anyhow::Result<Shared> {
        let dir = watch.path(0, "registers");
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        for register in 0..REGISTERS {
            let path = watch.path(0, name(register));
            let make = || -> io::Result<()> {
                let file = File::create_new(&path)?;
                match place(register) {
                    Place::Chunk => {
                        file.set_len(CHUNKED)?;
                        file.write_all_at(&encode(0), CHUNKED / 2)?;
                    }
                    Place::Inline | Place::Replaced => file.write_all_at(&encode(0), 0)?,
                    Place::Time => file.set_modified(UNIX_EPOCH)?,
                    Place::Attribute => posix::set_xattr(&path, ATTRIBUTE, &encode(0))?,
                }
                file.sync_all()
            };
            make().with_context(|| format!("making {}", path.display()))?;
        }
        let histories = (0..REGISTERS).map(|_| Mutex::default()).collect();
        Ok(Shared(Arc::new(Histories { next: AtomicU64::new(1), histories })))
    }

    /// A further worker.
    pub fn worker(&self, watch: &Arc<Watch>, mount: usize, seed: u64) -> impl Worker + 'static {
        let (watch, shared) = (watch.clone(), self.0.clone());
        let open = (0..REGISTERS).map(|_| None).collect();
        Registers { watch, mount, rng: StdRng::seed_from_u64(seed), shared, open }
    }
}

impl Worker for Registers {
    fn run(&mut self) {
        while !self.watch.is_stopped() {
            let register = self.rng.random_range(0..REGISTERS);
            if self.rng.random_ratio(2, 5) {
                self.write(register)
            } else {
                self.read(register)
            }
            pause(&mut self.rng);
        }
    }
}

impl Registers {
    fn push(&self, register: usize, entry: Entry) {
        self.shared.histories[register].lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    /// An error is only explained by a session that ended.
    fn failed(&self, register: usize, begun: Stamp, what: &str, error: &io::Error) {
        // A loss that no handle was told of is told the next one that asks, also one that was opened since.
        let is_owed = what == SYNCING
            && error.raw_os_error() == Some(libc::EIO)
            && self.watch.fences(self.mount).iter().any(|fence| fence.ended + OWED_NS >= begun);
        if !is_owed && !self.watch.explains(self.mount, begun) {
            let place = place(register);
            self.watch.violation(format!(
                "{what} register {register} ({place:?}) on mount {}: {error}",
                self.mount
            ));
        }
    }

    fn write(&mut self, register: usize) {
        let (generation, begun) = (self.watch.generation(self.mount), self.watch.now());
        let value = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let path = self.watch.path(self.mount, name(register));
        let sync = self.rng.random();
        let (watch, mount) = (&self.watch, self.mount);
        let (done, file) = match place(register) {
            Place::Inline | Place::Chunk => {
                let offset = if place(register) == Place::Chunk { CHUNKED / 2 } else { 0 };
                let file = match OpenOptions::new().write(true).open(&path) {
                    Ok(file) => file,
                    Err(error) => return self.failed(register, begun, "opening", &error),
                };
                (watch.op(mount, Kind::Write, || file.write_all_at(&encode(value), offset)), Some(file))
            }
            Place::Replaced => {
                let new = watch.path(mount, format!("registers/new{value}"));
                match write_new(&new, value) {
                    Ok(file) => (watch.op(mount, Kind::Rename, || fs::rename(&new, &path)), Some(file)),
                    Err(error) => return self.failed(register, begun, "writing for", &error),
                }
            }
            Place::Time => {
                let time = UNIX_EPOCH + Duration::from_secs(value);
                let set = || OpenOptions::new().write(true).open(&path)?.set_modified(time);
                (watch.op(mount, Kind::SetAttr, set), None)
            }
            Place::Attribute => {
                (watch.op(mount, Kind::SetAttr, || posix::set_xattr(&path, ATTRIBUTE, &encode(value))), None)
            }
        };
        if let Err(error) = &done.result {
            self.failed(register, begun, "writing", error);
        }
        let mut synced = false;
        if sync && done.result.is_ok() {
            let fsync = || file.map_or_else(|| File::open(&path), Ok)?.sync_all();
            let result = watch.op(mount, Kind::Fsync, fsync).result;
            if let Err(error) = &result {
                self.failed(register, begun, SYNCING, error);
            }
            // A handle that was opened after the end of a session is not told of it.
            synced = result.is_ok() && watch.generation(mount) == generation;
        }
        let what = What::Write { value, synced, failed: done.result.is_err() };
        self.push(register, Entry { mount: self.mount, begun: done.begun, ended: done.ended, what });
    }

    fn read(&mut self, register: usize) {
        let begun = self.watch.now();
        let path = self.watch.path(self.mount, name(register));
        let may_keep = matches!(place(register), Place::Inline | Place::Chunk) && self.rng.random();
        let kept = self.open[register].take().filter(|_| may_keep);
        let kind =
            if matches!(place(register), Place::Time | Place::Attribute) { Kind::Stat } else { Kind::Read };
        let mut opened = None;
        let done = self.watch.op(self.mount, kind, || read_value(register, &path, kept, &mut opened));
        if may_keep {
            self.open[register] = opened;
        }
        match done.result {
            Ok(value) => {
                let what = What::Read(value);
                self.push(register, Entry { mount: self.mount, begun: done.begun, ended: done.ended, what });
            }
            Err(error) => self.failed(register, begun, "reading", &error),
        }
    }
}

/// As programs do that replace a file: what has the name is whole, also after a session has ended in between.
fn write_new(path: &Path, value: u64) -> io::Result<File> {
    let file = File::create_new(path)?;
    file.write_all_at(&encode(value), 0)?;
    file.sync_all()?;
    Ok(file)
}

/// Reads from `kept` or from a file that is opened now.
fn read_value(
    register: usize,
    path: &Path,
    kept: Option<File>,
    opened: &mut Option<File>,
) -> io::Result<u64> {
    let offset = match place(register) {
        Place::Time => return Ok(fs::metadata(path)?.mtime() as u64),
        Place::Attribute => return decode(&posix::get_xattr(path, ATTRIBUTE)?),
        Place::Chunk => CHUNKED / 2,
        Place::Inline | Place::Replaced => 0,
    };
    let file = kept.map_or_else(|| File::open(path), Ok)?;
    let mut bytes = [0; 16];
    let read = file.read_exact_at(&mut bytes, offset);
    *opened = Some(file);
    read?;
    decode(&bytes)
}

impl Check for Shared {
    fn check(&mut self, watch: &Watch) {
        let fences = watch.all_fences();
        for (register, history) in self.0.histories.iter().enumerate() {
            let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
            for mount in 0..watch.mounts.len() {
                let path = watch.path(mount, name(register));
                let done = watch.op(mount, Kind::Read, || read_value(register, &path, None, &mut None));
                match done.result {
                    Ok(value) => history.push(Entry {
                        mount,
                        begun: done.begun,
                        ended: done.ended,
                        what: What::Read(value),
                    }),
                    Err(error) => {
                        watch.violation(format!("at the end register {register} on mount {mount}: {error}"))
                    }
                }
            }
            for wrong in register::check(&history, &fences) {
                watch.violation(format!("register {register} ({:?}): {wrong}", place(register)));
            }
        }
    }
}

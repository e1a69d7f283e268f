//! Files to which every mount appends records at the same time.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Check, Worker, pause};
use crate::check::append::{self, Record};
use crate::watch::{Kind, Stamp, Watch};

/// Records in a file, about; then the next one is begun.
const PER_FILE: u64 = 300;

/// What all workers that append share.
pub struct Shared(Arc<Appended>);

#[derive(Default)]
struct Appended {
    next: AtomicU64,
    /// Of each file.
    records: Mutex<Vec<Vec<Record>>>,
}

struct Appender {
    watch: Arc<Watch>,
    mount: usize,
    rng: StdRng,
    shared: Arc<Appended>,
    /// The file that is open, with its number.
    file: Option<(u64, File)>,
}

fn name(file: u64) -> String {
    format!("appended/{file}")
}

impl Shared {
    /// Makes the directory.
    pub fn new(watch: &Watch) -> anyhow::Result<Shared> {
        let dir = watch.path(0, "appended");
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Shared(Arc::default()))
    }

    /// A further worker.
    pub fn worker(&self, watch: &Arc<Watch>, mount: usize, seed: u64) -> impl Worker + 'static {
        let (watch, shared, rng) = (watch.clone(), self.0.clone(), StdRng::seed_from_u64(seed));
        Appender { watch, mount, rng, shared, file: None }
    }
}

impl Worker for Appender {
    fn run(&mut self) {
        while !self.watch.is_stopped() {
            let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
            self.append(number);
            pause(&mut self.rng);
        }
    }
}

impl Appender {
    fn append(&mut self, number: u64) {
        let (generation, begun) = (self.watch.generation(self.mount), self.watch.now());
        let file_number = number / PER_FILE;
        // Held open, or opened anew: the kernel's idea of the end is old then, or fresh.
        let kept = self.file.take().filter(|(kept, _)| *kept == file_number && !self.rng.random_ratio(1, 4));
        let path = self.watch.path(self.mount, name(file_number));
        let file = match kept {
            Some((_, file)) => file,
            None => {
                let open = || OpenOptions::new().append(true).create(true).open(&path);
                match self.watch.op(self.mount, Kind::Create, open).result {
                    Ok(file) => file,
                    Err(error) => {
                        return self.failed(begun, &format!("opening {}: {error}", path.display()));
                    }
                }
            }
        };
        let mut record =
            Record { mount: self.mount, number, begun: 0, ended: 0, synced: false, failed: false };
        let text = record.text();
        let done = self.watch.op(self.mount, Kind::Append, || (&file).write(text.as_bytes()));
        (record.begun, record.ended) = (done.begun, done.ended);
        match done.result {
            Ok(written) if written == text.len() => {}
            Ok(written) => self.watch.violation(format!("{written} of {} bytes were appended", text.len())),
            Err(error) => {
                record.failed = true;
                self.failed(begun, &format!("appending to {}: {error}", path.display()));
            }
        }
        if !record.failed && self.rng.random_ratio(1, 3) {
            match self.watch.op(self.mount, Kind::Fsync, || file.sync_all()).result {
                Ok(()) => record.synced = self.watch.generation(self.mount) == generation,
                Err(error) => self.failed(begun, &format!("syncing {}: {error}", path.display())),
            }
        }
        let mut records = self.shared.records.lock().unwrap_or_else(PoisonError::into_inner);
        let at = file_number as usize;
        let length = records.len().max(at + 1);
        records.resize_with(length, Vec::new);
        records[at].push(record);
        drop(records);
        self.file = Some((file_number, file));
    }

    /// An error is only explained by a session that ended.
    fn failed(&self, begun: Stamp, text: &str) {
        if !self.watch.explains(self.mount, begun) {
            self.watch.violation(text);
        }
    }
}

impl Check for Shared {
    fn check(&mut self, watch: &Watch) {
        let fences = watch.all_fences();
        let records = self.0.records.lock().unwrap_or_else(PoisonError::into_inner);
        for (file, records) in records.iter().enumerate() {
            for mount in 0..watch.mounts.len() {
                let path = watch.path(mount, name(file as u64));
                match watch.op(mount, Kind::Read, || fs::read(&path)).result {
                    Ok(bytes) => {
                        for wrong in append::check(&bytes, records, &fences) {
                            watch.violation(format!("{} on mount {mount}: {wrong}", name(file as u64)));
                        }
                    }
                    Err(error) => watch.violation(format!("{} on mount {mount}: {error}", name(file as u64))),
                }
            }
        }
    }
}

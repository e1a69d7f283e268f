//! What a power cut does to files: of each page that was written since the file's last sync the old content is kept.
//!
//! Files live in the kernel (in memory); only what a cut may take is known here. Names are as durable as the order
//! in which they were made: creating, renaming and removing are taken for done at once, as a journaled file system that
//! is never cut within its commit interval would have it.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libc::c_int;
use rand::RngExt;
use rand::rngs::StdRng;

use super::poll::Descriptor;
use super::schedule::{Wait, block};
use super::{HostId, World, now_ns, with};
use crate::interpose::real;

const PAGE: u64 = 4096;
const SECTOR: usize = 512;
/// Every simulated disk has so many bytes.
const DISK_BYTES: u64 = 8 << 30;

/// A change that is about to be made.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    /// Bytes are written.
    Write {
        /// First.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// The file gets this length.
    Truncate {
        /// New length.
        len: u64,
    },
    /// The file gets at least this length, of zeros.
    Allocate {
        /// New length.
        end: u64,
    },
    /// A range becomes zeros.
    Punch {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
}

/// What a cut leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing.
    All,
    /// Of each page by chance the old, the new, or sectors of both.
    Torn,
}

type File = (HostId, u64);

struct Unsynced {
    /// A descriptor of our own.
    fd: c_int,
    synced_len: u64,
    /// Old contents; `None`: there was nothing.
    pages: BTreeMap<u64, Option<Box<[u8]>>>,
}

#[derive(Default)]
pub(super) struct Disks {
    unsynced: BTreeMap<File, Unsynced>,
}

fn stat(fd: c_int) -> libc::stat {
    // SAFETY: plain data, for which zeros are a valid value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the pointer valid.
    let result = unsafe { libc::fstat(fd, &mut stat) };
    assert_eq!(result, 0, "a simulated descriptor is open");
    stat
}

impl Unsynced {
    fn of(fd: c_int) -> Option<Unsynced> {
        let path = CString::new(format!("/proc/self/fd/{fd}")).ok()?;
        // SAFETY: the path ends in NUL.
        let own = unsafe { real::open64(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC, 0) };
        (own >= 0).then(|| Unsynced { fd: own, synced_len: stat(own).st_size as u64, pages: BTreeMap::new() })
    }

    fn keep(&mut self, offset: u64, len: u64) {
        for page in offset / PAGE..(offset + len).div_ceil(PAGE) {
            let (fd, synced_len) = (self.fd, self.synced_len);
            self.pages.entry(page).or_insert_with(|| {
                if page * PAGE >= synced_len {
                    return None;
                }
                let mut old = vec![0; PAGE as usize].into_boxed_slice();
                // SAFETY: the buffer is as long as said.
                unsafe { real::pread64(fd, old.as_mut_ptr().cast(), old.len(), (page * PAGE) as i64) };
                Some(old)
            });
        }
    }

    fn put(&self, bytes: &[u8], offset: u64) {
        // SAFETY: the buffer is as long as said.
        unsafe { real::pwrite64(self.fd, bytes.as_ptr().cast(), bytes.len(), offset as i64) };
    }

    fn set_len(&self, len: u64) {
        // SAFETY: the descriptor is ours.
        unsafe { real::ftruncate64(self.fd, len as i64) };
    }

    /// As the cut leaves it.
    fn lose(&self, cut: Cut, rng: &mut rand::rngs::StdRng) {
        let len = stat(self.fd).st_size as u64;
        let keeps_len = cut == Cut::Torn && rng.random();
        let after = if keeps_len { len } else { self.synced_len };
        if len < self.synced_len {
            self.set_len(self.synced_len);
        }
        let nothing = vec![0; PAGE as usize];
        for (&page, old) in &self.pages {
            let old: &[u8] = old.as_deref().unwrap_or(&nothing);
            // The file's last page may be written as a whole: its length is set below.
            match (cut, rng.random_range(0..3)) {
                (Cut::All, _) | (Cut::Torn, 0) => self.put(old, page * PAGE),
                (Cut::Torn, 1) => {}
                (Cut::Torn, _) => {
                    for (at, sector) in old.chunks(SECTOR).enumerate() {
                        if rng.random() {
                            self.put(sector, page * PAGE + (at * SECTOR) as u64);
                        }
                    }
                }
            }
        }
        self.set_len(after);
    }
}

impl Drop for Unsynced {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours.
        unsafe { real::close(self.fd) };
    }
}

impl World {
    /// A descriptor of the kernel's was opened here.
    pub fn file_opened(&mut self, fd: c_int) {
        let host = self.host();
        self.objects.name(host, fd, Descriptor::File(stat(fd).st_ino));
    }

    fn file(&self, fd: c_int) -> Option<File> {
        match self.objects.descriptor(fd)? {
            Descriptor::File(inode) => Some((self.host(), inode)),
            Descriptor::Object(_) => None,
        }
    }

    /// Called before a change. The error is what a full disk answers.
    pub fn changes_file(&mut self, fd: c_int, access: Access) -> Result<(), c_int> {
        let Some(file) = self.file(fd) else { return Ok(()) };
        let len = stat(fd).st_size as u64;
        if self.hosts.get(file.0).disk_full {
            let end = match access {
                Access::Write { offset, len } => offset + len,
                Access::Truncate { .. } | Access::Punch { .. } => 0,
                Access::Allocate { end } => end,
            };
            if end > len {
                return Err(libc::ENOSPC);
            }
        }
        let unsynced = match self.disks.unsynced.entry(file) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let Some(made) = Unsynced::of(fd) else { return Ok(()) };
                entry.insert(made)
            }
        };
        match access {
            Access::Write { offset, len } | Access::Punch { offset, len } => unsynced.keep(offset, len),
            Access::Truncate { len: shorter } if shorter < len => unsynced.keep(shorter, len - shorter),
            Access::Truncate { .. } | Access::Allocate { .. } => {}
        }
        Ok(())
    }

    /// What a power cut does to the host's files.
    pub(super) fn lose_unsynced(&mut self, host: HostId, cut: Cut) {
        let files: Vec<File> =
            self.disks.unsynced.keys().copied().filter(|(owner, _)| *owner == host).collect();
        for file in files {
            if let Some(unsynced) = self.disks.unsynced.remove(&file) {
                unsynced.lose(cut, &mut self.rng);
            }
        }
    }

    /// Bytes of the host's disk, and of these free.
    pub fn disk_space(&self) -> (u64, u64) {
        let full = self.hosts.get(self.host()).disk_full;
        (DISK_BYTES, if full { 0 } else { DISK_BYTES / 2 })
    }

    /// Where the host's boot id is: another after each power cut.
    pub fn boot_id_path(&self) -> CString {
        let host = self.host();
        let boot = self.hosts.get(host).boot;
        let path = format!("boot-{}", host.0);
        let text = format!("{:08x}-0000-4000-8000-{boot:012x}\n", host.0);
        let made = CString::new(path).expect("without NUL");
        // SAFETY: the path ends in NUL.
        let fd =
            unsafe { real::open64(made.as_ptr(), libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o600) };
        assert!(fd >= 0, "the simulation's own directory can be written to");
        // SAFETY: the text is as long as said; the descriptor is ours.
        unsafe {
            real::write(fd, text.as_ptr().cast(), text.len());
            real::close(fd);
        }
        made
    }
}

/// Flips a bit of a file below `directory` that begins with one of `magics`, behind its first page, where something is written.
/// Which file and byte; `None`: there is no such file.
pub fn flip_bit(directory: &Path, magics: &[&[u8]], rng: &mut StdRng) -> Option<(PathBuf, usize)> {
    let mut files = Vec::new();
    find_files(directory, &mut files);
    files.sort();
    files.retain(|(_, content)| {
        let is_written = content.iter().skip(PAGE as usize).any(|byte| *byte != 0);
        is_written && magics.iter().any(|magic| content.starts_with(magic))
    });
    if files.is_empty() {
        return None;
    }
    let (path, content) = files.swap_remove(rng.random_range(0..files.len()));
    let written: Vec<usize> = (PAGE as usize..content.len()).filter(|&at| content[at] != 0).collect();
    let at = written[rng.random_range(0..written.len())];
    let byte = content[at] ^ (1 << rng.random_range(0..8));
    let name = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: the path ends in NUL; the byte is one; the descriptor is ours. Past what a power cut knows of: nobody wrote this.
    unsafe {
        let fd = real::open64(name.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC, 0);
        assert!(fd >= 0, "a file of the simulation can be written to");
        real::pwrite64(fd, (&raw const byte).cast(), 1, at as i64);
        real::close(fd);
    }
    Some((path, at))
}

fn find_files(directory: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find_files(&path, files);
        } else if let Ok(content) = std::fs::read(&path) {
            files.push((path, content));
        }
    }
}

/// `fsync`: takes its time, in which the power may be cut.
pub fn sync_file(fd: c_int) -> c_int {
    let (before, after) = with(|world| {
        let sync_ns = world.hosts.get(world.host()).sync_ns;
        let whole = world.rng.random_range(sync_ns / 8..=sync_ns);
        let before = if world.rng.random() { whole } else { 0 };
        (before, whole - before)
    });
    for (time, syncs) in [(before, true), (after, false)] {
        if time > 0 {
            block(Wait::Sleep, Some(now_ns() + time));
        }
        if syncs {
            with(|world| {
                if let Some(file) = world.file(fd).filter(|_| !world.sabotage.syncs_lie) {
                    world.disks.unsynced.remove(&file);
                }
            });
        }
    }
    0
}

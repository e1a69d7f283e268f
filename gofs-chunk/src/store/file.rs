//! A file of the store: positioned reads and writes, each of which a watcher may see first.
//!
//! The watcher is how tests lose, tear and refuse what was written; servers run without one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::sys;

/// From this length on a read tells the kernel at once how far it goes.
const LONG_READ_BYTES: usize = 128 << 10;

/// Sees, and may refuse, every change to the store's files.
pub trait FileWatch: Send + Sync {
    /// `bytes` are about to be written at `offset`.
    fn will_write(&self, _path: &Path, _file: &File, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }
    /// The range is about to be read.
    fn will_read(&self, _path: &Path, _offset: u64, _len: usize) -> io::Result<()> {
        Ok(())
    }
    /// The file is about to be synced.
    fn will_sync(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }
    /// Everything written to the file before is on stable storage.
    fn synced(&self, _path: &Path) {}
    /// A new, empty file has this name, which is not durable yet.
    fn created(&self, _path: &Path) {}
    /// The names in the directory are durable.
    fn dir_synced(&self, _path: &Path) {}
}

/// The watcher of a store, if any.
pub type Watch = Option<Arc<dyn FileWatch>>;

/// An open file.
pub struct StoreFile {
    file: File,
    path: PathBuf,
    watch: Watch,
    /// A sync has failed. The kernel tells that once: a second sync would seem to succeed.
    sync_failed: Mutex<bool>,
}

impl StoreFile {
    /// Makes a new file; refused where one exists.
    pub fn create(path: &Path, watch: &Watch) -> io::Result<StoreFile> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        if let Some(watch) = watch {
            watch.created(path);
        }
        Ok(StoreFile::new(file, path, watch))
    }

    /// Opens an existing file.
    pub fn open(path: &Path, watch: &Watch) -> io::Result<StoreFile> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(StoreFile::new(file, path, watch))
    }

    fn new(file: File, path: &Path, watch: &Watch) -> StoreFile {
        StoreFile { file, path: path.to_owned(), watch: watch.clone(), sync_failed: Mutex::new(false) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `out` from `offset`; bytes past the end read as zeros.
    pub fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(watch) = &self.watch {
            watch.will_read(&self.path, offset, out.len())?;
        }
        let mut done = 0;
        if out.len() >= LONG_READ_BYTES {
            // Several at once on one file are none of the patterns for which the kernel reads ahead.
            done = sys::read_cached(&self.file, out, offset)?;
            if done < out.len() {
                sys::will_need(&self.file, offset + done as u64, (out.len() - done) as u64);
            }
        }
        while done < out.len() {
            match self.file.read_at(&mut out[done..], offset + done as u64) {
                Ok(0) => {
                    out[done..].fill(0);
                    break;
                }
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// As [`StoreFile::read_at`], if that needs no disk; else false.
    pub fn read_at_once(&self, out: &mut [u8], offset: u64) -> bool {
        // A watcher sees reads that may fail.
        self.watch.is_none() && sys::read_cached(&self.file, out, offset).is_ok_and(|read| read == out.len())
    }

    /// The range is going to be read.
    pub fn will_read(&self, offset: u64, len: u64) {
        sys::will_need(&self.file, offset, len);
    }

    /// Has the disk begin with what was written to the range.
    pub fn begin_writing(&self, offset: u64, len: u64) {
        sys::begin_writing(&self.file, offset, len);
    }

    /// Writes all of `bytes` at `offset`.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(watch) = &self.watch {
            watch.will_write(&self.path, &self.file, offset, bytes)?;
        }
        self.file.write_all_at(bytes, offset)
    }

    /// Allocates the first `len` bytes.
    pub fn allocate(&self, len: u64) -> io::Result<()> {
        sys::allocate(&self.file, len)
    }

    /// Gives a range back; it reads as zeros.
    pub fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        if let Some(watch) = &self.watch {
            watch.will_write(&self.path, &self.file, offset, &vec![0; len as usize])?;
        }
        sys::punch(&self.file, offset, len)
    }

    /// Everything written so far onto stable storage. Once it has failed it fails always.
    pub fn sync(&self) -> io::Result<()> {
        let mut failed = self.sync_failed.lock();
        if *failed {
            return Err(io::Error::other("an earlier sync of the file failed"));
        }
        *failed = true;
        if let Some(watch) = &self.watch {
            watch.will_sync(&self.path)?;
        }
        self.file.sync_data()?;
        *failed = false;
        if let Some(watch) = &self.watch {
            watch.synced(&self.path);
        }
        Ok(())
    }
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path, watch: &Watch) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    if let Some(watch) = watch {
        watch.dir_synced(path);
    }
    Ok(())
}

/// Replaces `path` by a file with these bytes: the old file or the new one is there after a crash, never
/// a mixture.
pub fn replace(path: &Path, bytes: &[u8], watch: &Watch) -> io::Result<()> {
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let write = || {
        let file = StoreFile::create(&fresh, watch)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        std::fs::rename(&fresh, path)
    };
    if let Err(error) = write() {
        // What is left of it would only take space.
        let _ = std::fs::remove_file(&fresh);
        return Err(error);
    }
    match path.parent() {
        Some(parent) => sync_dir(parent, watch),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Fails the first sync only, as the kernel tells a lost write once.
    #[derive(Default)]
    struct Once(AtomicBool);

    impl FileWatch for Once {
        fn will_sync(&self, _: &Path) -> io::Result<()> {
            if self.0.swap(true, Ordering::Relaxed) { Ok(()) } else { Err(io::Error::other("lost")) }
        }
    }

    #[test]
    fn a_sync_after_one_that_failed_fails_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = StoreFile::create(&dir.path().join("file"), &Some(Arc::new(Once::default()))).unwrap();
        assert!(file.sync().is_err());
        assert!(file.sync().is_err());
    }
}

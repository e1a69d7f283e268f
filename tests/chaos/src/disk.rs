//! Small disks: ext4 in files, each mounted over a loop device, so that one can be full while the machine is not.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use gofs_posix_tests::sys;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::sandbox::run_program;

/// What takes the room of a full disk.
const BALLAST: &str = "ballast";
/// Bytes that a full disk has left.
const LEFT_BYTES: u64 = 256 << 10;
/// Places looked at for a byte that means something before any is taken.
const TRIES: usize = 200;

/// A mounted disk.
pub struct Disk {
    point: PathBuf,
}

impl Disk {
    /// Makes and mounts one below `dir`. It goes with the mount namespace.
    pub fn new(dir: &Path, name: &str, bytes: u64) -> Result<Disk> {
        let (image, point) = (dir.join(format!("{name}.image")), dir.join(format!("{name}.disk")));
        File::create(&image)
            .and_then(|file| file.set_len(bytes))
            .with_context(|| format!("{}", image.display()))?;
        fs::create_dir_all(&point).with_context(|| format!("{}", point.display()))?;
        let text = |path: &Path| path.display().to_string();
        run_program("mkfs.ext4", &["-q", "-F", "-m", "0", &text(&image)])?;
        run_program("mount", &["-o", "loop", &text(&image), &text(&point)])?;
        Ok(Disk { point })
    }

    /// The data directory on it.
    pub fn data(&self) -> PathBuf {
        self.point.join("data")
    }

    /// Leaves next to no room.
    pub fn fill(&self) -> Result<()> {
        let path = self.point.join(BALLAST);
        let file = File::create(&path).with_context(|| format!("{}", path.display()))?;
        let free = sys::available(&file)?;
        sys::allocate(&file, free.saturating_sub(LEFT_BYTES)).with_context(|| format!("{}", path.display()))
    }

    /// Gives the room back.
    pub fn drain(&self) -> Result<()> {
        let path = self.point.join(BALLAST);
        fs::remove_file(&path).with_context(|| format!("{}", path.display()))
    }

    /// A new disk in its place: nothing of what was on it is left.
    pub fn wipe(&self) -> Result<()> {
        let data = self.data();
        fs::remove_dir_all(&data).with_context(|| format!("{}", data.display()))
    }

    /// Flips one bit of a byte of a chunk, in a chunk's own file or in the log; says where. `None` where there is none.
    pub fn flip_bit(&self, rng: &mut StdRng) -> Result<Option<String>> {
        let mut files = Vec::new();
        for part in ["chunks", "log"] {
            collect(&self.data().join(part), &mut files)?;
        }
        for _ in 0..TRIES {
            let Some(path) = (!files.is_empty()).then(|| &files[rng.random_range(0..files.len())]) else {
                return Ok(None);
            };
            let Ok(file) = File::options().read(true).write(true).open(path) else { continue };
            let length = file.metadata()?.len();
            if length == 0 {
                continue;
            }
            let (offset, bit, mut byte) = (rng.random_range(0..length), rng.random_range(0..8), [0]);
            if file.read_at(&mut byte, offset)? == 0 || byte == [0] {
                // Most likely preallocated and never written.
                continue;
            }
            file.write_all_at(&[byte[0] ^ (1 << bit)], offset)?;
            return Ok(Some(format!("bit {bit} at {offset} of {}", path.display())));
        }
        Ok(None)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Detaches the loop device too. What fails here goes with the mount namespace.
        std::process::Command::new("umount").arg("-l").arg(&self.point).status().ok();
    }
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        // Chunks come and go.
        let Ok(entry) = entry else { continue };
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

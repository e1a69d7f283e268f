//! The kernel glue on a real mount, over a file system in memory: no server, so that what goes wrong here is the glue's.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../examples/ceiling/memory.rs"]
mod memory;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, IoSlice, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gofs_client::{KernelCache, OpenFlags};
use gofs_fuse::{Backend, KernelNotifier, MountOptions, Served, serve};
use gofs_tree::{AttrChange, Ino, Mode, Name, NewNode, ROOT_INO};
use memory::Memory;
use rustix::io::ReadWriteFlags;

/// A mount that goes with the test, however that ends.
struct Mount {
    runtime: tokio::runtime::Runtime,
    memory: Arc<Memory>,
    kernel: Arc<KernelNotifier>,
    served: Option<Served>,
    dir: tempfile::TempDir,
}

impl Mount {
    fn new() -> Mount {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let kernel = Arc::new(KernelNotifier::default());
        let memory = Arc::new(Memory::new(kernel.clone()));
        let options = MountOptions::default();
        let served = serve(memory.clone(), kernel.clone(), "memory", dir.path(), &options);
        let served = Some(runtime.block_on(served).unwrap());
        Mount { runtime, memory, kernel, served, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An operation that the kernel does not see, as if another mount had done it.
    fn elsewhere<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(served) = self.served.take() {
            self.runtime.block_on(served.detach());
        }
    }
}

fn ino(path: &Path) -> Ino {
    Ino(fs::symlink_metadata(path).unwrap().ino())
}

fn errno<T>(result: std::io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap(),
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(10), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn every_kind_of_inode_is_made_found_and_removed() {
    let mount = Mount::new();
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/f"), "content").unwrap();
    symlink("d/f", mount.path("l")).unwrap();
    fs::hard_link(mount.path("d/f"), mount.path("h")).unwrap();
    assert_eq!(fs::read_to_string(mount.path("l")).unwrap(), "content");
    let (file, link) = (fs::metadata(mount.path("d/f")).unwrap(), fs::metadata(mount.path("h")).unwrap());
    assert_eq!((file.ino(), file.nlink(), file.len()), (link.ino(), 2, 7));
    fs::set_permissions(mount.path("h"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(fs::metadata(mount.path("d/f")).unwrap().mode() & 0o7777, 0o640);
    fs::rename(mount.path("h"), mount.path("d/g")).unwrap();
    fs::remove_file(mount.path("d/f")).unwrap();
    fs::remove_file(mount.path("d/g")).unwrap();
    fs::remove_dir(mount.path("d")).unwrap();
    assert_eq!(fs::read_link(mount.path("l")).unwrap(), PathBuf::from("d/f"));
    assert_eq!(errno(fs::metadata(mount.path("l"))), libc::ENOENT);
}

#[test]
fn errors_reach_the_program_as_their_errno() {
    let mount = Mount::new();
    fs::create_dir_all(mount.path("d/e")).unwrap();
    fs::write(mount.path("f"), "x").unwrap();
    assert_eq!(errno(fs::metadata(mount.path("none"))), libc::ENOENT);
    assert_eq!(errno(fs::metadata(mount.path("f/below"))), libc::ENOTDIR);
    assert_eq!(errno(fs::create_dir(mount.path("d"))), libc::EEXIST);
    assert_eq!(errno(File::create_new(mount.path("f"))), libc::EEXIST);
    assert_eq!(errno(fs::remove_dir(mount.path("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_file(mount.path("d"))), libc::EISDIR);
    assert_eq!(errno(fs::rename(mount.path("d"), mount.path("d/e/below"))), libc::EINVAL);
    assert_eq!(errno(File::create(mount.path(&"n".repeat(256)))), libc::ENAMETOOLONG);
    let file = File::options().read(true).write(true).open(mount.path("f")).unwrap();
    assert_eq!(errno(file.set_len(1 << 40)), libc::EFBIG);
    assert_eq!(errno(file.write_at(b"x", 1 << 40)), libc::EFBIG);
    assert_eq!(errno(file.lock()), libc::EOPNOTSUPP);
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"x");
}

#[test]
fn big_reads_and_writes_come_through_whole() {
    const BYTES: usize = (8 << 20) + 4321;
    let mount = Mount::new();
    let content: Vec<u8> = (0..BYTES).map(|at| (at as u32).wrapping_mul(2_654_435_761) as u8).collect();
    for direct in [0, libc::O_DIRECT] {
        let path = mount.path(if direct == 0 { "cached" } else { "direct" });
        let mut file =
            File::options().read(true).write(true).create_new(true).custom_flags(direct).open(&path).unwrap();
        file.write_all(&content).unwrap();
        // Neither from the kernel's pages.
        mount.kernel.invalidate_inode(ino(&path));
        let mut read = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut read).unwrap();
        assert!(read == content, "direct: {direct:#o}");
        // Pieces that end nowhere in particular, over what is there and past the end.
        for (offset, length) in [(4095, 2), (1 << 20, 3), ((1 << 20) - 1, (1 << 20) + 2), (BYTES - 1, 70_000)]
        {
            file.write_all_at(&vec![7; length], offset as u64).unwrap();
            let mut piece = vec![0; length];
            file.read_exact_at(&mut piece, offset as u64).unwrap();
            assert!(piece.iter().all(|&byte| byte == 7), "{length} bytes at {offset}");
        }
        file.set_len(BYTES as u64 * 2).unwrap();
        let mut zeros = vec![1; 5000];
        file.read_exact_at(&mut zeros, BYTES as u64 + 100_000).unwrap();
        assert!(zeros.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn appends_go_to_where_the_backend_has_the_end() {
    let mount = Mount::new();
    let path = mount.path("log");
    let mut first = File::options().append(true).create(true).open(&path).unwrap();
    first.write_all(b"one ").unwrap();
    let file = mount.elsewhere(mount.memory.open(ino(&path), OpenFlags::default())).unwrap();
    // The kernel believes that the end is at 4.
    mount.elsewhere(mount.memory.write(&file, 4, false, Bytes::from_static(b"two "))).unwrap();
    first.write_all(b"three").unwrap();
    mount.kernel.invalidate_inode(ino(&path));
    assert_eq!(fs::read_to_string(&path).unwrap(), "one two three");
}

#[test]
fn a_write_that_asks_to_be_durable_is_synced_however_its_file_was_opened() {
    let mount = Mount::new();
    let path = mount.path("f");
    fs::write(&path, "old").unwrap();
    let opens = [
        File::options().write(true).open(&path),
        File::options().append(true).open(&path),
        File::options().read(true).append(true).open(&path),
        File::options().read(true).write(true).open(&path),
    ];
    for (at, file) in opens.into_iter().enumerate() {
        let file = file.unwrap();
        let write = |flags| rustix::io::pwritev2(&file, &[IoSlice::new(b"new")], 0, flags).unwrap();
        let before = mount.memory.syncs();
        write(ReadWriteFlags::empty());
        assert_eq!(mount.memory.syncs(), before, "open {at}");
        write(ReadWriteFlags::DSYNC);
        write(ReadWriteFlags::SYNC);
        assert_eq!(mount.memory.syncs(), before + 2, "open {at}");
    }
}

#[test]
fn a_listing_has_every_entry_once_with_its_attributes() {
    const FILES: usize = 3000;
    let mount = Mount::new();
    fs::create_dir(mount.path("d")).unwrap();
    for at in 0..FILES {
        fs::write(mount.path(&format!("d/{at}-{}", "n".repeat(at % 200))), vec![0; at % 50]).unwrap();
    }
    // From the backend, not from what the kernel remembers of their making.
    mount.kernel.invalidate_entries();
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(mount.path("d")).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        let name = entry.file_name().into_string().unwrap();
        let at: usize = name.split('-').next().unwrap().parse().unwrap();
        assert_eq!(metadata.len(), at as u64 % 50, "{name}");
        assert!(metadata.is_file() && seen.insert(at), "{name}");
    }
    assert_eq!(seen.len(), FILES);
}

#[test]
fn what_the_kernel_keeps_stays_until_it_is_taken_back() {
    let mount = Mount::new();
    let path = mount.path("f");
    fs::write(&path, "old").unwrap();
    let inode = ino(&path);
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    // A read makes the kernel doubt the time of the last access.
    fs::metadata(&path).unwrap();
    assert_eq!(errno(fs::metadata(mount.path("new"))), libc::ENOENT);

    let mode = AttrChange { mode: Some(Mode::new(0o600)), ..AttrChange::default() };
    mount.elsewhere(mount.memory.setattr(inode, mode)).unwrap();
    let file = mount.elsewhere(mount.memory.open(inode, OpenFlags::default())).unwrap();
    mount.elsewhere(mount.memory.write(&file, 0, false, Bytes::from_static(b"new"))).unwrap();
    let name = Name::new(b"new").unwrap();
    let (mode, umask) = (Mode::new(0o755), Mode::new(0));
    mount.elsewhere(mount.memory.create(ROOT_INO, &name, NewNode::Directory, mode, umask, 0, 0)).unwrap();

    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644, "attributes have a time to live");
    assert_eq!(fs::read_to_string(&path).unwrap(), "old", "pages are kept across opens");
    if mount.kernel.can_cache_entries() {
        assert_eq!(errno(fs::metadata(mount.path("new"))), libc::ENOENT, "absence has a time to live");
    }

    mount.kernel.invalidate_inode(inode);
    mount.kernel.invalidate_entries();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    assert!(fs::metadata(mount.path("new")).unwrap().is_dir());
}

#[test]
fn the_attributes_in_the_reply_to_a_link_are_not_kept() {
    let mount = Mount::new();
    fs::write(mount.path("f"), "x").unwrap();
    fs::hard_link(mount.path("f"), mount.path("g")).unwrap();
    // Changed after the reply was made; the kernel, which would apply it all the same, is not told.
    let mode = AttrChange { mode: Some(Mode::new(0o600)), ..AttrChange::default() };
    mount.elsewhere(mount.memory.setattr(ino(&mount.path("g")), mode)).unwrap();
    fs::hard_link(mount.path("f"), mount.path("h")).unwrap();
    let mode = AttrChange { mode: Some(Mode::new(0o640)), ..AttrChange::default() };
    let inode = mount.elsewhere(mount.memory.lookup(ROOT_INO, &Name::new(b"f").unwrap())).unwrap();
    mount.elsewhere(mount.memory.setattr(inode.value.unwrap().ino, mode)).unwrap();
    assert_eq!(fs::metadata(mount.path("h")).unwrap().mode() & 0o7777, 0o640);
}

#[test]
fn the_kernel_gives_back_every_entry_that_it_was_given() {
    let mount = Mount::new();
    let mut inodes = Vec::new();
    for at in 0..200 {
        let path = mount.path(&format!("f{at}"));
        fs::write(&path, "x").unwrap();
        fs::hard_link(&path, mount.path(&format!("l{at}"))).unwrap();
        inodes.push(ino(&path));
    }
    // Counted by CREATE, LINK, LOOKUP and READDIRPLUS alike.
    mount.kernel.invalidate_entries();
    for entry in fs::read_dir(mount.dir.path()).unwrap() {
        entry.unwrap().metadata().unwrap();
    }
    for at in 0..200 {
        fs::metadata(mount.path(&format!("l{at}"))).unwrap();
    }
    assert!(inodes.iter().all(|ino| mount.kernel.knows(*ino)));
    for at in 0..200 {
        fs::remove_file(mount.path(&format!("f{at}"))).unwrap();
        fs::remove_file(mount.path(&format!("l{at}"))).unwrap();
    }
    wait_for("FORGET of every inode", || inodes.iter().all(|ino| !mount.kernel.knows(*ino)));
    let started = Instant::now();
    for ino in inodes {
        mount.kernel.invalidate_inode(ino);
    }
    assert!(started.elapsed() < Duration::from_secs(5), "what the kernel does not have is not waited for");
}

#[test]
fn an_unlinked_file_lives_until_its_last_close() {
    let mount = Mount::new();
    let path = mount.path("f");
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let inode = ino(&path);
    fs::remove_file(&path).unwrap();
    file.write_all(b"still here").unwrap();
    mount.kernel.invalidate_inode(inode);
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), file.metadata().unwrap().nlink()), ("still here", 0));
    drop(file);
    wait_for("the inode to be freed", || mount.elsewhere(mount.memory.getattr(inode)).is_err());
}

#[test]
fn many_threads_at_once_see_their_own_files_whole() {
    let mount = Mount::new();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let dir = mount.path(&format!("t{thread}"));
            scope.spawn(move || {
                fs::create_dir(&dir).unwrap();
                for at in 0..200 {
                    let path = dir.join(at.to_string());
                    fs::write(&path, format!("{thread}:{at}")).unwrap();
                    fs::rename(&path, dir.join("renamed")).unwrap();
                    assert_eq!(fs::read_to_string(dir.join("renamed")).unwrap(), format!("{thread}:{at}"));
                    assert_eq!(fs::metadata(&path).unwrap_err().kind(), ErrorKind::NotFound);
                }
                assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
            });
        }
    });
}

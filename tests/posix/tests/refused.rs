//! What cannot be kept: a full disk and an ended session while changes wait to be sent. The error arrives where
//! docs/SEMANTICS.md says, everything else is intact, and `gofsctl sessions` counts what is lost.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use gofs_posix_tests::{Cluster, Mount, Server, eventually, run, sys, wait_for};

const LONG: Duration = Duration::from_secs(60);
/// Longer than no unmount takes that has nothing to wait for.
const UNMOUNT: Duration = Duration::from_secs(10);

/// More files than one batch of edits makes.
const MADE: usize = 700;

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir).unwrap().sync_all()
}

fn errno(result: io::Result<()>) -> Option<i32> {
    result.err().map(|error| error.raw_os_error().unwrap())
}

/// Writes a file of `len` bytes and syncs it.
fn keep(path: &Path, byte: u8, len: usize) {
    let mut file = File::create(path).unwrap();
    file.write_all(&vec![byte; len]).unwrap();
    file.sync_all().unwrap();
}

fn unmount_in_time(mount: Mount) {
    let started = Instant::now();
    mount.unmount();
    assert!(started.elapsed() < UNMOUNT, "the unmount took {:?}", started.elapsed());
}

/// A process that stands still until this is dropped. While files are open that wait for it no program may be started:
/// it inherits them, and closing them waits.
struct Paused(u32);

impl Paused {
    fn new(server: &Server) -> Self {
        sys::stop(server.pid());
        Paused(server.pid())
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        sys::kill(self.0, libc::SIGCONT);
    }
}

#[test]
fn edits_and_bytes_of_an_ended_session_are_told_once_and_counted_and_the_rest_is_intact() {
    let cluster = Cluster::builder().session_s(4).start();
    cluster.create_namespace("test", &[]);
    let mut a = cluster.mount("a");
    let b = cluster.mount("b");
    let dir = a.join("dir");
    fs::create_dir(&dir).unwrap();
    keep(&dir.join("small"), 1, 100);
    keep(&dir.join("large"), 2, 1 << 20);
    let mut changed = File::options().append(true).open(dir.join("large")).unwrap();
    let other = File::open(dir.join("small")).unwrap();
    sync_dir(&dir).unwrap();

    // What is on its way when the server stops may arrive after all, at most one batch of 512; the rest waits in memory.
    let server = Paused::new(&cluster.metas[0]);
    for n in 0..MADE {
        drop(File::create(dir.join(format!("made{n:03}"))).unwrap());
    }
    let mut last = File::create(dir.join("last")).unwrap();
    last.write_all(&[3; 5000]).unwrap();
    changed.write_all(&[4; 3000]).unwrap();
    let daemon = Paused::new(a.daemon());
    drop(server);

    // What `a` holds is needed, so this waits until its session is ended.
    let (path, (tell, told)) = (b.join("dir/from_b"), mpsc::channel());
    let writer = thread::spawn(move || tell.send(fs::write(path, "b")));
    told.recv_timeout(LONG).expect("a session ends when its validity is over").unwrap();
    drop(daemon);
    writer.join().unwrap().unwrap();

    assert_eq!(errno(changed.sync_all()), Some(libc::EIO));
    assert_eq!(errno(changed.sync_all()), None);
    assert_eq!(errno(other.sync_all()), Some(libc::EIO), "each open file is told");
    assert_eq!(errno(other.sync_all()), None);
    assert_eq!(errno(sync_dir(&dir)), Some(libc::EIO));
    assert_eq!(errno(sync_dir(&dir)), None);
    let mut arrived = Vec::new();
    for mount in [&a, &b] {
        let dir = mount.join("dir");
        assert_eq!(fs::read(dir.join("small")).unwrap(), vec![1; 100]);
        assert_eq!(fs::read(dir.join("large")).unwrap(), vec![2; 1 << 20]);
        assert_eq!(fs::read(dir.join("from_b")).unwrap(), b"b");
        arrived = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        arrived.retain(|name| !["small", "large", "from_b"].contains(&name.as_str()));
        arrived.sort();
        let prefix: Vec<String> = (0..arrived.len()).map(|n| format!("made{n:03}")).collect();
        assert_eq!(arrived, prefix, "what is there is a prefix of what was done");
    }
    // One edit each, and what closing and writing them changed.
    let lost = MADE + 1 - arrived.len();
    assert!(lost >= MADE - 512);
    eventually("what was lost to be counted", LONG, || {
        let session = cluster.session(&a).ok_or("no session")?;
        let counted = session["lost_edits"].as_u64() >= Some(lost as u64)
            && session["lost_files"] == 2
            && session["lost_bytes"] == 8000;
        if counted { Ok(()) } else { Err(session.to_string()) }
    });

    fs::write(dir.join("later"), "still of use").unwrap();
    changed.write_all(&[5; 10]).unwrap();
    changed.sync_all().unwrap();
    assert_eq!(fs::read(b.join("dir/later")).unwrap(), b"still of use");
    assert_eq!(fs::metadata(b.join("dir/large")).unwrap().len(), (1 << 20) + 10);
    drop((changed, other, last));
    unmount_in_time(a);
    unmount_in_time(b);
    cluster.check();
}

/// Two small disks for ChunkServers: loop devices, taken off and removed when this is dropped.
struct SmallDisks {
    dir: tempfile::TempDir,
    mounted: Vec<String>,
}

impl SmallDisks {
    /// A ChunkServer takes up to 128 for its log and 64 for its reserve, the MetaServer 64 for its own; a mount that has heard
    /// of less than 128 beyond what waits in it takes nothing on trust.
    const MIB: u64 = 1024;
    /// Less than the reserves.
    const LEFT_MIB: u64 = 16;

    /// Makes and mounts them. Panics where that is impossible here: without them the test shows nothing.
    fn new() -> Self {
        let mut disks = SmallDisks { dir: tempfile::tempdir().unwrap(), mounted: Vec::new() };
        for n in 0..2 {
            let image = disks.dir.path().join(format!("image{n}"));
            File::create(&image).unwrap().set_len(Self::MIB << 20).unwrap();
            let point = disks.dir.path().join(format!("disk{n}"));
            fs::create_dir(&point).unwrap();
            let (image, point) = (image.to_str().unwrap(), point.to_str().unwrap());
            run("mkfs.ext4", &["-q", "-F", "-m", "0", image]);
            run("mount", &["-o", "loop", image, point]);
            disks.mounted.push(point.to_owned());
        }
        disks
    }

    /// A data directory on one of them.
    fn data(&self, n: usize) -> String {
        format!("{}/data", self.mounted[n])
    }

    /// Somebody else takes what is left but for a part of the reserve. Starts no program: see `Paused`.
    fn fill(&self) {
        for point in &self.mounted {
            let ballast = File::create(Path::new(point).join("ballast")).unwrap();
            let left = sys::available(&ballast).unwrap();
            sys::allocate(&ballast, left.saturating_sub(Self::LEFT_MIB << 20)).unwrap();
        }
    }
}

impl Drop for SmallDisks {
    fn drop(&mut self) {
        for point in &self.mounted {
            // Detaches the loop device too, when the servers are gone.
            Command::new("umount").args(["-l", point]).status().ok();
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EIO))
}

#[test]
fn a_disk_that_fills_up_behind_buffered_writes_is_told_and_what_was_synced_is_intact() {
    const FILE: usize = 1 << 20;
    const MORE: u64 = 32;
    const TAKEN: Duration = Duration::from_secs(15);
    let disks = SmallDisks::new();
    let cluster = Cluster::builder().chunks(0).start();
    let servers: Vec<Server> =
        (0..2).map(|n| cluster.start_chunk(&format!("small{n}"), &disks.data(n))).collect();
    cluster.wait_chunk_servers(2);
    cluster.create_namespace("test", &["--chunk-size", "1MiB"]);
    let (mount, other) = (cluster.mount("a"), cluster.mount("b"));
    for n in 0..8 {
        keep(&mount.join(&format!("kept{n}")), n, FILE);
    }
    keep(&mount.join("large"), 8, 160 * FILE);
    let intact =
        |mount: &Mount| (0..8).all(|n| fs::read(mount.join(&format!("kept{n}"))).unwrap() == vec![n; FILE]);

    // The mount believes that there is room, and takes them; nothing arrives before the disks are full. Where that takes so long
    // that the servers are given up for dead, their room is gone too, and the next write waits for them.
    let paused: Vec<Paused> = servers.iter().map(Paused::new).collect();
    let files = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let (files, mount) = (&files, &mount);
        let taken = scope.spawn(move || {
            for n in 0..MORE {
                let name = format!("more{n}");
                let mut file = File::create(mount.join(&name)).unwrap();
                match file.write_all(&vec![9; FILE]) {
                    Ok(()) => files.lock().unwrap().push((name, file)),
                    Err(error) => return assert!(is_full(&error), "{error}"),
                }
            }
        });
        let begun = Instant::now();
        wait_for("the files to be taken", LONG, || taken.is_finished() || begun.elapsed() > TAKEN);
        disks.fill();
        drop(paused);
    });
    let files = files.into_inner().unwrap();
    let mut told = 0;
    for (name, file) in &files {
        match file.sync_all() {
            Ok(()) => {
                for mount in [&mount, &other] {
                    assert_eq!(fs::read(mount.join(name)).unwrap(), vec![9; FILE], "{name}");
                }
            }
            Err(error) => {
                assert!(is_full(&error), "{error}");
                assert_eq!(errno(file.sync_all()), None, "{name} is told once");
                told += 1;
            }
        }
    }
    assert!(told > 0);
    assert!(intact(&mount) && intact(&other));
    eventually("what was lost to be counted", LONG, || {
        let session = cluster.session(&mount).ok_or("no session")?;
        if session["lost_bytes"] == told * FILE as u64 { Ok(()) } else { Err(session.to_string()) }
    });
    drop(files);

    // By now it has heard that there is no room, and refuses at once.
    eventually("a write to be refused", LONG, || {
        let mut file = File::create(mount.join("refused")).unwrap();
        let Err(error) = file.write_all(&vec![9; FILE]) else { return Err("taken".to_owned()) };
        assert!(is_full(&error), "{error}");
        assert_eq!(errno(file.sync_all()), None);
        Ok(())
    });

    fs::remove_file(mount.join("large")).unwrap();
    eventually("space to come back", LONG, || {
        let mut file = File::create(mount.join("again")).map_err(|error| error.to_string())?;
        file.write_all(&vec![9; 4 * FILE]).and_then(|()| file.sync_all()).map_err(|error| error.to_string())
    });
    assert_eq!(fs::read(other.join("again")).unwrap(), vec![9; 4 * FILE]);
    assert!(intact(&other));
    unmount_in_time(mount);
    unmount_in_time(other);
    cluster.check();
}

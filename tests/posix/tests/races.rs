//! Races between mounts that need a certain moment, brought about on purpose.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use gofs_posix_tests::posix::{self, LockKind, Mapping};
use gofs_posix_tests::{Cluster, content, eventually, wait_for};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_truncation_takes_what_another_mount_had_not_written_yet() {
    let cluster = Cluster::builder().start();
    cluster.create_namespace("test", &["--chunk-size", "64KiB"]);
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let mut rng = StdRng::seed_from_u64(8);
    for round in 0..60 {
        let size = rng.random_range(1..300_000);
        let data = content(round, size);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(a.join("f")).unwrap();
        file.write_all_at(&data, 0).unwrap();
        // Not written back: it is a moment old.
        let left = rng.random_range(0..=size);
        let other = OpenOptions::new().write(true).open(b.join("f")).unwrap();
        other.set_len(left as u64).unwrap();
        let tail = content(round + 1000, 3);
        other.write_all_at(&tail, left as u64).unwrap();
        let expected = [&data[..left], &tail].concat();
        for mount in [&a, &b] {
            assert!(fs::read(mount.join("f")).unwrap() == expected, "round {round}: {size} cut to {left}");
        }
        file.sync_all().unwrap();
        assert!(
            fs::read(b.join("f")).unwrap() == expected,
            "round {round}, after fsync: {size} cut to {left}"
        );
    }
}

#[test]
fn after_a_directory_lost_its_write_permission_nothing_is_made_in_it_and_what_was_is_there() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    for round in 0..10 {
        let dir = format!("d{round}");
        fs::create_dir(a.join(&dir)).unwrap();
        fs::set_permissions(a.join(&dir), fs::Permissions::from_mode(0o777)).unwrap();
        let maker = Command::new("setpriv")
            .args(["--reuid=12345", "--regid=12345", "--clear-groups", "sh", "-c"])
            .arg("i=0; while (: > f$i) 2>/dev/null; do i=$((i+1)); done; echo $i")
            .current_dir(a.join(&dir))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let made = |mount: &gofs_posix_tests::Mount| fs::read_dir(mount.join(&dir)).unwrap().count();
        // Seen by looking for a name, which does not make every create ask the servers.
        wait_for("some files", LONG, || a.join(&format!("{dir}/f{}", 10 + round)).exists());
        fs::set_permissions(b.join(&dir), fs::Permissions::from_mode(0o555)).unwrap();
        let then = made(&b);
        let output = maker.wait_with_output().unwrap();
        let succeeded: usize = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        // One may have been checked before and made after.
        assert!((then..=then + 1).contains(&succeeded), "{then} at the chmod, {succeeded} in the end");
        assert_eq!((made(&a), made(&b)), (succeeded, succeeded));
    }
}

#[test]
fn a_removed_file_outlives_a_killed_holder_and_goes_with_the_last_one() {
    let cluster = Cluster::builder().session_s(4).start();
    cluster.create_namespace("test", &["--chunk-size", "64KiB"]);
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let data = content(18, 200_000);
    fs::write(b.join("f"), &data).unwrap();
    let (of_killed, file) = (File::open(a.join("f")).unwrap(), File::open(b.join("f")).unwrap());
    fs::remove_file(b.join("f")).unwrap();
    a.kill();
    drop(of_killed);
    let sessions = || cluster.ctl_json(&["sessions"]).as_array().unwrap().len();
    wait_for("the dead mount's session to end", LONG, || sessions() == 1);
    gofs_posix_tests::shell(Path::new("/"), "echo 1 > /proc/sys/vm/drop_caches");
    let mut read = Vec::new();
    (&file).read_to_end(&mut read).unwrap();
    assert!(read == data, "{} bytes", read.len());
    assert_eq!(cluster.ctl_json(&["fsck"])["inodes"], 2, "the root and a file without a name");
    drop(file);
    eventually("its inode and its chunks to be freed", LONG, || {
        let (check, status) = (cluster.ctl_json(&["fsck"]), cluster.ctl_json(&["status"]));
        match check["inodes"] == 1 && status["chunks"] == 0 {
            true => Ok(()),
            false => Err(format!("{check} {status}")),
        }
    });
    cluster.check();
}

/// Threads of this process whose request for a lock is with a mount's daemon.
fn waiting_for_locks() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let stacks = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("stack")).ok());
    stacks.filter(|stack| stack.contains("fuse_setlk")).count()
}

#[test]
fn waiting_programs_do_not_keep_pages_of_a_map_from_being_written_back() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount_as("a", "test", "threads=1"), cluster.mount("b"));
    fs::write(b.join("lock"), "").unwrap();
    fs::write(a.join("map"), vec![0; 16384]).unwrap();
    let held = OpenOptions::new().read(true).write(true).open(b.join("lock")).unwrap();
    posix::lock(&held, LockKind::Exclusive, 0, 0, true).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let file = OpenOptions::new().read(true).write(true).open(a.join("lock")).unwrap();
                posix::lock(&file, LockKind::Exclusive, 0, 0, true).unwrap();
            });
        }
        wait_for("four programs that wait for the lock in the kernel", LONG, || waiting_for_locks() == 4);
        let map = OpenOptions::new().read(true).write(true).open(a.join("map")).unwrap();
        let mut mapping = Mapping::new(&map, 16384).unwrap();
        for round in 0..20u8 {
            mapping.write(0, &[round; 100]);
            let other = OpenOptions::new().write(true).open(b.join("map")).unwrap();
            other.write_all_at(&[round; 100], 8192).unwrap();
            mapping.sync().unwrap();
            let seen = fs::read(b.join("map")).unwrap();
            assert!(seen[..100] == [round; 100] && seen[8192..8292] == [round; 100], "round {round}");
        }
        posix::lock(&held, LockKind::Unlock, 0, 0, false).unwrap();
    });
}

/// Passes connections on to a server until it is cut; what is under way then goes nowhere.
struct Wire {
    address: String,
    cut: Arc<AtomicBool>,
}

impl Wire {
    fn to(server: String) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = cut.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for from in listener.incoming().map_while(Result::ok) {
                let Ok(to) = TcpStream::connect(&server) else { continue };
                let back = (to.try_clone().unwrap(), from.try_clone().unwrap());
                for (mut source, mut target) in [(from, to), back] {
                    let is_cut = is_cut.clone();
                    std::thread::spawn(move || {
                        let mut bytes = [0; 65536];
                        while let Ok(count @ 1..) = source.read(&mut bytes) {
                            wait_for("the wire to be whole again", LONG * 10, || {
                                !is_cut.load(Ordering::Acquire)
                            });
                            if target.write_all(&bytes[..count]).is_err() {
                                return;
                            }
                        }
                    });
                }
            }
        });
        Wire { address, cut }
    }
}

#[test]
fn a_mount_that_is_cut_off_shows_nothing_old_once_others_may_change_it() {
    let cluster = Cluster::builder().session_s(4).start();
    cluster.create_namespace("test", &[]);
    let wire = Wire::to(cluster.meta());
    let a = cluster.mount_at(&wire.address, "a", "test", "");
    let b = cluster.mount("b");
    fs::write(b.join("f"), "old").unwrap();
    assert_eq!(fs::read_to_string(a.join("f")).unwrap(), "old");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = Vec::new();
            while !stop.load(Ordering::Acquire) {
                let begun = Instant::now();
                reads.push((begun, fs::read_to_string(a.join("f")).unwrap()));
            }
            reads
        });
        wire.cut.store(true, Ordering::Release);
        let cut_at = Instant::now();
        fs::write(b.join("f"), "new").unwrap();
        let changed_at = Instant::now();
        // What a reads now has to wait until it has a session again.
        wire.cut.store(false, Ordering::Release);
        wait_for("the change to be seen", LONG, || fs::read_to_string(a.join("f")).unwrap() == "new");
        stop.store(true, Ordering::Release);
        let reads = reader.join().unwrap();
        let old_after = reads.iter().filter(|(begun, text)| *begun > changed_at && text == "old").count();
        assert_eq!(old_after, 0, "of {} reads", reads.len());
        assert!(reads.iter().any(|(begun, text)| *begun > cut_at && text == "old"), "read from the cache");
    });
    // Its session had ended.
    drop(a);
}

/// A read or a write of a number: when it was called and when it returned.
#[derive(Clone, Copy, Debug)]
struct Access {
    begun: Instant,
    ended: Instant,
    value: u64,
    wrote: bool,
}

/// Does it on the number at the beginning of the file.
fn access(file: &File, write: Option<u64>) -> Access {
    let begun = Instant::now();
    let mut bytes = write.unwrap_or_default().to_le_bytes();
    match write {
        Some(_) => file.write_all_at(&bytes, 0).unwrap(),
        None => file.read_exact_at(&mut bytes, 0).unwrap(),
    }
    Access { begun, ended: Instant::now(), value: u64::from_le_bytes(bytes), wrote: write.is_some() }
}

/// A value that was read, then a write of another one, and then the first again: each began when the one before had returned.
fn seen_again(accesses: &[Access]) -> Option<[Access; 3]> {
    let writes: Vec<&Access> = accesses.iter().filter(|access| access.wrote).collect();
    let mut reads: HashMap<u64, Vec<&Access>> = HashMap::new();
    for read in accesses.iter().filter(|access| !access.wrote) {
        reads.entry(read.value).or_default().push(read);
    }
    reads.values().find_map(|reads| {
        let first = reads.iter().min_by_key(|read| read.ended)?;
        let last = reads.iter().max_by_key(|read| read.begun)?;
        let between = writes.iter().find(|write| {
            write.value != first.value && write.begun > first.ended && write.ended < last.begun
        })?;
        Some([**first, **between, **last])
    })
}

#[test]
fn nobody_sees_what_a_program_writes_before_it_counts_for_everybody() {
    const FOR: Duration = Duration::from_secs(8);
    let cluster = Cluster::start();
    let mounts = [cluster.mount("a"), cluster.mount("b")];
    fs::write(mounts[0].join("f"), 0u64.to_le_bytes()).unwrap();
    let next = AtomicU64::new(1);
    let end = Instant::now() + FOR;
    let accesses = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (number, mount) in mounts.iter().enumerate() {
            for writes in [true, false, false] {
                let (next, accesses) = (&next, &accesses);
                let path = mount.join("f");
                scope.spawn(move || {
                    let mut rng = StdRng::seed_from_u64(number as u64);
                    let file = OpenOptions::new().read(!writes).write(writes).open(path).unwrap();
                    let mut own = Vec::new();
                    while Instant::now() < end {
                        own.push(access(&file, writes.then(|| next.fetch_add(1, Ordering::Relaxed))));
                        std::thread::sleep(Duration::from_micros(rng.random_range(0..2000)));
                    }
                    accesses.lock().unwrap().append(&mut own);
                });
            }
        }
    });
    let accesses = accesses.into_inner().unwrap();
    println!("{} reads and writes", accesses.len());
    assert!(seen_again(&accesses).is_none(), "{:#?}", seen_again(&accesses));
}

#[test]
fn who_sees_a_change_of_attributes_first_is_not_followed_by_anybody_who_does_not_see_it() {
    const FOR: Duration = Duration::from_secs(8);
    let cluster = Cluster::start();
    let mounts = [cluster.mount("a"), cluster.mount("b")];
    let time = |value| SystemTime::UNIX_EPOCH + Duration::from_secs(value);
    File::create(mounts[0].join("f")).unwrap().set_modified(time(0)).unwrap();
    let end = Instant::now() + FOR;
    let looks = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = OpenOptions::new().write(true).open(mounts[0].join("f")).unwrap();
            let mut rng = StdRng::seed_from_u64(3);
            for value in 1.. {
                if Instant::now() > end {
                    return;
                }
                file.set_modified(time(value)).unwrap();
                std::thread::sleep(Duration::from_micros(rng.random_range(0..3000)));
            }
        });
        for mount in [&mounts[0], &mounts[0], &mounts[1]] {
            scope.spawn(|| {
                let mut own = Vec::new();
                while Instant::now() < end {
                    let begun = Instant::now();
                    let value = fs::metadata(mount.join("f")).unwrap().mtime();
                    own.push((begun, Instant::now(), value));
                    std::thread::sleep(Duration::from_micros(100));
                }
                looks.lock().unwrap().append(&mut own);
            });
        }
    });
    let mut looks = looks.into_inner().unwrap();
    println!("{} looks, {} changes", looks.len(), looks.iter().map(|look| look.2).max().unwrap());
    looks.sort_by_key(|look| look.0);
    let mut ended = looks.clone();
    ended.sort_by_key(|look| look.1);
    let mut before = ended.iter().peekable();
    let mut newest = 0;
    for (begun, _, value) in &looks {
        while let Some(look) = before.next_if(|look| look.1 < *begun) {
            newest = newest.max(look.2);
        }
        assert!(*value >= newest, "{value} was seen after {newest}");
    }
}

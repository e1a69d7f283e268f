//! What one mount does, the other sees with its next operation, whatever it had cached before.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use gofs_posix_tests::posix::{self, LockKind, Mapping, RenameKind};
use gofs_posix_tests::{Cluster, Mount, wait_for};

/// One operation: done on one mount, looked at on the other.
struct Case {
    name: &'static str,
    /// Makes what is there before.
    before: fn(&Path),
    /// Lets the observer cache what will change. Also done by the actor first.
    warm: fn(&Path),
    /// The operation.
    act: fn(&Path),
    /// What must be seen then.
    see: fn(&Path),
}

fn nothing(_: &Path) {}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn file_with_hello(dir: &Path) {
    fs::write(dir.join("f"), "hello").unwrap();
}

fn read_and_stat(dir: &Path) {
    names(dir);
    let file = dir.join("f");
    fs::metadata(&file).unwrap();
    fs::read(&file).unwrap();
}

const CASES: &[Case] = &[
    Case {
        name: "create after a look-up that found nothing",
        before: nothing,
        warm: |dir| assert!(!dir.join("f").exists() && names(dir).is_empty()),
        act: |dir| fs::write(dir.join("f"), "x").unwrap(),
        see: |dir| {
            assert!(dir.join("f").exists());
            assert_eq!(names(dir), ["f"]);
            assert_eq!(fs::read(dir.join("f")).unwrap(), b"x");
        },
    },
    Case {
        name: "exclusive create of what the other made",
        before: nothing,
        warm: |dir| assert!(!dir.join("f").exists()),
        act: |dir| drop(File::create_new(dir.join("f")).unwrap()),
        see: |dir| {
            let error = File::create_new(dir.join("f")).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        },
    },
    Case {
        name: "unlink",
        before: file_with_hello,
        warm: read_and_stat,
        act: |dir| fs::remove_file(dir.join("f")).unwrap(),
        see: |dir| {
            assert_eq!(File::open(dir.join("f")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
            assert!(names(dir).is_empty());
        },
    },
    Case {
        name: "rename over an existing file",
        before: |dir| {
            file_with_hello(dir);
            fs::write(dir.join("new"), "other").unwrap();
        },
        warm: |dir| {
            read_and_stat(dir);
            fs::read(dir.join("new")).unwrap();
        },
        act: |dir| fs::rename(dir.join("new"), dir.join("f")).unwrap(),
        see: |dir| {
            assert_eq!(fs::read(dir.join("f")).unwrap(), b"other");
            assert!(!dir.join("new").exists());
            assert_eq!(names(dir), ["f"]);
        },
    },
    Case {
        name: "rename into another directory",
        before: |dir| {
            fs::create_dir(dir.join("d")).unwrap();
            file_with_hello(dir);
        },
        warm: |dir| {
            read_and_stat(dir);
            assert!(names(&dir.join("d")).is_empty());
        },
        act: |dir| fs::rename(dir.join("f"), dir.join("d/g")).unwrap(),
        see: |dir| {
            assert_eq!(names(dir), ["d"]);
            assert_eq!(fs::read(dir.join("d/g")).unwrap(), b"hello");
        },
    },
    Case {
        name: "rename of a directory with files in it",
        before: |dir| {
            fs::create_dir_all(dir.join("d/e")).unwrap();
            fs::write(dir.join("d/e/f"), "deep").unwrap();
        },
        warm: |dir| drop(fs::read(dir.join("d/e/f")).unwrap()),
        act: |dir| fs::rename(dir.join("d"), dir.join("moved")).unwrap(),
        see: |dir| {
            assert!(!dir.join("d/e/f").exists());
            assert_eq!(fs::read(dir.join("moved/e/f")).unwrap(), b"deep");
        },
    },
    Case {
        name: "exchange of two files",
        before: |dir| {
            file_with_hello(dir);
            fs::write(dir.join("g"), "world").unwrap();
        },
        warm: |dir| {
            read_and_stat(dir);
            fs::read(dir.join("g")).unwrap();
        },
        act: |dir| posix::rename(&dir.join("f"), &dir.join("g"), RenameKind::Exchange).unwrap(),
        see: |dir| {
            assert_eq!(fs::read(dir.join("f")).unwrap(), b"world");
            assert_eq!(fs::read(dir.join("g")).unwrap(), b"hello");
        },
    },
    Case {
        name: "truncate",
        before: |dir| fs::write(dir.join("f"), vec![7; 100_000]).unwrap(),
        warm: read_and_stat,
        act: |dir| OpenOptions::new().write(true).open(dir.join("f")).unwrap().set_len(3).unwrap(),
        see: |dir| {
            assert_eq!(fs::metadata(dir.join("f")).unwrap().len(), 3);
            assert_eq!(fs::read(dir.join("f")).unwrap(), [7; 3]);
        },
    },
    Case {
        name: "truncate and extension show zeros",
        before: |dir| fs::write(dir.join("f"), vec![7; 100_000]).unwrap(),
        warm: read_and_stat,
        act: |dir| {
            let file = OpenOptions::new().write(true).open(dir.join("f")).unwrap();
            file.set_len(10).unwrap();
            file.set_len(50_000).unwrap();
        },
        see: |dir| {
            let mut expected = vec![0; 50_000];
            expected[..10].fill(7);
            assert!(fs::read(dir.join("f")).unwrap() == expected);
        },
    },
    Case {
        name: "open with O_TRUNC",
        before: file_with_hello,
        warm: read_and_stat,
        act: |dir| drop(File::create(dir.join("f")).unwrap()),
        see: |dir| {
            assert_eq!(fs::metadata(dir.join("f")).unwrap().len(), 0);
            assert!(fs::read(dir.join("f")).unwrap().is_empty());
        },
    },
    Case {
        name: "append",
        before: file_with_hello,
        warm: read_and_stat,
        act: |dir| {
            OpenOptions::new().append(true).open(dir.join("f")).unwrap().write_all(b" world").unwrap();
        },
        see: |dir| assert_eq!(fs::read(dir.join("f")).unwrap(), b"hello world"),
    },
    Case {
        name: "write in place, size unchanged",
        before: |dir| fs::write(dir.join("f"), vec![1; 3 << 20]).unwrap(),
        warm: read_and_stat,
        act: |dir| {
            let file = OpenOptions::new().write(true).open(dir.join("f")).unwrap();
            file.write_all_at(&[2; 4096], 1 << 20).unwrap();
        },
        see: |dir| {
            let bytes = fs::read(dir.join("f")).unwrap();
            assert_eq!(bytes.len(), 3 << 20);
            assert!(bytes[1 << 20..][..4096].iter().all(|&byte| byte == 2));
            assert!(bytes[..1 << 20].iter().chain(&bytes[(1 << 20) + 4096..]).all(|&byte| byte == 1));
        },
    },
    Case {
        name: "write of a small file in place",
        before: file_with_hello,
        warm: read_and_stat,
        act: |dir| {
            OpenOptions::new().write(true).open(dir.join("f")).unwrap().write_all_at(b"J", 0).unwrap();
        },
        see: |dir| assert_eq!(fs::read(dir.join("f")).unwrap(), b"Jello"),
    },
    Case {
        name: "store through a shared map, msync",
        before: |dir| fs::write(dir.join("f"), vec![1; 10_000]).unwrap(),
        warm: read_and_stat,
        act: |dir| {
            let file = OpenOptions::new().read(true).write(true).open(dir.join("f")).unwrap();
            let mut map = Mapping::new(&file, 10_000).unwrap();
            map.write(5_000, b"mapped");
            map.sync().unwrap();
        },
        see: |dir| assert_eq!(&fs::read(dir.join("f")).unwrap()[5_000..5_006], b"mapped"),
    },
    Case {
        name: "hole punched",
        before: |dir| fs::write(dir.join("f"), vec![1; 1 << 20]).unwrap(),
        warm: read_and_stat,
        act: |dir| {
            let file = OpenOptions::new().write(true).open(dir.join("f")).unwrap();
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            posix::fallocate(&file, mode, 4096, 8192).unwrap();
        },
        see: |dir| {
            let bytes = fs::read(dir.join("f")).unwrap();
            assert_eq!(bytes.len(), 1 << 20);
            assert!(bytes[4096..12_288].iter().all(|&byte| byte == 0));
            assert!(bytes[..4096].iter().chain(&bytes[12_288..]).all(|&byte| byte == 1));
        },
    },
    Case {
        name: "fallocate extends",
        before: file_with_hello,
        warm: read_and_stat,
        act: |dir| {
            let file = OpenOptions::new().write(true).open(dir.join("f")).unwrap();
            posix::fallocate(&file, 0, 0, 9_000).unwrap();
        },
        see: |dir| {
            let bytes = fs::read(dir.join("f")).unwrap();
            assert_eq!(bytes.len(), 9_000);
            assert!(bytes.starts_with(b"hello\0") && bytes[5..].iter().all(|&byte| byte == 0));
        },
    },
    Case {
        name: "copy_file_range",
        before: |dir| {
            file_with_hello(dir);
            fs::write(dir.join("from"), vec![9; 200_000]).unwrap();
        },
        warm: read_and_stat,
        act: |dir| {
            let from = File::open(dir.join("from")).unwrap();
            let to = OpenOptions::new().write(true).open(dir.join("f")).unwrap();
            let mut done = 0;
            while done < 200_000 {
                let copied =
                    posix::copy_range(&from, done as u64, &to, 5 + done as u64, 200_000 - done).unwrap();
                assert!(copied > 0, "copied {done} bytes, then none");
                done += copied;
            }
        },
        see: |dir| {
            let bytes = fs::read(dir.join("f")).unwrap();
            assert_eq!(bytes.len(), 200_005);
            assert!(bytes.starts_with(b"hello") && bytes[5..].iter().all(|&byte| byte == 9));
        },
    },
    Case {
        name: "chmod",
        before: file_with_hello,
        warm: read_and_stat,
        act: |dir| fs::set_permissions(dir.join("f"), fs::Permissions::from_mode(0o640)).unwrap(),
        see: |dir| assert_eq!(fs::metadata(dir.join("f")).unwrap().mode() & 0o7777, 0o640),
    },
    Case {
        name: "chown",
        before: file_with_hello,
        warm: read_and_stat,
        act: |dir| std::os::unix::fs::chown(dir.join("f"), Some(1234), Some(5678)).unwrap(),
        see: |dir| {
            let metadata = fs::metadata(dir.join("f")).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
        },
    },
    Case {
        name: "utimes",
        before: file_with_hello,
        warm: read_and_stat,
        act: |dir| {
            let time = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
            File::open(dir.join("f")).unwrap().set_modified(time).unwrap();
        },
        see: |dir| {
            let metadata = fs::metadata(dir.join("f")).unwrap();
            assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1_000_000_000, 123_456_789));
        },
    },
    Case {
        name: "hard link",
        before: file_with_hello,
        warm: |dir| {
            read_and_stat(dir);
            assert!(!dir.join("g").exists());
        },
        act: |dir| fs::hard_link(dir.join("f"), dir.join("g")).unwrap(),
        see: |dir| {
            assert_eq!(fs::metadata(dir.join("f")).unwrap().nlink(), 2);
            assert_eq!(
                fs::metadata(dir.join("f")).unwrap().ino(),
                fs::metadata(dir.join("g")).unwrap().ino()
            );
            assert_eq!(names(dir), ["f", "g"]);
        },
    },
    Case {
        name: "unlink of one of two names",
        before: |dir| {
            file_with_hello(dir);
            fs::hard_link(dir.join("f"), dir.join("g")).unwrap();
        },
        warm: |dir| assert_eq!(fs::metadata(dir.join("g")).unwrap().nlink(), 2),
        act: |dir| fs::remove_file(dir.join("f")).unwrap(),
        see: |dir| assert_eq!(fs::metadata(dir.join("g")).unwrap().nlink(), 1),
    },
    Case {
        name: "mkdir and what is in it",
        before: nothing,
        warm: |dir| assert!(!dir.join("d").exists()),
        act: |dir| {
            fs::create_dir(dir.join("d")).unwrap();
            fs::write(dir.join("d/f"), "in").unwrap();
        },
        see: |dir| {
            assert_eq!(fs::read(dir.join("d/f")).unwrap(), b"in");
            assert_eq!(fs::metadata(dir).unwrap().nlink(), 3);
        },
    },
    Case {
        name: "rmdir",
        before: |dir| fs::create_dir(dir.join("d")).unwrap(),
        warm: |dir| assert!(names(&dir.join("d")).is_empty()),
        act: |dir| fs::remove_dir(dir.join("d")).unwrap(),
        see: |dir| {
            assert!(!dir.join("d").exists());
            assert_eq!(fs::metadata(dir).unwrap().nlink(), 2);
            assert_eq!(File::create(dir.join("d/f")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        },
    },
    Case {
        name: "rmdir of a directory that the other filled",
        before: |dir| fs::create_dir(dir.join("d")).unwrap(),
        warm: |dir| assert!(names(&dir.join("d")).is_empty()),
        act: |dir| fs::write(dir.join("d/f"), "").unwrap(),
        see: |dir| {
            let error = fs::remove_dir(dir.join("d")).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTEMPTY));
        },
    },
    Case {
        name: "symlink replaced by another",
        before: |dir| symlink("one", dir.join("l")).unwrap(),
        warm: |dir| assert_eq!(fs::read_link(dir.join("l")).unwrap(), Path::new("one")),
        act: |dir| {
            symlink("two", dir.join("l2")).unwrap();
            fs::rename(dir.join("l2"), dir.join("l")).unwrap();
        },
        see: |dir| assert_eq!(fs::read_link(dir.join("l")).unwrap(), Path::new("two")),
    },
    Case {
        name: "a directory with many entries",
        before: |dir| {
            for index in 0..300 {
                fs::write(dir.join(format!("f{index}")), "").unwrap();
            }
        },
        warm: |dir| assert_eq!(names(dir).len(), 300),
        act: |dir| {
            for index in (0..300).step_by(3) {
                fs::remove_file(dir.join(format!("f{index}"))).unwrap();
            }
            fs::write(dir.join("more"), "").unwrap();
        },
        see: |dir| {
            assert_eq!(names(dir).len(), 201);
            assert!(dir.join("more").exists() && !dir.join("f297").exists() && dir.join("f298").exists());
        },
    },
    Case {
        name: "extended attribute set",
        before: file_with_hello,
        warm: |dir| {
            let error = posix::get_xattr(&dir.join("f"), "user.colour").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODATA));
        },
        act: |dir| posix::set_xattr(&dir.join("f"), "user.colour", b"blue").unwrap(),
        see: |dir| {
            assert_eq!(posix::get_xattr(&dir.join("f"), "user.colour").unwrap(), b"blue");
            assert_eq!(posix::list_xattrs(&dir.join("f")).unwrap(), ["user.colour"]);
        },
    },
    Case {
        name: "extended attribute removed",
        before: |dir| {
            file_with_hello(dir);
            posix::set_xattr(&dir.join("f"), "user.colour", b"blue").unwrap();
        },
        warm: |dir| assert_eq!(posix::get_xattr(&dir.join("f"), "user.colour").unwrap(), b"blue"),
        act: |dir| posix::remove_xattr(&dir.join("f"), "user.colour").unwrap(),
        see: |dir| {
            let error = posix::get_xattr(&dir.join("f"), "user.colour").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODATA));
            assert!(posix::list_xattrs(&dir.join("f")).unwrap().is_empty());
        },
    },
    Case {
        name: "special files",
        before: nothing,
        warm: |dir| assert!(names(dir).is_empty()),
        act: |dir| {
            posix::make_node(&dir.join("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
            posix::make_node(&dir.join("null"), libc::S_IFCHR | 0o666, libc::makedev(1, 3)).unwrap();
            posix::make_node(&dir.join("socket"), libc::S_IFSOCK | 0o600, 0).unwrap();
        },
        see: |dir| {
            let mode = |name: &str| fs::symlink_metadata(dir.join(name)).unwrap().mode();
            assert_eq!(mode("fifo"), libc::S_IFIFO | 0o600);
            assert_eq!(mode("socket"), libc::S_IFSOCK | 0o600);
            assert_eq!(fs::metadata(dir.join("null")).unwrap().rdev(), libc::makedev(1, 3));
        },
    },
];

#[test]
fn every_operation_on_one_mount_is_seen_on_the_other() {
    let cluster = Cluster::start();
    let mounts = [cluster.mount("a"), cluster.mount("b")];
    let mut failures = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        for (actor, observer) in [(0, 1), (1, 0)] {
            let dir = format!("case-{number}-{actor}");
            let (acts, sees) = (mounts[actor].join(&dir), mounts[observer].join(&dir));
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                fs::create_dir(&acts).unwrap();
                (case.before)(&acts);
                (case.warm)(&acts);
                (case.warm)(&sees);
                (case.act)(&acts);
                (case.see)(&sees);
                (case.see)(&acts);
            }));
            if outcome.is_err() {
                failures.push(format!("{} (mount {actor} acts)", case.name));
            }
        }
    }
    assert!(failures.is_empty(), "not seen:\n{}", failures.join("\n"));
    cluster.check();
}

#[test]
fn an_open_file_shows_what_the_other_mount_writes() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    fs::write(a.join("f"), "0").unwrap();
    let mut reader = File::open(b.join("f")).unwrap();
    let writer = OpenOptions::new().write(true).open(a.join("f")).unwrap();
    for round in 1..=200_u32 {
        let text = format!("{round:08}").repeat(700);
        writer.write_all_at(text.as_bytes(), 0).unwrap();
        let mut seen = String::new();
        reader.seek(SeekFrom::Start(0)).unwrap();
        reader.read_to_string(&mut seen).unwrap();
        assert!(seen == text, "round {round}: {} bytes, begins with {:?}", seen.len(), seen.get(..8));
        assert_eq!(reader.metadata().unwrap().len(), text.len() as u64);
    }
}

#[test]
fn an_unlinked_open_file_lives_until_its_last_close_on_any_mount() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    fs::write(a.join("f"), vec![3; 500_000]).unwrap();
    let held = File::open(a.join("f")).unwrap();
    let mut also_held = OpenOptions::new().read(true).write(true).open(b.join("f")).unwrap();
    fs::remove_file(b.join("f")).unwrap();
    assert!(!a.join("f").exists());
    also_held.write_all(b"changed").unwrap();
    let mut seen = vec![0; 500_000];
    held.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen.starts_with(b"changed") && seen[7..].iter().all(|&byte| byte == 3));
    assert_eq!(held.metadata().unwrap().nlink(), 0);
    drop(also_held);
    held.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen.starts_with(b"changed"));
    drop(held);
    fs::write(a.join("f"), "new").unwrap();
    assert_eq!(fs::read(b.join("f")).unwrap(), b"new");
    cluster.check();
}

#[test]
fn a_file_replaced_by_rename_stays_readable_where_it_is_open() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    fs::write(a.join("f"), "old contents").unwrap();
    let held = File::open(b.join("f")).unwrap();
    fs::write(a.join("g"), "new contents").unwrap();
    fs::rename(a.join("g"), a.join("f")).unwrap();
    let mut seen = [0; 12];
    held.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"old contents");
    assert_eq!(fs::read(b.join("f")).unwrap(), b"new contents");
}

#[test]
fn appends_from_two_mounts_are_neither_lost_nor_torn() {
    append_from_two(6, 100_000, |path| OpenOptions::new().append(true).create(true).open(path).unwrap());
}

#[test]
fn appends_by_o_append_set_after_the_open_are_not_lost() {
    // Records of 32 bytes: none crosses the end of a page, where the kernel would make two writes of it.
    append_from_two(15, 300, |path| {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = options.unwrap();
        posix::set_append(&file).unwrap();
        file
    });
}

fn append_from_two(digits: usize, records: usize, open: fn(&Path) -> File) {
    let cluster = Cluster::start();
    let mounts = [cluster.mount("a"), cluster.mount("b")];
    std::thread::scope(|scope| {
        for (number, mount) in mounts.iter().enumerate() {
            scope.spawn(move || {
                let mut file = open(&mount.join("log"));
                for record in 0..records {
                    file.write_all(format!("writer {number} record {record:0digits$}\n").as_bytes()).unwrap();
                }
            });
        }
    });
    for mount in &mounts {
        let text = fs::read_to_string(mount.join("log")).unwrap();
        let mut next = [0; 2];
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(words.len(), 4, "torn: {line:?}");
            let writer: usize = words[1].parse().unwrap();
            assert_eq!(words[3].parse::<usize>().unwrap(), next[writer], "writer {writer}");
            next[writer] += 1;
        }
        assert_eq!(next, [records; 2]);
    }
}

#[test]
fn of_two_exclusive_creates_one_succeeds() {
    let cluster = Cluster::start();
    let mounts = [cluster.mount("a"), cluster.mount("b")];
    for round in 0..100 {
        let name = format!("lock{round}");
        let barrier = std::sync::Barrier::new(2);
        let won: usize = std::thread::scope(|scope| {
            let tries: Vec<_> = mounts
                .iter()
                .map(|mount| {
                    scope.spawn(|| {
                        barrier.wait();
                        match File::create_new(mount.join(&name)) {
                            Ok(_) => 1,
                            Err(error) => {
                                assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
                                0
                            }
                        }
                    })
                })
                .collect();
            tries.into_iter().map(|tried| tried.join().unwrap()).sum()
        });
        assert_eq!(won, 1, "round {round}");
    }
}

#[test]
fn two_mounts_that_create_and_rename_in_the_same_directories_do_not_wait_for_ever() {
    let cluster = Cluster::start();
    let mounts = [cluster.mount("a"), cluster.mount("b")];
    fs::create_dir(mounts[0].join("x")).unwrap();
    fs::create_dir(mounts[0].join("y")).unwrap();
    std::thread::scope(|scope| {
        for (number, mount) in mounts.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..200 {
                    // Crossed: one moves from x to y while the other moves from y to x.
                    let (from, to) = if (round + number) % 2 == 0 { ("x", "y") } else { ("y", "x") };
                    let name = format!("m{number}-{round}");
                    fs::write(mount.join(from).join(&name), &name).unwrap();
                    fs::rename(mount.join(from).join(&name), mount.join(to).join(&name)).unwrap();
                }
            });
        }
    });
    for mount in &mounts {
        assert_eq!(names(&mount.join("x")).len() + names(&mount.join("y")).len(), 400);
    }
    cluster.check();
}

#[test]
fn two_mounts_that_list_each_others_new_files_do_not_wait_for_ever() {
    const ROUNDS: usize = 20;
    const FILES: usize = 8;
    // A session is fenced for a recall that it has not answered for 30 s.
    const LONG: Duration = Duration::from_secs(15);
    let cluster = Cluster::start();
    let mounts = [cluster.mount("a"), cluster.mount("b")];
    let together = std::sync::Barrier::new(2);
    let list = &|number: usize, mount: &Mount, round: usize| {
        let dir = mount.join(&format!("d{round}"));
        let made = if number == 0 { fs::create_dir(&dir) } else { Ok(()) };
        together.wait();
        // Each holds its own files for writing and asks for the attributes of the other's.
        let mut written = (0..FILES).map(|file| fs::write(dir.join(format!("{number}-{file}")), "new"));
        let written = written.try_for_each(|result| result);
        together.wait();
        let begun = Instant::now();
        let listed = fs::read_dir(&dir).map(Iterator::count);
        (made.and(written).and(listed), begun.elapsed())
    };
    std::thread::scope(|scope| {
        let listing = mounts.iter().enumerate().map(|(number, mount)| {
            scope.spawn(move || (0..ROUNDS).map(|round| list(number, mount, round)).collect::<Vec<_>>())
        });
        for lister in listing.collect::<Vec<_>>() {
            for (round, (listed, took)) in lister.join().unwrap().into_iter().enumerate() {
                assert_eq!(listed.unwrap(), 2 * FILES, "round {round}");
                assert!(took < LONG, "round {round}: listing took {took:?}");
            }
        }
    });
    cluster.check();
}

#[test]
fn fsync_brings_bytes_to_stable_storage_that_another_mount_had_asked_for() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let mut file = File::create(a.join("f")).unwrap();
    file.write_all(&[1; 100_000]).unwrap();
    // Takes the lease: `a` sends the bytes to the ChunkServers and forgets all that it knows of the file.
    let mut other = OpenOptions::new().append(true).open(b.join("f")).unwrap();
    other.write_all(b"more").unwrap();
    let before = a.counted("round_trip chunk.Sync");
    file.sync_all().unwrap();
    assert!(a.counted("round_trip chunk.Sync") > before, "no ChunkServer was asked to sync");
    assert_eq!(fs::metadata(a.join("f")).unwrap().len(), 100_004);
}

#[test]
fn byte_range_locks_hold_across_mounts() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    fs::write(a.join("f"), vec![0; 100]).unwrap();
    let open = |path| OpenOptions::new().read(true).write(true).open(path).unwrap();
    let (on_a, on_b) = (open(a.join("f")), open(b.join("f")));
    posix::lock(&on_a, LockKind::Exclusive, 10, 10, false).unwrap();
    let refused = posix::lock(&on_b, LockKind::Shared, 15, 1, false).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN));
    posix::lock(&on_b, LockKind::Exclusive, 20, 10, false).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| posix::lock(&on_b, LockKind::Exclusive, 0, 15, true));
        posix::lock(&on_a, LockKind::Unlock, 0, 0, false).unwrap();
        waits.join().unwrap().unwrap();
    });
    let refused = posix::lock(&on_a, LockKind::Shared, 0, 1, false).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN));
    // A close gives the locks up.
    drop(on_b);
    posix::lock(&on_a, LockKind::Exclusive, 0, 0, true).unwrap();
}

#[test]
fn flock_holds_across_mounts_and_ends_with_the_last_close() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let on_a = File::create(a.join("f")).unwrap();
    let on_b = File::open(b.join("f")).unwrap();
    on_a.lock().unwrap();
    assert!(matches!(on_b.try_lock_shared(), Err(fs::TryLockError::WouldBlock)));
    let duplicate = on_a.try_clone().unwrap();
    drop(on_a);
    assert!(matches!(on_b.try_lock(), Err(fs::TryLockError::WouldBlock)), "its duplicate is still open");
    drop(duplicate);
    wait_for("the lock to be free", Duration::from_secs(10), || on_b.try_lock().is_ok());
}

#[test]
fn a_program_that_waits_for_a_lock_can_be_killed() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let held = File::create(a.join("f")).unwrap();
    held.lock().unwrap();
    let mut waits = std::process::Command::new("flock").arg(b.join("f")).arg("true").spawn().unwrap();
    // It sleeps in the kernel once it waits.
    let stat = format!("/proc/{}/wchan", waits.id());
    wait_for("flock to wait", Duration::from_secs(10), || {
        fs::read_to_string(&stat).is_ok_and(|wchan| wchan.contains("fuse") || wchan.contains("request_wait"))
            || fs::read_to_string(format!("/proc/{}/stack", waits.id()))
                .is_ok_and(|stack| stack.contains("fuse"))
    });
    assert!(waits.try_wait().unwrap().is_none(), "it got a lock that is held");
    gofs_posix_tests::sys::kill(waits.id(), libc::SIGTERM);
    wait_for("the killed program to end", Duration::from_secs(5), || waits.try_wait().unwrap().is_some());
    // Its wait is over at the server too: the next one in line gets the lock.
    drop(held);
    let other = File::open(b.join("f")).unwrap();
    wait_for("the lock to be free", Duration::from_secs(10), || other.try_lock().is_ok());
}

#[test]
fn locks_of_a_killed_daemon_end_with_its_session() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let held = File::create(a.join("f")).unwrap();
    held.lock().unwrap();
    let other = File::open(b.join("f")).unwrap();
    assert!(other.try_lock().is_err());
    a.kill();
    // Validity and margin of a session are 25 s together.
    wait_for("the dead mount's lock to be free", Duration::from_secs(60), || other.try_lock().is_ok());
    drop(held);
}

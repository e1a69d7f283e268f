//! Ordinary programs do on a mount what they do on any file system.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gofs_posix_tests::posix::{self, AlignedBuffer, Mapping};
use gofs_posix_tests::{Cluster, Mount, run, shell, try_shell};
use tempfile::TempDir;

/// A tree with what archives care about: sizes around every limit, links, modes, times, odd names, holes.
const TREE: &str = r#"
mkdir -p tree/empty tree/deep/a/b/c/d 'tree/odd names' tree/many
for size in 0 1 4095 4096 4097 65536 1000000 3145729; do
    head -c $size /dev/urandom > tree/file-$size
done
for i in $(seq 300); do echo "content $i" > tree/many/$i; done
echo x > 'tree/odd names/white space'; echo y > $'tree/odd names/new\nline'; echo z > $'tree/odd names/\xff\xfe'
ln -s ../file-4096 tree/deep/link; ln -s /nowhere tree/dangling
ln tree/file-4097 tree/deep/hard
truncate -s 20M tree/sparse; printf end | dd of=tree/sparse bs=1 seek=10000000 conv=notrunc status=none
mkfifo tree/fifo
chmod 640 tree/file-1; chmod 4755 tree/file-1000000; chmod 1777 tree/empty; chmod 500 tree/deep/a
touch -d '1999-12-31 23:59:59.123456789' tree/file-4096
touch -h -d '2001-02-03 04:05:06' tree/dangling
"#;

/// Everything of a tree that an archive keeps, as text.
const LISTING: &str = r"find . -printf '%P %y %m %U %G %n %l ' \
    \( -type d -printf '\n' -o -printf '%s %T@\n' \) | LC_ALL=C sort";

fn listing(dir: &Path) -> String {
    shell(dir, LISTING)
}

/// Panics with the lines that are in one of two listings only.
fn assert_same(expected: &str, got: &str) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<String>>();
    let (expected, got) = (lines(expected), lines(got));
    let missing: Vec<_> = expected.difference(&got).take(20).collect();
    let extra: Vec<_> = got.difference(&expected).take(20).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\ntoo much: {extra:#?}");
}

fn scratch() -> TempDir {
    TempDir::with_prefix("gofs-local-").unwrap()
}

fn one_mount() -> (Cluster, Mount) {
    let cluster = Cluster::start();
    let mount = cluster.mount("m");
    (cluster, mount)
}

#[test]
fn a_tree_comes_back_from_tar_as_it_was() {
    let (cluster, mount) = one_mount();
    let local = scratch();
    shell(local.path(), TREE);
    shell(local.path(), "tar --sparse --format=posix -cf tree.tar tree");
    shell(mount.path(), &format!("tar -xpf {}/tree.tar", local.path().display()));
    assert_same(&listing(&local.path().join("tree")), &listing(&mount.join("tree")));
    run(
        "diff",
        &["-r", "--no-dereference", "-x", "fifo", &path(local.path(), "tree"), &path(mount.path(), "tree")],
    );

    shell(mount.path(), "tar --sparse --format=posix -cf back.tar tree");
    shell(local.path(), &format!("mkdir back && tar -C back -xpf {}/back.tar", mount.path().display()));
    assert_same(&listing(&local.path().join("tree")), &listing(&local.path().join("back/tree")));
    shell(mount.path(), "rm -rf tree back.tar");
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
    cluster.check();
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

#[test]
fn a_tree_survives_unmount_and_mount() {
    let (cluster, mount) = one_mount();
    let local = scratch();
    shell(local.path(), TREE);
    shell(mount.path(), &format!("cp -a {}/tree .", local.path().display()));
    let before = listing(&mount.join("tree"));
    assert_same(&listing(&local.path().join("tree")), &before);
    mount.unmount();
    let again = cluster.mount("again");
    assert_same(&before, &listing(&again.join("tree")));
    run(
        "diff",
        &["-r", "--no-dereference", "-x", "fifo", &path(local.path(), "tree"), &path(again.path(), "tree")],
    );
}

#[test]
fn git_works() {
    let (cluster, mount) = one_mount();
    shell(
        mount.path(),
        r#"
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@x GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@x
git init -q -b main repo; cd repo
for commit in $(seq 15); do
    mkdir -p dir$((commit % 4))
    for file in $(seq 8); do echo "$commit $file" >> dir$((commit % 4))/file$file; done
    head -c 20000 /dev/urandom > binary
    git add -A; git commit -qm "commit $commit"
done
test -z "$(git status --porcelain)"
git checkout -q -b side HEAD~5; echo side > side; git add side; git commit -qm side
git checkout -q main; git merge -q -m merge side
git gc -q; git fsck --full --strict
git clone -q . ../clone; cd ../clone; git fsck --full
test "$(git rev-parse HEAD)" = "$(git -C ../repo rev-parse HEAD)"
git log --oneline | wc -l
"#,
    );
    let local = scratch();
    shell(
        local.path(),
        &format!(
            "export GIT_CONFIG_GLOBAL=/dev/null; git -c safe.directory='*' clone -q {0}/repo here; git -C here fsck --full
             test -z \"$(git -C here status --porcelain)\"",
            mount.path().display()
        ),
    );
    cluster.check();
}

#[test]
fn rsync_copies_both_ways_and_then_finds_nothing_to_do() {
    let (_cluster, mount) = one_mount();
    let local = scratch();
    shell(local.path(), TREE);
    let (here, there) = (local.path().display(), mount.path().display());
    let again = "rsync -a -H --checksum --itemize-changes";
    shell(local.path(), &format!("rsync -a -H --checksum {here}/tree {there}/"));
    assert_eq!(shell(local.path(), &format!("{again} {here}/tree {there}/")), "");
    shell(local.path(), &format!("mkdir back; rsync -a -H --checksum {there}/tree {here}/back/"));
    assert_eq!(shell(local.path(), &format!("{again} {there}/tree {here}/back/")), "");
    // A change in the middle of a file, found by rolling checksums and written in place.
    shell(
        mount.path(),
        "printf changed | dd of=tree/file-3145729 bs=1 seek=1500000 conv=notrunc status=none",
    );
    shell(local.path(), &format!("rsync -a --checksum --inplace --no-whole-file {there}/tree {here}/back/"));
    run("cmp", &[&path(mount.path(), "tree/file-3145729"), &path(local.path(), "back/tree/file-3145729")]);
}

/// Two processes insert rows, each in transactions of its own; every one must be there in the end.
fn sqlite(journal: &str, first: &Path, second: &Path) {
    let rows = 150;
    shell(
        first,
        &format!("sqlite3 db 'PRAGMA journal_mode={journal}; CREATE TABLE t (w INT, n INT, text);'"),
    );
    std::thread::scope(|scope| {
        for (writer, dir) in [first, second].into_iter().enumerate() {
            scope.spawn(move || {
                let inserts: String = (0..rows)
                    .map(|n| {
                        format!("BEGIN IMMEDIATE; INSERT INTO t VALUES ({writer}, {n}, hex(randomblob(200))); COMMIT;\n")
                    })
                    .collect();
                let script = format!("sqlite3 -cmd '.timeout 60000' db <<'SQL'\n{inserts}SQL");
                shell(dir, &script);
            });
        }
    });
    for dir in [first, second] {
        let check = "sqlite3 -cmd '.timeout 60000' db 'PRAGMA integrity_check; SELECT count(*), count(DISTINCT w*1000+n) FROM t;'";
        assert_eq!(shell(dir, check), format!("ok\n{0}|{0}\n", 2 * rows));
    }
}

#[test]
fn sqlite_with_a_rollback_journal_survives_two_writers_on_two_mounts() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    sqlite("delete", a.path(), b.path());
}

#[test]
fn sqlite_with_wal_survives_two_writers_on_one_mount() {
    let (_cluster, mount) = one_mount();
    sqlite("wal", mount.path(), mount.path());
}

#[test]
fn a_reader_sees_the_old_or_the_new_file_of_an_editor_that_saves_by_rename() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let version = |number: u32| format!("{number:010}\n").repeat(3_000);
    fs::write(a.join("file"), version(0)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut last, mut reads) = (0, 0);
            while !done.load(Ordering::Relaxed) || reads == 0 {
                let text = fs::read_to_string(b.join("file")).unwrap();
                let number: u32 = text.lines().next().unwrap().parse().unwrap();
                assert!(text == version(number), "a mix of versions, {} bytes", text.len());
                assert!(number >= last, "version {number} after {last}");
                (last, reads) = (number, reads + 1);
            }
        });
        for number in 1..=100 {
            let mut file = File::create(a.join(".file.new")).unwrap();
            file.write_all(version(number).as_bytes()).unwrap();
            file.sync_all().unwrap();
            fs::rename(a.join(".file.new"), a.join("file")).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    assert_eq!(fs::read_to_string(b.join("file")).unwrap(), version(100));
}

/// As fast as it goes: small files and symlinks, saved on one mount and read on another.
#[test]
fn what_another_mount_replaces_all_the_time_can_always_be_opened() {
    const FILES: usize = 3;
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let end = Instant::now() + Duration::from_secs(6);
    let name = |file: usize| format!("f{file}");
    let replace = |file: usize, round: u64| {
        let new = a.join(&format!("new{file}"));
        if file == 0 {
            std::os::unix::fs::symlink("target", &new).unwrap();
        } else {
            fs::write(&new, format!("{round} {}", "x".repeat(file * 3000))).unwrap();
        }
        fs::rename(&new, a.join(&name(file))).unwrap();
    };
    fs::write(a.join("target"), "0").unwrap();
    (0..FILES).for_each(|file| replace(file, 0));
    let (saved, read) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for file in 0..FILES {
            let (saved, read, replace) = (&saved, &read, &replace);
            scope.spawn(move || {
                for round in 1.. {
                    replace(file, round);
                    saved.fetch_add(1, Ordering::Relaxed);
                    if Instant::now() > end {
                        break;
                    }
                }
            });
            for reader in 0..3 {
                // Also where the editor is.
                let path = if reader == 0 { a.join(&name(file)) } else { b.join(&name(file)) };
                scope.spawn(move || {
                    let mut last = 0;
                    while Instant::now() < end {
                        let text = fs::read_to_string(&path).unwrap_or_else(|error| {
                            panic!("{} in round {last}: {error}", path.display());
                        });
                        let round: u64 = text.split(' ').next().unwrap().parse().unwrap();
                        assert!(round >= last, "{}: round {round} after {last}", path.display());
                        last = round;
                        fs::metadata(&path).unwrap();
                        read.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
    });
    let (saved, read) = (saved.into_inner(), read.into_inner());
    println!("{saved} saved, {read} read");
    assert!(saved > 100 && read > 1000, "{saved} saved, {read} read: too few to show anything");
}

#[test]
fn holes_stay_holes() {
    let (_cluster, mount) = one_mount();
    let file = File::create_new(mount.join("sparse")).unwrap();
    file.write_all_at(&[1; 8192], 4 << 20).unwrap();
    file.set_len(64 << 20).unwrap();
    file.sync_all().unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), 64 << 20);
    assert!(metadata.blocks() * 512 <= 1 << 20, "{} blocks", metadata.blocks());
    let data = posix::seek(&file, 0, libc::SEEK_DATA).unwrap();
    assert!(data <= 4 << 20, "data found at {data}");
    let hole = posix::seek(&file, (4 << 20) + 8191, libc::SEEK_HOLE).unwrap();
    assert!(((4 << 20) + 8192..=64 << 20).contains(&hole), "hole found at {hole}");
    assert_eq!(posix::seek(&file, 64 << 20, libc::SEEK_DATA).unwrap_err().raw_os_error(), Some(libc::ENXIO));
    shell(mount.path(), "cp --sparse=always sparse copy; cmp sparse copy");
    assert!(fs::metadata(mount.join("copy")).unwrap().blocks() * 512 <= 1 << 20);
}

#[test]
fn a_copy_of_a_sparse_file_is_sparse() {
    let (_cluster, mount) = one_mount();
    let file = File::create_new(mount.join("sparse")).unwrap();
    file.write_all_at(&[1; 8192], 4 << 20).unwrap();
    file.write_all_at(&[2; 8192], 100 << 20).unwrap();
    file.set_len(300 << 20).unwrap();
    let blocks = |name: &str| {
        File::open(mount.join(name)).unwrap().sync_all().unwrap();
        let metadata = fs::metadata(mount.join(name)).unwrap();
        assert_eq!(metadata.len(), 300 << 20, "{name}");
        metadata.blocks() * 512
    };
    shell(mount.path(), "cp --reflink=auto --sparse=auto sparse copy; cmp sparse copy");
    let whole = File::create_new(mount.join("whole")).unwrap();
    let mut done = 0;
    while done < 300 << 20 {
        done += posix::copy_range(&File::open(mount.join("sparse")).unwrap(), done, &whole, done, 1 << 30)
            .unwrap() as u64;
    }
    run("cmp", &[&path(mount.path(), "sparse"), &path(mount.path(), "whole")]);
    for name in ["sparse", "copy", "whole"] {
        assert!(blocks(name) <= 1 << 20, "{name}: {} bytes", blocks(name));
    }
}

#[test]
fn space_is_preallocated_as_far_as_there_is_any() {
    let cluster = Cluster::start();
    cluster.create_namespace("small", &["--quota-bytes", "10MiB"]);
    let mount = cluster.mount_as("m", "small", "");
    shell(
        mount.path(),
        "printf x > f; fallocate -n -o 0 -l 1M f; fallocate -n -o 5M -l 1M f; test $(stat -c %s f) = 1",
    );
    assert_eq!(fs::read(mount.join("f")).unwrap(), b"x");
    shell(mount.path(), "fallocate -l 2M g; test $(stat -c %s g) = 2097152");
    let refused = try_shell(mount.path(), "fallocate -n -l 20M f");
    assert!(refused.status != 0 && refused.stderr.contains("No space left"), "{refused:?}");
    let local = scratch();
    shell(local.path(), "head -c 3000000 /dev/urandom > data");
    shell(
        local.path(),
        &format!("rsync --preallocate data {0}/data; cmp data {0}/data", mount.path().display()),
    );
}

#[test]
fn dd_with_o_direct_reads_and_writes() {
    let (_cluster, mount) = one_mount();
    let local = scratch();
    shell(local.path(), "head -c 9437184 /dev/urandom > data");
    let (here, there) = (path(local.path(), "data"), path(mount.path(), "data"));
    shell(mount.path(), &format!("dd if={here} of={there} bs=1M oflag=direct conv=fsync status=none"));
    run("cmp", &[&here, &there]);
    shell(mount.path(), &format!("dd if={there} of={here}.back bs=1M iflag=direct status=none"));
    run("cmp", &[&here, &format!("{here}.back")]);
    // Mixed: through the page cache, then around it, in the same block.
    let buffered = OpenOptions::new().read(true).write(true).open(&there).unwrap();
    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&there).unwrap();
    let mut block = AlignedBuffer::new(4096, 0);
    for round in 1..=50_u8 {
        buffered.write_all_at(&[round; 4096], 8192).unwrap();
        direct.read_exact_at(block.bytes_mut(), 8192).unwrap();
        assert!(block.bytes().iter().all(|&byte| byte == round), "direct read of round {round}");
        direct.write_all_at(AlignedBuffer::new(4096, round ^ 0xff).bytes(), 8192).unwrap();
        let mut seen = [0; 4096];
        buffered.read_exact_at(&mut seen, 8192).unwrap();
        assert!(seen.iter().all(|&byte| byte == round ^ 0xff), "buffered read of round {round}");
    }
}

#[test]
fn a_compiler_builds_and_the_program_runs() {
    let (_cluster, mount) = one_mount();
    shell(
        mount.path(),
        r#"
mkdir src obj
for i in 1 2 3 4 5; do echo "int f$i(void) { return $i; }" > src/f$i.c; done
printf '#include <stdio.h>\nint f1(void), f2(void), f3(void), f4(void), f5(void);\nint main(void) { printf("%%d\\n", f1()+f2()+f3()+f4()+f5()); return 0; }\n' > src/main.c
for f in src/*.c; do cc -g -c $f -o obj/$(basename $f .c).o; done
ar rc obj/lib.a obj/f?.o
cc -o program obj/main.o obj/lib.a
test "$(./program)" = 15
strip program; test "$(./program)" = 15
"#,
    );
}

/// A crate with a procedural macro: what it is compiled from, its build directory, and the macro that the
/// compiler loads are all on the mount.
const CRATE: &str = r#"
mkdir -p real/src && cd real
cat > Cargo.toml <<'END'
[package]
name = "real"
version = "0.1.0"
edition = "2021"
[dependencies]
serde = { version = "1", features = ["derive"] }
serde_json = "1"
[workspace]
END
cat > src/main.rs <<'END'
#[derive(serde::Deserialize)]
struct Point { x: i64, y: i64 }
fn main() {
    let p: Point = serde_json::from_str("{\"x\": 6, \"y\": 7}").unwrap();
    println!("{}", p.x * p.y);
}
END
"#;

#[test]
fn cargo_builds_a_real_crate_and_builds_only_what_changed() {
    let cluster = Cluster::start();
    let (mount, other) = (cluster.mount("m"), cluster.mount("other"));
    shell(mount.path(), CRATE);
    // The versions that this workspace has anyway, so that nothing is fetched.
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock");
    fs::copy(lock, mount.join("real/Cargo.lock")).unwrap();
    let cargo = |command: &str| {
        let cargo = format!("unset CARGO_TARGET_DIR RUSTFLAGS; {} {command} 2>&1", env!("CARGO"));
        shell(&mount.join("real"), &cargo)
    };
    cargo(
        "vendor --offline >/dev/null && mkdir .cargo && printf '[source.crates-io]\nreplace-with = \"vendored-sources\"\n[source.vendored-sources]\ndirectory = \"vendor\"\n' > .cargo/config.toml",
    );
    assert!(cargo("build --offline").contains("Compiling serde_json"));
    assert_eq!(shell(&other.join("real"), "target/debug/real"), "42\n");
    let again = cargo("build --offline -v");
    assert!(!again.contains("Compiling"), "nothing has changed: {again}");
    shell(&other.join("real"), "sed -i 's/p.x [*] p.y/p.x + p.y/' src/main.rs");
    let changed = cargo("build --offline -v");
    assert!(changed.contains("Compiling real") && !changed.contains("Compiling serde_json"), "{changed}");
    assert_eq!(shell(&other.join("real"), "target/debug/real"), "13\n");
}

#[test]
fn shared_maps_write_back_and_see_writes() {
    let (_cluster, mount) = one_mount();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(mount.join("mapped")).unwrap();
    file.set_len(1 << 20).unwrap();
    let mut map = Mapping::new(&file, 1 << 20).unwrap();
    map.write(12_345, b"by the map");
    map.sync().unwrap();
    let mut seen = [0; 10];
    file.read_exact_at(&mut seen, 12_345).unwrap();
    assert_eq!(&seen, b"by the map");
    file.write_all_at(b"by write", 500_000).unwrap();
    assert_eq!(map.read(500_000, 8), b"by write");
    drop(map);
    drop(file);
    let mut bytes = Vec::new();
    File::open(mount.join("mapped")).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(&bytes[12_345..12_355], b"by the map");
    assert_eq!(&bytes[500_000..500_008], b"by write");
}

#[test]
fn a_map_of_a_file_that_is_also_open_for_append_writes_where_it_is_mapped() {
    let (_cluster, mount) = one_mount();
    let path = mount.join("f");
    fs::write(&path, vec![b'.'; 8192]).unwrap();
    let mapped = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut map = Mapping::new(&mapped, 8192).unwrap();
    // The newest writer is the one whose handle the kernel writes pages back by.
    let mut append = OpenOptions::new().append(true).open(&path).unwrap();
    map.write(100, b"mapped");
    map.sync().unwrap();
    append.write_all(b"appended").unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 8200);
    assert_eq!(&bytes[100..106], b"mapped");
    assert_eq!(&bytes[8192..], b"appended");
}

#[test]
fn a_write_by_an_ordinary_user_takes_suid_away() {
    let (_cluster, mount) = one_mount();
    let path = mount.join("program");
    for (how, command) in
        [("write", "printf x >> program"), ("truncate", "truncate -s 1 program"), ("O_TRUNC", ": > program")]
    {
        fs::write(&path, "#!/bin/true").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        shell(mount.path(), &format!("setpriv --reuid 4000 --regid 4000 --clear-groups bash -c '{command}'"));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777, "after {how}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        fs::write(&path, "#!/bin/true").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o6777, "root keeps it");
    }
}

#[test]
fn permissions_and_acls_are_obeyed() {
    let (_cluster, mount) = one_mount();
    fs::write(mount.join("secret"), "s").unwrap();
    fs::set_permissions(mount.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let as_user = "setpriv --reuid 4000 --regid 4000 --clear-groups";
    let denied = try_shell(mount.path(), &format!("{as_user} cat secret"));
    assert!(denied.status != 0 && denied.stderr.contains("Permission denied"), "{denied:?}");
    shell(mount.path(), "setfacl -m u:4000:r secret");
    assert_eq!(shell(mount.path(), &format!("{as_user} cat secret")), "s");
    assert!(try_shell(mount.path(), &format!("{as_user} sh -c 'echo x >> secret'")).status != 0);
    shell(mount.path(), "mkdir d; setfacl -d -m u:4000:rwx d; umask 077; touch d/f");
    let acl = shell(mount.path(), "getfacl -cE d/f");
    assert!(acl.contains("user:4000:rwx"), "the default ACL is inherited: {acl}");
    shell(mount.path(), &format!("{as_user} sh -c 'echo x >> d/f'"));
}

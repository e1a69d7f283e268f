//! fsx: random reads, writes, truncates and maps of one file against a copy in memory.
//!
//! `FSX` names the program (`cargo install fsx`, version 0.3; `cargo xtask test` does that).

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;

use gofs_posix_tests::{Cluster, Mount, run, try_shell};

const OPERATIONS: u32 = 100_000;
/// Each is on stable storage before the next.
const SYNC_OPERATIONS: u32 = 1_500;

fn program() -> String {
    std::env::var("FSX").unwrap_or_else(|_| {
        panic!("FSX does not name the fsx program: run `cargo xtask test`, or `cargo install fsx` and set FSX to it")
    })
}

/// What to do, and how often, beyond the default of reads, writes, truncates and maps.
const CONFIG: &str = r#"
flen = 1048576
[opsize]
max = 70000
[weights]
close_open = 1
invalidate = 1
truncate = 5
fsync = 1
fdatasync = 1
punch_hole = 3
posix_fallocate = 3
copy_file_range = 3
sendfile = 1
posix_fadvise = 1
"#;

fn fsx(seed: u32, operations: u32, namespace_options: &[&str], mount_options: &str) {
    let program = program();
    let cluster = Cluster::builder().start();
    cluster.create_namespace("test", namespace_options);
    let (mount, other) = (cluster.mount_as("m", "test", mount_options), cluster.mount("other"));
    let config = cluster.dir().join("fsx.toml");
    fs::write(&config, CONFIG).unwrap();
    eprintln!("replay: {program} -S {seed} -N {operations} -f {} FILE", config.display());
    let output = try_shell(
        mount.path(),
        &format!(
            "{program} -S {seed} -N {operations} -f {} -P {} fsx-file",
            config.display(),
            cluster.dir().display()
        ),
    );
    assert!(output.status == 0, "{output:#?}");
    // The other mount sees the same now, and what is left is what the servers have.
    let sum = |mount: &Mount| {
        let line = run("sha256sum", &[mount.join("fsx-file").to_str().unwrap()]);
        line.split(' ').next().unwrap().to_owned()
    };
    let here = sum(&mount);
    assert_eq!(here, sum(&other));
    mount.unmount();
    assert_eq!(here, sum(&cluster.mount("again")));
}

#[test]
fn fsx_finds_nothing_with_small_chunks() {
    fsx(7, OPERATIONS, &["--chunk-size", "64KiB"], "");
}

#[test]
fn fsx_finds_nothing_where_much_is_inline() {
    fsx(23, OPERATIONS, &["--chunk-size", "1MiB", "--inline-max", "64KiB"], "");
}

#[test]
fn fsx_finds_nothing_with_the_default_configuration() {
    fsx(11, OPERATIONS, &[], "");
}

#[test]
fn fsx_finds_nothing_where_every_write_is_durable() {
    fsx(5, SYNC_OPERATIONS, &["--chunk-size", "64KiB"], "sync");
}

//! pjdfstest: what POSIX says about each call's effects, permissions and errors.
//!
//! `PJDFSTEST` names the program (`cargo install pjdfstest`, version 0.2; `cargo xtask test` does that).
//! What passes on a local file system must pass on a mount, except the cases in `pjdfstest.exceptions`; an
//! exception that passes is a failure too.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use gofs_posix_tests::{Cluster, try_shell};

const EXCEPTIONS: &str = include_str!("../pjdfstest.exceptions");

/// Users that every Debian and Ubuntu has. `naptime` must exceed the granularity of times.
const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Fewest cases of a run that was one: 0.2.2 has 398.
const CASES_MIN: usize = 380;

/// How a case went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Passed,
    Failed,
    Skipped,
}

/// How every case went, and everything printed.
fn cases(program: &str, config: &Path, dir: &Path) -> (BTreeMap<String, Case>, String) {
    fs::create_dir(dir).unwrap();
    let output = try_shell(
        Path::new("/"),
        &format!("{program} -c {} -p {} 2>&1 | sed 's/\\x1b\\[[0-9;]*m//g'", config.display(), dir.display()),
    );
    let mut cases = BTreeMap::new();
    for line in output.stdout.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [name, "ok"] => cases.insert((*name).to_owned(), Case::Passed),
            [name, "FAILED"] => cases.insert((*name).to_owned(), Case::Failed),
            [name, "skipped"] => cases.insert((*name).to_owned(), Case::Skipped),
            _ => None,
        };
    }
    assert!(cases.len() >= CASES_MIN, "pjdfstest ran {} cases only: {output:#?}", cases.len());
    (cases, output.stdout)
}

/// What pjdfstest printed about a case.
fn report<'a>(output: &'a str, name: &str) -> &'a str {
    let start = output.find(&format!("{name} ")).unwrap_or(0);
    let rest = &output[start..];
    let end = rest.match_indices('\n').map(|(at, _)| at).find(|&at| !rest[at + 1..].starts_with('\t'));
    &rest[..end.unwrap_or(rest.len())]
}

#[test]
fn a_mount_passes_what_a_local_file_system_passes() {
    passes_what_a_local_file_system_passes("");
}

#[test]
fn so_does_one_with_every_change_durable_before_it_returns() {
    passes_what_a_local_file_system_passes("sync");
}

fn passes_what_a_local_file_system_passes(options: &str) {
    let program = std::env::var("PJDFSTEST").unwrap_or_else(|_| {
        panic!("PJDFSTEST does not name the pjdfstest program: run `cargo xtask test`, or `cargo install pjdfstest` and set PJDFSTEST to it")
    });
    let exceptions: BTreeSet<&str> = EXCEPTIONS
        .lines()
        .filter_map(|line| line.split('#').next().map(str::trim))
        .filter(|name| !name.is_empty())
        .collect();
    let cluster = Cluster::start();
    let mount = cluster.mount_as("m", "test", options);
    let config = cluster.dir().join("pjdfstest.toml");
    fs::write(&config, CONFIG).unwrap();
    let (local, _) = cases(&program, &config, &cluster.dir().join("local"));
    let (ours, output) = cases(&program, &config, &mount.join("suite"));

    let mut wrong = String::new();
    for (name, &here) in &ours {
        let there = local.get(name).copied();
        match (here, exceptions.contains(name.as_str())) {
            (Case::Failed | Case::Skipped, false) if there == Some(Case::Passed) => {
                wrong.push_str(&format!("does not pass: {}\n", report(&output, name)));
            }
            (Case::Passed, true) => wrong.push_str(&format!("passes but is an exception: {name}\n")),
            _ => {}
        }
    }
    for name in exceptions.iter().filter(|name| !local.contains_key(**name)) {
        wrong.push_str(&format!("an exception that is no case: {name}\n"));
    }
    for name in local.keys().filter(|name| !ours.contains_key(*name) && !exceptions.contains(name.as_str())) {
        wrong.push_str(&format!("did not run: {name}\n"));
    }
    assert!(wrong.is_empty(), "{wrong}");
}

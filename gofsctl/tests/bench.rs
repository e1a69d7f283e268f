//! `gofsctl bench` on an ordinary directory.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gofsctl"));
    command.arg("bench").args(arguments);
    command
}

fn text(dir: &tempfile::TempDir) -> &str {
    dir.path().to_str().unwrap()
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

fn error(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn every_step_has_a_figure_for_every_directory_and_nothing_is_left() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let small = ["--size", "2MiB", "--files", "30", "--threads", "3", "--seconds", "0.2", "--json"];
    let output = bench(&[text(&one), text(&other)]).args(small).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let results = report["results"].as_array().unwrap();
    for name in ["seqwrite", "seqread", "randread", "randwrite", "fsync p50", "fsync p99", "smallwrite"]
        .into_iter()
        .chain(["smallread", "create", "stat", "readdir", "rename", "unlink"])
        .chain(["create-threads", "stat-threads", "rename-threads", "unlink-threads"])
    {
        let result = results.iter().find(|result| result["name"] == name).unwrap_or_else(|| panic!("{name}"));
        let values = result["values"].as_array().unwrap();
        assert_eq!(values.len(), 2, "{name}");
        assert!(values.iter().all(|value| value["value"].as_f64().unwrap() > 0.0), "{result}");
    }
    assert!(is_empty(one.path()) && is_empty(other.path()));
}

#[test]
fn only_what_was_asked_for_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        bench(&[text(&dir), "--only", "rename,fsync", "--files", "10", "--seconds", "0.1"]).output().unwrap();
    assert!(output.status.success());
    let table = String::from_utf8(output.stdout).unwrap();
    let steps: Vec<&str> = table.lines().skip(2).map(|line| line.split("  ").next().unwrap()).collect();
    assert_eq!(steps, ["fsync p50", "fsync p99", "rename"]);
}

#[test]
fn an_interrupted_measurement_cleans_up() {
    for signal in ["-INT", "-TERM"] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = bench(&[text(&dir), "--only", "fsync", "--seconds", "3600", "--size", "1MiB"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while is_empty(dir.path()) {
            assert!(started.elapsed() < Duration::from_secs(20), "nothing was made");
            std::thread::sleep(Duration::from_millis(1));
        }
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(is_empty(dir.path()), "{signal}");
    }
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let full = error(&bench(&[text(&dir), "--size", "900TiB"]).output().unwrap());
    assert!(full.contains(text(&dir)) && full.contains("has room for") && full.contains("--size"), "{full}");
    let step = error(&bench(&[text(&dir), "--only", "sequrite"]).output().unwrap());
    assert!(step.contains("sequrite") && step.contains("seqwrite, seqread"), "{step}");
    let missing = error(&bench(&["/nonexistent/dir"]).output().unwrap());
    assert!(missing.contains("/nonexistent/dir"), "{missing}");
    assert!(is_empty(dir.path()));
}

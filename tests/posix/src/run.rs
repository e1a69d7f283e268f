//! Running programs, with their output in the panic message when they fail.

use std::path::Path;
use std::process::{Command, Stdio};

/// What a program printed, and its exit status (128 + signal where it was killed).
#[derive(Debug)]
pub struct Output {
    /// Exit status.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a program that must succeed; returns its standard output.
pub fn run(program: &str, args: &[&str]) -> String {
    run_in(Path::new("/"), program, args)
}

/// As [`run`], in a directory.
pub fn run_in(dir: &Path, program: &str, args: &[&str]) -> String {
    let output = collect(Command::new(program).args(args).current_dir(dir), program);
    assert!(output.status == 0, "{program} {args:?} in {}: {output:#?}", dir.display());
    output.stdout
}

/// Runs a shell script (`set -eu`, pipefail) that must succeed, in a directory.
pub fn shell(dir: &Path, script: &str) -> String {
    let output = try_shell(dir, script);
    assert!(output.status == 0, "in {}: {script}\n{output:#?}", dir.display());
    output.stdout
}

/// As [`shell`], whatever its status.
pub fn try_shell(dir: &Path, script: &str) -> Output {
    collect(Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(dir), "bash")
}

fn collect(command: &mut Command, program: &str) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| {
        panic!("cannot run {program}: {e}; cargo xtask test installs what the tests need")
    });
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    Output {
        status: output.status.code().unwrap_or_else(|| 128 + signal.unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

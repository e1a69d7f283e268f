//! The project's chores: `cargo xtask test` is all that must pass before a change goes in,
//! `cargo xtask fix` repairs what a machine can.

#![forbid(unsafe_code)]

mod command;
mod growth;
mod programs;
mod semantics;
mod sim;
mod steps;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::command::Command;
use crate::steps::STEPS;

const HELP: &str = "\
Chores of the gofs workspace.

    cargo xtask test                 every check and test, in order, up to the first that fails
    cargo xtask test --only STEP     one step (what it needs from earlier ones is made as well)
    cargo xtask test --only tests -- FILTER...
                                     tests with further arguments for cargo nextest run
    cargo xtask fix                  formats, and applies clippy's suggestions
    cargo xtask chaos [OPTIONS]      breaks a cluster of real processes for some minutes and checks that nothing
                                     acknowledged is lost (root; `cargo xtask chaos --help` tells the options)
    cargo xtask sim --seeds 0..1000  simulates clusters in trouble, one from each seed (docs/SIMULATION.md)
    cargo xtask sim --seed N --log info
                                     repeats one run exactly, and shows what the servers say
    cargo xtask growth DIR           makes 1,000,000 files in DIR, on a mount, and prints what operations cost
                                     and how much memory gofs takes meanwhile

Tools are installed into target/tools at pinned versions. The tests mount file systems: they need
root and /dev/fuse, and fail without.

Steps of `test`:";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<String>) -> Result<()> {
    std::env::set_current_dir(workspace_root())?;
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["test"] => test(None, &[]),
        ["test", "--only", step] => test(Some(step), &[]),
        ["test", "--only", "tests", "--", further @ ..] => test(Some("tests"), further),
        ["fix"] => fix(),
        ["sim", further @ ..] => sim::run(further),
        ["growth", directory] => growth::run(directory.as_ref()),
        ["chaos", options @ ..] => chaos(options),
        [] | ["help" | "--help" | "-h"] | ["test" | "fix", "--help" | "-h"] => {
            println!("{HELP}");
            for step in STEPS {
                println!("    {:<10} {}", step.name, step.what);
            }
            Ok(())
        }
        _ => bail!("`{}` is no chore; see `cargo xtask --help`", words.join(" ")),
    }
}

/// The directory above this package.
fn workspace_root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

fn test(only: Option<&str>, further: &[&str]) -> Result<()> {
    let chosen: Vec<_> = STEPS.iter().filter(|step| only.is_none_or(|only| only == step.name)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        bail!("there is no step `{}`; steps are: {}", only.unwrap_or_default(), names.join(", "));
    }
    let mut times = Vec::new();
    for step in chosen {
        eprintln!("\n==> {}: {}", step.name, step.what);
        let start = Instant::now();
        let result = (step.run)(further);
        times.push((step.name, start.elapsed().as_secs_f64(), result.is_ok()));
        if let Err(error) = result {
            report(&times);
            bail!(
                "step `{}` failed: {error:#}\nrepeat it with: cargo xtask test --only {}",
                step.name,
                step.name
            );
        }
    }
    report(&times);
    Ok(())
}

fn report(times: &[(&str, f64, bool)]) {
    eprintln!();
    for (name, seconds, passed) in times {
        eprintln!("{name:<10} {seconds:>8.1} s  {}", if *passed { "ok" } else { "FAILED" });
    }
}

/// Builds the programs, and has the driver break them.
fn chaos(options: &[&str]) -> Result<()> {
    steps::build()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    Command::new(target.join("debug/gofs-chaos")).args(options).run()
}

fn fix() -> Result<()> {
    let clippy = ["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"];
    Command::cargo().args(clippy).run()?;
    Command::cargo().args(["fmt", "--all"]).run()
}

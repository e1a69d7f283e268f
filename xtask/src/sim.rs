//! Runs the simulation, which is a program of its own: it must not share a process with this one.

use anyhow::{Context, Result};

use crate::command::Command;

/// `gofs-sim runs` with these arguments.
pub fn run(further: &[&str]) -> Result<()> {
    Command::cargo().args(["build", "--quiet", "--workspace", "--bins"]).run()?;
    let own = std::env::current_exe().context("where is this program?")?;
    Command::new(own.with_file_name("gofs-sim")).args(["runs"]).args(further).run()
}

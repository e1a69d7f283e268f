//! The steps of `cargo xtask test`, cheapest first.

use anyhow::Result;

use crate::command::Command;
use crate::programs;
use crate::semantics;
use crate::tools::{FSX, MACHETE, NEXTEST, PJDFSTEST};

/// One thing that must pass.
pub struct Step {
    /// As `--only` takes it.
    pub name: &'static str,
    /// For people.
    pub what: &'static str,
    /// Takes further arguments, which only `tests` uses.
    pub run: fn(&[&str]) -> Result<()>,
}

/// In order.
pub const STEPS: &[Step] = &[
    Step { name: "fmt", what: "the code is formatted", run: |_| fmt() },
    Step { name: "semantics", what: "every promise names a test that exists", run: |_| semantics::check() },
    Step { name: "clippy", what: "no warning in any target", run: |_| clippy() },
    Step { name: "unused", what: "every dependency is used", run: |_| unused() },
    Step { name: "build", what: "the programs that the tests start", run: |_| build() },
    Step { name: "programs", what: "what the tests need of the system", run: |_| system() },
    Step { name: "tests", what: "all tests, on real mounts too", run: tests },
    Step { name: "doctests", what: "the examples in the documentation", run: |_| doctests() },
];

fn fmt() -> Result<()> {
    Command::cargo().args(["fmt", "--all", "--check"]).run()
}

fn clippy() -> Result<()> {
    Command::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).run()
}

fn unused() -> Result<()> {
    // --with-metadata asks cargo for the names of libraries, so a renamed one is not taken for unused.
    Command::new(MACHETE.installed()?).args(["--with-metadata"]).run()
}

/// All programs, and the library that the driver of faults has them load.
pub fn build() -> Result<()> {
    Command::cargo().args(["build", "--workspace"]).run()
}

fn system() -> Result<()> {
    programs::install()?;
    programs::check_mountable()
}

fn tests(further: &[&str]) -> Result<()> {
    // A single step must not test yesterday's programs, nor fail one test after the other for want of one thing.
    build()?;
    system()?;
    let nextest = NEXTEST.found_or_installed()?;
    Command::new(nextest)
        .args(["nextest", "run", "--workspace"])
        .args(further)
        .env("PJDFSTEST", PJDFSTEST.installed()?)
        .env("FSX", FSX.installed()?)
        .run()
}

fn doctests() -> Result<()> {
    Command::cargo().args(["test", "--workspace", "--doc", "--quiet"]).run()
}

//! Programs from crates.io at pinned versions, in target/tools.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::{Command, find};

/// A crate and the version that is used of it.
pub struct Tool {
    name: &'static str,
    version: &'static str,
}

/// Finds dependencies that nothing uses.
pub const MACHETE: Tool = Tool { name: "cargo-machete", version: "0.9.2" };
/// Runs the tests.
pub const NEXTEST: Tool = Tool { name: "cargo-nextest", version: "0.9.143" };
/// What POSIX says of each call.
pub const PJDFSTEST: Tool = Tool { name: "pjdfstest", version: "0.2.2" };
/// Random operations on one file.
pub const FSX: Tool = Tool { name: "fsx", version: "0.3.2" };

impl Tool {
    /// The program at its pinned version, installed first where it is not there.
    pub fn installed(&self) -> Result<PathBuf> {
        let root = crate::workspace_root().join("target/tools");
        let program = root.join("bin").join(self.name);
        // Versions lie beside the programs, because not every program tells its own.
        let mark = root.join(format!("{}.version", self.name));
        if program.is_file() && std::fs::read_to_string(&mark).is_ok_and(|v| v.trim() == self.version) {
            return Ok(program);
        }
        let spec = format!("{}@{}", self.name, self.version);
        Command::cargo()
            .args([Path::new("install"), Path::new("--locked"), Path::new("--root"), &root, Path::new(&spec)])
            .run()
            .with_context(|| format!("{spec} cannot be installed; is crates.io reachable?"))?;
        std::fs::write(&mark, self.version).with_context(|| format!("cannot write {}", mark.display()))?;
        Ok(program)
    }

    /// The program that PATH finds, whatever its version, else the pinned one.
    pub fn found_or_installed(&self) -> Result<PathBuf> {
        match find(self.name) {
            Some(program) => Ok(program),
            None => self.installed(),
        }
    }
}

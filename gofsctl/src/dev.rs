//! `gofsctl dev`: a whole cluster in one process, mounted.

use clap::Args;

/// What to start.
#[derive(Args)]
pub struct DevArgs {}

/// Runs it.
pub async fn run(_args: DevArgs) -> anyhow::Result<()> {
    Ok(())
}

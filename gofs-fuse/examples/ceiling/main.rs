//! The ceiling: how fast a file system could be through this kernel interface and this glue, if it did nothing else.
//!
//! `cargo run --release -p gofs-fuse --example ceiling -- MOUNTPOINT [-o OPTIONS]` mounts an empty file system in memory on the
//! same session threads, with the same options, capabilities and times to live as the daemon of a gofs mount, until
//! SIGINT, SIGTERM or umount(8). What a benchmark says of gofs is to be compared with what it says of this.

#![forbid(unsafe_code)]

mod memory;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use gofs_fuse::{KernelNotifier, MountOptions, OPTIONS_HELP, serve};
use tokio::signal::unix::{SignalKind, signal};

use memory::Memory;

/// Mounts a file system in memory, to measure the kernel interface by.
#[derive(Parser)]
#[command(after_help = format!("Mount options:\n{OPTIONS_HELP}"))]
struct Arguments {
    /// Directory to mount on
    mount_point: PathBuf,
    /// Comma-separated mount options
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let options = MountOptions::parse(arguments.options.iter().map(String::as_str))?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let kernel = Arc::new(KernelNotifier::default());
    let memory = Arc::new(Memory::new(kernel.clone()));
    let served = serve(memory, kernel, "ceiling", &arguments.mount_point, &options).await?;
    tokio::select! {
        () = served.wait() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    served.detach().await;
    Ok(())
}

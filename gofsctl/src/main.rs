//! gofsctl: administration of a gofs cluster, and `gofsctl dev`, a whole cluster in one command.

#![forbid(unsafe_code)]

mod admin;
mod cluster;
mod dev;
mod namespace;
mod output;
mod size;
mod why;

use clap::{Parser, Subcommand};

/// Administers a gofs cluster.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "\
Examples:
  gofsctl dev                                  a whole cluster in this process, mounted
  gofsctl ns create photos --replicas 2 --quota-bytes 1TiB
  gofsctl --meta m1:7460,m2:7460 status
  gofsctl why photos:/2024/a.jpg               where each byte is, and who holds leases"
)]
struct Cli {
    /// MetaServers, any of them or all: HOST:PORT[,HOST:PORT...]
    #[arg(
        long,
        global = true,
        env = "GOFS_META",
        default_value = "127.0.0.1:7460",
        value_name = "HOST:PORT,..."
    )]
    meta: String,
    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a whole cluster in this process and mount it; Ctrl-C stops it, its state stays.
    Dev(dev::DevArgs),
    /// Namespaces: create, list, show, set, delete.
    #[command(subcommand)]
    Ns(namespace::NamespaceCommand),
    /// State of the cluster: MetaServers, ChunkServers, chunks, sessions.
    #[command(
        after_help = "Exit status 0 when the cluster answers and nothing is lost.\n\nExample:\n  gofsctl status --json | jq .chunks_under_replicated"
    )]
    Status,
    /// The ChunkServers with their disks.
    #[command(after_help = "Example:\n  gofsctl servers")]
    Servers,
    /// The mounts: one session each.
    #[command(after_help = "Example:\n  gofsctl sessions --namespace photos")]
    Sessions {
        /// Only those of this namespace.
        #[arg(long, default_value = "")]
        namespace: String,
    },
    /// Why a path, a chunk or a ChunkServer is as it is: inode, chunks, replicas and their state, leases.
    Why(why::WhyArgs),
    /// Check the state for consistency with itself and with what the ChunkServers report.
    #[command(after_help = "Exit status 1 when a problem is found.\n\nExample:\n  gofsctl fsck")]
    Fsck,
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    if let Err(error) = run(cli) {
        eprintln!("gofsctl: {error:#}");
        return std::process::ExitCode::FAILURE;
    }
    std::process::ExitCode::SUCCESS
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let style = output::Style { json: cli.json };
    if let Command::Dev(args) = cli.command {
        return runtime.block_on(dev::run(args));
    }
    runtime.block_on(async {
        let mut admin = admin::Admin::new(&cli.meta)?;
        match cli.command {
            Command::Dev(_) => unreachable!("handled above"),
            Command::Ns(command) => namespace::run(&mut admin, command, style).await,
            Command::Status => cluster::status(&mut admin, style).await,
            Command::Servers => cluster::servers(&mut admin, style).await,
            Command::Sessions { namespace } => cluster::sessions(&mut admin, namespace, style).await,
            Command::Why(args) => why::run(&mut admin, args, style).await,
            Command::Fsck => cluster::fsck(&mut admin, style).await,
        }
    })
}

//! gofsctl: administration of a gofs cluster, and `gofsctl dev`, a whole cluster in one command.

#![deny(unsafe_code)]

mod admin;
mod backup;
mod bench;
mod chunk;
mod cluster;
mod dev;
mod fsck;
mod meta;
mod namespace;
mod output;
mod profile;
mod size;
mod survey;
#[allow(unsafe_code, reason = "the system calls are here, and nowhere else")]
mod sys;
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
  gofsctl profile /mnt/photos                  what a mount does, second by second
  gofsctl bench /mnt/photos /var/tmp           how fast it is, beside a local disk
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
    /// MetaServers: status, add, remove, transfer.
    #[command(subcommand)]
    Meta(meta::MetaCommand),
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
    /// ChunkServers: list, drain, undrain, remove.
    #[command(subcommand)]
    Chunk(chunk::ChunkCommand),
    /// The mounts: one session each.
    #[command(after_help = "Example:\n  gofsctl sessions --namespace photos")]
    Sessions {
        /// Only those of this namespace.
        #[arg(long, default_value = "")]
        namespace: String,
    },
    /// Why a path, a chunk or a ChunkServer is as it is: inode, chunks, replicas and their state, leases.
    Why(why::WhyArgs),
    /// Check the state for consistency with itself and with what the ChunkServers report, and repair it.
    Fsck(fsck::FsckArgs),
    /// Write an image of the whole state to a file, while everything goes on; or verify one.
    Backup(backup::BackupArgs),
    /// Make a MetaServer's data directory from a backup.
    Restore(backup::RestoreArgs),
    /// What a mount does: operations per second and their latencies, what waits for servers, what is unflushed.
    Profile(profile::ProfileArgs),
    /// How fast a mount, or any directory, is: large files, small files, metadata, fsync.
    Bench(bench::BenchArgs),
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
    let admin = || admin::Admin::new(&cli.meta);
    runtime.block_on(async {
        match cli.command {
            Command::Dev(args) => dev::run(args).await,
            Command::Profile(args) => profile::run(args, style).await,
            Command::Backup(args) => backup::run(&cli.meta, args, style).await,
            Command::Restore(args) => backup::restore_data(args, style),
            Command::Bench(args) => bench::run(args, style).await,
            Command::Meta(command) => meta::run(&mut admin()?, command, style).await,
            Command::Ns(command) => namespace::run(&mut admin()?, command, style).await,
            Command::Status => cluster::status(&mut admin()?, style).await,
            Command::Servers => cluster::servers(&mut admin()?, style).await,
            Command::Chunk(command) => chunk::run(&mut admin()?, command, style).await,
            Command::Sessions { namespace } => cluster::sessions(&mut admin()?, namespace, style).await,
            Command::Why(args) => why::run(&mut admin()?, args, style).await,
            Command::Fsck(args) => fsck::run(&mut admin()?, args, style).await,
        }
    })
}

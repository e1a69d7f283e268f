//! The command line, and the daemon that stays behind.
//!
//! mount(8) wants a helper that returns when the mount can be used, with exit status 0, and
//! otherwise prints why not: 1 for a wrong command line, 32 for a mount that failed. So the process forks before
//! it has any thread; the child mounts and tells the parent by a pipe how it went.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::log::{self, LogTo};
use crate::mount::{MountConfig, mount};
use crate::options::{MountOptions, OPTIONS_HELP};
use crate::source::Source;
use crate::sys::{self, Fork};

/// mount(8): incorrect invocation.
const USAGE: u8 = 1;
/// mount(8): mount failure.
const FAILED: u8 = 32;
/// What the child sends when the mount answers; anything else is the reason why it does not.
const MOUNTED: &str = "mounted";

/// Mounts a gofs namespace. Also installed as mount.fuse.gofs, for `mount -t fuse.gofs` and fstab.
#[derive(Parser, Debug)]
#[command(name = "gofs-fuse", version, after_help = after_help())]
struct Arguments {
    /// META[,META...]:/NAMESPACE[/SUBDIR]; META is HOST, HOST:PORT, [IPV6] or [IPV6]:PORT, with port 7460 by default
    source: String,
    /// Directory to mount on
    mount_point: PathBuf,
    /// Comma-separated mount options (see below)
    #[arg(short = 'o', value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
    /// Stay in the foreground and log to standard error; SIGINT and SIGTERM unmount
    #[arg(long)]
    foreground: bool,
    /// Where to log: journal, stderr or a file [default: journal; stderr in the foreground]
    #[arg(long, value_name = "WHERE")]
    log: Option<String>,
    /// Only check the command line (mount -f)
    #[arg(short = 'f')]
    fake: bool,
    /// Accepted for mount(8): be verbose
    #[arg(short = 'v', hide = true)]
    verbose: bool,
    /// Accepted for mount(8): tolerate options of other systems
    #[arg(short = 's', hide = true)]
    sloppy: bool,
    /// Accepted for mount(8): do not write /etc/mtab
    #[arg(short = 'n', hide = true)]
    no_mtab: bool,
    /// Mount read-only
    #[arg(short = 'r', hide = true)]
    read_only: bool,
    /// Mount read-write
    #[arg(short = 'w', hide = true)]
    read_write: bool,
    /// Accepted for mount(8): the type
    #[arg(short = 't', hide = true)]
    fs_type: Option<String>,
    /// mount(8)'s mount namespace, which it has entered already
    #[arg(short = 'N', hide = true)]
    namespace: Option<String>,
}

fn after_help() -> String {
    format!(
        "Mount options:\n{OPTIONS_HELP}\n\nExamples:\n  \
         gofs-fuse meta1,meta2,meta3:/demo /mnt\n  \
         gofs-fuse 127.0.0.1:7460:/demo /mnt -o soft=30s,cache=1G --foreground\n  \
         mount -t fuse.gofs meta1:/demo/projects /mnt\n  \
         echo 'meta1,meta2:/demo /mnt fuse.gofs _netdev,nofail 0 0' >>/etc/fstab"
    )
}

/// What the command line asks for.
struct Request {
    config: MountConfig,
    foreground: bool,
    log: LogTo,
}

/// The binary: understands the command line, mounts, and stays behind until the mount ends.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let wrong = error.use_stderr();
            error.print().ok();
            return if wrong { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let fake = arguments.fake;
    let request = match understand(arguments) {
        Ok(request) => request,
        Err(error) => {
            eprintln!("gofs-fuse: {error}");
            return ExitCode::from(USAGE);
        }
    };
    if fake {
        return ExitCode::SUCCESS;
    }
    let outcome = if request.foreground { run(request, None) } else { daemonize(request) };
    outcome.unwrap_or_else(|error| {
        eprintln!("gofs-fuse: {error}");
        ExitCode::from(FAILED)
    })
}

fn understand(arguments: Arguments) -> Result<Request, Box<dyn std::error::Error>> {
    // Relative paths mean nothing after the daemon left its directory.
    let mount_point = std::path::absolute(&arguments.mount_point)?;
    let mut options = MountOptions::parse(arguments.options.iter().map(String::as_str))?;
    options.kernel.read_only = (options.kernel.read_only || arguments.read_only) && !arguments.read_write;
    let source: Source = arguments.source.parse()?;
    let log = match arguments.log.as_deref().or(options.log.as_deref()).map(LogTo::parse) {
        Some(LogTo::File(path)) => LogTo::File(std::path::absolute(path)?),
        Some(log) => log,
        None if arguments.foreground || !log::has_journal() => LogTo::Stderr,
        None => LogTo::Journal,
    };
    let config = MountConfig { source: source.to_string(), mount_point, options };
    Ok(Request { config, foreground: arguments.foreground, log })
}

/// Forks twice; the first process waits for the outcome.
fn daemonize(request: Request) -> io::Result<ExitCode> {
    let (outcome, report) = io::pipe()?;
    if let Fork::Parent(child) = sys::fork()? {
        drop(report);
        sys::reap(child);
        return Ok(await_outcome(outcome));
    }
    drop(outcome);
    // From here on errors go to the parent.
    let detached = || -> io::Result<bool> {
        sys::new_session()?;
        // Not a session leader any more: opening a terminal can not make it the daemon's own.
        if let Fork::Parent(_) = sys::fork()? {
            return Ok(false);
        }
        std::env::set_current_dir("/")?;
        sys::silence_stdio(false)?;
        Ok(true)
    };
    match detached() {
        Ok(true) => run(request, Some(report)),
        Ok(false) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tell(Some(report), &format!("cannot become a daemon: {error}"));
            Ok(ExitCode::from(FAILED))
        }
    }
}

/// The parent's exit status.
fn await_outcome(mut outcome: PipeReader) -> ExitCode {
    let mut text = String::new();
    if let Err(error) = outcome.read_to_string(&mut text) {
        eprintln!("gofs-fuse: the daemon's answer cannot be read: {error}");
        return ExitCode::from(FAILED);
    }
    match text.as_str() {
        MOUNTED => ExitCode::SUCCESS,
        "" => {
            eprintln!("gofs-fuse: the daemon died before the mount answered; its log may say why");
            ExitCode::from(FAILED)
        }
        reason => {
            eprintln!("gofs-fuse: {reason}");
            ExitCode::from(FAILED)
        }
    }
}

fn tell(report: Option<PipeWriter>, text: &str) {
    if let Some(mut report) = report {
        // A parent that was killed needs no answer.
        report.write_all(text.as_bytes()).ok();
    }
}

/// Mounts and serves until a signal or an unmount from outside.
fn run(request: Request, report: Option<PipeWriter>) -> io::Result<ExitCode> {
    let daemon = report.is_some();
    let started = log::start(&request.log).and_then(|()| {
        gofs_alloc::keep_buffers();
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("gofs-fuse").build()
    });
    let runtime = match started {
        Ok(runtime) => runtime,
        Err(error) if daemon => {
            tell(report, &error.to_string());
            return Ok(ExitCode::from(FAILED));
        }
        Err(error) => return Err(error),
    };
    let to_stderr = request.log == LogTo::Stderr;
    let code = runtime.block_on(async move {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // A daemon has no terminal to lose; in the foreground losing it ends the mount.
        let mut hangup = signal(SignalKind::hangup())?;
        let hung_up = async move {
            while hangup.recv().await.is_some() {
                if !daemon {
                    return;
                }
            }
            std::future::pending().await
        };
        let mounting = tokio::select! {
            mounting = mount(request.config) => mounting,
            _ = terminate.recv() => return Ok(ExitCode::from(FAILED)),
            _ = interrupt.recv() => return Ok(ExitCode::from(FAILED)),
        };
        let mounted = match mounting {
            Ok(mounted) => mounted,
            Err(error) if daemon => {
                if !to_stderr {
                    warn!(%error, "not mounted");
                }
                tell(report, &error.to_string());
                return Ok(ExitCode::from(FAILED));
            }
            Err(error) => return Err(io::Error::other(error.to_string())),
        };
        tell(report, MOUNTED);
        if daemon && !to_stderr {
            sys::silence_stdio(true)?;
        }
        tokio::select! {
            () = mounted.wait() => info!("unmounted from outside"),
            _ = terminate.recv() => info!("SIGTERM: unmounting"),
            _ = interrupt.recv() => info!("SIGINT: unmounting"),
            () = hung_up => info!("SIGHUP: unmounting"),
        }
        let unmounted = mounted.unmount().await;
        info!("ended");
        Ok(if unmounted.durable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    });
    // Session threads of a mount that was detached while in use end with the process.
    runtime.shutdown_background();
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Request, String> {
        let arguments = Arguments::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        understand(arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn the_order_in_which_mount_calls_its_helper_is_understood() {
        let request = parse("mount.fuse.gofs m1:/ns /mnt -s -v -n -o rw,_netdev,ro -t fuse.gofs").unwrap();
        assert_eq!(request.config.source, "m1:7460:/ns");
        assert_eq!(request.config.mount_point, PathBuf::from("/mnt"));
        assert!(request.config.options.kernel.read_only && !request.foreground);
    }

    #[test]
    fn options_before_and_after_the_paths_add_up() {
        let request = parse("gofs-fuse -o soft=5s m1:/ns /mnt -o threads=3 --foreground --log /x/y").unwrap();
        assert_eq!(request.config.options.threads, 3);
        assert_eq!(request.config.options.timeout, Some(std::time::Duration::from_secs(5)));
        assert_eq!(request.log, LogTo::File("/x/y".into()));
        assert!(request.foreground);
    }

    #[test]
    fn a_wrong_command_line_says_what_is_wrong() {
        assert!(parse("gofs-fuse m1 /mnt").is_err_and(|error| error.contains("names no namespace")));
        assert!(parse("gofs-fuse m1:/ns /mnt -o what").is_err_and(|error| error.contains("'what'")));
        assert!(parse("gofs-fuse m1:/ns").is_err());
    }
}

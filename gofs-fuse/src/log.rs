//! Where a daemon's log goes: standard error, the journal (by `/dev/log`, which syslog has too), or a file.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Where syslog and the journal listen.
const SYSLOG: &str = "/dev/log";
/// Of <syslog.h>.
const FACILITY_DAEMON: u8 = 3 << 3;

/// fuser tells of replies that the kernel did not want any more, as errors; each interrupted program makes one.
const DEFAULT_FILTER: &str = "info,fuser::reply=off";

/// A place for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTo {
    /// Standard error.
    Stderr,
    /// The journal, or syslog.
    Journal,
    /// Appended to a file.
    File(PathBuf),
}

impl LogTo {
    /// `stderr`, `journal`, or a path.
    pub fn parse(text: &str) -> Self {
        match text {
            "stderr" => LogTo::Stderr,
            "journal" | "syslog" => LogTo::Journal,
            path => LogTo::File(path.into()),
        }
    }
}

/// Starts logging as `RUST_LOG` says, else at level `info`. Once per process.
pub fn start(to: &LogTo) -> io::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    let started = match to {
        LogTo::Stderr => builder.with_writer(io::stderr).try_init(),
        LogTo::File(path) => {
            let file = File::options().create(true).append(true).open(path).map_err(|error| {
                io::Error::new(error.kind(), format!("log file {}: {error}", path.display()))
            })?;
            builder.with_writer(Arc::new(file)).try_init()
        }
        // The journal has its own times and levels.
        LogTo::Journal => builder
            .without_time()
            .with_level(false)
            .with_writer(Syslog::connect(Path::new(SYSLOG))?)
            .try_init(),
    };
    started.map_err(io::Error::other)?;
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(())
}

/// Whether the journal can be reached.
pub fn has_journal() -> bool {
    Path::new(SYSLOG).exists()
}

/// One datagram an event.
struct Syslog {
    socket: Arc<UnixDatagram>,
}

impl Syslog {
    fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket
            .connect(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        // A log that is read too slowly must not stop the file system.
        socket.set_nonblocking(true)?;
        Ok(Syslog { socket: Arc::new(socket) })
    }

    fn event(&self, severity: u8) -> SyslogEvent {
        SyslogEvent {
            socket: self.socket.clone(),
            text: format!("<{}>gofs-fuse[{}]: ", FACILITY_DAEMON | severity, std::process::id()).into_bytes(),
        }
    }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = SyslogEvent;

    fn make_writer(&'a self) -> SyslogEvent {
        self.event(6)
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> SyslogEvent {
        self.event(match *metadata.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        })
    }
}

/// An event being written; sent when dropped.
struct SyslogEvent {
    socket: Arc<UnixDatagram>,
    text: Vec<u8>,
}

impl Write for SyslogEvent {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for SyslogEvent {
    fn drop(&mut self) {
        // A log that cannot be written to has nowhere to say so.
        self.socket.send(self.text.trim_ascii_end()).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_datagram_with_its_severity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let listener = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::connect(&path).unwrap();
        let mut event = syslog.event(4);
        event.write_all(b"first ").unwrap();
        event.write_all(b"second\n").unwrap();
        drop(event);
        let mut buffer = [0; 200];
        let length = listener.recv(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert_eq!(text, format!("<28>gofs-fuse[{}]: first second", std::process::id()));
    }
}

//! One server or daemon process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::sys;
use crate::wait::wait_for;

const EXIT_TIMEOUT: Duration = Duration::from_secs(20);
const LOG_TAIL_LINES: usize = 60;

/// What is done to a command before each start, for example to have it enter a network namespace.
pub type Prepare = Box<dyn Fn(&mut Command) + Send + Sync>;

/// A process that can be killed and started again with the same command.
pub struct Server {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    prepare: Prepare,
    child: Option<Child>,
}

impl Server {
    /// Starts `binary` (a program of this workspace) with its output in `log_dir`.
    pub(crate) fn start(name: &str, binary: &str, args: Vec<String>, log_dir: &Path) -> Server {
        Server::start_prepared(name, program(binary), args, log_dir, Box::new(|_| ()))
    }

    /// The same on a host whose boot id the file `boot_id` has: a new one tells it that writes which were not synced may be lost.
    pub(crate) fn start_on_a_host(
        name: &str,
        binary: &str,
        args: Vec<String>,
        log_dir: &Path,
        boot_id: &Path,
    ) -> Server {
        let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
        let (boot_id, binary) = (boot_id.display().to_string(), program(binary).display().to_string());
        let mut all: Vec<String> =
            ["--mount", "--propagation", "slave", "sh", "-c", script, &boot_id, &binary]
                .map(String::from)
                .into();
        all.extend(args);
        Server::start_prepared(name, "unshare".into(), all, log_dir, Box::new(|_| ()))
    }

    /// Starts `program` with its output in `log_dir`. It ends with the thread that starts it.
    pub fn start_prepared(
        name: &str,
        program: PathBuf,
        args: Vec<String>,
        log_dir: &Path,
        prepare: Prepare,
    ) -> Server {
        let log = log_dir.join(format!("{name}.log"));
        let mut server = Server { name: name.to_string(), program, args, log, prepare, child: None };
        server.restart();
        server
    }

    /// Starts it again; it must not be running.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        (self.prepare)(&mut command);
        sys::die_with_parent(&mut command);
        self.child = Some(command.spawn().unwrap_or_else(|e| panic!("{}: {e}", self.program.display())));
    }

    /// Its process id. Panics when it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name)).id()
    }

    /// Whether it has not ended by itself or been killed.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("a child").is_none())
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().expect("a child");
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        sys::kill(self.pid(), signal);
    }

    /// SIGTERM, and waits for the end; killed, and false, if that takes too long.
    pub fn stop(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return true };
        sys::kill(child.id(), libc::SIGTERM);
        let deadline = std::time::Instant::now() + EXIT_TIMEOUT;
        while child.try_wait().expect("a child").is_none() {
            if std::time::Instant::now() > deadline {
                child.kill().ok();
                child.wait().expect("a child");
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Waits until it ends by itself; returns its exit status.
    pub fn wait_exit(&mut self, timeout: Duration) -> i32 {
        let mut status = None;
        let child = self.child.as_mut().expect("a running process");
        wait_for(&format!("{} to end", self.name), timeout, || {
            status = child.try_wait().expect("a child");
            status.is_some()
        });
        self.child = None;
        status.and_then(|s| s.code()).unwrap_or(-1)
    }

    /// Everything it has printed.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn print_tail(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("---- {} ({})", self.name, self.log.display());
        for line in &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..] {
            eprintln!("{line}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if !self.stop() && !failed {
            eprintln!("{} had to be killed: it did not end within {EXIT_TIMEOUT:?} of SIGTERM", self.name);
        }
        if failed {
            self.print_tail();
        }
    }
}

/// Where gofsctl is, for a shell.
pub fn gofsctl() -> String {
    program("gofsctl").display().to_string()
}

/// A program of this workspace, beside the test's own executable.
pub(crate) fn program(binary: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let profile_dir = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let path = profile_dir.join(binary);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --workspace` first, or `cargo xtask test`",
        path.display()
    );
    path
}

//! The options behind `-o`: ours, the kernel's flags, and those that mount(8) and fstab(5)
//! write for others to read. An unknown one is an error, so that a misspelt one is noticed.

use std::time::Duration;

use gofs_wakeful::CpuLatency;

/// Threads that read requests from the kernel unless `threads=` says otherwise: one for every two processors, within these.
/// The kernel wakes those that wait in turn, so that each of more than are needed finds its processor cold or taken.
const THREADS: std::ops::RangeInclusive<usize> = 1..=4;
/// Most that `threads=` takes; each holds a request buffer of 16 MiB of address space.
const THREADS_MAX: usize = 64;
/// How far the kernel reads ahead of a sequential reader unless `read_ahead=` says otherwise, bytes.
const READ_AHEAD_BYTES: u64 = 2 << 20;

/// Who may use the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, as far as permissions allow.
    All,
    /// Root and the user who mounted.
    RootAndOwner,
    /// The user who mounted.
    Owner,
}

/// Flags that the kernel itself obeys (mount(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are mount(8)'s")]
pub struct KernelFlags {
    pub read_only: bool,
    pub nodev: bool,
    pub nosuid: bool,
    pub noexec: bool,
    pub noatime: bool,
    pub nodiratime: bool,
    pub dirsync: bool,
    pub nosymfollow: bool,
}

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// What the kernel obeys.
    pub kernel: KernelFlags,
    /// `allow_other`, `allow_root`, `noallow_other`; `None`: everybody if root mounts, else the owner.
    pub access: Option<Access>,
    /// `soft=DURATION`: how long an operation waits for servers before EIO. `None` (`hard`): for ever.
    pub timeout: Option<Duration>,
    /// `cache=SIZE`: bytes of file contents kept in memory; `None`: the client's default.
    pub cache_bytes: Option<u64>,
    /// `dirty=SIZE`: bytes not yet written back before writers wait; `None`: the client's default.
    pub dirty_bytes: Option<u64>,
    /// `sync`: every operation is durable before it returns.
    pub sync: bool,
    /// `threads=N`: threads that read requests from the kernel.
    pub threads: usize,
    /// `read_ahead=SIZE`: how far the kernel reads ahead, bytes.
    pub read_ahead_bytes: u64,
    /// `cpu_latency=`: whether processors are kept awake while requests flow.
    pub cpu_latency: CpuLatency,
    /// `log=WHERE`, for the daemon: `journal`, `stderr` or a file.
    pub log: Option<String>,
}

impl Default for MountOptions {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        MountOptions {
            kernel: KernelFlags::default(),
            access: None,
            timeout: None,
            cache_bytes: None,
            dirty_bytes: None,
            sync: false,
            threads: (processors / 2).clamp(*THREADS.start(), *THREADS.end()),
            read_ahead_bytes: READ_AHEAD_BYTES,
            cpu_latency: CpuLatency::default(),
            log: None,
        }
    }
}

/// What `-o` takes, for `--help` and errors.
pub const OPTIONS_HELP: &str = "\
soft=DURATION (timeout=): an operation that waits longer for servers fails with EIO; hard (the default): it waits
cache=SIZE, dirty=SIZE: bytes of file contents cached, and not yet written back, in memory
sync: every operation is durable before it returns
allow_other, allow_root, noallow_other: who may use the mount
threads=N, read_ahead=SIZE, log=journal|stderr|FILE
cpu_latency=auto|hold|off: keep processors awake while requests flow (auto), always, or never
ro, rw, [no]dev, [no]suid, [no]exec, [no]atime, [no]diratime, dirsync, [no]symfollow, async
ignored, because others read them: defaults, auto, noauto, user[=NAME], users, nouser, owner, group, nofail,
_netdev, relatime, strictatime, lazytime (each also with no), default_permissions, comment=, x-*, X-*";

/// Why options were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Not one of ours.
    #[error("unknown mount option '{0}'. There are:\n{OPTIONS_HELP}")]
    Unknown(String),
    /// A value that does not fit.
    #[error("mount option '{option}={value}': {reason}")]
    Value {
        /// Its name.
        option: String,
        /// What was given.
        value: String,
        /// What it must be.
        reason: &'static str,
    },
    /// `remount`.
    #[error("gofs cannot be remounted with other options: unmount it and mount it again")]
    Remount,
}

impl MountOptions {
    /// Understands comma-separated options; later ones win.
    pub fn parse<'a>(lists: impl IntoIterator<Item = &'a str>) -> Result<Self, OptionError> {
        let mut options = MountOptions::default();
        for item in lists.into_iter().flat_map(|list| list.split(',')).map(str::trim) {
            if !item.is_empty() {
                options.take(item)?;
            }
        }
        Ok(options)
    }

    fn take(&mut self, item: &str) -> Result<(), OptionError> {
        match item.split_once('=') {
            Some((name, value)) => self.take_valued(item, name, value),
            None => self.take_flag(item),
        }
    }

    fn take_valued(&mut self, item: &str, name: &str, value: &str) -> Result<(), OptionError> {
        let wrong = |reason| OptionError::Value { option: name.to_owned(), value: value.to_owned(), reason };
        let size = || bytes(value).ok_or(wrong("a size such as 512M, 4G or a number of bytes"));
        match name {
            "soft" | "timeout" => {
                let timeout = duration(value).ok_or(wrong("a duration such as 30s, 500ms or 2m"))?;
                self.timeout = (!timeout.is_zero()).then_some(timeout);
            }
            "cache" => self.cache_bytes = Some(size()?),
            "dirty" => self.dirty_bytes = Some(size()?),
            "read_ahead" => self.read_ahead_bytes = size()?,
            "threads" => {
                self.threads = value
                    .parse()
                    .ok()
                    .filter(|threads| (1..=THREADS_MAX).contains(threads))
                    .ok_or(wrong("a number of threads, 1 to 64"))?;
            }
            "cpu_latency" => {
                self.cpu_latency = value.parse().map_err(|_| wrong("auto, hold or off"))?;
            }
            "log" if value.is_empty() => return Err(wrong("journal, stderr or a file")),
            "log" => self.log = Some(value.to_owned()),
            "user" => self.restrict(true),
            "comment" => {}
            _ if foreign(name) => {}
            _ => return Err(OptionError::Unknown(item.to_owned())),
        }
        Ok(())
    }

    fn take_flag(&mut self, item: &str) -> Result<(), OptionError> {
        let kernel = &mut self.kernel;
        match item {
            "ro" => kernel.read_only = true,
            "rw" => kernel.read_only = false,
            "nodev" => kernel.nodev = true,
            "dev" => kernel.nodev = false,
            "nosuid" => kernel.nosuid = true,
            "suid" => kernel.nosuid = false,
            "noexec" => kernel.noexec = true,
            "exec" => kernel.noexec = false,
            "noatime" => kernel.noatime = true,
            "atime" => kernel.noatime = false,
            "nodiratime" => kernel.nodiratime = true,
            "diratime" => kernel.nodiratime = false,
            "dirsync" => kernel.dirsync = true,
            "nosymfollow" => kernel.nosymfollow = true,
            "symfollow" => kernel.nosymfollow = false,
            "sync" => self.sync = true,
            "async" => self.sync = false,
            "hard" => self.timeout = None,
            "soft" => {
                return Err(OptionError::Value {
                    option: "soft".to_owned(),
                    value: String::new(),
                    reason: "a duration such as soft=30s",
                });
            }
            "allow_other" => self.access = Some(Access::All),
            "allow_root" => self.access = Some(Access::RootAndOwner),
            "noallow_other" | "noallow_root" => self.access = Some(Access::Owner),
            "user" | "users" => self.restrict(true),
            "owner" | "group" => self.restrict(false),
            "remount" => return Err(OptionError::Remount),
            "defaults"
            | "auto"
            | "noauto"
            | "nouser"
            | "nousers"
            | "noowner"
            | "nogroup"
            | "nofail"
            | "_netdev"
            | "relatime"
            | "norelatime"
            | "strictatime"
            | "nostrictatime"
            | "lazytime"
            | "nolazytime"
            | "silent"
            | "loud"
            | "default_permissions" => {}
            _ if foreign(item) => {}
            _ => return Err(OptionError::Unknown(item.to_owned())),
        }
        Ok(())
    }

    /// What a mount by an ordinary user implies (mount(8)), unless a later option says otherwise.
    fn restrict(&mut self, noexec: bool) {
        self.kernel.nodev = true;
        self.kernel.nosuid = true;
        self.kernel.noexec |= noexec;
    }
}

/// Options of systemd, libmount and other readers of fstab.
fn foreign(name: &str) -> bool {
    name.starts_with("x-") || name.starts_with("X-")
}

/// Bytes, or with K, M, G, T (times 1024), optionally followed by B or iB.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Seconds, or with ms, s, m, h.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number = number.parse::<u64>().ok()?;
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(millis)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MountOptions, OptionError> {
        MountOptions::parse([text])
    }

    #[test]
    fn what_mount_and_fstab_write_is_accepted() {
        let options = parse(
            "rw,relatime,_netdev,nofail,noauto,x-systemd.automount,X-mount.mkdir=755,defaults,comment=a b",
        )
        .unwrap();
        assert_eq!(options, MountOptions::default());
    }

    #[test]
    fn a_users_mount_is_restricted_unless_it_says_otherwise() {
        let options = parse("user,exec").unwrap().kernel;
        assert!(options.nodev && options.nosuid && !options.noexec);
        assert!(parse("users").unwrap().kernel.noexec);
        assert!(!parse("owner").unwrap().kernel.noexec);
    }

    #[test]
    fn values_have_units() {
        let options = parse("soft=500ms,cache=2G,dirty=64MiB,threads=3,read_ahead=4096K").unwrap();
        assert_eq!(options.timeout, Some(Duration::from_millis(500)));
        assert_eq!(options.cache_bytes, Some(2 << 30));
        assert_eq!(options.dirty_bytes, Some(64 << 20));
        assert_eq!((options.threads, options.read_ahead_bytes), (3, 4 << 20));
        assert_eq!(parse("soft=30s,hard").unwrap().timeout, None);
        assert_eq!(parse("timeout=2m").unwrap().timeout, Some(Duration::from_secs(120)));
    }

    #[test]
    fn wrong_options_are_named() {
        for (text, part) in [
            ("cahce=1G", "unknown mount option 'cahce=1G'"),
            ("fast", "unknown mount option 'fast'"),
            ("cache=1X", "'cache=1X'"),
            ("cache=99999999999T", "'cache=99999999999T'"),
            ("soft", "soft=30s"),
            ("soft=-1s", "'soft=-1s'"),
            ("threads=0", "1 to 64"),
            ("cpu_latency=never", "auto, hold or off"),
            ("remount,ro", "cannot be remounted"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

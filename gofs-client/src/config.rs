//! How a mount is configured.

use std::time::Duration;

/// What an operation does when no server answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Goes on trying for as long as the mount lives.
    #[default]
    Hard,
    /// Gives up with [`FsError::Io`](gofs_tree::FsError::Io) after this time.
    Soft(Duration),
}

/// Everything a mount needs to know. `Default` leaves out only what has no default:
/// the servers and the namespace.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Addresses (`host:port`) of MetaServers; at least one, any of them.
    pub metas: Vec<String>,
    /// Name of the namespace.
    pub namespace: String,
    /// Directory inside the namespace that is mounted, without leading `/`; empty = its root.
    pub subdir: Vec<u8>,
    /// Where the mount is, for people: shown by `gofsctl`.
    pub mount_point: String,
    /// What operations do when no server answers.
    pub wait: Wait,
    /// Longest wait for the first server to answer at mount.
    pub mount_timeout: Duration,
    /// Longest wait for one connection attempt and its greeting.
    pub connect_timeout: Duration,
    /// Inodes, names, small files, targets and xattrs kept in memory, bytes.
    pub cache_bytes: u64,
    /// File contents kept in memory that servers have too, bytes.
    pub read_cache_bytes: u64,
    /// Written bytes that may wait for servers before writers are slowed down.
    pub dirty_bytes: u64,
    /// Longest time that written bytes wait before they are sent.
    pub dirty_age: Duration,
    /// Furthest that a sequential reader is read ahead of, bytes.
    pub readahead_bytes: u64,
    /// Every write is durable before it returns (`-o sync`).
    pub sync: bool,
}

/// 480 MiB of what is kept; what is on its way to or from servers comes on top.
impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig {
            metas: Vec::new(),
            namespace: String::new(),
            subdir: Vec::new(),
            mount_point: String::new(),
            wait: Wait::Hard,
            mount_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(3),
            cache_bytes: 192 << 20,
            read_cache_bytes: 96 << 20,
            dirty_bytes: 192 << 20,
            dirty_age: Duration::from_secs(5),
            readahead_bytes: 16 << 20,
            sync: false,
        }
    }
}

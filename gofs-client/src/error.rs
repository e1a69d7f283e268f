//! Why a mount did not come about.

/// Why [`crate::Client::mount`] failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MountError {
    /// The configuration names no MetaServer.
    #[error("no MetaServer named: give at least one HOST:PORT")]
    NoAddress,
    /// No server answered as leader in time.
    #[error(
        "no MetaServer leads after {waited_s} s; last tries: {tried}. Is the cluster running, and are the addresses right?"
    )]
    Unreachable {
        /// Seconds that were tried.
        waited_s: u64,
        /// Each address and what it said last.
        tried: String,
    },
    /// The namespace or the directory in it does not exist.
    #[error("{server}: {text}")]
    NoNamespace {
        /// Who said so.
        server: String,
        /// What it said.
        text: String,
    },
    /// No protocol version in common.
    #[error("{server} speaks another protocol version: {text}. Install the same release on both")]
    Version {
        /// Who said so.
        server: String,
        /// What it said.
        text: String,
    },
    /// The server refused for another reason, or its answer makes no sense.
    #[error("{server} refused the mount: {text}")]
    Refused {
        /// Who said so.
        server: String,
        /// What it said.
        text: String,
    },
}

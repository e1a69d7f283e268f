//! Why the store refuses.

use std::io;
use std::path::{Path, PathBuf};

use gofs_tree::{ChunkId, ChunkVersion};

/// Why an operation on the store failed. Nothing became visible when one is returned.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such chunk here.
    #[error("chunk {chunk} is not on this server")]
    NoChunk {
        /// Which.
        chunk: ChunkId,
    },
    /// The chunk is here at another version.
    #[error("chunk {chunk} is at version {stored}, asked for {asked}")]
    Stale {
        /// Which.
        chunk: ChunkId,
        /// What is here.
        stored: ChunkVersion,
        /// What was asked for.
        asked: ChunkVersion,
    },
    /// Writes that were acknowledged without sync may be missing since the host went down, and another server may have them.
    #[error(
        "chunk {chunk} may lack its last writes since this host went down: ask the MetaServer where it is"
    )]
    Doubtful {
        /// Which.
        chunk: ChunkId,
    },
    /// The chunk was locked for so long that it is not known any more whether its writer may write.
    #[error("chunk {chunk} was busy until it was not known any more who may write")]
    TooLate {
        /// Which.
        chunk: ChunkId,
    },
    /// What is to be synced may have gone with the power of all servers that had it.
    #[error("chunk {chunk} may lack writes that were acknowledged and not synced: {written}, now {stored}")]
    Lost {
        /// Which.
        chunk: ChunkId,
        /// Its version here.
        stored: ChunkVersion,
        /// That at which the first of those writes was acknowledged.
        written: ChunkVersion,
    },
    /// Bytes on disk are not those that were written.
    #[error("chunk {chunk}, block {block} on {}: {what}", disk.display())]
    Corrupt {
        /// Which chunk.
        chunk: ChunkId,
        /// Which 4 KiB block of it.
        block: u32,
        /// Data directory.
        disk: PathBuf,
        /// What does not fit.
        what: &'static str,
    },
    /// No room, or only the reserve is left.
    #[error("no space left on {}: free some, or add a data directory", disk.display())]
    NoSpace {
        /// Data directory.
        disk: PathBuf,
    },
    /// The data directory was taken out of service.
    #[error("data directory {} is out of service: {why}", disk.display())]
    DiskFailed {
        /// Data directory.
        disk: PathBuf,
        /// Its first error.
        why: String,
    },
    /// A system call failed.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl StoreError {
    /// For `map_err`: names what was done to which file; a full disk is recognised.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        move |source| match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => StoreError::NoSpace { disk: path.to_owned() },
            _ => StoreError::Io { what, path: path.to_owned(), source },
        }
    }
}

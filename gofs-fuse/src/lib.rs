//! gofs in the kernel's tree of files: fuser on one side, a [`Backend`] (in production
//! [`gofs_client::Client`]) on the other.
//!
//! Owns the mount, the translation of requests, errors and attributes, the kernel's caches, and the daemon behind
//! `mount.fuse.gofs`. Decides nothing about files: that is the client's.

#![deny(unsafe_code)]

mod attach;
mod backend;
mod capabilities;
mod convert;
pub mod daemon;
mod errno;
mod filesystem;
mod kernel_cache;
pub mod log;
mod lookups;
mod mount;
mod options;
mod random_reads;
mod requester;
mod source;
mod stats;
#[allow(unsafe_code, reason = "the system calls are here, and nowhere else")]
mod sys;

pub use backend::{Backend, BackendFile};
pub use gofs_wakeful::CpuLatency;
pub use kernel_cache::KernelNotifier;
pub use mount::{MountConfig, MountError, Mounted, Served, mount, serve};
pub use options::{Access, KernelFlags, MountOptions, OPTIONS_HELP, OptionError};
pub use source::{DEFAULT_META_PORT, Source, SourceError};
pub use stats::{MountStats, OperationCounts, ProcessorTime, STATS_XATTR, StatsError};

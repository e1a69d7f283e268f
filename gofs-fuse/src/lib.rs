//! gofs in the kernel's tree of files: fuser on one side, [`gofs_client::Client`] on the other.
//!
//! Owns the mount, the translation of requests, errors and attributes, the kernel's caches, and the daemon behind
//! `mount.fuse.gofs`. Decides nothing about files: that is the client's.

#![deny(unsafe_code)]

mod attach;
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
mod requester;
mod source;
#[allow(unsafe_code, reason = "the system calls are here, and nowhere else")]
mod sys;
mod wakeful;

pub use mount::{MountConfig, MountError, Mounted, mount};
pub use options::{Access, KernelFlags, MountOptions, OPTIONS_HELP, OptionError};
pub use source::{DEFAULT_META_PORT, Source, SourceError};
pub use wakeful::CpuLatency;

//! What every gateway to gofs needs: the session with the MetaServers, the lease cache, the
//! operations of a file system, file contents with write-back. Knows no kernel: whoever serves one
//! implements [`KernelCache`] and calls [`Client`].

#![forbid(unsafe_code)]

mod cached;
mod client;
mod clock;
mod config;
mod core;
pub mod data;
mod error;
mod handle;
mod inspect;
mod kernel;
mod latencies;
mod lease;
mod locks;
mod ops;
pub mod parked;
mod session;
mod slices;

pub use cached::Cached;
pub use client::{Client, ClientStats, Unmounted, Waiting};
pub use config::{ClientConfig, Wait};
pub use error::MountError;
pub use handle::{DirHandle, DirItem, Fallocate, FileHandle, FileLock, OpenFlags, StatFs, Whence};
pub use kernel::KernelCache;
pub use latencies::{LATENCY_BUCKETS, Latencies, LatencyCounts, bucket_limit};
pub use lease::{KernelListing, UseGuard};

//! The MetaServer: keeps the directory tree of every namespace and schedules the system.

#![forbid(unsafe_code)]

mod admin;
mod chunks;
mod codec;
pub mod command;
pub mod config;
mod editlog;
#[cfg(test)]
mod fixture;
pub mod group;
mod heartbeat;
mod identity;
mod lease;
mod lock;
mod raft;
mod repair;
pub mod restore;
mod rpc_stream;
mod server;
mod service;
mod session;
mod state;

pub use chunks::ChunkConfig;
pub use config::Config;
pub use lease::CONTENDED_FOR;
pub use server::Server;
pub use session::SessionTimes;
pub use state::{Backup, BackupHead, BackupNamespace, StateConfig, verify_backup};

//! The MetaServer: keeps the directory tree of every namespace and schedules the system.

#![forbid(unsafe_code)]

pub mod admin;
pub mod chunks;
mod codec;
pub mod command;
pub mod config;
mod editlog;
pub mod group;
pub mod heartbeat;
mod identity;
pub mod lease;
pub mod lock;
mod raft;
mod rpc_stream;
pub mod server;
pub mod service;
pub mod session;
pub mod state;

pub use config::Config;
pub use server::Server;

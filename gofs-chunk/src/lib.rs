//! The ChunkServer: keeps chunks, serves their bytes, passes writes on to the next replica, and
//! reports to the MetaServer.
//!
//! [`Server`] is the whole of it; [`Config`] says how. [`store`] is sync and knows no network.

#![deny(unsafe_code)]

mod clock;
mod config;
mod heartbeat;
mod server;
mod service;
pub mod store;
mod upkeep;

pub use config::Config;
pub use server::Server;

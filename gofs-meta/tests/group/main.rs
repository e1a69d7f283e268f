//! One MetaServer and several, on loopback: what is acknowledged stays, whoever stops, comes or goes.
#![allow(clippy::unwrap_used, reason = "a test")]

mod cluster;
mod members;
mod replication;

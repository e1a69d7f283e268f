//! Tests of the store on real files and of whole servers on loopback.
#![allow(clippy::unwrap_used, reason = "tests panic")]

mod copies;
mod fake_meta;
mod node;
mod power;
mod servers;
mod store_crash;
mod store_damage;
mod store_failures;
mod store_model;
mod store_open_files;
mod store_space;
mod store_waits;
mod support;

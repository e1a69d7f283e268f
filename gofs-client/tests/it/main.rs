//! A client against a MetaServer that does as it is told.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod fake;
mod fenced;
mod futures;
mod listings;
mod log;
mod session;
mod slices;
mod walk;

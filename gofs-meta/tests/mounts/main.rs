//! Mounts over loopback against a whole MetaServer: what one does, the others find.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod batches;
mod client;
mod coherence;
mod life;
mod locks;
mod majority;
mod slices;
mod walk;

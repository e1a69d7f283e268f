//! A real cluster for tests: gofs-meta, gofs-chunk and gofs-fuse as processes, real mounts.
//!
//! Owns every process and mount it makes; dropping a [`Cluster`] or [`Mount`] ends them, and
//! prints the tails of the logs when the test has failed. Nothing here sleeps where it can wait
//! for a condition. A missing binary or /dev/fuse fails the test and says what to do.

mod cluster;
mod disk;
mod history;
mod load;
mod mount;
mod pauses;
pub mod posix;
mod process;
mod run;
pub mod sys;
mod wait;

pub use cluster::{Cluster, ClusterBuilder};
pub use disk::Disk;
pub use history::History;
pub use load::{Load, content};
pub use mount::Mount;
pub use pauses::Pauses;
pub use process::{Prepare, Server, gofsctl};
pub use run::{Output, run, run_in, shell, try_shell};
pub use wait::{eventually, wait_for};

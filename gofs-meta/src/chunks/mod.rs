//! Chunks: where their replicas are, where new ones go, how lost ones are made again and superfluous ones go.
//!
//! The state knows of each chunk its committed version, its goal, and whether a file refers to
//! it. Everything else is here, in memory, on the leader, from the ChunkServers' reports.
//!
//! # Versions
//!
//! A replica is *current* at exactly the committed version. The version moves
//! whenever the set of replicas that future writes reach changes ([`change`]): a replica failed,
//! was missing when a writer asked, is corrupt or superfluous, or a new one was made. What was left behind is *stale*:
//! never in a location, replaced or deleted later. [`change`] tells why no order of crashes, lost
//! answers and late copies makes a replica current that lacks an acknowledged write.
//!
//! A repair is: raise the version on the good replicas, which stops the writers; copy at that
//! version; commit it with the new replica among the holders. Meanwhile writers wait ([`Location::Wait`])
//! and readers get locations that are good for reading only.
//!
//! # Deciding and doing
//!
//! Sync, with time and randomness passed in: [`ServerTable`] (who is alive), [`Directory`] (who
//! reported what), [`locate`] (what a client may use), [`judge`] (what is to be done
//! about a chunk), [`Change`] (how its replicas change), [`Repairs`] (which copy next),
//! [`Balance`] (what to move so that servers are equally full), [`placement`]. [`ChunkService`] does what they say.
//!
//! After a start or a change of leader locations are answered as reports arrive, but nothing
//! is repaired or deleted before the leader has *settled*: every registered server has
//! listed its chunks, or had `dead_after + settle` to do so.

mod balance;
mod change;
mod config;
mod directory;
mod judge;
mod leader;
mod locate;
mod placement;
mod repairs;
mod servers;
mod service;
mod version;

#[cfg(test)]
mod simulation;

use balance::Balance;
use change::{Change, Step, Wanted};
use directory::{Directory, Entry, Replica, Reported};
use judge::{Record, judge};
use locate::{View, Write, hidden_at, locate, locate_to_write, was_told};
use repairs::{Copy, Reason, Repairs, Speed, Want};
use servers::{Disk, Server, ServerTable};

pub(crate) use version::first_version_of;

pub use config::ChunkConfig;
pub use judge::Health;
pub use locate::{Location, READ_ONLY, Servers};
pub use repairs::Amount;
pub use service::{Capacity, Census, ChunkService, Left, ServerStatus, StandingError};

//! What can break, and whom it concerns.

pub mod act;

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use rand::RngExt;
use rand::rngs::StdRng;

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// kill -9 of the leading MetaServer, started again at once or later
    LeaderKill,
    /// kill -9 of a MetaServer that follows
    FollowerKill,
    /// SIGTERM of the leading MetaServer, started again
    LeaderRestart,
    /// The leading MetaServer stands still (SIGSTOP) and goes on
    LeaderFreeze,
    /// A MetaServer is cut off from everybody
    MetaCut,
    /// The leading MetaServer is cut off from the other MetaServers, and nobody else
    LeaderAlone,
    /// One MetaServer hears the others, who do not hear it, or the other way round
    MetaOneWay,
    /// The disk of a MetaServer is full
    MetaFull,
    /// kill -9 of a ChunkServer, started again at once or later
    ChunkKill,
    /// A ChunkServer stands still (SIGSTOP) and goes on
    ChunkFreeze,
    /// A ChunkServer is cut off from everybody
    ChunkCut,
    /// The cable of a ChunkServer is pulled
    ChunkUnplug,
    /// One direction between a ChunkServer and everybody is cut
    ChunkOneWay,
    /// A ChunkServer is cut off from the MetaServers, and nobody else
    ChunkNoMeta,
    /// A ChunkServer and one mount are cut off from each other
    ChunkNoClient,
    /// A ChunkServer is cut off from the other ChunkServers
    ChunkNoChunk,
    /// The disk of a ChunkServer is full
    ChunkFull,
    /// A ChunkServer is killed, its disk is lost, and it comes back with an empty one
    ChunkWipe,
    /// Bits flip on the disk of a ChunkServer
    ChunkBits,
    /// A mount's daemon stands still (SIGSTOP) for less than its session
    ClientFreeze,
    /// A mount's daemon stands still for longer than its session, and is fenced
    ClientFrozen,
    /// A mount is cut off from everybody for less than its session
    ClientCut,
    /// A mount is cut off from everybody for longer than its session, and is fenced
    ClientLost,
    /// One direction between a mount and the MetaServers is cut
    ClientOneWay,
    /// The network of one host is slow and loses packets
    Slow,
    /// The wall clock of one process jumps, and later back
    Clock,
}

/// What breaks together at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A MetaServer: any minority may fail. One at a time here.
    Meta,
    /// A ChunkServer: all but one replica may fail. One at a time here.
    Chunk,
    /// A mount.
    Client,
    /// Nothing that must be survived, only borne.
    Any,
}

impl Kind {
    /// Whom it concerns.
    pub fn class(self) -> Class {
        match self {
            Kind::LeaderKill
            | Kind::FollowerKill
            | Kind::LeaderRestart
            | Kind::LeaderFreeze
            | Kind::MetaCut
            | Kind::LeaderAlone
            | Kind::MetaOneWay
            | Kind::MetaFull => Class::Meta,
            Kind::ChunkKill
            | Kind::ChunkFreeze
            | Kind::ChunkCut
            | Kind::ChunkUnplug
            | Kind::ChunkOneWay
            | Kind::ChunkNoMeta
            | Kind::ChunkNoClient
            | Kind::ChunkNoChunk
            | Kind::ChunkFull
            | Kind::ChunkWipe
            | Kind::ChunkBits => Class::Chunk,
            Kind::ClientFreeze
            | Kind::ClientFrozen
            | Kind::ClientCut
            | Kind::ClientLost
            | Kind::ClientOneWay => Class::Client,
            Kind::Slow | Kind::Clock => Class::Any,
        }
    }

    /// How long it lasts, with sessions valid for so long.
    pub fn duration(self, session: Duration, rng: &mut StdRng) -> Duration {
        let seconds =
            |rng: &mut StdRng, from: f64, to: f64| Duration::from_secs_f64(rng.random_range(from..to));
        // Validity, a quarter of it as margin, and the time that a server may take to act.
        let past_session = session.mul_f64(1.25) + Duration::from_secs(3);
        match self {
            Kind::LeaderKill | Kind::FollowerKill | Kind::ChunkKill => {
                // At once, or after the others have got used to it.
                if rng.random() { Duration::ZERO } else { seconds(rng, 1.0, 12.0) }
            }
            Kind::LeaderRestart | Kind::ChunkWipe | Kind::ChunkBits => Duration::ZERO,
            Kind::ClientFrozen | Kind::ClientLost => past_session + seconds(rng, 0.0, 5.0),
            Kind::ClientFreeze | Kind::ClientCut | Kind::ClientOneWay => {
                session.mul_f64(rng.random_range(0.05..0.7))
            }
            Kind::MetaFull | Kind::ChunkFull => seconds(rng, 5.0, 12.0),
            _ => seconds(rng, 1.0, 15.0),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("none is hidden");
        f.write_str(value.get_name())
    }
}

//! Identifiers. Each is a newtype: none is ever mistaken for another or for a count.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($repr:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $repr);

        impl $name {
            /// The id after this one. Ids are never reused, so running out is a bug elsewhere.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("the id space is never used up"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A namespace: one isolated file system of the cluster.
    NamespaceId(u32), "ns"
);
id!(
    /// An inode within its namespace. Never reused: the kernel turns a reused inode bad.
    Ino(u64), "i"
);
id!(
    /// A chunk, cluster-wide. Never reused.
    ChunkId(u64), "c"
);
id!(
    /// Moves whenever the set of replicas that hold a chunk's current bytes changes. From the top: the term of the leader
    /// that chose it (40 bits), how often acknowledged writes may have been lost before it (8), a count (16).
    ChunkVersion(u64), "v"
);

impl ChunkVersion {
    /// Bits of the count of one leader.
    pub const COUNT_BITS: u32 = 16;
    /// Bits of [`losses`](Self::losses).
    pub const LOSSES_BITS: u32 = 8;

    /// How often a replica that may lack acknowledged writes, none of which was synced, had to do for the chunk because
    /// there was none without that doubt. It stops at the largest number.
    pub fn losses(self) -> u64 {
        (self.0 >> Self::COUNT_BITS) & ((1 << Self::LOSSES_BITS) - 1)
    }
}
id!(
    /// A mount's session with the MetaServer cluster. Never reused; 0 is "none".
    SessionId(u64), "s"
);
id!(
    /// Numbers the grants of leases within one inode and session, so that a recall finds its grant.
    LeaseEpoch(u64), "e"
);
id!(
    /// Position of an edit in its session's ordered log, from 1.
    EditSeq(u64), "q"
);
id!(
    /// Position of an entry in the EditLog, from 1.
    EditIndex(u64), "x"
);
id!(
    /// A ChunkServer, chosen at random when its first data directory is made.
    ChunkServerId(u64), "cs"
);
id!(
    /// A MetaServer, from its configuration (`--id`).
    MetaServerId(u64), "m"
);

/// The root directory of every namespace.
pub const ROOT_INO: Ino = Ino(1);

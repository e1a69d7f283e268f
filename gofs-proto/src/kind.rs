//! Kinds of frames. A request's kind names its header message; its reply has the same kind
//! with [`REPLY`] set, or is [`FAILURE`].

/// Set in the kind of a reply.
pub const REPLY: u16 = 0x8000;
/// A reply that refuses: its header is `session.Failure`, through either frame door.
pub const FAILURE: u16 = 0xffff;

/// Kinds of requests are below this.
pub const LIMIT: u16 = 128;

/// Ties a request message to its kind and its reply.
pub trait Request: prost::Message + Default + 'static {
    /// The kind of the request's frame.
    const KIND: u16;
    /// The header of the reply.
    type Reply: prost::Message + Default + 'static;
}

macro_rules! kinds {
    ($($kind:literal $module:ident :: $request:ident => $reply:ident;)*) => {
        $(impl Request for crate::$module::$request {
            const KIND: u16 = $kind;
            type Reply = crate::$module::$reply;
        })*

        /// Every header with its name: reads bytes as one.
        #[cfg(test)]
        pub(crate) const DECODERS: &[(&str, fn(&[u8]) -> bool)] = &[$(
            (stringify!($request), |bytes| <crate::$module::$request as prost::Message>::decode(bytes).is_ok()),
            (stringify!($reply), |bytes| <crate::$module::$reply as prost::Message>::decode(bytes).is_ok()),
        )*];

        /// The name of a kind, for messages to people.
        pub fn name(kind: u16) -> &'static str {
            match kind & !REPLY {
                $($kind => concat!(stringify!($module), ".", stringify!($request)),)*
                _ => "unknown",
            }
        }
    };
}

kinds! {
    1 session::Hello => Welcome;
    2 session::KeepAlive => KeepAliveReply;
    3 session::Goodbye => GoodbyeReply;
    4 session::Lookup => LookupReply;
    5 session::Fetch => FetchReply;
    6 session::ReadDir => ReadDirReply;
    7 session::Edits => EditsReply;
    8 session::Xattrs => XattrsReply;
    9 session::ChunkMap => ChunkMapReply;
    10 session::Allocate => AllocateReply;
    11 session::ReplicaFailed => ReplicaFailedReply;
    12 session::BadReplica => BadReplicaReply;
    13 session::Statfs => StatfsReply;
    14 session::SetLock => SetLockReply;
    15 session::Unlock => UnlockReply;
    16 session::GetLock => GetLockReply;
    17 session::CancelLock => CancelLockReply;
    18 session::Closed => ClosedReply;
    19 session::Release => ReleaseReply;
    20 session::Recall => RecallReply;
    21 session::Batch => BatchReply;
    22 session::Reserve => ReserveReply;
    23 session::Delegate => DelegateReply;
    24 session::RecallSlice => RecallSliceReply;
    25 session::Walk => WalkReply;
    26 session::ReserveChunks => ReserveChunksReply;
    27 session::Members => MembersReply;
    64 chunk::Hello => Welcome;
    65 chunk::Write => WriteReply;
    66 chunk::Read => ReadReply;
    67 chunk::Sync => SyncReply;
    68 chunk::Punch => PunchReply;
    69 chunk::Extents => ExtentsReply;
    70 chunk::Stat => StatReply;
}

//! The one place where an error of the store becomes a refusal on the wire.

use gofs_proto::session::Failure;
use gofs_proto::session::failure::Code;
use gofs_tree::FsError;

use crate::store::StoreError;

/// What a client or another ChunkServer is told.
pub fn failure(error: &StoreError) -> Failure {
    let code = match error {
        StoreError::NoChunk { .. } => Code::NoChunk,
        StoreError::Stale { .. } | StoreError::Doubtful { .. } => Code::StaleChunk,
        StoreError::Lost { .. } => Code::LostWrites,
        StoreError::TooLate { .. } => Code::Retry,
        StoreError::Corrupt { .. } => Code::Corrupt,
        StoreError::Invalid(_) => Code::BadRequest,
        StoreError::NoSpace { .. } => return fs(FsError::NoSpace, error),
        StoreError::DiskFailed { .. } | StoreError::Io { .. } => return fs(FsError::Io, error),
    };
    Failure::new(code, error.to_string())
}

fn fs(fs: FsError, error: &StoreError) -> Failure {
    Failure { text: error.to_string(), ..Failure::fs(fs) }
}

/// A request that cannot be what it says.
pub fn bad_request(text: impl Into<String>) -> Failure {
    Failure::new(Code::BadRequest, text)
}

//! Administration: the Admin service that `gofsctl` speaks to. One operation, one file.

mod sessions;

pub use sessions::{LeaseSummary, SessionInfo, SessionSummary};

//! Why a request is refused, and how that is said on the wire. The one place that maps it.

use gofs_proto::convert::ConvertError;
use gofs_proto::session::Failure;
use gofs_proto::session::failure::Code;
use gofs_tree::FsError;

use crate::command;
use crate::group::ProposeError;

/// Why a request is refused.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The file system says no.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another server leads.
    #[error("not the leader")]
    NotLeader(Option<String>),
    /// Fenced or ended.
    #[error("the session was fenced or has ended")]
    NoSession,
    /// Ask again.
    #[error("{0}")]
    Retry(String),
    /// Malformed or out of place.
    #[error("{0}")]
    BadRequest(String),
    /// No common version.
    #[error("{0}")]
    BadVersion(String),
    /// No such namespace.
    #[error("{0}")]
    NoNamespace(String),
    /// The connection is gone: there is nobody to tell.
    #[error("the connection ended")]
    Gone,
}

impl Refusal {
    /// The answer on the wire.
    pub fn to_failure(&self) -> Failure {
        match self {
            Refusal::Fs(error) => Failure::fs(*error),
            Refusal::NotLeader(leader) => Failure::not_leader(leader.as_deref()),
            Refusal::NoSession => Failure::new(Code::NoSession, self.to_string()),
            Refusal::Retry(_) | Refusal::Gone => Failure::new(Code::Retry, self.to_string()),
            Refusal::BadRequest(_) => Failure::new(Code::BadRequest, self.to_string()),
            Refusal::BadVersion(_) => Failure::new(Code::BadVersion, self.to_string()),
            Refusal::NoNamespace(_) => Failure::new(Code::NoNamespace, self.to_string()),
        }
    }
}

impl From<ConvertError> for Refusal {
    fn from(error: ConvertError) -> Self {
        Refusal::BadRequest(error.to_string())
    }
}

impl From<ProposeError> for Refusal {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { leader } => Refusal::NotLeader(leader),
            ProposeError::Shutdown => Refusal::NotLeader(None),
            // This server stops serving; another one will lead.
            ProposeError::Storage(text) => Refusal::Retry(text),
        }
    }
}

impl From<command::Refusal> for Refusal {
    fn from(refusal: command::Refusal) -> Self {
        match refusal {
            command::Refusal::NoSession(_) | command::Refusal::SessionExists(_) => Refusal::NoSession,
            command::Refusal::TooManyUnanswered(_) => Refusal::Retry(refusal.to_string()),
            command::Refusal::NoNamespace(_) | command::Refusal::NameTaken(_) => {
                Refusal::NoNamespace(refusal.to_string())
            }
            command::Refusal::Invalid(_)
            | command::Refusal::NoChunk(_)
            | command::Refusal::ChunkVersion { .. }
            | command::Refusal::ChunkLive(_)
            | command::Refusal::Mounted(_)
            | command::Refusal::NoServer(_)
            | command::Refusal::ClusterSet => Refusal::BadRequest(refusal.to_string()),
        }
    }
}

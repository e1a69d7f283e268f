//! A data directory made from a backup, before any MetaServer runs on it.
//!
//! Writes `state/` and `log/` and names the directory's owner last, so that one that was not finished is refused by
//! `gofs-meta`. Takes an empty directory only. The same backup gives the same state on every member,
//! so the members of a group are each restored from the same file, and find one another as before.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use gofs_tree::MetaServerId;

use crate::editlog::{EditLog, EditLogConfig};
use crate::state::{Backup, LogPosition, StateConfig, StateStore, verify_backup};
use crate::{identity, raft};

/// Bytes of the log's segments while there is nothing in it.
const SEGMENT_BYTES: u64 = 64 << 10;

/// Why a data directory was not made.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The directory has something in it.
    #[error(
        "{} is not empty: restore into a new data directory, and keep the old one until all is well",
        .0.display()
    )]
    NotEmpty(PathBuf),
    /// The members cannot be these.
    #[error("{0}")]
    Members(String),
    /// The file is no backup, or not whole.
    #[error("{}: {error}", path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: io::Error,
    },
    /// The directory cannot be written, or is half done.
    #[error("{}: {reason}. Remove the directory before the next try", path.display())]
    Data {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// What was restored.
#[derive(Clone, Debug)]
pub struct RestoredData {
    /// From what.
    pub backup: Backup,
    /// The MetaServers of the group.
    pub members: BTreeMap<MetaServerId, String>,
}

/// Makes the data directory of MetaServer `id` from the backup in `file`. `members` are all MetaServers with their addresses,
/// empty: those that the backup names. Reads the file twice.
pub fn restore(
    file: &Path,
    data: &Path,
    id: MetaServerId,
    members: &BTreeMap<MetaServerId, String>,
) -> Result<RestoredData, RestoreError> {
    let failed = |reason: &dyn std::fmt::Display| RestoreError::Data {
        path: data.to_owned(),
        reason: reason.to_string(),
    };
    let whole = verify_backup(file).map_err(|error| RestoreError::Backup { path: file.to_owned(), error })?;
    let members = if members.is_empty() {
        raft::members_of(&whole.head.membership).map_err(|error| failed(&error))?
    } else {
        members.clone()
    };
    if !members.contains_key(&id) {
        let known: Vec<String> = members.iter().map(|(id, address)| format!("{}={address}", id.0)).collect();
        return Err(RestoreError::Members(format!(
            "MetaServer {} is none of {}: give --id, or all members with --peers",
            id.0,
            known.join(",")
        )));
    }
    fs::create_dir_all(data).map_err(|error| failed(&error))?;
    if identity::stranger(data).map_err(|error| failed(&error))?.is_some() {
        return Err(RestoreError::NotEmpty(data.to_owned()));
    }
    let state = StateStore::open(&data.join("state"), StateConfig::default());
    let state = state.map_err(|error| failed(&error))?;
    let membership = |at: LogPosition| raft::membership_bytes(at, &members);
    let (backup, at) = state.restore(file, membership).map_err(|error| failed(&error))?;
    state.close().map_err(|error| failed(&error))?;
    if backup != whole {
        return Err(failed(&format!("{} changed while it was read", file.display())));
    }
    begin_log(data, id, at).map_err(|error| failed(&error))?;
    identity::name_owner(data, id).map_err(|error| failed(&error))?;
    Ok(RestoredData { backup, members })
}

/// A log in which everything up to `at` is gone, and a vote that keeps terms from going back.
fn begin_log(data: &Path, id: MetaServerId, at: LogPosition) -> Result<(), String> {
    let config = EditLogConfig {
        dir: data.join("log"),
        segment_bytes: SEGMENT_BYTES,
        cache_bytes: SEGMENT_BYTES as usize,
        salt: rand::random(),
    };
    let log = EditLog::open(&config).map_err(|error| error.to_string())?;
    let vote = raft::vote_bytes(at.term, id).map_err(|error| error.to_string())?;
    let (done, results) = mpsc::channel();
    let other = done.clone();
    log.save_vote(vote, Box::new(move |result| drop(done.send(result))));
    log.purge(at, Box::new(move |result| drop(other.send(result))));
    for result in results {
        result.map_err(|error| error.to_string())?;
    }
    log.close().map_err(|error| error.to_string())
}

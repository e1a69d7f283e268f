//! openraft's state machine on our state store, and its Snapshots as files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use tokio_stream::{Stream, StreamExt};

use super::{
    Applied, LogId, Payload, Snapshot, SnapshotMeta, StoredMembership, Types, log_id_of, position_of, wire,
};
use crate::state::{LogEntry, SnapshotFile, SnapshotHead, StateStore};

/// Most entries applied in one batch of the store: bounds its memory, and how long the first waits for the last.
const BATCH_ENTRIES: usize = 256;
const EXTENSION: &str = "snapshot";

pub(crate) struct StateMachine {
    state: StateStore,
    dir: PathBuf,
}

/// The newest whole Snapshot in a directory.
pub(crate) fn newest_snapshot(dir: &Path) -> io::Result<Option<SnapshotFile>> {
    let mut newest: Option<PathBuf> = None;
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        // Names sort as positions do.
        if path.extension().is_some_and(|extension| extension == EXTENSION)
            && newest.as_ref().is_none_or(|n| *n < path)
        {
            newest = Some(path);
        }
    }
    Ok(newest.map(|path| SnapshotFile { path }))
}

fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

fn stored_membership(bytes: Option<&bytes::Bytes>) -> io::Result<StoredMembership> {
    match bytes {
        Some(bytes) => wire::decode(bytes).map_err(invalid),
        None => Ok(StoredMembership::default()),
    }
}

fn meta_of(head: &SnapshotHead) -> io::Result<SnapshotMeta> {
    let last_membership = stored_membership(head.membership.as_ref())?;
    Ok(SnapshotMeta { last_log_id: head.position.map(log_id_of), last_membership })
}

/// Gives a whole Snapshot its name and removes older ones.
fn keep(dir: &Path, file: &Path, head: &SnapshotHead) -> io::Result<SnapshotFile> {
    let at = head.position.unwrap_or_default();
    let path = dir.join(format!("{:020}-{}.{EXTENSION}", at.index, at.term));
    fs::rename(file, &path)?;
    fs::File::open(dir)?.sync_all()?;
    for entry in fs::read_dir(dir)? {
        let other = entry?.path();
        if other.extension().is_some_and(|extension| extension == EXTENSION) && other < path {
            fs::remove_file(other)?;
        }
    }
    Ok(SnapshotFile { path })
}

/// Runs what blocks where blocking is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

impl StateMachine {
    /// Snapshots go to `dir`; what a crash left there unfinished is removed.
    pub fn new(state: StateStore, dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                fs::remove_file(path)?;
            }
        }
        Ok(StateMachine { state, dir })
    }

    fn batch(&self, batch: Vec<EntryResponder<Types>>) -> io::Result<()> {
        let mut entries = Vec::with_capacity(batch.len());
        for (entry, _) in &batch {
            let log_entry = match &entry.payload {
                Payload::Blank => LogEntry::Blank,
                Payload::Normal(command) => LogEntry::Command(command.0.clone()),
                Payload::Membership(membership) => {
                    let stored = StoredMembership::new(Some(entry.log_id), membership.clone());
                    LogEntry::Membership(wire::encode(&stored).map_err(invalid)?.into())
                }
            };
            entries.push((position_of(&entry.log_id), log_entry));
        }
        let outcomes = self.state.apply(&entries).inspect_err(|error| {
            tracing::error!(%error, "entries of the EditLog cannot be applied; this MetaServer stops");
        })?;
        for ((_, responder), outcome) in batch.into_iter().zip(outcomes) {
            if let Some(responder) = responder {
                responder.send(Applied(outcome));
            }
        }
        Ok(())
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let membership = stored_membership(self.state.membership()?.as_ref())?;
        Ok((self.state.position()?.map(log_id_of), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut batch = Vec::new();
        while let Some(entry) = entries.next().await {
            batch.push(entry?);
            if batch.len() == BATCH_ENTRIES {
                self.batch(std::mem::take(&mut batch))?;
            }
        }
        self.batch(batch)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { state: self.state.clone(), dir: self.dir.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let (state, dir, wanted) = (self.state.clone(), self.dir.clone(), meta.last_log_id);
        blocking(move || {
            let head = snapshot.head()?;
            if head.position.map(log_id_of) != wanted {
                return Err(invalid("the Snapshot is of another position than its sender said"));
            }
            state.install_snapshot(&snapshot)?;
            if snapshot.path.extension().is_none_or(|extension| extension != EXTENSION) {
                keep(&dir, &snapshot.path, &head)?;
            }
            tracing::info!(index = head.position.map(|at| at.index), "the state was replaced by a Snapshot");
            Ok(())
        })
        .await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let dir = self.dir.clone();
        blocking(move || {
            let Some(file) = newest_snapshot(&dir)? else { return Ok(None) };
            match file.head().and_then(|head| meta_of(&head)) {
                Ok(meta) => Ok(Some(Snapshot { meta, snapshot: file })),
                Err(error) => {
                    // The state itself is whole; another Snapshot is made of it when one is needed.
                    tracing::warn!(path = %file.path.display(), %error, "a damaged Snapshot is not used and removed");
                    fs::remove_file(&file.path)?;
                    Ok(None)
                }
            }
        })
        .await
    }
}

pub(crate) struct SnapshotBuilder {
    state: StateStore,
    dir: PathBuf,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (state, dir) = (self.state.clone(), self.dir.clone());
        blocking(move || {
            let building = dir.join("building.part");
            let head = state.write_snapshot(&building)?;
            let file = keep(&dir, &building, &head)?;
            Ok(Snapshot { meta: meta_of(&head)?, snapshot: file })
        })
        .await
    }
}

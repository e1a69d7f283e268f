//! Applying entries of the EditLog: what each command does to the records.
//!
//! Deterministic: the records after an entry depend on the records before it and on the entry alone.
//! Many entries go into one batch of the store; a failed read gives the whole batch up, because a
//! decision on it could differ from the other MetaServers'.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use gofs_tree::{
    ChunkId, ChunkServerId, ChunkVersion, Edit, EditOp, EditSeq, Encode, FsError, Ino, Mode, NamespaceId,
    Outcome, ROOT_INO, SessionId, Store, Timestamp, Usage,
};

use super::key::{self, Key, kind};
use super::ranges::Reserved;
use super::read::counters_in;
use super::record::{
    ChunkRecord, Counters, LogPosition, Progress, Record, ServerRecord, SessionRecord, seal,
};
use super::slices::Slices;
use super::view::{Changes, TreeView};
use super::{Shared, StateError, StateStore};
use crate::command::{Command, CommandOutcome, NamespaceConfig, Refusal, namespace_name_problem};

/// Most outcomes of one session that wait for its acknowledgement. A client has far fewer requests in flight.
const UNANSWERED_MAX: usize = 4096;
/// Fenced sessions that have become old and are forgotten at once.
const FORGET_FENCED: usize = 64;
/// How far one command may move a counter of ids; more can only be a mistake, and would use the ids up.
const ID_JUMP_MAX: u64 = 1 << 40;
/// Records of a deleted namespace that one command removes: bounds the batch and the pause it makes.
const SWEEP_RECORDS: usize = 2048;

/// What an entry of the log carries.
#[derive(Clone, Debug)]
pub(crate) enum LogEntry {
    /// A new leader's mark.
    Blank,
    /// An encoded [`Command`].
    Command(Bytes),
    /// Who the MetaServers are, as raft writes it.
    Membership(Bytes),
}

impl StateStore {
    /// Applies committed entries in order and answers each. An error leaves the records as they were and means
    /// that this MetaServer must stop.
    pub(crate) fn apply(
        &self,
        entries: &[(LogPosition, LogEntry)],
    ) -> Result<Vec<CommandOutcome>, StateError> {
        let Some((last, _)) = entries.last() else { return Ok(Vec::new()) };
        let _writer = self.shared.writer.lock();
        let mut batch = Batch { store: self, shared: &self.shared, changes: Changes::new() };
        let mut outcomes = Vec::with_capacity(entries.len());
        for (position, entry) in entries {
            outcomes.push(match entry {
                LogEntry::Blank => CommandOutcome::Done,
                LogEntry::Membership(bytes) => {
                    batch.set(key::MEMBERSHIP.to_vec(), Record::Membership(bytes.clone()));
                    CommandOutcome::Done
                }
                LogEntry::Command(bytes) => {
                    let command = Command::decode(bytes).map_err(|error| StateError::Storage {
                        path: self.shared.dir.clone(),
                        reason: format!("entry {} of the EditLog: {error}", position.index),
                    })?;
                    batch.command(&command)?
                }
            });
        }
        batch.set(key::APPLIED.to_vec(), Record::Applied(*last));
        self.commit(batch.changes)?;
        self.shared.applied.store(last.index, Ordering::Release);
        Ok(outcomes)
    }

    pub(super) fn commit(&self, changes: Changes) -> Result<(), StateError> {
        let disk = self.shared.disk()?;
        self.shared.cache.begin_write(changes.keys());
        let sealed = changes
            .iter()
            .map(|(key, record)| (key.clone(), record.as_ref().map(|record| seal(key, record))));
        disk.write(sealed)?;
        self.shared.cache.end_write(changes.into_iter());
        Ok(())
    }
}

pub(super) struct Batch<'a> {
    pub(super) store: &'a StateStore,
    pub(super) shared: &'a Arc<Shared>,
    pub(super) changes: Changes,
}

impl Batch<'_> {
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Record>, StateError> {
        match self.changes.get(key) {
            Some(record) => Ok(record.clone()),
            None => self.shared.get(key),
        }
    }

    pub(super) fn set(&mut self, key: Key, record: Record) {
        self.changes.insert(key, Some(record));
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.changes.insert(key, None);
    }

    pub(super) fn scan(&self, prefix: &[u8], limit: usize) -> Result<Vec<(Key, Record)>, StateError> {
        self.shared.scan_over(&self.changes, prefix, &key::end_of_prefix(prefix), limit)
    }

    pub(super) fn counters(&self) -> Result<Counters, StateError> {
        counters_in(self.get(key::COUNTERS)?).map_err(|()| self.shared.misplaced(key::COUNTERS))
    }

    pub(super) fn set_counters(&mut self, counters: Counters) {
        self.set(key::COUNTERS.to_vec(), Record::Counters(counters));
    }

    pub(super) fn namespace(&self, id: NamespaceId) -> Result<Option<(String, NamespaceConfig)>, StateError> {
        let key = key::namespace(id);
        match self.get(&key)? {
            Some(Record::Namespace { name, config }) => Ok(Some((name, config))),
            Some(_) => Err(self.shared.misplaced(&key)),
            None => Ok(None),
        }
    }

    pub(super) fn session(&self, id: SessionId) -> Result<Option<Arc<SessionRecord>>, StateError> {
        let key = key::session(id);
        match self.get(&key)? {
            Some(Record::Session(session)) => Ok(Some(session)),
            Some(_) => Err(self.shared.misplaced(&key)),
            None => Ok(None),
        }
    }

    fn server(&self, id: ChunkServerId) -> Result<Option<ServerRecord>, StateError> {
        let key = key::server(id);
        match self.get(&key)? {
            Some(Record::Server(server)) => Ok(Some(Arc::unwrap_or_clone(server))),
            Some(_) => Err(self.shared.misplaced(&key)),
            None => Ok(None),
        }
    }

    fn chunk(&self, id: ChunkId) -> Result<Option<ChunkRecord>, StateError> {
        let key = key::chunk(id);
        match self.get(&key)? {
            Some(Record::Chunk(chunk)) => Ok(Some(chunk)),
            Some(_) => Err(self.shared.misplaced(&key)),
            None => Ok(None),
        }
    }

    /// Runs `work` on a tree that has the batch's changes and gives its own to the batch.
    pub(super) fn in_tree<T>(
        &mut self,
        ns: NamespaceId,
        config: NamespaceConfig,
        work: impl FnOnce(&mut TreeView) -> T,
    ) -> Result<T, StateError> {
        let mut view = self.store.tree_over(ns, config.limits(), std::mem::take(&mut self.changes));
        let result = work(&mut view);
        self.changes = view.finish()?;
        Ok(result)
    }

    fn command(&mut self, command: &Command) -> Result<CommandOutcome, StateError> {
        let outcome = match command {
            Command::Edits { session, first_seq, answered, edits } => {
                let numbers = &mut Numbers::Leader;
                self.edits(*session, *first_seq, *answered, edits, numbers)?
            }
            Command::Batch { session, first_seq, answered, edits } => {
                self.batch(*session, *first_seq, *answered, edits)?
            }
            Command::ReserveInos { session, first, count } => self.reserve(*session, *first, *count)?,
            Command::ReserveChunks { session, first, count } => {
                self.reserve_chunks(*session, *first, *count)?
            }
            Command::Delegate { session, want, known, give_back } => {
                self.delegate(*session, *want, *known, *give_back)?
            }
            Command::ServerEdits { namespace, edits } => self.server_edits(*namespace, edits)?,
            Command::OpenSession { session, namespace, token, host, mount_point, pid } => {
                self.open_session(SessionRecord {
                    id: *session,
                    namespace: *namespace,
                    token: *token,
                    host: host.clone(),
                    mount_point: mount_point.clone(),
                    pid: *pid,
                    applied: EditSeq(0),
                })?
            }
            Command::EndSession { session, fenced } => self.end_session(*session, *fenced)?,
            Command::CreateNamespace { name, config, time } => self.create_namespace(name, *config, *time)?,
            Command::SetNamespace { id, config } => self.set_namespace(*id, *config)?,
            Command::DeleteNamespace { id } => self.delete_namespace(*id)?,
            Command::SweepNamespace { id } => self.sweep_namespace(*id)?,
            Command::SetChunkVersion { chunk, from, to, copies } => {
                self.set_chunk_version(*chunk, *from, *to, *copies)?
            }
            Command::ForgetChunk { chunk } => match self.chunk(*chunk)? {
                None => Err(Refusal::NoChunk(*chunk)),
                Some(record) if !record.deleted => Err(Refusal::ChunkLive(*chunk)),
                Some(_) => {
                    self.remove(key::chunk(*chunk));
                    Ok(CommandOutcome::Done)
                }
            },
            Command::RegisterServer { server, address, labels } => {
                let standing = self.server(*server)?.map(|known| known.standing).unwrap_or_default();
                let (address, labels) = (address.clone(), labels.clone());
                let record = ServerRecord { id: *server, address, labels, standing };
                self.set(key::server(*server), Record::Server(Arc::new(record)));
                Ok(CommandOutcome::Done)
            }
            Command::SettleRestore => {
                self.settle_restored()?;
                Ok(CommandOutcome::Done)
            }
            Command::Repair { namespace, repairs } => self.repair(*namespace, repairs)?,
            Command::DiscardUnknown => {
                self.discard_unknown()?;
                Ok(CommandOutcome::Done)
            }
            Command::SetServerStanding { server, standing } => match self.server(*server)? {
                None => Err(Refusal::NoServer(*server)),
                Some(known) => {
                    let record = ServerRecord { standing: *standing, ..known };
                    self.set(key::server(*server), Record::Server(Arc::new(record)));
                    Ok(CommandOutcome::Done)
                }
            },
            Command::InitCluster { cluster } => match self.get(key::CLUSTER)? {
                Some(Record::Cluster(present)) if present != *cluster => Err(Refusal::ClusterSet),
                _ => {
                    self.set(key::CLUSTER.to_vec(), Record::Cluster(*cluster));
                    Ok(CommandOutcome::Done)
                }
            },
            Command::RetireMeta { id } => {
                self.set(key::retired(*id), Record::Retired);
                Ok(CommandOutcome::Done)
            }
        };
        Ok(outcome.unwrap_or_else(CommandOutcome::Refused))
    }

    fn edits(
        &mut self,
        session: SessionId,
        first_seq: EditSeq,
        answered: EditSeq,
        edits: &[Edit],
        numbers: &mut Numbers,
    ) -> Result<Result<CommandOutcome, Refusal>, StateError> {
        let Some(record) = self.session(session)? else { return Ok(Err(Refusal::NoSession(session))) };
        let Some((_, config)) = self.namespace(record.namespace)? else {
            return Ok(Err(Refusal::NoNamespace(record.namespace)));
        };
        let last = edits.len().checked_sub(1).and_then(|more| first_seq.0.checked_add(more as u64));
        if first_seq.0 == 0 || last.is_none_or(|last| last == u64::MAX) || answered >= first_seq {
            return Ok(Err(Refusal::Invalid("edits out of their session's sequence".into())));
        }
        let progress_key = key::progress(session);
        let mut progress = match self.get(&progress_key)? {
            Some(Record::Progress(progress)) => Arc::unwrap_or_clone(progress),
            Some(_) => return Err(self.shared.misplaced(&progress_key)),
            None => Progress::default(),
        };
        progress.answer(answered);
        if progress.outcomes.len() + edits.len() > UNANSWERED_MAX {
            return Ok(Err(Refusal::TooManyUnanswered(session)));
        }
        let ns = record.namespace;
        let mut slices = if config.has_quota() {
            self.slices_for(ns, session, matches!(numbers, Numbers::Session(_)))?
        } else {
            Slices::default()
        };
        let mut repeated = false;
        let results = self.in_tree(ns, config, |view| {
            let mut results = Vec::with_capacity(edits.len());
            let mut seq = first_seq;
            for edit in edits {
                // The author has the answer already: a duplicate that was on its way for long.
                let result = if seq <= progress.answered {
                    Err(FsError::Stale)
                } else if let Some(recorded) = progress.outcomes.get(&seq) {
                    repeated = true;
                    *recorded
                } else {
                    let result = slices.apply(view, |view| numbers.apply(view, ns, edit))?;
                    if result == Err(FsError::QuotaExceeded) && slices.are_in_the_way() {
                        break;
                    }
                    progress.outcomes.insert(seq, result);
                    result
                };
                progress.applied = progress.applied.max(seq);
                results.push(result);
                seq = seq.next();
            }
            Ok::<_, FsError>(results)
        })?;
        let results = results.unwrap_or_default();
        self.keep_slices(ns, session, &slices);
        self.set(progress_key, Record::Progress(Arc::new(progress)));
        Ok(Ok(CommandOutcome::Edits { results, repeated }))
    }

    fn batch(
        &mut self,
        session: SessionId,
        first_seq: EditSeq,
        answered: EditSeq,
        edits: &[Edit],
    ) -> Result<Result<CommandOutcome, Refusal>, StateError> {
        let before = self.reserved(session)?;
        let mut numbers = Numbers::Session(Reserved::clone(&before));
        let outcome = self.edits(session, first_seq, answered, edits, &mut numbers)?;
        if let Numbers::Session(after) = numbers
            && after != *before
        {
            self.set(key::reserved(session), Record::Reserved(Arc::new(after)));
        }
        Ok(outcome)
    }

    fn reserve(
        &mut self,
        session: SessionId,
        first: Ino,
        count: u32,
    ) -> Result<Result<CommandOutcome, Refusal>, StateError> {
        let Some(record) = self.session(session)? else { return Ok(Err(Refusal::NoSession(session))) };
        let ns = record.namespace;
        let Some((_, config)) = self.namespace(ns)? else { return Ok(Err(Refusal::NoNamespace(ns))) };
        let Some(end) = first.0.checked_add(u64::from(count)).map(Ino).filter(|_| count > 0) else {
            return Ok(Err(Refusal::Invalid("no inode numbers to reserve".into())));
        };
        let moved = self.in_tree(ns, config, |view| {
            let (_, next_ino) = view.usage_record()?;
            if first <= ROOT_INO || end.0 >= next_ino.0.saturating_add(ID_JUMP_MAX) {
                return Ok(false);
            }
            // A command with later numbers may have been faster.
            if end > next_ino {
                view.set_next_ino(end)?;
            }
            Ok::<_, FsError>(true)
        })?;
        if moved != Ok(true) {
            return Ok(Err(Refusal::Invalid(format!("inode numbers from {first} cannot be reserved"))));
        }
        let mut reserved = Reserved::clone(&*self.reserved(session)?);
        reserved.inos.add(first.0, end.0);
        self.set(key::reserved(session), Record::Reserved(Arc::new(reserved)));
        Ok(Ok(CommandOutcome::Done))
    }

    fn reserve_chunks(
        &mut self,
        session: SessionId,
        first: ChunkId,
        count: u32,
    ) -> Result<Result<CommandOutcome, Refusal>, StateError> {
        if self.session(session)?.is_none() {
            return Ok(Err(Refusal::NoSession(session)));
        }
        let mut counters = self.counters()?;
        let limit = counters.next_chunk.0.saturating_add(ID_JUMP_MAX);
        let end = first.0.checked_add(u64::from(count)).map(ChunkId);
        let Some(end) = end.filter(|end| first.0 > 0 && count > 0 && end.0 < limit) else {
            return Ok(Err(Refusal::Invalid(format!("{count} chunks from {first} cannot be reserved"))));
        };
        counters.next_chunk = counters.next_chunk.max(end);
        self.set_counters(counters);
        let mut reserved = Reserved::clone(&*self.reserved(session)?);
        reserved.chunks.add(first.0, end.0);
        self.set(key::reserved(session), Record::Reserved(Arc::new(reserved)));
        Ok(Ok(CommandOutcome::Done))
    }

    /// Numbers that the session may still use.
    fn reserved(&self, session: SessionId) -> Result<Arc<Reserved>, StateError> {
        let key = key::reserved(session);
        match self.get(&key)? {
            Some(Record::Reserved(reserved)) => Ok(reserved),
            Some(_) => Err(self.shared.misplaced(&key)),
            None => Ok(Arc::default()),
        }
    }

    fn server_edits(
        &mut self,
        namespace: NamespaceId,
        edits: &[Edit],
    ) -> Result<Result<CommandOutcome, Refusal>, StateError> {
        let Some((_, config)) = self.namespace(namespace)? else {
            return Ok(Err(Refusal::NoNamespace(namespace)));
        };
        let results = self.in_tree(namespace, config, |view| {
            edits.iter().map(|edit| apply_edit(view, namespace, edit)).collect()
        })?;
        Ok(Ok(CommandOutcome::Edits { results, repeated: false }))
    }

    fn open_session(&mut self, record: SessionRecord) -> Result<Result<CommandOutcome, Refusal>, StateError> {
        let id = record.id;
        if let Some(present) = self.session(id)? {
            let same = present.token == record.token;
            return Ok(if same { Ok(CommandOutcome::Session(id)) } else { Err(Refusal::SessionExists(id)) });
        }
        if self.namespace(record.namespace)?.is_none() {
            return Ok(Err(Refusal::NoNamespace(record.namespace)));
        }
        let mut counters = self.counters()?;
        if id.0 == 0
            || id < counters.session_floor()
            || id.0 >= counters.next_session.0.saturating_add(ID_JUMP_MAX)
        {
            return Ok(Err(Refusal::Invalid(format!("{id} cannot be a new session's id"))));
        }
        counters.next_session = counters.next_session.max(id.next());
        self.set_counters(counters);
        self.set(key::session(id), Record::Session(Arc::new(record)));
        Ok(Ok(CommandOutcome::Session(id)))
    }

    pub(super) fn end_session(
        &mut self,
        id: SessionId,
        fenced: bool,
    ) -> Result<Result<CommandOutcome, Refusal>, StateError> {
        let Some(record) = self.session(id)? else { return Ok(Err(Refusal::NoSession(id))) };
        if let Some((_, config)) = self.namespace(record.namespace)? {
            let held: Vec<Ino> = self
                .scan(&key::in_namespace(kind::ORPHAN, record.namespace), usize::MAX)?
                .into_iter()
                .filter(
                    |(_, record)| matches!(record, Record::Orphan(orphan) if orphan.holders.contains(&id)),
                )
                .filter_map(|(key, _)| key::ino_of(&key))
                .collect();
            self.in_tree(record.namespace, config, |view| {
                for ino in held {
                    let op = EditOp::ReleaseOrphan { ino, session: id };
                    // Only a failed read can refuse it, and that gives the batch up.
                    let _ = gofs_tree::apply(view, &Edit { time: Timestamp::default(), op });
                }
            })?;
        }
        self.remove(key::session(id));
        self.remove(key::progress(id));
        self.remove(key::reserved(id));
        self.end_slice(record.namespace, id)?;
        if fenced {
            self.remember_fenced(id)?;
        }
        Ok(Ok(CommandOutcome::Done))
    }

    fn remember_fenced(&mut self, id: SessionId) -> Result<(), StateError> {
        let floor = self.counters()?.session_floor();
        for (key, _) in self.scan(&[kind::FENCED], FORGET_FENCED)? {
            if key::id_of(&key).is_some_and(|id| SessionId(id) < floor) {
                self.remove(key);
            }
        }
        if id >= floor {
            self.set(key::fenced(id), Record::Fenced);
        }
        Ok(())
    }

    fn create_namespace(
        &mut self,
        name: &str,
        config: NamespaceConfig,
        time: Timestamp,
    ) -> Result<Result<CommandOutcome, Refusal>, StateError> {
        if let Some(problem) = namespace_name_problem(name).or_else(|| config.problem()) {
            return Ok(Err(Refusal::Invalid(problem)));
        }
        for (_, record) in self.scan(&[kind::NAMESPACE], usize::MAX)? {
            if matches!(record, Record::Namespace { name: present, .. } if present == name) {
                return Ok(Err(Refusal::NameTaken(name.to_owned())));
            }
        }
        let mut counters = self.counters()?;
        let id = counters.next_namespace;
        counters.next_namespace = id.next();
        self.set_counters(counters);
        self.set(key::namespace(id), Record::Namespace { name: name.to_owned(), config });
        let usage = Usage { bytes: 0, inodes: 1 };
        self.set(key::usage(id), Record::Usage { usage, next_ino: ROOT_INO.next() });
        let root = gofs_tree::make_root(Mode::new(0o755), 0, 0, time);
        self.set(key::inode(id, ROOT_INO), Record::Inode(Arc::new(root)));
        Ok(Ok(CommandOutcome::Namespace(id)))
    }

    fn set_namespace(
        &mut self,
        id: NamespaceId,
        config: NamespaceConfig,
    ) -> Result<Result<CommandOutcome, Refusal>, StateError> {
        let Some((name, present)) = self.namespace(id)? else { return Ok(Err(Refusal::NoNamespace(id))) };
        if present.chunk_size != config.chunk_size {
            let problem = "the chunk size of a namespace is fixed when it is made".to_owned();
            return Ok(Err(Refusal::Invalid(problem)));
        }
        if let Some(problem) = config.problem() {
            return Ok(Err(Refusal::Invalid(problem)));
        }
        let ends = |before: u64, after: u64| before != 0 && after == 0;
        if present.has_more_quota_than(&config)
            || ends(present.quota_bytes, config.quota_bytes)
            || ends(present.quota_inodes, config.quota_inodes)
        {
            // They were given back before, or nobody needs them any more.
            self.forget_slices(id)?;
        }
        self.set(key::namespace(id), Record::Namespace { name, config });
        Ok(Ok(CommandOutcome::Done))
    }

    fn delete_namespace(&mut self, id: NamespaceId) -> Result<Result<CommandOutcome, Refusal>, StateError> {
        if self.namespace(id)?.is_none() {
            return Ok(Err(Refusal::NoNamespace(id)));
        }
        for (key, record) in self.scan(&[kind::SESSION], usize::MAX)? {
            let Record::Session(session) = record else { return Err(self.shared.misplaced(&key)) };
            if session.namespace == id {
                self.remove(key);
                self.remove(key::progress(session.id));
                self.remove(key::reserved(session.id));
                self.remember_fenced(session.id)?;
            }
        }
        self.forget_slices(id)?;
        self.remove(key::namespace(id));
        self.set(key::deleted_namespace(id), Record::DeletedNamespace);
        Ok(Ok(CommandOutcome::Done))
    }

    fn sweep_namespace(&mut self, id: NamespaceId) -> Result<Result<CommandOutcome, Refusal>, StateError> {
        if self.get(&key::deleted_namespace(id))?.is_none() {
            return Ok(Err(Refusal::NoNamespace(id)));
        }
        let mut budget = SWEEP_RECORDS;
        for kind in [kind::CHUNK_REF, kind::ENTRY, kind::XATTR, kind::ORPHAN, kind::INODE] {
            let records = self.scan(&key::in_namespace(kind, id), budget)?;
            budget -= records.len();
            for (key, record) in records {
                if let Record::ChunkRef(reference) = record
                    && let Some(chunk) = self.chunk(reference.chunk)?
                {
                    let chunk = ChunkRecord { deleted: true, ..chunk };
                    self.set(key::chunk(reference.chunk), Record::Chunk(chunk));
                }
                self.remove(key);
            }
            if budget == 0 {
                return Ok(Ok(CommandOutcome::Done));
            }
        }
        self.remove(key::usage(id));
        self.remove(key::deleted_namespace(id));
        Ok(Ok(CommandOutcome::Done))
    }

    fn set_chunk_version(
        &mut self,
        id: ChunkId,
        from: ChunkVersion,
        to: ChunkVersion,
        copies: u32,
    ) -> Result<Result<CommandOutcome, Refusal>, StateError> {
        let Some(chunk) = self.chunk(id)? else { return Ok(Err(Refusal::NoChunk(id))) };
        if chunk.version != from {
            return Ok(Err(Refusal::ChunkVersion { chunk: id, current: chunk.version }));
        }
        if to <= from {
            return Ok(Err(Refusal::Invalid(format!("chunk {id}: version {to} is not after {from}"))));
        }
        self.set(key::chunk(id), Record::Chunk(ChunkRecord { version: to, copies, ..chunk }));
        Ok(Ok(CommandOutcome::Done))
    }
}

/// Who chose the numbers of new inodes and chunks.
enum Numbers {
    /// The leader, from its counters.
    Leader,
    /// The session, out of these.
    Session(Reserved),
}

impl Numbers {
    fn apply(&mut self, view: &mut TreeView, ns: NamespaceId, edit: &Edit) -> Result<Outcome, FsError> {
        let (ranges, number) = match (self, &edit.op) {
            (Numbers::Session(reserved), EditOp::Create { ino, .. }) => (&mut reserved.inos, ino.0),
            (Numbers::Session(reserved), EditOp::AddChunk { chunk, .. }) => (&mut reserved.chunks, chunk.0),
            _ => return apply_edit(view, ns, edit),
        };
        if !ranges.contains(number) {
            return Err(FsError::Invalid);
        }
        let outcome = apply_edit(view, ns, edit)?;
        ranges.take(number);
        Ok(outcome)
    }
}

/// One edit, with what gofs-tree cannot check: that ids are new and that holders are sessions.
fn apply_edit(view: &mut TreeView, ns: NamespaceId, edit: &Edit) -> Result<Outcome, FsError> {
    match &edit.op {
        EditOp::Create { ino, .. } => {
            let (_, next_ino) = view.usage_record()?;
            let reused = *ino < next_ino && view.inode(*ino)?.is_some();
            if ino.0 <= ROOT_INO.0 || ino.0 >= next_ino.0.saturating_add(ID_JUMP_MAX) || reused {
                return Err(FsError::Invalid);
            }
            let outcome = gofs_tree::apply(view, edit)?;
            if *ino >= next_ino {
                view.set_next_ino(ino.next())?;
            }
            Ok(outcome)
        }
        EditOp::AddChunk { chunk, .. } => {
            let record = view.get(key::COUNTERS)?;
            let mut counters = counters_in(record).map_err(|()| FsError::Io)?;
            let reused = *chunk < counters.next_chunk && view.knows_chunk(*chunk)?;
            if chunk.0 == 0 || chunk.0 >= counters.next_chunk.0.saturating_add(ID_JUMP_MAX) || reused {
                return Err(FsError::Invalid);
            }
            let outcome = gofs_tree::apply(view, edit)?;
            if *chunk >= counters.next_chunk {
                counters.next_chunk = chunk.next();
                view.set(key::COUNTERS.to_vec(), Record::Counters(counters));
            }
            Ok(outcome)
        }
        op if !op.holders().is_empty() => {
            // A session that ended since would hold the inode for ever.
            let mut edit = edit.clone();
            if let Some(holders) = edit.op.holders_mut() {
                let mut open = Vec::with_capacity(holders.len());
                for session in holders.drain(..) {
                    let record = view.get(&key::session(session))?;
                    if matches!(record, Some(Record::Session(record)) if record.namespace == ns) {
                        open.push(session);
                    }
                }
                *holders = open;
            }
            gofs_tree::apply(view, &edit)
        }
        _ => gofs_tree::apply(view, edit),
    }
}

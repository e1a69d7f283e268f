//! Reading records that are not in a tree, and walking those that are.
//!
//! Every read can fail: a record that cannot be trusted is `FsError::Io` and never "not there".

use std::sync::Arc;

use bytes::Bytes;
use gofs_tree::{
    ChunkId, ChunkIndex, ChunkRef, ChunkServerId, DirEntry, EditSeq, FsError, Ino, Inode, MetaServerId, Name,
    NamespaceId, NamespaceLimits, Orphan, SessionId, Usage,
};

use super::key::{self, Key, kind};
use super::ranges::Reserved;
use super::record::{ChunkRecord, Counters, NamespaceRecord, Progress, Record, ServerRecord, SessionRecord};
use super::restored::Restored;
use super::view::Changes;
use super::{StateError, StateStore, TreeView, refuse};
use crate::command::{NamespaceConfig, Standing};

/// Which sessions are over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndedSessions {
    /// Of those below, all but `live`.
    pub floor: SessionId,
    /// Those below the floor that go on, in the order of their ids.
    pub live: Vec<SessionId>,
    /// Of the others, these; in the order of their ids.
    pub fenced: Vec<SessionId>,
}

impl StateStore {
    /// Identity of the cluster, once it has one.
    pub fn cluster(&self) -> Result<Option<[u8; 16]>, FsError> {
        match self.fetch(key::CLUSTER)? {
            Some(Record::Cluster(cluster)) => Ok(Some(cluster)),
            Some(_) => self.misplaced(key::CLUSTER),
            None => Ok(None),
        }
    }

    /// Whether a MetaServer of this id was removed, or is being removed.
    pub fn is_retired(&self, id: MetaServerId) -> Result<bool, FsError> {
        Ok(self.fetch(&key::retired(id))?.is_some())
    }

    /// The next ids of each kind.
    pub fn counters(&self) -> Result<Counters, FsError> {
        match self.fetch(key::COUNTERS)? {
            Some(Record::Counters(counters)) => Ok(counters),
            Some(_) => self.misplaced(key::COUNTERS),
            None => Ok(Counters::default()),
        }
    }

    /// What a restore from a backup left, if this cluster was restored.
    pub fn restored(&self) -> Result<Option<Restored>, FsError> {
        match self.fetch(key::RESTORED)? {
            Some(Record::Restored(restored)) => Ok(Some(restored)),
            Some(_) => self.misplaced(key::RESTORED),
            None => Ok(None),
        }
    }

    /// What MetaServers of one cluster have in common: its identity, and what it was restored from.
    pub(crate) fn cluster_tag(&self) -> Result<Option<Bytes>, FsError> {
        let Some(cluster) = self.cluster()? else { return Ok(None) };
        let mut tag = cluster.to_vec();
        tag.extend(self.restored()?.iter().flat_map(Restored::tag));
        Ok(Some(tag.into()))
    }

    /// The namespace of that id.
    pub fn namespace(&self, id: NamespaceId) -> Result<Option<NamespaceRecord>, FsError> {
        let key = key::namespace(id);
        match self.fetch(&key)? {
            Some(Record::Namespace { name, config }) => self.with_usage(id, name, config),
            Some(_) => self.misplaced(&key),
            None => Ok(None),
        }
    }

    fn with_usage(
        &self,
        id: NamespaceId,
        name: String,
        config: NamespaceConfig,
    ) -> Result<Option<NamespaceRecord>, FsError> {
        let key = key::usage(id);
        match self.fetch(&key)? {
            Some(Record::Usage { usage, next_ino }) => {
                Ok(Some(NamespaceRecord { id, name, config, usage, next_ino }))
            }
            Some(_) => self.misplaced(&key),
            // Deleted between the two reads.
            None => Ok(None),
        }
    }

    /// The namespace of that name.
    pub fn namespace_by_name(&self, name: &str) -> Result<Option<NamespaceRecord>, FsError> {
        Ok(self.namespaces()?.into_iter().find(|namespace| namespace.name == name))
    }

    /// All namespaces in the order of their ids.
    pub fn namespaces(&self) -> Result<Vec<NamespaceRecord>, FsError> {
        let mut namespaces = Vec::new();
        for (key, record) in self.all(&[kind::NAMESPACE])? {
            let (Record::Namespace { name, config }, Some(id)) = (record, key::namespace_of(&key)) else {
                return self.misplaced(&key);
            };
            namespaces.extend(self.with_usage(id, name, config)?);
        }
        Ok(namespaces)
    }

    /// Namespaces that were deleted and whose records are not all gone.
    pub fn deleted_namespaces(&self) -> Result<Vec<NamespaceId>, FsError> {
        let records = self.all(&[kind::DELETED_NAMESPACE])?;
        Ok(records.iter().filter_map(|(key, _)| key::namespace_of(key)).collect())
    }

    /// The tree of a namespace; of one that does not exist it is empty. Its own writes stay in it.
    pub fn tree(&self, ns: NamespaceId) -> TreeView {
        let limits = match self.shared.get(&key::namespace(ns)) {
            Ok(Some(Record::Namespace { config, .. })) => config.limits(),
            // Reads of the tree meet the same failure and report it.
            _ => NamespaceConfig::default().limits(),
        };
        self.tree_over(ns, limits, Changes::new())
    }

    pub(super) fn tree_over(&self, ns: NamespaceId, limits: NamespaceLimits, changes: Changes) -> TreeView {
        TreeView::new(self.shared.clone(), ns, limits, changes)
    }

    /// A session.
    pub fn session(&self, id: SessionId) -> Result<Option<SessionRecord>, FsError> {
        let key = key::session(id);
        match self.fetch(&key)? {
            Some(Record::Session(session)) => Ok(Some(self.with_progress(&session)?)),
            Some(_) => self.misplaced(&key),
            None => Ok(None),
        }
    }

    fn with_progress(&self, session: &SessionRecord) -> Result<SessionRecord, FsError> {
        let key = key::progress(session.id);
        let applied = match self.fetch(&key)? {
            Some(Record::Progress(progress)) => progress.applied,
            Some(_) => return self.misplaced(&key),
            None => Progress::default().applied,
        };
        Ok(SessionRecord { applied, ..session.clone() })
    }

    /// All sessions in the order of their ids.
    pub fn sessions(&self) -> Result<Vec<SessionRecord>, FsError> {
        let mut sessions = Vec::new();
        for (key, record) in self.all(&[kind::SESSION])? {
            let Record::Session(session) = record else { return self.misplaced(&key) };
            sessions.push(self.with_progress(&session)?);
        }
        Ok(sessions)
    }

    /// The highest edit of a session that was applied; 0 where there is none.
    pub fn applied_seq(&self, id: SessionId) -> Result<EditSeq, FsError> {
        Ok(self.session(id)?.map_or(EditSeq(0), |session| session.applied))
    }

    /// Whether that edit of a session was applied, and is answered with its first outcome when it comes again.
    pub fn is_recorded(&self, id: SessionId, seq: EditSeq) -> Result<bool, FsError> {
        let key = key::progress(id);
        match self.fetch(&key)? {
            Some(Record::Progress(progress)) => Ok(progress.outcomes.contains_key(&seq)),
            Some(_) => self.misplaced(&key),
            None => Ok(false),
        }
    }

    /// What is left of the slices of a namespace's quota, by session; those of which nothing is left are not in it.
    pub fn slices(&self, ns: NamespaceId) -> Result<Vec<(SessionId, Usage)>, FsError> {
        let mut slices = Vec::new();
        for (key, record) in self.all(&key::in_namespace(kind::SLICE, ns))? {
            let (Record::Slice(slice), Some(session)) = (record, key::session_of(&key)) else {
                return self.misplaced(&key);
            };
            if slice.left != Usage::default() {
                slices.push((session, slice.left));
            }
        }
        Ok(slices)
    }

    /// The sum that the state keeps of them.
    pub fn sliced(&self, ns: NamespaceId) -> Result<Usage, FsError> {
        let key = key::sliced(ns);
        match self.fetch(&key)? {
            Some(Record::Sliced(left)) => Ok(left),
            Some(_) => self.misplaced(&key),
            None => Ok(Usage::default()),
        }
    }

    /// Of which sessions it is known that they are over.
    pub fn ended_sessions(&self) -> Result<EndedSessions, FsError> {
        let floor = self.counters()?.session_floor();
        // In this order: one below the floor that ends in between is in neither list, which says that it is over.
        let records = self.all(&[kind::FENCED])?;
        let fenced = records.iter().filter_map(|(key, _)| key::id_of(key).map(SessionId));
        let fenced = fenced.filter(|session| *session >= floor).collect();
        let live = self.sessions()?.into_iter().map(|session| session.id);
        Ok(EndedSessions { floor, fenced, live: live.filter(|session| *session < floor).collect() })
    }

    /// A chunk.
    pub fn chunk(&self, id: ChunkId) -> Result<Option<ChunkRecord>, FsError> {
        let key = key::chunk(id);
        match self.fetch(&key)? {
            Some(Record::Chunk(chunk)) => Ok(Some(self.as_known(id, chunk)?)),
            Some(_) => self.misplaced(&key),
            None => Ok(None),
        }
    }

    /// What every session has reserved and not used.
    pub(crate) fn reserved(&self) -> Result<Vec<Arc<Reserved>>, FsError> {
        let mut all = Vec::new();
        for (key, record) in self.all(&[kind::RESERVED])? {
            let Record::Reserved(reserved) = record else { return self.misplaced(&key) };
            all.push(reserved);
        }
        Ok(all)
    }

    /// Chunks in the order of their ids, those after `after`, at most `limit`. Fewer than `limit`
    /// mean that there are no more.
    pub fn chunks_from(
        &self,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, ChunkRecord)>, FsError> {
        let start = match after {
            Some(id) => key::just_after(key::chunk(id)),
            None => vec![kind::CHUNK],
        };
        let mut chunks = Vec::new();
        for (key, record) in self.walk(&start, &[kind::CHUNK + 1], limit)? {
            let (Record::Chunk(chunk), Some(id)) = (record, key::id_of(&key)) else {
                return self.misplaced(&key);
            };
            chunks.push((ChunkId(id), self.as_known(ChunkId(id), chunk)?));
        }
        Ok(chunks)
    }

    /// The goal follows the namespace's configuration, so that a change of it reaches existing chunks. How many servers have a
    /// version is not known where others may have been committed after the backup that the state comes from.
    fn as_known(&self, id: ChunkId, mut chunk: ChunkRecord) -> Result<ChunkRecord, FsError> {
        if self.restored()?.is_some_and(|restored| restored.is_uncertain(id, chunk.version)) {
            chunk.copies = 0;
        }
        let key = key::namespace(chunk.namespace);
        let goal = match self.fetch(&key)? {
            Some(Record::Namespace { config, .. }) => config.replicas,
            Some(_) => return self.misplaced(&key),
            None => 0,
        };
        Ok(ChunkRecord { goal, ..chunk })
    }

    /// A ChunkServer that registered once, also a removed one.
    pub fn server(&self, id: ChunkServerId) -> Result<Option<ServerRecord>, FsError> {
        let key = key::server(id);
        match self.fetch(&key)? {
            Some(Record::Server(server)) => Ok(Some(ServerRecord::clone(&server))),
            Some(_) => self.misplaced(&key),
            None => Ok(None),
        }
    }

    /// All ChunkServers that registered once and were not removed, in the order of their ids.
    pub fn servers(&self) -> Result<Vec<ServerRecord>, FsError> {
        let mut servers = Vec::new();
        for (key, record) in self.all(&[kind::SERVER])? {
            let Record::Server(server) = record else { return self.misplaced(&key) };
            if server.standing != Standing::Removed {
                servers.push(ServerRecord::clone(&server));
            }
        }
        Ok(servers)
    }

    /// Inodes of a namespace in the order of their numbers, those after `after`, at most `limit`.
    pub fn inodes_from(
        &self,
        ns: NamespaceId,
        after: Option<Ino>,
        limit: usize,
    ) -> Result<Vec<(Ino, Inode)>, FsError> {
        let prefix = key::in_namespace(kind::INODE, ns);
        let start = after.map_or_else(|| prefix.clone(), |ino| key::just_after(key::inode(ns, ino)));
        let mut inodes = Vec::new();
        for (key, record) in self.walk(&start, &key::end_of_prefix(&prefix), limit)? {
            let (Record::Inode(inode), Some(ino)) = (record, key::ino_of(&key)) else {
                return self.misplaced(&key);
            };
            inodes.push((ino, Inode::clone(&inode)));
        }
        Ok(inodes)
    }

    /// Entries of all directories of a namespace by parent and name, those after `after`, at most `limit`.
    pub fn entries_from(
        &self,
        ns: NamespaceId,
        after: Option<(Ino, &Name)>,
        limit: usize,
    ) -> Result<Vec<(Ino, Name, DirEntry)>, FsError> {
        let prefix = key::in_namespace(kind::ENTRY, ns);
        let start = match after {
            Some((parent, name)) => key::just_after(key::entry(ns, parent, name)),
            None => prefix.clone(),
        };
        let mut entries = Vec::new();
        for (key, record) in self.walk(&start, &key::end_of_prefix(&prefix), limit)? {
            let name = key::name_of(&key).map(Name::new);
            let (Record::Entry(entry), Some(parent), Some(Ok(name))) = (record, key::ino_of(&key), name)
            else {
                return self.misplaced(&key);
            };
            entries.push((parent, name, entry));
        }
        Ok(entries)
    }

    /// Chunk references of all files of a namespace by file and index, those after `after`, at most `limit`.
    pub fn chunk_refs_from(
        &self,
        ns: NamespaceId,
        after: Option<(Ino, ChunkIndex)>,
        limit: usize,
    ) -> Result<Vec<(Ino, ChunkIndex, ChunkRef)>, FsError> {
        let prefix = key::in_namespace(kind::CHUNK_REF, ns);
        let start = match after {
            Some((ino, index)) => key::just_after(key::chunk_ref(ns, ino, index)),
            None => prefix.clone(),
        };
        let mut chunks = Vec::new();
        for (key, record) in self.walk(&start, &key::end_of_prefix(&prefix), limit)? {
            let (Record::ChunkRef(chunk), Some(ino), Some(index)) =
                (record, key::ino_of(&key), key::index_of(&key))
            else {
                return self.misplaced(&key);
            };
            chunks.push((ino, index, chunk));
        }
        Ok(chunks)
    }

    /// Unlinked inodes of a namespace that sessions still hold open.
    pub fn orphans(&self, ns: NamespaceId) -> Result<Vec<(Ino, Orphan)>, FsError> {
        let mut orphans = Vec::new();
        for (key, record) in self.all(&key::in_namespace(kind::ORPHAN, ns))? {
            let (Record::Orphan(orphan), Some(ino)) = (record, key::ino_of(&key)) else {
                return self.misplaced(&key);
            };
            orphans.push((ino, orphan));
        }
        Ok(orphans)
    }

    /// What a namespace uses, and its next inode number.
    pub fn usage(&self, ns: NamespaceId) -> Result<Option<(Usage, Ino)>, FsError> {
        Ok(self.namespace(ns)?.map(|namespace| (namespace.usage, namespace.next_ino)))
    }

    fn fetch(&self, key: &[u8]) -> Result<Option<Record>, FsError> {
        self.shared.get(key).map_err(|error| refuse(&error))
    }

    fn all(&self, prefix: &[u8]) -> Result<Vec<(Key, Record)>, FsError> {
        self.walk(prefix, &key::end_of_prefix(prefix), usize::MAX)
    }

    fn walk(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Key, Record)>, FsError> {
        self.shared.scan(start, end, limit).map_err(|error| refuse(&error))
    }

    fn misplaced<T>(&self, key: &[u8]) -> Result<T, FsError> {
        Err(refuse(&self.shared.misplaced(key)))
    }
}

/// The same for the one that applies: its errors stop the server.
pub(super) fn counters_in(record: Option<Record>) -> Result<Counters, ()> {
    match record {
        Some(Record::Counters(counters)) => Ok(counters),
        Some(_) => Err(()),
        None => Ok(Counters::default()),
    }
}

impl From<StateError> for std::io::Error {
    fn from(error: StateError) -> Self {
        std::io::Error::other(error.to_string())
    }
}

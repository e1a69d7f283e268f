//! Applying repairs: each does what it says where the records are still as it found them, and nothing else.

use gofs_tree::{
    ChunkId, ChunkIndex, ChunkVersion, DirEntry, Edit, EditOp, FileType, FsError, Ino, Inode, Name,
    NamespaceId, ROOT_INO, SessionId, Store, Timestamp,
};

use super::StateError;
use super::apply::Batch;
use super::key::{self, kind};
use super::record::{ChunkRecord, Record};
use super::view::TreeView;
use crate::command::{CommandOutcome, Refusal};
use crate::repair::{Count, Repair, pair, usage};

impl Batch<'_> {
    /// Answers `Repaired`: how many were done.
    pub(super) fn repair(
        &mut self,
        ns: NamespaceId,
        repairs: &[Repair],
    ) -> Result<Result<CommandOutcome, Refusal>, StateError> {
        let Some((_, config)) = self.namespace(ns)? else { return Ok(Err(Refusal::NoNamespace(ns))) };
        if repairs.iter().any(Repair::needs_no_mount) && self.is_mounted(ns)? {
            return Ok(Err(Refusal::Mounted(ns)));
        }
        let mut ended = Vec::new();
        for repair in repairs {
            if let Repair::Release { session, .. } = repair
                && self.session(*session)?.is_none()
            {
                ended.push(*session);
            }
        }
        let mut done = 0;
        for repair in repairs {
            let repaired = match repair {
                Repair::Sliced { from, to } => {
                    let as_found = pair(self.sliced(ns)?) == *from;
                    if as_found {
                        self.set(key::sliced(ns), Record::Sliced(usage(*to)));
                    }
                    as_found
                }
                // A read that fails gives the batch up.
                tree => {
                    self.in_tree(ns, config, |view| tree_repair(view, ns, tree, &ended))?.unwrap_or(false)
                }
            };
            done += u32::from(repaired);
        }
        Ok(Ok(CommandOutcome::Repaired(done)))
    }

    fn is_mounted(&self, ns: NamespaceId) -> Result<bool, StateError> {
        let sessions = self.scan(&[kind::SESSION], usize::MAX)?;
        Ok(sessions
            .iter()
            .any(|(_, record)| matches!(record, Record::Session(session) if session.namespace == ns)))
    }
}

/// Whether it was done.
fn tree_repair(
    view: &mut TreeView,
    ns: NamespaceId,
    repair: &Repair,
    ended: &[SessionId],
) -> Result<bool, FsError> {
    match repair {
        Repair::Usage { from, to } => {
            let as_found = pair(view.usage()?) == *from;
            if as_found {
                view.set_usage(usage(*to));
            }
            Ok(as_found)
        }
        Repair::Sliced { .. } => Ok(false),
        Repair::Count { ino, count, from, to } => recount(view, *ino, *count, *from, *to),
        Repair::DropEntry { parent, name, ino } => drop_entry(view, *parent, name, *ino),
        Repair::Adopt { ino } => adopt(view, *ino),
        Repair::DropOrphan { ino } => {
            let as_found = view.orphan(*ino)?.is_some() && view.inode(*ino)?.is_none();
            if as_found {
                view.remove_orphan(*ino);
            }
            Ok(as_found)
        }
        Repair::Release { ino, session } => {
            let held = view.orphan(*ino)?.is_some_and(|orphan| orphan.holders.contains(session));
            let as_found = held && ended.contains(session);
            if as_found {
                let op = EditOp::ReleaseOrphan { ino: *ino, session: *session };
                gofs_tree::apply(view, &Edit { time: Timestamp::default(), op })?;
            }
            Ok(as_found)
        }
        Repair::ClaimChunk { ino, index, chunk } => claim_chunk(view, ns, *ino, *index, *chunk),
        Repair::DropChunk { chunk } => {
            let Some(record) = view.chunk_record(*chunk)?.filter(|record| !record.deleted) else {
                return Ok(false);
            };
            let here = record.namespace == ns;
            let refers = view.chunk(record.ino, record.index)?.is_some_and(|found| found.chunk == *chunk);
            let as_found = here && !refers;
            if as_found {
                view.drop_chunk(*chunk);
            }
            Ok(as_found)
        }
        Repair::DropReference { ino, index, chunk } => drop_reference(view, *ino, *index, *chunk),
    }
}

fn recount(view: &mut TreeView, ino: Ino, count: Count, from: u64, to: u64) -> Result<bool, FsError> {
    let Some(mut inode) = view.inode(ino)? else { return Ok(false) };
    let small = |number: u64| u32::try_from(number).map_err(|_| FsError::Invalid);
    let found = match count {
        Count::Links => u64::from(std::mem::replace(&mut inode.nlink, small(to)?)),
        Count::NamesBytes if inode.is_dir() => std::mem::replace(&mut inode.size, to),
        Count::NamesBytes => return Ok(false),
        Count::Blocks4k => std::mem::replace(&mut inode.blocks_4k, to),
        Count::Chunks => u64::from(std::mem::replace(&mut inode.chunks, small(to)?)),
    };
    if found == from {
        view.set_inode(ino, inode);
    }
    Ok(found == from)
}

fn drop_entry(view: &mut TreeView, parent: Ino, name: &Name, ino: Ino) -> Result<bool, FsError> {
    if view.entry(parent, name)?.is_none_or(|entry| entry.ino != ino) {
        return Ok(false);
    }
    let above = view.inode(parent)?.filter(Inode::is_dir);
    if above.is_some() && view.inode(ino)?.is_some() {
        return Ok(false);
    }
    view.remove_entry(parent, name);
    if let Some(mut above) = above {
        above.size = above.size.saturating_sub(name.as_bytes().len() as u64);
        view.set_inode(parent, above);
    }
    Ok(true)
}

/// The name in the root that an inode without one gets.
fn adopted_name(ino: Ino) -> Name {
    Name::new(format!("lost+found.{}", ino.0).as_bytes()).expect("short, and no slash")
}

fn adopt(view: &mut TreeView, ino: Ino) -> Result<bool, FsError> {
    let name = adopted_name(ino);
    let (Some(mut inode), Some(mut root)) = (view.inode(ino)?, view.inode(ROOT_INO)?) else {
        return Ok(false);
    };
    if ino == ROOT_INO || view.orphan(ino)?.is_some() || view.entry(ROOT_INO, &name)?.is_some() {
        return Ok(false);
    }
    root.size += name.as_bytes().len() as u64;
    if inode.is_dir() {
        root.nlink += 1;
        inode.parent = ROOT_INO;
    } else {
        inode.nlink = 1;
    }
    view.set_entry(ROOT_INO, &name, DirEntry { ino, file_type: inode.file_type });
    view.set_inode(ROOT_INO, root);
    view.set_inode(ino, inode);
    Ok(true)
}

fn claim_chunk(
    view: &mut TreeView,
    ns: NamespaceId,
    ino: Ino,
    index: ChunkIndex,
    chunk: ChunkId,
) -> Result<bool, FsError> {
    if view.chunk(ino, index)?.is_none_or(|found| found.chunk != chunk) {
        return Ok(false);
    }
    let right = |record: &ChunkRecord| (record.namespace, record.ino, record.index) == (ns, ino, index);
    let record = match view.chunk_record(chunk)? {
        Some(record) if right(&record) && !record.deleted => return Ok(false),
        // Another file that it says it is of keeps it.
        Some(record) if !right(&record) => {
            let other = record.namespace != ns
                || view.chunk(record.ino, record.index)?.is_some_and(|found| found.chunk == chunk);
            if other {
                return Ok(false);
            }
            ChunkRecord { ino, index, deleted: false, ..record }
        }
        Some(record) => ChunkRecord { deleted: false, ..record },
        // Of which version it was is not known: the newest that servers have is.
        None => ChunkRecord {
            namespace: ns,
            ino,
            index,
            version: ChunkVersion(1),
            copies: 0,
            goal: 0,
            deleted: false,
        },
    };
    view.set(key::chunk(chunk), Record::Chunk(record));
    Ok(true)
}

fn drop_reference(view: &mut TreeView, ino: Ino, index: ChunkIndex, chunk: ChunkId) -> Result<bool, FsError> {
    let Some(found) = view.chunk(ino, index)?.filter(|found| found.chunk == chunk) else { return Ok(false) };
    if let Some(mut inode) = view.inode(ino)?.filter(|inode| inode.file_type == FileType::File) {
        inode.blocks_4k = inode.blocks_4k.saturating_sub(u64::from(found.blocks_4k));
        inode.chunks = inode.chunks.saturating_sub(1);
        view.set_inode(ino, inode);
    }
    view.remove_chunk(ino, index, chunk);
    Ok(true)
}

//! Where the bytes of a file are: ChunkMap, Allocate, ReplicaFailed, BadReplica.

use std::collections::BTreeSet;
use std::sync::Arc;

use gofs_proto::{convert, session as wire};
use gofs_tree::{
    ChunkId, ChunkIndex, ChunkRef, ChunkServerId, ChunkSize, ChunkVersion, EditOp, FileType, FsError, Ino,
    Inode, Store,
};

use super::Refusal;
use super::answer::Answer;
use super::connection::Member;
use super::edits::{commit_server_edits, hold_until_known};
use super::node::inode;
use super::operation::Operation;
use crate::chunks::{Location, READ_ONLY};
use crate::lease::Need;
use crate::state::{ChunkRecord, TreeView};

/// Most chunks of one ChunkMap.
const MAP_MAX: u32 = 8192;
/// Most chunks of one Allocate.
const ALLOCATE_MAX: usize = 1024;
/// Version of a chunk that was just made.
pub(super) const FIRST_VERSION: ChunkVersion = ChunkVersion(1);

/// A chunk as a reply shows it. Without replicas where none can be reached, because other chunks of the file may be well, and
/// where it was never written: it reads as zeros, but the place is taken.
fn shown(index: ChunkIndex, reference: ChunkRef, location: Location) -> Result<wire::ChunkLocation, Refusal> {
    let (version, servers, lost) = match location {
        Location::At { version, servers } => (version, servers, false),
        Location::Absent { may_return } => (READ_ONLY, Vec::new(), !may_return),
        Location::Unwritten => (READ_ONLY, Vec::new(), false),
        Location::Wait => return Err(busy(FsError::Busy)),
        Location::NoChunk => {
            tracing::error!(chunk = %reference.chunk, "a file refers to a chunk that the state does not know");
            return Err(FsError::Io.into());
        }
    };
    let shown = to_wire(index, reference.chunk, reference.blocks_4k, version, servers);
    Ok(wire::ChunkLocation { lost, ..shown })
}

/// What will be different after a pause is to be asked again.
pub(super) fn busy(error: FsError) -> Refusal {
    match error {
        FsError::Busy => Refusal::Retry("the ChunkServers are not ready for that yet".into()),
        other => other.into(),
    }
}

pub(super) fn to_wire(
    index: ChunkIndex,
    chunk: ChunkId,
    blocks_4k: u32,
    version: ChunkVersion,
    replicas: Vec<(ChunkServerId, String)>,
) -> wire::ChunkLocation {
    let replica = |(server, address): (ChunkServerId, String)| wire::Replica { server: server.0, address };
    wire::ChunkLocation {
        index: index.0,
        chunk: chunk.0,
        version: version.0,
        blocks_4k,
        replicas: replicas.into_iter().map(replica).collect(),
        lost: false,
    }
}

/// Chunk 0 of a file that can have no other, where it can be read from right now.
pub(super) fn only_chunk(
    member: &Member,
    tree: &TreeView,
    ino: Ino,
    record: &Inode,
    chunk_size: ChunkSize,
) -> Result<Option<wire::ChunkLocation>, FsError> {
    let in_one = record.file_type == FileType::File && record.size <= u64::from(chunk_size.bytes());
    if !in_one || record.size == 0 || !record.inline.is_empty() {
        return Ok(None);
    }
    let Some(reference) = tree.chunk(ino, ChunkIndex(0))? else { return Ok(None) };
    match member.term.shared.chunks.for_reading(reference.chunk) {
        Location::At { version, servers } => {
            Ok(Some(to_wire(ChunkIndex(0), reference.chunk, reference.blocks_4k, version, servers)))
        }
        _ => Ok(None),
    }
}

fn file(tree: &TreeView, ino: Ino) -> Result<(), FsError> {
    match inode(tree, ino)?.file_type {
        FileType::File => Ok(()),
        FileType::Directory => Err(FsError::IsDirectory),
        _ => Err(FsError::Invalid),
    }
}

/// The chunks that exist in a range.
pub(super) async fn serve(
    member: Arc<Member>,
    request: wire::ChunkMap,
    answer: Answer<wire::ChunkMap>,
) -> Result<(), Refusal> {
    let ino = convert::ino(request.ino)?;
    let operation = member.look(vec![Need::read(ino)]).await?;
    let tree = member.tree();
    file(&tree, ino)?;
    let end = request.first.saturating_add(request.count.min(MAP_MAX));
    let chunks = tree.chunks_from(ino, ChunkIndex(request.first))?;
    let mut chunks_shown = Vec::new();
    for (index, reference) in chunks.into_iter().take_while(|(index, _)| index.0 < end) {
        let location = member.term.shared.chunks.for_reading(reference.chunk);
        chunks_shown.push(shown(index, reference, location)?);
    }
    operation.finish(|_| answer.send(&wire::ChunkMapReply { chunks: chunks_shown }));
    Ok(())
}

/// Chunks at these indexes, made where they are missing.
pub(super) async fn allocate(
    member: Arc<Member>,
    request: wire::Allocate,
    answer: Answer<wire::Allocate>,
) -> Result<(), Refusal> {
    let ino = convert::ino(request.ino)?;
    let indexes: BTreeSet<ChunkIndex> = request.indexes.iter().copied().map(ChunkIndex).collect();
    if indexes.len() > ALLOCATE_MAX {
        return Err(Refusal::BadRequest(format!("more than {ALLOCATE_MAX} chunks at once")));
    }
    let blank: BTreeSet<ChunkId> = request.blank.iter().copied().map(ChunkId).collect();
    let operation = member.look(vec![Need::change(ino)]).await?;
    let tree = member.tree();
    file(&tree, ino)?;
    let record = member.term.shared.group.state().namespace(member.namespace())?.ok_or(Refusal::NoSession)?;
    let mut chunks = Vec::with_capacity(indexes.len());
    let mut made = Vec::new();
    for index in indexes {
        if let Some(reference) = tree.chunk(ino, index)? {
            let location = member
                .term
                .shared
                .chunks
                .for_writing(reference.chunk, blank.contains(&reference.chunk))
                .await;
            // Where nothing is left of it, the writer is told: it would wait for ever.
            match location {
                Location::At { .. } | Location::NoChunk | Location::Absent { may_return: false } => {
                    chunks.push(shown(index, reference, location)?);
                }
                _ => return Err(busy(FsError::Busy)),
            }
            continue;
        }
        let servers = member.term.shared.chunks.place(record.config.replicas).map_err(busy)?;
        made.push((index, member.term.new_chunk(), servers));
    }
    let edits =
        made.iter().map(|&(index, chunk, _)| EditOp::AddChunk { ino, index, chunk }).collect::<Vec<_>>();
    if !edits.is_empty() {
        let results = match commit_server_edits(&member, edits).await {
            Ok(results) => results,
            Err(refusal) => {
                hold_until_known(member, operation);
                return Err(refusal);
            }
        };
        // What went well stays: a repeated request finds it.
        let mut refused: Option<Refusal> = None;
        for ((index, chunk, mut servers), result) in made.into_iter().zip(results) {
            match result {
                Ok(_) => {
                    // The namespace may ask for fewer since they were chosen: the record says how many can have it.
                    servers.truncate(own_chunk(&member, chunk)?.copies.max(1) as usize);
                    let ids: Vec<ChunkServerId> = servers.iter().map(|(server, _)| *server).collect();
                    member.term.shared.chunks.assigned(chunk, FIRST_VERSION, &ids);
                    chunks.push(to_wire(index, chunk, 0, FIRST_VERSION, servers));
                }
                // A request before this one, whose outcome was not known, was carried out after all.
                Err(FsError::Exists) => {
                    refused = refused.or(Some(Refusal::Retry("the file was given a chunk meanwhile".into())));
                }
                Err(error) => refused = refused.or(Some(error.into())),
            }
        }
        if let Some(refusal) = refused {
            return Err(refusal);
        }
    }
    chunks.sort_by_key(|chunk| chunk.index);
    operation.finish(|_| answer.send(&wire::AllocateReply { chunks }));
    Ok(())
}

/// Remembers where its author put the chunks that a batch gave to files, where that is news: on all these servers, although the
/// namespace may ask for fewer since they were chosen. The record says then that fewer can have it, which a later leader would
/// believe: the version is moved, and as many as have it are committed with it.
pub(super) async fn placed(
    member: &Member,
    placed: &[wire::Placed],
    added: &[ChunkId],
) -> Result<(), Refusal> {
    let chunks = &member.term.shared.chunks;
    for placed in placed.iter().filter(|placed| added.contains(&ChunkId(placed.chunk))) {
        let chunk = ChunkId(placed.chunk);
        let record = own_chunk(member, chunk)?;
        if record.version != FIRST_VERSION {
            continue;
        }
        let servers: Vec<ChunkServerId> = placed.servers.iter().copied().map(ChunkServerId).collect();
        chunks.assigned(chunk, FIRST_VERSION, &servers);
        if servers.len() > record.copies as usize
            && let Err(error) = chunks.replica_failed(chunk, FIRST_VERSION, &[], false).await
        {
            tracing::warn!(chunk = chunk.0, %error, "it is not recorded on how many servers a chunk is");
        }
    }
    Ok(())
}

/// The chunk's record, if it is of the session's namespace.
fn own_chunk(member: &Member, chunk: ChunkId) -> Result<ChunkRecord, Refusal> {
    let record = member.term.shared.group.state().chunk(chunk)?;
    let own = record.filter(|record| record.namespace == member.namespace() && !record.deleted);
    own.ok_or(Refusal::Fs(FsError::Stale))
}

/// Servers did not take a write: the chunk goes on without them. No lease is looked at: the writer has it, and the
/// version decides between two that ask. But a chunk that is called blank may be placed anew, and what was written to it meanwhile
/// would be gone: nobody is told where it is before that is done, whether its writer has given up waiting or not.
pub(super) async fn replica_failed(
    member: Arc<Member>,
    request: wire::ReplicaFailed,
    answer: Answer<wire::ReplicaFailed>,
) -> Result<(), Refusal> {
    let (chunk, index) = (ChunkId(request.chunk), ChunkIndex(request.index));
    let ino = convert::ino(request.ino)?;
    let _operation = if request.blank { Some(alone_at(&member, ino).await?) } else { None };
    let record = own_chunk(&member, chunk)?;
    if (record.ino, record.index) != (ino, index) {
        return Err(FsError::Stale.into());
    }
    let failed: Vec<ChunkServerId> = request.servers.iter().copied().map(ChunkServerId).collect();
    let chunks = &member.term.shared.chunks;
    let moved = chunks.replica_failed(chunk, ChunkVersion(request.version), &failed, request.blank).await;
    let (version, replicas) = moved.map_err(busy)?;
    let blocks_4k = member.tree().chunk(ino, index)?.map_or(0, |reference| reference.blocks_4k);
    let chunk = Some(to_wire(index, chunk, blocks_4k, version, replicas));
    answer.send(&wire::ReplicaFailedReply { chunk });
    Ok(())
}

/// Nobody else looks at the file or changes it before what is returned is dropped.
async fn alone_at(member: &Member, ino: Ino) -> Result<Operation, Refusal> {
    // An acknowledgement may need the flush that this is for.
    member.operate_firmly(vec![Need::change(ino)]).await.map_err(|refusal| match refusal {
        // Refused to end a circle. Its writer would take that for the end of the chunk.
        Refusal::Fs(FsError::Stale) => Refusal::Retry("another session's operation goes first".into()),
        other => other,
    })
}

/// A read found bad bytes, or no chunk.
pub(super) async fn bad_replica(
    member: Arc<Member>,
    request: wire::BadReplica,
    answer: Answer<wire::BadReplica>,
) -> Result<(), Refusal> {
    own_chunk(&member, ChunkId(request.chunk))?;
    member.term.shared.chunks.bad_replica(
        ChunkId(request.chunk),
        ChunkServerId(request.server),
        request.corrupt,
    );
    answer.send(&wire::BadReplicaReply {});
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_that_nobody_wrote_has_no_replicas_and_takes_its_place_all_the_same() {
        let reference = ChunkRef { chunk: ChunkId(7), blocks_4k: 0 };
        let Ok(chunk) = shown(ChunkIndex(3), reference, Location::Unwritten) else { panic!("it is shown") };
        assert_eq!((chunk.index, chunk.chunk, chunk.blocks_4k, chunk.version), (3, 7, 0, 0));
        assert!(chunk.replicas.is_empty() && !chunk.lost);
    }
}

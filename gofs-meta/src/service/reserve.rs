//! Reserve and ReserveChunks: numbers of inodes, and chunks with a place, for a session's own edits.
//!
//! A reservation is committed before it is answered. Numbers of one whose outcome is not known are lost: the counter of
//! this term has passed them, and the next term begins after all that was committed.

use std::sync::Arc;

use gofs_proto::session as wire;
use gofs_tree::{ChunkId, ChunkIndex};

use super::Refusal;
use super::answer::Answer;
use super::chunk_map::{FIRST_VERSION, busy, to_wire};
use super::connection::Member;
use crate::command::{Command, CommandOutcome};

/// Most inode numbers of one request: minutes of creates at full speed, and nothing of the 2^64 that there are.
const INOS_MAX: u32 = 65_536;
/// Most chunks of one request: where they are is decided now and should not be old when they are used.
const CHUNKS_MAX: u32 = 1024;

pub(super) async fn inos(
    member: Arc<Member>,
    request: wire::Reserve,
    answer: Answer<wire::Reserve>,
) -> Result<(), Refusal> {
    let count = request.count.clamp(1, INOS_MAX);
    let first = member.space.new_inos(count);
    commit(&member, Command::ReserveInos { session: member.session, first, count }).await?;
    answer.send(&wire::ReserveReply { first: first.0, count });
    Ok(())
}

pub(super) async fn chunks(
    member: Arc<Member>,
    request: wire::ReserveChunks,
    answer: Answer<wire::ReserveChunks>,
) -> Result<(), Refusal> {
    let count = request.count.clamp(1, CHUNKS_MAX);
    let record = member.term.shared.group.state().namespace(member.namespace())?.ok_or(Refusal::NoSession)?;
    let place = |_| member.term.shared.chunks.place(record.config.replicas).map_err(busy);
    let places = (0..count).map(place).collect::<Result<Vec<_>, _>>()?;
    let first = member.term.new_chunks(count);
    commit(&member, Command::ReserveChunks { session: member.session, first, count }).await?;
    let located = (first.0..)
        .zip(places)
        .map(|(chunk, servers)| to_wire(ChunkIndex(0), ChunkId(chunk), 0, FIRST_VERSION, servers));
    answer.send(&wire::ReserveChunksReply { chunks: located.collect() });
    Ok(())
}

async fn commit(member: &Member, reservation: Command) -> Result<(), Refusal> {
    match member.term.shared.group.propose(reservation).await? {
        CommandOutcome::Done => Ok(()),
        CommandOutcome::Refused(refusal) => Err(refusal.into()),
        other => Err(Refusal::Retry(format!("the state answered {other:?} to a reservation"))),
    }
}

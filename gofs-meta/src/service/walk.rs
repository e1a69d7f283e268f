//! Walk: whole directories with their inodes, before somebody who walks through the tree asks for them.
//!
//! Nothing is waited for and nobody is asked to give anything back: what cannot be had at once is left out.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use gofs_proto::{convert, session as wire};
use gofs_tree::{DirEntry, FileType, FsError, Ino, LeaseMode, Name, Store};
use prost::Message;

use super::Refusal;
use super::answer::Answer;
use super::chunk_map::only_chunk;
use super::connection::Member;
use super::node::{inode, node};
use super::operation::Grants;
use crate::lease::Need;
use crate::state::TreeView;

/// Most directories that one request names.
const NAMED_MAX: usize = 64;
/// Most entries of one reply: all that an operation holds is taken and given back under one lock.
const ENTRIES_MAX: usize = 1024;
/// Bytes after which a reply ends: a fraction of what a frame's header may have.
const REPLY_BYTES: usize = 2 << 20;
/// What a grant adds to a node, bytes at most.
const GRANT_BYTES: usize = 32;

/// A directory as the state has it.
struct Found {
    dir: Ino,
    entries: Vec<(Name, DirEntry)>,
    end: bool,
}

/// Reads directories, each before what is below it, until `limit` entries are found. What does not fit whole is left
/// out, unless it is the first; what is no directory (any more) is, too.
fn find(tree: &TreeView, named: &[Ino], below: bool, limit: usize) -> Result<Vec<Found>, FsError> {
    let mut found: Vec<Found> = Vec::new();
    let mut seen = HashSet::new();
    let mut next: Vec<Ino> = named.iter().rev().copied().collect();
    let mut left = limit;
    while let Some(dir) = next.pop() {
        if left == 0 {
            break;
        }
        if !seen.insert(dir) || !tree.inode(dir)?.is_some_and(|record| record.is_dir()) {
            continue;
        }
        let mut entries = tree.entries(dir, None, left + 1)?;
        let end = entries.len() <= left;
        if !end {
            if !found.is_empty() {
                continue;
            }
            entries.truncate(left);
        }
        left -= entries.len();
        if below && end {
            let dirs = entries.iter().rev().filter(|(_, entry)| entry.file_type == FileType::Directory);
            next.extend(dirs.map(|(_, entry)| entry.ino));
        }
        found.push(Found { dir, entries, end });
    }
    Ok(found)
}

pub(super) async fn serve(
    member: Arc<Member>,
    request: wire::Walk,
    answer: Answer<wire::Walk>,
) -> Result<(), Refusal> {
    if request.inos.len() > NAMED_MAX {
        return Err(Refusal::BadRequest(format!("Walk of more than {NAMED_MAX} directories")));
    }
    let named = request.inos.iter().map(|&ino| convert::ino(ino)).collect::<Result<Vec<Ino>, _>>()?;
    let limit = (request.max_entries as usize).clamp(1, ENTRIES_MAX);
    let read = || find(&member.tree(), &named, request.below, limit);
    let state = member.term.shared.group.state();
    let before = state.applied();
    let mut found = read()?;
    let inos = found.iter().flat_map(|at| std::iter::once(at.dir).chain(at.entries.iter().map(|e| e.1.ino)));
    let operation = member.look(inos.map(Need::maybe_read).collect()).await?;
    if state.applied() != before {
        found = read()?;
    }
    let held = operation.inodes();
    let mut listings = Vec::with_capacity(found.len());
    let mut bytes = 0;
    for at in found.into_iter().filter(|at| held.contains(&at.dir)) {
        let Some((listing, more)) = listing(&member, &at, &held, REPLY_BYTES - bytes, listings.is_empty())?
        else {
            break;
        };
        bytes += more;
        listings.push(listing);
    }
    operation.finish(|grants| {
        for listing in &mut listings {
            grant(listing.node.as_mut(), grants);
            for item in &mut listing.items {
                grant(item.node.as_mut(), grants);
            }
        }
        answer.send(&wire::WalkReply { listings });
    });
    Ok(())
}

/// The directory as the reply shows it, and its bytes; `None` where it has more than `room`, except that the `first` is
/// cut.
fn listing(
    member: &Member,
    found: &Found,
    held: &HashSet<Ino>,
    room: usize,
    first: bool,
) -> Result<Option<(wire::Listing, usize)>, FsError> {
    let tree = member.tree();
    let chunk_size = tree.limits().chunk_size;
    let record = inode(&tree, found.dir)?;
    let own = node(found.dir, &record);
    let mut bytes = own.encoded_len() + GRANT_BYTES;
    let mut items = Vec::with_capacity(found.entries.len());
    let mut end = found.end;
    for (name, entry) in &found.entries {
        let mut item = wire::DirItem {
            name: Bytes::copy_from_slice(name.as_bytes()),
            ino: entry.ino.0,
            file_type: convert::file_type_to_wire(entry.file_type),
            node: None,
            chunk: None,
        };
        if held.contains(&entry.ino) && entry.ino != found.dir {
            let record = inode(&tree, entry.ino)?;
            item.chunk = only_chunk(member, &tree, entry.ino, &record, chunk_size)?;
            item.node = Some(node(entry.ino, &record));
        }
        bytes += item.encoded_len() + GRANT_BYTES;
        if bytes > room {
            if !first || items.is_empty() {
                return Ok(None);
            }
            end = false;
            break;
        }
        items.push(item);
    }
    Ok(Some((wire::Listing { node: Some(own), parent: record.parent.0, items, end }, bytes)))
}

/// Puts a grant on what was held, if it may be kept.
fn grant(node: Option<&mut wire::Node>, grants: &mut Grants<'_>) {
    let Some(node) = node else { return };
    let ino = node.attr.as_ref().map(|attr| Ino(attr.ino));
    node.grant = ino.and_then(|ino| grants.best(ino, Some(LeaseMode::Read)));
}

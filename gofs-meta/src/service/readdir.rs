//! ReadDir: a page of a directory, with the inodes where they can be had at once.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use gofs_proto::{convert, session as wire};
use gofs_tree::{FsError, Ino, LeaseMode};
use prost::Message;

use super::Refusal;
use super::answer::Answer;
use super::connection::Member;
use super::node::{inode, node};
use crate::lease::Need;

/// Most entries of one page.
const ENTRIES_MAX: usize = 4096;
/// Bytes after which a page ends: a fraction of what a frame's header may have, and one entry with the
/// largest inline file still fits.
const PAGE_BYTES: usize = 2 << 20;
/// What a grant adds to a node, bytes at most.
const GRANT_BYTES: usize = 32;

pub(super) async fn serve(
    member: Arc<Member>,
    request: wire::ReadDir,
    answer: Answer<wire::ReadDir>,
) -> Result<(), Refusal> {
    let dir = convert::ino(request.ino)?;
    let after = if request.after.is_empty() { None } else { Some(convert::name(&request.after)?) };
    let limit = (request.max_entries as usize).clamp(1, ENTRIES_MAX);
    let mut needs = vec![Need::read(dir)];
    let state = member.term.shared.group.state();
    let before = state.applied();
    let mut entries = Vec::new();
    if request.plus {
        // Those that another session is changing come without their inode: a listing must not make every
        // writer flush.
        entries = member.tree().entries(dir, after.as_ref(), limit)?;
        needs.extend(entries.iter().map(|(_, entry)| Need::maybe_read(entry.ino)));
    }
    let operation = member.look(needs).await?;
    let held = operation.inodes();
    let tree = member.tree();
    let record = inode(&tree, dir)?;
    if !record.is_dir() {
        return Err(FsError::NotDirectory.into());
    }
    if !request.plus || state.applied() != before {
        entries = tree.entries(dir, after.as_ref(), limit)?;
    }
    let mut end = entries.len() < limit;
    let mut items = Vec::with_capacity(entries.len());
    let mut nodes: HashMap<Ino, wire::Node> = HashMap::new();
    let mut bytes = 0;
    for (name, entry) in entries {
        let with_node = request.plus && entry.ino != dir && held.contains(&entry.ino);
        let node = if with_node { Some(node(entry.ino, &inode(&tree, entry.ino)?)) } else { None };
        let item = wire::DirItem {
            name: Bytes::copy_from_slice(name.as_bytes()),
            ino: entry.ino.0,
            file_type: convert::file_type_to_wire(entry.file_type),
            node: None,
            chunk: None,
        };
        bytes += item.encoded_len() + node.as_ref().map_or(0, |node| node.encoded_len() + GRANT_BYTES);
        if bytes > PAGE_BYTES && !items.is_empty() {
            end = false;
            break;
        }
        nodes.extend(node.map(|node| (entry.ino, node)));
        items.push(item);
    }
    let own = node(dir, &record);
    operation.finish(|grants| {
        let grant = grants.best(dir, Some(LeaseMode::Read));
        for item in &mut items {
            let ino = Ino(item.ino);
            item.node = nodes.get(&ino).map(|node| {
                let grant = grants.best(ino, Some(LeaseMode::Read));
                wire::Node { grant, ..node.clone() }
            });
        }
        answer.send(&wire::ReadDirReply {
            items,
            end,
            dir: grant,
            node: Some(wire::Node { grant, ..own }),
            parent: record.parent.0,
        });
    });
    Ok(())
}

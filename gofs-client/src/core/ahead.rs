//! Asking for directories before they are needed.

use std::sync::Arc;

use gofs_proto::convert::{self, ConvertError, Node};
use gofs_proto::session::{self, DirItem, Walk};
use gofs_tree::{DirEntry, FsError, Ino, Name};

use super::Core;
use super::file_meta::location;
use super::learn::garbled;
use crate::data::ChunkLocation;
use crate::lease::{Ahead, LeaseTable, Listing, PageRequest, WalkRequest};

/// Inodes taken in before others may look into the table.
const AT_ONCE: usize = 64;

/// Part of a directory, as a reply has it.
pub struct Part {
    /// The directory itself, first.
    own: Node,
    parent: Ino,
    entries: Vec<(Name, DirEntry)>,
    inodes: Vec<(Node, Option<ChunkLocation>)>,
    end: bool,
}

/// Entries and the inodes that came with them.
pub type Items = (Vec<(Name, DirEntry)>, Vec<(Node, Option<ChunkLocation>)>);

/// Reads the entries of a reply.
pub fn items(items: Vec<DirItem>) -> Result<Items, ConvertError> {
    let mut entries = Vec::with_capacity(items.len());
    let mut inodes = Vec::with_capacity(items.len());
    for item in items {
        let entry = DirEntry { ino: convert::ino(item.ino)?, file_type: convert::file_type(item.file_type)? };
        entries.push((convert::name(&item.name)?, entry));
        if let Some(node) = &item.node {
            inodes.push((Node::try_from(node)?, item.chunk.map(location)));
        }
    }
    Ok((entries, inodes))
}

fn part(listing: session::Listing) -> Result<Part, ConvertError> {
    let own = Node::try_from(listing.node.as_ref().ok_or(ConvertError::Missing("node of a listing"))?)?;
    let parent = convert::ino(listing.parent)?;
    let (entries, inodes) = items(listing.items)?;
    Ok(Part { own, parent, entries, inodes, end: listing.end })
}

impl Core {
    /// Asks in the background.
    pub fn ask_ahead(self: &Arc<Self>, ahead: Option<Ahead>) {
        let Some(ahead) = ahead else { return };
        let core = self.clone();
        self.runtime.spawn(async move {
            match ahead {
                Ahead::Walk(request) => {
                    let first = request.named.first().copied();
                    core.walk(request).await;
                    let page = first.and_then(|dir| core.table.lock().next_page(dir));
                    core.pages(page).await;
                }
                Ahead::Page(page) => core.pages(Some(page)).await,
            }
        });
    }

    /// Asks for directories and takes in what comes. What does not come is asked for when it is needed.
    pub async fn walk(self: &Arc<Self>, request: WalkRequest) {
        let core = self.clone();
        let asked = self.table.lock().changes();
        let wanted = request.clone();
        let wire = Walk {
            inos: request.named.iter().map(|ino| ino.0).collect(),
            max_entries: request.entries,
            below: request.below,
        };
        let walked = self.session.call(wire, move |reply| {
            let parts: Result<Vec<Part>, _> = reply.listings.into_iter().map(part).collect();
            let parts = parts.map_err(|e| garbled(&e))?;
            let came = parts.iter().map(|part| part.own.attr.ino);
            let last = came.filter(|ino| wanted.named.contains(ino)).last();
            for part in parts {
                let needed_now = wanted.now && wanted.named.first() == Some(&part.own.attr.ino);
                core.take_in_part(part, asked, !needed_now);
            }
            core.table.lock().walked(&wanted, last);
            Ok(())
        });
        if let Err(error) = walked.await {
            tracing::debug!(%error, "directories could not be fetched ahead");
            self.table.lock().walked(&request, None);
        }
        self.changed.notify_waiters();
    }

    /// Fetches a directory on from there, as long as that is worth it.
    async fn pages(self: &Arc<Self>, mut page: Option<PageRequest>) {
        while let Some(PageRequest { dir, after, listing, entries }) = page {
            let fetched = self.page(dir, Some((after, Some(listing))), entries, true).await;
            let mut table = self.table.lock();
            table.paged(dir);
            page = match fetched {
                Ok(_) => table.next_page(dir),
                Err(_) => None,
            };
        }
    }

    fn take_in_part(self: &Arc<Self>, part: Part, asked: u64, ahead: bool) {
        let dir = part.own.attr.ino;
        let granted = {
            let mut table = self.table.lock();
            !table.has_changed(dir, asked) && self.take_in(&mut table, &part.own)
        };
        self.take_in_inodes(&part.inodes, asked);
        let mut table = self.table.lock();
        let count = part.entries.len() as u32;
        let last = part.entries.last().map(|(name, _)| name.clone());
        let names = part.entries.into_iter();
        let listing = table.learn_page(dir, part.parent, names, true, None, part.end, granted);
        note_fetched(&mut table, dir, count, last, listing, part.end, ahead);
        self.after_learning(table);
    }

    /// Inodes of a listing, asked for when there had been so many changes. Those that look into the table meanwhile need not wait
    /// for all of them.
    pub fn take_in_inodes(&self, inodes: &[(Node, Option<ChunkLocation>)], asked: u64) {
        for some in inodes.chunks(AT_ONCE) {
            let mut table = self.table.lock();
            for (node, chunk) in some {
                if !table.has_changed(node.attr.ino, asked)
                    && self.take_in(&mut table, node)
                    && let Some(chunk) = chunk
                {
                    self.data.learn_only_chunk(node.attr.ino, chunk.clone());
                }
            }
        }
    }
}

/// What is to be remembered of a page so that the next can be asked for.
pub fn note_fetched(
    table: &mut LeaseTable,
    dir: Ino,
    entries: u32,
    last: Option<Name>,
    listing: Option<Listing>,
    end: bool,
    ahead: bool,
) {
    let next = if end { None } else { last.zip(listing) };
    table.fetched(dir, entries, next, ahead);
}

/// A page of a directory, as the server sent it.
pub struct Page {
    /// The directory above.
    pub parent: Ino,
    /// In order.
    pub entries: Vec<(Name, DirEntry)>,
    /// Nothing follows.
    pub end: bool,
    /// For the next page.
    pub listing: Option<Listing>,
}

impl Core {
    /// A page of at most `max_entries`, from the beginning or after that name; the listing is the one that the page before
    /// belongs to, if it is known.
    pub async fn page(
        self: &Arc<Self>,
        ino: Ino,
        after: Option<(Name, Option<Listing>)>,
        max_entries: u32,
        plus: bool,
    ) -> Result<Page, FsError> {
        self.settled(ino).await?;
        let first = after.is_none();
        let (name, listing) = after.map_or((None, None), |(name, listing)| (Some(name), listing));
        let name = name.as_ref().map_or(&b""[..], |name| name.as_bytes());
        let request = session::ReadDir { ino: ino.0, after: name.to_vec().into(), max_entries, plus };
        let core = self.clone();
        let asked = self.table.lock().changes();
        self.session
            .call(request, move |reply: session::ReadDirReply| {
                let parse = || -> Result<_, ConvertError> {
                    let (entries, inodes) = items(reply.items)?;
                    let own = reply.node.as_ref().map(Node::try_from).transpose()?;
                    let dir = reply.dir.as_ref().map(convert::Grant::try_from).transpose()?;
                    Ok((entries, inodes, own, dir, convert::ino(reply.parent).unwrap_or(ino)))
                };
                let (entries, inodes, own, dir, parent) = parse().map_err(|e| garbled(&e))?;
                let granted = {
                    // Before the grant, which makes an inode known that was not.
                    let mut table = core.table.lock();
                    let has_changed = table.has_changed(ino, asked);
                    dir.is_some_and(|grant| table.grant(grant)) && !has_changed
                };
                core.take_in_inodes(&inodes, asked);
                let mut table = core.table.lock();
                if let Some(own) = own.as_ref().filter(|_| granted) {
                    core.take_in(&mut table, own);
                }
                let names = entries.iter().cloned();
                let listing = table.learn_page(ino, parent, names, first, listing, reply.end, granted);
                let last = entries.last().map(|(name, _)| name.clone());
                note_fetched(&mut table, ino, entries.len() as u32, last, listing, reply.end, false);
                core.after_learning(table);
                Ok(Page { parent, entries, end: reply.end, listing })
            })
            .await
    }
}

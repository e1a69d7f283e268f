//! Listing directories.

use std::sync::{Arc, Weak};

use gofs_proto::convert::{self, ConvertError, Grant, Node};
use gofs_proto::session::ReadDir;
use gofs_tree::{DirEntry, FileType, FsError, Ino, Name};
use tokio::sync::Mutex;

use crate::cached::Cached;
use crate::client::Client;
use crate::clock::BootTime;
use crate::core::Core;
use crate::core::learn::{cached, garbled, overlaid};
use crate::handle::{DirHandle, DirItem};
use crate::lease::{Closing, LINGER, Listing, NameAnswer};

/// Entries asked for at once: without and with attributes, which may bring a small file's bytes each.
const PAGE_ENTRIES: (u32, u32) = (4096, 512);

/// An open directory.
pub(crate) struct OpenDir {
    pub ino: Ino,
    listed: Mutex<Listed>,
    core: Weak<Core>,
}

/// Entries as they were when they were fetched, in the order that indexes count.
#[derive(Default)]
struct Listed {
    items: Vec<Item>,
    /// Nothing follows.
    end: bool,
    listing: Option<Listing>,
}

struct Item {
    name: ItemName,
    entry: DirEntry,
}

enum ItemName {
    Dot,
    DotDot,
    Name(Name),
}

impl std::fmt::Debug for OpenDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenDir({})", self.ino)
    }
}

impl Drop for OpenDir {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            core.close(self.ino);
        }
    }
}

impl Core {
    /// Uncounts an open.
    pub fn close(self: &Arc<Self>, ino: Ino) {
        let mut table = self.table.lock();
        let removed = table.is_removed(ino);
        let closing = table.close(ino, BootTime::now());
        if removed && !table.is_open(ino) {
            // Nobody can look at it any more; what was not written need not be.
            self.data.forget(ino);
        }
        drop(table);
        match closing {
            Closing::Nothing => {}
            Closing::TellServer => self.tell_closed(ino),
            Closing::Later => self.close_later(ino),
        }
    }

    /// Uncounts an open that is there only for one that a look-up may bring.
    pub fn close_later(self: &Arc<Self>, ino: Ino) {
        let core = Arc::downgrade(self);
        self.runtime.spawn(async move {
            tokio::time::sleep(LINGER).await;
            if let Some(core) = core.upgrade() {
                core.close(ino);
            }
        });
    }
}

impl Listed {
    fn begin(&mut self, ino: Ino, parent: Ino) {
        let entry = |ino| DirEntry { ino, file_type: FileType::Directory };
        self.items.push(Item { name: ItemName::Dot, entry: entry(ino) });
        self.items.push(Item { name: ItemName::DotDot, entry: entry(parent) });
    }

    fn extend(&mut self, entries: impl IntoIterator<Item = (Name, DirEntry)>) {
        self.items
            .extend(entries.into_iter().map(|(name, entry)| Item { name: ItemName::Name(name), entry }));
    }

    fn last_name(&self) -> &[u8] {
        match self.items.last() {
            Some(Item { name: ItemName::Name(name), .. }) => name.as_bytes(),
            _ => b"",
        }
    }
}

/// A page as the server sent it.
struct Page {
    parent: Ino,
    entries: Vec<(Name, DirEntry)>,
    end: bool,
    listing: Option<Listing>,
}

impl Client {
    /// Opens a directory for [`Client::readdir`].
    pub async fn opendir(&self, ino: Ino) -> Result<DirHandle, FsError> {
        self.count_open(ino).await?;
        let core = Arc::downgrade(&self.core);
        Ok(DirHandle(Arc::new(OpenDir { ino, listed: Mutex::default(), core })))
    }

    /// At most `max` entries from `index` on; none = the end. Index 0 makes the listing anew. With `plus` attributes
    /// come with the entries where they may be told; an entry without them is to be looked up.
    pub async fn readdir(
        &self,
        dir: &DirHandle,
        index: u64,
        max: usize,
        plus: bool,
    ) -> Result<Vec<DirItem>, FsError> {
        let ino = dir.ino();
        let mut listed = dir.0.listed.lock().await;
        if index == 0 {
            *listed = Listed::default();
            let known = self.core.table.lock().list(ino, BootTime::now());
            if let Some((parent, entries)) = known {
                listed.begin(ino, self.above(ino, parent));
                listed.extend(entries);
                listed.end = true;
            }
        }
        let index = usize::try_from(index).map_err(|_| FsError::Invalid)?;
        while listed.items.len() <= index && !listed.end {
            let page = self.page(ino, &listed, plus).await?;
            if listed.items.is_empty() {
                listed.begin(ino, self.above(ino, page.parent));
            }
            if page.entries.is_empty() && !page.end {
                tracing::error!(%ino, "the MetaServer sent an empty page before a directory's end");
                return Err(FsError::Io);
            }
            listed.extend(page.entries);
            listed.end = page.end;
            listed.listing = page.listing;
        }
        let items = listed.items.iter().enumerate().skip(index).take(max);
        Ok(items.map(|(at, item)| self.item(ino, at, item, plus)).collect())
    }

    /// Nothing is above the mounted directory.
    fn above(&self, ino: Ino, parent: Ino) -> Ino {
        if ino == self.root() { ino } else { parent }
    }

    fn item(&self, dir: Ino, at: usize, item: &Item, plus: bool) -> DirItem {
        let (name, attr) = match &item.name {
            ItemName::Dot => (b".".to_vec(), None),
            ItemName::DotDot => (b"..".to_vec(), None),
            ItemName::Name(name) => {
                let attr = if plus { self.item_attr(dir, name, item.entry.ino) } else { None };
                (name.as_bytes().to_vec(), attr)
            }
        };
        DirItem { next: at as u64 + 1, name, ino: item.entry.ino, file_type: item.entry.file_type, attr }
    }

    /// What may be told of an entry now.
    fn item_attr(&self, dir: Ino, name: &Name, ino: Ino) -> Option<Cached<gofs_tree::Attr>> {
        let local = self.core.data.overlay(ino);
        match self.core.table.lock().lookup(dir, name, BootTime::now()) {
            NameAnswer::Found(attr, permit) if attr.ino == ino => {
                let entry_ttl = self.core.entry_ttl(permit.ttl);
                Some(Cached { entry_ttl, ..cached(overlaid(attr, local), permit) })
            }
            _ => None,
        }
    }

    async fn page(&self, ino: Ino, listed: &Listed, plus: bool) -> Result<Page, FsError> {
        self.core.settled(ino).await?;
        let after = listed.last_name();
        let (first, listing) = (after.is_empty(), listed.listing);
        let request = ReadDir {
            ino: ino.0,
            after: after.to_vec().into(),
            max_entries: if plus { PAGE_ENTRIES.1 } else { PAGE_ENTRIES.0 },
            plus,
        };
        let core = self.core.clone();
        self.core
            .session
            .call(request, move |reply| {
                let parse = || -> Result<_, ConvertError> {
                    let mut entries = Vec::with_capacity(reply.items.len());
                    let mut nodes = Vec::new();
                    for item in &reply.items {
                        let file_type = convert::file_type(item.file_type)?;
                        let entry = DirEntry { ino: convert::ino(item.ino)?, file_type };
                        entries.push((convert::name(&item.name)?, entry));
                        nodes.extend(item.node.as_ref().map(Node::try_from).transpose()?);
                    }
                    nodes.extend(reply.node.as_ref().map(Node::try_from).transpose()?);
                    let dir = reply.dir.as_ref().map(Grant::try_from).transpose()?;
                    Ok((entries, nodes, dir, convert::ino(reply.parent).unwrap_or(ino)))
                };
                let (entries, nodes, dir, parent) = parse().map_err(|e| garbled(&e))?;
                let mut table = core.table.lock();
                let granted = dir.is_some_and(|grant| table.grant(grant));
                for node in &nodes {
                    core.take_in(&mut table, node);
                }
                let names = entries.iter().cloned();
                let listing = table.learn_page(ino, parent, names, first, listing, reply.end, granted);
                core.after_learning(table);
                Ok(Page { parent, entries, end: reply.end, listing })
            })
            .await
    }
}

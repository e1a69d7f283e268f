//! Listing directories.

use std::sync::{Arc, Weak};

use gofs_tree::{DirEntry, FileType, FsError, Ino, Name};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::cached::Cached;
use crate::client::Client;
use crate::clock::BootTime;
use crate::core::Core;
use crate::core::ahead::Page;
use crate::core::learn::{cached, overlaid};
use crate::handle::{DirHandle, DirItem};
use crate::lease::{Closing, KernelListing, LINGER, Listing, NameAnswer, Wanted};

/// Entries asked for at once: without and with attributes, which may bring a small file's bytes each.
const PAGE_ENTRIES: (u32, u32) = (4096, 512);

fn page_entries(plus: bool) -> u32 {
    if plus { PAGE_ENTRIES.1 } else { PAGE_ENTRIES.0 }
}

/// An open directory.
pub(crate) struct OpenDir {
    pub ino: Ino,
    pub kernel_listing: KernelListing,
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
    /// The next page, on its way before it is needed.
    ahead: Option<JoinHandle<Result<Page, FsError>>>,
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
            core.table.lock().close_listing(self.ino, self.kernel_listing);
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

    fn last_name(&self) -> Option<Name> {
        match &self.items.last()?.name {
            ItemName::Name(name) => Some(name.clone()),
            ItemName::Dot | ItemName::DotDot => None,
        }
    }
}

impl Client {
    /// Opens a directory for [`Client::readdir`].
    pub async fn opendir(&self, ino: Ino) -> Result<DirHandle, FsError> {
        self.count_open(ino).await?;
        let kernel_listing = self.core.table.lock().open_listing(ino, BootTime::now());
        let core = Arc::downgrade(&self.core);
        Ok(DirHandle(Arc::new(OpenDir { ino, kernel_listing, listed: Mutex::default(), core })))
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
            if let Some((parent, entries)) = self.known_entries(ino).await {
                listed.begin(ino, self.above(ino, parent));
                listed.extend(entries);
                listed.end = true;
            }
        }
        let index = usize::try_from(index).map_err(|_| FsError::Invalid)?;
        while listed.items.len() <= index && !listed.end {
            let page = self.next_page(ino, &mut listed, plus).await?;
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
            if !listed.end {
                let (core, after) = (self.core.clone(), listed.last_name().map(|name| (name, page.listing)));
                let ahead = async move { core.page(ino, after, page_entries(plus), plus).await };
                listed.ahead = Some(self.core.runtime.spawn(ahead));
            }
        }
        if listed.items.len() <= index {
            self.end_listing(dir).await;
        }
        let items = listed.items.iter().enumerate().skip(index).take(max);
        Ok(items.map(|(at, item)| self.item(ino, at, item, plus)).collect())
    }

    /// Before the kernel hears of the end and takes its copy of the listing for whole.
    async fn end_listing(&self, dir: &DirHandle) {
        let (ino, kernel_listing) = (dir.ino(), dir.kernel_listing());
        if self.core.table.lock().is_copy_old(ino, kernel_listing, BootTime::now()) {
            let kernel = self.core.kernel.clone();
            self.core.in_kernel(move || kernel.invalidate_inode(ino)).await;
        }
    }

    /// Every entry of the directory and the directory above it, where they are known or about to be.
    async fn known_entries(&self, ino: Ino) -> Option<(Ino, Vec<(Name, DirEntry)>)> {
        let wanted = {
            let mut table = self.core.table.lock();
            let known = table.list(ino, BootTime::now());
            if known.is_some() {
                let ahead = table.ahead(BootTime::now());
                drop(table);
                self.core.ask_ahead(ahead);
                return known;
            }
            table.want_entries(ino, BootTime::now())
        };
        match wanted {
            Wanted::Pages => return None,
            Wanted::Wait => {
                self.core.wait_for(|table| (!table.is_asked(ino)).then_some(())).await.ok()?;
            }
            Wanted::Walk(request) => self.core.walk(request).await,
        }
        self.core.table.lock().list(ino, BootTime::now())
    }

    async fn next_page(&self, ino: Ino, listed: &mut Listed, plus: bool) -> Result<Page, FsError> {
        if let Some(ahead) = listed.ahead.take() {
            return ahead.await.unwrap_or(Err(FsError::Io));
        }
        let after = listed.last_name().map(|name| (name, listed.listing));
        self.core.page(ino, after, page_entries(plus), plus).await
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
}

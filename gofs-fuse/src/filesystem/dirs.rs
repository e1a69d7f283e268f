//! Requests about open directories.
//!
//! The kernel keeps listings where the backend allows it, which takes them back as it does pages.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fuser::{FopenFlags, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyOpen, Request};
use futures_util::future::try_join_all;
use gofs_client::{Cached, DirItem, KernelListing};
use gofs_tree::FsError;

use super::{GENERATION, Gofs, Shared};
use crate::backend::Backend;
use crate::convert::{bare_attr, file_type};
use crate::stats::Operation;

/// Entries that a reply is prepared with: at first, and at most.
const PAGE_ENTRIES: (usize, usize) = (32, 1024);

/// How many entries a reply holds. fuser does not tell how much the kernel has room for (4 KiB before
/// Linux 6.16, the program's buffer since), so replies teach it.
pub(super) struct PageSize(AtomicUsize);

impl Default for PageSize {
    fn default() -> Self {
        PageSize(AtomicUsize::new(PAGE_ENTRIES.0))
    }
}

impl PageSize {
    fn entries(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Of `asked` entries `fitted` did; `full` if there was no room for more.
    fn learn(&self, asked: usize, fitted: usize, full: bool) {
        let next = match full {
            // One more than fits, so that growth is noticed.
            true => fitted + 1,
            false if fitted == asked => asked * 2,
            false => return,
        };
        self.0.store(next.clamp(1, PAGE_ENTRIES.1), Ordering::Relaxed);
    }
}

impl<B: Backend> Gofs<B> {
    pub(super) fn do_opendir(&self, request: &Request, ino: INodeNo, answer: ReplyOpen) {
        let shared = self.shared.clone();
        let ino = shared.map.ino(ino);
        let work = async move { shared.backend.opendir(ino).await };
        self.serve(Operation::OpenDir, request, answer, work, |shared, answer, dir| {
            let handle = shared.new_handle();
            let kept = keep(shared.backend.kernel_listing(&dir));
            shared.dirs.insert(handle, dir);
            answer.opened(fuser::FileHandle(handle), kept);
        });
    }

    pub(super) fn do_readdir(
        &self,
        request: &Request,
        handle: fuser::FileHandle,
        offset: u64,
        answer: ReplyDirectory,
    ) {
        let shared = self.shared.clone();
        let work = async move {
            let dir = shared.dir(handle)?;
            let asked = shared.pages.entries();
            Ok((asked, shared.backend.readdir(&dir, offset, asked, false).await?))
        };
        self.serve(Operation::ReadDir, request, answer, work, |shared, mut answer, (asked, items)| {
            let fitted = items.iter().take_while(|item| {
                let name = OsStr::from_bytes(&item.name);
                !answer.add(shared.map.node(item.ino), item.next, file_type(item.file_type), name)
            });
            let fitted = fitted.count();
            shared.pages.learn(asked, fitted, fitted < items.len());
            answer.ok();
        });
    }

    pub(super) fn do_readdirplus(
        &self,
        request: &Request,
        handle: fuser::FileHandle,
        offset: u64,
        answer: ReplyDirectoryPlus,
    ) {
        let shared = self.shared.clone();
        let work = async move {
            let dir = shared.dir(handle)?;
            let asked = shared.pages_plus.entries();
            let mut index = offset;
            loop {
                let items = shared.backend.readdir(&dir, index, asked, true).await?;
                let Some(last) = items.last() else { return Ok((asked, items)) };
                index = last.next;
                let items = shared.with_attributes(items).await?;
                // Nothing left of a page is not the end of the directory.
                if !items.is_empty() {
                    return Ok((asked, items));
                }
            }
        };
        self.serve(Operation::ReadDirPlus, request, answer, work, |shared, mut answer, (asked, items)| {
            let (total, mut fitted) = (items.len(), 0);
            // By reference: recalls wait for these until the kernel has the reply.
            for item in &items {
                let node = shared.map.node(item.ino);
                let name = OsStr::from_bytes(&item.name);
                let full = match &item.attr {
                    Some(cached) => {
                        let attr = shared.map.attr(&cached.value);
                        let ttl = cached.ttl.min(cached.entry_ttl);
                        shared.lookups().sent(node);
                        let full = answer.add(node, item.next, name, &ttl, &attr, GENERATION);
                        if full {
                            shared.lookups().forgotten(node, 1);
                        }
                        full
                    }
                    // `.` and `..`: the kernel takes number and type only, and counts nothing.
                    None => {
                        let attr = bare_attr(node, file_type(item.file_type));
                        answer.add(node, item.next, name, &Duration::ZERO, &attr, GENERATION)
                    }
                };
                if full {
                    break;
                }
                fitted += 1;
            }
            shared.pages_plus.learn(asked, fitted, fitted < total);
            answer.ok();
        });
    }

    pub(super) fn do_releasedir(&self, handle: fuser::FileHandle, answer: ReplyEmpty) {
        self.shared.dirs.remove(&handle.0);
        answer.ok();
    }

    pub(super) fn do_fsyncdir(&self, request: &Request, ino: INodeNo, answer: ReplyEmpty) {
        let shared = self.shared.clone();
        let ino = shared.map.ino(ino);
        let work = async move { shared.backend.fsync_dir(ino).await };
        self.serve(Operation::FsyncDir, request, answer, work, |_, answer, ()| answer.ok());
    }
}

impl<B: Backend> Shared<B> {
    /// Entries whose attributes came without permission to keep them get them now, all at once: this reply cannot
    /// tell an entry without (fuser's has one number for entry and inode). Those that vanished are left out.
    ///
    /// What has to be fetched may be with another mount, whose own listing may wait for what this one has: so nothing is held while
    /// anything is waited for, and the kernel keeps none of it.
    async fn with_attributes(&self, mut items: Vec<DirItem>) -> Result<Vec<DirItem>, FsError> {
        if items.iter().all(|item| item.attr.is_some() || is_dots(&item.name)) {
            return Ok(items);
        }
        for item in &mut items {
            item.attr = item.attr.take().map(|cached| Cached::once(cached.value));
        }
        let bare = items.iter_mut().filter(|item| item.attr.is_none() && !is_dots(&item.name));
        let asked = bare.map(async |item| {
            match self.backend.getattr(item.ino).await {
                Ok(cached) => item.attr = Some(Cached::once(cached.value)),
                Err(FsError::NotFound | FsError::Stale) => item.name.clear(),
                Err(error) => return Err(error),
            }
            Ok(())
        });
        try_join_all(asked).await?;
        items.retain(|item| !item.name.is_empty());
        Ok(items)
    }
}

/// How the kernel treats an open directory.
fn keep(listing: KernelListing) -> FopenFlags {
    match listing {
        KernelListing::Unused => FopenFlags::empty(),
        KernelListing::Fill(_) => FopenFlags::FOPEN_CACHE_DIR,
        KernelListing::Keep(_) => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
    }
}

fn is_dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_to_what_the_kernel_has_room_for() {
        let page = PageSize::default();
        // Room for 100 entries of a long directory.
        for _ in 0..6 {
            let asked = page.entries();
            page.learn(asked, asked.min(100), asked > 100);
        }
        assert_eq!(page.entries(), 101);
        // The end of a directory teaches nothing.
        page.learn(101, 3, false);
        assert_eq!(page.entries(), 101);
        page.learn(101, 0, true);
        assert_eq!(page.entries(), 1);
    }
}

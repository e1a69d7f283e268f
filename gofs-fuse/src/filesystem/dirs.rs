//! Requests about open directories.
//!
//! The kernel keeps no listing (FOPEN_CACHE_DIR): it has no time to live for one, so a mount that is
//! cut off from its servers would show an old listing for ever. The client answers from memory.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use fuser::{FopenFlags, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyOpen, Request};
use gofs_client::{Cached, DirItem};
use gofs_tree::FsError;

use super::{GENERATION, Gofs, Shared};
use crate::convert::{bare_attr, file_type};

/// Bytes that an entry with a one-letter name takes in a reply of READDIR and READDIRPLUS. fuser does
/// not tell the size of the buffer, so entries are fetched in pages of what 4 KiB of it hold, as kernels
/// before 6.16 ask for.
const DIRENT_BYTES: usize = 32;
const DIRENT_PLUS_BYTES: usize = 160;
const PAGE_BYTES: usize = 4096;

impl Gofs {
    pub(super) fn do_opendir(&self, request: &Request, ino: INodeNo, answer: ReplyOpen) {
        let shared = self.shared.clone();
        let ino = shared.map.ino(ino);
        let work = async move { shared.client.opendir(ino).await };
        self.serve(request, answer, work, |shared, answer, dir| {
            let handle = shared.new_handle();
            shared.dirs.insert(handle, dir);
            answer.opened(fuser::FileHandle(handle), FopenFlags::empty());
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
            shared.client.readdir(&dir, offset, PAGE_BYTES / DIRENT_BYTES, false).await
        };
        self.serve(request, answer, work, |shared, mut answer, items| {
            for item in &items {
                let name = OsStr::from_bytes(&item.name);
                if answer.add(shared.map.node(item.ino), item.next, file_type(item.file_type), name) {
                    break;
                }
            }
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
            let mut index = offset;
            loop {
                let items = shared.client.readdir(&dir, index, PAGE_BYTES / DIRENT_PLUS_BYTES, true).await?;
                let Some(last) = items.last() else { return Ok(items) };
                index = last.next;
                let items = shared.with_attributes(items).await?;
                // Nothing left of a page is not the end of the directory.
                if !items.is_empty() {
                    return Ok(items);
                }
            }
        };
        self.serve(request, answer, work, |shared, mut answer, items| {
            for item in items {
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
            }
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
        let work = async move { shared.client.fsync_dir(ino).await };
        self.serve(request, answer, work, |_, answer, ()| answer.ok());
    }
}

impl Shared {
    /// Entries whose attributes came without permission to keep them get them one by one: this reply cannot
    /// tell an entry without (fuser's has one number for entry and inode). Those that vanished are left out.
    async fn with_attributes(&self, mut items: Vec<DirItem>) -> Result<Vec<DirItem>, FsError> {
        for item in &mut items {
            let dots = item.name == b"." || item.name == b"..";
            if dots || item.attr.is_some() {
                continue;
            }
            match self.client.getattr(item.ino).await {
                // Not to be kept: by now the name may belong to another inode.
                Ok(cached) => item.attr = Some(Cached { ttl: Duration::ZERO, ..cached }),
                Err(FsError::NotFound | FsError::Stale) => item.name.clear(),
                Err(error) => return Err(error),
            }
        }
        items.retain(|item| !item.name.is_empty());
        Ok(items)
    }
}

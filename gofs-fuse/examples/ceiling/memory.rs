//! A file system in memory behind the kernel glue: what is left of gofs without servers, leases and logs.
//!
//! The tree is `gofs_tree`'s store in memory, changed by `gofs_tree::apply`; a file's bytes are a `Vec`. Nothing is
//! durable, every byte of a file is data, and `flock` and `fcntl` locks are not supported.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use gofs_client::{
    Cached, ClientStats, DirItem, Fallocate, FileLock, KernelCache, KernelListing, OpenFlags, StatFs, Whence,
};
use gofs_fuse::{Backend, BackendFile, KernelNotifier};
use gofs_tree::{
    Attr, AttrChange, ChunkSize, DirEntry, Edit, EditOp, FileType, FsError, Ino, Inode, MemoryStore, Mode,
    Name, NamespaceLimits, NewNode, ROOT_INO, RenameFlags, SessionId, Store, Timestamp, XattrName,
    XattrSetMode, apply,
};
use parking_lot::Mutex;

/// How long the kernel may keep what it is told: what a gofs session that was just renewed allows.
const TTL: Duration = Duration::from_secs(20);
/// What `statfs` shows.
const SPACE_BYTES: u64 = 1 << 40;
/// See [`SPACE_BYTES`].
const SPACE_INODES: u64 = 1 << 32;
/// Largest file: what a machine's memory could hold.
const FILE_BYTES_MAX: u64 = 1 << 36;
/// Who has files open, in the tree's words.
const HOLDER: SessionId = SessionId(1);

/// A namespace in memory.
pub struct Memory {
    shared: Arc<Mutex<State>>,
    kernel: Arc<KernelNotifier>,
}

struct State {
    store: MemoryStore,
    contents: HashMap<Ino, Vec<u8>>,
    opens: HashMap<Ino, u32>,
    syncs: u64,
    /// The number that was used last.
    next: u64,
}

/// An open file or directory, counted until dropped.
pub struct Open {
    ino: Ino,
    flags: OpenFlags,
    shared: Weak<Mutex<State>>,
}

/// See [`Open`]. The listing is made when its first entry is asked for.
pub struct OpenDir {
    open: Open,
    listing: Mutex<Vec<(Vec<u8>, DirEntry)>>,
}

/// See [`Open`].
#[derive(Clone)]
pub struct File(Arc<Open>);

impl BackendFile for File {
    fn ino(&self) -> Ino {
        self.0.ino
    }

    fn flags(&self) -> OpenFlags {
        self.0.flags
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.lock().close(self.ino);
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(since.as_secs() as i64, since.subsec_nanos())
}

/// Where so many bytes end, if a file may be as large.
fn end_of(offset: u64, len: u64) -> Result<u64, FsError> {
    offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX).ok_or(FsError::FileTooLarge)
}

impl State {
    fn apply(&mut self, op: EditOp) -> Result<(), FsError> {
        let outcome = apply(&mut self.store, &Edit { time: now(), op })?;
        if let Some(removed) = outcome.removed
            && self.store.inode(removed)?.is_none()
        {
            self.contents.remove(&removed);
        }
        Ok(())
    }

    fn next_ino(&mut self) -> Ino {
        self.next += 1;
        Ino(self.next)
    }

    fn inode(&self, ino: Ino) -> Result<Inode, FsError> {
        self.store.inode(ino)?.ok_or(FsError::Stale)
    }

    fn holders(&self, parent: Ino, name: &Name) -> Result<Vec<SessionId>, FsError> {
        let entry = self.store.entry(parent, name)?;
        let open = entry.is_some_and(|entry| self.opens.contains_key(&entry.ino));
        Ok(if open { vec![HOLDER] } else { Vec::new() })
    }

    fn close(&mut self, ino: Ino) {
        let Some(count) = self.opens.get_mut(&ino) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.opens.remove(&ino);
        if matches!(self.store.orphan(ino), Ok(Some(_))) {
            let released = self.apply(EditOp::ReleaseOrphan { ino, session: HOLDER });
            debug_assert!(released.is_ok(), "{released:?}");
        }
    }

    /// The size follows the bytes.
    fn write(&mut self, ino: Ino, offset: Option<u64>, data: &[u8]) -> Result<u64, FsError> {
        let at = match offset {
            Some(offset) => offset,
            None => self.inode(ino)?.size,
        };
        let end = end_of(at, data.len() as u64)?;
        let mtime = now();
        self.apply(EditOp::Extend { ino, size: end, mtime, blocks_4k: Vec::new(), clear_inline: false })?;
        let content = self.contents.entry(ino).or_default();
        if content.len() < end as usize {
            content.resize(end as usize, 0);
        }
        content[at as usize..end as usize].copy_from_slice(data);
        Ok(at)
    }

    /// Bytes of the content; what is not there up to the size reads as zeros.
    fn read(&self, ino: Ino, offset: u64, len: u64) -> Result<Bytes, FsError> {
        let size = self.inode(ino)?.size;
        let (start, end) = (offset.min(size) as usize, offset.saturating_add(len).min(size) as usize);
        let content = self.contents.get(&ino).map_or(&[][..], Vec::as_slice);
        let mut bytes = content[start.min(content.len())..end.min(content.len())].to_vec();
        bytes.resize(end - start, 0);
        Ok(bytes.into())
    }

    fn setattr(&mut self, ino: Ino, change: AttrChange) -> Result<(), FsError> {
        let size = change.size.map(|size| end_of(size, 0)).transpose()?;
        self.apply(EditOp::SetAttr { ino, change })?;
        if let (Some(size), Some(content)) = (size, self.contents.get_mut(&ino)) {
            content.truncate(size as usize);
        }
        Ok(())
    }
}

impl Memory {
    /// An empty namespace; `kernel` is asked whether names may be kept.
    pub fn new(kernel: Arc<KernelNotifier>) -> Memory {
        let limits = NamespaceLimits {
            quota_bytes: 0,
            quota_inodes: 0,
            inline_max: 0,
            chunk_size: ChunkSize::DEFAULT,
        };
        let store = MemoryStore::with_root(limits, Mode::new(0o755), 0, 0, now());
        let (contents, opens) = Default::default();
        let state = State { store, contents, opens, syncs: 0, next: ROOT_INO.0 };
        Memory { shared: Arc::new(Mutex::new(state)), kernel }
    }

    /// How often a file was to be made durable.
    #[allow(dead_code, reason = "only the glue's tests ask")]
    pub fn syncs(&self) -> u64 {
        self.shared.lock().syncs
    }

    fn cached<T>(&self, value: T) -> Cached<T> {
        let entry_ttl = if self.kernel.can_cache_entries() { TTL } else { Duration::ZERO };
        Cached { ttl: TTL, entry_ttl, ..Cached::once(value) }
    }

    fn attr(&self, state: &State, ino: Ino) -> Result<Cached<Attr>, FsError> {
        Ok(self.cached(state.inode(ino)?.attr(ino)))
    }

    fn opened(&self, state: &mut State, ino: Ino, flags: OpenFlags) -> Open {
        *state.opens.entry(ino).or_default() += 1;
        Open { ino, flags, shared: Arc::downgrade(&self.shared) }
    }
}

impl Backend for Memory {
    type File = File;
    type Dir = Arc<OpenDir>;

    fn root(&self) -> Ino {
        ROOT_INO
    }

    fn stats(&self) -> ClientStats {
        ClientStats { opens: self.shared.lock().opens.len(), ..ClientStats::default() }
    }

    fn kernel_listing(&self, _dir: &Arc<OpenDir>) -> KernelListing {
        KernelListing::Unused
    }

    async fn lookup(&self, parent: Ino, name: &Name) -> Result<Cached<Option<Attr>>, FsError> {
        let state = self.shared.lock();
        if !state.inode(parent)?.is_dir() {
            return Err(FsError::NotDirectory);
        }
        match state.store.entry(parent, name)? {
            Some(entry) => Ok(self.attr(&state, entry.ino)?.map(Some)),
            None => Ok(self.cached(None)),
        }
    }

    async fn getattr(&self, ino: Ino) -> Result<Cached<Attr>, FsError> {
        self.attr(&self.shared.lock(), ino)
    }

    async fn setattr(&self, ino: Ino, change: AttrChange) -> Result<Cached<Attr>, FsError> {
        let mut state = self.shared.lock();
        state.setattr(ino, change)?;
        self.attr(&state, ino)
    }

    async fn readlink(&self, ino: Ino) -> Result<Cached<Bytes>, FsError> {
        let inode = self.shared.lock().inode(ino)?;
        if inode.file_type == FileType::Symlink {
            Ok(self.cached(inode.inline))
        } else {
            Err(FsError::Invalid)
        }
    }

    async fn statfs(&self) -> Result<StatFs, FsError> {
        let usage = self.shared.lock().store.usage()?;
        Ok(StatFs {
            total_bytes: SPACE_BYTES,
            free_bytes: SPACE_BYTES - usage.bytes.min(SPACE_BYTES),
            total_inodes: SPACE_INODES,
            free_inodes: SPACE_INODES - usage.inodes.min(SPACE_INODES),
        })
    }

    async fn create(
        &self,
        parent: Ino,
        name: &Name,
        node: NewNode,
        mode: Mode,
        umask: Mode,
        uid: u32,
        gid: u32,
    ) -> Result<Cached<Attr>, FsError> {
        let mut state = self.shared.lock();
        let (name, ino) = (name.clone(), state.next_ino());
        state.apply(EditOp::Create { parent, name, ino, node, mode, umask, uid, gid })?;
        self.attr(&state, ino)
    }

    async fn create_open(
        &self,
        parent: Ino,
        name: &Name,
        mode: Mode,
        umask: Mode,
        uid: u32,
        gid: u32,
        flags: OpenFlags,
    ) -> Result<(Cached<Attr>, File), FsError> {
        let mut state = self.shared.lock();
        let (name, node, ino) = (name.clone(), NewNode::File, state.next_ino());
        state.apply(EditOp::Create { parent, name, ino, node, mode, umask, uid, gid })?;
        let file = File(Arc::new(self.opened(&mut state, ino, flags)));
        Ok((self.attr(&state, ino)?, file))
    }

    async fn link(&self, ino: Ino, parent: Ino, name: &Name) -> Result<Cached<Attr>, FsError> {
        let mut state = self.shared.lock();
        state.apply(EditOp::Link { ino, parent, name: name.clone() })?;
        self.attr(&state, ino)
    }

    async fn unlink(&self, parent: Ino, name: &Name) -> Result<(), FsError> {
        let mut state = self.shared.lock();
        let holders = state.holders(parent, name)?;
        state.apply(EditOp::Unlink { parent, name: name.clone(), holders })
    }

    async fn rmdir(&self, parent: Ino, name: &Name) -> Result<(), FsError> {
        let mut state = self.shared.lock();
        let holders = state.holders(parent, name)?;
        state.apply(EditOp::Rmdir { parent, name: name.clone(), holders })
    }

    async fn rename(
        &self,
        parent: Ino,
        name: &Name,
        new_parent: Ino,
        new_name: &Name,
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        let mut state = self.shared.lock();
        let holders = state.holders(new_parent, new_name)?;
        let (name, new_name) = (name.clone(), new_name.clone());
        state.apply(EditOp::Rename { parent, name, new_parent, new_name, flags, holders })
    }

    async fn open(&self, ino: Ino, flags: OpenFlags) -> Result<File, FsError> {
        let mut state = self.shared.lock();
        state.inode(ino)?;
        if flags.truncate {
            let change = AttrChange { size: Some(0), ..AttrChange::default() };
            state.setattr(ino, change)?;
        }
        Ok(File(Arc::new(self.opened(&mut state, ino, flags))))
    }

    async fn read(&self, file: &File, offset: u64, len: u32) -> Result<Cached<Vec<Bytes>>, FsError> {
        let bytes = self.shared.lock().read(file.ino(), offset, len.into())?;
        Ok(self.cached(vec![bytes]))
    }

    async fn write(&self, file: &File, offset: u64, append: bool, data: Bytes) -> Result<u32, FsError> {
        self.shared.lock().write(file.ino(), (!append).then_some(offset), &data)?;
        Ok(data.len() as u32)
    }

    async fn write_page(&self, file: &File, offset: u64, data: Bytes) -> Result<u32, FsError> {
        self.write(file, offset, false, data).await
    }

    async fn flush(&self, _: &File) -> Result<(), FsError> {
        Ok(())
    }

    async fn release(&self, file: File) {
        drop(file);
    }

    async fn fsync(&self, _: &File, _: bool) -> Result<(), FsError> {
        self.shared.lock().syncs += 1;
        Ok(())
    }

    async fn fsync_dir(&self, _: Ino) -> Result<(), FsError> {
        Ok(())
    }

    async fn fallocate(&self, file: &File, what: Fallocate, offset: u64, length: u64) -> Result<(), FsError> {
        match what {
            Fallocate::Allocate { keep_size: false } => {
                let end = end_of(offset, length)?;
                self.shared.lock().apply(EditOp::Allocate { ino: file.ino(), end })
            }
            Fallocate::Allocate { keep_size: true } => Ok(()),
            Fallocate::Punch | Fallocate::Zero { .. } => Err(FsError::NotSupported),
        }
    }

    async fn seek(&self, file: &File, offset: u64, whence: Whence) -> Result<u64, FsError> {
        let size = self.shared.lock().inode(file.ino())?.size;
        match whence {
            _ if offset >= size => Err(FsError::NoData),
            Whence::Data => Ok(offset),
            Whence::Hole => Ok(size),
        }
    }

    async fn copy_file_range(
        &self,
        from: &File,
        offset: u64,
        to: &File,
        to_offset: u64,
        length: u64,
    ) -> Result<u64, FsError> {
        let mut state = self.shared.lock();
        let bytes = state.read(from.ino(), offset, length)?;
        state.write(to.ino(), Some(to_offset), &bytes)?;
        Ok(bytes.len() as u64)
    }

    async fn opendir(&self, ino: Ino) -> Result<Arc<OpenDir>, FsError> {
        let mut state = self.shared.lock();
        if !state.inode(ino)?.is_dir() {
            return Err(FsError::NotDirectory);
        }
        let open = self.opened(&mut state, ino, OpenFlags::default());
        Ok(Arc::new(OpenDir { open, listing: Mutex::default() }))
    }

    async fn readdir(
        &self,
        dir: &Arc<OpenDir>,
        index: u64,
        max: usize,
        plus: bool,
    ) -> Result<Vec<DirItem>, FsError> {
        let state = self.shared.lock();
        let mut listing = dir.listing.lock();
        if index == 0 {
            let ino = dir.open.ino;
            let directory = |ino| DirEntry { ino, file_type: FileType::Directory };
            let parent = state.inode(ino)?.parent;
            *listing = vec![(b".".to_vec(), directory(ino)), (b"..".to_vec(), directory(parent))];
            listing.extend(state.store.entries(ino).map(|(name, entry)| (name.as_bytes().to_vec(), entry)));
        }
        let entries = listing.iter().enumerate().skip(index as usize).take(max);
        let item = |(at, (name, entry)): (usize, &(Vec<u8>, DirEntry))| DirItem {
            next: at as u64 + 1,
            name: name.clone(),
            ino: entry.ino,
            file_type: entry.file_type,
            attr: (plus && at >= 2).then(|| self.attr(&state, entry.ino).ok()).flatten(),
        };
        Ok(entries.map(item).collect())
    }

    async fn getxattr(&self, ino: Ino, name: &XattrName) -> Result<Cached<Option<Bytes>>, FsError> {
        Ok(self.cached(self.shared.lock().store.xattr(ino, name)?))
    }

    async fn listxattr(&self, ino: Ino) -> Result<Cached<Vec<XattrName>>, FsError> {
        let all = self.shared.lock().store.xattrs(ino)?;
        Ok(self.cached(all.into_iter().map(|(name, _)| name).collect()))
    }

    async fn setxattr(
        &self,
        ino: Ino,
        name: &XattrName,
        value: Bytes,
        mode: XattrSetMode,
    ) -> Result<(), FsError> {
        let op = EditOp::SetXattr { ino, name: name.clone(), value, mode };
        self.shared.lock().apply(op)
    }

    async fn removexattr(&self, ino: Ino, name: &XattrName) -> Result<(), FsError> {
        self.shared.lock().apply(EditOp::RemoveXattr { ino, name: name.clone() })
    }

    async fn get_lock(&self, _: Ino, _: FileLock) -> Result<Option<FileLock>, FsError> {
        Err(FsError::NotSupported)
    }

    async fn set_lock(&self, _: Ino, _: FileLock, _: bool) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }

    async fn unlock(&self, _: Ino, _: u64, _: u64, _: u64) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }

    async fn release_locks(&self, _: Ino, _: u64) -> Result<(), FsError> {
        Ok(())
    }
}

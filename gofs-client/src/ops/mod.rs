//! The operations. Their signatures are what gateways build on.

use bytes::Bytes;
use gofs_tree::{Attr, AttrChange, FsError, Ino, Mode, Name, NewNode, RenameFlags, XattrName, XattrSetMode};

use crate::*;

#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) ino: Ino,
    pub(crate) flags: OpenFlags,
}

#[derive(Debug)]
pub(crate) struct OpenDir {
    pub(crate) ino: Ino,
}

type R<T> = Result<T, FsError>;

#[allow(unused_variables, missing_docs, reason = "bodies follow")]
impl Client {
    /// `None` = the name does not exist.
    pub async fn lookup(&self, parent: Ino, name: &Name) -> R<Cached<Option<Attr>>> {
        Err(FsError::NotSupported)
    }
    /// For `..` and export of handles: the directory above a directory.
    pub async fn getattr(&self, ino: Ino) -> R<Cached<Attr>> {
        Err(FsError::NotSupported)
    }
    pub async fn setattr(&self, ino: Ino, change: AttrChange) -> R<Cached<Attr>> {
        Err(FsError::NotSupported)
    }
    pub async fn readlink(&self, ino: Ino) -> R<Cached<Bytes>> {
        Err(FsError::NotSupported)
    }
    pub async fn create(
        &self,
        parent: Ino,
        name: &Name,
        node: NewNode,
        mode: Mode,
        umask: Mode,
        uid: u32,
        gid: u32,
    ) -> R<Cached<Attr>> {
        Err(FsError::NotSupported)
    }
    pub async fn create_open(
        &self,
        parent: Ino,
        name: &Name,
        mode: Mode,
        umask: Mode,
        uid: u32,
        gid: u32,
        flags: OpenFlags,
    ) -> R<(Cached<Attr>, FileHandle)> {
        Err(FsError::NotSupported)
    }
    pub async fn link(&self, ino: Ino, parent: Ino, name: &Name) -> R<Cached<Attr>> {
        Err(FsError::NotSupported)
    }
    pub async fn unlink(&self, parent: Ino, name: &Name) -> R<()> {
        Err(FsError::NotSupported)
    }
    pub async fn rmdir(&self, parent: Ino, name: &Name) -> R<()> {
        Err(FsError::NotSupported)
    }
    pub async fn rename(
        &self,
        parent: Ino,
        name: &Name,
        new_parent: Ino,
        new_name: &Name,
        flags: RenameFlags,
    ) -> R<()> {
        Err(FsError::NotSupported)
    }
    pub async fn opendir(&self, ino: Ino) -> R<DirHandle> {
        Err(FsError::NotSupported)
    }
    /// At most `max` entries from `index` on; empty at the end. With `plus` their attributes where they may be told.
    pub async fn readdir(&self, dir: &DirHandle, index: u64, max: usize, plus: bool) -> R<Vec<DirItem>> {
        Err(FsError::NotSupported)
    }
    /// `None` = no such attribute.
    pub async fn getxattr(&self, ino: Ino, name: &XattrName) -> R<Cached<Option<Bytes>>> {
        Err(FsError::NotSupported)
    }
    pub async fn listxattr(&self, ino: Ino) -> R<Cached<Vec<XattrName>>> {
        Err(FsError::NotSupported)
    }
    pub async fn setxattr(&self, ino: Ino, name: &XattrName, value: Bytes, mode: XattrSetMode) -> R<()> {
        Err(FsError::NotSupported)
    }
    pub async fn removexattr(&self, ino: Ino, name: &XattrName) -> R<()> {
        Err(FsError::NotSupported)
    }
    pub async fn open(&self, ino: Ino, flags: OpenFlags) -> R<FileHandle> {
        Err(FsError::NotSupported)
    }
    /// Short only at the end of the file.
    pub async fn read(&self, file: &FileHandle, offset: u64, len: u32) -> R<Cached<Vec<Bytes>>> {
        Err(FsError::NotSupported)
    }
    /// Takes all of `data`; the offset is chosen here where the file was opened for append.
    pub async fn write(&self, file: &FileHandle, offset: u64, data: Bytes) -> R<u32> {
        Err(FsError::NotSupported)
    }
    /// close(2): reports a failed write-back once; does not wait for servers.
    pub async fn flush(&self, file: &FileHandle) -> R<()> {
        Err(FsError::NotSupported)
    }
    pub async fn fsync(&self, file: &FileHandle, datasync: bool) -> R<()> {
        Err(FsError::NotSupported)
    }
    pub async fn fsync_dir(&self, ino: Ino) -> R<()> {
        Err(FsError::NotSupported)
    }
    pub async fn release(&self, file: FileHandle) {}
    pub async fn fallocate(&self, file: &FileHandle, what: Fallocate, offset: u64, len: u64) -> R<()> {
        Err(FsError::NotSupported)
    }
    pub async fn seek(&self, file: &FileHandle, offset: u64, whence: Whence) -> R<u64> {
        Err(FsError::NotSupported)
    }
    pub async fn copy_file_range(
        &self,
        from: &FileHandle,
        offset: u64,
        to: &FileHandle,
        to_offset: u64,
        len: u64,
    ) -> R<u64> {
        Err(FsError::NotSupported)
    }
    pub async fn statfs(&self) -> R<StatFs> {
        Err(FsError::NotSupported)
    }
    /// A lock that would be in the way.
    pub async fn get_lock(&self, ino: Ino, lock: FileLock) -> R<Option<FileLock>> {
        Err(FsError::NotSupported)
    }
    /// WouldBlock where another holds it and `wait` is not set. Dropping the future ends the wait.
    pub async fn set_lock(&self, ino: Ino, lock: FileLock, wait: bool) -> R<()> {
        Err(FsError::NotSupported)
    }
    pub async fn unlock(&self, ino: Ino, owner: u64, start: u64, end: u64) -> R<()> {
        Err(FsError::NotSupported)
    }
    /// At close: every lock of that owner on that inode goes. Free of charge where it holds none.
    pub async fn release_locks(&self, ino: Ino, owner: u64) -> R<()> {
        Err(FsError::NotSupported)
    }
}

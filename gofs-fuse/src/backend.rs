//! What the kernel glue serves: the operations of a file system.
//!
//! [`gofs_client::Client`] is the one in production. Another one, in memory, shows what the glue and the kernel cost
//! by themselves (`examples/ceiling`) and serves the glue's own tests. Dispatch is static: production pays nothing for it.

use bytes::Bytes;
use gofs_client::{
    Cached, Client, ClientStats, DirHandle, DirItem, Fallocate, FileHandle, FileLock, KernelListing,
    OpenFlags, StatFs, Whence,
};
use gofs_tree::{Attr, AttrChange, FsError, Ino, Mode, Name, NewNode, RenameFlags, XattrName, XattrSetMode};

/// One open of a file; clones are the same open, and dropping the last one closes it.
pub trait BackendFile: Clone + Send + Sync + 'static {
    /// The file.
    fn ino(&self) -> Ino;
    /// How it was opened.
    fn flags(&self) -> OpenFlags;
}

impl BackendFile for FileHandle {
    fn ino(&self) -> Ino {
        FileHandle::ino(self)
    }

    fn flags(&self) -> OpenFlags {
        FileHandle::flags(self)
    }
}

/// Declares the trait and forwards it to the client's methods of the same names.
macro_rules! operations {
    ($($(#[$doc:meta])* fn $name:ident(&self $(, $argument:ident: $kind:ty)* $(,)?) -> $result:ty;)*) => {
        /// The operations of a mounted file system, as [`Client`] has and documents them.
        ///
        /// What can be answered from memory completes at the first poll, which happens on the session thread that
        /// read the kernel's request. Futures are polled within the mount's tokio runtime.
        pub trait Backend: Send + Sync + 'static {
            /// An open file.
            type File: BackendFile;
            /// An open directory.
            type Dir: Clone + Send + Sync + 'static;

            /// The directory that is mounted.
            fn root(&self) -> Ino;
            /// What goes on behind the operations.
            fn stats(&self) -> ClientStats;
            /// What the kernel may do with its copy of a directory's listing for this open.
            fn kernel_listing(&self, dir: &Self::Dir) -> KernelListing;

            $(
                $(#[$doc])*
                #[allow(clippy::too_many_arguments, reason = "they are the kernel's")]
                fn $name(&self $(, $argument: $kind)*) -> impl Future<Output = $result> + Send;
            )*
        }

        impl Backend for Client {
            type File = FileHandle;
            type Dir = DirHandle;

            fn root(&self) -> Ino {
                Client::root(self)
            }

            fn stats(&self) -> ClientStats {
                Client::stats(self)
            }

            fn kernel_listing(&self, dir: &DirHandle) -> KernelListing {
                dir.kernel_listing()
            }

            $(
                fn $name(&self $(, $argument: $kind)*) -> impl Future<Output = $result> + Send {
                    Client::$name(self $(, $argument)*)
                }
            )*
        }
    };
}

operations! {
    /// The inode of a name, or that there is none.
    fn lookup(&self, parent: Ino, name: &Name) -> Result<Cached<Option<Attr>>, FsError>;
    /// Attributes.
    fn getattr(&self, ino: Ino) -> Result<Cached<Attr>, FsError>;
    /// chmod, chown, truncate, utimens.
    fn setattr(&self, ino: Ino, change: AttrChange) -> Result<Cached<Attr>, FsError>;
    /// The target of a symlink.
    fn readlink(&self, ino: Ino) -> Result<Cached<Bytes>, FsError>;
    /// Space.
    fn statfs(&self) -> Result<StatFs, FsError>;
    /// mkdir, mknod, symlink.
    fn create(
        &self, parent: Ino, name: &Name, node: NewNode, mode: Mode, umask: Mode, uid: u32, gid: u32,
    ) -> Result<Cached<Attr>, FsError>;
    /// creat: a new file, open.
    fn create_open(
        &self, parent: Ino, name: &Name, mode: Mode, umask: Mode, uid: u32, gid: u32, flags: OpenFlags,
    ) -> Result<(Cached<Attr>, Self::File), FsError>;
    /// A further name.
    fn link(&self, ino: Ino, parent: Ino, name: &Name) -> Result<Cached<Attr>, FsError>;
    /// Removes a name that is not a directory's.
    fn unlink(&self, parent: Ino, name: &Name) -> Result<(), FsError>;
    /// Removes an empty directory.
    fn rmdir(&self, parent: Ino, name: &Name) -> Result<(), FsError>;
    /// rename, renameat2.
    fn rename(
        &self, parent: Ino, name: &Name, new_parent: Ino, new_name: &Name, flags: RenameFlags,
    ) -> Result<(), FsError>;
    /// Opens a file.
    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Self::File, FsError>;
    /// Bytes of a file, fewer than asked for only at its end.
    fn read(&self, file: &Self::File, offset: u64, len: u32) -> Result<Cached<Vec<Bytes>>, FsError>;
    /// Takes bytes, at the end of the file if `append`.
    fn write(&self, file: &Self::File, offset: u64, append: bool, data: Bytes) -> Result<u32, FsError>;
    /// Takes a page of a memory map.
    fn write_page(&self, file: &Self::File, offset: u64, data: Bytes) -> Result<u32, FsError>;
    /// A program closes: errors of earlier writes.
    fn flush(&self, file: &Self::File) -> Result<(), FsError>;
    /// The last close.
    fn release(&self, file: Self::File) -> ();
    /// Makes a file durable.
    fn fsync(&self, file: &Self::File, data_only: bool) -> Result<(), FsError>;
    /// Makes a directory durable.
    fn fsync_dir(&self, ino: Ino) -> Result<(), FsError>;
    /// fallocate(2).
    fn fallocate(&self, file: &Self::File, what: Fallocate, offset: u64, length: u64) -> Result<(), FsError>;
    /// SEEK_DATA and SEEK_HOLE.
    fn seek(&self, file: &Self::File, offset: u64, whence: Whence) -> Result<u64, FsError>;
    /// Copies bytes between files; how many.
    fn copy_file_range(
        &self, from: &Self::File, offset: u64, to: &Self::File, to_offset: u64, length: u64,
    ) -> Result<u64, FsError>;
    /// Opens a directory.
    fn opendir(&self, ino: Ino) -> Result<Self::Dir, FsError>;
    /// At most `max` entries from `index` on, with attributes if `plus`.
    fn readdir(&self, dir: &Self::Dir, index: u64, max: usize, plus: bool) -> Result<Vec<DirItem>, FsError>;
    /// An extended attribute.
    fn getxattr(&self, ino: Ino, name: &XattrName) -> Result<Cached<Option<Bytes>>, FsError>;
    /// The names of all.
    fn listxattr(&self, ino: Ino) -> Result<Cached<Vec<XattrName>>, FsError>;
    /// Sets one.
    fn setxattr(&self, ino: Ino, name: &XattrName, value: Bytes, mode: XattrSetMode) -> Result<(), FsError>;
    /// Removes one.
    fn removexattr(&self, ino: Ino, name: &XattrName) -> Result<(), FsError>;
    /// A lock that stands in the way.
    fn get_lock(&self, ino: Ino, lock: FileLock) -> Result<Option<FileLock>, FsError>;
    /// Takes a lock.
    fn set_lock(&self, ino: Ino, lock: FileLock, wait: bool) -> Result<(), FsError>;
    /// Gives bytes of locks up.
    fn unlock(&self, ino: Ino, owner: u64, start: u64, end: u64) -> Result<(), FsError>;
    /// Gives all locks of an owner up.
    fn release_locks(&self, ino: Ino, owner: u64) -> Result<(), FsError>;
}

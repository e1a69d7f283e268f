//! Requests about open files.
//!
//! The page cache is kept across opens: recalls invalidate it. Around it go O_DIRECT; handles for append, because only the
//! daemon knows where the file ends; and handles that only write to what was there before: the kernel changes a cached page,
//! for everybody here to see, before it asks the daemon, and another mount's write may come between. Who reads too,
//! or made the file, is better off with the cache.

use std::ffi::OsStr;

use bytes::Bytes;
use fuser::{
    Errno, FopenFlags, INodeNo, LockOwner, ReplyCreate, ReplyData, ReplyEmpty, ReplyLseek, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};
use gofs_client::{Fallocate, OpenFlags, Whence};
use gofs_tree::{FsError, Mode};

use super::{GENERATION, Gofs, Shared, keeps_privileges, name};
use crate::backend::{Backend, BackendFile};
use crate::stats::Operation;

impl<B: Backend> Gofs<B> {
    /// How the backend and the kernel open what a program opens, or makes, with `flags`.
    fn opened_as(&self, flags: i32, new: bool) -> (OpenFlags, FopenFlags) {
        let mut open = open_flags(flags);
        let kept = keep(open, !new && self.shared.kernel.drops_overwritten_pages());
        open.direct |= kept.contains(FopenFlags::FOPEN_DIRECT_IO);
        (open, kept)
    }

    pub(super) fn do_open(&self, request: &Request, ino: INodeNo, flags: i32, answer: ReplyOpen) {
        let shared = self.shared.clone();
        let ino = shared.map.ino(ino);
        let privileged = keeps_privileges(request);
        let (flags, kept) = self.opened_as(flags, false);
        let work = async move {
            if flags.truncate && !privileged {
                shared.kill_privileges(ino).await?;
            }
            match shared.backend.open(ino, flags).await {
                // The kernel knew the name, and it names another file by now. Told so it looks the path up once
                // more, and what is looked up can be opened.
                Err(FsError::NotFound) => Err(FsError::Stale),
                result => result,
            }
        };
        self.serve_or_else(
            Operation::Open,
            request,
            answer,
            work,
            move |shared, answer, file| answer.opened(shared.keep_file(file), kept),
            Shared::close,
        );
    }

    #[allow(clippy::too_many_arguments, reason = "they are the request's")]
    pub(super) fn do_create_open(
        &self,
        request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        answer: ReplyCreate,
    ) {
        let shared = self.shared.clone();
        let (parent, entry) = (shared.map.ino(parent), name(entry));
        let (uid, gid) = (request.uid(), request.gid());
        let (open, kept) = self.opened_as(flags, true);
        let work = async move {
            let (mode, umask) = (Mode::new(mode), Mode::new(umask));
            match shared.backend.create_open(parent, &entry?, mode, umask, uid, gid, open).await {
                // Somebody else made it since the kernel looked. Opening it here would skip the check of
                // permissions; ESTALE makes the kernel look again and open what is there.
                Err(FsError::Exists) if flags & libc::O_EXCL == 0 => Err(FsError::Stale),
                result => result,
            }
        };
        self.serve_or_else(
            Operation::Create,
            request,
            answer,
            work,
            move |shared, answer, (cached, file)| {
                let attr = shared.map.attr(&cached.value);
                // One time to live for both in this reply.
                let ttl = cached.ttl.min(cached.entry_ttl);
                shared.lookups().sent(attr.ino);
                answer.created(&ttl, &attr, GENERATION, shared.keep_file(file), kept);
            },
            move |shared, (_, file)| {
                shared.close(file);
                shared.changed_unheard([parent]);
            },
        );
    }

    pub(super) fn do_read(
        &self,
        request: &Request,
        handle: fuser::FileHandle,
        offset: u64,
        size: u32,
        answer: ReplyData,
    ) {
        let shared = self.shared.clone();
        let work = async move {
            let file = shared.file(handle)?;
            let read = shared.backend.read(&file, offset, size).await?;
            shared.missed(handle, &file, offset, size);
            Ok(read)
        };
        self.serve(Operation::Read, request, answer, work, |_, answer, read| match read.value.as_slice() {
            [] => answer.data(&[]),
            [one] => answer.data(one),
            // The reply takes one slice.
            several => answer.data(&several.concat()),
        });
    }

    #[allow(clippy::too_many_arguments, reason = "they are the request's")]
    pub(super) fn do_write(
        &self,
        request: &Request,
        handle: fuser::FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        open_flags: i32,
        answer: ReplyWrite,
    ) {
        let shared = self.shared.clone();
        let data = Bytes::copy_from_slice(data);
        let work = async move {
            let file = shared.file(handle)?;
            if flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
                shared.kill_privileges(file.ino()).await?;
            }
            if flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
                // A page of a memory map, by any handle of the file.
                shared.backend.write_page(&file, offset, data).await
            } else {
                // As they are now, not as they were at the open: fcntl changes them.
                let append = open_flags & libc::O_APPEND != 0;
                let written = shared.backend.write(&file, offset, append, data).await?;
                if asks_for_sync(open_flags, file.flags()) {
                    // On the heap: an ordinary write must not carry its state.
                    Box::pin(shared.backend.fsync(&file, true)).await?;
                }
                Ok(written)
            }
        };
        let told = |_: &Shared<B>, answer: ReplyWrite, written| answer.written(written);
        let unheard = move |shared: &Shared<B>, _| shared.file_changed_unheard(handle);
        self.serve_or_else(Operation::Write, request, answer, work, told, unheard);
    }

    pub(super) fn do_flush(
        &self,
        request: &Request,
        handle: fuser::FileHandle,
        owner: LockOwner,
        answer: ReplyEmpty,
    ) {
        let shared = self.shared.clone();
        let work = async move {
            let file = shared.file(handle)?;
            let flushed = shared.backend.flush(&file).await;
            // POSIX: any close by the process gives up its locks on the file, also when it fails.
            shared.backend.release_locks(file.ino(), owner.0).await?;
            flushed
        };
        self.serve(Operation::Flush, request, answer, work, |_, answer, ()| answer.ok());
    }

    pub(super) fn do_release(
        &self,
        request: &Request,
        handle: fuser::FileHandle,
        flock_owner: Option<LockOwner>,
        answer: ReplyEmpty,
    ) {
        let shared = self.shared.clone();
        let work = async move {
            if let Some((_, file)) = shared.files.remove(&handle.0) {
                if let Some(owner) = flock_owner {
                    shared.backend.release_locks(file.ino(), owner.0).await?;
                }
                shared.backend.release(file).await;
            }
            Ok(())
        };
        self.serve(Operation::Release, request, answer, work, |_, answer, ()| answer.ok());
    }

    pub(super) fn do_fsync(
        &self,
        request: &Request,
        handle: fuser::FileHandle,
        data_only: bool,
        answer: ReplyEmpty,
    ) {
        let shared = self.shared.clone();
        let work = async move {
            let file = shared.file(handle)?;
            shared.backend.fsync(&file, data_only).await
        };
        self.serve(Operation::Fsync, request, answer, work, |_, answer, ()| answer.ok());
    }

    #[allow(clippy::too_many_arguments, reason = "they are the request's")]
    pub(super) fn do_fallocate(
        &self,
        request: &Request,
        handle: fuser::FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        answer: ReplyEmpty,
    ) {
        let shared = self.shared.clone();
        let privileged = keeps_privileges(request);
        let work = async move {
            let what = fallocate(mode)?;
            let file = shared.file(handle)?;
            if !privileged {
                shared.kill_privileges(file.ino()).await?;
            }
            shared.backend.fallocate(&file, what, offset, length).await
        };
        let unheard = move |shared: &Shared<B>, ()| shared.file_changed_unheard(handle);
        self.serve_or_else(Operation::Fallocate, request, answer, work, |_, answer, ()| answer.ok(), unheard);
    }

    pub(super) fn do_seek(
        &self,
        request: &Request,
        handle: fuser::FileHandle,
        offset: i64,
        whence: i32,
        answer: ReplyLseek,
    ) {
        let shared = self.shared.clone();
        let work = async move {
            let whence = match whence {
                libc::SEEK_DATA => Whence::Data,
                libc::SEEK_HOLE => Whence::Hole,
                _ => return Err(FsError::Invalid),
            };
            let offset = u64::try_from(offset).map_err(|_| FsError::NoData)?;
            let file = shared.file(handle)?;
            let found = shared.backend.seek(&file, offset, whence).await?;
            i64::try_from(found).map_err(|_| FsError::Range)
        };
        self.serve(Operation::Seek, request, answer, work, |_, answer, found| answer.offset(found));
    }

    #[allow(clippy::too_many_arguments, reason = "they are the request's")]
    pub(super) fn do_copy_file_range(
        &self,
        request: &Request,
        from: fuser::FileHandle,
        offset: u64,
        to: fuser::FileHandle,
        to_offset: u64,
        length: u64,
        answer: ReplyWrite,
    ) {
        /// Most that one request copies: the reply counts in 32 bits, and a program that copies a large
        /// file shall be interruptible.
        const COPY_MAX_BYTES: u64 = 64 << 20;
        let shared = self.shared.clone();
        let privileged = keeps_privileges(request);
        let work = async move {
            let (from, to) = (shared.file(from)?, shared.file(to)?);
            if !privileged {
                shared.kill_privileges(to.ino()).await?;
            }
            let length = length.min(COPY_MAX_BYTES);
            shared.backend.copy_file_range(&from, offset, &to, to_offset, length).await
        };
        let told = |_: &Shared<B>, answer: ReplyWrite, copied| answer.written(copied as u32);
        let unheard = move |shared: &Shared<B>, _| shared.file_changed_unheard(to);
        self.serve_or_else(Operation::Copy, request, answer, work, told, unheard);
    }
}

impl<B: Backend> Shared<B> {
    fn keep_file(&self, file: B::File) -> fuser::FileHandle {
        let handle = self.new_handle();
        self.files.insert(handle, file);
        fuser::FileHandle(handle)
    }

    /// Closes a file of which the kernel never heard.
    fn close(&self, file: B::File) {
        let backend = self.backend.clone();
        tokio::spawn(async move { backend.release(file).await });
    }
}

/// How the backend opens what a program opens with `flags`.
fn open_flags(flags: i32) -> OpenFlags {
    let mode = flags & libc::O_ACCMODE;
    let write = mode == libc::O_WRONLY || mode == libc::O_RDWR;
    OpenFlags {
        read: mode == libc::O_RDONLY || mode == libc::O_RDWR,
        write,
        append: write && flags & libc::O_APPEND != 0,
        truncate: flags & libc::O_TRUNC != 0,
        direct: flags & libc::O_DIRECT != 0,
        sync: flags & libc::O_DSYNC != 0,
    }
}

/// How the kernel treats an open file. `around`: what only writes goes around its cache.
fn keep(flags: OpenFlags, around: bool) -> FopenFlags {
    let mut kept = FopenFlags::FOPEN_KEEP_CACHE;
    let only_written = flags.write && !flags.read;
    if flags.append || flags.direct || (only_written && around) {
        kept |= FopenFlags::FOPEN_DIRECT_IO;
    }
    if flags.direct && !flags.append {
        kept |= FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    }
    kept
}

/// Whether one write asks for more than its handle was opened with (RWF_DSYNC, RWF_SYNC of pwritev2). Behind a write through its
/// cache the kernel sends an FSYNC by itself.
fn asks_for_sync(request: i32, opened: OpenFlags) -> bool {
    request & libc::O_DSYNC != 0 && !opened.sync && opened.direct
}

fn fallocate(mode: i32) -> Result<Fallocate, FsError> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => Ok(Fallocate::Allocate { keep_size }),
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Ok(Fallocate::Punch),
        libc::FALLOC_FL_ZERO_RANGE => Ok(Fallocate::Zero { keep_size }),
        // Moving bytes within a file, or unsharing what is never shared.
        _ => Err(FsError::NotSupported),
    }
}

/// ioctl: there are none yet.
pub(super) const NO_IOCTL: Errno = Errno::ENOTTY;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn append_goes_around_the_page_cache_only_for_writers() {
        let keep = |flags| keep(open_flags(flags), true);
        assert_eq!(keep(libc::O_RDONLY | libc::O_APPEND), FopenFlags::FOPEN_KEEP_CACHE);
        assert!(keep(libc::O_RDWR | libc::O_APPEND).contains(FopenFlags::FOPEN_DIRECT_IO));
        assert_eq!(keep(libc::O_RDWR), FopenFlags::FOPEN_KEEP_CACHE);
        let direct = keep(libc::O_WRONLY | libc::O_DIRECT);
        assert!(direct.contains(FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES));
    }

    #[test]
    fn what_only_writes_goes_around_the_page_cache_where_that_is_asked_for() {
        let around = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_DIRECT_IO;
        assert_eq!(keep(open_flags(libc::O_WRONLY), true), around);
        assert_eq!(keep(open_flags(libc::O_WRONLY), false), FopenFlags::FOPEN_KEEP_CACHE);
    }

    #[test]
    fn both_kinds_of_synchronous_opens_are_synchronous() {
        assert!(open_flags(libc::O_WRONLY | libc::O_SYNC).sync);
        assert!(open_flags(libc::O_WRONLY | libc::O_DSYNC).sync);
        assert!(!open_flags(libc::O_WRONLY).sync);
    }

    #[test]
    fn fallocate_knows_what_it_can() {
        assert_eq!(fallocate(0), Ok(Fallocate::Allocate { keep_size: false }));
        assert_eq!(fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE), Ok(Fallocate::Punch));
        assert_eq!(fallocate(libc::FALLOC_FL_ZERO_RANGE), Ok(Fallocate::Zero { keep_size: false }));
        for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE, libc::FALLOC_FL_PUNCH_HOLE]
        {
            assert_eq!(fallocate(mode), Err(FsError::NotSupported));
        }
    }
}

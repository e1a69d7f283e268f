//! Requests about extended attributes. POSIX ACLs come this way too.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use fuser::{Errno, INodeNo, ReplyEmpty, ReplyXattr, Request};
use gofs_tree::{FsError, XATTR_LIST_MAX, XATTR_VALUE_MAX, XattrName, XattrSetMode};

use super::{Gofs, Shared};
use crate::backend::Backend;
use crate::errno::xattr_name_error;
use crate::stats::{Operation, STATS_XATTR};

impl<B: Backend> Gofs<B> {
    pub(super) fn do_getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        answer: ReplyXattr,
    ) {
        if name == STATS_XATTR {
            return give(answer, size, self.shared.mount_stats().to_string().as_bytes());
        }
        let shared = self.shared.clone();
        let (ino, name) = (shared.map.ino(ino), xattr_name(name));
        let work = async move {
            let found = shared.backend.getxattr(ino, &name?).await?;
            if found.value.is_none() { Err(FsError::NoAttribute) } else { Ok(found) }
        };
        self.serve(Operation::GetXattr, request, answer, work, move |_, answer, found| {
            give(answer, size, found.value.as_deref().unwrap_or_default());
        });
    }

    pub(super) fn do_listxattr(&self, request: &Request, ino: INodeNo, size: u32, answer: ReplyXattr) {
        let shared = self.shared.clone();
        let ino = shared.map.ino(ino);
        let work = async move { shared.backend.listxattr(ino).await };
        self.serve(Operation::ListXattr, request, answer, work, move |_, answer, found| {
            let mut list = Vec::new();
            for name in &found.value {
                list.extend_from_slice(name.as_bytes());
                list.push(0);
            }
            if list.len() > XATTR_LIST_MAX {
                answer.error(Errno::E2BIG);
            } else {
                give(answer, size, &list);
            }
        });
    }

    pub(super) fn do_setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        answer: ReplyEmpty,
    ) {
        let shared = self.shared.clone();
        let (ino, name) = (shared.map.ino(ino), xattr_name(name));
        let value = if value.len() > XATTR_VALUE_MAX {
            Err(FsError::TooBig)
        } else {
            Ok(Bytes::copy_from_slice(value))
        };
        let work = async move {
            let mode = match flags {
                0 => XattrSetMode::Either,
                libc::XATTR_CREATE => XattrSetMode::Create,
                libc::XATTR_REPLACE => XattrSetMode::Replace,
                _ => return Err(FsError::Invalid),
            };
            shared.backend.setxattr(ino, &name?, value?, mode).await
        };
        let unheard = move |shared: &Shared<B>, ()| shared.changed_unheard([ino]);
        self.serve_or_else(Operation::SetXattr, request, answer, work, |_, answer, ()| answer.ok(), unheard);
    }

    pub(super) fn do_removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, answer: ReplyEmpty) {
        let shared = self.shared.clone();
        let (ino, name) = (shared.map.ino(ino), xattr_name(name));
        let work = async move { shared.backend.removexattr(ino, &name?).await };
        let unheard = move |shared: &Shared<B>, ()| shared.changed_unheard([ino]);
        self.serve_or_else(
            Operation::RemoveXattr,
            request,
            answer,
            work,
            |_, answer, ()| answer.ok(),
            unheard,
        );
    }
}

fn xattr_name(name: &OsStr) -> Result<XattrName, FsError> {
    XattrName::new(name.as_bytes()).map_err(xattr_name_error)
}

/// The value if it fits, its length if that was asked for.
fn give(answer: ReplyXattr, size: u32, value: &[u8]) {
    match size as usize {
        0 => answer.size(value.len() as u32),
        room if room < value.len() => answer.error(Errno::ERANGE),
        _ => answer.data(value),
    }
}

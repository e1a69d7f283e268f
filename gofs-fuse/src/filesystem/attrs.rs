//! Requests about attributes: getattr, setattr, readlink, statfs.

use fuser::{INodeNo, ReplyAttr, ReplyData, ReplyStatfs, Request, TimeOrNow};
use gofs_client::{Cached, StatFs};
use gofs_tree::{Attr, AttrChange, BLOCK_BYTES, FileType, Mode, NAME_MAX};

use super::{Gofs, Shared, keeps_privileges};
use crate::backend::Backend;
use crate::convert::time_change;
use crate::stats::Operation;

/// The attributes that a SETATTR request changes.
pub(super) struct Changes {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) atime: Option<TimeOrNow>,
    pub(super) mtime: Option<TimeOrNow>,
}

impl<B: Backend> Gofs<B> {
    pub(super) fn do_getattr(&self, request: &Request, ino: INodeNo, answer: ReplyAttr) {
        let shared = self.shared.clone();
        let ino = shared.map.ino(ino);
        let work = async move { shared.backend.getattr(ino).await };
        self.serve(Operation::GetAttr, request, answer, work, attr);
    }

    pub(super) fn do_setattr(&self, request: &Request, ino: INodeNo, changes: Changes, answer: ReplyAttr) {
        let shared = self.shared.clone();
        let ino = shared.map.ino(ino);
        let privileged = keeps_privileges(request);
        let work = async move {
            let mut change = AttrChange {
                mode: changes.mode.map(Mode::new),
                uid: changes.uid,
                gid: changes.gid,
                size: changes.size,
                atime: changes.atime.map(time_change),
                mtime: changes.mtime.map(time_change),
                kill_suid_sgid: changes.size.is_some() && !privileged,
            };
            // chown takes the bits from files whoever asks, unless the same request sets them.
            if (change.uid.is_some() || change.gid.is_some()) && change.mode.is_none() {
                let is_dir = shared.backend.getattr(ino).await?.value.file_type == FileType::Directory;
                change.kill_suid_sgid |= !is_dir;
            }
            shared.backend.setattr(ino, change).await
        };
        let unheard = move |shared: &Shared<B>, _| shared.changed_unheard([ino]);
        self.serve_or_else(Operation::SetAttr, request, answer, work, attr, unheard);
    }

    pub(super) fn do_readlink(&self, request: &Request, ino: INodeNo, answer: ReplyData) {
        let shared = self.shared.clone();
        let ino = shared.map.ino(ino);
        let work = async move { shared.backend.readlink(ino).await };
        self.serve(Operation::ReadLink, request, answer, work, |_, answer, target| {
            answer.data(&target.value)
        });
    }

    pub(super) fn do_statfs(&self, request: &Request, answer: ReplyStatfs) {
        let shared = self.shared.clone();
        let work = async move { shared.backend.statfs().await };
        self.serve(Operation::StatFs, request, answer, work, |_, answer, space: StatFs| {
            let free = space.free_bytes / BLOCK_BYTES;
            answer.statfs(
                space.total_bytes / BLOCK_BYTES,
                free,
                free,
                space.total_inodes,
                space.free_inodes,
                BLOCK_BYTES as u32,
                NAME_MAX as u32,
                BLOCK_BYTES as u32,
            );
        });
    }
}

fn attr<B: Backend>(shared: &Shared<B>, answer: ReplyAttr, cached: Cached<Attr>) {
    answer.attr(&cached.ttl, &shared.map.attr(&cached.value));
}

//! creat, mkdir, mknod, symlink.

use bytes::Bytes;

use super::{directory, xattr};
use crate::acl::{self, Acl};
use crate::{
    DirEntry, FsError, Ino, Inode, LINK_MAX, Mode, Name, NewNode, Outcome, PATH_MAX, Store, Timestamp,
    XattrName,
};

/// What is to be made.
pub(super) struct New<'a> {
    pub ino: Ino,
    pub node: &'a NewNode,
    pub mode: Mode,
    pub umask: Mode,
    pub uid: u32,
    pub gid: u32,
}

pub(super) fn create(
    store: &mut impl Store,
    time: Timestamp,
    parent_ino: Ino,
    name: &Name,
    new: New<'_>,
) -> Result<Outcome, FsError> {
    let mut parent = directory(store, parent_ino)?;
    if store.entry(parent_ino, name)?.is_some() {
        return Err(FsError::Exists);
    }
    if new.ino.0 == 0 || store.inode(new.ino)?.is_some() {
        return Err(FsError::Invalid);
    }
    let is_dir = *new.node == NewNode::Directory;
    if let NewNode::Symlink { target } = new.node {
        check_target(target)?;
    }
    if is_dir && parent.nlink >= LINK_MAX {
        return Err(FsError::TooManyLinks);
    }
    let mut usage = store.usage()?;
    let quota_inodes = store.limits().quota_inodes;
    if quota_inodes != 0 && usage.inodes >= quota_inodes {
        return Err(FsError::QuotaExceeded);
    }
    let rights = Rights::of(store, parent_ino, &parent, &new)?;

    usage.inodes += 1;
    store.set_usage(usage);
    for (name, value) in &rights.xattrs {
        store.set_xattr(new.ino, name, value.clone());
    }
    let inline = if let NewNode::Symlink { target } = new.node { target.clone() } else { Bytes::new() };
    let rdev = match new.node {
        NewNode::CharDevice { rdev } | NewNode::BlockDevice { rdev } => *rdev,
        _ => 0,
    };
    let inode = Inode {
        file_type: new.node.file_type(),
        mode: rights.mode,
        uid: new.uid,
        gid: rights.gid,
        nlink: if is_dir { 2 } else { 1 },
        size: inline.len() as u64,
        blocks_4k: 0,
        chunks: 0,
        rdev,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        parent: if is_dir { parent_ino } else { Ino(0) },
        has_xattrs: !rights.xattrs.is_empty(),
        inline,
    };
    store.set_entry(parent_ino, name, DirEntry { ino: new.ino, file_type: inode.file_type });
    store.set_inode(new.ino, inode);
    parent.gain(name, is_dir);
    parent.modified(time);
    store.set_inode(parent_ino, parent);
    Ok(Outcome { ino: new.ino, removed: None })
}

fn check_target(target: &[u8]) -> Result<(), FsError> {
    if target.is_empty() {
        Err(FsError::NotFound)
    } else if target.len() >= PATH_MAX {
        Err(FsError::NameTooLong)
    } else if target.contains(&0) {
        Err(FsError::Invalid)
    } else {
        Ok(())
    }
}

/// What a new inode gets from its parent and its maker.
struct Rights {
    mode: Mode,
    gid: u32,
    xattrs: Vec<(XattrName, Bytes)>,
}

impl Rights {
    fn of(store: &impl Store, parent_ino: Ino, parent: &Inode, new: &New<'_>) -> Result<Rights, FsError> {
        let setgid = parent.mode.has(Mode::SGID);
        let gid = if setgid { parent.gid } else { new.gid };
        let mut xattrs = Vec::new();
        let is_dir = *new.node == NewNode::Directory;
        if let NewNode::Symlink { .. } = new.node {
            return Ok(Rights { mode: Mode::new(0o777), gid, xattrs });
        }
        // mkdir takes the sticky bit from its caller, but not suid and sgid.
        let asked = if is_dir { new.mode.without(Mode::SUID | Mode::SGID) } else { new.mode };
        let mut mode = asked;
        match xattr::acl(store, parent_ino, parent, acl::DEFAULT)? {
            Some(default) => {
                let mut access: Acl = default.clone();
                mode = access.inherit(asked);
                if !access.is_minimal() {
                    xattrs.push((xattr::name_of(acl::ACCESS), access.to_bytes()));
                }
                if is_dir {
                    xattrs.push((xattr::name_of(acl::DEFAULT), default.to_bytes()));
                }
            }
            None => mode = mode.without((new.umask.bits() & 0o777) as u16),
        }
        if is_dir && setgid {
            mode = mode.with(Mode::SGID);
        }
        Ok(Rights { mode, gid, xattrs })
    }
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;

//! chmod, chown, truncate, utimens.

use super::size::Resize;
use super::{inode, xattr};
use crate::acl;
use crate::{AttrChange, FileType, FsError, Ino, Inode, Mode, Outcome, Store, TimeChange, Timestamp};

/// File capabilities, which a change of owner or content takes away.
const CAPABILITY: &[u8] = b"security.capability";

pub(super) fn set_attr(
    store: &mut impl Store,
    time: Timestamp,
    ino: Ino,
    change: &AttrChange,
) -> Result<Outcome, FsError> {
    let mut inode = inode(store, ino)?;
    if change.size.is_some() {
        match inode.file_type {
            FileType::File => {}
            FileType::Directory => return Err(FsError::IsDirectory),
            _ => return Err(FsError::Invalid),
        }
    }
    if change.mode.is_some() && inode.file_type == FileType::Symlink {
        return Err(FsError::NotSupported);
    }
    let access = match change.mode {
        Some(_) => xattr::acl(store, ino, &inode, acl::ACCESS)?,
        None => None,
    };
    let chown = change.uid.is_some() || change.gid.is_some();
    let drops_capability = !inode.is_dir() && (chown || change.size.is_some() || change.kill_suid_sgid);
    let capability =
        if drops_capability { xattr::Removal::plan(store, ino, &inode, CAPABILITY)? } else { None };
    let resize = change.size.map(|size| Resize::plan(store, ino, &mut inode, size)).transpose()?;

    if let Some(resize) = resize {
        resize.perform(store, ino);
        inode.mtime = time;
    }
    if let Some(capability) = capability {
        capability.perform(store, ino, &mut inode);
    }
    if let Some(mode) = change.mode {
        inode.mode = mode;
        if let Some(mut access) = access {
            access.chmod(mode);
            store.set_xattr(ino, &xattr::name_of(acl::ACCESS), access.to_bytes());
        }
    }
    inode.uid = change.uid.unwrap_or(inode.uid);
    inode.gid = change.gid.unwrap_or(inode.gid);
    if chown || change.kill_suid_sgid {
        kill_suid_sgid(&mut inode);
    }
    let at = |change| match change {
        TimeChange::Now => time,
        TimeChange::To(time) => time,
    };
    inode.atime = change.atime.map_or(inode.atime, at);
    inode.mtime = change.mtime.map_or(inode.mtime, at);
    inode.ctime = time;
    store.set_inode(ino, inode);
    Ok(Outcome { ino, removed: None })
}

/// Sgid without group execution is no privilege (once it marked mandatory locking), so it stays;
/// of directories neither bit is one.
fn kill_suid_sgid(inode: &mut Inode) {
    if inode.is_dir() {
        return;
    }
    let group_executes = inode.mode.has(0o010);
    inode.mode = inode.mode.without(Mode::SUID | if group_executes { Mode::SGID } else { 0 });
}

#[cfg(test)]
#[path = "set_attr_tests.rs"]
mod tests;

//! setxattr and removexattr; POSIX ACLs among them.

use bytes::Bytes;

use super::inode;
use crate::acl::{self, Acl};
use crate::{
    FileType, FsError, Ino, Inode, Mode, Outcome, Store, Timestamp, XATTR_LIST_MAX, XATTR_TOTAL_MAX,
    XATTR_VALUE_MAX, XattrName, XattrSetMode,
};

/// What a name's prefix makes of an attribute.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Plain,
    User,
    AccessAcl,
    DefaultAcl,
}

impl Space {
    fn of(name: &XattrName) -> Result<Space, FsError> {
        let name = name.as_bytes();
        match name {
            acl::ACCESS => return Ok(Space::AccessAcl),
            acl::DEFAULT => return Ok(Space::DefaultAcl),
            _ => {}
        }
        for (prefix, space) in
            [(&b"user."[..], Space::User), (b"trusted.", Space::Plain), (b"security.", Space::Plain)]
        {
            if let Some(rest) = name.strip_prefix(prefix) {
                return if rest.is_empty() { Err(FsError::Invalid) } else { Ok(space) };
            }
        }
        Err(FsError::NotSupported)
    }

    /// Whether an inode of that type may have such attributes.
    fn check(self, file_type: FileType) -> Result<(), FsError> {
        match self {
            Space::User if !matches!(file_type, FileType::File | FileType::Directory) => {
                Err(FsError::NotPermitted)
            }
            Space::AccessAcl | Space::DefaultAcl if file_type == FileType::Symlink => {
                Err(FsError::NotSupported)
            }
            _ => Ok(()),
        }
    }
}

/// One of the two names that are always valid.
pub(super) fn name_of(name: &[u8]) -> XattrName {
    XattrName::new(name).expect("a constant that is a valid name")
}

/// The inode's ACL of that name. What is stored was checked when it was set.
pub(super) fn acl(store: &impl Store, ino: Ino, inode: &Inode, name: &[u8]) -> Result<Option<Acl>, FsError> {
    if !inode.has_xattrs {
        return Ok(None);
    }
    match store.xattr(ino, &name_of(name))? {
        Some(value) => Acl::parse(&value).map_err(|_| FsError::Io),
        None => Ok(None),
    }
}

pub(super) fn set(
    store: &mut impl Store,
    time: Timestamp,
    ino: Ino,
    name: &XattrName,
    value: &Bytes,
    mode: XattrSetMode,
) -> Result<Outcome, FsError> {
    if value.len() > XATTR_VALUE_MAX {
        return Err(FsError::TooBig);
    }
    let space = Space::of(name)?;
    let inode = inode(store, ino)?;
    space.check(inode.file_type)?;
    match space {
        Space::Plain | Space::User => {
            let known = if inode.has_xattrs { store.xattr(ino, name)? } else { None };
            match (mode, known) {
                (XattrSetMode::Create, Some(_)) => return Err(FsError::Exists),
                (XattrSetMode::Replace, None) => return Err(FsError::NoAttribute),
                _ => {}
            }
            put(store, time, ino, inode, name, value.clone(), None)
        }
        Space::AccessAcl => match Acl::parse(value)? {
            Some(access) => {
                let mode = access.mode_onto(inode.mode);
                if access.is_minimal() {
                    take(store, time, ino, inode, name, Some(mode))
                } else {
                    put(store, time, ino, inode, name, access.to_bytes(), Some(mode))
                }
            }
            None => take(store, time, ino, inode, name, None),
        },
        Space::DefaultAcl => match Acl::parse(value)? {
            Some(_) if !inode.is_dir() => Err(FsError::AccessDenied),
            Some(default) => put(store, time, ino, inode, name, default.to_bytes(), None),
            None => take(store, time, ino, inode, name, None),
        },
    }
}

pub(super) fn remove(
    store: &mut impl Store,
    time: Timestamp,
    ino: Ino,
    name: &XattrName,
) -> Result<Outcome, FsError> {
    let space = Space::of(name)?;
    let inode = inode(store, ino)?;
    space.check(inode.file_type)?;
    let is_acl = matches!(space, Space::AccessAcl | Space::DefaultAcl);
    if !is_acl && (!inode.has_xattrs || store.xattr(ino, name)?.is_none()) {
        return Err(FsError::NoAttribute);
    }
    take(store, time, ino, inode, name, None)
}

/// Sets a value that was found good, and the mode that comes with it.
fn put(
    store: &mut impl Store,
    time: Timestamp,
    ino: Ino,
    mut inode: Inode,
    name: &XattrName,
    value: Bytes,
    mode: Option<Mode>,
) -> Result<Outcome, FsError> {
    let (mut list_bytes, mut total_bytes) = (name.as_bytes().len() + 1, name.as_bytes().len() + value.len());
    if inode.has_xattrs {
        for (other, value) in store.xattrs(ino)?.iter().filter(|(other, _)| other != name) {
            list_bytes += other.as_bytes().len() + 1;
            total_bytes += other.as_bytes().len() + value.len();
        }
    }
    if list_bytes > XATTR_LIST_MAX || total_bytes > XATTR_TOTAL_MAX {
        return Err(FsError::NoSpace);
    }

    store.set_xattr(ino, name, value);
    inode.has_xattrs = true;
    inode.mode = mode.unwrap_or(inode.mode);
    inode.ctime = time;
    store.set_inode(ino, inode);
    Ok(Outcome { ino, removed: None })
}

/// Removes the attribute if it is there, and sets the mode that comes with that.
fn take(
    store: &mut impl Store,
    time: Timestamp,
    ino: Ino,
    mut inode: Inode,
    name: &XattrName,
    mode: Option<Mode>,
) -> Result<Outcome, FsError> {
    let removal = Removal::plan(store, ino, &inode, name.as_bytes())?;
    if removal.is_none() && mode.is_none() {
        return Ok(Outcome { ino, removed: None });
    }

    if let Some(removal) = removal {
        removal.perform(store, ino, &mut inode);
    }
    inode.mode = mode.unwrap_or(inode.mode);
    inode.ctime = time;
    store.set_inode(ino, inode);
    Ok(Outcome { ino, removed: None })
}

/// An attribute that is there and is to go.
pub(super) struct Removal {
    name: XattrName,
    is_last: bool,
}

impl Removal {
    /// `None` where there is no such attribute.
    pub fn plan(
        store: &impl Store,
        ino: Ino,
        inode: &Inode,
        name: &[u8],
    ) -> Result<Option<Removal>, FsError> {
        if !inode.has_xattrs {
            return Ok(None);
        }
        let all = store.xattrs(ino)?;
        let found = all.iter().find(|(known, _)| known.as_bytes() == name);
        Ok(found.map(|(name, _)| Removal { name: name.clone(), is_last: all.len() == 1 }))
    }

    /// The caller writes the inode.
    pub fn perform(self, store: &mut impl Store, ino: Ino, inode: &mut Inode) {
        store.remove_xattr(ino, &self.name);
        inode.has_xattrs = !self.is_last;
    }
}

#[cfg(test)]
#[path = "xattr_tests.rs"]
mod tests;

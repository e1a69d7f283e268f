//! POSIX access control lists: POSIX.1e draft 17 as acl(5) describes it and Linux keeps it.
//!
//! Owns the format of the `system.posix_acl_*` attributes (version 2: a header of 4 bytes,
//! then 8 bytes an entry, little-endian) and what a list and permission bits do to each other.

use bytes::Bytes;

use crate::{FsError, Mode};

/// Name of the attribute that holds an inode's access ACL.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of the attribute that holds what a directory's new children get.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
/// The id of entries that name nobody, and an id that no user or group has.
const NO_ID: u32 = u32::MAX;

/// Whom an entry is about, in the order in which entries stand in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tag {
    Owner,
    User,
    OwningGroup,
    Group,
    Mask,
    Other,
}

impl Tag {
    const ALL: [(Tag, u16); 6] = [
        (Tag::Owner, 0x01),
        (Tag::User, 0x02),
        (Tag::OwningGroup, 0x04),
        (Tag::Group, 0x08),
        (Tag::Mask, 0x10),
        (Tag::Other, 0x20),
    ];

    fn code(self) -> u16 {
        Tag::ALL[self as usize].1
    }

    fn from_code(code: u16) -> Option<Tag> {
        Tag::ALL.iter().find(|(_, c)| *c == code).map(|(tag, _)| *tag)
    }

    fn is_named(self) -> bool {
        matches!(self, Tag::User | Tag::Group)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    /// rwx, 3 bits.
    permissions: u16,
    /// [`NO_ID`] unless the tag names somebody.
    id: u32,
}

/// A valid list: owner, owning group and other once each, a mask where anybody is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// Reads an attribute's value. `None` is the empty list, which means: no ACL.
    pub fn parse(value: &[u8]) -> Result<Option<Acl>, FsError> {
        if value.is_empty() {
            return Ok(None);
        }
        let (header, body) = value.split_first_chunk::<HEADER_BYTES>().ok_or(FsError::Invalid)?;
        if u32::from_le_bytes(*header) != VERSION {
            return Err(FsError::NotSupported);
        }
        let (raw, rest) = body.as_chunks::<ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err(FsError::Invalid);
        }
        if raw.is_empty() {
            return Ok(None);
        }
        let entries = raw.iter().map(Entry::parse).collect::<Option<Vec<_>>>().ok_or(FsError::Invalid)?;
        let acl = Acl { entries };
        if acl.is_valid() { Ok(Some(acl)) } else { Err(FsError::Invalid) }
    }

    fn is_valid(&self) -> bool {
        let once = |tag| self.entries.iter().filter(|e| e.tag == tag).count() == 1;
        let named = self.entries.iter().any(|e| e.tag.is_named());
        let masks = self.entries.iter().filter(|e| e.tag == Tag::Mask).count();
        self.entries.is_sorted_by_key(|e| e.tag)
            && once(Tag::Owner)
            && once(Tag::OwningGroup)
            && once(Tag::Other)
            && masks <= 1
            && (masks == 1 || !named)
            && self.entries.iter().all(|e| !e.tag.is_named() || e.id != NO_ID)
    }

    /// The attribute's value.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(HEADER_BYTES + ENTRY_BYTES * self.entries.len());
        out.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.entries {
            out.extend_from_slice(&entry.tag.code().to_le_bytes());
            out.extend_from_slice(&entry.permissions.to_le_bytes());
            out.extend_from_slice(&entry.id.to_le_bytes());
        }
        out.into()
    }

    /// Whether permission bits alone say the same.
    pub fn is_minimal(&self) -> bool {
        self.entries.len() == 3
    }

    /// What `st_mode` shows of the list: the mask, where there is one, stands for the group.
    pub fn mode_onto(&self, mode: Mode) -> Mode {
        let bits = self.entries.iter().fold(0, |bits, entry| match self.shift(entry.tag) {
            Some(shift) => bits | entry.permissions << shift,
            None => bits,
        });
        mode.without(0o777).with(bits)
    }

    /// Gives the classes of the list the permissions of `mode`, as chmod does.
    pub fn chmod(&mut self, mode: Mode) {
        for at in 0..self.entries.len() {
            if let Some(shift) = self.shift(self.entries[at].tag) {
                self.entries[at].permissions = (mode.bits() >> shift) as u16 & 7;
            }
        }
    }

    /// Turns a directory's default ACL into the access ACL of a new inode that asks for `mode`:
    /// each class gets what both allow. Returns the mode that the inode gets.
    pub fn inherit(&mut self, mode: Mode) -> Mode {
        for at in 0..self.entries.len() {
            if let Some(shift) = self.shift(self.entries[at].tag) {
                self.entries[at].permissions &= (mode.bits() >> shift) as u16 & 7;
            }
        }
        self.mode_onto(mode)
    }

    /// The place in `st_mode` that shows this entry, if any does.
    fn shift(&self, tag: Tag) -> Option<u32> {
        match tag {
            Tag::Owner => Some(6),
            Tag::Mask => Some(3),
            Tag::OwningGroup if !self.entries.iter().any(|e| e.tag == Tag::Mask) => Some(3),
            Tag::Other => Some(0),
            Tag::OwningGroup | Tag::User | Tag::Group => None,
        }
    }
}

impl Entry {
    fn parse(raw: &[u8; ENTRY_BYTES]) -> Option<Entry> {
        let [t0, t1, p0, p1, id @ ..] = *raw;
        let tag = Tag::from_code(u16::from_le_bytes([t0, t1]))?;
        let permissions = u16::from_le_bytes([p0, p1]);
        // The id of an entry that names nobody means nothing: one encoding for all of them.
        let id = if tag.is_named() { u32::from_le_bytes(id) } else { NO_ID };
        (permissions <= 7).then_some(Entry { tag, permissions, id })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An attribute's value from (tag, permissions, id).
    pub(crate) fn blob(entries: &[(u16, u16, u32)]) -> Bytes {
        let mut out = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&permissions.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out.into()
    }

    const MINIMAL: [(u16, u16, u32); 3] = [(1, 6, NO_ID), (4, 4, NO_ID), (0x20, 0, NO_ID)];
    /// u::rw- u:7:rwx g::r-- m::rw- o::---
    pub(crate) const EXTENDED: [(u16, u16, u32); 5] =
        [(1, 6, NO_ID), (2, 7, 7), (4, 4, NO_ID), (0x10, 6, NO_ID), (0x20, 0, NO_ID)];

    fn parse(entries: &[(u16, u16, u32)]) -> Acl {
        Acl::parse(&blob(entries)).unwrap().unwrap()
    }

    #[test]
    fn a_list_comes_back_as_it_was() {
        for entries in [&MINIMAL[..], &EXTENDED[..]] {
            assert_eq!(parse(entries).to_bytes(), blob(entries));
        }
        assert!(parse(&MINIMAL).is_minimal());
        assert!(!parse(&EXTENDED).is_minimal());
    }

    #[test]
    fn an_empty_list_is_none() {
        assert_eq!(Acl::parse(b""), Ok(None));
        assert_eq!(Acl::parse(&blob(&[])), Ok(None));
    }

    #[test]
    fn invalid_lists_are_refused() {
        let refused = [
            vec![(1, 6, 0), (4, 4, 0)],                                            // no other
            vec![(1, 6, 0), (1, 6, 0), (4, 4, 0), (0x20, 0, 0)],                   // two owners
            vec![(4, 4, 0), (1, 6, 0), (0x20, 0, 0)],                              // out of order
            vec![(1, 6, 0), (2, 7, 7), (4, 4, 0), (0x20, 0, 0)],                   // named without a mask
            vec![(1, 6, 0), (2, 7, NO_ID), (4, 4, 0), (0x10, 7, 0), (0x20, 0, 0)], // names nobody
            vec![(1, 8, 0), (4, 4, 0), (0x20, 0, 0)],                              // permissions past rwx
            vec![(1, 6, 0), (4, 4, 0), (0x40, 0, 0)],                              // unknown tag
            vec![(1, 6, 0), (4, 4, 0), (0x10, 1, 0), (0x10, 1, 0), (0x20, 0, 0)],  // two masks
        ];
        for entries in refused {
            assert_eq!(Acl::parse(&blob(&entries)), Err(FsError::Invalid), "{entries:?}");
        }
        let whole = blob(&MINIMAL);
        for len in (1..whole.len()).filter(|len| (len - 4usize.min(*len)) % 8 != 0 || *len < 4) {
            assert_eq!(Acl::parse(&whole[..len]), Err(FsError::Invalid), "{len}");
        }
        assert_eq!(Acl::parse(b"\x03\0\0\0"), Err(FsError::NotSupported), "another version");
    }

    #[test]
    fn the_mask_stands_for_the_group_in_the_mode() {
        assert_eq!(parse(&MINIMAL).mode_onto(Mode::new(0o4777)), Mode::new(0o4640));
        assert_eq!(parse(&EXTENDED).mode_onto(Mode::new(0)), Mode::new(0o660));
    }

    #[test]
    fn chmod_changes_the_mask_and_leaves_the_owning_group() {
        let mut acl = parse(&EXTENDED);
        acl.chmod(Mode::new(0o751));
        assert_eq!(acl, parse(&[(1, 7, 0), (2, 7, 7), (4, 4, 0), (0x10, 5, 0), (0x20, 1, 0)]));
        let mut acl = parse(&MINIMAL);
        acl.chmod(Mode::new(0o751));
        assert_eq!(acl, parse(&[(1, 7, 0), (4, 5, 0), (0x20, 1, 0)]));
    }

    #[test]
    fn an_inherited_list_allows_what_both_allow() {
        let mut acl = parse(&EXTENDED);
        assert_eq!(acl.inherit(Mode::new(0o2757)), Mode::new(0o2640));
        assert_eq!(acl, parse(&[(1, 6, 0), (2, 7, 7), (4, 4, 0), (0x10, 4, 0), (0x20, 0, 0)]));
    }
}

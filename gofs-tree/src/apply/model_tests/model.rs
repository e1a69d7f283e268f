//! The model: what the manual pages say of each call, in the plainest words.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::{
    Attr, Edit, EditOp, FileType, FsError, Ino, Mode, NamespaceLimits, NewNode, Outcome, TimeChange,
    Timestamp, Usage, XattrSetMode,
};

/// What can be seen of one inode.
#[derive(Debug, PartialEq)]
pub struct Look {
    pub attr: Attr,
    pub inline: Vec<u8>,
    /// (index, chunk, blocks)
    pub chunks: Vec<(u32, u64, u32)>,
    pub xattrs: Vec<(String, Vec<u8>)>,
    pub holders: Vec<u64>,
}

/// By path.
pub type Seen = BTreeMap<String, Look>;

type Shared = Rc<RefCell<Node>>;

struct Node {
    ino: u64,
    file_type: FileType,
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    times: [Timestamp; 4],
    children: BTreeMap<String, Shared>,
    /// A file's, or a symlink's target's.
    bytes: Vec<u8>,
    file_size: u64,
    chunks: BTreeMap<u32, (u64, u32)>,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// Without a name, but open.
    holders: BTreeSet<u64>,
    removed: bool,
}

pub struct Model {
    limits: NamespaceLimits,
    root: Shared,
    orphans: BTreeMap<u64, Shared>,
    chunks_ever: Vec<u64>,
}

type Done = Result<Outcome, FsError>;

fn done(node: &Shared) -> Done {
    Ok(Outcome { ino: Ino(node.borrow().ino), removed: None })
}

fn is_dir(node: &Shared) -> bool {
    node.borrow().file_type == FileType::Directory
}

/// `node` and everything under it, each inode once a name.
fn under(node: &Shared, path: &str, out: &mut Vec<(String, Shared)>) {
    out.push((path.to_string(), node.clone()));
    for (name, child) in &node.borrow().children {
        under(child, &format!("{path}/{name}"), out);
    }
}

fn contains(tree: &Shared, node: &Shared) -> bool {
    Rc::ptr_eq(tree, node) || tree.borrow().children.values().any(|child| contains(child, node))
}

impl Node {
    fn touch(&mut self, time: Timestamp) {
        self.times[1] = time;
        self.times[2] = time;
    }

    fn executable_by_group(&self) -> bool {
        self.mode & 0o010 != 0
    }

    fn drop_privileges(&mut self) {
        if self.file_type != FileType::Directory {
            self.mode &= !0o4000;
            if self.executable_by_group() {
                self.mode &= !0o2000;
            }
        }
    }

    fn blocks(&self) -> u64 {
        self.chunks.values().map(|(_, blocks)| u64::from(*blocks)).sum()
    }
}

impl Model {
    pub fn new(limits: NamespaceLimits, time: Timestamp) -> Model {
        let root = Rc::new(RefCell::new(Node {
            ino: 1,
            file_type: FileType::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            rdev: 0,
            times: [time; 4],
            children: BTreeMap::new(),
            bytes: vec![],
            file_size: 0,
            chunks: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            holders: BTreeSet::new(),
            removed: false,
        }));
        Model { limits, root, orphans: BTreeMap::new(), chunks_ever: vec![] }
    }

    fn everything(&self) -> Vec<(String, Shared)> {
        let mut all = vec![];
        under(&self.root, "", &mut all);
        all.extend(self.orphans.iter().map(|(ino, node)| (format!("orphan {ino}"), node.clone())));
        all
    }

    fn inodes(&self) -> BTreeMap<u64, Shared> {
        self.everything().into_iter().map(|(_, node)| (node.borrow().ino, node.clone())).collect()
    }

    fn find(&self, ino: Ino) -> Result<Shared, FsError> {
        self.inodes().get(&ino.0).cloned().ok_or(FsError::Stale)
    }

    fn find_dir(&self, ino: Ino) -> Result<Shared, FsError> {
        let node = self.find(ino)?;
        if !is_dir(&node) {
            return Err(FsError::NotDirectory);
        }
        if node.borrow().removed {
            return Err(FsError::NotFound);
        }
        Ok(node)
    }

    fn find_file(&self, ino: Ino) -> Result<Shared, FsError> {
        let node = self.find(ino)?;
        let file_type = node.borrow().file_type;
        match file_type {
            FileType::File => Ok(node),
            FileType::Directory => Err(FsError::IsDirectory),
            _ => Err(FsError::Invalid),
        }
    }

    fn links(&self, node: &Shared) -> u32 {
        if is_dir(node) {
            let subdirectories = node.borrow().children.values().filter(|child| is_dir(child)).count() as u32;
            return if node.borrow().removed { 0 } else { 2 + subdirectories };
        }
        self.everything()
            .iter()
            .filter(|(path, other)| path.starts_with('/') && Rc::ptr_eq(other, node))
            .count() as u32
    }

    pub fn usage(&self) -> Usage {
        let all = self.inodes();
        let files = all.values().filter(|node| node.borrow().file_type == FileType::File);
        Usage { bytes: files.map(|node| node.borrow().file_size).sum(), inodes: all.len() as u64 }
    }

    pub fn chunks_ever(&self) -> Vec<u64> {
        let mut all = self.chunks_ever.clone();
        all.sort_unstable();
        all
    }

    pub fn seen(&self) -> Seen {
        self.everything()
            .into_iter()
            .map(|(path, shared)| {
                let node = shared.borrow();
                let size = match node.file_type {
                    FileType::File => node.file_size,
                    FileType::Directory => node.children.keys().map(|name| name.len() as u64).sum(),
                    _ => node.bytes.len() as u64,
                };
                let inline_blocks =
                    if node.file_type == FileType::File { node.bytes.len().div_ceil(4096) as u64 } else { 0 };
                let attr = Attr {
                    ino: Ino(node.ino),
                    file_type: node.file_type,
                    mode: Mode::new(node.mode),
                    uid: node.uid,
                    gid: node.gid,
                    nlink: self.links(&shared),
                    size,
                    blocks: 8 * (node.blocks() + inline_blocks),
                    rdev: node.rdev,
                    atime: node.times[0],
                    mtime: node.times[1],
                    ctime: node.times[2],
                    btime: node.times[3],
                };
                let look = Look {
                    attr,
                    inline: node.bytes.clone(),
                    chunks: node.chunks.iter().map(|(index, (id, blocks))| (*index, *id, *blocks)).collect(),
                    xattrs: node.xattrs.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
                    holders: node.holders.iter().copied().collect(),
                };
                (path, look)
            })
            .collect()
    }

    /// After `parent` lost that name of `node`: did it lose its last one?
    fn unnamed(&mut self, node: &Shared, holders: &[crate::SessionId], time: Timestamp) -> Option<Ino> {
        node.borrow_mut().times[2] = time;
        if !is_dir(node) && self.links(node) > 0 {
            return None;
        }
        let mut inside = node.borrow_mut();
        inside.removed = true;
        inside.holders = holders.iter().map(|session| session.0).collect();
        if !holders.is_empty() {
            self.orphans.insert(inside.ino, node.clone());
        }
        Some(Ino(inside.ino))
    }

    fn check_size(&self, node: &Shared, size: u64) -> Result<(), FsError> {
        if size > (1 << 32) * 65_536 {
            return Err(FsError::FileTooLarge);
        }
        let old = node.borrow().file_size;
        if size > old && self.usage().bytes - old + size > self.limits.quota_bytes {
            return Err(FsError::QuotaExceeded);
        }
        Ok(())
    }

    pub fn apply(&mut self, edit: &Edit) -> Done {
        let time = edit.time;
        match &edit.op {
            EditOp::Create { parent, name, ino, node, mode, umask, uid, gid } => {
                let parent = self.find_dir(*parent)?;
                if parent.borrow().children.contains_key(&name.to_string()) {
                    return Err(FsError::Exists);
                }
                if matches!(node, NewNode::Symlink { target } if target.is_empty()) {
                    return Err(FsError::NotFound);
                }
                if self.usage().inodes == self.limits.quota_inodes {
                    return Err(FsError::QuotaExceeded);
                }
                let mut parent = parent.borrow_mut();
                let setgid = parent.mode & 0o2000 != 0;
                let mode = mode.bits() & !(umask.bits() & 0o777);
                let (file_type, mode, bytes, rdev) = match node {
                    NewNode::File => (FileType::File, mode, vec![], 0),
                    NewNode::Directory => {
                        (FileType::Directory, mode & 0o1777 | if setgid { 0o2000 } else { 0 }, vec![], 0)
                    }
                    NewNode::Symlink { target } => (FileType::Symlink, 0o777, target.to_vec(), 0),
                    NewNode::Fifo => (FileType::Fifo, mode, vec![], 0),
                    NewNode::Socket => (FileType::Socket, mode, vec![], 0),
                    NewNode::CharDevice { rdev } => (FileType::CharDevice, mode, vec![], *rdev),
                    NewNode::BlockDevice { rdev } => (FileType::BlockDevice, mode, vec![], *rdev),
                };
                let made = Node {
                    ino: ino.0,
                    file_type,
                    mode,
                    uid: *uid,
                    gid: if setgid { parent.gid } else { *gid },
                    rdev,
                    times: [time; 4],
                    children: BTreeMap::new(),
                    bytes,
                    file_size: 0,
                    chunks: BTreeMap::new(),
                    xattrs: BTreeMap::new(),
                    holders: BTreeSet::new(),
                    removed: false,
                };
                parent.children.insert(name.to_string(), Rc::new(RefCell::new(made)));
                parent.touch(time);
                Ok(Outcome { ino: *ino, removed: None })
            }
            EditOp::Link { ino, parent, name } => {
                let parent = self.find_dir(*parent)?;
                if parent.borrow().children.contains_key(&name.to_string()) {
                    return Err(FsError::Exists);
                }
                let node = self.find(*ino)?;
                if is_dir(&node) {
                    return Err(FsError::NotPermitted);
                }
                if node.borrow().removed {
                    return Err(FsError::NotFound);
                }
                node.borrow_mut().times[2] = time;
                parent.borrow_mut().children.insert(name.to_string(), node.clone());
                parent.borrow_mut().touch(time);
                done(&node)
            }
            EditOp::Unlink { parent, name, holders } => {
                self.remove(*parent, &name.to_string(), holders, time, false)
            }
            EditOp::Rmdir { parent, name, holders } => {
                self.remove(*parent, &name.to_string(), holders, time, true)
            }
            EditOp::Rename { .. } => self.rename(edit),
            EditOp::ReleaseOrphan { ino, session } => {
                let node = self.orphans.get(&ino.0).cloned().ok_or(FsError::NotFound)?;
                if !node.borrow_mut().holders.remove(&session.0) {
                    return Err(FsError::NotFound);
                }
                let gone = node.borrow().holders.is_empty();
                if gone {
                    self.orphans.remove(&ino.0);
                }
                Ok(Outcome { ino: *ino, removed: gone.then_some(*ino) })
            }
            _ => self.change_inode(edit),
        }
    }

    fn remove(
        &mut self,
        parent: Ino,
        name: &str,
        holders: &[crate::SessionId],
        time: Timestamp,
        dir: bool,
    ) -> Done {
        let parent = self.find_dir(parent)?;
        let node = parent.borrow().children.get(name).cloned().ok_or(FsError::NotFound)?;
        match (is_dir(&node), dir) {
            (true, false) => return Err(FsError::IsDirectory),
            (false, true) => return Err(FsError::NotDirectory),
            _ => {}
        }
        if !node.borrow().children.is_empty() {
            return Err(FsError::NotEmpty);
        }
        parent.borrow_mut().children.remove(name);
        parent.borrow_mut().touch(time);
        let removed = self.unnamed(&node, holders, time);
        Ok(Outcome { removed, ..done(&node)? })
    }

    fn rename(&mut self, edit: &Edit) -> Done {
        let EditOp::Rename { parent, name, new_parent, new_name, flags, holders } = &edit.op else {
            unreachable!()
        };
        let (name, new_name) = (name.to_string(), new_name.to_string());
        if flags.no_replace && flags.exchange {
            return Err(FsError::Invalid);
        }
        let (from, to) = (self.find_dir(*parent)?, self.find_dir(*new_parent)?);
        let moved = from.borrow().children.get(&name).cloned().ok_or(FsError::NotFound)?;
        let there = to.borrow().children.get(&new_name).cloned();
        if there.is_some() && flags.no_replace {
            return Err(FsError::Exists);
        }
        if there.is_none() && flags.exchange {
            return Err(FsError::NotFound);
        }
        if there.as_ref().is_some_and(|there| Rc::ptr_eq(there, &moved)) {
            return done(&moved);
        }
        if contains(&moved, &to) {
            return Err(FsError::Invalid);
        }
        if let Some(there) = &there {
            if contains(there, &from) {
                return Err(if flags.exchange { FsError::Invalid } else { FsError::NotEmpty });
            }
            if !flags.exchange {
                match (is_dir(&moved), is_dir(there)) {
                    (true, false) => return Err(FsError::NotDirectory),
                    (false, true) => return Err(FsError::IsDirectory),
                    _ if !there.borrow().children.is_empty() => return Err(FsError::NotEmpty),
                    _ => {}
                }
            }
        }
        from.borrow_mut().children.remove(&name);
        to.borrow_mut().children.insert(new_name, moved.clone());
        let mut removed = None;
        if let Some(there) = there {
            if flags.exchange {
                from.borrow_mut().children.insert(name, there.clone());
                there.borrow_mut().times[2] = edit.time;
            } else {
                removed = self.unnamed(&there, holders, edit.time);
            }
        }
        for node in [&from, &to] {
            node.borrow_mut().touch(edit.time);
        }
        moved.borrow_mut().times[2] = edit.time;
        Ok(Outcome { removed, ..done(&moved)? })
    }

    /// The edits of one inode's own content and attributes.
    fn change_inode(&mut self, edit: &Edit) -> Done {
        let time = edit.time;
        match &edit.op {
            EditOp::SetAttr { ino, change } => {
                let node = self.find(*ino)?;
                let file_type = node.borrow().file_type;
                if change.size.is_some() && file_type != FileType::File {
                    let is_dir = file_type == FileType::Directory;
                    return Err(if is_dir { FsError::IsDirectory } else { FsError::Invalid });
                }
                if change.mode.is_some() && file_type == FileType::Symlink {
                    return Err(FsError::NotSupported);
                }
                if let Some(size) = change.size {
                    self.check_size(&node, size)?;
                    let mut node = node.borrow_mut();
                    if size < node.file_size || size == 0 {
                        node.bytes.truncate(size as usize);
                        node.chunks.retain(|index, _| u64::from(*index) * 65_536 < size);
                    }
                    node.file_size = size;
                    node.times[1] = time;
                }
                let mut inside = node.borrow_mut();
                if let Some(mode) = change.mode {
                    inside.mode = mode.bits();
                }
                if change.uid.is_some() || change.gid.is_some() || change.kill_suid_sgid {
                    inside.drop_privileges();
                }
                inside.uid = change.uid.unwrap_or(inside.uid);
                inside.gid = change.gid.unwrap_or(inside.gid);
                for (at, change) in [(0, change.atime), (1, change.mtime)] {
                    match change {
                        Some(TimeChange::Now) => inside.times[at] = time,
                        Some(TimeChange::To(given)) => inside.times[at] = given,
                        None => {}
                    }
                }
                inside.times[2] = time;
                drop(inside);
                done(&node)
            }
            EditOp::SetXattr { ino, name, value, mode } => {
                let node = self.find(*ino)?;
                self.check_user_xattr(&node, &name.to_string())?;
                let exists = node.borrow().xattrs.contains_key(&name.to_string());
                match mode {
                    XattrSetMode::Create if exists => return Err(FsError::Exists),
                    XattrSetMode::Replace if !exists => return Err(FsError::NoAttribute),
                    _ => {}
                }
                node.borrow_mut().xattrs.insert(name.to_string(), value.to_vec());
                node.borrow_mut().times[2] = time;
                done(&node)
            }
            EditOp::RemoveXattr { ino, name } => {
                let node = self.find(*ino)?;
                self.check_user_xattr(&node, &name.to_string())?;
                if node.borrow_mut().xattrs.remove(&name.to_string()).is_none() {
                    return Err(FsError::NoAttribute);
                }
                node.borrow_mut().times[2] = time;
                done(&node)
            }
            _ => self.change_content(edit),
        }
    }

    fn check_user_xattr(&self, node: &Shared, name: &str) -> Result<(), FsError> {
        let allowed = matches!(node.borrow().file_type, FileType::File | FileType::Directory);
        if name.starts_with("user.") && !allowed { Err(FsError::NotPermitted) } else { Ok(()) }
    }

    fn change_content(&mut self, edit: &Edit) -> Done {
        match &edit.op {
            EditOp::WriteInline { ino, data, size, mtime } => {
                let node = self.find_file(*ino)?;
                let too_long =
                    data.len() as u64 > u64::from(self.limits.inline_max) || *size < data.len() as u64;
                let in_chunks = {
                    let node = node.borrow();
                    !node.chunks.is_empty() && node.bytes.is_empty() && node.file_size > 0
                };
                if too_long || in_chunks {
                    return Err(FsError::Invalid);
                }
                self.check_size(&node, *size)?;
                let mut inside = node.borrow_mut();
                inside.bytes = data.to_vec();
                inside.chunks.clear();
                inside.file_size = *size;
                inside.times[1] = *mtime;
                inside.times[2] = edit.time;
                drop(inside);
                done(&node)
            }
            EditOp::AddChunk { ino, index, chunk } => {
                let node = self.find_file(*ino)?;
                if node.borrow().chunks.contains_key(&index.0) {
                    return Err(FsError::Exists);
                }
                node.borrow_mut().chunks.insert(index.0, (chunk.0, 0));
                self.chunks_ever.push(chunk.0);
                done(&node)
            }
            EditOp::Extend { ino, size, mtime, blocks_4k, clear_inline } => {
                let node = self.find_file(*ino)?;
                {
                    let node = node.borrow();
                    let known = |(index, blocks): &(crate::ChunkIndex, u32)| {
                        node.chunks.contains_key(&index.0) && *blocks <= 16
                    };
                    let hidden = !node.bytes.is_empty() && !clear_inline && !blocks_4k.is_empty();
                    let lost = !node.bytes.is_empty() && *clear_inline && !node.chunks.contains_key(&0);
                    if !blocks_4k.iter().all(known) || hidden || lost {
                        return Err(FsError::Invalid);
                    }
                }
                let size = (*size).max(node.borrow().file_size);
                self.check_size(&node, size)?;
                let mut inside = node.borrow_mut();
                for (index, blocks) in blocks_4k {
                    inside.chunks.get_mut(&index.0).unwrap().1 = *blocks;
                }
                if *clear_inline {
                    inside.bytes.clear();
                }
                inside.file_size = size;
                inside.times[1] = *mtime;
                inside.times[2] = edit.time;
                drop(inside);
                done(&node)
            }
            EditOp::Allocate { ino, end } => {
                let node = self.find_file(*ino)?;
                let size = (*end).max(node.borrow().file_size);
                self.check_size(&node, size)?;
                node.borrow_mut().file_size = size;
                node.borrow_mut().touch(edit.time);
                done(&node)
            }
            EditOp::Punch { ino, start, end } => {
                let node = self.find_file(*ino)?;
                if start > end {
                    return Err(FsError::Invalid);
                }
                let mut inside = node.borrow_mut();
                let file_size = inside.file_size;
                for (at, byte) in inside.bytes.iter_mut().enumerate() {
                    if (*start..*end).contains(&(at as u64)) {
                        *byte = 0;
                    }
                }
                // A chunk goes when no byte of it that the file has is outside of the hole.
                inside.chunks.retain(|index, _| {
                    let first = u64::from(*index) * 65_536;
                    let last = (first + 65_536).min(file_size);
                    first >= last || first < *start || last > *end
                });
                inside.touch(edit.time);
                drop(inside);
                done(&node)
            }
            other => unreachable!("{other:?} is handled elsewhere"),
        }
    }
}

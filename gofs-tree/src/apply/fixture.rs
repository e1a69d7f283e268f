//! A tree for tests. Every edit goes through the codec, is checked to have changed nothing
//! where it was refused, and to have left consistent records where it was not.

use bytes::Bytes;

use crate::{
    AttrChange, ChunkSize, Edit, EditOp, Encode, FsError, Ino, Inode, MemoryStore, Mode, Name,
    NamespaceLimits, NewNode, Outcome, ROOT_INO, RenameFlags, SessionId, Store, Timestamp, Usage, XattrName,
    XattrSetMode, apply, check,
};

pub const LIMITS: NamespaceLimits =
    NamespaceLimits { quota_bytes: 0, quota_inodes: 0, inline_max: 4096, chunk_size: SMALL_CHUNK };
/// 64 KiB.
pub const SMALL_CHUNK: ChunkSize = match ChunkSize::new(64 << 10) {
    Some(size) => size,
    None => panic!("64 KiB is a chunk size"),
};

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub fn xattr_name(text: &str) -> XattrName {
    XattrName::new(text.as_bytes()).unwrap()
}

pub struct Tree {
    pub store: MemoryStore,
    next_ino: u64,
    clock: i64,
}

impl Tree {
    pub fn new() -> Tree {
        Tree::with_limits(LIMITS)
    }

    pub fn with_limits(limits: NamespaceLimits) -> Tree {
        let store = MemoryStore::with_root(limits, Mode::new(0o755), 0, 0, Timestamp::default());
        Tree { store, next_ino: 2, clock: 1000 }
    }

    /// The time of the last edit.
    pub fn now(&self) -> Timestamp {
        Timestamp::new(self.clock, 5)
    }

    pub fn run_unchecked(&mut self, op: EditOp) -> Result<Outcome, FsError> {
        self.clock += 1;
        let edit = Edit { time: self.now(), op };
        assert_eq!(Edit::decode(&edit.to_bytes()).as_ref(), Ok(&edit));
        let before = self.store.clone();
        let result = apply(&mut self.store, &edit);
        if result.is_err() {
            assert_eq!(self.store, before, "{edit:?} was refused and changed something");
        }
        result
    }

    pub fn run(&mut self, op: EditOp) -> Result<Outcome, FsError> {
        let result = self.run_unchecked(op.clone());
        assert_eq!(check(&self.store), Vec::<String>::new(), "after {op:?}");
        result
    }

    /// Makes a node with mode 0755, umask 022, owner 10:20.
    pub fn make(&mut self, parent: Ino, at: &str, node: NewNode) -> Result<Ino, FsError> {
        self.make_with(parent, at, node, 0o755, 0o022)
    }

    pub fn make_with(
        &mut self,
        parent: Ino,
        at: &str,
        node: NewNode,
        mode: u32,
        umask: u32,
    ) -> Result<Ino, FsError> {
        let ino = Ino(self.next_ino);
        self.next_ino += 1;
        let (mode, umask) = (Mode::new(mode), Mode::new(umask));
        let outcome =
            self.run(EditOp::Create { parent, name: name(at), ino, node, mode, umask, uid: 10, gid: 20 })?;
        assert_eq!(outcome, Outcome { ino, removed: None });
        Ok(ino)
    }

    pub fn file(&mut self, parent: Ino, at: &str) -> Ino {
        self.make(parent, at, NewNode::File).unwrap()
    }

    pub fn dir(&mut self, parent: Ino, at: &str) -> Ino {
        self.make(parent, at, NewNode::Directory).unwrap()
    }

    pub fn rename(&mut self, parent: Ino, from: &str, new_parent: Ino, to: &str) -> Result<Outcome, FsError> {
        self.rename_with(parent, from, new_parent, to, RenameFlags::default())
    }

    pub fn rename_with(
        &mut self,
        parent: Ino,
        from: &str,
        new_parent: Ino,
        to: &str,
        flags: RenameFlags,
    ) -> Result<Outcome, FsError> {
        let (name, new_name) = (name(from), name(to));
        self.run(EditOp::Rename { parent, name, new_parent, new_name, flags, holders: vec![] })
    }

    pub fn unlink(&mut self, parent: Ino, at: &str, holders: &[u64]) -> Result<Outcome, FsError> {
        let holders = holders.iter().map(|id| SessionId(*id)).collect();
        self.run(EditOp::Unlink { parent, name: name(at), holders })
    }

    pub fn set_attr(&mut self, ino: Ino, change: AttrChange) -> Result<Outcome, FsError> {
        self.run(EditOp::SetAttr { ino, change })
    }

    pub fn set_xattr(&mut self, ino: Ino, name: &str, value: impl Into<Bytes>) -> Result<Outcome, FsError> {
        let (name, value) = (xattr_name(name), value.into());
        self.run(EditOp::SetXattr { ino, name, value, mode: XattrSetMode::Either })
    }

    pub fn xattr(&self, ino: Ino, name: &str) -> Option<Bytes> {
        self.store.xattr(ino, &xattr_name(name)).unwrap()
    }

    pub fn inode(&self, ino: Ino) -> Inode {
        self.store.inode(ino).unwrap().unwrap_or_else(|| panic!("{ino} does not exist"))
    }

    pub fn exists(&self, ino: Ino) -> bool {
        self.store.inode(ino).unwrap().is_some()
    }

    pub fn usage(&self) -> Usage {
        self.store.usage().unwrap()
    }

    /// Changes a record behind `apply`'s back.
    pub fn change_inode(&mut self, ino: Ino, change: impl FnOnce(&mut Inode)) {
        let mut inode = self.inode(ino);
        change(&mut inode);
        self.store.set_inode(ino, inode);
    }

    pub fn lookup(&self, parent: Ino, path: &str) -> Option<Ino> {
        path.split('/')
            .try_fold(parent, |at, part| self.store.entry(at, &name(part)).unwrap().map(|entry| entry.ino))
    }
}

#[test]
fn a_tree_starts_consistent() {
    let tree = Tree::new();
    assert_eq!(check(&tree.store), Vec::<String>::new());
    assert_eq!(tree.lookup(ROOT_INO, "x"), None);
}

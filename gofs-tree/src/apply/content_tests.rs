//! WriteInline, AddChunk, Extend, Allocate, Punch and truncation together.

use bytes::Bytes;

use super::super::fixture::{LIMITS, Tree};
use crate::{
    AttrChange, ChunkId, ChunkIndex, EditOp, FsError, Ino, NamespaceLimits, NewNode, ROOT_INO, Timestamp,
    Usage,
};

const CHUNK: u64 = 64 << 10;
const MTIME: Timestamp = Timestamp { secs: 7, nanos: 8 };

fn write_inline(ino: Ino, data: &[u8], size: u64) -> EditOp {
    EditOp::WriteInline { ino, data: Bytes::copy_from_slice(data), size, mtime: MTIME }
}

fn add_chunk(ino: Ino, index: u32) -> EditOp {
    EditOp::AddChunk { ino, index: ChunkIndex(index), chunk: ChunkId(ino.0 * 1000 + u64::from(index)) }
}

fn extend(ino: Ino, size: u64, blocks: &[(u32, u32)], clear_inline: bool) -> EditOp {
    let blocks_4k = blocks.iter().map(|(index, blocks)| (ChunkIndex(*index), *blocks)).collect();
    EditOp::Extend { ino, size, mtime: MTIME, blocks_4k, clear_inline }
}

fn truncate(ino: Ino, size: u64) -> EditOp {
    EditOp::SetAttr { ino, change: AttrChange { size: Some(size), ..AttrChange::default() } }
}

/// A file with `chunks` whole chunks of 16 blocks.
fn with_chunks(tree: &mut Tree, chunks: u32) -> Ino {
    let file = tree.file(ROOT_INO, "f");
    for index in 0..chunks {
        tree.run(add_chunk(file, index)).unwrap();
    }
    let blocks: Vec<_> = (0..chunks).map(|index| (index, 16)).collect();
    tree.run(extend(file, u64::from(chunks) * CHUNK, &blocks, false)).unwrap();
    file
}

#[test]
fn inline_content_is_replaced_whole() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    tree.run(write_inline(file, b"first, longer", 100)).unwrap();
    tree.run(write_inline(file, b"second", 6)).unwrap();
    let inode = tree.inode(file);
    assert_eq!(
        (&inode.inline[..], inode.size, inode.mtime, inode.ctime),
        (&b"second"[..], 6, MTIME, tree.now())
    );
    assert_eq!(tree.usage().bytes, 6);
}

#[test]
fn inline_content_has_bounds() {
    let mut tree = Tree::with_limits(NamespaceLimits { inline_max: 10, quota_bytes: 50, ..LIMITS });
    let file = tree.file(ROOT_INO, "f");
    assert_eq!(tree.run(write_inline(file, &[1; 11], 11)), Err(FsError::Invalid));
    assert_eq!(tree.run(write_inline(file, &[1; 10], 9)), Err(FsError::Invalid));
    assert_eq!(tree.run(write_inline(file, &[1; 10], 51)), Err(FsError::QuotaExceeded));
    assert_eq!(tree.run(write_inline(file, &[1; 10], u64::MAX)), Err(FsError::FileTooLarge));
    tree.run(write_inline(file, &[1; 10], 50)).unwrap();
    assert_eq!(tree.run(write_inline(ROOT_INO, b"", 0)), Err(FsError::IsDirectory));
}

#[test]
fn content_in_chunks_is_not_replaced_inline() {
    let mut tree = Tree::new();
    let file = with_chunks(&mut tree, 1);
    assert_eq!(tree.run(write_inline(file, b"x", 1)), Err(FsError::Invalid));
    tree.run(truncate(file, 0)).unwrap();
    tree.run(write_inline(file, b"x", 1)).unwrap();
}

#[test]
fn chunks_that_a_dead_writer_left_unfilled_give_way() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    tree.run(write_inline(file, b"x", 1)).unwrap();
    tree.run(add_chunk(file, 0)).unwrap();
    tree.run(write_inline(file, b"yz", 2)).unwrap();
    assert_eq!(tree.store.removed_chunks(), [ChunkId(file.0 * 1000)]);
    assert_eq!(&tree.inode(file).inline[..], b"yz");
}

#[test]
fn a_file_outgrows_its_inode() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    tree.run(write_inline(file, &[5; 4096], 4096)).unwrap();
    assert_eq!(tree.inode(file).attr(file).blocks, 8);
    assert_eq!(tree.run(extend(file, 5000, &[], true)), Err(FsError::Invalid), "the bytes would be lost");
    tree.run(add_chunk(file, 0)).unwrap();
    assert_eq!(tree.inode(file).inline.len(), 4096, "still the content");
    assert_eq!(
        tree.run(extend(file, 5000, &[(0, 2)], false)),
        Err(FsError::Invalid),
        "both would be content"
    );
    tree.run(extend(file, 5000, &[(0, 2)], true)).unwrap();
    let inode = tree.inode(file);
    assert_eq!((inode.inline.len(), inode.size, inode.blocks_4k, inode.mtime), (0, 5000, 2, MTIME));
    assert_eq!(inode.attr(file).blocks, 16);
}

#[test]
fn extend_counts_blocks_and_never_shrinks() {
    let mut tree = Tree::new();
    let file = with_chunks(&mut tree, 2);
    tree.run(extend(file, 10, &[(0, 3), (1, 9), (1, 4)], false)).unwrap();
    let inode = tree.inode(file);
    assert_eq!((inode.size, inode.blocks_4k), (2 * CHUNK, 7));
    assert_eq!(tree.run(extend(file, 10, &[(2, 1)], false)), Err(FsError::Invalid), "no such chunk");
    assert_eq!(tree.run(extend(file, 10, &[(0, 17)], false)), Err(FsError::Invalid), "more than a chunk has");
}

#[test]
fn extend_minds_the_quota() {
    let mut tree = Tree::with_limits(NamespaceLimits { quota_bytes: CHUNK, ..LIMITS });
    let file = with_chunks(&mut tree, 1);
    assert_eq!(tree.run(extend(file, CHUNK + 1, &[(0, 1)], false)), Err(FsError::QuotaExceeded));
    assert_eq!(tree.run(EditOp::Allocate { ino: file, end: CHUNK + 1 }), Err(FsError::QuotaExceeded));
}

#[test]
fn a_chunk_is_added_once_and_only_to_files() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    let before = tree.inode(file);
    tree.run(add_chunk(file, 3)).unwrap();
    assert_eq!(tree.inode(file).attr(file), before.attr(file), "it looks as it did");
    assert_eq!(tree.inode(file).chunks, 1);
    assert_eq!(tree.run(add_chunk(file, 3)), Err(FsError::Exists));
    assert_eq!(tree.run(add_chunk(ROOT_INO, 0)), Err(FsError::IsDirectory));
    let fifo = tree.make(ROOT_INO, "p", NewNode::Fifo).unwrap();
    assert_eq!(tree.run(add_chunk(fifo, 0)), Err(FsError::Invalid));
    let nothing = EditOp::AddChunk { ino: file, index: ChunkIndex(9), chunk: ChunkId(0) };
    assert_eq!(tree.run(nothing), Err(FsError::Invalid));
}

#[test]
fn truncation_drops_the_chunks_past_the_end() {
    let mut tree = Tree::new();
    let file = with_chunks(&mut tree, 4);
    let id = |index: u64| ChunkId(file.0 * 1000 + index);
    tree.run(truncate(file, 2 * CHUNK + 1)).unwrap();
    assert_eq!(tree.store.removed_chunks(), [id(3)]);
    tree.run(truncate(file, 2 * CHUNK)).unwrap();
    assert_eq!(tree.store.removed_chunks(), [id(3), id(2)]);
    assert_eq!((tree.inode(file).blocks_4k, tree.usage().bytes), (32, 2 * CHUNK));
    assert_eq!(tree.inode(file).chunks, 2);
    tree.run(truncate(file, 10 * CHUNK)).unwrap();
    assert_eq!(tree.store.removed_chunks().len(), 2, "growth drops nothing");
    tree.run(truncate(file, 0)).unwrap();
    assert_eq!((tree.inode(file).blocks_4k, tree.store.all_chunks().count()), (0, 0));
}

#[test]
fn truncation_to_nothing_drops_what_was_never_filled() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    tree.run(add_chunk(file, 0)).unwrap();
    tree.run(truncate(file, 0)).unwrap();
    assert_eq!(tree.store.all_chunks().count(), 0);
}

#[test]
fn allocation_only_grows() {
    let mut tree = Tree::new();
    let file = tree.file(ROOT_INO, "f");
    tree.run(write_inline(file, b"abc", 3)).unwrap();
    tree.run(EditOp::Allocate { ino: file, end: 100 }).unwrap();
    tree.run(EditOp::Allocate { ino: file, end: 50 }).unwrap();
    let inode = tree.inode(file);
    assert_eq!((inode.size, &inode.inline[..], inode.ctime), (100, &b"abc"[..], tree.now()));
    assert_eq!(tree.usage(), Usage { bytes: 100, inodes: 2 });
    assert_eq!(tree.run(EditOp::Allocate { ino: file, end: u64::MAX }), Err(FsError::FileTooLarge));
    assert_eq!(tree.run(EditOp::Allocate { ino: ROOT_INO, end: 1 }), Err(FsError::IsDirectory));
}

#[test]
fn a_hole_takes_whole_chunks_and_zeroes_inline_bytes() {
    let mut tree = Tree::new();
    let file = with_chunks(&mut tree, 4);
    let id = |index: u64| ChunkId(file.0 * 1000 + index);
    tree.run(EditOp::Punch { ino: file, start: 1, end: 2 * CHUNK }).unwrap();
    assert_eq!(tree.store.removed_chunks(), [id(1)]);
    assert_eq!((tree.inode(file).size, tree.inode(file).blocks_4k), (4 * CHUNK, 48));
    tree.run(truncate(file, 4 * CHUNK - 9)).unwrap();
    tree.run(EditOp::Punch { ino: file, start: 2 * CHUNK + 1, end: 4 * CHUNK - 10 }).unwrap();
    assert_eq!(tree.store.removed_chunks(), [id(1)], "a byte of the last chunk is left");
    tree.run(EditOp::Punch { ino: file, start: 2 * CHUNK + 1, end: 4 * CHUNK - 9 }).unwrap();
    assert_eq!(tree.store.removed_chunks(), [id(1), id(3)], "up to the end of the file is enough");

    let small = tree.file(ROOT_INO, "g");
    tree.run(write_inline(small, b"abcdef", 9)).unwrap();
    tree.run(EditOp::Punch { ino: small, start: 1, end: 3 }).unwrap();
    assert_eq!(&tree.inode(small).inline[..], b"a\0\0def");
    tree.run(EditOp::Punch { ino: small, start: 4, end: u64::MAX }).unwrap();
    let inode = tree.inode(small);
    assert_eq!((&inode.inline[..], inode.size, inode.mtime), (&b"a\0\0d\0\0"[..], 9, tree.now()));
    assert_eq!(tree.run(EditOp::Punch { ino: small, start: 3, end: 2 }), Err(FsError::Invalid));
}

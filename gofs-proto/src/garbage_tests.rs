//! No bytes make a decoder panic: neither random ones nor good ones with a few changes.

use bytes::{Bytes, BytesMut};
use gofs_tree::{
    AttrChange, ChunkRef, DirEntry, Edit, EditOp, Encode, Ino, Inode, LeaseEpoch, LeaseMode, Mode, Name,
    Orphan, Outcome, RenameFlags, SessionId, Timestamp, Usage, XattrName, XattrSetMode, make_root,
};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use crate::convert::{self, Grant, Node};
use crate::frame::{self, FrameError};
use crate::kind::DECODERS;
use crate::{chunk, cluster, session};

/// A change of bytes that damages them a little.
#[derive(Clone, Debug)]
enum Damage {
    Flip(usize, u8),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Cut(usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<usize>(), 1u8..).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        1 => (any::<usize>(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (any::<usize>(), 1usize..9).prop_map(|(at, len)| Damage::Remove(at, len)),
        1 => any::<usize>().prop_map(Damage::Cut),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        let len = bytes.len().max(1);
        match damage {
            Damage::Flip(at, bits) => {
                if let Some(byte) = bytes.get_mut(at % len) {
                    *byte ^= bits;
                }
            }
            Damage::Insert(at, new) => {
                let at = (at % len).min(bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
            Damage::Remove(at, count) => {
                let at = (at % len).min(bytes.len());
                let end = (at + count).min(bytes.len());
                bytes.drain(at..end);
            }
            Damage::Cut(at) => bytes.truncate(at % len),
        }
    }
    bytes
}

fn inode() -> Inode {
    Inode { inline: Bytes::from_static(b"bytes"), ..make_root(Mode::new(0o755), 1, 2, Timestamp::new(3, 4)) }
}

fn edits() -> Vec<Edit> {
    let name = || Name::new(b"name").unwrap();
    let xattr = XattrName::new(b"user.x").unwrap();
    let holders = vec![SessionId(1), SessionId(2)];
    let flags = RenameFlags::default();
    let change = AttrChange { size: Some(1), mode: Some(Mode::new(1)), ..AttrChange::default() };
    let blocks_4k = vec![(gofs_tree::ChunkIndex(1), 2)];
    let time = Timestamp::new(1, 2);
    [
        EditOp::Rename { parent: Ino(1), name: name(), new_parent: Ino(1), new_name: name(), flags, holders },
        EditOp::SetAttr { ino: Ino(1), change },
        EditOp::SetXattr { ino: Ino(1), name: xattr, value: "v".into(), mode: XattrSetMode::Create },
        EditOp::WriteInline { ino: Ino(1), data: "data".into(), size: 9, mtime: time },
        EditOp::Extend { ino: Ino(1), size: 1, mtime: time, blocks_4k, clear_inline: true },
    ]
    .map(|op| Edit { time, op })
    .into()
}

/// Good values of gofs-tree, as bytes.
fn tree_values() -> Vec<Vec<u8>> {
    let mut values: Vec<Vec<u8>> = edits().iter().map(Encode::to_bytes).collect();
    values.push(inode().to_bytes());
    values.push(DirEntry { ino: Ino(1), file_type: gofs_tree::FileType::File }.to_bytes());
    values.push(ChunkRef { chunk: gofs_tree::ChunkId(1), blocks_4k: 1 }.to_bytes());
    values.push(Orphan { holders: vec![SessionId(1)] }.to_bytes());
    values.push(Usage { bytes: 1, inodes: 2 }.to_bytes());
    values.push(Outcome { ino: Ino(1), removed: Some(Ino(2)) }.to_bytes());
    values
}

fn node() -> session::Node {
    let grant = Grant { ino: Ino(7), mode: LeaseMode::Write, epoch: LeaseEpoch(8) };
    (&Node::of(Ino(7), &inode(), true, Some(grant))).into()
}

/// Good headers with much in them, as bytes.
fn headers() -> Vec<Vec<u8>> {
    let item = session::DirItem { name: "n".into(), ino: 7, file_type: 1, node: Some(node()), chunk: None };
    let location = session::ChunkLocation {
        replicas: vec![session::Replica { server: 1, address: "host:1".into() }],
        ..session::ChunkLocation::default()
    };
    let write = chunk::WriteItem { chunk: 1, version: 2, offset: 3, len: 4, crc32c: 5, create: true };
    let hop = chunk::Hop { server: 1, address: "host:1".into() };
    vec![
        session::Hello {
            namespace: "demo".into(),
            token: "token".into(),
            leases: vec![session::HeldLease { ino: 1, mode: 1, epoch: 1 }],
            opens: vec![1, 2, 3],
            locks: vec![session::Lock { ino: 1, end: u64::MAX, ..session::Lock::default() }],
            ..session::Hello::default()
        }
        .encode_to_vec(),
        session::ReadDirReply { items: vec![item.clone(), item], node: Some(node()), ..Default::default() }
            .encode_to_vec(),
        session::Edits { edits: edits().iter().map(convert::edit_to_wire).collect(), ..Default::default() }
            .encode_to_vec(),
        session::EditsReply {
            results: vec![session::EditResult::new(Ok(Outcome { ino: Ino(1), removed: None }), vec![node()])],
        }
        .encode_to_vec(),
        session::ChunkMapReply { chunks: vec![location] }.encode_to_vec(),
        session::Failure::fs(gofs_tree::FsError::Io).encode_to_vec(),
        chunk::Write { items: vec![write], chain: vec![hop], ..Default::default() }.encode_to_vec(),
    ]
}

/// Everything that may be done with bytes from outside.
fn decode_all(bytes: &[u8]) {
    for (_, decode) in DECODERS {
        decode(bytes);
    }
    // Whether these succeed is not the matter; what they make of it must encode to what it was.
    fn tree<T: Encode>(bytes: &[u8]) {
        if let Ok(value) = T::decode(bytes) {
            assert_eq!(value.to_bytes(), bytes);
        }
    }
    tree::<Inode>(bytes);
    tree::<DirEntry>(bytes);
    tree::<ChunkRef>(bytes);
    tree::<Orphan>(bytes);
    tree::<Usage>(bytes);
    tree::<Edit>(bytes);
    tree::<Outcome>(bytes);
    let _ = cluster::Report::decode(bytes).is_ok();
    let _ = cluster::Instruction::decode(bytes).is_ok();
    let _ = cluster::SnapshotPart::decode(bytes).is_ok();
    convert_all(bytes);
}

/// The conversions of whatever can be read as a message.
fn convert_all(bytes: &[u8]) {
    if let Ok(reply) = session::ReadDirReply::decode(bytes) {
        for item in &reply.items {
            let _ = (convert::name(&item.name).is_ok(), convert::file_type(item.file_type).is_ok());
        }
        for node in reply.items.iter().filter_map(|item| item.node.as_ref()).chain(&reply.node) {
            if let Ok(good) = Node::try_from(node) {
                assert_eq!(Node::try_from(&session::Node::from(&good)), Ok(good));
            }
        }
    }
    if let Ok(reply) = session::EditsReply::decode(bytes) {
        for result in &reply.results {
            let _ = result.outcome().is_ok();
        }
    }
    if let Ok(edits) = session::Edits::decode(bytes) {
        for edit in &edits.edits {
            let _ = convert::edit(edit).is_ok();
        }
    }
    if let Ok(hello) = session::Hello::decode(bytes) {
        for lease in &hello.leases {
            let _ = Grant::try_from(lease).is_ok();
        }
    }
    if let Ok(failure) = session::Failure::decode(bytes) {
        let _ = failure.to_fs_error().is_ok();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_panic_no_decoder(bytes in vec(any::<u8>(), 0..200)) {
        decode_all(&bytes);
        let _ = frame::decode(&mut BytesMut::from(&bytes[..])).is_ok();
    }

    #[test]
    fn damaged_values_panic_no_decoder(which in any::<usize>(), damages in vec(damage(), 1..5)) {
        let values = [tree_values(), headers()].concat();
        decode_all(&damaged(values[which % values.len()].clone(), &damages));
    }

    #[test]
    fn damaged_frames_are_refused_or_wait_and_never_differ(
        which in any::<usize>(),
        payload in vec(any::<u8>(), 0..50),
        damages in vec(damage(), 0..4),
    ) {
        let headers = headers();
        let hello = session::Hello::decode(&headers[0][..]).unwrap();
        let mut whole = frame::encode_head((which % 9) as u16, which as u64, &hello, payload.len()).to_vec();
        let head = whole.len();
        whole.extend(payload);
        let bytes = damaged(whole.clone(), &damages);
        match frame::decode(&mut BytesMut::from(&bytes[..])) {
            // The checksum covers the head; what came through has the head that was sent.
            Ok(Ok(_)) => prop_assert_eq!(&bytes[..head], &whole[..head]),
            Ok(Err(needed)) => prop_assert!(needed > bytes.len() && needed <= 24 + (16 << 20)),
            Err(FrameError::TooLong { .. } | FrameError::Lengths | FrameError::Checksum { .. }) => {}
        }
    }
}

#[test]
fn the_samples_are_good_before_they_are_damaged() {
    for bytes in headers() {
        assert!(DECODERS.iter().any(|(_, decode)| decode(&bytes)));
    }
    for edit in edits() {
        assert_eq!(Edit::decode(&edit.to_bytes()), Ok(edit));
    }
    assert!(DECODERS.len() >= 2 * 27);
}

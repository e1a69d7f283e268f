use bytes::Bytes;

use super::*;
use crate::{ChunkIndex, FileType, Mode, Name, Timestamp, XattrName};

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// Each operation, and each choice inside one, at least once.
fn every_kind() -> Vec<EditOp> {
    let create = |node| EditOp::Create {
        parent: Ino(1),
        name: name("a"),
        ino: Ino(2),
        node,
        mode: Mode::new(0o644),
        umask: Mode::new(0o22),
        uid: 3,
        gid: 4,
    };
    let set_attr = |change| EditOp::SetAttr { ino: Ino(2), change };
    let set_xattr = |mode| EditOp::SetXattr {
        ino: Ino(2),
        name: XattrName::new(b"user.x").unwrap(),
        value: Bytes::from_static(b"v\0w"),
        mode,
    };
    let rename = |no_replace, exchange| EditOp::Rename {
        parent: Ino(1),
        name: name("a"),
        new_parent: Ino(5),
        new_name: name("b"),
        flags: RenameFlags { no_replace, exchange },
        holders: vec![SessionId(8)],
    };
    let time = Timestamp::new(-7, 8);
    vec![
        create(NewNode::File),
        create(NewNode::Directory),
        create(NewNode::Symlink { target: Bytes::from_static(b"../x") }),
        create(NewNode::Fifo),
        create(NewNode::Socket),
        create(NewNode::CharDevice { rdev: 6 }),
        create(NewNode::BlockDevice { rdev: 7 }),
        EditOp::Link { ino: Ino(2), parent: Ino(1), name: name("b") },
        EditOp::Unlink { parent: Ino(1), name: name("b"), holders: vec![SessionId(1), SessionId(2)] },
        EditOp::Rmdir { parent: Ino(1), name: name("d"), holders: vec![] },
        rename(false, false),
        rename(true, false),
        rename(false, true),
        rename(true, true),
        set_attr(AttrChange::default()),
        set_attr(AttrChange { mode: Some(Mode::new(0o7777)), ..AttrChange::default() }),
        set_attr(AttrChange { uid: Some(1), ..AttrChange::default() }),
        set_attr(AttrChange { gid: Some(1), ..AttrChange::default() }),
        set_attr(AttrChange { size: Some(u64::MAX), ..AttrChange::default() }),
        set_attr(AttrChange { atime: Some(TimeChange::Now), ..AttrChange::default() }),
        set_attr(AttrChange { mtime: Some(TimeChange::To(time)), ..AttrChange::default() }),
        set_attr(AttrChange {
            mode: Some(Mode::new(1)),
            uid: Some(2),
            gid: Some(3),
            size: Some(4),
            atime: Some(TimeChange::To(time)),
            mtime: Some(TimeChange::Now),
            kill_suid_sgid: true,
        }),
        set_xattr(XattrSetMode::Either),
        set_xattr(XattrSetMode::Create),
        set_xattr(XattrSetMode::Replace),
        EditOp::RemoveXattr { ino: Ino(2), name: XattrName::new(b"user.x").unwrap() },
        EditOp::WriteInline { ino: Ino(2), data: Bytes::from_static(b"data"), size: 9, mtime: time },
        EditOp::AddChunk { ino: Ino(2), index: ChunkIndex(1), chunk: ChunkId(77) },
        EditOp::Extend {
            ino: Ino(2),
            size: 1 << 40,
            mtime: time,
            blocks_4k: vec![(ChunkIndex(0), 1), (ChunkIndex(9), 2)],
            clear_inline: true,
        },
        EditOp::Allocate { ino: Ino(2), end: 1 },
        EditOp::Punch { ino: Ino(2), start: 1, end: 2 },
        EditOp::ReleaseOrphan { ino: Ino(2), session: SessionId(3) },
    ]
}

#[test]
fn every_edit_comes_back() {
    for op in every_kind() {
        let edit = Edit { time: Timestamp::new(1, 2), op };
        assert_eq!(Edit::decode(&edit.to_bytes()), Ok(edit));
    }
}

#[test]
fn every_cut_or_lengthened_edit_is_refused() {
    for op in every_kind() {
        let whole = Edit { time: Timestamp::new(1, 2), op }.to_bytes();
        for len in 0..whole.len() {
            assert_eq!(
                Edit::decode(&whole[..len]),
                Err(CodecError::Short { what: "edit" }),
                "{whole:?} {len}"
            );
        }
        let long = [&whole[..], &[0]].concat();
        assert_eq!(Edit::decode(&long), Err(CodecError::Malformed { what: "edit" }), "{whole:?}");
    }
}

/// What decodes is the only encoding of what it decodes to: else two replicas could hold one record
/// as different bytes.
#[test]
fn no_flipped_byte_decodes_to_a_second_encoding() {
    for op in every_kind() {
        let whole = Edit { time: Timestamp::new(1, 2), op }.to_bytes();
        for at in 0..whole.len() {
            for flip in [1, 2, 0x40, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                if let Ok(edit) = Edit::decode(&bytes) {
                    assert_eq!(edit.to_bytes(), bytes);
                }
            }
        }
    }
}

#[test]
fn edit_bytes_are_golden() {
    // One line an operation: the format is on disks and must not move.
    let golden = include_str!("edit_golden.txt");
    let now: Vec<String> = every_kind()
        .into_iter()
        .map(|op| {
            let bytes = Edit { time: Timestamp::new(1, 2), op }.to_bytes();
            bytes.iter().map(|b| format!("{b:02x}")).collect()
        })
        .collect();
    assert_eq!(now, golden.lines().collect::<Vec<_>>());
}

#[test]
fn a_create_is_laid_out_as_documented() {
    let edit = Edit { time: Timestamp::new(1, 2), op: every_kind().swap_remove(0) };
    let golden: &[u8] = b"\x01\x01\0\0\0\0\0\0\0\x02\0\0\0\x01\
        \x01\0\0\0\0\0\0\0\x01a\x02\0\0\0\0\0\0\0\x01\xa4\x01\x12\0\x03\0\0\0\x04\0\0\0";
    assert_eq!(edit.to_bytes().escape_ascii().to_string(), golden.escape_ascii().to_string());
}

#[test]
fn outcomes_are_golden_and_come_back() {
    let plain = Outcome { ino: Ino(5), removed: None };
    assert_eq!(plain.to_bytes(), b"\x01\x05\0\0\0\0\0\0\0\0");
    let removed = Outcome { ino: Ino(5), removed: Some(Ino(6)) };
    assert_eq!(removed.to_bytes(), b"\x01\x05\0\0\0\0\0\0\0\x01\x06\0\0\0\0\0\0\0");
    for outcome in [plain, removed] {
        assert_eq!(Outcome::decode(&outcome.to_bytes()), Ok(outcome));
    }
}

#[test]
fn a_new_node_tells_its_type() {
    assert_eq!(NewNode::Directory.file_type(), FileType::Directory);
}

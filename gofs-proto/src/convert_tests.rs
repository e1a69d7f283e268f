use gofs_tree::{EditOp, make_root};

use super::*;

fn attr() -> Attr {
    let mut attr = make_root(Mode::new(0o1755), 3, 4, Timestamp::new(-5, 6)).attr(Ino(9));
    attr.rdev = 7;
    attr.size = u64::MAX;
    attr.btime = Timestamp::new(i64::MAX, 999_999_999);
    attr
}

fn node() -> Node {
    let grant = Grant { ino: Ino(9), mode: LeaseMode::Write, epoch: LeaseEpoch(3) };
    Node {
        attr: attr(),
        grant: Some(grant),
        inline: Bytes::from_static(b"x"),
        has_chunks: false,
        has_xattrs: true,
    }
}

#[test]
fn a_node_survives_the_wire() {
    let node = node();
    assert_eq!(Node::try_from(&session::Node::from(&node)), Ok(node.clone()));
    let bare = Node { grant: None, has_chunks: true, ..node };
    assert_eq!(Node::try_from(&session::Node::from(&bare)), Ok(bare));
}

#[test]
fn every_file_type_and_lease_mode_survives_the_wire() {
    for kind in FileType::ALL {
        assert_eq!(file_type(file_type_to_wire(*kind)), Ok(*kind));
    }
    for mode in [None, Some(LeaseMode::Read), Some(LeaseMode::Write)] {
        assert_eq!(lease_mode(lease_mode_to_wire(mode)), Ok(mode));
    }
}

#[test]
fn an_attr_with_a_bad_field_is_refused_by_its_name() {
    let good = session::Attr::from(&attr());
    let refused = |change: fn(&mut session::Attr)| {
        let mut bad = good;
        change(&mut bad);
        Attr::try_from(&bad).unwrap_err().to_string()
    };
    assert_eq!(refused(|a| a.ino = 0), "inode number cannot be 0");
    assert_eq!(refused(|a| a.file_type = 0), "file type cannot be 0");
    assert_eq!(refused(|a| a.file_type = 257), "file type cannot be 257");
    assert_eq!(refused(|a| a.mode = 0o10000), "mode cannot be 4096");
    assert_eq!(refused(|a| a.btime = None), "btime is missing");
    assert_eq!(
        refused(|a| a.mtime = Some(session::Time { secs: 0, nanos: 1_000_000_000 })),
        "nanoseconds cannot be 1000000000"
    );
}

#[test]
fn a_grant_of_nothing_or_of_another_inode_is_refused() {
    let mut wire = session::Node::from(&node());
    wire.grant.as_mut().unwrap().mode = 0;
    assert!(Node::try_from(&wire).is_err());
    let mut wire = session::Node::from(&node());
    wire.grant.as_mut().unwrap().ino = 10;
    assert!(Node::try_from(&wire).is_err());
    assert!(lease_mode(-1).is_err());
    assert!(lease_mode(3).is_err());
}

#[test]
fn failures_carry_every_error_but_not_cached() {
    for error in FsError::ALL {
        let back = session::Failure::fs(*error).to_fs_error();
        if *error == FsError::NotCached {
            assert!(back.is_err());
        } else {
            assert_eq!(back, Ok(Some(*error)));
        }
    }
    assert_eq!(session::Failure::not_leader(Some("h:1")).to_fs_error(), Ok(None));
    assert_eq!(session::Failure::not_leader(Some("h:1")).leader, "h:1");
    let unknown = session::Failure { fs_error: 9999, ..session::Failure::fs(FsError::Io) };
    assert!(unknown.to_fs_error().is_err());
}

#[test]
fn edit_results_survive_the_wire() {
    for result in [
        Ok(Outcome { ino: Ino(3), removed: None }),
        Ok(Outcome { ino: Ino(3), removed: Some(Ino(4)) }),
        Err(FsError::NotEmpty),
    ] {
        assert_eq!(session::EditResult::new(result, Vec::new()).outcome(), Ok(result));
    }
    assert!(session::EditResult::default().outcome().is_err(), "done, yet to no inode");
    assert!(session::EditResult { fs_error: 12345, ..Default::default() }.outcome().is_err());
}

#[test]
fn edits_survive_the_wire_and_garbage_is_a_bad_request() {
    let release =
        Edit { time: Timestamp::new(1, 2), op: EditOp::ReleaseOrphan { ino: Ino(3), session: SessionId(4) } };
    assert_eq!(edit(&edit_to_wire(&release)), Ok(release));
    let failure = session::Failure::from(edit(b"\x02").unwrap_err());
    assert_eq!(failure.code(), Code::BadRequest);
    assert_eq!(failure.text, "edit: format version 2 is newer than this program");
}

#[test]
fn names_are_checked() {
    assert_eq!(name(b"a").unwrap().as_bytes(), b"a");
    assert_eq!(
        name(b"a/b").unwrap_err().to_string(),
        "name: a name cannot be '.' or '..', nor contain '/' or NUL"
    );
    assert!(xattr_name(b"user.a\0").is_err());
    assert_eq!(ino(0), Err(ConvertError::Range { what: "inode number", value: 0 }));
    assert_eq!((session_id(0), session_id(5)), (None, Some(SessionId(5))));
}

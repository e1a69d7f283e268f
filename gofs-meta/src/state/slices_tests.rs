use std::collections::BTreeMap;
use std::path::Path;

use gofs_tree::{
    AttrChange, ChunkSize, Edit, EditOp, EditSeq, Encode, FsError, Ino, Mode, Name, NamespaceId, NewNode,
    ROOT_INO, SessionId, Timestamp, Usage,
};
use proptest::prelude::*;

use super::super::{LogEntry, LogPosition, StateConfig, StateStore};
use crate::command::{Command, CommandOutcome, NamespaceConfig};

const NS: NamespaceId = NamespaceId(1);
const SMALL: StateConfig = StateConfig { record_cache_bytes: 16 << 10, block_cache_bytes: 1 << 20 };
const SESSIONS: u64 = 3;
const NOTHING: Usage = Usage { bytes: 0, inodes: 0 };

fn amount(bytes: u64, inodes: u64) -> Usage {
    Usage { bytes, inodes }
}

/// A namespace with a quota and sessions that count their edits.
struct Fixture {
    state: StateStore,
    next_seq: BTreeMap<u64, u64>,
    next_ino: u64,
}

impl Fixture {
    fn new(dir: &Path, quota: Usage) -> Fixture {
        let state = StateStore::open(dir, SMALL).unwrap();
        let mut fixture = Fixture { state, next_seq: BTreeMap::new(), next_ino: 2 };
        let config = Fixture::config(quota);
        fixture.run(Command::CreateNamespace { name: "n".into(), config, time: Timestamp::new(1, 0) });
        for id in 1..=SESSIONS {
            fixture.open(id);
        }
        fixture
    }

    fn config(quota: Usage) -> NamespaceConfig {
        NamespaceConfig {
            chunk_size: ChunkSize::new(64 << 10).unwrap(),
            quota_bytes: quota.bytes,
            quota_inodes: quota.inodes,
            ..NamespaceConfig::default()
        }
    }

    fn open(&mut self, id: u64) {
        self.run(Command::OpenSession {
            session: SessionId(id),
            namespace: NS,
            token: [id as u8; 16],
            host: "host".into(),
            mount_point: "/mnt".into(),
            pid: 3,
        });
    }

    fn run(&mut self, command: Command) -> CommandOutcome {
        let position = LogPosition { term: 1, index: self.state.applied().0 + 1 };
        let entry = (position, LogEntry::Command(command.to_bytes().into()));
        self.state.apply(&[entry]).unwrap().remove(0)
    }

    fn delegate(&mut self, session: u64, want: Usage, known: Usage) -> Usage {
        let session = SessionId(session);
        match self.run(Command::Delegate { session, want, known, give_back: false }) {
            CommandOutcome::Delegated(given) => given,
            other => panic!("{other:?}"),
        }
    }

    fn give_back(&mut self, session: u64) {
        let session = SessionId(session);
        self.run(Command::Delegate { session, want: NOTHING, known: NOTHING, give_back: true });
    }

    /// The results, as many as there are: fewer where slices are in the way.
    fn edit(&mut self, session: u64, is_batch: bool, ops: Vec<EditOp>) -> Vec<Result<(), FsError>> {
        let count = ops.len() as u64;
        let edits = ops.into_iter().map(|op| Edit { time: Timestamp::new(2, 0), op }).collect();
        let next = self.next_seq.entry(session).or_insert(1);
        let (first_seq, answered) = (EditSeq(*next), EditSeq(*next - 1));
        *next += count;
        let session = SessionId(session);
        let command = if is_batch {
            Command::Batch { session, first_seq, answered, edits }
        } else {
            Command::Edits { session, first_seq, answered, edits }
        };
        match self.run(command) {
            CommandOutcome::Edits { results, .. } => {
                results.into_iter().map(|result| result.map(drop)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn create(&mut self, session: u64, is_batch: bool) -> (Ino, Vec<Result<(), FsError>>) {
        let ino = Ino(self.next_ino);
        self.next_ino += 1;
        if is_batch {
            self.run(Command::ReserveInos { session: SessionId(session), first: ino, count: 1 });
        }
        let op = EditOp::Create {
            parent: ROOT_INO,
            name: Name::new(format!("f{ino}").as_bytes()).unwrap(),
            ino,
            node: NewNode::File,
            mode: Mode::new(0o644),
            umask: Mode::default(),
            uid: 1,
            gid: 2,
        };
        (ino, self.edit(session, is_batch, vec![op]))
    }

    fn resize(ino: Ino, size: u64) -> EditOp {
        EditOp::SetAttr { ino, change: AttrChange { size: Some(size), ..AttrChange::default() } }
    }

    fn usage(&self) -> Usage {
        self.state.namespace(NS).unwrap().unwrap().usage
    }

    fn left(&self, session: u64) -> Usage {
        let slices = self.state.slices(NS).unwrap();
        slices.into_iter().find(|(id, _)| id.0 == session).map_or(NOTHING, |(_, left)| left)
    }
}

#[test]
fn a_slice_is_used_first_by_its_session_and_by_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::new(dir.path(), amount(0, 1001));
    let given = fixture.delegate(1, amount(5, 1_000_000), NOTHING);
    assert_eq!(given, amount(0, 125), "a part of what is free; bytes have no quota");
    for _ in 0..875 {
        assert_eq!(fixture.create(2, false).1, [Ok(())]);
    }
    assert_eq!(fixture.create(2, false).1, [], "what is left is the first session's");
    assert_eq!(fixture.create(2, true).1, [], "whatever way it comes");
    assert_eq!(fixture.create(1, false).1, [], "a single edit leaves the own slice alone");
    for _ in 0..125 {
        assert_eq!(fixture.create(1, true).1, [Ok(())]);
    }
    assert_eq!(fixture.left(1), NOTHING);
    assert_eq!(fixture.create(1, true).1, [Err(FsError::QuotaExceeded)], "now it is full");
    assert_eq!(fixture.usage().inodes, 1001);
}

#[test]
fn what_does_not_fit_ends_its_batch_and_is_decided_when_slices_are_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::new(dir.path(), amount(80 << 20, 0));
    let ino = fixture.create(1, false).0;
    assert_eq!(fixture.delegate(2, amount(u64::MAX, 0), NOTHING), amount(10 << 20, 0));
    let ops =
        vec![Fixture::resize(ino, 1 << 20), Fixture::resize(ino, 75 << 20), Fixture::resize(ino, 2 << 20)];
    assert_eq!(fixture.edit(1, true, ops.clone()), [Ok(())]);
    fixture.give_back(2);
    fixture.next_seq.insert(1, 3);
    assert_eq!(fixture.edit(1, true, ops[1..].to_vec()), [Ok(()), Ok(())]);
    assert_eq!(fixture.usage().bytes, 2 << 20);
}

#[test]
fn a_wish_that_comes_again_is_answered_and_a_lost_slice_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::new(dir.path(), amount(0, 8001));
    let given = fixture.delegate(1, amount(0, 500), NOTHING);
    assert_eq!((given, fixture.left(1)), (amount(0, 500), amount(0, 500)));
    assert_eq!(fixture.delegate(1, amount(0, 500), NOTHING), given, "once");
    assert_eq!(fixture.delegate(1, amount(0, 500), given), amount(0, 1000));
    fixture.run(Command::SetNamespace { id: NS, config: Fixture::config(amount(0, 100)) });
    assert_eq!(fixture.left(1), NOTHING);
    assert_eq!(fixture.delegate(1, amount(0, 500), amount(0, 1000)), NOTHING);
}

#[test]
fn little_is_not_divided() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::new(dir.path(), amount(4 << 20, 100));
    assert_eq!(fixture.delegate(1, amount(1 << 40, 1 << 40), NOTHING), NOTHING);
}

#[derive(Clone, Debug)]
enum Step {
    Delegate(u64, u64, u64),
    GiveBack(u64),
    Create(u64, bool),
    Resize(u64, bool, usize, u64),
    Unlink(u64, usize),
    Reopen(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let session = || 1..=SESSIONS;
    prop_oneof![
        2 => (session(), 0..6u64 << 20, 0..300u64).prop_map(|(s, b, i)| Step::Delegate(s, b, i)),
        1 => session().prop_map(Step::GiveBack),
        8 => (session(), any::<bool>()).prop_map(|(s, batch)| Step::Create(s, batch)),
        8 => (session(), any::<bool>(), any::<usize>(), 0..9u64 << 20)
            .prop_map(|(s, batch, file, size)| Step::Resize(s, batch, file, size)),
        2 => (session(), any::<usize>()).prop_map(|(s, file)| Step::Unlink(s, file)),
        1 => session().prop_map(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn usage_and_slices_never_exceed_the_quota(steps in proptest::collection::vec(step(), 1..250)) {
        let quota = amount(64 << 20, 1200);
        let dir = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::new(dir.path(), quota);
        let mut files: Vec<(Ino, u64)> = Vec::new();
        let mut known: BTreeMap<u64, Usage> = BTreeMap::new();
        // What each session's batches may still make, as it counts it.
        let mut promised: BTreeMap<u64, Usage> = BTreeMap::new();
        let mut id_of: BTreeMap<u64, u64> = (1..=SESSIONS).map(|s| (s, s)).collect();
        let mut next_id = SESSIONS + 1;
        for step in steps {
            match step {
                Step::Delegate(s, bytes, inodes) => {
                    let id = id_of[&s];
                    let before = known.get(&id).copied().unwrap_or_default();
                    let given = fixture.delegate(id, amount(bytes, inodes), before);
                    let left = promised.entry(id).or_default();
                    left.bytes += given.bytes - before.bytes;
                    left.inodes += given.inodes - before.inodes;
                    known.insert(id, given);
                }
                Step::GiveBack(s) => {
                    fixture.give_back(id_of[&s]);
                    promised.remove(&id_of[&s]);
                }
                Step::Create(s, batch) => {
                    let id = id_of[&s];
                    let (ino, results) = fixture.create(id, batch);
                    let left = promised.entry(id).or_default();
                    if batch && left.inodes > 0 {
                        prop_assert_eq!(&results, &vec![Ok(())], "promised");
                        left.inodes -= 1;
                    }
                    if results == [Ok(())] {
                        files.push((ino, 0));
                    }
                }
                Step::Resize(s, batch, file, size) => {
                    if files.is_empty() {
                        continue;
                    }
                    let at = file % files.len();
                    let (ino, before) = files[at];
                    let id = id_of[&s];
                    let grows = size.saturating_sub(before);
                    let left = promised.entry(id).or_default();
                    let results = fixture.edit(id, batch, vec![Fixture::resize(ino, size)]);
                    if batch {
                        if grows <= left.bytes {
                            prop_assert_eq!(&results, &vec![Ok(())], "promised");
                        }
                        if results == [Ok(())] {
                            left.bytes -= grows.min(left.bytes);
                        }
                    }
                    if results == [Ok(())] {
                        files[at].1 = size;
                    }
                }
                Step::Unlink(s, file) => {
                    if files.is_empty() {
                        continue;
                    }
                    let (ino, _) = files.swap_remove(file % files.len());
                    let name = Name::new(format!("f{ino}").as_bytes()).unwrap();
                    let op = EditOp::Unlink { parent: ROOT_INO, name, holders: Vec::new() };
                    prop_assert_eq!(fixture.edit(id_of[&s], true, vec![op]), vec![Ok(())]);
                }
                Step::Reopen(s) => {
                    let session = SessionId(id_of[&s]);
                    fixture.run(Command::EndSession { session, fenced: false });
                    fixture.open(next_id);
                    id_of.insert(s, next_id);
                    next_id += 1;
                }
            }
            let (usage, sliced) = (fixture.usage(), fixture.state.sliced(NS).unwrap());
            prop_assert!(usage.bytes + sliced.bytes <= quota.bytes);
            prop_assert!(usage.inodes + sliced.inodes <= quota.inodes);
            prop_assert_eq!(usage.bytes, files.iter().map(|(_, size)| size).sum::<u64>());
            prop_assert_eq!(usage.inodes, files.len() as u64 + 1);
            let sum = fixture.state.slices(NS).unwrap().into_iter().fold(NOTHING, |sum, (_, left)| {
                amount(sum.bytes + left.bytes, sum.inodes + left.inodes)
            });
            prop_assert_eq!(sum, sliced);
            for (id, promised) in &promised {
                if id_of.values().any(|live| live == id) {
                    prop_assert_eq!(*promised, fixture.left(*id));
                }
            }
        }
    }
}

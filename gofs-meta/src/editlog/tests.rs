use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;

use super::segment::{Entry, HEADER_BYTES, Record, Segment, preallocate};
use super::vote::Vote;
use super::{EditLog, EditLogConfig, EditLogError};
use crate::state::LogPosition;

const SALT: u64 = 0x0123_4567_89ab_cdef;

fn config(dir: &Path, segment_bytes: u64) -> EditLogConfig {
    EditLogConfig { dir: dir.join("log"), segment_bytes, cache_bytes: 1 << 10, salt: SALT }
}

fn at(term: u64, index: u64) -> LogPosition {
    LogPosition { term, index }
}

fn payload(term: u64, index: u64, len: usize) -> Bytes {
    (0..len).map(|byte| (term * 31 + index * 7 + byte as u64) as u8).collect::<Vec<_>>().into()
}

/// Waits for a request's result.
fn wait(ask: impl FnOnce(super::Done)) {
    let (sender, receiver) = channel();
    ask(Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv().unwrap().unwrap();
}

fn all(log: &EditLog) -> Vec<(LogPosition, Bytes)> {
    let mut entries = Vec::new();
    let mut next = log.purged().map_or(0, |purged| purged.index + 1);
    loop {
        let more = log.read(next, u64::MAX, 700).unwrap();
        let Some((last, _)) = more.last() else { return entries };
        next = last.index + 1;
        entries.extend(more);
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        // A file of zeros may be renamed while this goes on.
        if !entry.file_name().to_string_lossy().ends_with(".new") {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn a_log_that_cannot_be_written_any_more_is_closed_with_the_reason_and_does_not_hang() {
    let dir = tempfile::tempdir().unwrap();
    let log = EditLog::open(&config(dir.path(), 1 << 20)).unwrap();
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    let (sender, receiver) = channel();
    log.save_vote(b"vote".to_vec(), Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv().unwrap().unwrap_err();
    let (sender, closed) = channel();
    std::thread::spawn(move || sender.send(log.close()));
    let closed = closed.recv_timeout(std::time::Duration::from_secs(20));
    closed.expect("its thread ends").unwrap_err();
}

#[test]
fn golden_bytes_of_a_record_a_segment_and_a_vote() {
    let mut record = Vec::new();
    let position = LogPosition { term: 2, index: 4 };
    let entry = Entry::Append { position, payload: Bytes::from_static(b"edit") };
    Record { seq: 9, synced: 8, entry }.encode(SALT, &mut record);
    let mut golden = b"GrEc\x01\0\0\0\x04\0\0\0".to_vec();
    golden.extend_from_slice(&record[12..16]);
    for field in [9u64, 8, 2, 4] {
        golden.extend_from_slice(&field.to_le_bytes());
    }
    golden.extend_from_slice(b"edit");
    assert_eq!(record, golden);
    assert_eq!(record[12..16], GOLDEN_RECORD_CRC, "{:02x?}", &record[12..16]);

    let dir = tempfile::tempdir().unwrap();
    let zeros = dir.path().join("zeros");
    preallocate(&zeros, 64).unwrap();
    Segment::create(dir.path(), &zeros, SALT, 5).unwrap();
    let bytes = fs::read(dir.path().join("00000000000000000005.log")).unwrap();
    let mut header = b"gofslog1\x01\0\0\0\xef\xcd\xab\x89\x67\x45\x23\x01\x05\0\0\0\0\0\0\0".to_vec();
    header.extend_from_slice(&GOLDEN_HEADER_CRC);
    header.resize(64, 0);
    assert_eq!(bytes, header, "{:02x?}", &bytes[28..32]);

    let vote = Vote { vote: Some(vec![7, 8]), purged: Some(position), committed: None };
    let mut golden = b"gofsvote\x01\x01\x02\0\0\0\x07\x08\x01".to_vec();
    for field in [2u64, 4] {
        golden.extend_from_slice(&field.to_le_bytes());
    }
    golden.extend_from_slice(&[0; 17]);
    golden.extend_from_slice(&GOLDEN_VOTE_CRC);
    assert_eq!(vote.encode(), golden, "{:02x?}", vote.encode());
}

const GOLDEN_RECORD_CRC: [u8; 4] = [0xd3, 0x18, 0x85, 0x6c];
const GOLDEN_HEADER_CRC: [u8; 4] = [0x9c, 0xb0, 0xe0, 0xdf];
const GOLDEN_VOTE_CRC: [u8; 4] = [0x33, 0x2b, 0x62, 0x17];

#[test]
fn entries_votes_and_purges_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 4096);
    let log = EditLog::open(&config).unwrap();
    wait(|done| log.save_vote(b"vote".to_vec(), done));
    for index in 0..200 {
        wait(|done| log.append(vec![(at(1, index), payload(1, index, 100))], done));
    }
    let segments = || fs::read_dir(&config.dir).unwrap().count();
    let before = segments();
    wait(|done| log.purge(at(1, 149), done));
    assert!(segments() < before - 2, "purged segments are deleted");
    log.save_committed(Some(at(1, 180)));
    log.close().unwrap();

    let log = EditLog::open(&config).unwrap();
    assert_eq!(log.vote().as_deref(), Some(&b"vote"[..]));
    assert_eq!((log.purged(), log.last()), (Some(at(1, 149)), Some(at(1, 199))));
    assert_eq!(log.committed(), Some(at(1, 180)));
    let expected: Vec<_> = (150..200).map(|index| (at(1, index), payload(1, index, 100))).collect();
    assert_eq!(all(&log), expected);
    log.close().unwrap();
}

#[test]
fn appends_from_many_threads_share_syncs_and_all_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 1 << 20);
    let log = EditLog::open(&config).unwrap();
    let next = Arc::new(Mutex::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let (sender, receiver) = channel();
                    {
                        // Raft appends in order.
                        let mut next = next.lock();
                        let done = Box::new(move |result| sender.send(result).unwrap());
                        log.append(vec![(at(1, *next), payload(1, *next, 64))], done);
                        *next += 1;
                    }
                    receiver.recv().unwrap().unwrap();
                }
            });
        }
    });
    log.close().unwrap();
    let log = EditLog::open(&config).unwrap();
    assert_eq!(all(&log).len(), 400);
    log.close().unwrap();
}

#[test]
fn an_entry_larger_than_a_segment_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 4096);
    let log = EditLog::open(&config).unwrap();
    for (index, len) in [(0, 10), (1, 100_000), (2, 10)] {
        wait(|done| log.append(vec![(at(1, index), payload(1, index, len))], done));
    }
    log.close().unwrap();
    let log = EditLog::open(&config).unwrap();
    assert_eq!(all(&log)[1].1, payload(1, 1, 100_000));
    log.close().unwrap();
}

#[test]
fn a_snapshot_past_the_last_entry_replaces_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 4096);
    let log = EditLog::open(&config).unwrap();
    wait(|done| log.append((0..10).map(|index| (at(1, index), payload(1, index, 9))).collect(), done));
    wait(|done| log.purge(at(3, 50), done));
    assert_eq!(log.last(), Some(at(3, 50)));
    wait(|done| log.append(vec![(at(3, 51), payload(3, 51, 9))], done));
    log.close().unwrap();
    let log = EditLog::open(&config).unwrap();
    assert_eq!((log.purged(), log.last()), (Some(at(3, 50)), Some(at(3, 51))));
    assert_eq!(all(&log), [(at(3, 51), payload(3, 51, 9))]);
    log.close().unwrap();
}

#[test]
fn damage_in_the_middle_stops_the_start_and_says_where_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 1 << 16);
    let log = EditLog::open(&config).unwrap();
    for index in 0..20 {
        wait(|done| log.append(vec![(at(1, index), payload(1, index, 100))], done));
    }
    log.close().unwrap();
    let path = config.dir.join("00000000000000000001.log");
    let whole = fs::read(&path).unwrap();
    let records_end = HEADER_BYTES + 19 * 148;
    // Every record but the last, whose damage looks like a torn write unless something committed says otherwise.
    for offset in (0..records_end).step_by(13) {
        let mut bytes = whole.clone();
        bytes[offset as usize] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        let Err(error @ EditLogError::Damaged { .. }) = EditLog::open(&config) else {
            panic!("a flipped bit at byte {offset} goes unnoticed");
        };
        let text = error.to_string();
        assert!(text.contains("00000000000000000001.log") && text.contains("delete"), "{text}");
    }
    fs::write(&path, &whole).unwrap();
    EditLog::open(&config).unwrap().close().unwrap();
}

#[test]
fn a_committed_entry_that_is_gone_is_damage_even_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 1 << 16);
    let log = EditLog::open(&config).unwrap();
    wait(|done| log.append((0..3).map(|index| (at(1, index), payload(1, index, 10))).collect(), done));
    log.save_committed(Some(at(1, 2)));
    log.close().unwrap();
    let path = config.dir.join("00000000000000000001.log");
    let mut bytes = fs::read(&path).unwrap();
    bytes[HEADER_BYTES as usize + 2 * 58 + 50] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(EditLog::open(&config), Err(EditLogError::Damaged { .. })));
}

/// What a test does to a log.
#[derive(Clone, Debug)]
enum Op {
    Append {
        count: u64,
        len: usize,
    },
    /// Drops this share of the entries that may be dropped, of 256, and goes on in a new term.
    Truncate {
        share: u8,
    },
    Purge {
        share: u8,
    },
    Vote,
    Restart,
    /// Power fails while the next append is being written: some of its sectors make it.
    Crash {
        count: u64,
        len: usize,
        kept: u64,
        cut: u16,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1..6u64, 0..600usize).prop_map(|(count, len)| Op::Append { count, len }),
        2 => any::<u8>().prop_map(|share| Op::Truncate { share }),
        2 => any::<u8>().prop_map(|share| Op::Purge { share }),
        1 => Just(Op::Vote),
        1 => Just(Op::Restart),
        3 => (1..6u64, 0..600usize, any::<u64>(), any::<u16>())
            .prop_map(|(count, len, kept, cut)| Op::Crash { count, len, kept, cut }),
    ]
}

#[derive(Default)]
struct Model {
    entries: BTreeMap<u64, (u64, usize)>,
    purged: Option<LogPosition>,
    term: u64,
    vote: Option<Vec<u8>>,
}

impl Model {
    fn next(&self) -> u64 {
        let last = self.entries.keys().next_back().copied();
        last.or(self.purged.map(|purged| purged.index)).map_or(0, |last| last + 1)
    }

    fn append(&mut self, count: u64, len: usize) -> Vec<(LogPosition, Bytes)> {
        let first = self.next();
        let entries: Vec<_> = (first..first + count)
            .map(|index| (at(self.term, index), payload(self.term, index, len)))
            .collect();
        for (position, _) in &entries {
            self.entries.insert(position.index, (self.term, len));
        }
        entries
    }

    fn expected(&self) -> Vec<(LogPosition, Bytes)> {
        self.entries
            .iter()
            .map(|(&index, &(term, len))| (at(term, index), payload(term, index, len)))
            .collect()
    }
}

/// Lays the old sectors over the new ones, but for those that `kept` says were written.
fn tear(before: &Path, after: &Path, kept: u64, cut: u16) {
    // A segment is synced before the next one is made: only the last can be torn.
    let last = fs::read_dir(after)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".log"));
    if let Some(entry) = last.max_by_key(fs::DirEntry::file_name) {
        let name = entry.file_name();
        let new = fs::read(entry.path()).unwrap();
        let old = fs::read(before.join(&name)).ok();
        // A file that appeared was durable before any record went into it.
        let old = old.unwrap_or_else(|| {
            let mut zeros = new.clone();
            zeros[HEADER_BYTES as usize..].fill(0);
            zeros
        });
        assert_eq!(old.len(), new.len());
        let mut torn = new.clone();
        let mut changed = 0;
        for sector in 0..new.len().div_ceil(512) {
            let range = sector * 512..((sector + 1) * 512).min(new.len());
            if old[range.clone()] == new[range.clone()] {
                continue;
            }
            if kept >> (changed % 64) & 1 == 0 {
                torn[range.clone()].copy_from_slice(&old[range.clone()]);
            } else if changed % 3 == 2 {
                // Not even a sector is whole everywhere.
                let from = range.start + usize::from(cut) % range.len();
                torn[from..range.end].copy_from_slice(&old[from..range.end]);
            }
            changed += 1;
        }
        fs::OpenOptions::new().write(true).open(entry.path()).unwrap().write_all_at(&torn, 0).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_log_is_what_the_model_says_through_crashes(ops in proptest::collection::vec(op(), 1..25)) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path(), 2048);
        let mut model = Model { term: 1, ..Model::default() };
        let mut log = EditLog::open(&config).unwrap();
        for (step, op) in ops.into_iter().enumerate() {
            match op {
                Op::Append { count, len } => {
                    let entries = model.append(count, len);
                    wait(|done| log.append(entries, done));
                }
                Op::Truncate { share } => {
                    let keep = model.entries.len() * usize::from(share) / 256;
                    let keep: Vec<u64> = model.entries.keys().copied().take(keep).collect();
                    let after = keep.last().copied().or(model.purged.map(|purged| purged.index));
                    model.entries.retain(|index, _| keep.contains(index));
                    model.term += 1;
                    wait(|done| log.truncate_after(after, done));
                }
                Op::Purge { share } => {
                    let gone = model.entries.len() * usize::from(share) / 256;
                    if let Some((&index, &(term, _))) = model.entries.iter().nth(gone) {
                        model.purged = Some(at(term, index));
                        model.entries.retain(|present, _| *present > index);
                        wait(|done| log.purge(at(term, index), done));
                    }
                }
                Op::Vote => {
                    let vote = vec![step as u8; 9];
                    model.vote = Some(vote.clone());
                    wait(|done| log.save_vote(vote, done));
                }
                Op::Restart => {
                    log.close().unwrap();
                    log = EditLog::open(&config).unwrap();
                }
                Op::Crash { count, len, kept, cut } => {
                    let before = dir.path().join(format!("before-{step}"));
                    let after = dir.path().join(format!("after-{step}"));
                    copy_dir(&config.dir, &before);
                    let known = model.entries.len();
                    let entries = model.append(count, len);
                    wait(|done| log.append(entries, done));
                    copy_dir(&config.dir, &after.join("log"));
                    log.close().unwrap();
                    tear(&before, &after.join("log"), kept, cut);
                    config.dir = after.join("log");
                    log = EditLog::open(&config).unwrap();
                    let found = all(&log);
                    let expected = model.expected();
                    prop_assert!(found.len() >= known && found.len() <= expected.len(), "acknowledged entries are there");
                    prop_assert_eq!(&found[..], &expected[..found.len()]);
                    let unwritten: Vec<u64> = model.entries.keys().copied().skip(found.len()).collect();
                    model.entries.retain(|index, _| !unwritten.contains(index));
                }
            }
            prop_assert_eq!(all(&log), model.expected());
            prop_assert_eq!(log.purged(), model.purged);
            prop_assert_eq!(log.vote(), model.vote.clone());
        }
        log.close().unwrap();
    }

    #[test]
    fn a_flipped_bit_is_noticed_or_cuts_the_last_record_only(
        lens in proptest::collection::vec(0..300usize, 2..12), place in any::<u64>(), bit in 0..8u8,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 8192);
        let log = EditLog::open(&config).unwrap();
        let mut model = Model { term: 1, ..Model::default() };
        for len in lens {
            let entries = model.append(1, len);
            wait(|done| log.append(entries, done));
        }
        log.close().unwrap();
        let path = config.dir.join("00000000000000000001.log");
        let mut bytes = fs::read(&path).unwrap();
        let offset = usize::try_from(place % bytes.len() as u64).unwrap();
        bytes[offset] ^= 1 << bit;
        fs::write(&path, &bytes).unwrap();
        if let Ok(log) = EditLog::open(&config) {
            let found = all(&log);
            let expected = model.expected();
            prop_assert!(found.len() + 1 >= expected.len(), "only the last can be taken for torn");
            prop_assert_eq!(&found[..], &expected[..found.len()]);
            log.close().unwrap();
        }
    }
}

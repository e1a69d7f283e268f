//! A file to which all mounts append: every record is there once, whole, and in an order that does not contradict when it was written.

use crate::watch::{Fence, Stamp, show};

/// What was appended so long before a fence has reached the servers: 5 s, and what servers may take that just come back.
const REACHED_NS: Stamp = 30_000_000_000;
/// How each record begins.
const MARK: &str = "<rec ";

/// A record that was appended.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// By which mount.
    pub mount: usize,
    /// Unlike any other.
    pub number: u64,
    /// When the call began.
    pub begun: Stamp,
    /// When it returned.
    pub ended: Stamp,
    /// An fsync after it returned without an error.
    pub synced: bool,
    /// The call returned an error: it may have been done.
    pub failed: bool,
}

impl Record {
    /// Its bytes: text of 30 to some thousands.
    pub fn text(&self) -> String {
        text(self.mount, self.number)
    }

    fn may_be_lost(&self, fences: &[Vec<Fence>]) -> bool {
        !self.synced
            && (self.failed
                || fences[self.mount]
                    .iter()
                    .any(|fence| self.begun <= fence.ended && self.ended + REACHED_NS >= fence.begun))
    }
}

fn text(mount: usize, number: u64) -> String {
    let mixed = (number ^ ((mount as u64) << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let length = if mixed.is_multiple_of(16) { mixed >> 50 } else { mixed >> 56 };
    let fill: String = (0..length).map(|i| char::from(b'a' + ((mixed >> (i % 48)) % 26) as u8)).collect();
    format!("{MARK}{mount} {number} {fill}>\n")
}

/// Reads a record at the beginning of `bytes`: its mount, number and length.
fn parse(bytes: &[u8]) -> Option<(usize, u64, usize)> {
    let rest = bytes.strip_prefix(MARK.as_bytes())?;
    let head = String::from_utf8_lossy(&rest[..rest.len().min(48)]).into_owned();
    let mut words = head.split(' ');
    let (mount, number) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let whole = text(mount, number);
    bytes.starts_with(whole.as_bytes()).then_some((mount, number, whole.len()))
}

/// Compares what the file holds with all that was appended to it. Every violation found.
pub fn check(bytes: &[u8], records: &[Record], fences: &[Vec<Fence>]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut found: Vec<(usize, u64)> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if let Some((mount, number, length)) = parse(&bytes[at..]) {
            found.push((mount, number));
            at += length;
            continue;
        }
        let end = next_record(bytes, at + 1);
        let gap = &bytes[at..end];
        // A write-back that was cut short by the end of its session leaves the beginning of what it wrote.
        let begun = |record: &Record| record.may_be_lost(fences) && record.text().as_bytes().starts_with(gap);
        if !records.iter().any(begun) {
            let shown = String::from_utf8_lossy(&gap[..gap.len().min(60)]).into_owned();
            wrong.push(format!("torn: {} bytes at {at} are no record: {shown:?}", gap.len()));
        }
        at = end;
    }
    for record in records {
        let times =
            found.iter().filter(|(mount, number)| (*mount, *number) == (record.mount, record.number)).count();
        if times > 1 {
            wrong.push(format!("{record:?} is there {times} times"));
        }
        if times == 0 && !record.may_be_lost(fences) {
            wrong.push(format!(
                "lost: {record:?} of {} bytes is not in {} bytes",
                record.text().len(),
                bytes.len()
            ));
        }
    }
    let mut latest: Option<&Record> = None;
    for (mount, number) in &found {
        let record = records.iter().find(|record| (record.mount, record.number) == (*mount, *number));
        let Some(record) = record else {
            wrong.push(format!("record {number} of mount {mount} was never appended"));
            continue;
        };
        if let Some(latest) = latest.filter(|latest| !record.failed && record.ended < latest.begun) {
            wrong.push(format!(
                "order: {record:?} lies behind {latest:?}, which was not begun before {}",
                show(latest.begun)
            ));
        }
        if latest.is_none_or(|latest| record.begun > latest.begun) {
            latest = Some(record);
        }
    }
    wrong
}

/// Where the next whole record begins, or the end.
fn next_record(bytes: &[u8], from: usize) -> usize {
    (from..bytes.len()).find(|&at| parse(&bytes[at..]).is_some()).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Stamp = 1_000_000_000;
    const CALM: [Vec<Fence>; 2] = [vec![], vec![]];

    fn record(mount: usize, number: u64) -> Record {
        let begun = number * S;
        Record { mount, number, begun, ended: begun + S / 2, synced: false, failed: false }
    }

    fn file(records: &[Record]) -> Vec<u8> {
        records.iter().map(Record::text).collect::<String>().into_bytes()
    }

    fn fenced(begun: Stamp, ended: Stamp) -> Vec<Vec<Fence>> {
        vec![vec![Fence { begun: begun * S, ended: ended * S }], vec![]]
    }

    #[test]
    fn a_whole_file_is_right() {
        let records: Vec<Record> = (1..50).map(|number| record(number as usize % 2, number)).collect();
        assert_eq!(check(&file(&records), &records, &CALM), Vec::<String>::new());
    }

    #[test]
    fn a_missing_a_doubled_and_an_unknown_record_are_found() {
        let records = [record(0, 1), record(1, 2), record(0, 3)];
        assert!(check(&file(&[records[0], records[2]]), &records, &CALM)[0].starts_with("lost"));
        let doubled = [records[0], records[1], records[1], records[2]];
        assert!(check(&file(&doubled), &records, &CALM)[0].contains("2 times"));
        assert!(check(&file(&records), &records[..2], &CALM)[0].contains("never"));
    }

    #[test]
    fn torn_and_overwritten_bytes_are_found() {
        let records = [record(0, 1), record(1, 2), record(0, 3)];
        let mut bytes = file(&records);
        let middle = records[0].text().len() + 10;
        bytes[middle] ^= 1;
        assert!(check(&bytes, &records, &CALM).iter().any(|wrong| wrong.starts_with("torn")));
        let mut short = file(&records);
        short.pop();
        assert!(check(&short, &records, &CALM).iter().any(|wrong| wrong.starts_with("torn")));
    }

    #[test]
    fn an_order_against_time_is_found() {
        let records = [record(0, 1), record(1, 2)];
        assert!(check(&file(&[records[1], records[0]]), &records, &CALM)[0].starts_with("order"));
        let at_once = [Record { ended: 3 * S, ..records[0] }, records[1]];
        assert_eq!(check(&file(&[at_once[1], at_once[0]]), &at_once, &CALM), Vec::<String>::new());
    }

    #[test]
    fn a_fence_explains_what_was_not_fsynced_and_its_torn_beginning() {
        let records = [record(0, 1), record(1, 60)];
        assert_eq!(check(&file(&records[1..]), &records, &fenced(2, 40)), Vec::<String>::new());
        let mut torn = records[0].text().into_bytes()[..9].to_vec();
        torn.extend(file(&records[1..]));
        assert_eq!(check(&torn, &records, &fenced(2, 40)), Vec::<String>::new());
        assert_eq!(check(&torn, &records, &CALM).len(), 2);
        let synced = [Record { synced: true, ..records[0] }, records[1]];
        assert!(!check(&file(&records[1..]), &synced, &fenced(2, 40)).is_empty());
        assert!(!check(&file(&records[1..]), &records, &fenced(100, 140)).is_empty());
    }
}

//! What the log must remember beside its entries: the vote, what was purged, and a hint of what is committed.
//!
//! One small file, replaced as a whole: written under another name, synced, renamed, directory synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::segment::sync_dir;
use crate::codec::{Reader, Writer};
use crate::state::LogPosition;

const MAGIC: &[u8; 8] = b"gofsvote";
const VERSION: u8 = 1;
pub(super) const FILE: &str = "vote";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Vote {
    /// Raft's vote, as raft encodes it.
    pub vote: Option<Vec<u8>>,
    /// Entries up to here are gone.
    pub purged: Option<LogPosition>,
    /// Entries up to here were committed; there may be more.
    pub committed: Option<LogPosition>,
}

fn write_position(out: &mut Writer<'_>, position: Option<LogPosition>) {
    out.bool(position.is_some());
    let position = position.unwrap_or_default();
    out.u64(position.term);
    out.u64(position.index);
}

fn read_position(from: &mut Reader<'_>) -> Result<Option<LogPosition>, gofs_tree::CodecError> {
    let is_some = from.bool()?;
    let position = LogPosition { term: from.u64()?, index: from.u64()? };
    Ok(is_some.then_some(position))
}

impl Vote {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let mut out = Writer(&mut bytes);
        out.u8(VERSION);
        out.bool(self.vote.is_some());
        out.bytes(self.vote.as_deref().unwrap_or_default());
        write_position(&mut out, self.purged);
        write_position(&mut out, self.committed);
        let crc = crc32c::crc32c(out.0);
        out.u32(crc);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (payload, crc) = bytes.split_last_chunk().ok_or("too short")?;
        if crc32c::crc32c(payload) != u32::from_le_bytes(*crc) {
            return Err("checksum does not match".into());
        }
        let payload = payload.strip_prefix(MAGIC).ok_or("not a vote file")?;
        let read = || {
            let mut from = Reader::new("vote", payload);
            from.version(VERSION)?;
            let has_vote = from.bool()?;
            let vote = from.bytes()?.to_vec();
            let purged = read_position(&mut from)?;
            let committed = read_position(&mut from)?;
            from.end()?;
            Ok(Vote { vote: has_vote.then_some(vote), purged, committed })
        };
        read().map_err(|error: gofs_tree::CodecError| error.to_string())
    }

    /// `None` where there is no file: a fresh log.
    pub fn load(dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(dir.join(FILE)) {
            Ok(bytes) => match Vote::decode(&bytes) {
                Ok(vote) => Ok(Some(vote)),
                Err(reason) => Err(io::Error::new(io::ErrorKind::InvalidData, reason)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn save(&self, dir: &Path) -> io::Result<()> {
        let temporary = dir.join("vote.new");
        let mut file = File::create(&temporary)?;
        file.write_all(&self.encode())?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(FILE))?;
        sync_dir(dir)
    }
}

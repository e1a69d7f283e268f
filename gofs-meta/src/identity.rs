//! Whose a data directory is, of which format, and whether it holds all that its server once acknowledged.
//!
//! The file `id` has text lines, the last of which is the checksum of those before. Directories of before it had a format have
//! the id alone. A format that is not known is refused before anything in the directory is looked at.
//! A new directory may be the second one of a server that lost its first. It is marked until a leader has brought it up:
//! a restart half way must not let a server vote with half of a log (decision 7).

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use gofs_tree::MetaServerId;

use crate::group::StartError;

const FILE: &str = "id";
const FIRST_LINE: &str = "gofs-meta directory, format 1";
const ANY_FORMAT: &str = "gofs-meta directory, format ";
/// What a crash while marking may leave behind.
const NEW: &str = "id.new";
/// There while the directory may lack what its server acknowledged.
const INCOMPLETE: &str = "incomplete";
/// What may be in a directory that is taken for empty: the root of an ext4 has the latter.
const IGNORED: [&str; 3] = [NEW, INCOMPLETE, "lost+found"];

/// Marks a new directory as this MetaServer's; refuses one of another. Whether it is not known to be whole.
pub(crate) fn check(data: &Path, id: MetaServerId) -> Result<bool, StartError> {
    let failed = |error: io::Error| StartError::Storage(format!("{}: {error}", data.display()));
    fs::create_dir_all(data).map_err(failed)?;
    let path = data.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => match decode(&text) {
            Ok(owner) if owner == id => data.join(INCOMPLETE).try_exists().map_err(failed),
            Ok(owner) => Err(StartError::Identity(format!(
                "{} holds the data of MetaServer {}, not of {}: give its id or another data directory",
                data.display(),
                owner.0,
                id.0
            ))),
            Err(problem) => Err(StartError::Identity(format!("{}: {problem}", path.display()))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(stranger) = stranger(data).map_err(failed)? {
                return Err(StartError::Identity(format!(
                    "{} is not the data directory of a MetaServer, and not empty ({stranger:?} is there): give an empty or a new one",
                    data.display(),
                )));
            }
            mark(data, id).map_err(failed)?;
            Ok(true)
        }
        Err(error) => Err(failed(error)),
    }
}

fn encode(id: MetaServerId) -> String {
    let text = format!("{FIRST_LINE}\nid {}\n", id.0);
    let crc = crc32c::crc32c(text.as_bytes());
    format!("{text}crc32c {crc:08x}\n")
}

fn decode(text: &str) -> Result<MetaServerId, String> {
    const DAMAGED: &str = "it is damaged. If other MetaServers run, delete this one's data directory and start it again; else restore a backup";
    let first = text.lines().next().unwrap_or_default();
    if let Ok(id) = text.trim().parse() {
        return Ok(MetaServerId(id));
    }
    if first != FIRST_LINE {
        let newer = first.starts_with(ANY_FORMAT);
        return Err(if newer {
            format!("{first:?} is a format that this version of gofs does not know: run a newer one")
        } else {
            DAMAGED.to_owned()
        });
    }
    let id = text.lines().nth(1).and_then(|line| line.strip_prefix("id ")?.parse().ok()).map(MetaServerId);
    id.filter(|id| encode(*id) == text).ok_or_else(|| DAMAGED.to_owned())
}

/// Something in a directory that keeps it from being taken for empty.
pub(crate) fn stranger(data: &Path) -> io::Result<Option<OsString>> {
    for entry in fs::read_dir(data)? {
        let name = entry?.file_name();
        if !IGNORED.iter().any(|ignored| name == *ignored) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// A leader has brought this server to where it was, or there was nothing before.
pub(crate) fn set_whole(data: &Path) -> io::Result<()> {
    match fs::remove_file(data.join(INCOMPLETE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // If a power cut brought the marks of all members back, none would be elected any more.
        removed => removed.and_then(|()| fs::File::open(data)?.sync_all()),
    }
}

fn mark(data: &Path, id: MetaServerId) -> io::Result<()> {
    fs::File::create(data.join(INCOMPLETE))?.sync_all()?;
    name_owner(data, id)
}

/// The directory is that server's from now on. Everything in it must be durable.
pub(crate) fn name_owner(data: &Path, id: MetaServerId) -> io::Result<()> {
    let temporary = data.join(NEW);
    let mut file = fs::File::create(&temporary)?;
    file.write_all(encode(id).as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, data.join(FILE))?;
    fs::File::open(data)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_as_it_always_was_and_what_is_damaged_or_newer_is_refused() {
        let text = "gofs-meta directory, format 1\nid 3\ncrc32c 00000000\n";
        let crc = crc32c::crc32c(b"gofs-meta directory, format 1\nid 3\n");
        let text = text.replace("00000000", &format!("{crc:08x}"));
        assert_eq!(encode(MetaServerId(3)), text);
        assert_eq!(decode(&text), Ok(MetaServerId(3)));
        assert_eq!(decode("3\n"), Ok(MetaServerId(3)), "of before there was a format");
        let newer = decode(&text.replace("format 1", "format 2")).unwrap_err();
        assert!(newer.contains("newer"), "{newer}");
        for bad in ["", "x", &text.replace("id 3", "id 4"), &text[..text.len() - 3]] {
            assert!(decode(bad).unwrap_err().contains("damaged"), "{bad:?}");
        }
    }

    #[test]
    fn a_directory_with_anything_of_others_in_it_is_not_taken_for_empty() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        fs::write(dir.path().join(NEW), "").unwrap();
        check(dir.path(), MetaServerId(3)).unwrap();
        check(dir.path(), MetaServerId(3)).unwrap();
        assert!(matches!(check(dir.path(), MetaServerId(4)), Err(StartError::Identity(_))));
        fs::remove_file(dir.path().join(FILE)).unwrap();
        fs::write(dir.path().join("mine"), "").unwrap();
        assert!(matches!(check(dir.path(), MetaServerId(3)), Err(StartError::Identity(_))));
    }

    #[test]
    fn a_new_directory_is_incomplete_over_restarts_until_it_was_brought_up() {
        let dir = tempfile::tempdir().unwrap();
        let id = MetaServerId(3);
        assert!(check(dir.path(), id).unwrap());
        assert!(check(dir.path(), id).unwrap(), "a restart changes nothing");
        set_whole(dir.path()).unwrap();
        assert!(!check(dir.path(), id).unwrap());
        set_whole(dir.path()).unwrap();
        assert!(check(dir.path(), MetaServerId(4)).is_err());
    }
}

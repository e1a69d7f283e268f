//! Whose a data directory is: the file `gofs-chunk.id`, and the lock that keeps a second process out.
//!
//! Text lines, the last of which is the checksum of those before. The file appears whole or not at all.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use gofs_tree::ChunkServerId;

use super::file::replace;

const FILE: &str = "gofs-chunk.id";
const FIRST_LINE: &str = "gofs chunk directory, format 1";
/// Names that may be in a directory that is taken for empty.
const IGNORED: [&str; 2] = ["lost+found", "gofs-chunk.new"];

/// A cluster, chosen at random when it was made.
pub type ClusterId = [u8; 16];

/// What the identity file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `None` until the server was adopted by a cluster.
    pub cluster: Option<ClusterId>,
    /// The server whose directory it is.
    pub server: ChunkServerId,
    /// This directory, chosen at random when it was made.
    pub disk: u64,
    /// How often the server had started when it last used this directory: one that was away lags behind the others.
    pub starts: u64,
}

/// Why a data directory is refused.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Something else is in it.
    #[error(
        "{} is not a gofs data directory and not empty (it holds {found:?}): give an empty directory, or move its \
         contents away",
        path.display()
    )]
    Foreign {
        /// Data directory.
        path: PathBuf,
        /// A name in it.
        found: String,
    },
    /// The file cannot be trusted.
    #[error(
        "{} is damaged ({what}): restore it from the other data directories' by hand, or empty the \
         directory and have its chunks copied from other servers",
        path.display()
    )]
    Damaged {
        /// Identity file.
        path: PathBuf,
        /// What does not fit.
        what: &'static str,
    },
    /// A later gofs wrote it.
    #[error("{}: {found:?} is a format that this version of gofs does not know: run a newer one", path.display())]
    Newer {
        /// Identity file.
        path: PathBuf,
        /// Its first line.
        found: String,
    },
    /// Another process has it.
    #[error("{} is in use by another gofs-chunk: stop that one, or give another directory", path.display())]
    Locked {
        /// Data directory.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    move |source| IdentityError::Io { what, path: path.to_owned(), source }
}

/// A directory that this process owns for as long as the value lives.
#[derive(Debug)]
pub struct Claim {
    /// Kept for its lock.
    _lock: File,
    /// What the file says; `None` in an empty directory.
    pub identity: Option<Identity>,
}

/// Makes the directory if there is none, takes its lock, and reads whose it is. Changes nothing else.
pub fn claim(dir: &Path) -> Result<Claim, IdentityError> {
    std::fs::create_dir_all(dir).map_err(io_error("making", dir))?;
    let lock = File::open(dir).map_err(io_error("opening", dir))?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => IdentityError::Locked { path: dir.to_owned() },
        TryLockError::Error(source) => IdentityError::Io { what: "locking", path: dir.to_owned(), source },
    })?;
    let path = dir.join(FILE);
    let identity = match std::fs::read_to_string(&path) {
        Ok(text) => Some(decode(&text, &path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            for entry in std::fs::read_dir(dir).map_err(io_error("reading", dir))? {
                let name =
                    entry.map_err(io_error("reading", dir))?.file_name().to_string_lossy().into_owned();
                if !IGNORED.contains(&name.as_str()) {
                    return Err(IdentityError::Foreign { path: dir.to_owned(), found: name });
                }
            }
            None
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(IdentityError::Damaged { path, what: "not text" });
        }
        Err(error) => return Err(io_error("reading", &path)(error)),
    };
    Ok(Claim { _lock: lock, identity })
}

/// Writes whose the directory is. Durable when this returns.
pub fn write(dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    let path = dir.join(FILE);
    replace(&path, encode(identity).as_bytes(), &None).map_err(io_error("writing", &path))
}

fn encode(identity: &Identity) -> String {
    let cluster = identity.cluster.map_or("none".to_owned(), |id| hex(&id));
    let text = format!(
        "{FIRST_LINE}\ncluster {cluster}\nserver {:016x}\ndisk {:016x}\nstarts {:016x}\n",
        identity.server.0, identity.disk, identity.starts
    );
    format!("{text}crc32c {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

/// Bytes as people read them.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(text: &str, path: &Path) -> Result<Identity, IdentityError> {
    let damaged = |what| IdentityError::Damaged { path: path.to_owned(), what };
    let first = text.lines().next().unwrap_or_default();
    let (body, crc) = text.split_once("crc32c ").ok_or(damaged("no checksum"))?;
    if crc != format!("{:08x}\n", crc32c::crc32c(body.as_bytes())) {
        return Err(damaged("its checksum does not fit"));
    }
    if first != FIRST_LINE {
        return Err(IdentityError::Newer { path: path.to_owned(), found: first.to_owned() });
    }
    let field = |name: &str| body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let number = |name| {
        field(name).and_then(|hex| u64::from_str_radix(hex, 16).ok()).ok_or(damaged("a number is missing"))
    };
    let cluster = match field("cluster").ok_or(damaged("no cluster"))? {
        "none" => None,
        hex => {
            let id = u128::from_str_radix(hex, 16).map_err(|_| damaged("the cluster id is not a number"))?;
            Some(id.to_be_bytes())
        }
    };
    Ok(Identity {
        cluster,
        server: ChunkServerId(number("server")?),
        disk: number("disk")?,
        starts: number("starts")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity =
        Identity { cluster: Some([0x1f; 16]), server: ChunkServerId(3), disk: 4, starts: 5 };

    #[test]
    fn an_identity_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(claim(dir.path()).unwrap().identity, None);
        for identity in [IDENTITY, Identity { cluster: None, ..IDENTITY }] {
            write(dir.path(), &identity).unwrap();
            assert_eq!(claim(dir.path()).unwrap().identity, Some(identity));
        }
    }

    #[test]
    fn the_format_is_the_one_of_version_1() {
        let text = encode(&IDENTITY);
        let body = "gofs chunk directory, format 1\ncluster 1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f\n\
                    server 0000000000000003\ndisk 0000000000000004\n\
                    starts 0000000000000005\ncrc32c ";
        assert_eq!(&text[..body.len()], body);
    }

    #[test]
    fn a_foreign_directory_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "precious").unwrap();
        let error = claim(dir.path()).unwrap_err();
        assert!(matches!(&error, IdentityError::Foreign { found, .. } if found == "thesis.tex"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_second_owner_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = claim(dir.path()).unwrap();
        assert!(matches!(claim(dir.path()), Err(IdentityError::Locked { .. })));
        drop(first);
        claim(dir.path()).unwrap();
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let text = encode(&IDENTITY).into_bytes();
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let Ok(text) = String::from_utf8(bytes) else { continue };
            assert!(decode(&text, Path::new("x")).is_err(), "bit {bit}");
        }
    }
}

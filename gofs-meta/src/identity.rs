//! Whose a data directory is.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use gofs_tree::MetaServerId;

use crate::group::StartError;

const FILE: &str = "id";
/// What a crash while marking may leave behind.
const NEW: &str = "id.new";

/// Marks a new directory as this MetaServer's; refuses one of another.
pub(crate) fn check(data: &Path, id: MetaServerId) -> Result<(), StartError> {
    let failed = |error: io::Error| StartError::Storage(format!("{}: {error}", data.display()));
    fs::create_dir_all(data).map_err(failed)?;
    let path = data.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) if text.trim() == id.0.to_string() => Ok(()),
        Ok(text) => Err(StartError::Identity(format!(
            "{} holds the data of MetaServer {}, not of {}: give its id or another data directory",
            data.display(),
            text.trim(),
            id.0
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let stranger =
                fs::read_dir(data).map_err(failed)?.flatten().find(|entry| entry.file_name() != NEW);
            if let Some(stranger) = stranger {
                return Err(StartError::Identity(format!(
                    "{} is not the data directory of a MetaServer, and not empty ({:?} is there): give an empty or a new one",
                    data.display(),
                    stranger.file_name()
                )));
            }
            mark(data, id).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn mark(data: &Path, id: MetaServerId) -> io::Result<()> {
    let temporary = data.join(NEW);
    let mut file = fs::File::create(&temporary)?;
    writeln!(file, "{}", id.0)?;
    file.sync_all()?;
    fs::rename(&temporary, data.join(FILE))?;
    fs::File::open(data)?.sync_all()
}

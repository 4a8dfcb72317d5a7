//! What a node keeps of the log over its own end: how far it has read, and what it has not been able to say yet.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::notices::Epoch;

/// The longest file that is read, in bytes.
const BYTES_MAX: u64 = 64 << 20;

/// The file's content, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Notices up to this one have been taken in.
    pub(super) epoch: Epoch,
    /// The texts of those that wait to be sent, the oldest first.
    #[serde(default)]
    pub(super) pending: Vec<String>,
}

impl State {
    pub(super) fn new(epoch: Epoch, pending: &[Arc<str>]) -> Self {
        Self { epoch, pending: pending.iter().map(|text| text.to_string()).collect() }
    }

    /// `None` if there is no file.
    ///
    /// # Errors
    /// When it cannot be read, or is no such file.
    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::metadata(path) {
            Ok(metadata) if metadata.len() > BYTES_MAX => return Err(io::ErrorKind::FileTooLarge.into()),
            Ok(_) => fs::read(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Writes a file beside it and renames that: what stands is the old one or the new one, whole.
    ///
    /// # Errors
    /// When the folder or the file cannot be written.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let beside = path.with_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(serde_json::to_string(self).map_err(io::Error::other)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_reads_back_and_damage_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("remote.json");
        assert_eq!(State::read(&path).unwrap(), None);
        let state = State::new(7, &["{}".into()]);
        state.write(&path).unwrap();
        assert_eq!(State::read(&path).unwrap(), Some(state));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::write(&path, "{\"epoch\":").unwrap();
        assert!(State::read(&path).is_err());
    }
}

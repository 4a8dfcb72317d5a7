//! What has to be known after a restart: the canary's first vector, the mark of a switch, what the day has cost.
//!
//! One small JSON file a model, replaced as a whole: a new file, synced, then renamed over the old.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::EngineError;
use super::pace::Spent;

/// The file's content.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kept {
    /// By the fingerprint of what is declared, so that a raised version begins anew and a lowered one finds its own again.
    pub(super) canaries: BTreeMap<String, Reference>,
    /// Tokens spent today.
    pub(super) spent: Spent,
}

/// What the canary's vector was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Reference {
    /// The text.
    pub(super) text: String,
    /// Its vector.
    pub(super) vector: Vec<f32>,
    /// When it was taken.
    pub(super) since_unix_seconds: u64,
    /// What stands in the fingerprint for this model after a switch.
    pub(super) mark: String,
}

/// The file and what is in it.
pub(super) struct Keeper {
    path: PathBuf,
    pub(super) kept: Kept,
}

impl Keeper {
    /// Reads the file of a model in `folder`, if there is one.
    pub(super) fn open(folder: &Path, model: &str) -> Result<Self, EngineError> {
        let path = folder.join(format!("{model}.json"));
        let kept = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| EngineError::Invalid {
                path: path.clone(),
                reason: format!("{error}; delete it to take the canary's vector anew, and raise the manifest's version unless the model there is sure to be the same"),
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => Kept::default(),
            Err(source) => return Err(EngineError::File { operation: "read", path, source }),
        };
        Ok(Self { path, kept })
    }

    /// Writes the file.
    pub(super) fn save(&self) -> Result<(), EngineError> {
        let failed = |source| EngineError::File { operation: "write", path: self.path.clone(), source };
        let bytes = serde_json::to_vec(&self.kept).expect("plain fields are always written to memory");
        self.replace(&bytes).map_err(failed)
    }

    fn replace(&self, bytes: &[u8]) -> std::io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let next = self.path.with_extension("json.next");
        let mut file = File::create(&next)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&next, &self.path)?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("upstream");
        let mut keeper = Keeper::open(&folder, "m").unwrap();
        assert_eq!(keeper.kept, Kept::default());
        let reference = Reference {
            text: "c".to_owned(),
            vector: vec![0.1, 1e-9, -3.0],
            since_unix_seconds: 5,
            mark: "a".to_owned(),
        };
        keeper.kept.canaries.insert("f".to_owned(), reference);
        keeper.kept.spent = Spent { day: 3, tokens: 9 };
        keeper.save().unwrap();
        assert_eq!(Keeper::open(&folder, "m").unwrap().kept, keeper.kept);
    }

    #[test]
    fn a_file_that_is_something_else_is_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("m.json"), "{").unwrap();
        let error = Keeper::open(folder.path(), "m").err().unwrap().to_string();
        assert!(error.contains("delete it") && error.contains("version"), "{error}");
    }
}

//! Gives back what the files of a folder occupy and nothing in them uses.
//!
//! Rows never move in a file, so what was removed leaves holes in the middle that the medium keeps; a space made anew has
//! its entries side by side. The old file is in its place until the new one is whole and on the medium. What is damaged
//! stays behind; [`super::repair`] is for keeping it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::disk::System;
use super::error::StoreError;
use super::file::{self, Copied};
use super::lock::FolderLock;
use super::read_only::ReadOnly;
use super::shred;
use super::side;
use super::snapshot;

/// What a compaction came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Compacted {
    /// Each space file, by name.
    pub spaces: Vec<CompactedSpace>,
    /// Bytes the side store occupied.
    pub side_bytes_before: u64,
    /// Bytes it occupies now.
    pub side_bytes_after: u64,
}

/// What became of one space file.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CompactedSpace {
    /// The file.
    pub path: PathBuf,
    /// Entries it holds now.
    pub entries: u64,
    /// Damaged entries that stayed behind.
    pub damaged: u64,
    /// Bytes it occupied on the medium.
    pub bytes_before: u64,
    /// Bytes it occupies now.
    pub bytes_after: u64,
}

/// Makes every file of a folder anew without holes, one after the other. Needs free space for the largest.
///
/// # Errors
/// When another process has the folder, a file is of a newer format or no space, or the system refuses. What was done
/// until then is done; nothing is lost.
pub fn compact(folder: &Path) -> Result<Compacted, StoreError> {
    let _lock = FolderLock::take(folder)?;
    let mut compacted = Compacted::default();
    for path in ReadOnly::spaces(folder)? {
        let bytes_before = occupied_bytes(&path)?;
        let Copied { kept, damaged, .. } = file::rewrite(&System, &path)?;
        // What a clean close left is not believed of another file; but nor is it of use.
        snapshot::remove(&System, &path).map_err(StoreError::io("remove the table of", &path))?;
        compacted.spaces.push(CompactedSpace {
            entries: kept as u64,
            damaged: damaged as u64,
            bytes_before,
            bytes_after: occupied_bytes(&path)?,
            path,
        });
    }
    let path = side::path_in(folder);
    shred::recover(&path).map_err(StoreError::io("end the rewriting of", &path))?;
    if path.exists() {
        compacted.side_bytes_before = occupied_bytes(&path)?;
        side::compact(&path)?;
        compacted.side_bytes_after = occupied_bytes(&path)?;
    }
    Ok(compacted)
}

fn occupied_bytes(path: &Path) -> Result<u64, StoreError> {
    Ok(std::fs::metadata(path).map_err(StoreError::io("examine", path))?.blocks() * 512)
}

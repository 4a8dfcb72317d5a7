//! What can go wrong in the store, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::domain::ModelVersion;

/// Why the store could not open, write or sync. A read never fails: what cannot be read is a miss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process (or another store in this one) holds the folder.
    #[error("the cache folder {} is in use by another process: stop that one, or choose another folder", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The file was written by a newer program.
    #[error(
        "{} has format version {found}, this program reads up to {supported}: use the newer program, or another folder",
        path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// A file that does not begin as a space does: damaged, or somebody else's.
    #[error("{} is not a space that can be read: {reason}", path.display())]
    NotASpace {
        /// The file.
        path: PathBuf,
        /// What is wrong, in a few words.
        reason: &'static str,
    },
    /// A file under this model's name that holds another model's vectors.
    #[error("{} holds the vectors of model {found}, not of {expected}: move it away, or choose another folder", path.display())]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// The model it was written for.
        found: ModelVersion,
        /// The model that is asked for.
        expected: ModelVersion,
    },
    /// A file of this model with vectors of another length.
    #[error("{} holds vectors of {found} values, not of {expected}: move it away, or choose another folder", path.display())]
    OtherDims {
        /// The file.
        path: PathBuf,
        /// The length it was written for.
        found: usize,
        /// The length that is asked for.
        expected: usize,
    },
    /// A capacity that no file can have.
    #[error("a capacity of {entries} entries is not possible: it must be from 1 to {entries_max}")]
    Capacity {
        /// What was asked for.
        entries: u64,
        /// The most there can be.
        entries_max: u64,
    },
    /// A bound in bytes that leaves no room for a single entry.
    #[error("a {name} of {bytes} bytes leaves no room for entries: raise it, or leave it out")]
    BoundTooTight {
        /// Which bound.
        name: &'static str,
        /// What it was set to.
        bytes: u64,
    },
    /// A vector length that no file can have.
    #[error("vectors of {dims} values are not possible: it must be from 1 to {dims_max}")]
    Dims {
        /// What was asked for.
        dims: usize,
        /// The most there can be.
        dims_max: usize,
    },
    /// A row whose length is not the model's.
    #[error("entry {index} has {found} values, this model's vectors have {expected}")]
    RowLength {
        /// Which of the entries given.
        index: usize,
        /// Its length.
        found: usize,
        /// The model's.
        expected: usize,
    },
    /// A row or norm with NaN or infinity: never stored.
    #[error("entry {index} has a value or norm that is not finite")]
    NotFinite {
        /// Which of the entries given.
        index: usize,
    },
    /// What was invalidated could not be erased; it is not served all the same.
    #[error("what was invalidated in {} could not all be erased; the log says why", path.display())]
    NotSwept {
        /// The file.
        path: PathBuf,
    },
    /// Everything is pinned.
    #[error("{} has no room: all of its {pinned} entries are pinned, so none can be evicted", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// How many entries there are.
        pinned: u64,
    },
    /// A payload longer than there may be.
    #[error("entry {index} has a payload of {bytes} bytes, there may be {bytes_max}")]
    PayloadTooLong {
        /// Which of the entries given.
        index: usize,
        /// Its length.
        bytes: usize,
        /// The most there may be.
        bytes_max: usize,
    },
    /// A sync failed, now or earlier. What it left unwritten is unknown, so it is not tried again.
    #[error("{} could not be synced ({reason}); entries are no longer durable until a restart", path.display())]
    SyncFailed {
        /// The file.
        path: PathBuf,
        /// The system's answer to the sync.
        reason: String,
    },
    /// All 2^24 - 1 namespace numbers are taken.
    #[error("there are no more than 16777215 namespaces; {name:?} would be one more")]
    TooManyNamespaces {
        /// The one too many.
        name: String,
    },
    /// All 2^40 - 1 sequence numbers are taken.
    #[error("{} has taken a million million entries, its sequence numbers are used up: move it away", path.display())]
    SequenceUsedUp {
        /// The file.
        path: PathBuf,
    },
    /// The side store (namespaces, tags) refused.
    #[error("cannot {operation} in the side store {}", path.display())]
    Side {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The side store's file.
        path: PathBuf,
        /// Its answer.
        source: Box<redb::Error>,
    },
}

impl StoreError {
    /// For `map_err`: an I/O failure of `operation` on `path`.
    pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

/// The file was cut short under the map while it was read: what was shown may hold zeros and must be forgotten. Ask again;
/// the entries that are gone are misses then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store's file was cut short while it was read")]
pub struct Torn;

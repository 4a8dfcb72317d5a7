//! Why a request has no answer.

use std::time::Duration;

use crate::batch::{JobError, Refusal};
use crate::domain::{Lane, UnusableVector};
use crate::index::SearchError;
use crate::store::StoreError;

use super::erasure::ErasureError;
use super::events::EventError;
use super::flight::Failure;

/// Why a request has no answer. Nothing of a failed text is cached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model has no prompt of that name.
    #[error("the model has no prompt named {name:?}; it has {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    UnknownPrompt {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// A text is longer than the model reads, and the request forbids cutting it.
    #[error("input {index} has {tokens} tokens, the model reads {max_tokens}: shorten it or allow truncation")]
    TooLong {
        /// Which input.
        index: usize,
        /// Its length.
        tokens: usize,
        /// The most there may be.
        max_tokens: usize,
    },
    /// The request wants cached answers only, and some are not.
    #[error("{} of the inputs are not cached", indexes.len())]
    Missing {
        /// Which.
        indexes: Vec<usize>,
    },
    /// Too much waits for the engine already.
    #[error("the queue is full: {queued} texts wait for the model in lane {lane}; try again in {} s", retry_after.as_secs_f64().ceil())]
    QueueFull {
        /// The request's lane.
        lane: Lane,
        /// How many texts wait in it.
        queued: usize,
        /// When there should be room.
        retry_after: Duration,
    },
    /// An erasure could not be completed yet.
    #[error("the erasure could not be completed, and will be tried again: {0}")]
    Erasure(#[from] ErasureError),
    /// The model failed.
    #[error("input {index} could not be embedded: {message}")]
    Engine {
        /// Which input.
        index: usize,
        /// What the engine said.
        message: String,
    },
    /// The model refuses a text.
    #[error("input {index} could not be embedded: {message}")]
    Rejected {
        /// Which input.
        index: usize,
        /// What the engine said.
        message: String,
    },
    /// The model can do nothing now, but later.
    #[error("input {index} could not be embedded: {message}")]
    Busy {
        /// Which input.
        index: usize,
        /// What the engine said.
        message: String,
        /// When.
        retry_after: Duration,
    },
    /// The model's tokenizer is not here.
    #[error("{0}")]
    TokenizerUnknown(String),
    /// The model's vector for a text cannot be used.
    #[error("input {index} could not be embedded: {source}")]
    Unusable {
        /// Which input.
        index: usize,
        /// Why.
        source: UnusableVector,
    },
    /// The tokenizer failed.
    #[error("input {index} could not be tokenised: {message}")]
    Tokenizer {
        /// Which input.
        index: usize,
        /// What the tokenizer said.
        message: String,
    },
    /// A token id that the model does not have.
    #[error("input {index} has token id {id}, the model's vocabulary ends before {vocabulary}")]
    TokenId {
        /// Which input.
        index: usize,
        /// The id.
        id: u32,
        /// How many ids there are.
        vocabulary: usize,
    },
    /// The program is shutting down.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// A vector of the caller's has the wrong length.
    #[error("a vector of this model has {expected} values, this one has {found}")]
    Dims {
        /// The model's.
        expected: usize,
        /// The caller's.
        found: usize,
    },
    /// A vector of the caller's cannot be used.
    #[error("the vector cannot be used: {0}")]
    Vector(#[source] UnusableVector),
    /// An invalidation that does not say of what.
    #[error(
        "nothing says which entries are meant; give at least one of keys, inputs, tags, tag_glob, namespace, model, older_than"
    )]
    EmptySelector,
    /// Something to be stored while the cache is switched off.
    #[error("the cache is switched off: nothing is stored")]
    SwitchedOff,
    /// Reuse that cannot be calibrated.
    #[error("reuse cannot be calibrated: {0}")]
    Calibration(String),
    /// A search where none are made.
    #[error("searches are switched off here; `enabled = true` in [search] of the configuration switches them on")]
    SearchOff,
    /// An event that rules can do nothing with.
    #[error(transparent)]
    Event(#[from] EventError),
    /// A search that cannot be.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// The store refused what was all the call was about.
    #[error("the store refused: {0}")]
    Store(#[from] StoreError),
}

impl Error {
    /// The failure of the call that `index` of a request waited for.
    pub(super) fn from_failure(failure: Failure, index: usize) -> Self {
        match failure {
            Failure::Job(JobError::Refused(Refusal::Full { lane, queued, retry_after })) => {
                Self::QueueFull { lane, queued, retry_after }
            }
            Failure::Job(JobError::Refused(Refusal::Closed)) => Self::ShuttingDown,
            Failure::Job(JobError::Input(message)) => Self::Rejected { index, message },
            Failure::Job(JobError::Busy { message, retry_after }) => Self::Busy { index, message, retry_after },
            Failure::Job(error) => Self::Engine { index, message: error.to_string() },
            Failure::Unusable(source) => Self::Unusable { index, source },
            Failure::Tokenizer(message) => Self::Tokenizer { index, message },
            Failure::Abandoned => Self::Engine { index, message: "its computation was given up; ask again".to_owned() },
        }
    }
}
